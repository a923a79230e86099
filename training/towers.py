"""What is trained of a CLIP, as one module: text embeddings without padding, image embeddings where images are trained."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from models import Clip

LENGTH_PARTS = 2  # of a batch on a CPU: fewer compute more padding, more have smaller matrix products


class TrainedTowers(nn.Module):
    """The text tower, its projection and the logit scale of a CLIP; the image tower too where it is trained.

    Its parameters are the model's own. Those of a frozen image tower are not among them, so they are neither saved with the
    states of a training nor synchronised between processes.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        train_vision: bool = False,
        freeze_embeddings: bool = False,
        freeze_logit_scale: bool = False,
        compiled: bool = False,
        bfloat16: bool = False,
    ):
        super().__init__()
        self.text_model, self.text_projection = clip.model.text_model, clip.model.text_projection
        self.logit_scale = clip.model.logit_scale
        if train_vision:
            self.vision_model, self.visual_projection = clip.model.vision_model, clip.model.visual_projection
        clip.model.requires_grad_(False)
        self.requires_grad_(True)
        self.text_model.embeddings.requires_grad_(not freeze_embeddings)
        self.logit_scale.requires_grad_(not freeze_logit_scale)
        self._embed_images, self._compiled = clip.embed_images, compiled
        if clip.device.type == "cpu":
            # Under autocast to bf16 the fused attention's backward pass on a CPU takes more than all the rest of the step.
            clip.model.set_attn_implementation("eager" if bfloat16 else "sdpa")
        layers = tuple(clip.stack.layers)
        self._layers = tuple(torch.compile(layer, dynamic=True) for layer in layers) if compiled else layers

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def forward(self, batch: dict[str, Tensor], keep: Sequence[bool]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Text (n, d) and image (n, d) embeddings, L2-normalised, and the factor on cosine similarities.

        `keep`: for every text layer whether it runs in this step. Image embeddings are those of the batch's images where it
        has them, else those it was given; None where it has neither.
        """
        text = F.normalize(self._embed_text(batch["input_ids"], batch["lengths"], keep).float(), dim=-1)
        image = batch.get("image_embeddings")
        if "pixel_values" in batch:
            image = self._embed_images(batch["pixel_values"])
        return text, image, self.logit_scale.exp()

    def _embed_text(self, input_ids: Tensor, lengths: Tensor, keep: Sequence[bool]) -> Tensor:
        """(n, d), not normalised. On a CPU in parts of similar length, so that little is computed for padding.

        On a GPU, and where every new shape may be compiled anew, all at once.
        """
        if input_ids.is_cuda or self._compiled:
            return self.text_projection(self._pool(input_ids, lengths, keep))
        parts = lengths.argsort(stable=True).chunk(LENGTH_PARTS)
        pooled = [self._pool(input_ids[rows, : lengths[rows].max()], lengths[rows], keep) for rows in parts]
        return self.text_projection(torch.cat(pooled)[torch.cat(parts).argsort()])

    def _pool(self, input_ids: Tensor, lengths: Tensor, keep: Sequence[bool]) -> Tensor:
        """(n, width): the final norm of the last hidden state at the end token alone; captions end at `lengths`."""
        hidden = self.text_model.embeddings(input_ids=input_ids)
        mask = create_causal_mask(
            config=self.text_model.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
        )
        for layer, kept in zip(self._layers, keep, strict=True):
            if kept:
                hidden = layer(hidden, attention_mask=mask, is_causal=True)
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.text_model.final_layer_norm(hidden[rows, lengths - 1])
