"""Embeddings that are computed once and kept on disk: of images, the side of the pairs that stays, and of texts."""

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.files import cached_array
from data import ImageCaptionPairs
from models.encoders import Encoder, check_embeddings, state_hash

CACHED_IMAGES = 2048  # in a file: two minutes of a ViT-B/32 on two cores

logger = logging.getLogger("comflp")


def cached_embeddings(
    encoder: Encoder, samples: Sequence, cache_dir: Path | None, content: Callable[[], str] | None = None
) -> Tensor:
    """Embeddings (n, dim) of samples; equal ones are computed once.

    Cached in `cache_dir` under a hash of the samples' content (by default their tokens), the weights and the settings.
    """

    def embed() -> np.ndarray:
        # in the order of first appearance, numbered
        distinct = {sample: row for row, sample in enumerate(dict.fromkeys(samples))}
        return encoder.embeddings(list(distinct)).cpu().numpy()[[distinct[sample] for sample in samples]]

    key = ""
    if cache_dir is not None:
        what = content() if content else json.dumps(encoder.prepare(samples))
        key = "\0".join([what, *map(state_hash, encoder.parts().values()), encoder.settings()])
    return torch.from_numpy(cached_array(cache_dir, f"{encoder.tower}_embeddings", key, embed)).to(encoder.device)


class ImageTargets:
    """What the encoder of a text tower has beside it where images are the targets, as in CLIP and SigLIP."""

    def preprocess(self, images: Sequence) -> Tensor:
        """`pixel_values` (n, 3, H, W) of PIL images, by the model's own processor, on the CPU."""
        return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """L2-normalised image embeddings (n, d)."""
        return nn.functional.normalize(self.model.get_image_features(pixel_values=pixel_values).pooler_output, dim=-1)

    @torch.no_grad()
    def image_embeddings(
        self, images: Sequence, cache_dir: Path | None = None, batch_size: int = 128, progress: bool = False
    ) -> Tensor:
        """L2-normalised embeddings (m, d) of a sequence of images; NaN rows where an image cannot be decoded.

        Kept in `cache_dir` in parts of `CACHED_IMAGES` as they are made, each under a name made from its images'
        content, the image encoder's weights and the processor's settings: a run that is killed loses one part, and the
        first images of a data set are not embedded again for all of it. `images`: as `data.images.ImageFiles`,
        with `select` and `content_hash`.
        """
        if cache_dir is None:
            embeddings = self._embed_decoded(images, batch_size, progress)
            return torch.from_numpy(embeddings).to(self.device)
        encoder, parts = self._image_encoder_key(), []
        for start in range(0, max(len(images), 1), CACHED_IMAGES):  # no image at all is one empty part
            part = images.select(np.arange(start, min(start + CACHED_IMAGES, len(images))))
            embed = partial(self._embed_decoded, part, batch_size, progress)
            parts.append(cached_array(cache_dir, "image_embeddings", f"{part.content_hash()}\0{encoder}", embed))
            if len(images) > CACHED_IMAGES:
                logger.info("image embeddings: %d of %d", start + len(part), len(images))
        return torch.from_numpy(np.concatenate(parts)).to(self.device)

    def _embed_decoded(self, images: Sequence, batch_size: int, progress: bool) -> np.ndarray:
        embeddings = torch.full((len(images), self.dim), torch.nan, device=self.device)
        starts = range(0, len(images), batch_size)
        for start in tqdm(starts, desc="image embeddings", disable=not progress, leave=False):
            decoded = [(i, images[i]) for i in range(start, min(start + batch_size, len(images)))]
            rows = [i for i, image in decoded if image is not None]
            if rows:
                pixels = self.preprocess([image for _, image in decoded if image is not None])
                embeddings[rows] = self.embed_images(pixels.to(self.device)).float()
                check_embeddings(embeddings[rows], self.name)
        return embeddings.cpu().numpy()

    def embed_pairs(
        self, pairs: ImageCaptionPairs, cache_dir: Path | None = None, progress: bool = False
    ) -> tuple[ImageCaptionPairs, Tensor]:
        """The pairs whose image can be decoded, and the embeddings (m, d) of their images, cached as above.

        The others are left out with a warning; more than 1 % of them is a ValueError.
        """
        if pairs.images is None:
            raise ValueError(
                f"{pairs.source}: {self.name} finds images, and only texts were read; leave out --target_column, which "
                "is for sentence encoders"
            )
        embeddings = self.image_embeddings(pairs.images, cache_dir, progress=progress)
        broken = torch.isnan(embeddings).any(1)
        return pairs.without_images(broken.cpu().numpy()), embeddings[~broken]

    def _image_encoder_key(self) -> str:
        parts = (
            *map(state_hash, self.target_parts().values()),
            json.dumps(self.processor.image_processor.to_dict(), sort_keys=True, default=str),
        )
        return "\0".join(parts)
