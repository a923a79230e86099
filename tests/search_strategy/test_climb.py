"""The refinement on known objectives."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import spearmanr

from search_strategy.climb import Swaps, climb, features, fit_weights
from search_strategy.defaults import EVALUATIONS, SHARES

STARTS = [(1, 2, 3, 4), (2, 4, 6, 8)]


def remember(values):
    """An objective over a table, and the proposals it was asked for, call by call."""
    asked = []

    def objective(proposals):
        asked.append(proposals)
        return [values[proposal] for proposal in proposals]

    return objective, asked


def random_table(num_layers, size, seed):
    rng = np.random.default_rng(seed)
    return {proposal: rng.normal() for proposal in combinations(range(1, num_layers + 1), size)}


def additive_table(num_layers, size, seed):
    weights = np.random.default_rng(seed).permutation(num_layers + 1).tolist()
    proposals = combinations(range(1, num_layers + 1), size)
    return {proposal: sum(weights[layer] for layer in proposal) for proposal in proposals}


def interacting_table(num_layers, size, seed):
    """What a layer costs depends on every other one that goes."""
    rng = np.random.default_rng(seed)
    alone, together = rng.normal(size=num_layers), rng.normal(size=(num_layers, num_layers))
    dropped = {p: np.isin(np.arange(1, num_layers + 1), p) for p in combinations(range(1, num_layers + 1), size)}
    return {p: float(alone[mask].sum() + together[np.ix_(mask, mask)].sum() / 2) for p, mask in dropped.items()}


def test_swaps_keep_one_dropped_layer_and_drop_a_kept_one_in_its_place():
    plain = [p for p in combinations(range(1, 8), 3) if len(set(p) & {2, 3, 6}) == 2]
    assert sorted(Swaps((2, 3, 6), 7)) == plain


@pytest.mark.parametrize("seed", range(20))
def test_with_every_swap_of_one_centre_it_ends_in_a_local_optimum(seed):
    table = random_table(8, 4, seed)
    best, rounds = climb(remember(table)[0], STARTS, 8, max_rounds=100, shares=(1,))
    assert table[best] <= min(table[start] for start in STARTS)
    assert all(table[best] <= table[other] for other in Swaps(best, 8))
    assert climb(remember(table)[0], STARTS, 8, max_rounds=rounds, shares=(1,)) == (best, rounds)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_never_worse_than_its_starts_and_evaluates_nothing_twice(seed):
    table = random_table(8, 4, seed)
    objective, asked = remember(table)
    best, rounds = climb(objective, STARTS, 8, max_rounds=100)
    every = [proposal for call in asked for proposal in call]
    assert table[best] == min(table[proposal] for proposal in every)
    assert len(every) == len(set(every)) and len(asked) == 1 + rounds


@pytest.mark.parametrize("seed", range(10))
def test_it_finds_the_best_of_an_additive_objective_with_few_evaluations(seed):
    table = additive_table(12, 6, seed)
    objective, asked = remember(table)
    best, _ = climb(objective, [(1, 3, 5, 7, 9, 11), (1, 2, 3, 4, 5, 6)], 12, max_rounds=100)
    assert table[best] == min(table.values())
    assert sum(map(len, asked)) < 0.12 * len(table)


def test_the_second_best_leads_on_where_the_best_is_a_dead_end():
    one_centre = (1,)
    found = dict.fromkeys([SHARES, one_centre], 0)
    for seed in range(30):
        table = interacting_table(12, 6, seed)
        starts = [list(table)[i] for i in np.random.default_rng(seed).choice(len(table), 10, replace=False)]
        for shares in found:
            best, _ = climb(remember(table)[0], starts, 12, max_rounds=100, shares=shares)
            found[shares] += table[best] == min(table.values())
    assert found[SHARES] >= 24 and found[SHARES] > found[one_centre]


def test_it_stops_after_its_rounds():
    table = additive_table(10, 4, 0)
    worst = max(table, key=table.get)
    assert climb(remember(table)[0], [worst], 10, max_rounds=0) == (worst, 0)
    objective, asked = remember(table)
    assert climb(objective, [worst], 10, max_rounds=2)[1] == 2
    assert [len(call) for call in asked] == [1, EVALUATIONS, EVALUATIONS]


def foretell(known, others):
    return features(others, 10) @ fit_weights(known, 10)


@pytest.mark.parametrize("centre", [(2, 3, 6), (1, 2, 3), (8, 9, 10), (1, 5, 10)])
def test_swaps_are_foretold_as_all_proposals_are(centre):
    rng = np.random.default_rng(0)
    weights, around = rng.normal(size=19), Swaps(centre, 10)
    np.testing.assert_allclose(around.foretell(weights), features(list(around), 10) @ weights, atol=1e-12)


def test_a_thousand_layers_are_climbed():
    weights = np.random.default_rng(0).normal(size=1000)
    asked = []

    def objective(proposals):
        asked.extend(proposals)
        return [float(weights[np.array(proposal) - 1].sum()) for proposal in proposals]

    start = tuple(range(1, 1001, 2))
    best, rounds = climb(objective, [start, tuple(range(1, 501))], 1000, max_rounds=5)
    assert rounds == 5 and len(asked) == 2 + 5 * EVALUATIONS
    assert objective([best]) <= objective([start])


def test_what_is_foretold_follows_an_additive_objective_on_any_scale():
    table = additive_table(10, 4, 0)
    rng = np.random.default_rng(0)
    proposals = [list(table)[i] for i in rng.permutation(len(table))]
    known, others = {proposal: table[proposal] for proposal in proposals[:60]}, proposals[60:]
    foretold = foretell(known, others)
    assert spearmanr(foretold, [table[proposal] for proposal in others]).statistic > 0.95
    stretched = {proposal: np.exp(value) - 9 for proposal, value in known.items()}
    assert np.array_equal(foretell(stretched, others), foretold)


def test_neighbours_that_hurt_together_are_learned():
    table = {p: float(sum(layer + 1 in p for layer in p)) for p in combinations(range(1, 11), 4)}
    proposals = [list(table)[i] for i in np.random.default_rng(0).permutation(len(table))]
    foretold = foretell({proposal: table[proposal] for proposal in proposals[:80]}, proposals[80:])
    assert spearmanr(foretold, [table[proposal] for proposal in proposals[80:]]).statistic > 0.9
