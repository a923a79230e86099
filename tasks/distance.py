"""Distance to the full model: a pruned encoder should give what the full one gives. Needs no pair and no label."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.base import LOSS_BATCH_SIZE, Scores, Task


class Distance(Task):
    """Mean of 1 - cosine between an encoder's embeddings and those of the full model.

    Args:
        full: (n, d), L2-normalised, by the full model.
        batch_size: as in `Task`; the samples are scored one by one.
    """

    objective = "embedding"

    def __init__(self, full: Tensor, batch_size: int = LOSS_BATCH_SIZE):
        self.full, self.batch_size = full, batch_size

    def score(self, embeddings: Tensor) -> Scores:
        # of vectors of length one half the squared distance, which rounding does not make negative
        return Scores((embeddings - self.full).double().square().sum(-1) / 2, {})

    def on_rows(self, rows: Sequence[int]) -> "Distance":
        return Distance(self.full[torch.as_tensor(rows)], self.batch_size)
