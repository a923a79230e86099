"""Beyond the K proposals of the coarse search: racing hundreds of them, climbing from the best, and how sure the winner is."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from search_strategy.proposals import Proposal, kept_layers

Objective = Callable[[list[Proposal]], list[float]]


def neighbours(proposal: Proposal, num_layers: int) -> Iterator[Proposal]:
    """Every proposal of the same size that differs by one swap of a dropped against a kept layer."""
    for dropped in proposal:
        for kept in kept_layers(proposal, num_layers):
            yield tuple(sorted({*proposal, kept} - {dropped}))


def shifts(proposal: Proposal, num_layers: int) -> Iterator[Proposal]:
    """The small moves among them: one dropped layer moves to a kept layer next to it."""
    for dropped in proposal:
        for kept in (dropped - 1, dropped + 1):
            if 1 <= kept <= num_layers and kept not in proposal:
                yield tuple(sorted({*proposal, kept} - {dropped}))


def climb(objective: Objective, starts: Sequence[Proposal], num_layers: int, max_rounds: int) -> tuple[Proposal, int]:
    """Hill climbing by swaps from the best of `starts`: first the small moves, and where none helps, all swaps.

    `objective` gives the value (smaller is better) of each proposal, and is expected to remember what it has evaluated.
    A round evaluates the neighbours of the best proposal so far and moves to the best of them; it ends when no swap helps
    or after `max_rounds`. Returns the best proposal seen, never worse than the best start, and the rounds made.
    """
    best_value, best = min(zip(objective(list(starts)), starts, strict=True))
    rounds = 0
    moves = (shifts, neighbours)
    step = 0
    while rounds < max_rounds and step < len(moves):
        candidates = list(moves[step](best, num_layers))
        rounds += 1
        value, candidate = min(zip(objective(candidates), candidates, strict=True), default=(np.inf, best))
        if value < best_value:
            best_value, best, step = value, candidate, 0
        else:
            step += 1
    return best, rounds


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
