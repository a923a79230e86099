"""Beyond the K proposals of the coarse search: racing hundreds of them, climbing from the best, and how sure the winner is."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from search_strategy.proposals import Proposal, kept_layers

Objective = Callable[[list[Proposal]], list[float]]


def swaps(proposal: Proposal, num_layers: int) -> Iterator[list[Proposal]]:
    """Every proposal that differs by one swap of a dropped against a kept layer, in groups.

    A group keeps one of the dropped layers, and drops each of the kept ones in its place. The last layer comes first: its
    group shares the longest prefixes of kept layers, so it costs the fewest layer calls.
    """
    kept = kept_layers(proposal, num_layers)
    for spared in reversed(proposal):
        yield [tuple(sorted({*proposal, layer} - {spared})) for layer in kept]


def climb(objective: Objective, starts: Sequence[Proposal], num_layers: int, max_rounds: int) -> tuple[Proposal, int]:
    """Hill climbing by swaps from the best of `starts`.

    A round tries the groups of swaps in turn and moves to the best of the first group that holds a better proposal. It ends
    in a round that finds none, where no swap helps, or after `max_rounds`. `objective` gives the value (smaller is better) of
    each proposal, and is expected to remember what it has evaluated. Returns the best proposal seen, never worse than the
    best start, and the rounds made.
    """
    value, best = min(zip(objective(list(starts)), starts, strict=True))
    for rounds in range(max_rounds):
        for group in swaps(best, num_layers):
            better, candidate = min(zip(objective(group), group, strict=True))
            if better < value:
                value, best = better, candidate
                break
        else:
            return best, rounds + 1
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
