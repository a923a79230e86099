"""What a prunable encoder is, and which class reads which checkpoint. One file a family stands beside this one.

Analysis, search, repair and training need little of a model: a stack of layers, a way to batch its inputs, and a
readout from the last hidden state to an embedding. A family says these in a subclass of `Encoder`; the rest follows
from them.

    encoder = load_encoder("exp/iconclip")                        # CLIP's text tower
    for batch in encoder.batches(captions, 64):
        hidden, context = encoder.stack.start(**batch.inputs)     # h_0
        hidden = encoder.stack.run(hidden, context, [1, 2, 4])    # the layers that are kept
        embeddings[batch.rows] = encoder.embed(hidden, batch)     # (n, dim), L2-normalised
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from models import checkpoint
from models.layer_stack import LayerStack
from models.open_clip_folder import find_open_clip, read_open_clip

# (model_type of the checkpoint, tower) -> module and function(name, device, weights) that loads it
SENTENCE_ENCODERS = ("bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
FAMILIES = {
    ("clip", "text"): ("models.clip", "load_clip"),
    ("clip", "vision"): ("models.vision", "load_vision"),
    ("metaclip_2", "text"): ("models.clip", "load_clip"),
    ("metaclip_2", "vision"): ("models.vision", "load_vision"),
    ("siglip", "text"): ("models.siglip", "load_siglip"),
    ("siglip", "vision"): ("models.vision", "load_vision"),
    **{(kind, "text"): ("models.sentence", "load_sentence_encoder") for kind in SENTENCE_ENCODERS},
}
# Kinds that people try and that no class here can prune, with the reason
BLOCKS_DIFFER = "its layers are not alike"
REFUSED = {
    "align": "its image tower is a convolutional network, which no class here embeds with",
    "altclip": "its text tower is an XLM-RoBERTa with a readout of its own, which no class here has",
    "blip": "its text blocks also attend to the image",
    "blip-2": "its text blocks also attend to the image",
    "chinese_clip": "its text tower is a BERT with a readout of its own, which no class here has",
    "clap": "it has sounds in the place of images",
    "clip_text_model": "it is one tower alone; pass the whole CLIP",
    "clip_vision_model": "it is one tower alone; pass the whole CLIP",
    "deberta-v2": "in some of its checkpoints a convolution changes the state between two layers",
    "modernbert": f"{BLOCKS_DIFFER}: the first has no norm before its attention",
    "qwen3_next": f"{BLOCKS_DIFFER}: there are two kinds of attention",
    "siglip2": "it takes images of any shape (NaFlex), which no class here batches; SigLIP 2 of a fixed size is model_type siglip",
    "t5": f"{BLOCKS_DIFFER}: the first holds the relative positions of all",
    "vision-text-dual-encoder": "its towers are of two kinds of models, with two kinds of blocks",
    "wavlm": f"{BLOCKS_DIFFER}: the first holds the relative positions of all",
    "xlnet": "its states have the position before the sample",
}


@dataclass(frozen=True)
class Batch:
    """Samples that go through a tower together, on its device."""

    rows: np.ndarray  # (n,) their numbers among all samples
    inputs: dict[str, Tensor]  # what the tower takes, each (n, ...)
    mask: Tensor  # (n, T) boolean: True at the real positions of a hidden state

    @property
    def lengths(self) -> Tensor:
        """(n,) real positions of each sample."""
        return self.mask.sum(1)

    def to(self, device: torch.device | str) -> "Batch":
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(self.rows, inputs, self.mask.to(device))

    def select(self, rows: Tensor) -> "Batch":
        """Some of these samples, cut to the longest of them."""
        mask, longest = self.mask[rows], int(self.lengths[rows].max())
        cut = {name: t[rows, :longest] if t.shape[1] == mask.shape[1] else t[rows] for name, t in self.inputs.items()}
        return Batch(self.rows[rows.cpu().numpy()], cut, mask[:, :longest])


class Encoder(Protocol):
    """A tower whose layers can be left out, as part of a model that can be saved.

    A family says `prepare`, `batch`, `own_pool`, `features`, `projection`, `parts` and `drop`; and for its pairs
    `samples`, `embed_pairs`, `logit_scale` and perhaps `logit_bias`.

    Attributes:
        name: as given to `load_encoder`.
        tower: which tower of the model it is, `text` or `vision`.
        model: the whole model: what is moved, cast and saved.
        stack: the layers.
    """

    name: str
    tower: str
    model: PreTrainedModel
    stack: LayerStack
    # what a model card says: the hub's names of the library and of the use, and the lines that load it from `folder`
    library_name: str = "transformers"
    pipeline_tag: str = "feature-extraction"
    usage: str = """from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)"""

    # --- samples

    def prepare(self, samples: Sequence) -> Sequence[Sequence]:
        """What the tower takes of each sample, such as token ids; its length is the number of positions that count."""
        ...

    def batch(self, prepared: Sequence[Sequence], rows: Iterable[int], length: int | None = None) -> Batch:
        """The prepared samples `rows` as one batch, as long as the longest of them, or padded to `length` positions."""
        ...

    def batches(self, samples: Sequence, batch_size: int, length: int | None = None) -> Iterator[Batch]:
        """All samples, sorted by length, in batches; `length` as in `batch`."""
        return self.prepared_batches(self.prepare(samples), batch_size, length)

    def prepared_batches(
        self, prepared: Sequence[Sequence], batch_size: int, length: int | None = None
    ) -> Iterator[Batch]:
        """The same for samples that are prepared already."""
        order = np.argsort(self.lengths(prepared), kind="stable")
        for start in range(0, len(order), batch_size):
            yield self.batch(prepared, order[start : start + batch_size], length)

    def lengths(self, prepared: Sequence[Sequence]) -> list[int]:
        """The number of positions of each prepared sample."""
        return [len(sample) for sample in prepared]

    @property
    def max_length(self) -> int:
        """The most positions that the tower takes."""
        ...

    # --- readout

    def own_pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(n, width): where the model itself reads a hidden state (n, T, width): end token, class token, mean."""
        ...

    def features(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(n, width): the last hidden state as the projection takes it, pooled and normed by the model's last norm."""
        ...

    @property
    def projection(self) -> nn.Linear | None:
        """From features to embeddings; None where the features are the embeddings."""
        ...

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.width if self.projection is None else self.projection.out_features

    def pool(self, hidden: Tensor, batch: Batch, how: str) -> Tensor:
        """(n, width) of a hidden state (n, T, width): the mean over real positions (`mean`), or `own_pool` (`eos`)."""
        if how == "mean":
            return hidden.masked_fill(~batch.mask[:, :, None], 0).sum(1) / batch.lengths[:, None]
        return self.own_pool(hidden, batch)

    def embed(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(n, dim), L2-normalised, in float32 or wider, from the last hidden state (n, T, width)."""
        features = self.features(hidden, batch)
        embeddings = features if self.projection is None else self.projection(features)
        return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)

    @torch.no_grad()
    def embeddings(self, samples: Sequence, kept_layers: Iterable[int] | None = None, batch_size: int = 256) -> Tensor:
        """(n, dim), L2-normalised, float32 or wider, of the samples through all layers or those kept (from 1)."""
        kept = range(1, self.num_layers + 1) if kept_layers is None else tuple(kept_layers)
        dtype = torch.promote_types(self.dtype, torch.float32)
        embeddings = torch.empty(len(samples), self.dim, dtype=dtype, device=self.device)
        for batch in self.batches(samples, batch_size):
            hidden, context = self.stack.start(**batch.inputs)
            embeddings[batch.rows] = self.embed(self.stack.run(hidden, context, kept), batch)
        return embeddings

    def deployed(self, inputs: dict[str, Tensor]) -> Tensor:
        """(n, dim), not normalised, by the model's own forward pass: what a user of the checkpoint runs."""
        ...

    # --- model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def num_layers(self) -> int:
        return self.stack.num_layers

    @property
    def width(self) -> int:
        """Of a hidden state."""
        return self.stack.tower.config.hidden_size

    def parts(self) -> dict[str, nn.Module]:
        """The modules that an embedding needs, the tower and its projection, by their names in the model."""
        ...

    def input_embeddings(self) -> nn.Module:
        """The part of the tower that gives h_0."""
        return self.stack.tower.embeddings

    def target_parts(self) -> dict[str, nn.Module]:
        """The modules that embed the other side of the pairs, as `parts`; none where the model has none to train.

        Where there are, `preprocess(images)` and `embed_images(pixel_values)` use them.
        """
        return {}

    def num_parameters(self) -> int:
        """Of the parts."""
        return sum(parameter.numel() for part in self.parts().values() for parameter in part.parameters())

    def identity(self) -> dict:
        """What a run record says about the model."""
        weights = state_hash(self.model)
        return {"name": self.name, "weights_sha256": weights, f"{self.tower}_layers": self.num_layers}

    def drop(self, dropped_layers: Iterable[int], name: str = "") -> Self:
        """A new encoder without these layers (counted from 1), with copies of all weights that stay."""
        ...

    def save(self, folder: Path) -> None:
        """A checkpoint that `load_encoder` reads."""
        ...

    # --- pairs

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities in the contrastive loss."""
        ...

    @property
    def logit_bias(self) -> float | None:
        """What is added to them in the sigmoid loss; None where the loss is CLIP's."""
        return None

    def samples(self, pairs: object) -> Sequence:
        """The side of the pairs that goes through this tower."""
        ...

    def embed_pairs(
        self, pairs: object, cache_dir: Path | None = None, progress: bool = False
    ) -> tuple[object, Tensor]:
        """The pairs whose other side can be embedded, and its embeddings (m, dim): the targets, which never change."""
        ...


def load_encoder(name: str, tower: str = "text", device: str = "cpu", weights: bool = True) -> Encoder:
    """The encoder of a checkpoint in a local folder or on the hub, in evaluation mode, float32.

    With `weights=False` its weights are fresh. Raises FileNotFoundError where there is no such model and ValueError
    where no family here reads it.
    """
    kind = read_config(name).model_type
    if (kind, tower) not in FAMILIES:
        towers = [of for family, of in FAMILIES if family == kind]
        known = ", ".join(sorted({family for family, _ in FAMILIES}))
        reason = (
            f"{kind} has the tower {' or '.join(towers)} here"
            if towers
            else REFUSED.get(kind, f"it is none of {known}")
        )
        raise ValueError(
            f"{name}: the {tower} tower of model_type {kind} cannot be pruned by these scripts: {reason}; "
            "`models.LayerStack` drops layers of any Hugging Face model whose layers are alike"
        )
    module, load = FAMILIES[kind, tower]
    return getattr(import_module(module), load)(name, device, weights)


def read_tower_config(name: str, tower: str = "text") -> PreTrainedConfig:
    """The part of a checkpoint's configuration that describes a tower; exceptions as in `read_config`."""
    config = read_config(name)
    return getattr(config, f"{tower}_config", config)


def check_num_layers(num_layers: int, name: str, tower: str = "text") -> None:
    """Raise ValueError unless the model has so many layers, as far as its configuration says."""
    found = read_tower_config(name, tower).num_hidden_layers
    if num_layers != found:
        raise ValueError(f"--num_layers is {num_layers}, but the {tower} tower of {name} has {found} layers")


def read_config(name: str) -> PreTrainedConfig:
    """The configuration of a model in a local folder or on the hub, in Hugging Face or open_clip form.

    An open_clip model is a folder with an `open_clip_config.json`, or `hf-hub:<organisation>/<name>`.

    Raises FileNotFoundError where there is no such model and ValueError where its configuration cannot be used.
    """
    open_clip_folder = find_open_clip(name)
    if open_clip_folder is not None:
        return read_open_clip(open_clip_folder)[0]
    return checkpoint.read_config(name)


def state_hash(module: nn.Module) -> str:
    """sha256 of a module's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def pad_tokens(sequences: Sequence[list[int]], padding: int, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Token ids (n, T), as long as the longest or `length`, and the mask (n, T) that is True at the real ones."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.full((len(sequences), length or int(lengths.max())), padding)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    ids[mask] = torch.tensor([token for sequence in sequences for token in sequence])
    return ids, mask
