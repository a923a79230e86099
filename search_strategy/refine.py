"""Beyond the K proposals of the coarse search: racing hundreds of them, climbing from the best, and how sure the winner is."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from search_strategy.proposals import Proposal, kept_layers

Objective = Callable[[list[Proposal]], list[float]]


def swaps(proposal: Proposal, spared: int, num_layers: int) -> list[Proposal]:
    """The proposals that keep the layer `spared`, one of the dropped, and drop one of the kept layers in its place."""
    others = {*proposal} - {spared}
    return [tuple(sorted({*others, layer})) for layer in kept_layers(proposal, num_layers)]


def climb(objective: Objective, starts: Sequence[Proposal], num_layers: int, max_rounds: int) -> tuple[Proposal, int]:
    """Hill climbing by swaps from the best of `starts`.

    Goes through the dropped layers from the last to the first, over and over: the swaps of a late layer share the longest
    prefixes of kept layers, so they cost the fewest layer calls. For each layer it moves to the best of its swaps, if that is
    better, and goes on below it. The climb ends when no swap of any dropped layer helps, or after `max_rounds` times as many
    layers as are dropped. `objective` gives the value (smaller is better) of each proposal, and is expected to remember what
    it has evaluated. Returns the best proposal seen, never worse than the best start, and the rounds begun.
    """
    value, best = min(zip(objective(list(starts)), starts, strict=True))
    spared, in_vain = num_layers + 1, 0
    for tried in range(max_rounds * len(best)):
        if in_vain == len(best):
            return best, math.ceil(tried / len(best))
        spared = max((layer for layer in best if layer < spared), default=best[-1])
        candidates = swaps(best, spared, num_layers)
        better, candidate = min(zip(objective(candidates), candidates, strict=True))
        in_vain += 1
        if better < value:
            value, best, in_vain = better, candidate, 0
    return best, max_rounds


def race(
    objective_on: Callable[[list[Proposal], np.ndarray], list[float]],
    proposals: Sequence[Proposal],
    num_pairs: int,
    generator: np.random.Generator,
    *,
    first_pairs: int = 250,
    survivors: int = 10,
) -> tuple[list[Proposal], int]:
    """Successive halving (Karnin et al. 2013; Jamieson and Talwalkar 2016) over growing parts of the validation pairs.

    Round r evaluates those still in the race on the first `first_pairs` * 2^r pairs of a permutation drawn by `generator`
    and keeps the better half; it stops as soon as at most `survivors` are left or a round would use all pairs.
    Returns those left, best first, and the pairs evaluated (pairs times proposals).
    """
    order = generator.permutation(num_pairs)
    left, size, evaluated = list(proposals), first_pairs, 0
    while len(left) > survivors and size < num_pairs:
        values = objective_on(left, order[:size])
        evaluated += size * len(left)
        ranked = [proposal for _, proposal in sorted(zip(values, left, strict=True))]
        left, size = ranked[: max(survivors, (len(left) + 1) // 2)], 2 * size
    return left, evaluated


def share_not_worse(
    values: np.ndarray, winner: np.ndarray, generator: np.random.Generator, num_resamples: int = 1000
) -> np.ndarray:
    """Bootstrap over pairs: for each proposal the share of resamples in which it is at least as good as the winner.

    `values`: (K, n) per pair, smaller is better; `winner`: (n,) likewise. 0.5 says that nothing tells them apart; below
    0.05 the winner is better beyond the noise of these pairs. Returns (K,).
    """
    differences = (values - winner).T  # (n, K)
    num_pairs = len(winner)
    counts = generator.multinomial(num_pairs, np.full(num_pairs, 1 / num_pairs), size=num_resamples)  # (resamples, n)
    means = counts @ differences / num_pairs
    return ((means < 0) + 0.5 * (means == 0)).mean(axis=0)
