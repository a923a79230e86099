"""SVCCA: Raghu et al. 2017, "SVCCA: Singular Vector Canonical Correlation Analysis", section 2 (arXiv 1706.05806)."""

import warnings
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from measures.base import SummedMeasure, symmetric_matrix
from measures.checks import check_option, check_samples, check_threshold, without_gradients
from measures.moments import Moments
from measures.nuclear import nuclear_norms

SMALLEST_WIDTH = 32  # the rounding of a narrower layer's Gram matrix is that of its sums, not of its width


def kept_directions(products: Tensor, thre: float, thre_on: str) -> list[tuple[Tensor, Tensor]]:
    """For each X'X (b, d, d) the singular values (k,) and right singular vectors (d, k) of X that the threshold keeps.

    Directions with s^2 below max(s^2) d eps are rounding and never count. Of the others, k >= 1 is the smallest number
    for which cumsum(s) / sum(s) exceeds `thre` (with `thre_on="variance"`: of s^2); a `thre` of 1 keeps them all.
    """
    squares, vectors = torch.linalg.eigh(products)
    squares, vectors = squares.flip(1), vectors.flip(2)  # eigh gives the smallest first
    dims = (_num_kept(values, thre, thre_on) for values in squares.cpu())
    return [(values[:k].sqrt(), v[:, :k]) for values, v, k in zip(squares, vectors, dims, strict=True)]


def _num_kept(squares: Tensor, thre: float, thre_on: str) -> int:
    floor = squares[0] * max(len(squares), SMALLEST_WIDTH) * torch.finfo(torch.float64).eps
    squares = squares[: int((squares > floor).sum())]
    if thre == 1:
        return len(squares)
    # as the original: what adds up to `thre` exactly is not enough, so one more direction is kept
    shares = (squares.sqrt() if thre_on == "singular" else squares).cumsum(0)
    return min(len(squares), int((shares <= thre * shares[-1:]).sum()) + 1)


class SVCCA(SummedMeasure):
    """Mean canonical correlation of the leading singular directions of every two layers.

    For centred samples X_i = U_i S_i V_i' (rows are samples), the entry is the mean of the min(k_i, k_j) singular
    values of U_i[:, :k_i]' U_j[:, :k_j], with k_i as in `kept_directions`. It lies in [0, 1], and is 1 when the span of
    one layer's directions holds the other's.

    Computed from sums of products: U_i = X_i V_i / S_i, where V_i and S_i are those of X_i'X_i. The Gram matrix squares
    the condition number, so a direction counts only when s > max(s) sqrt(d eps), 3e-7 of the largest at width 512.

    Warning:
        Independent layers do not give 0 but about sqrt(k / n) for n samples and k directions. See `Shuffled`.

    Args:
        thre: share of the singular values to keep, in (0, 1].
        thre_on: "singular" (values, the original's rule) or "variance" (their squares).
    """

    def __init__(self, *, thre: float = 0.99, thre_on: str = "singular") -> None:
        check_threshold(thre)
        check_option("thre_on", thre_on, ["singular", "variance"])
        super().__init__(Moments(), thre=thre, thre_on=thre_on)
        self._dims: tuple[int, list[int]] = (0, [])  # at how many samples, the effective dimensions

    @without_gradients
    def matrix(self) -> np.ndarray:
        """The (L+1, L+1) matrix. ValueError below 2 samples; a warning where there are too few for the threshold."""
        directions = self._directions()
        dims = self._dims[1]
        inverses = [vectors / values for values, vectors in directions]  # U_i = X_i inverses[i]
        entries = np.zeros((len(dims), len(dims)))
        for firsts, seconds, products in self._sums.cross(inverses):
            entries[firsts, seconds] = self._entries(products, firsts, seconds, directions).cpu()
        self._warn_too_few(dims)
        return symmetric_matrix(entries, _without_directions(dims))

    def _entries(
        self, products: Tensor, firsts: Tensor, seconds: Tensor, directions: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """The entries (b,) of pairs of layers from their U_i'U_j (b, K, K'), filled up with zeros, and all layers'
        directions.
        """
        dims = torch.tensor(self._dims[1])
        smaller = torch.minimum(dims[firsts], dims[seconds]).clamp_min(1)
        return nuclear_norms(products).cpu() / smaller

    def diagnostics(self) -> dict:
        """`samples`, `effective_dims` (the k_i; 0 for a constant layer) and `constant_layers`."""
        if self.samples > 1 and self._dims[0] != self.samples:
            self._directions()
        dims = list(self._dims[1])
        return {"samples": self.samples, "effective_dims": dims, "constant_layers": _without_directions(dims)}

    def _directions(self) -> list[tuple[Tensor, Tensor]]:
        check_samples(self.samples)
        constant = self._sums.constant_layers()
        directions = []
        for layers in self._sums.groups():
            products = torch.stack([self._sums.own(layer) for layer in layers])
            products[[layer in constant for layer in layers]] = 0  # rounding of the mean is no direction
            directions += kept_directions(products, self.options["thre"], self.options["thre_on"])
        self._dims = (self.samples, [len(values) for values, _ in directions])
        return directions

    def _warn_too_few(self, dims: list[int]) -> None:
        kept = max(first + second for first, second in combinations(dims, 2))
        if self.samples - 1 < kept:  # n centred samples have n - 1 dimensions
            warnings.warn(
                f"{self.samples} samples are too few: two layers together keep {kept} directions, and from no more "
                f"samples than that they correlate whatever they hold; use at least {kept + 1} samples or a lower thre",
                stacklevel=3,
            )


def _without_directions(dims: list[int]) -> list[int]:
    return [layer for layer, kept in enumerate(dims) if kept == 0]
