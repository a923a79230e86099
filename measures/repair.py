"""Repair: what a layer explains of a later state once its last linear map is refitted for the layers between."""

import warnings
from collections.abc import Sequence
from math import isqrt
from typing import Self

import numpy as np
import torch
from torch import Tensor

from measures.base import symmetric_matrix
from measures.checks import check_mergeable, check_samples, without_gradients
from measures.ridge import RIDGE, SAMPLES_A_FEATURE, LaterSums


class Repair:
    """Share of the variance of h_j that layer i explains after its repair, in [0, 1]: 1 - |what is left|^2 / |h_j -
    mean|^2.

    Layer i ends in h_i = x + g W + c (`models/repair.py`); W and c are refitted by ridge least squares towards h_j, and
    x stays. So unlike SVCCA it says what a map can do that is no new module. 0 where the layer explains less than the
    mean alone.

    An update holds for each layer i = 0 .. L-1 (0: the embeddings) the tensors g (n, F), x + g W + c (n, D), and what
    that sum should be for each of the states h_(i+1) .. h_L (n, D); with a norm after the sum, it should be what comes
    before the norm. A g of no features says that the layer has no such map, so that it explains what it does as it is.

    Args:
        ridge: how hard W is pulled towards what it is, in samples for each feature of g.
    """

    per_draw = False
    min_samples = 2

    def __init__(self, ridge: float = RIDGE) -> None:
        self.options: dict = {"ridge": ridge}
        self.samples = 0
        self._sums: list[LaterSums] = []  # of each layer but the last

    @without_gradients
    def update(self, tensors: Sequence[Tensor]) -> None:
        """Add samples. Nothing of a layer but its sums is kept: (F + 1) (F + 1 + (L - i) D) numbers."""
        # layer i has 2 + L - i tensors, all of them L (L + 5) / 2: solved for L
        num_layers = (isqrt(25 + 8 * len(tensors)) - 5) // 2
        if num_layers < 1 or num_layers * (num_layers + 5) != 2 * len(tensors):
            raise ValueError(f"expected L (L + 5) / 2 tensors for some number of layers L; found {len(tensors)}")
        if self._sums and num_layers != len(self._sums):
            raise ValueError(
                f"expected the tensors of {len(self._sums)} layers, as in the first update; found {num_layers}"
            )
        if not all(bool(tensor.sum().isfinite()) for tensor in tensors):
            raise ValueError("the states have NaN or infinite values; look at the model's output for these samples")
        self._sums = self._sums or [LaterSums() for _ in range(num_layers)]
        rest = list(tensors)
        for layer, sums in enumerate(self._sums):
            inputs, current, *wanted = rest[: 2 + num_layers - layer]
            del rest[: 2 + num_layers - layer]
            sums.add(inputs, torch.stack(wanted), current)
        self.samples += len(tensors[0])

    def merge(self, other: Self) -> None:
        """Add the samples of another instance."""
        check_mergeable(self, other)
        if other.samples:
            self._sums = self._sums or [LaterSums() for _ in other._sums]
            for mine, theirs in zip(self._sums, other._sums, strict=True):
                mine.merge(theirs)
        self.samples += other.samples

    def matrix(self) -> np.ndarray:
        """The (L+1, L+1) matrix. ValueError below 2 samples."""
        check_samples(self.samples)
        needed = SAMPLES_A_FEATURE * max(sums.num_features for sums in self._sums)
        if self.samples < needed:
            warnings.warn(
                f"{self.samples} samples are too few: the maps fit them rather than the language, and explain too much; "
                f"use at least {needed}",
                stacklevel=2,
            )
        matrix = np.eye(len(self._sums) + 1)
        for layer, sums in enumerate(self._sums):
            matrix[layer, layer + 1 :] = sums.explained(sums.solve(self.options["ridge"]))
        return symmetric_matrix(matrix)

    def diagnostics(self) -> dict:
        """`samples`."""
        return {"samples": self.samples}
