"""Refinement: hill climbing by swaps, the most promising first, as a model of what was evaluated has them.

Pure: an objective is given, which makes the layer calls.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm, rankdata

from search_strategy.defaults import CENTRES, EVALUATIONS, SHARE
from search_strategy.proposals import Proposal, kept_layers

RIDGE = 0.5  # on 23 numbers of 12 layers, from 20 proposals and more

Objective = Callable[[list[Proposal]], list[float]]


def climb(
    objective: Objective,
    starts: Sequence[Proposal],
    num_layers: int,
    max_rounds: int,
    *,
    centres: int = CENTRES,
    share: float = SHARE,
) -> tuple[Proposal, int]:
    """The best proposal found, never worse than the best of `starts`, and the rounds begun.

    A round evaluates the most promising of the swaps that are left: of those of the `centres` best proposals so far,
    the better `share`, as `foretell` has them from all that is known. The climb ends when none is left, or after
    `max_rounds`. With one centre and a share of 1 it ends in a proposal that no swap makes better; at the defaults
    the swaps least likely to help are not tried. `objective` gives the value (smaller is better) of each proposal.
    """
    known = dict(zip(starts, objective(list(starts)), strict=True))
    for rounds in range(max_rounds):
        promising = {}
        for centre in _ranked(known)[:centres]:
            around = swaps(centre, num_layers)
            foretold = dict(zip(around, foretell(known, around, num_layers), strict=True))
            better = sorted(foretold, key=foretold.get)[: max(EVALUATIONS, round(share * len(around)))]
            promising |= {proposal: foretold[proposal] for proposal in better if proposal not in known}
        if not promising:
            return _ranked(known)[0], rounds
        tried = sorted(promising, key=promising.get)[:EVALUATIONS]
        known |= zip(tried, objective(tried), strict=True)
    return _ranked(known)[0], max_rounds


def swaps(proposal: Proposal, num_layers: int) -> list[Proposal]:
    """The proposals that keep one of the dropped layers, and drop one of the kept layers in its place.

    The late layers first: these share the longest prefixes, so they are tried first while nothing tells swaps apart.
    """
    kept = kept_layers(proposal, num_layers)
    return [tuple(sorted({*proposal, layer} - {spared})) for spared in proposal[::-1] for layer in kept[::-1]]


def foretell(known: dict[Proposal, float], proposals: Sequence[Proposal], num_layers: int) -> np.ndarray:
    """(K,): where each proposal is expected among the known ones, in standard deviations; smaller is better.

    A linear model of which layers are dropped, and which of these are neighbours, fitted by ridge regression to the
    normal scores of the ranks of the known ones: so hopeless proposals do not bend it, and any scale will do.
    """
    ranks = rankdata(list(known.values()))
    scores = norm.ppf((ranks - 0.5) / len(ranks))
    design = _features(list(known), num_layers)
    weights = np.linalg.solve(design.T @ design + RIDGE * np.eye(design.shape[1]), design.T @ scores)
    return _features(proposals, num_layers) @ weights


def _features(proposals: Sequence[Proposal], num_layers: int) -> np.ndarray:
    """(K, 2L - 1): 1 for each layer that is dropped, and for each two neighbours that both are."""
    dropped = np.zeros((len(proposals), num_layers))
    for row, proposal in zip(dropped, proposals, strict=True):
        row[np.array(proposal) - 1] = 1
    return np.hstack([dropped, dropped[:, :-1] * dropped[:, 1:]])


def _ranked(values: dict[Proposal, float]) -> list[Proposal]:
    """The proposals, the smallest value first; ties by the layers dropped."""
    return sorted(values, key=lambda proposal: (values[proposal], proposal))
