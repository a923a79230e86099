"""What a measure is, and what the measures of products over samples have in common."""

import warnings
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
from torch import Tensor

from measures.checks import check_mergeable
from measures.moments import Moments


class Measure(Protocol):
    """Similarity of every two layers, from what a network gives for some samples, update by update.

    Instances can be pickled. All raise ValueError, which says what was expected, for input that cannot be measured.

    Attributes:
        per_draw: True: each update is a draw, and the matrix is the mean over draws. False: all updates make up one
            sample, however it is divided.
        options: the keywords it was made with, its defaults filled in.
        min_samples: the fewest samples (`per_draw`: in an update) that give a matrix.
        samples: the number of rows seen.
    """

    per_draw: bool
    options: dict
    min_samples: int

    @property
    def samples(self) -> int: ...

    def update(self, hidden_states: Sequence[Tensor]) -> None:
        """Add samples: one (n, d_i) tensor for each of h_0 .. h_L, samples as rows; neither changed nor kept."""

    def matrix(self) -> np.ndarray:
        """The (L+1, L+1) float64 matrix so far: symmetric, ones on the diagonal, larger is more similar."""

    def merge(self, other: Self) -> None:
        """Add what another instance with the same options has seen, as in another process."""

    def diagnostics(self) -> dict:
        """What belongs into a record, ready for JSON: `samples`, `constant_layers` and the like."""


class SummedMeasure:
    """A measure of `Moments`. Samples come in updates of any size: the result does not depend on the division."""

    per_draw = False
    min_samples = 2

    def __init__(self, sums: Moments, **options: object) -> None:
        self._sums, self.options = sums, options

    @property
    def samples(self) -> int:
        """The number of rows seen."""
        return self._sums.samples

    def update(self, hidden_states: Sequence[Tensor]) -> None:
        """Add samples: one (n, d_i) tensor for each layer. ValueError for input that cannot be measured."""
        self._sums.update(hidden_states)

    def merge(self, other: Self) -> None:
        """Add the samples of another instance with the same options. ValueError when it is not one."""
        check_mergeable(self, other)
        self._sums.merge(other._sums)

    def diagnostics(self) -> dict:
        """`samples`, and `constant_layers`: those whose samples are all the same."""
        return {"samples": self.samples, "constant_layers": self._sums.constant_layers() if self.samples else []}


def symmetric_matrix(values: Tensor | np.ndarray, undefined: Sequence[int] = (), *, lowest: float = 0.0) -> np.ndarray:
    """The float64 matrix of the values above the diagonal: mirrored, ones on the diagonal, in [lowest, 1].

    Rows and columns in `undefined` (layers that do not vary) are 0 off the diagonal, with a warning that names them.
    Raises ValueError where no layer varies.
    """
    if len(undefined) == len(values):
        raise ValueError(
            "every layer is constant: all samples are the same, or the model makes no difference between them; "
            "pass other captions, or look at the model"
        )
    # one triangle alone, so that the two can never differ in the last digit
    upper = np.triu(np.asarray(values, dtype=np.float64), 1)
    matrix = np.clip(upper + upper.T, lowest, 1.0)
    if len(undefined):
        warnings.warn(
            f"constant layers {list(undefined)} (0 is the embeddings): no variance to compare, their entries are 0",
            stacklevel=3,
        )
        matrix[undefined, :] = 0.0  # not NaN: a search has to be able to go on with it
        matrix[:, undefined] = 0.0
    np.fill_diagonal(matrix, 1.0)
    return matrix
