"""What the measures have in common that compare two layers' vectors for the same sample."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from measures import checks
from measures.base import symmetric_matrix

VALUES_AT_ONCE = 2**22  # of the float64 copy of some samples: 32 MiB


class PairMeasure:
    """Mean over samples of some f(h_i, h_j) for every two layers, in float64. Layers of the same width only.

    A measure says `sum_over_samples`, and `lowest`, the least value that f can have.
    """

    per_draw = False
    min_samples = 2
    lowest = 0.0

    def __init__(self) -> None:
        self.options: dict = {}
        self.samples = 0
        self._widths: list[int] | None = None
        self._total: Tensor | None = None  # (L+1, L+1), the sum of f
        self._first: Tensor | None = None  # (L+1, d), the first sample
        self._varies: Tensor | None = None  # (L+1), whether another sample differs from it

    def sum_over_samples(self, vectors: Tensor) -> Tensor:
        """The sum over samples of f: (n, L+1, d) float64 -> (L+1, L+1)."""
        raise NotImplementedError

    @checks.without_gradients
    def update(self, hidden_states: Sequence[Tensor]) -> None:
        """Add samples: one (n, d) tensor for each layer. ValueError for input that cannot be measured."""
        states = checks.check_hidden_states(hidden_states, self._widths, same_width=True)
        checks.check_values(states)
        device, rows = states[0].device, max(1, VALUES_AT_ONCE // (len(states) * states[0].shape[1]))
        if self._widths is None:
            first = torch.stack([state[0].to(device) for state in states]).double()
            self._start([state.shape[1] for state in states], first)
        for start in range(0, states[0].shape[0], rows):
            chunk = torch.stack([state[start : start + rows].to(device) for state in states], 1)
            chunk = chunk.to(self._total.device, torch.float64)  # (n, L+1, d)
            self._varies |= (chunk != self._first).any(2).any(0)
            self._total += self.sum_over_samples(chunk)
        self.samples += states[0].shape[0]

    def _start(self, widths: list[int], first: Tensor) -> None:
        self._widths, self._first = widths, first
        self._total = torch.zeros(len(widths), len(widths), dtype=torch.float64, device=first.device)
        self._varies = torch.zeros(len(widths), dtype=torch.bool, device=first.device)

    def merge(self, other: Self) -> None:
        """Add the samples of another instance. ValueError when it is not one."""
        checks.check_mergeable(self, other)
        if other.samples == 0:
            return
        if self._widths is None:
            self._start(list(other._widths), other._first.clone())
        checks.check_same_layers(self._widths, other._widths)
        device = self._total.device
        self._total += other._total.to(device)
        self._varies |= other._varies.to(device) | (other._first.to(device) != self._first).any(1)
        self.samples += other.samples

    def matrix(self) -> np.ndarray:
        """The (L+1, L+1) matrix. ValueError below 2 samples."""
        checks.check_samples(self.samples)
        return symmetric_matrix((self._total / self.samples).cpu(), self._constant_layers(), lowest=self.lowest)

    def diagnostics(self) -> dict:
        """`samples`, and `constant_layers`: those whose samples are all the same."""
        return {"samples": self.samples, "constant_layers": self._constant_layers() if self.samples else []}

    def _constant_layers(self) -> list[int]:
        return torch.nonzero(~self._varies).flatten().tolist()


def unit_vectors(vectors: Tensor) -> Tensor:
    """The vectors divided by their norms; a zero vector stays zero."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norms > 0, norms, 1)
