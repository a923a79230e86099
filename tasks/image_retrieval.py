"""`retrieval_task`, the factory for either tower; and retrieval for an image tower: the pairs from the other side."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tasks.base import Contrasted, Scores
from tasks.retrieval import Retrieval


class ImageRetrieval(Retrieval):
    """The same pairs where the images are what is scored, and the texts stay as they are: a sample is an image.

    Its value is the mean over its texts, each image counting the same. Every image has a text. The targets, which
    `Retrieval` calls images, are the texts (n, d).
    """

    def sides(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        return self.images.to(embeddings), embeddings

    def score(self, embeddings: Tensor) -> Scores:
        values, figures = self.score_pairs(*self.sides(embeddings))
        sums = torch.zeros(len(embeddings), dtype=values.dtype, device=values.device)
        sums.index_add_(0, self.image_index, values)
        return Scores(sums / self.image_index.bincount(minlength=len(embeddings)), figures)

    def on_rows(self, rows: Sequence[int]) -> Self:
        rows = torch.as_tensor(rows, device=self.image_index.device)
        number = torch.full((int(self.image_index.max()) + 1,), -1, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        index = number[self.image_index]  # of each text: the new number of its image, -1 where that is left out
        return self.change(images=self.images[index >= 0], image_index=index[index >= 0])


def retrieval_task(
    encoder: Contrasted,
    targets: Tensor,
    image_index: np.ndarray,
    *,
    logit_scale: float | None = None,
    **options: object,
) -> Retrieval:
    """Retrieval of an encoder's samples and the targets (m, d) that its `embed_pairs` gives.

    `logit_scale`: by default the encoder's.
    """
    kind = ImageRetrieval if encoder.tower == "vision" else Retrieval
    scale = encoder.logit_scale if logit_scale is None else logit_scale
    return kind(targets, image_index, scale, encoder.logit_bias, **options)
