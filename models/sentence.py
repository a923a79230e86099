"""Sentence encoders: a transformer that sees both ways, as sentence-transformers has it, or as it is (mean pooling).

A linear map after the pooling is always there, the identity where the checkpoint has none, so that a repair can change
it; when saved it becomes the folder's Dense module (`sentence_form`).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from common.files import write_json
from data import ImageCaptionPairs
from models import checkpoint
from models.embedding_cache import cached_embeddings
from models.encoders import Batch, Encoder, pad_tokens
from models.families import read_config
from models.layer_stack import LayerStack
from models.sentence_form import Form, identity_map, is_identity, read_dense, read_form, save_dense, with_dense

# positions count from behind the padding token's
POSITIONS_AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")
UNUSED_WEIGHTS = ("pooler.",)  # of a head that sentence encoders do not have
SIMILARITY_SCALE = 20.0  # of cosine similarities in the contrastive loss, sentence-transformers' default
PROJECTION = "sentence_projection"  # the linear map's name in the model, where it goes with it but is saved apart


class SentenceEncoder(Encoder):
    """A text transformer with its tokenizer and the form of its folder."""

    tower = "text"
    library_name, pipeline_tag = "sentence-transformers", "sentence-similarity"
    usage = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer(folder)"""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, form: Form, name: str):
        self.model, self.tokenizer, self.form, self.name = model, tokenizer, form, name
        self.stack = LayerStack(model)
        self._last_norm = getattr(model, "final_norm", nn.Identity())  # of a pre-norm tower (ModernBERT)

    # --- texts

    def prepare(self, samples: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with the start and end token, cut to the model's length."""
        texts = [self.form.prompt + text for text in samples]
        texts = [text.lower() for text in texts] if self.form.lower_case else texts
        return self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]

    @property
    def max_length(self) -> int:
        config = self.model.config
        unused = config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0
        longest = min(self.tokenizer.model_max_length, config.max_position_embeddings - unused)
        return min(longest, self.form.max_length or longest)

    def batch(self, prepared: Sequence[list[int]], rows: Iterable[int], length: int | None = None) -> Batch:
        ids, mask = pad_tokens([prepared[row] for row in rows], self.tokenizer.pad_token_id or 0, length)
        ids, mask = ids.to(self.device), mask.to(self.device)
        return Batch(np.asarray(rows), {"input_ids": ids, "attention_mask": mask.long()}, mask)

    # --- readout

    def own_pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        if self.form.pooling == "mean":
            return self.pool(hidden, batch, "mean")
        last = batch.lengths - 1 if self.form.pooling == "lasttoken" else torch.zeros_like(batch.lengths)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]

    def features(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self.own_pool(self._last_norm(hidden), batch)

    @property
    def projection(self) -> nn.Linear:
        return getattr(self.model, PROJECTION)

    def deployed(self, inputs: dict[str, Tensor]) -> Tensor:
        batch = Batch(np.empty(0), inputs, inputs["attention_mask"].bool())  # a traced batch has no number of rows
        return self.projection(self.own_pool(self.model(**inputs).last_hidden_state, batch))

    # --- model

    def parts(self) -> dict[str, nn.Module]:
        """All but the pooler of the language model, which nothing reads."""
        return {name: part for name, part in self.model.named_children() if f"{name}." not in UNUSED_WEIGHTS}

    def settings(self) -> str:
        return super().settings() + self.form.pooling

    def drop(self, dropped_layers: Iterable[int], name: str = "") -> "SentenceEncoder":
        return SentenceEncoder(self.stack.drop(dropped_layers), self.tokenizer, self.form, name or self.name)

    def save(self, folder: Path | str) -> None:
        folder = Path(folder)
        projection = self.projection
        # else it would be saved among the weights, where from_pretrained has no place for it
        delattr(self.model, PROJECTION)
        try:
            checkpoint.save_model(self.model, folder)
        finally:
            self.model.add_module(PROJECTION, projection)
        self.tokenizer.save_pretrained(folder)
        form = self.form if self.form.dense or is_identity(projection) else with_dense(self.form)
        for path, content in form.files.items():
            write_json(folder / path, content)
        if form.dense:
            save_dense(projection, folder / form.dense)

    # --- pairs of texts

    @property
    def logit_scale(self) -> float:
        return SIMILARITY_SCALE

    def embed_pairs(
        self, pairs: ImageCaptionPairs, cache_dir: Path | None = None, progress: bool = False
    ) -> tuple[ImageCaptionPairs, Tensor]:
        """The pairs, and the embeddings (m, dim) of their targets by this model, cached in `cache_dir`."""
        if pairs.targets is None:
            raise ValueError(
                f"{self.name} embeds texts alone: name the column of the other text with --target_column, or score by "
                "the distance to the full model: --objective embedding in a search, --images false elsewhere"
            )
        return pairs, cached_embeddings(self, pairs.targets, cache_dir)


def load_sentence_encoder(name: str, device: str = "cpu", weights: bool = True) -> SentenceEncoder:
    """A sentence encoder from a local folder or the hub, in evaluation mode, float32.

    Raises FileNotFoundError where there is no such model, and ValueError where it or its `modules.json` has a part that
    is not known here.
    """
    config = read_config(name)
    model_class = MODEL_MAPPING[type(config)]
    form = read_form(name, config.hidden_size)
    tokenizer = checkpoint.read_tokenizer(name, config.vocab_size)
    model = checkpoint.read_model(model_class, name, config, UNUSED_WEIGHTS) if weights else model_class(config).eval()
    projection = read_dense(name, form.dense) if form.dense else identity_map(config.hidden_size)
    if form.dense and not weights:
        projection.reset_parameters()  # read for its shape alone
    model.add_module(PROJECTION, projection)
    return SentenceEncoder(model.to(device), tokenizer, form, name).check_embeds()
