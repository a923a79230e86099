"""Distance correlation: Szekely et al. 2007; unbiased form Szekely and Rizzo 2014; on layers Zhen et al. 2022."""

import warnings
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from measures import checks
from measures.base import symmetric_matrix
from measures.distances import pairwise_distances

SMALLEST = 1e-150  # norms below it, whose squares leave float64's range, count as zero
VALUES_AT_ONCE = 2**19  # small draws wait to be taken together, large ones are taken in parts: 4 MiB of float64


class DC:
    """Squared distance correlation of every two layers, averaged over draws: each `update` is one draw of n samples.

    Rows are L2-normalised (a zero row stays zero), A_i is the double-centred matrix of Euclidean distances between
    the n rows of layer i, and the entry is <A_i, A_j> / sqrt(<A_i, A_i> <A_j, A_j>), the *squared* distance
    correlation. "biased" is the V-statistic, in [0, 1]; "unbiased" U-centres (n >= 4), in [-1, 1] and around 0 for
    independent layers. Widths may differ between layers.

    Warning:
        The biased form is near 1 for independent wide layers in small draws: 0.999 at 4 samples of width 512, 0.985 at
        32. Compare it with `Shuffled`, or use "unbiased".

    Args:
        estimator: "biased" or "unbiased".
    """

    per_draw = True

    def __init__(self, *, estimator: str = "biased") -> None:
        checks.check_option("estimator", estimator, ["biased", "unbiased"])
        self.options = {"estimator": estimator}
        self.min_samples = 4 if estimator == "unbiased" else 3  # of two samples it is 1, whatever they are
        self.samples = 0
        self.draws = 0
        self._widths: list[int] | None = None
        self._total: Tensor | None = None  # sum over draws of the (L+1, L+1) correlations
        self._constant_draws: Tensor | None = None  # (L+1), draws in which a layer was constant
        # (draws, L+1, n, d) float64, of which the first `_waiting` are not yet in the sums
        self._block: Tensor | None = None
        self._waiting = 0

    @checks.without_gradients
    def update(self, hidden_states: Sequence[Tensor]) -> None:
        """Add one draw: one (n, d_i) tensor for each layer, n >= 3 (unbiased: 4). ValueError for unfit input."""
        states = checks.check_hidden_states(hidden_states, self._widths, min_rows=self.min_samples)
        draw = _stack(states)
        # one look at all layers; which of them it is, is asked only where one is wrong
        if not draw.abs().amax().item() < checks.LARGEST:  # NaN compares false
            checks.check_values(states)
        if self.draws == 0:
            self._start([state.shape[1] for state in states], draw.device)
        if self._block is None or self._block.shape[1:] != draw.shape:
            self._flush()
            self._block = self._empty_block(*draw.shape)
        self._block[self._waiting].copy_(draw)
        self._waiting += 1
        self.samples += draw.shape[1]
        self.draws += 1
        if self._waiting == len(self._block):
            self._flush()

    def _start(self, widths: list[int], device: torch.device) -> None:
        self._widths = widths
        self._total = torch.zeros(len(widths), len(widths), dtype=torch.float64, device=device)
        self._constant_draws = torch.zeros(len(widths), dtype=torch.int64, device=device)

    def _empty_block(self, layers: int, rows: int, width: int) -> Tensor:
        draws = max(1, VALUES_AT_ONCE // (layers * rows * max(rows, width)))
        return torch.empty(draws, layers, rows, width, dtype=torch.float64, device=self._total.device)

    @checks.without_gradients
    def _flush(self) -> None:
        """Bring the draws that wait into the sums."""
        if self._waiting:
            correlations, constant = self._correlations(self._block[: self._waiting])
            self._total += correlations.sum(0)
            self._constant_draws += constant.sum(0)
            self._waiting = 0

    def _correlations(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """The correlations (draws, L+1, L+1), and which layers are constant (draws, L+1). Overwrites `draws`."""
        # 1) distances between the unit rows of each layer, 2) centred; layers of a draw as the rows of one matrix
        rows, width = draws.shape[2:]
        groups = draws.flatten(0, 1).split(max(1, VALUES_AT_ONCE // (rows * width)))
        distances = torch.cat([pairwise_distances(self._unit_rows(group)) for group in groups])  # (draws (L+1), n, n)
        centred = self._centre(distances).view(*draws.shape[:2], rows * rows)
        products = centred @ centred.mT  # 3) (draws, L+1, L+1): <A_i, A_j>
        if self.options["estimator"] == "unbiased":
            products /= rows * (rows - 3)
        squares = products.diagonal(dim1=1, dim2=2)
        # 4) divided by the norms; rows are units, so centred distances below rounding mean a layer without any
        constant = squares <= (8 * rows * torch.finfo(torch.float64).eps) ** 2
        inverses = squares.masked_fill(constant, torch.inf).rsqrt_()
        return products * inverses.unsqueeze(1) * inverses.unsqueeze(2), constant

    def _unit_rows(self, rows: Tensor) -> Tensor:
        """The L2-normalised rows of (b, n, d) less their mean, which distances ignore; overwrites `rows`."""
        inverses = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min_(SMALLEST).reciprocal_()
        means = inverses.mT @ rows / rows.shape[1]
        return torch.addcmul(-means, rows, inverses, out=rows)

    def _centre(self, distances: Tensor) -> Tensor:
        """Double-centred (biased) or U-centred (unbiased) matrices: (b, n, n)."""
        if self.options["estimator"] == "biased":
            # A - row means - column means + mean, in one pass: half of the mean is taken off each of the two
            means = distances.mean(-1)
            half = means - means.mean(-1, keepdim=True) / 2
            return distances - (half.unsqueeze(-1) + half.unsqueeze(-2))
        rows = distances.shape[-1]
        means = distances.sum(-1) / (rows - 2)  # Szekely and Rizzo's divisors: n - 2, and (n - 1)(n - 2) for the whole
        half = means - means.sum(-1, keepdim=True) / (2 * (rows - 1))
        centred = distances - (half.unsqueeze(-1) + half.unsqueeze(-2))
        centred.diagonal(dim1=-2, dim2=-1).zero_()
        return centred

    def merge(self, other: Self) -> None:
        """Add the draws of another instance with the same options."""
        checks.check_mergeable(self, other)
        if other.draws == 0:
            return
        if self.draws == 0:
            self._start(list(other._widths), other._total.device)
        checks.check_same_layers(self._widths, other._widths)
        self._flush()
        other._flush()
        self._total += other._total.to(self._total.device)
        self._constant_draws += other._constant_draws.to(self._total.device)
        self.samples += other.samples
        self.draws += other.draws

    def matrix(self) -> np.ndarray:
        """The (L+1, L+1) mean over draws. A layer that is constant in a draw counts as 0 there, with a warning."""
        checks.check_samples(self.samples, self.min_samples)
        self._flush()
        counts = self._constant_draws.tolist()
        some = {layer: count for layer, count in enumerate(counts) if 0 < count < self.draws}
        if some:
            warnings.warn(
                f"constant in some of the {self.draws} draws (layer: draws) {some}; they count as 0 there: "
                f"use larger draws",
                stacklevel=2,
            )
        lowest = -1.0 if self.options["estimator"] == "unbiased" else 0.0
        mean = (self._total / self.draws).cpu()
        return symmetric_matrix(mean, self._constant_layers(), lowest=lowest)

    def _constant_layers(self) -> list[int]:
        self._flush()
        counts = [] if self._constant_draws is None else self._constant_draws.tolist()
        return [layer for layer, count in enumerate(counts) if count == self.draws]

    def diagnostics(self) -> dict:
        """`samples`, `draws` and `constant_layers` (those constant in every draw)."""
        return {"samples": self.samples, "draws": self.draws, "constant_layers": self._constant_layers()}

    def __getstate__(self) -> dict:
        self._flush()
        return {**self.__dict__, "_block": None}


def _stack(states: list[Tensor]) -> Tensor:
    """One (layers, n, d) tensor; narrower layers are filled with zeros, which change no distance."""
    widths = [state.shape[1] for state in states]
    states = [state.to(states[0].device) for state in states]
    if len(set(widths)) > 1:
        pad = torch.nn.functional.pad
        states = [pad(state, (0, max(widths) - width)) for state, width in zip(states, widths, strict=True)]
    return torch.stack(states)
