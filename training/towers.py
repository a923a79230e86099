"""What is trained of a model, as one module: the encoder's tower; the other tower too where it is trained."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.encoders import Batch, Encoder

MAX_LOGIT_SCALE = math.log(100)  # CLIP's own limit
LENGTH_PARTS = 2  # of a batch on a CPU: fewer compute more padding, more have smaller matrix products


class Outputs(NamedTuple):
    """What a batch gives: the encoder's (n, d) and the images' (n, d) embeddings, L2-normalised; the factor on cosine
    similarities; and what is added to them, None where the loss is CLIP's. Without images `image` is None."""

    text: Tensor
    image: Tensor | None
    scale: Tensor
    bias: Tensor | None = None


class TrainedTowers(nn.Module):
    """An encoder's tower with its projection, and the logit scale (and bias) where the model has one; the image tower
    where it is trained.

    Its parameters are the model's own. Those of a frozen image tower are not among them, so they are neither saved with
    the states of a training nor synchronised between processes.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        train_vision: bool = False,
        freeze_embeddings: bool = False,
        freeze_logit_scale: bool = False,
        bfloat16: bool = False,
    ):
        super().__init__()
        if train_vision and not encoder.target_parts():
            raise ValueError(
                f"--freeze_vision false: {encoder.name} has no other tower that could be trained beside this one"
            )
        for name, part in {**encoder.parts(), **(encoder.target_parts() if train_vision else {})}.items():
            self.add_module(name, part)
        # a model without one of its own is compared at a fixed scale
        scale = getattr(encoder.model, "logit_scale", None)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(encoder.logit_scale))) if scale is None else scale
        # all of the model is frozen, then what is registered here is trained
        encoder.model.requires_grad_(False)
        self.logit_bias = getattr(encoder.model, "logit_bias", None)
        self.requires_grad_(True)
        if freeze_embeddings:
            encoder.input_embeddings().requires_grad_(False)
        self.logit_scale.requires_grad_(scale is not None and not freeze_logit_scale)
        if self.logit_bias is not None:
            self.logit_bias.requires_grad_(not freeze_logit_scale)
        if bfloat16 and encoder.device.type == "cpu":
            # Under autocast to bf16 the fused attention's backward pass on a CPU takes more than all the rest of the
            # step.
            encoder.model.set_attn_implementation("eager")
        self._encoder = encoder

    @property
    def num_layers(self) -> int:
        return self._encoder.num_layers

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """As in CLIP (Radford et al. 2021, section 2.5); SigLIP's is beyond that from the start."""
        if self.logit_bias is None:
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def forward(self, batch: dict, keep: Sequence[bool]) -> Outputs:
        """`keep`: for every layer whether it runs in this step. Image embeddings are those of the batch's images where
        it has them, else those it was given; None where it has neither.
        """
        kept = [layer for layer, stays in enumerate(keep, start=1) if stays]
        mask = batch["mask"]
        text = self._embed(Batch(np.arange(len(mask)), batch["inputs"], mask), kept)
        image = batch.get("image_embeddings")
        if "pixel_values" in batch:
            image = self._encoder.embed_images(batch["pixel_values"])
        return Outputs(text, image, self.logit_scale.exp(), self.logit_bias)

    def _embed(self, batch: Batch, kept: Sequence[int]) -> Tensor:
        """(n, d), L2-normalised. On a CPU in parts of similar length, so that little is computed for padding.

        On a GPU all at once.
        """
        if batch.mask.is_cuda:
            return self._run(batch, kept)
        parts = batch.lengths.argsort(stable=True).chunk(LENGTH_PARTS)  # rows, the short samples first
        return torch.cat([self._run(batch.select(rows), kept) for rows in parts])[torch.cat(parts).argsort()]

    def _run(self, batch: Batch, kept: Sequence[int]) -> Tensor:
        hidden, context = self._encoder.stack.start(**batch.inputs)
        return self._encoder.embed(self._encoder.stack.run(hidden, context, kept), batch)
