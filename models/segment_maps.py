"""The repair of every possible segment, from one pass over the full model: to measure them, and to score proposals repaired.

For each layer p: the Gram matrix of the inputs of its last linear map, and their products with what its sum lacks of every later state.
From these sums comes the map of any segment [p + 1, b] without another pass. All maps are fitted on the full model's states;
for one proposal `repair` does better, cut by cut on the states of the repaired model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.encoders import Batch, Encoder
from models.folding import apply_change, find_place
from models.judging import Judge
from models.repair import FEWEST_CAPTIONS, RIDGE, Sums, hold_out, warn_of_few_tokens

CAPTIONS = 1000  # a few hundred give the same order of proposals; the winner is refitted with more
JUDGES = 64  # a map is judged whenever it is first used, so by fewer samples than the repair of one proposal


class SegmentMaps:
    """Maps from every layer p to every later state h_b of an encoder, each judged when it is first asked for.

    Takes (F + 1) (F + 1 + (L - p) D) float64 numbers for each layer p while the sums are made, and half of them afterwards.

    Args:
        samples: captions of train.
        ridge: as in `repair`.
        batch_size: samples in a forward pass.
    """

    @torch.no_grad()
    def __init__(self, encoder: Encoder, samples: Sequence, *, ridge: float = RIDGE, batch_size: int = 256):
        samples = list(dict.fromkeys(samples))
        if len(samples) < FEWEST_CAPTIONS:
            raise ValueError(
                f"expected at least {FEWEST_CAPTIONS} different captions to repair with, found {len(samples)}"
            )
        fitted, held = hold_out(samples)
        self.encoder, self.judge = encoder, Judge(encoder, held[:JUDGES], batch_size)
        batches = list(encoder.batches(fitted, batch_size))
        layers = range(encoder.num_layers)  # 0: the embeddings; nothing comes after layer L
        self.places = [find_place(encoder.stack, p, batches[0].inputs) for p in layers]
        warn_of_few_tokens(self.places, sum(int(batch.mask.sum()) for batch in batches), len(fitted))
        sums = [_LaterSums(place is None or place.has_bias) for place in self.places]
        for batch in batches:
            self._add(batch, sums)
        self._changes = []
        self._shares = np.eye(encoder.num_layers + 1)
        for p, (place, of_layer) in enumerate(zip(self.places, sums, strict=True)):
            changes, self._shares[p, p + 1 :] = of_layer.solve(ridge, can_change=place is not None)
            self._changes.append(changes.to(encoder.device, torch.float32))
        self._held_states = [encoder.stack.hidden_states(**batch.inputs) for batch in self.judge.batches]
        self._steps: dict[tuple[int, int], float] = {}

    def _add(self, batch: Batch, sums: list["_LaterSums"]) -> None:
        stack = self.encoder.stack
        hidden, context = stack.start(**batch.inputs)
        states, read = [hidden], [(hidden, hidden)]
        for layer in range(1, stack.num_layers + 1):
            if layer < stack.num_layers:
                read.append(self.places[layer].read(stack, states[-1], context, layer))
                states.append(self.places[layer].state(read[-1][1]))
            else:
                states.append(stack.run(states[-1], context, [layer]))
        real = torch.stack(states)[:, batch.mask]  # (L + 1, n, D)
        for p, (place, (inputs, current)) in enumerate(zip(self.places, read, strict=True)):
            current = current[batch.mask]
            wanted = real[p + 1 :] if place is None else place.wanted(real[p + 1 :], current)
            sums[p].add(inputs[batch.mask], wanted, current)

    def matrix(self) -> np.ndarray:
        """(L + 1, L + 1), symmetric: M[i, j] is the share of the variance of h_j that layer i explains after its repair.

        1 - |what is left| / |h_j - mean|, squares summed over the fitted tokens; 0 where it explains less than the mean alone.
        In a post-norm block of layer i, h_j is taken as what its sum should be before the norm.
        """
        upper = np.triu(self._shares.clip(0, 1), 1)
        return upper + upper.T + np.eye(len(upper))

    def fitted_change(self, p: int, b: int) -> Tensor:
        """The whole way from the present weights of layer p to those fitted to h_b: (F, D), or (F + 1, D) with the bias last."""
        return self._changes[p][b - p - 1]

    @torch.no_grad()
    def change(self, p: int, b: int) -> Tensor | None:
        """What to add to the weights of layer p when the layers after it up to b are dropped; None where nothing helps."""
        if self.places[p] is None:
            return None
        if (p, b) not in self._steps:
            self._steps[p, b] = self._best_step(p, b)
        return self._steps[p, b] * self.fitted_change(p, b) if self._steps[p, b] else None

    def run(self, hidden: Tensor, context: list, layer: int) -> tuple[Tensor, ...]:
        """What a layer leaves behind when it is run on a state (n, T, D); 0 stands for the embeddings, with h_0 given."""
        if layer == self.encoder.num_layers or self.places[layer] is None:  # no later state, or none to be had
            return (self.encoder.stack.run(hidden, context, [layer] if layer else []),)
        return self.places[layer].read(self.encoder.stack, hidden, context, layer)

    def state(self, left: tuple[Tensor, ...], p: int, q: int) -> Tensor:
        """The state that the kept layer q (L + 1: the readout) gets from what the kept layer p before it left behind."""
        if len(left) == 1:
            return left[0]
        inputs, current = left
        change = self.change(p, q - 1) if q > p + 1 else None
        return self.places[p].state(current if change is None else current + apply_change(change, inputs))

    def _best_step(self, p: int, b: int) -> float:
        """Of the way from the present weights to the fitted ones, with all other layers those of the full model."""
        place, change, stack = self.places[p], self.fitted_change(p, b), self.encoder.stack
        read = [
            place.read(stack, states[max(0, p - 1)], context, p)
            for states, context in zip(self._held_states, self.judge.contexts, strict=True)
        ]
        moves = [apply_change(change, inputs) for inputs, _ in read]

        def embeddings_at(step: float) -> Tensor:
            states = (place.state(current + step * move) for (_, current), move in zip(read, moves, strict=True))
            return self.judge.embeddings_after(b, states)

        return self.judge.best_step(embeddings_at)[0]


class _LaterSums:
    """Least squares from one layer's inputs to what its sum lacks of each later state."""

    def __init__(self, has_bias: bool):
        self._sums = Sums(has_bias)
        self._lacking = self._squares = self._totals = self._number = 0.0

    def add(self, inputs: Tensor, wanted: Tensor, current: Tensor) -> None:
        """`inputs` (n, F); `wanted` (J, n, D), the sum for each later state; `current` (n, D), the sum as it is."""
        wanted = wanted.double()
        lacks = wanted - current
        self._sums.add(inputs, lacks.transpose(0, 1).flatten(1))
        self._lacking = self._lacking + lacks.square().sum((1, 2))
        self._squares = self._squares + wanted.square().sum((1, 2))
        self._totals = self._totals + wanted.sum(1)
        self._number += inputs.shape[0]

    def solve(self, ridge: float, can_change: bool) -> tuple[Tensor, np.ndarray]:
        """(J, F [+ 1], D), the changes; and (J,), the share of the variance of each later state that is then explained."""
        flat = self._sums.solve(ridge)
        changes = flat.unflatten(1, self._totals.shape).transpose(0, 1)
        if not can_change:
            changes = torch.zeros_like(changes)
        cross = self._sums.cross.unflatten(1, self._totals.shape).transpose(0, 1)
        left = self._lacking - 2 * (changes * cross).sum((1, 2)) + (changes * (self._sums.gram @ changes)).sum((1, 2))
        variance = self._squares - self._totals.square().sum(1) / self._number
        return changes, (1 - left / variance.clamp(min=1e-12)).cpu().numpy()
