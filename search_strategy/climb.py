"""Refinement: the search goes on by swaps, those most likely to win first.

Bayesian optimisation by the probability of improvement (Kushner 1964) under a Gaussian process (Rasmussen and Williams
2006, chapter 2). Pure: an objective is given, which makes the layer calls.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import islice

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from search_strategy.defaults import CENTRES, CHANCE, EVALUATIONS
from search_strategy.proposals import Proposal, kept_layers

# chosen by `benchmarks.replay_search` on the losses of all subsets of six models, tried on a seventh: RESULTS.md, 2
PAIRS = 0.2  # prior variance of the weight of a pair of neighbouring kept layers; that of a dropped layer is 1
LENGTH = 0.7  # in swaps: how far what is learned of one proposal reaches beyond what is learned of its layers and pairs
NOISE = 0.1  # variance of what a proposal's standing owes to none of these; the standings have 1
CONSIDERED = 100  # swaps around one proposal whose chance is worked out, the best by expectation; all of 12 layers

Objective = Callable[[list[Proposal]], list[float]]


def climb(
    objective: Objective,
    starts: Sequence[Proposal],
    num_layers: int,
    max_rounds: int,
    *,
    chance: float = CHANCE,
) -> tuple[Proposal, int]:
    """The best proposal found, never worse than the best of `starts`, and the rounds begun.

    A round evaluates the proposals that are most likely to be better than all known ones, as `Standings` of these
    foretell: of the swaps of the best known proposals, and of the swaps of the most promising of those, as two at once
    can lead out of a dead end. The climb ends when none has a `chance` to be, or after `max_rounds`. With a `chance` of
    0 it ends in a proposal that no swap makes better. `objective` gives the value (smaller is better) of each proposal.
    """
    known = dict(zip(starts, objective(list(starts)), strict=True))
    for rounds in range(max_rounds):
        standings = Standings(known, num_layers)
        promising = _swaps_around(_ranked(known)[:CENTRES], known, standings)
        promising |= _swaps_around(_ranked(promising)[:CENTRES], known, standings)
        # rounded here and below, so that equal ones are told apart by their layers and not by the processor
        chances = dict(zip(promising, standings.chances(list(promising)).round(9), strict=True))
        likeliest = sorted(chances, key=lambda swap: -chances[swap])[:EVALUATIONS]
        tried = [swap for swap in likeliest if chances[swap] >= chance]
        if not tried:
            return _ranked(known)[0], rounds
        known |= zip(tried, objective(tried), strict=True)
    return _ranked(known)[0], max_rounds


class Swaps(Sequence):
    """The proposals that keep one of the dropped layers, and drop one of the kept layers in its place.

    The late layers first: these share the longest prefixes, so they are tried first while nothing tells swaps apart.
    Made one by one, when asked for: 1,000 layers to 500 have 250,000.
    """

    def __init__(self, proposal: Proposal, num_layers: int):
        self.proposal, self.num_layers = proposal, num_layers
        self.spared = np.array(proposal[::-1])
        self.added = np.array(kept_layers(proposal, num_layers)[::-1])

    def __len__(self) -> int:
        return len(self.spared) * len(self.added)

    def __getitem__(self, number: int) -> Proposal:
        if not 0 <= number < len(self):
            raise IndexError(f"swap {number}; there are {len(self)}")
        spared, added = divmod(int(number), len(self.added))
        return tuple(sorted({*self.proposal, int(self.added[added])} - {int(self.spared[spared])}))


class Standings:
    """What is known of proposals of k layers, as a Gaussian process over all of them.

    A proposal stands at the normal score of its rank: so hopeless proposals do not bend the model, and any scale of the
    objective will do. Two proposals that share s dropped layers, so that they are k - s swaps apart, and c pairs of
    neighbouring kept layers (the embeddings and the end are kept), have the covariance
    s + `PAIRS` c + exp(-(k - s) / `LENGTH`): a weight for each dropped layer, one for each pair, and a part of the
    proposal's own that is lost within a few swaps.

    Args:
        known: proposals of one size with their objectives, smaller is better.
    """

    def __init__(self, known: dict[Proposal, float], num_layers: int):
        scores = ndtri((rankdata(list(known.values())) - 0.5) / len(known))
        self.num_layers, self.size, self.best = num_layers, len(next(iter(known))), scores.min()
        self._before = self._kept_before(known)
        self._dropped = (self._before < 0).astype(float)
        self._factor = cho_factor(self._covariances(self._before) + NOISE * np.eye(len(known)))
        self._weights = cho_solve(self._factor, scores)
        # (L + 1, L + 2): what the pair [before, layer] is expected to add; layer L + 1 is the end
        self._pairs = np.zeros((num_layers + 1, num_layers + 2))
        rows, layers = np.nonzero(self._before >= 0)
        np.add.at(self._pairs, (self._before[rows, layers], layers + 1), PAIRS * self._weights[rows])

    def expect(self, swaps: Swaps) -> np.ndarray:
        """(spared, added): where each of the swaps is expected to stand.

        A swap shares with a known proposal the dropped layers that its centre does, less one if it spares a layer of
        it, and one more if it adds one. So the sum over known proposals, for all swaps at once, is two products of
        matrices; the pairs of layers are summed apart.
        """
        centre = self._kept_before([swaps.proposal])[0]
        shared = self._dropped @ (centre < 0)
        here, less, more = (self._without_pairs(shared + step) for step in (0, -1, 1))
        # a known proposal that has both of the layers, or neither, shares as many as before
        spares, adds = self._dropped[:, swaps.spared - 1], self._dropped[:, swaps.added - 1]
        loses = (spares * (self._weights * (less - here))[:, None]).T @ (1 - adds)
        gains = ((1 - spares) * (self._weights * (more - here))[:, None]).T @ adds
        return self._weights @ here + loses + gains + self._expect_pairs(swaps)

    def chances(self, proposals: Sequence[Proposal]) -> np.ndarray:
        """(K,): the probability of each to stand before all known ones."""
        covariances = self._covariances(self._kept_before(proposals))
        known = np.einsum("kn,nk->k", covariances, cho_solve(self._factor, covariances.T))
        # of a proposal with itself: it has a pair more than kept layers
        variance = self._without_pairs(self.size) + PAIRS * (self.num_layers + 1 - self.size)
        deviations = np.sqrt(np.maximum(variance - known, 1e-12))
        return ndtr((self.best - covariances @ self._weights) / deviations)

    def _expect_pairs(self, swaps: Swaps) -> np.ndarray:
        """(spared, added): the part of `expect` that is due to the pairs of neighbouring kept layers.

        The spared layer splits the pair around it in two. After that, the two pairs that the added layer is in become
        one; where it was next to the spared layer, one of them is new.
        """
        spared, added, pairs = swaps.spared[:, None], swaps.added, self._pairs
        kept = np.array([0, *added[::-1], self.num_layers + 1])
        place = np.searchsorted(kept, spared)
        left, right = kept[place - 1], kept[place]
        # the kept layers before and after each added one, from the last; next to the spared layer, that is kept now
        before = np.where(added == right, spared, kept[-3::-1])
        after = np.where(added == left, spared, kept[:1:-1])
        parted = pairs[left, spared] + pairs[spared, right] - pairs[left, right]
        joined = pairs[before, after] - pairs[before, added] - pairs[added, after]
        return pairs[kept[:-1], kept[1:]].sum() + parted + joined

    def _covariances(self, before: np.ndarray) -> np.ndarray:
        """(K, N) to the known proposals."""
        shared = (before < 0).astype(float) @ self._dropped.T
        # equal entries: a layer that both drop (-1), or a pair that both have
        alike = np.stack([(before == known).sum(axis=1) for known in self._before], axis=1)
        return self._without_pairs(shared) + PAIRS * (alike - shared)

    def _without_pairs(self, shared: np.ndarray) -> np.ndarray:
        """Covariance by the number of shared dropped layers alone."""
        return shared + np.exp((shared - self.size) / LENGTH)

    def _kept_before(self, proposals: Collection[Proposal]) -> np.ndarray:
        """(K, L + 1): for each layer, and the end, the last one kept before it (0: the embeddings); -1 if dropped."""
        dropped = np.array(list(proposals), dtype=int).reshape(len(proposals), self.size)
        before = np.tile(np.arange(self.num_layers + 1), (len(proposals), 1))
        np.put_along_axis(before, dropped, 0, axis=1)
        before = np.maximum.accumulate(before, axis=1)
        np.put_along_axis(before, dropped - 1, -1, axis=1)
        return before


def _swaps_around(
    centres: Collection[Proposal], known: Collection[Proposal], standings: Standings
) -> dict[Proposal, float]:
    """Around each centre the `CONSIDERED` unknown swaps that are expected to stand best, with where they are."""
    found = {}
    for centre in centres:
        swaps = Swaps(centre, standings.num_layers)
        expected = standings.expect(swaps).ravel().round(9)
        order = np.argsort(expected, kind="stable")
        unknown = ((swap, expected[n]) for n in order if (swap := swaps[n]) not in known)
        found |= islice(unknown, CONSIDERED)
    return found


def _ranked(values: dict[Proposal, float]) -> list[Proposal]:
    """The proposals, the smallest value first; ties by the layers dropped."""
    return sorted(values, key=lambda proposal: (values[proposal], proposal))
