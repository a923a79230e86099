"""SigLIP and SigLIP 2 (of a fixed image size) as encoders: the text tower; image embeddings are the targets.

Unlike CLIP's its text attention sees both ways, padding too, and the embedding is read at the last position (Zhai et
al. 2023, arXiv 2303.15343). So every text is padded to the length that the model was trained with, and each position
counts.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SiglipImageProcessorPil, SiglipModel, SiglipProcessor

from models import checkpoint
from models.clip import Clip
from models.encoders import Batch
from models.families import read_config


class Siglip(Clip):
    """SigLIP's text tower; the image tower gives the targets."""

    # --- texts

    def prepare(self, samples: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, padded or cut to the trained length."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.max_length}
        return self.tokenizer(list(samples), **options)["input_ids"]

    @property
    def max_length(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    def batch(self, prepared: Sequence[list[int]], rows: Iterable[int], length: int | None = None) -> Batch:
        ids = torch.tensor([prepared[row] for row in rows], device=self.device)
        return Batch(np.asarray(rows), {"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool))

    # --- readout

    def pool(self, hidden: Tensor, batch: Batch, how: str) -> Tensor:
        """As for others, but the mean is over the tokens of a text, not over all positions that count."""
        if how != "mean":
            return self.own_pool(hidden, batch)
        is_padding = batch.inputs["input_ids"] == self.tokenizer.pad_token_id
        padding_before = is_padding.cumsum(1) - is_padding.long()
        # where the end token is the padding token too, the first of them is the text's end
        is_token = ~is_padding | (padding_before == 0) & (self.tokenizer.eos_token_id == self.tokenizer.pad_token_id)
        return hidden.masked_fill(~is_token[:, :, None], 0).sum(1) / is_token.sum(1, keepdim=True)

    @property
    def projection(self) -> nn.Linear:
        return self.model.text_model.head

    # --- model

    def parts(self) -> dict[str, nn.Module]:
        return {"text_model": self.model.text_model}

    def target_parts(self) -> dict[str, nn.Module]:
        return {"vision_model": self.model.vision_model}

    # --- pairs

    @property
    def logit_bias(self) -> float:
        return self.model.logit_bias.item()


def load_siglip(name: str, device: str = "cpu", weights: bool = True) -> Siglip:
    """A SigLIP from a local folder or the hub, in evaluation mode, float32; exceptions as in `load_clip`."""
    config = read_config(name)
    tokenizer = checkpoint.read_tokenizer(name, config.text_config.vocab_size)
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{name}: the tokenizer has no padding token, and SigLIP reads padded texts")
    processor = SiglipProcessor(
        checkpoint.read_image_processor(SiglipImageProcessorPil, name, config.vision_config.image_size), tokenizer
    )
    model = checkpoint.read_model(SiglipModel, name, config) if weights else SiglipModel(config)
    return Siglip(model.eval().to(device), processor, name).check_embeds()
