"""The repair of every segment from one pass over the full model, so that the fine search scores proposals repaired.

For each layer p: the Gram matrix of the inputs of its last linear map, and their products with what its sum lacks of
every later state (`measures/repair.py`). From these sums comes the map of any segment [p + 1, b] without another pass.
All maps are fitted on the full model's states; for one proposal `repair` does better, cut by cut on the states of the
repaired model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from measures.repair import Repair
from models.encoders import Batch, Encoder
from models.folding import BlockMap, TableMap, apply_change, find_place
from models.judging import Judge
from models.repair import FEWEST_CAPTIONS, RIDGE, hold_out, warn_of_few_tokens

CAPTIONS = 1000  # a few hundred give the same order of proposals; the winner is refitted with more
JUDGES = 64  # a map is judged whenever it is first used, so by fewer samples than the repair of one proposal


class SegmentMaps:
    """Maps from every layer p to every later state h_b of an encoder, each judged when it is first asked for.

    Takes (F + 1) (F + 1 + (L - p) D) float64 numbers for each layer p while the sums are made, and half of them
    afterwards.

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
        self._measure = Repair(ridge, [place is None or place.has_bias for place in self.places])
        for batch in batches:
            self._measure.update(read_repairs(encoder, self.places, batch))
        self._changes = [changes.to(encoder.device, torch.float32) for changes in self._measure.changes()]
        self._held_states = [encoder.stack.hidden_states(**batch.inputs) for batch in self.judge.batches]
        self._judged: dict[tuple[int, int], tuple[float, float]] = {}

    def matrix(self) -> np.ndarray:
        """(L + 1, L + 1): the share of each later state that a repaired layer explains; see `measures.Repair`."""
        return self._measure.matrix()

    def fitted_change(self, p: int, b: int) -> Tensor:
        """From the weights of layer p to those fitted to h_b: (F, D), or (F + 1, D) with the bias last."""
        return self._changes[p][b - p - 1]

    def change(self, p: int, b: int) -> Tensor | None:
        """What to add to the weights of layer p when the layers up to b are dropped; None where nothing helps."""
        step, _ = self._judge(p, b)
        return step * self.fitted_change(p, b) if step else None

    def restores(self, p: int, b: int) -> bool:
        """Whether anything of the samples is left when the layers between are dropped and p is repaired.

        Where nothing is, no other map of a proposal can bring it back: they are fitted to states that will not come.
        """
        return self._judge(p, b)[1] < self.judge.nothing

    def run(self, hidden: Tensor, context: list, layer: int) -> tuple[Tensor, ...]:
        """What a layer leaves behind when run on a state (n, T, D); 0 stands for the embeddings, with h_0 given."""
        if layer == self.encoder.num_layers or self.places[layer] is None:  # no later state, or none to be had
            return (self.encoder.stack.run(hidden, context, [layer] if layer else []),)
        return self.places[layer].read(self.encoder.stack, hidden, context, layer)

    def state(self, left: tuple[Tensor, ...], p: int, q: int) -> Tensor:
        """The state that kept layer q (L + 1: the readout) gets from what kept layer p before it left behind."""
        if len(left) == 1:
            return left[0]
        inputs, current = left
        change = self.change(p, q - 1) if q > p + 1 else None
        return self.places[p].state(current if change is None else current + apply_change(change, inputs))

    @torch.no_grad()
    def _judge(self, p: int, b: int) -> tuple[float, float]:
        """The best step from the weights of layer p to those fitted to h_b, all else the full model's; its loss."""
        if (p, b) not in self._judged:
            place, stack = self.places[p], self.encoder.stack
            states = zip(self._held_states, self.judge.contexts, strict=True)
            if place is None:
                end = self.judge.embeddings_after(b, (held[p] for held, _ in states))
                self._judged[p, b] = 0.0, self.judge.loss(end)
                return self._judged[p, b]
            read = [place.read(stack, held[max(0, p - 1)], context, p) for held, context in states]
            moves = [apply_change(self.fitted_change(p, b), inputs) for inputs, _ in read]

            def embeddings_at(step: float) -> Tensor:
                sums = (current + step * move for (_, current), move in zip(read, moves, strict=True))
                return self.judge.embeddings_after(b, map(place.state, sums))

            step, _, after = self.judge.best_step(embeddings_at)
            self._judged[p, b] = step, after
        return self._judged[p, b]


def read_repairs(encoder: Encoder, places: Sequence[BlockMap | TableMap | None], batch: Batch) -> list[Tensor]:
    """What an update of `measures.Repair` holds, over a batch's real tokens; `places`: of each layer but the last."""
    stack = encoder.stack
    hidden, context = stack.start(**batch.inputs)
    states, read = [hidden], [(hidden if places[0] else hidden[..., :0], hidden)]
    for layer in range(1, stack.num_layers):
        read.append(places[layer].read(stack, states[-1], context, layer))
        states.append(places[layer].state(read[-1][1]))
    states.append(stack.run(states[-1], context, [stack.num_layers]))
    states = torch.stack(states)[:, batch.mask]  # (L + 1, n, D)
    tensors = []
    for layer, (place, (inputs, current)) in enumerate(zip(places, read, strict=True)):
        current = current[batch.mask]
        later = states[layer + 1 :]
        tensors += [inputs[batch.mask], current, *(place.wanted(later, current) if place else later)]
    return tensors
