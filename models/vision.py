"""The image tower of CLIP or SigLIP as the encoder whose layers can be left out; text embeddings are the targets.

Hidden states are over patches. CLIP reads its class token, SigLIP an attention over all of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data import ImageCaptionPairs
from data.pairs import check_skipped
from models.clip import Clip, load_clip
from models.embedding_cache import cached_embeddings
from models.encoders import Batch, Encoder
from models.families import read_config
from models.layer_stack import LayerStack
from models.siglip import load_siglip


@dataclass(frozen=True, eq=False)
class Picture:
    """One of a sequence of images, decoded when needed; its length is the number of positions in a hidden state."""

    images: Sequence
    row: int
    positions: int

    def __len__(self) -> int:
        return self.positions


class Vision(Encoder):
    """CLIP's image tower. `text`: the same model as the encoder of the texts, with tokenizer and image processor."""

    tower = "vision"
    pipeline_tag = "zero-shot-image-classification"

    def __init__(self, text: Clip):
        self.text, self.model, self.processor, self.name = text, text.model, text.processor, text.name
        self.stack = LayerStack(self.model, self.tower)

    # --- images

    def prepare(self, samples: Sequence) -> list[Picture]:
        """`samples`: what the method of that name gives, or images."""
        if len(samples) > 0 and isinstance(samples[0], Picture):
            return list(samples)
        return [Picture(samples, row, self.max_length) for row in range(len(samples))]

    @property
    def max_length(self) -> int:
        """Patches, and the class token."""
        return self.stack.tower.embeddings.num_positions

    def batch(self, prepared: Sequence[Picture], rows: Iterable[int], length: int | None = None) -> Batch:
        images = [prepared[row].images[prepared[row].row] for row in rows]
        if any(image is None for image in images):
            raise ValueError(
                f"an image of this batch of {len(images)} cannot be decoded; leave such pairs out of the data"
            )
        pixels = self.text.preprocess(images).to(self.device, self.dtype)
        mask = torch.ones(len(images), self.max_length, dtype=torch.bool, device=self.device)
        return Batch(np.asarray(rows), {"pixel_values": pixels}, mask)

    def readable(self, samples: Iterable, number: int | None, source: str) -> list[Picture]:
        """Each image is decoded for it. Raises ValueError where more than 1 % of them cannot be."""
        found, num_broken = [], 0
        for sample in samples:
            if len(found) == number:
                break
            (picture,) = self.prepare([sample])
            if picture.images[picture.row] is None:
                num_broken += 1
            else:
                found.append(picture)
        if num_broken:
            check_skipped(num_broken, num_broken + len(found), "image", "cannot be decoded", source)
        return found

    # --- readout

    def own_pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(n, width): the hidden state at the class token."""
        return hidden[:, 0]

    def features(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self.stack.tower.post_layernorm(self.own_pool(hidden, batch))

    @property
    def projection(self) -> nn.Linear | None:
        return self.model.visual_projection

    def deployed(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model.get_image_features(**inputs).pooler_output

    # --- model

    def parts(self) -> dict[str, nn.Module]:
        return self.text.target_parts()

    def drop(self, dropped_layers: Iterable[int], name: str = "") -> "Vision":
        model = self.stack.drop(dropped_layers)
        return type(self)(type(self.text)(model, self.processor, name or self.name))

    def save(self, folder: Path) -> None:
        self.text.save(folder)

    # --- pairs

    @property
    def logit_scale(self) -> float:
        return self.text.logit_scale

    @property
    def logit_bias(self) -> float | None:
        return self.text.logit_bias

    def samples(self, pairs: ImageCaptionPairs) -> list[Picture]:
        return [Picture(pairs.images, row, self.max_length) for row in range(len(pairs.images))]

    def embed_pairs(
        self, pairs: ImageCaptionPairs, cache_dir: Path | None = None, progress: bool = False
    ) -> tuple[ImageCaptionPairs, Tensor]:
        """The pairs whose image can be decoded, and the embeddings (n, dim) of their captions, cached in `cache_dir`.

        The others are left out with a warning; more than 1 % of them is a ValueError.
        """
        if pairs.images is None:
            raise ValueError(f"{pairs.source}: the image tower of {self.name} needs images, and only texts were read")
        pairs = pairs.decodable()
        return pairs, cached_embeddings(self.text, pairs.captions, cache_dir)


class SiglipVision(Vision):
    """SigLIP's image tower: no class token and no projection, but a head that attends to all patches."""

    def own_pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(n, width): what the head makes of the patches."""
        return self.stack.tower.head(self.stack.tower.post_layernorm(hidden))

    def features(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self.own_pool(hidden, batch)

    @property
    def projection(self) -> None:
        return None


def load_vision(name: str, device: str = "cpu", weights: bool = True) -> Vision:
    """The image tower of a CLIP, MetaCLIP 2 or SigLIP; names and exceptions as in `load_clip`."""
    if read_config(name).model_type != "siglip":
        return Vision(load_clip(name, device, weights))
    text = load_siglip(name, device, weights)
    if not text.model.config.vision_config.vision_use_head:
        raise ValueError(f"{name}: its image tower has no head (vision_use_head false), so it makes no embedding")
    return SiglipVision(text)
