"""What a measure gives when there is nothing to find: the same samples, in another order in every layer."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from measures.base import Measure
from measures.checks import check_hidden_states, check_values, without_gradients

ROWS_AT_ONCE = 1024


class Shuffled:
    """A measure of row-shuffled layers, with the interface of the measure.

    Every layer's rows are put in an order of their own, so each layer keeps its distribution and no two have anything
    in common but chance. Where an update is a draw (`dc`), each update is shuffled by itself. Otherwise rows are
    collected and shuffled 1,024 at a time: in small batches, 1 / n of the rows would stay where they belong.

    Warning:
        Give the samples in random order, as the scripts do. What drifts slowly over them stays in blocks of 1,024, and
        is then found in all layers: CKA of sorted rows can be 0.8 by "chance".

    Args:
        measure: the measure, without data.
        generator: a CPU generator for the permutations.
    """

    def __init__(self, measure: Measure, generator: torch.Generator) -> None:
        self.measure, self.generator = measure, generator
        self.per_draw, self.options, self.min_samples = measure.per_draw, measure.options, measure.min_samples
        self._widths: list[int] | None = None
        self._waiting: list[list[Tensor]] = []

    @property
    def samples(self) -> int:
        """The number of rows seen."""
        return self.measure.samples + self._rows_waiting()

    def _rows_waiting(self) -> int:
        return sum(states[0].shape[0] for states in self._waiting)

    @without_gradients
    def update(self, hidden_states: Sequence[Tensor]) -> None:
        """Add samples: one (n, d_i) tensor for each layer, as for the measure."""
        if self.per_draw:
            self.measure.update(self._shuffle(check_hidden_states(hidden_states)))
            return
        # what a repair fits has no columns where a layer takes no map; other measures refuse that themselves
        states = check_hidden_states(hidden_states, self._widths, min_columns=0)
        check_values(states)
        self._widths = [state.shape[1] for state in states]
        self._waiting.append([state.clone() for state in states])
        if self._rows_waiting() >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            states = [torch.cat(parts) for parts in zip(*self._waiting, strict=True)]
            self._waiting = []
            self.measure.update(self._shuffle(states))

    def _shuffle(self, states: list[Tensor]) -> list[Tensor]:
        orders = (torch.randperm(state.shape[0], generator=self.generator) for state in states)
        return [state[order.to(state.device)] for state, order in zip(states, orders, strict=True)]

    def matrix(self) -> np.ndarray:
        """The (L+1, L+1) matrix of the shuffled layers."""
        self._flush()
        return self.measure.matrix()

    def merge(self, other: Self) -> None:
        """Add the shuffled samples of another instance around a measure with the same options."""
        if not isinstance(other, Shuffled):
            raise ValueError(f"expected another Shuffled to merge; found a {type(other).__name__}")
        self._flush()
        other._flush()
        self.measure.merge(other.measure)

    def diagnostics(self) -> dict:
        """Those of the measure."""
        self._flush()
        return self.measure.diagnostics()
