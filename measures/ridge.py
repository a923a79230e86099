"""Ridge least squares from sums in float64: memory does not grow with the samples."""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from measures.table import PULL

RIDGE = PULL.default
SAMPLES_A_FEATURE = 10  # below this a map fits the samples rather than what they are drawn from


class RidgeSums:
    """The sums of a regression of targets on features, weighted or not, with a free constant or without."""

    def __init__(self, has_bias: bool):
        self.has_bias, self.gram, self.cross, self.samples = has_bias, 0.0, 0.0, 0

    def add(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """`features` (n, F); `targets` (n, D), or (J, n, D) for J regressions at once; `weights` (n,)."""
        features = features.double()  # products in float32 are twice as fast, and the maps wrong in the fourth digit
        if self.has_bias:
            features = nn.functional.pad(features, (0, 1), value=1.0)
        self.samples += len(features)
        weighted = features.T if weights is None else (features * weights.double()[:, None]).T
        self.gram = self.gram + weighted @ features
        self.cross = self.cross + weighted @ targets.double()

    def merge(self, other: Self) -> None:
        self.gram, self.cross = _add(self.gram, other.gram), _add(self.cross, other.cross)
        self.samples += other.samples

    def solve(self, ridge: float) -> Tensor:
        """X of the least |features X - targets|^2 + r |X|^2: (F, D) or (F + 1, D) with the constant last, or J of them.

        r is `ridge` times the mean squared norm of a sample: it pulls like `ridge` samples for each feature, and so the
        less the more samples there are. The constant is free. Where the targets are what weights lack, X is what to add
        to these weights, and small where the samples say nothing.
        """
        penalty = self.gram.diagonal().clone()
        size = len(penalty) - self.has_bias
        if not size:
            return torch.zeros_like(self.cross)
        norm = penalty[:size].sum() / self.samples
        penalty[:size] = ridge * norm if norm else 1.0  # features that are all zero change nothing
        penalty[size:] = 0
        columns = self.cross.movedim(-2, 0)  # (F, ..., D): one factorisation for all
        found = torch.linalg.solve(self.gram + penalty.diag(), columns.flatten(1))
        return found.view(columns.shape).movedim(0, -2)


class LaterSums:
    """Ridge least squares from the inputs of one layer's map to what its sum lacks of each of J later states."""

    def __init__(self, has_bias: bool = True):
        self._sums = RidgeSums(has_bias)
        self._lacking = self._squares = self._totals = 0.0

    def add(self, inputs: Tensor, wanted: Tensor, current: Tensor) -> None:
        """`inputs` (n, F); `wanted` (J, n, D), the sum for each later state; `current` (n, D), the sum as it is."""
        wanted = wanted.double()
        lacks = wanted - current
        self._sums.add(inputs, lacks)
        self._lacking = self._lacking + lacks.square().sum((1, 2))
        self._squares = self._squares + wanted.square().sum((1, 2))
        self._totals = self._totals + wanted.sum(1)

    def merge(self, other: Self) -> None:
        self._sums.merge(other._sums)
        self._lacking, self._squares = _add(self._lacking, other._lacking), _add(self._squares, other._squares)
        self._totals = _add(self._totals, other._totals)

    @property
    def num_features(self) -> int:
        return len(self._sums.gram) - self._sums.has_bias

    def solve(self, ridge: float) -> Tensor:
        """(J, F, D), or (J, F + 1, D) with the constant last: the changes of the weights; 0 without features."""
        return self._sums.solve(ridge)

    def explained(self, changes: Tensor) -> np.ndarray:
        """(J,): the share of each later state's variance explained with these changes; below 0: worse than the mean."""
        cross, gram = self._sums.cross, self._sums.gram
        # |lacks - inputs X|^2 = |lacks|^2 - 2 <X, inputs' lacks> + <X, inputs' inputs X>
        left = self._lacking - 2 * (changes * cross).sum((1, 2)) + (changes * (gram @ changes)).sum((1, 2))
        variance = self._squares - self._totals.square().sum(1) / self._sums.samples
        return torch.where(variance > 0, 1 - left / variance, 0).cpu().numpy()


def _add(mine: Tensor | float, theirs: Tensor | float) -> Tensor | float:
    """The sum, where `mine` lies: what comes from another process lies on that one's device. 0.0: nothing yet."""
    return mine + (theirs.to(mine.device) if isinstance(mine, Tensor) and isinstance(theirs, Tensor) else theirs)
