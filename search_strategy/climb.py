"""Refinement: hill climbing by swaps, the most promising first, as a model of what was evaluated has them.

Pure: an objective is given, which makes the layer calls.
"""

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from scipy.stats import norm, rankdata

from search_strategy.defaults import EVALUATIONS, SHARES
from search_strategy.proposals import Proposal, kept_layers

RIDGE = 0.5  # on 23 numbers of 12 layers, from 20 proposals and more

Objective = Callable[[list[Proposal]], list[float]]


def climb(
    objective: Objective,
    starts: Sequence[Proposal],
    num_layers: int,
    max_rounds: int,
    *,
    shares: Sequence[float] = SHARES,
) -> tuple[Proposal, int]:
    """The best proposal found, never worse than the best of `starts`, and the rounds begun.

    A round evaluates the most promising of the swaps that are left, as a model of all that is known foretells them.
    `shares` says how many of the swaps of the best proposal so far, of the second best, and so on, are ever tried. The
    climb ends when none is left, or after `max_rounds`. With `shares` of (1,) it ends in a proposal that no swap makes
    better; at the defaults the swaps least likely to help are not tried. `objective` gives the value (smaller is
    better) of each proposal.
    """
    known = dict(zip(starts, objective(list(starts)), strict=True))
    for rounds in range(max_rounds):
        weights, promising = fit_weights(known, num_layers), {}
        for centre, share in zip(_ranked(known), shares, strict=False):
            around = Swaps(centre, num_layers)
            foretold = around.foretell(weights)
            order = np.argsort(foretold, kind="stable")[: max(EVALUATIONS, round(share * len(foretold)))]
            unknown = ((around[number], foretold[number]) for number in order if around[number] not in known)
            promising |= dict(islice(unknown, EVALUATIONS))
        if not promising:
            return _ranked(known)[0], rounds
        tried = sorted(promising, key=promising.get)[:EVALUATIONS]
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

    def foretell(self, weights: np.ndarray) -> np.ndarray:
        """(K,): where each is expected by `fit_weights`, in standard deviations of what is known; smaller is better.

        What a layer brings is its own weight and those of its dropped neighbours; a layer that comes beside the one
        that goes has no neighbour there any more.
        """
        of_layer = np.concatenate(([0.0], weights[: self.num_layers], [0.0]))  # by the layer's number
        of_pair = np.concatenate(([0.0], weights[self.num_layers :], [0.0]))  # by that of the earlier of two
        dropped = np.isin(np.arange(self.num_layers + 2), self.proposal)

        def brings(layers: np.ndarray) -> np.ndarray:
            pairs = of_pair[layers - 1] * dropped[layers - 1] + of_pair[layers] * dropped[layers + 1]
            return of_layer[layers] + pairs

        spared, added = self.spared[:, None], self.added[None, :]
        apart = np.where(np.abs(spared - added) == 1, of_pair[np.minimum(spared, added)], 0.0)
        own = features([self.proposal], self.num_layers) @ weights
        return (own + brings(added) - brings(spared) - apart).ravel()


def fit_weights(known: dict[Proposal, float], num_layers: int) -> np.ndarray:
    """(2L - 1,): what each dropped layer, and each two dropped neighbours, add to where a proposal stands.

    A linear model fitted by ridge regression to the normal scores of the ranks of the known ones: so hopeless proposals
    do not bend it, and any scale will do. Solved over the proposals, of which there are few beside many layers.
    """
    ranks = rankdata(list(known.values()))
    scores = norm.ppf((ranks - 0.5) / len(ranks))
    design = features(list(known), num_layers)
    return design.T @ np.linalg.solve(design @ design.T + RIDGE * np.eye(len(design)), scores)


def features(proposals: Sequence[Proposal], num_layers: int) -> np.ndarray:
    """(K, 2L - 1): 1 for each layer that is dropped, and for each two neighbours that both are."""
    dropped = np.zeros((len(proposals), num_layers))
    for row, proposal in zip(dropped, proposals, strict=True):
        row[np.array(proposal) - 1] = 1
    return np.hstack([dropped, dropped[:, :-1] * dropped[:, 1:]])


def _ranked(values: dict[Proposal, float]) -> list[Proposal]:
    """The proposals, the smallest value first; ties by the layers dropped."""
    return sorted(values, key=lambda proposal: (values[proposal], proposal))
