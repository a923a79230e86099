"""Repair: a linear map in the place of a dropped segment, folded into weights that are there already.

SVCCA says how well a linear map takes one layer's states to another's; here that map is put in. A segment [a, b] is
dropped, p is the kept layer before it: h_p = x + g W + c, where g are the hidden units of its MLP and W, c its last
linear map. The new W and c bring x + g W + c as near as possible to h_b of the full model, by ridge least squares over
the tokens of some captions; at last the projection is refitted towards the full model's embeddings. No new module, no
gradient, no image: an ordinary checkpoint.

Related: ReplaceMe (Shopkhoev et al. 2025, arXiv 2505.02819) folds one map on the MLP's output; Ghosted Layers
(2605.15491), LinearPatch (2505.24680), Prune&Comp (2507.18212). Here the map takes the hidden units, cuts are repaired
one after the other on the states of the repaired model, the projection too, and each repair is kept only where it helps
on captions that it has not seen.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from measures.ridge import RIDGE, SAMPLES_A_FEATURE, RidgeSums
from models.encoders import Batch, Encoder
from models.folding import BlockMap, Place, apply_change, find_places
from models.judging import STEPS, Judge

logger = logging.getLogger("comflp")

REPAIR_CAPTIONS = 4000  # of train, for the repair of one proposal
HELD_OUT = 10  # one caption in so many judges the repairs,
MOST_HELD_OUT = 128  # and no more than these, which every step that is tried sends through the model
FEWEST_CAPTIONS = 2 * HELD_OUT
STATE_BYTES = 1 << 29  # of hidden states that wait between two cuts, for each model; the rest is computed again

Weigh = Callable[[Batch], Tensor]  # (n, T): how much each token counts


@dataclass(frozen=True)
class Cut:
    """What became of one repair: of a dropped segment, or of the projection (`segment` None).

    `before`, `after`: `loss_of_meaning` on held-out samples with the layers dropped, and with the map folded in. In
    both the full model's later layers run on the result; where none follow, the projection is refitted to it.
    """

    segment: tuple[int, int] | None
    step: float  # 1: the new weights; 0: left out; between: damped
    before: float | None
    after: float | None
    note: str = ""

    def __str__(self) -> str:
        what = "projection" if self.segment is None else f"layers {self.segment[0]} to {self.segment[1]}"
        outcome = {1.0: "repaired", 0.0: "left out"}.get(self.step, f"repaired in part, {self.step:g} of the way")
        figures = "" if self.before is None else f", {self.before:.4f} -> {self.after:.4f}"
        return f"{what}: {outcome}{figures}{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True)
class Repair:
    """What was repaired, and by how much: `loss_of_meaning` on held-out samples, left out and repaired."""

    cuts: tuple[Cut, ...]
    samples: int  # fitted
    tokens: int
    before: float
    after: float


def repaired(encoder: Encoder, dropped_layers: Sequence[int], samples: Sequence, *, ridge: float = RIDGE) -> Encoder:
    """A new encoder without these layers (counted from 1), repaired on samples of train; see `repair`."""
    return repair(encoder, dropped_layers, samples, ridge=ridge)[0]


@torch.no_grad()
def repair(
    encoder: Encoder,
    dropped_layers: Sequence[int],
    samples: Sequence,
    *,
    ridge: float = RIDGE,
    batch_size: int | None = None,
    progress: bool = False,
) -> tuple[Encoder, Repair | None]:
    """A new encoder without these layers, repaired, and what was repaired. `encoder` is left as it is.

    Samples that are held out (`hold_out`) are not fitted but judge: each repair is kept, damped or left out; and if all
    of them together do not help, none is kept. With fewer than `FEWEST_CAPTIONS` different samples nothing is repaired,
    with a warning; fewer tokens than `SAMPLES_A_FEATURE` times the features of a map are a warning too.

    Args:
        dropped_layers: layers from 1..L; none at all gives an exact copy, and None as what was repaired.
        samples: captions of train; repeated ones count once.
        ridge: how hard new weights are pulled towards the old ones, in samples for each feature.
        batch_size: samples in a forward pass; None: as `Encoder.batches`.
        progress: whether each cut has a bar.
    """
    pruned = encoder.drop(dropped_layers)
    samples = list(dict.fromkeys(samples))
    if not dropped_layers:
        return pruned, None
    if len(samples) < FEWEST_CAPTIONS:
        logger.warning(
            "%d different captions are too few to repair with: pass at least %d; the layers are left out without repair",
            len(samples),
            FEWEST_CAPTIONS,
        )
        return pruned, None
    options = {"ridge": ridge, "batch_size": batch_size, "progress": progress}
    report = Repairer(encoder, pruned, dropped_layers, samples, **options).run()
    # each cut was judged with the full model behind it, so all of them together can still be worse
    if report.after >= report.before and any(cut.step for cut in report.cuts):
        cuts = tuple(Cut(cut.segment, 0.0, cut.before, cut.before, "all together did not help") for cut in report.cuts)
        return encoder.drop(dropped_layers), Repair(cuts, report.samples, report.tokens, report.before, report.before)
    return pruned, report


class Walk:
    """An encoder's states batch by batch, each where it was left; beyond `STATE_BYTES` they start again."""

    def __init__(self, encoder: Encoder, batches: Sequence[Batch]):
        self.encoder, self.batches = encoder, batches
        self._kept: dict[int, tuple[int, Tensor, list]] = {}
        self._read: dict[int, tuple[Tensor, Tensor]] = {}
        self._bytes = 0

    def to(self, number: int, layer: int) -> tuple[Tensor, list]:
        """h_layer (n, T, D) of a batch, and its context. From call to call, layers never go down."""
        reached, hidden, context = self._kept.get(number) or (0, *self._start(number))
        state = self.encoder.stack.run(hidden, context, range(reached + 1, layer + 1))
        self._keep(number, layer, state, context)
        return state, context

    def end(self, number: int) -> Tensor:
        return self.to(number, self.encoder.num_layers)[0]

    def read(self, place: Place, number: int, layer: int) -> tuple[Tensor, Tensor]:
        """The inputs and the sum of the map of this layer, until it is `settle`d; held where the bytes allow it."""
        if number in self._read:
            return self._read[number]
        hidden, context = self.to(number, max(0, layer - 1))
        found = place.read(self.encoder.stack, hidden, context, layer)
        held = sum(tensor.nbytes for pair in (*self._read.values(), found) for tensor in pair)
        if number in self._kept and self._bytes + held <= STATE_BYTES:
            self._read[number] = found
        return found

    def settle(self, place: Place, layer: int, change: Tensor) -> None:
        """The change of this layer's map is made: its states follow from what was read, without running it again."""
        for number, (inputs, current) in self._read.items():
            self._kept[number] = layer, place.state(current + apply_change(change, inputs)), self._kept[number][2]
        self._read = {}

    def follow(self, other: "Walk", layer: int) -> None:
        """Up to this layer the other encoder is the same: take its states."""
        for number in range(len(self.batches)):
            self._keep(number, layer, other.to(number, layer)[0], self._start(number)[1])

    def _start(self, number: int) -> tuple[Tensor, list]:
        return self.encoder.stack.start(**self.batches[number].inputs)

    def _keep(self, number: int, layer: int, state: Tensor, context: list) -> None:
        if layer and (number in self._kept or self._bytes + state.nbytes <= STATE_BYTES):  # h_0 may yet be repaired
            self._bytes += 0 if number in self._kept else state.nbytes
            self._kept[number] = layer, state, context


class Repairer:
    """The full and the pruned model side by side, while the pruned one is repaired in place.

    `benchmarks/repair_ablation.py` overrides its steps to try other ways, and lets tokens `weigh` unequally; padding
    never counts.
    """

    def __init__(
        self,
        full: Encoder,
        pruned: Encoder,
        dropped_layers: Sequence[int],
        samples: list,
        *,
        ridge: float = RIDGE,
        weigh: Weigh | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ):
        self.pruned, self.projection, self.ridge, self.weigh = pruned, pruned.projection, ridge, weigh
        self.progress = progress
        self.kept = [layer for layer in range(1, full.num_layers + 1) if layer not in dropped_layers]
        fitted, held = hold_out(samples)
        self.num_fitted, batches = len(fitted), list(full.batches(fitted, batch_size))
        self.full_walk, self.walk = Walk(full, batches), Walk(pruned, batches)
        self.judge = Judge(full, held, batch_size)
        self.held_walk = Walk(pruned, self.judge.batches)
        self.tokens = sum(int(batch.mask.sum()) for batch in batches)

    def run(self) -> Repair:
        before = self.judge.loss(self.judge.embeddings(self.pruned))
        # a gap (p, q): kept layers with dropped ones between them; 0 the embeddings, L + 1 the readout
        ends = (0, *self.kept, self.judge.full.num_layers + 1)
        gaps = [(p, q) for p, q in pairwise(ends) if q > p + 1]
        places = self._find_places([p for p, _ in gaps])
        # below the first cut both models are the same: run it once
        self.walk.follow(self.full_walk, max(0, gaps[0][0] - 1))
        cuts = [self.repair_segment(*gap, place) for gap, place in zip(gaps, places, strict=True)]
        if self.projection is not None:
            cuts.append(self.repair_projection())
        after = self.judge.loss(self.judge.embeddings(self.pruned))
        return Repair(tuple(cuts), self.num_fitted, self.tokens, before, after)

    def _find_places(self, layers: list[int]) -> list[Place | None]:
        """Where the map of each of these layers (of the full model, 0: the embeddings) goes in the pruned model."""
        layers = [self._in_pruned(p) for p in layers]
        places = find_places(self.pruned.stack, layers, self.walk.batches[0].inputs)
        warn_of_few_tokens(places, self.tokens, self.num_fitted)
        return places

    def _in_pruned(self, layer: int) -> int:
        return sum(kept <= layer for kept in self.kept)

    def repair_segment(self, p: int, q: int, place: Place | None) -> Cut:
        """Repair the cut between the kept layers p (0: the embeddings) and q (L + 1: the readout)."""
        if place is None:
            return Cut((p + 1, q - 1), 0.0, None, None, "the input of layer 1 is no sum of embedding tables")
        layer = self._in_pruned(p)
        change = self.fit_segment(place, layer, q - 1)
        read = [self.held_walk.read(place, number, layer) for number in range(len(self.held_walk.batches))]
        readouts = None
        if q > self.judge.full.num_layers and self.projection is not None:  # what the map helps shows after the readout
            readouts = self.fit_readouts(place, layer, change)

        def loss_at(step: float) -> float:
            states = [place.state(current + step * apply_change(change, inputs)) for inputs, current in read]
            if readouts is not None:
                return self.judge.loss(self.read_out(states, readouts[step]))
            # As if the full model went on from here: what later cuts lose is not this one's.
            return self.judge.loss_after(q - 1, states)

        cut = self.fold_best((p + 1, q - 1), place, change, loss_at)
        for walk in (self.walk, self.held_walk):
            walk.settle(place, layer, cut.step * change)
        return cut

    def fit_segment(self, place: Place, layer: int, last: int) -> Tensor:
        """The change of the weights that brings the sum to where h_last of the full model asks for it."""
        sums = RidgeSums(place.has_bias)
        for batch, inputs, lacks in self.read_lacks(place, layer, last):
            sums.add(inputs, lacks, None if self.weigh is None else self.weigh(batch)[batch.mask])
        return sums.solve(self.ridge)

    def read_lacks(self, place: Place, layer: int, last: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """For each batch, over its real tokens: the inputs (n, F) of the map, and what its sum lacks (n, D)."""
        bar = tqdm(self.walk.batches, desc=f"repair up to layer {last}", disable=not self.progress, leave=False)
        for number, batch in enumerate(bar):
            inputs, current = self.walk.read(place, number, layer)
            lacks = place.wanted(self.full_walk.to(number, last)[0], current) - current
            yield batch, inputs[batch.mask], lacks[batch.mask]

    def fit_readouts(self, place: Place, layer: int, change: Tensor) -> dict[float, Tensor]:
        """For each step of the last cut's change: that of the projection, fitted to the states that would come."""
        sums = {step: RidgeSums(self.projection.bias is not None) for step in (0.0, *STEPS)}
        for number in range(len(self.walk.batches)):
            inputs, current = self.walk.read(place, number, layer)
            move = apply_change(change, inputs)
            for step, of_step in sums.items():
                self.add_readout(of_step, number, place.state(current + step * move))
        return {step: of_step.solve(self.ridge) for step, of_step in sums.items()}

    def repair_projection(self) -> Cut:
        sums = RidgeSums(self.projection.bias is not None)
        for number in range(len(self.walk.batches)):
            self.add_readout(sums, number, self.walk.end(number))
        change = sums.solve(self.ridge)
        ends = [self.held_walk.end(number) for number in range(len(self.held_walk.batches))]
        place = BlockMap(self.projection, None)

        def loss_at(step: float) -> float:
            return self.judge.loss(self.read_out(ends, step * change))

        return self.fold_best(None, place, change, loss_at)

    def add_readout(self, sums: RidgeSums, number: int, end: Tensor) -> None:
        """Towards the full model's embeddings, from the last states (n, T, D) of a batch, at the scale there is."""
        batch = self.walk.batches[number]
        features = self.pruned.features(end, batch)
        current = self.projection(features)
        meant = self.judge.full.embed(self.full_walk.end(number), batch)
        sums.add(features, meant * current.norm(dim=-1, keepdim=True) - current)

    def read_out(self, ends: Sequence[Tensor], change: Tensor) -> Tensor:
        """(n, d): the embeddings of the held-out samples from their last states, with this change of the projection."""
        batches = zip(ends, self.judge.batches, strict=True)
        features = torch.cat([self.pruned.features(end, batch) for end, batch in batches])
        return F.normalize(self.projection(features) + apply_change(change, features), dim=-1)

    def fold_best(
        self,
        segment: tuple[int, int] | None,
        place: Place,
        change: Tensor,
        loss_at: Callable[[float], float],
    ) -> Cut:
        """Fold the change by the best step, or not at all."""
        step, before, after = self.judge.best_step(loss_at)
        if step:
            place.fold(step * change)
        return Cut(segment, step, before, after, "" if step else "no step helped")


def draw_captions(captions: Sequence[str], seed: int, number: int = REPAIR_CAPTIONS) -> list[str]:
    """Some of the distinct captions, in a random order: the first of them are a random draw too."""
    distinct = list(dict.fromkeys(captions))
    order = np.random.default_rng(seed).permutation(len(distinct))
    return [distinct[row] for row in order[:number]]


def hold_out(samples: list, most: int = MOST_HELD_OUT) -> tuple[list, list]:
    """The samples to fit, and those that judge: one in `HELD_OUT`, but no more than `most`."""
    held = range(HELD_OUT - 1, len(samples), HELD_OUT)[:most]
    return [sample for row, sample in enumerate(samples) if row not in held], [samples[row] for row in held]


def warn_of_few_tokens(places: Sequence[Place | None], tokens: int, samples: int) -> None:
    features = max((place.num_features for place in places if place), default=0)
    needed = SAMPLES_A_FEATURE * features
    if tokens < needed:
        logger.warning(
            "repair: %d tokens for maps of %d features; expected %d or more: pass about %d captions",
            tokens,
            features,
            needed,
            math.ceil(needed / tokens * samples * HELD_OUT / (HELD_OUT - 1)),
        )
