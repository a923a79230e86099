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

LENGTH = 0.7  # in swaps: how far what is learned of one proposal reaches beyond what is learned of its layers
NOISE = 0.05  # variance of what a proposal's standing owes to none of its layers; the standings have 1
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

    A round evaluates the swaps of the best proposals so far that are most likely to be better than all of them, as
    `Standings` of what is known foretell. The climb ends when none has a `chance` to be, or after `max_rounds`. With a
    `chance` of 0 it ends in a proposal that no swap makes better. `objective` gives the value (smaller is better) of
    each proposal.
    """
    known = dict(zip(starts, objective(list(starts)), strict=True))
    for rounds in range(max_rounds):
        standings, promising = Standings(known, num_layers), {}
        for centre in _ranked(known)[:CENTRES]:
            around = Swaps(centre, num_layers)
            order = np.argsort(standings.expect(around), axis=None, kind="stable")
            unknown = (swap for swap in (around[number] for number in order) if swap not in known)
            promising |= dict.fromkeys(islice(unknown, CONSIDERED))
        # rounded, so that equal ones are told apart by their layers and not by the processor
        chances = dict(zip(promising, standings.chances(list(promising)).round(9), strict=True))
        likeliest = sorted(chances, key=lambda swap: (-chances[swap], swap))[:EVALUATIONS]
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
    objective will do. Two proposals of k layers that share s of them, k - s swaps apart, have the covariance
    s + exp(-(k - s) / `LENGTH`): a weight for each dropped layer, and a part that is lost within a few swaps.

    Args:
        known: proposals of one size with their objectives, smaller is better.
    """

    def __init__(self, known: dict[Proposal, float], num_layers: int):
        scores = ndtri((rankdata(list(known.values())) - 0.5) / len(known))
        self.num_layers, self.size, self.best = num_layers, len(next(iter(known))), scores.min()
        self._dropped = self._mark(known)
        covariances = self._covariance(self._dropped @ self._dropped.T)
        self._factor = cho_factor(covariances + NOISE * np.eye(len(known)))
        self._weights = cho_solve(self._factor, scores)

    def expect(self, swaps: Swaps) -> np.ndarray:
        """(spared, added): where each of the swaps is expected to stand.

        A swap shares with a known proposal what its centre does, less one if it spares a layer of it, and one more if
        it adds one. So the sum over known proposals, for all swaps at once, is two products of matrices.
        """
        shared = self._dropped @ self._mark([swaps.proposal])[0]
        here, less, more = (self._covariance(shared + step) for step in (0, -1, 1))
        spares, adds = self._dropped[:, swaps.spared - 1], self._dropped[:, swaps.added - 1]
        loses = (spares * (self._weights * (less - here))[:, None]).T @ (1 - adds)
        gains = ((1 - spares) * (self._weights * (more - here))[:, None]).T @ adds
        return self._weights @ here + loses + gains

    def chances(self, proposals: Sequence[Proposal]) -> np.ndarray:
        """(K,): the probability of each to stand before all known ones."""
        covariances = self._covariance(self._mark(proposals) @ self._dropped.T)
        known = np.einsum("kn,nk->k", covariances, cho_solve(self._factor, covariances.T))
        deviations = np.sqrt(np.maximum(self._covariance(self.size) - known, 1e-12))
        return ndtr((self.best - covariances @ self._weights) / deviations)

    def _covariance(self, shared: np.ndarray) -> np.ndarray:
        return shared + np.exp((shared - self.size) / LENGTH)

    def _mark(self, proposals: Collection[Proposal]) -> np.ndarray:
        """(K, L): 1 for each layer that is dropped."""
        marks = np.zeros((len(proposals), self.num_layers))
        for row, proposal in zip(marks, proposals, strict=True):
            row[np.array(proposal) - 1] = 1
        return marks


def _ranked(values: dict[Proposal, float]) -> list[Proposal]:
    """The proposals, the smallest value first; ties by the layers dropped."""
    return sorted(values, key=lambda proposal: (values[proposal], proposal))
