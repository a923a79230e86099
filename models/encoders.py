"""What a prunable encoder is. One file a family stands beside this one; `families` says which reads which checkpoint.

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
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.layer_stack import LayerStack

# positions in a forward pass: so many stay in the cache of a CPU (512 captions take 1.3 to 1.5 times as long each); a
# GPU, on which this was not measured, has enough to do
CPU_TOKENS, GPU_TOKENS = 1536, 16384


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


def number_at_once(lengths: np.ndarray, tokens: int) -> int:
    """How many samples of rising lengths make a batch of at most so many positions, padding included; one at least."""
    return max(1, int(np.searchsorted(lengths * np.arange(1, len(lengths) + 1), tokens, side="right")))


class Encoder(Protocol):
    """A tower whose layers can be left out, as part of a model that can be saved.

    A family says `prepare`, `batch`, `max_length`, `own_pool`, `features`, `projection`, `deployed`, `parts`, `drop`
    and `save`; and for its pairs `embed_pairs`, `logit_scale` and perhaps `samples` and `logit_bias`.

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

    def batch(self, prepared: Sequence[Sequence], rows: Iterable[int], length: int | None = None) -> Batch:
        """The prepared samples `rows` as one batch, as long as the longest of them, or padded to `length` positions."""

    def batches(self, samples: Sequence, batch_size: int | None = None, length: int | None = None) -> Iterator[Batch]:
        """All samples, sorted by length, in batches, by default as the device likes them; `length` as in `batch`."""
        return self.prepared_batches(self.prepare(samples), batch_size, length)

    def prepared_batches(
        self, prepared: Sequence[Sequence], batch_size: int | None = None, length: int | None = None
    ) -> Iterator[Batch]:
        """The same for samples that are prepared already."""
        lengths = np.array([len(sample) for sample in prepared], dtype=int)
        order = np.argsort(lengths, kind="stable")  # little is computed for padding then
        rising = lengths[order] if length is None else np.full(len(order), length)
        tokens = CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS
        start = 0
        while start < len(order):
            # more samples than tokens cannot fit: each has one position at least
            end = start + (batch_size or number_at_once(rising[start : start + tokens], tokens))
            yield self.batch(prepared, order[start:end], length)
            start = end

    @property
    def max_length(self) -> int:
        """The most positions that the tower takes."""

    def readable(self, samples: Iterable, number: int | None, source: str) -> list:
        """The first `number` of the samples, or all; images that cannot be decoded are passed over with a warning."""
        return list(islice(samples, number))

    # --- readout

    def own_pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(n, width): where the model itself reads a hidden state (n, T, width): end token, class token, mean."""

    def features(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(n, width): the last hidden state as the projection takes it, pooled and normed by the model's last norm."""

    @property
    def projection(self) -> nn.Linear | None:
        """From features to embeddings; None where the features are the embeddings."""

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.width if self.projection is None else self.projection.out_features

    def pool(self, hidden: Tensor, batch: Batch, how: str) -> Tensor:
        """(n, width) of a hidden state (n, T, width): the mean over real positions (`mean`), or `own_pool` (`eos`)."""
        if how == "mean":
            # filled, not multiplied: what stands at padding may be NaN
            return hidden.masked_fill(~batch.mask[:, :, None], 0).sum(1) / batch.lengths[:, None]
        return self.own_pool(hidden, batch)

    def embed(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(n, dim), L2-normalised, in float32 or wider, from the last hidden state (n, T, width)."""
        features = self.features(hidden, batch)
        embeddings = features if self.projection is None else self.projection(features)
        wide = torch.promote_types(embeddings.dtype, torch.float32)  # similarities in half precision would tie
        return nn.functional.normalize(embeddings.to(wide), dim=-1)

    @torch.no_grad()
    def embeddings(
        self, samples: Sequence, kept_layers: Iterable[int] | None = None, batch_size: int | None = None
    ) -> Tensor:
        """(n, dim), L2-normalised, float32 or wider, of the samples through all layers or those kept (from 1)."""
        kept = range(1, self.num_layers + 1) if kept_layers is None else tuple(kept_layers)
        dtype = torch.promote_types(self.dtype, torch.float32)
        embeddings = torch.empty(len(samples), self.dim, dtype=dtype, device=self.device)
        for batch in self.batches(samples, batch_size):
            hidden, context = self.stack.start(**batch.inputs)
            embeddings[batch.rows] = self.embed(self.stack.run(hidden, context, kept), batch)
        return embeddings

    def check_embeds(self) -> Self:
        """The encoder of texts itself. Raises ValueError where finite weights give no finite embedding."""
        check_embeddings(self.embeddings(["a"]), self.name)
        return self

    def deployed(self, inputs: dict[str, Tensor]) -> Tensor:
        """(n, dim), not normalised, by the model's own forward pass: what a user of the checkpoint runs."""

    # --- model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the tower, which may have been cast alone."""
        return next(self.stack.tower.parameters()).dtype

    @property
    def num_layers(self) -> int:
        return self.stack.num_layers

    @property
    def width(self) -> int:
        """Of a hidden state."""
        return self.stack.tower.config.hidden_size

    def parts(self) -> dict[str, nn.Module]:
        """The modules that an embedding needs, the tower and its projection, by their names in the model."""

    def input_embeddings(self) -> nn.Module:
        """The tower's tables, from which h_0 comes."""
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

    def settings(self) -> str:
        """What an embedding depends on beside the weights."""
        return json.dumps(self.stack.tower.config.to_dict(), sort_keys=True, default=str)

    def drop(self, dropped_layers: Iterable[int], name: str = "") -> Self:
        """A new encoder without these layers (counted from 1), with copies of all weights that stay."""

    def save(self, folder: Path) -> None:
        """A checkpoint that `load_encoder` reads."""

    # --- pairs

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities in the contrastive loss."""

    @property
    def logit_bias(self) -> float | None:
        """What is added to them in the sigmoid loss; None where the loss is CLIP's."""
        return None

    def samples(self, pairs: object) -> Sequence:
        """The side of the pairs that goes through this tower: for a tower of texts the captions."""
        return pairs.captions

    def embed_pairs(
        self, pairs: object, cache_dir: Path | None = None, progress: bool = False
    ) -> tuple[object, Tensor]:
        """The pairs whose other side can be embedded, and its embeddings (m, dim): the targets, which never change."""


def state_hash(module: nn.Module) -> str:
    """sha256 of a module's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        # shape and type too: the same bytes can be another tensor
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_embeddings(embeddings: Tensor, name: str) -> None:
    """Raise ValueError where one is NaN or infinite, although the input was whole."""
    if not torch.isfinite(embeddings).all():
        raise ValueError(
            f"{name}: its embeddings are NaN or infinite; look at the sizes of its weights, and at layer_norm_eps in its "
            "config.json"
        )


def pad_tokens(sequences: Sequence[list[int]], padding: int, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Token ids (n, T), as long as the longest or `length`, and the mask (n, T) that is True at the real ones."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.full((len(sequences), length or int(lengths.max())), padding)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    # the mask's True entries go row by row, as the tokens do
    ids[mask] = torch.tensor([token for sequence in sequences for token in sequence])
    return ids, mask
