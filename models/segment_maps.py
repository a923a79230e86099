"""The repair of every segment from one pass over the full model, so that the fine search scores proposals repaired.

For each layer p: the Gram matrix of the inputs of its last linear map, and their products with what its sum lacks of
every later state (`measures/repair.py`). From these sums comes the map of any segment [p + 1, b] without another pass.
All maps are fitted on the full model's states; for one proposal `repair` does better, cut by cut on the states of the
repaired model.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

import torch
from torch import Tensor
from tqdm import tqdm

from measures.ridge import LaterSums
from models.encoders import Batch, Encoder
from models.folding import Place, apply_change, find_places
from models.judging import Judge
from models.layer_stack import LayerStack
from models.repair import FEWEST_CAPTIONS, RIDGE, hold_out

MAP_CAPTIONS = 1000  # a few hundred give the same order of proposals; the winner is refitted with more
JUDGES = 64  # a map is judged whenever it is first used, so by fewer samples than the repair of one proposal
NEAR_ENOUGH = 0.8  # maps of a proposal are used where they leave less of its distance to the full model: RESULTS.md, 1
MAP_BYTES = 3 << 30  # of sums at a time; where those of all segments take more, maps are fitted when asked for
ALL_SEGMENTS = 50 * 51 // 2  # so they are in deeper models: proposals of 192 layers use some hundred of 18,528 segments
PATH_BYTES = 1 << 28  # of held-out states that stay at hand for the next proposal, with maps and without

Places = Sequence[Place | None]  # of each layer but the last, from 0: the embeddings


class LeftOut:
    """Layers are left out, and that is all: the same steps as those of `SegmentMaps`."""

    def __init__(self, stack: LayerStack):
        self._stack = stack

    def run(self, hidden: Tensor, context: list, layer: int) -> tuple[Tensor, ...]:
        """What a layer leaves behind when it is run on a state; 0 stands for the embeddings, with h_0 given."""
        return (self._stack.run(hidden, context, [layer] if layer else []),)

    def state(self, left: tuple[Tensor, ...], p: int, q: int) -> Tensor:
        """The state that the kept layer q gets from what the kept layer p before it left behind."""
        return left[0]


class SegmentMaps:
    """Maps from every layer p to every later state h_b of an encoder, each judged when it is first asked for.

    The sums take (F + 1) (F + 1 + (L - p) D) float64 numbers for each layer p, and the maps half of them. Where all of
    these are more than `MAP_BYTES` (24 layers of width 1024; 1,000 layers of width 64 have 66 GB), or the layers more
    than 50, nothing is fitted before it is needed: `prepare` fits the maps of some segments in one pass.

    Args:
        samples: captions of train.
        ridge: as in `repair`.
        batch_size: samples in a forward pass; None: as `Encoder.batches`.
        progress: whether a pass has a bar.

    Attributes:
        places: of the map of each layer but the last, from 0, the embeddings.
        batches: the captions that the maps are fitted to.
    """

    @torch.no_grad()
    def __init__(
        self,
        encoder: Encoder,
        samples: Sequence,
        *,
        ridge: float = RIDGE,
        batch_size: int | None = None,
        progress: bool = False,
    ):
        samples = list(dict.fromkeys(samples))
        if len(samples) < FEWEST_CAPTIONS:
            raise ValueError(
                f"expected at least {FEWEST_CAPTIONS} different captions to repair with, found {len(samples)}; give more, or "
                "pass --repair false"
            )
        fitted, held = hold_out(samples, JUDGES)
        self.encoder, self.ridge, self.progress = encoder, ridge, progress
        self.judge = Judge(encoder, held, batch_size)
        self.batches = list(encoder.batches(fitted, batch_size))
        layers = range(encoder.num_layers)  # nothing comes after layer L
        self.places: Places = find_places(encoder.stack, layers, self.batches[0].inputs)
        self._held_states = [encoder.stack.hidden_states(**batch.inputs) for batch in self.judge.batches]
        # of each way to run a proposal: the first kept layers of the last one, and what each left behind of every batch
        starts = [(held[0], context) for held, context in zip(self._held_states, self.judge.contexts, strict=True)]
        self._left_out = LeftOut(encoder.stack)
        self._paths = {way: [(0, [way.run(*start, 0) for start in starts])] for way in (self, self._left_out)}
        self._changes: dict[tuple[int, int], Tensor] = {}
        self._steps: dict[tuple[int, int], float] = {}
        self._helped: dict[tuple[int, ...], bool] = {}
        every = {p: range(p + 1, encoder.num_layers + 1) for p in layers}
        size = sum(self._sums_bytes(p, len(later)) for p, later in every.items())
        if size <= MAP_BYTES and sum(map(len, every.values())) <= ALL_SEGMENTS:
            self._fit(every)

    @property
    def num_fitted(self) -> int:
        return len(self._changes)

    def prepare(self, segments: Iterable[tuple[int, int]]) -> None:
        """Fit the maps of segments, given by p, the layer before, and b, the last, that are not fitted yet."""
        if sum(change.nbytes for change in self._changes.values()) > MAP_BYTES:
            self._changes.clear()
        missing: dict[int, list[int]] = {}
        for p, b in sorted(set(segments) - self._changes.keys()):
            missing.setdefault(p, []).append(b)
        self._fit(missing)

    def _sums_bytes(self, p: int, num_later: int) -> int:
        features = 1 + (self.places[p].num_features if self.places[p] else 0)
        return 8 * features * (features + num_later * self.encoder.width)

    def _fit(self, wanted: Mapping[int, Sequence[int]]) -> None:
        """The maps from each layer p to the states h_b in wanted[p], as many in a pass as `MAP_BYTES` of sums allow."""
        parts: list[dict[int, Sequence[int]]] = []
        size = MAP_BYTES  # so the first layer opens a part
        for p, later in wanted.items():
            size += self._sums_bytes(p, len(later))
            if size > MAP_BYTES:
                parts.append({})
                size = self._sums_bytes(p, len(later))
            parts[-1][p] = later
        for part in parts:
            self._fit_part(part)

    @torch.no_grad()
    def _fit_part(self, wanted: Mapping[int, Sequence[int]]) -> None:
        sums = {p: LaterSums(self.places[p] is None or self.places[p].has_bias) for p in wanted}
        for batch in tqdm(self.batches, desc="maps", disable=not self.progress, leave=False):
            for p, inputs, current, later in read_goals(self.encoder, self.places, batch, wanted):
                sums[p].add(inputs, torch.stack(later), current)
        for p, later in wanted.items():
            changes = sums[p].solve(self.ridge).to(self.encoder.device, torch.float32)
            self._changes |= {(p, b): change for b, change in zip(later, changes, strict=True)}

    def fitted_change(self, p: int, b: int) -> Tensor:
        """From the weights of layer p to those fitted to h_b: (F, D), or (F + 1, D) with the bias last."""
        if (p, b) not in self._changes:
            self._fit({p: [b]})
        return self._changes[p, b]

    def change(self, p: int, b: int) -> Tensor | None:
        """What to add to the weights of layer p when the layers up to b are dropped; None where nothing helps."""
        if (p, b) not in self._steps:
            self._steps[p, b] = self._judge(p, b)
        step = self._steps[p, b]
        return step * self.fitted_change(p, b) if step else None

    def help(self, kept: Sequence[int]) -> bool:
        """Whether the maps of all segments between these kept layers help on the held-out samples.

        Each map was judged with the full model behind it; behind it in a proposal come others, fitted to states that
        will not come. So all together must tell the samples apart better, and bring them nearer by a margin: where they
        tell these few apart and come hardly nearer, other texts are often worse for it.
        """
        kept = tuple(kept)
        if kept not in self._helped:  # a race, and a second search with the same maps, ask again
            left_out, mapped = (self._held_embeddings(way, kept) for way in (self._left_out, self))
            judge = self.judge
            nearer = judge.distance(mapped) < NEAR_ENOUGH * judge.distance(left_out)
            self._helped[kept] = nearer and judge.loss(mapped) < judge.loss(left_out)
        return self._helped[kept]

    @torch.no_grad()
    def _held_embeddings(self, runner: "Runner", kept: tuple[int, ...]) -> Tensor:
        """(n, d). Proposals come in the order of their prefixes: what they share is run once."""
        layers, path = (0, *kept), self._paths[runner]
        shared = (layer == step for layer, (step, _) in zip(layers, path, strict=False))
        del path[sum(takewhile(bool, shared)) :]
        left = path[-1][1]
        for place in range(len(path), len(layers)):
            p, layer = layers[place - 1 : place + 1]
            batches = zip(left, self.judge.contexts, strict=True)
            left = [runner.run(runner.state(before, p, layer), context, layer) for before, context in batches]
            size = sum(tensor.nbytes for before in left for tensor in before)
            # without gaps: once a state was too large, none after it is kept
            if place == len(path) and place * size <= PATH_BYTES:
                path.append((layer, left))
        end = self.encoder.num_layers + 1
        return self.judge.read_out(runner.state(before, layers[-1], end) for before in left)

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
    def _judge(self, p: int, b: int) -> float:
        """The best step from the weights of layer p to those fitted to h_b, all else the full model's."""
        place, stack = self.places[p], self.encoder.stack
        states = zip(self._held_states, self.judge.contexts, strict=True)
        read = [place.read(stack, held[max(0, p - 1)], context, p) for held, context in states]
        moves = [apply_change(self.fitted_change(p, b), inputs) for inputs, _ in read]

        def loss_at(step: float) -> float:
            sums = (current + step * move for (_, current), move in zip(read, moves, strict=True))
            return self.judge.loss_after(b, map(place.state, sums))

        return self.judge.best_step(loss_at)[0]


Runner = SegmentMaps | LeftOut


def read_goals(
    encoder: Encoder, places: Places, batch: Batch, wanted: Mapping[int, Sequence[int]]
) -> Iterator[tuple[int, Tensor, Tensor, list[Tensor]]]:
    """For the layers p of `wanted`, over a batch's real tokens: p, the inputs of its map (n, F), its sum (n, D), and
    what that should be for each of the states h_b, b in wanted[p] (rising). In the order of their last b; only what is
    still needed is held.
    """
    stack, open_maps = encoder.stack, {}
    hidden, context = stack.start(**batch.inputs)
    for layer in range(stack.num_layers + 1):
        if layer in wanted and places[layer]:
            inputs, current = places[layer].read(stack, hidden, context, layer)
            hidden = places[layer].state(current)
        else:
            hidden = stack.run(hidden, context, [layer] if layer else [])
            inputs, current = hidden[..., :0], hidden
        state = hidden[batch.mask]  # one for all the layers that want it: a copy for each would be L^2 of them
        for p, (its_inputs, its_current, later) in list(open_maps.items()):
            if layer in wanted[p]:
                later.append(state)
            if layer == wanted[p][-1]:
                place = places[p]
                yield p, its_inputs, its_current, [place.wanted(s, its_current) if place else s for s in later]
                del open_maps[p]
        if layer in wanted:
            open_maps[layer] = inputs[batch.mask], current[batch.mask], []


def read_repairs(encoder: Encoder, places: Places, batch: Batch) -> list[Tensor]:
    """What an update of `measures.Repair` holds, over a batch's real tokens."""
    every = {p: range(p + 1, encoder.num_layers + 1) for p in range(encoder.num_layers)}
    read = read_goals(encoder, places, batch, every)
    return [tensor for _, inputs, current, later in read for tensor in (inputs, current, *later)]
