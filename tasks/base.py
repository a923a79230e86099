"""What is scored: a task needs nothing but embeddings, so it knows no model and no family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor

LOSS_BATCH_SIZE = 250  # pairs in a batch of the task loss; divides the 2,000 pairs of the bundled splits


class Scores(NamedTuple):
    """What embeddings are worth: `values` (n,) float64, one a sample, the smaller the better, whose mean is the
    objective; and figures to report."""

    values: Tensor
    figures: dict[str, float]


class Contrasted(Protocol):
    """What the contrastive loss knows of an encoder: its side of a pair, `text` or `vision`; its two numbers."""

    tower: str
    logit_scale: float
    logit_bias: float | None


class Task(Protocol):
    """A fixed set of samples and what their embeddings should be.

    Attributes:
        objective: its name.
        batch_size: samples in a batch of the loss; `on_rows` should get as many, or there are fewer negatives.
    """

    objective: str
    batch_size: int

    def score(self, embeddings: Tensor) -> Scores:
        """The scores of L2-normalised embeddings (n, d) of all its samples, in their order."""

    def on_rows(self, rows: Sequence[int]) -> Self:
        """The same task on some of its samples."""
