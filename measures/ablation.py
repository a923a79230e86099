"""Ablation: how much of the embedding stays when a segment of layers is left out."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb, isqrt
from typing import Self

import numpy as np
import torch
from torch import Tensor

from measures.base import symmetric_matrix
from measures.checks import check_hidden_states, check_mergeable, check_samples, without_gradients
from measures.pair_measure import unit_vectors


def skipped_segments(num_layers: int) -> Iterator[tuple[int, int]]:
    """(i, j) for every segment of layers i+1 .. j that can be left out, in the order of `Ablation.update`."""
    return combinations(range(num_layers + 1), 2)


class Ablation:
    """Mean over samples of the cosine between the embedding and the one without the layers i+1 .. j, in [-1, 1].

    The other measures compare hidden states; this one also knows what the rest of the network makes of the difference.
    Small changes of an embedding add up over segments, so it goes with the coarse score `sum`.

    An update holds embeddings, not hidden states: those of the whole network, then those without each of the
    `skipped_segments`; one (n, d) tensor each.
    """

    per_draw = False
    min_samples = 2

    def __init__(self) -> None:
        self.options: dict = {}
        self.samples = 0
        self._total: Tensor | None = None  # (segments,), sums of cosines over samples

    @without_gradients
    def update(self, embeddings: Sequence[Tensor]) -> None:
        """Add samples: the embeddings of the whole network and without each segment, (n, d) each."""
        states = check_hidden_states(embeddings, same_width=True)
        self._check_number(len(states))
        unit = unit_vectors(torch.stack(states, 1).double())  # (n, 1 + segments, d)
        total = (unit[:, 1:] @ unit[:, 0, :, None]).sum((0, 2))
        if not total.isfinite().all():
            raise ValueError("the embeddings have NaN or infinite values; look at the model's output for these samples")
        self._add(total, len(unit))

    def _check_number(self, found: int) -> None:
        if self._total is not None and found != 1 + len(self._total):
            raise ValueError(
                f"expected {1 + len(self._total)} tensors of embeddings, as in the first update; found {found}"
            )
        if found - 1 != comb(_num_states(found - 1), 2):
            raise ValueError(
                f"expected 1 + L (L + 1) / 2 tensors of embeddings for some number of layers L; found {found}"
            )

    def _add(self, total: Tensor, samples: int) -> None:
        self._total = total.clone() if self._total is None else self._total + total.to(self._total.device)
        self.samples += samples

    def merge(self, other: Self) -> None:
        """Add the samples of another instance."""
        check_mergeable(self, other)
        if other.samples:
            self._check_number(1 + len(other._total))
            self._add(other._total, other.samples)

    def matrix(self) -> np.ndarray:
        """The (L+1, L+1) matrix. ValueError below 2 samples."""
        check_samples(self.samples)
        num_states = _num_states(len(self._total))
        matrix = np.eye(num_states)
        matrix[tuple(zip(*skipped_segments(num_states - 1), strict=True))] = (self._total / self.samples).cpu()
        return symmetric_matrix(matrix, lowest=-1.0)

    def diagnostics(self) -> dict:
        """`samples`."""
        return {"samples": self.samples}


def _num_states(num_segments: int) -> int:
    """L + 1 for the (L + 1) L / 2 segments of L layers."""
    return (isqrt(8 * num_segments + 1) + 1) // 2
