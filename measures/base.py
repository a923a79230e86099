"""What the measures that add up sums over samples have in common."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from measures.checks import check_mergeable


class SummedMeasure:
    """A measure of sums over samples, which come in updates of any size: the result does not depend on the division.

    Args:
        sums: what adds up, with `update`, `merge`, `samples` and `constant_layers` (`Moments`, `PairSums`).
        options: the options as given, to tell whether two instances may be merged.
    """

    per_draw = False

    def __init__(self, sums: object, **options: object) -> None:
        self._sums, self.options = sums, options

    @property
    def samples(self) -> int:
        """The number of rows seen."""
        return self._sums.samples

    def update(self, hidden_states: Sequence[Tensor]) -> None:
        """Add samples: one (n, d_i) tensor for each layer. ValueError for input that cannot be measured."""
        self._sums.update(hidden_states)

    def merge(self, other: SummedMeasure) -> None:
        """Add the samples of another instance with the same options. ValueError when it is not one."""
        check_mergeable(self, other)
        self._sums.merge(other._sums)

    def diagnostics(self) -> dict:
        """`samples`, and `constant_layers`: those whose samples are all the same."""
        return {"samples": self.samples, "constant_layers": self._sums.constant_layers() if self.samples else []}


def symmetric_matrix(values: Tensor | np.ndarray, undefined: Sequence[int] = (), *, lowest: float = 0.0) -> np.ndarray:
    """The float64 matrix of the values above the diagonal: mirrored, ones on the diagonal, in [lowest, 1].

    Rows and columns in `undefined` (layers that do not vary) are 0 off the diagonal, with a warning that names them.
    """
    upper = np.triu(np.asarray(values, dtype=np.float64), 1)
    matrix = np.clip(upper + upper.T, lowest, 1.0)
    if len(undefined):
        warnings.warn(
            f"constant layers {list(undefined)} (0 is the embeddings): no variance to compare, their entries are 0",
            stacklevel=3,
        )
        matrix[undefined, :] = 0.0
        matrix[:, undefined] = 0.0
    np.fill_diagonal(matrix, 1.0)
    return matrix
