"""Sums over samples of a number that two layers' vectors for the same sample give."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from measures.checks import check_hidden_states, check_same_layers, check_values, without_gradients

VALUES_AT_ONCE = 2**22


class PairSums:
    """The sum over samples of f(h_i, h_j) for every two layers, in float64.

    Args:
        summed: maps the vectors of n samples, (n, L+1, d) float64, to the sum over them of f: (L+1, L+1). A function
            of a module, so that instances can be pickled.
    """

    def __init__(self, summed: Callable[[Tensor], Tensor]) -> None:
        self._summed = summed
        self.samples = 0
        self.widths: list[int] | None = None
        self._total: Tensor | None = None
        self._first: Tensor | None = None  # (L+1, d), the first sample
        self._varies: Tensor | None = None  # (L+1), whether another sample differs from it

    @without_gradients
    def update(self, hidden_states: Sequence[Tensor]) -> None:
        """Add the rows of one (n, d) tensor for each layer."""
        states = check_hidden_states(hidden_states, self.widths, same_width=True)
        check_values(states)
        device, rows = states[0].device, max(1, VALUES_AT_ONCE // (len(states) * states[0].shape[1]))
        if self.widths is None:
            first = torch.stack([state[0].to(device) for state in states]).double()
            self._start([state.shape[1] for state in states], first)
        for start in range(0, states[0].shape[0], rows):
            chunk = torch.stack([state[start : start + rows].to(device) for state in states], 1)
            chunk = chunk.to(self._total.device, torch.float64)  # (n, L+1, d)
            self._varies |= (chunk != self._first).any(2).any(0)
            self._total += self._summed(chunk)
        self.samples += states[0].shape[0]

    def _start(self, widths: list[int], first: Tensor) -> None:
        self.widths, self._first = widths, first
        self._total = torch.zeros(len(widths), len(widths), dtype=torch.float64, device=first.device)
        self._varies = torch.zeros(len(widths), dtype=torch.bool, device=first.device)

    def mean(self) -> Tensor:
        """The mean over samples of f: (L+1, L+1)."""
        return (self._total / self.samples).cpu()

    def constant_layers(self) -> list[int]:
        """The layers that have the same vector for all samples."""
        return torch.nonzero(~self._varies).flatten().tolist()

    def merge(self, other: Self) -> None:
        """Add the samples of `other`."""
        if other.samples == 0:
            return
        if self.widths is None:
            self._start(list(other.widths), other._first.clone())
        check_same_layers(self.widths, other.widths)
        device = self._total.device
        self._total += other._total.to(device)
        self._varies |= other._varies.to(device) | (other._first.to(device) != self._first).any(1)
        self.samples += other.samples


def unit_vectors(vectors: Tensor) -> Tensor:
    """The vectors divided by their norms; a zero vector stays zero."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norms > 0, norms, 1)
