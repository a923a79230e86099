"""The refinement on known objectives."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy.stats import norm, rankdata, spearmanr

from search_strategy import climb as climb_module
from search_strategy.climb import LENGTH, NOISE, PAIRS, Standings, Swaps, climb
from search_strategy.defaults import EVALUATIONS

STARTS = [(1, 2, 3, 4), (2, 4, 6, 8)]
STARTS_OF_12 = [(1, 2, 3, 4, 5, 6), (2, 4, 6, 8, 10, 12)]


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


def followers(proposal, num_layers):
    """The pairs of layers that follow each other, the embeddings (0) and the end among them."""
    return set(pairwise([0, *(layer for layer in range(1, num_layers + 2) if layer not in proposal)]))


def pairs_table(num_layers, size, seed):
    """What it costs to go from a layer to the next one that is kept."""
    costs = np.random.default_rng(seed).normal(size=(num_layers + 1, num_layers + 2))
    proposals = combinations(range(1, num_layers + 1), size)
    return {proposal: sum(costs[pair] for pair in followers(proposal, num_layers)) for proposal in proposals}


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
def test_where_no_chance_is_too_small_it_ends_in_a_local_optimum(seed):
    table = random_table(8, 4, seed)
    best, rounds = climb(remember(table)[0], STARTS, 8, max_rounds=100, chance=0)
    assert table[best] <= min(table[start] for start in STARTS)
    assert all(table[best] <= table[other] for other in Swaps(best, 8))
    assert climb(remember(table)[0], STARTS, 8, max_rounds=rounds, chance=0) == (best, rounds)


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


def test_what_pairs_of_kept_layers_cost_is_learned(monkeypatch):
    found = {0.0: 0, PAIRS: 0}
    for weight in found:
        monkeypatch.setattr(climb_module, "PAIRS", weight)
        for seed in range(24):
            table = pairs_table(10, 5, seed)
            starts = [list(table)[i] for i in np.random.default_rng(seed).choice(len(table), 10, replace=False)]
            best, _ = climb(remember(table)[0], starts, 10, max_rounds=100, chance=0.1)
            found[weight] += table[best] == min(table.values())
    assert found[PAIRS] >= 20 and found[PAIRS] > found[0.0]


def test_late_layers_are_tried_first_where_nothing_tells_swaps_apart():
    objective, asked = remember(random_table(8, 4, 0))
    climb(objective, [(2, 4, 6, 8)], 8, max_rounds=1)
    assert asked[1] == [(2, 4, 6, 7), (2, 4, 5, 6)]


def test_it_looks_two_swaps_far():
    far = 0
    for seed in range(10):
        objective, asked = remember(interacting_table(12, 6, seed))
        climb(objective, STARTS_OF_12, 12, max_rounds=100)
        known = set(STARTS_OF_12)
        for call in asked[1:]:
            far += sum(min(len({*proposal} - {*other}) for other in known) == 2 for proposal in call)
            known |= set(call)
    assert far > 0


def test_others_lead_on_where_the_best_is_a_dead_end(monkeypatch):
    found = {1: 0, 5: 0}
    for centres in found:
        monkeypatch.setattr(climb_module, "CENTRES", centres)
        for seed in range(12):
            table = interacting_table(12, 6, seed)
            starts = [list(table)[i] for i in np.random.default_rng(seed).choice(len(table), 10, replace=False)]
            best, _ = climb(remember(table)[0], starts, 12, max_rounds=100)
            found[centres] += table[best] == min(table.values())
    assert found[5] >= 10 and found[5] > found[1]


def test_a_smaller_chance_evaluates_more():
    table = interacting_table(12, 6, 0)
    asked = []
    for chance in (0.1, 0.01, 0):
        objective, calls = remember(table)
        climb(objective, STARTS_OF_12, 12, max_rounds=1000, chance=chance)
        asked.append(sum(map(len, calls)))
    assert asked == sorted(asked) and asked[0] < asked[-1]


def test_it_stops_after_its_rounds():
    table = additive_table(10, 4, 0)
    worst = max(table, key=table.get)
    assert climb(remember(table)[0], [worst], 10, max_rounds=0) == (worst, 0)
    objective, asked = remember(table)
    assert climb(objective, [worst], 10, max_rounds=2)[1] == 2
    assert [len(call) for call in asked] == [1, EVALUATIONS, EVALUATIONS]


def plain_standings(known, others, num_layers):
    """Mean and deviation of the process at others, by the textbook."""

    def covariance(some, more):
        shared = np.array([[len(set(a) & set(b)) for b in more] for a in some])
        pairs = np.array([[len(followers(a, num_layers) & followers(b, num_layers)) for b in more] for a in some])
        return shared + PAIRS * pairs + np.exp((shared - len(some[0])) / LENGTH)

    proposals = list(known)
    scores = norm.ppf((rankdata(list(known.values())) - 0.5) / len(known))
    inverse = np.linalg.inv(covariance(proposals, proposals) + NOISE * np.eye(len(proposals)))
    across = covariance(others, proposals)
    variances = np.diag(covariance(others, others) - across @ inverse @ across.T)
    return across @ inverse @ scores, np.sqrt(variances), scores.min()


@pytest.mark.parametrize("centre", [(2, 3, 6), (1, 2, 3), (8, 9, 10), (1, 5, 10)])
def test_expectations_and_chances_are_those_of_the_process(centre):
    table = random_table(10, 3, 0)
    known = {p: table[p] for p in list(table)[::9]}
    around = Swaps(centre, 10)
    means, deviations, best = plain_standings(known, list(around), 10)
    standings = Standings(known, 10)
    np.testing.assert_allclose(standings.expect(around).ravel(), means, atol=1e-9)
    np.testing.assert_allclose(standings.chances(list(around)), norm.cdf((best - means) / deviations), atol=1e-7)


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


def test_expectations_follow_an_additive_objective_on_any_scale():
    table = additive_table(10, 4, 0)
    proposals = [list(table)[i] for i in np.random.default_rng(0).permutation(len(table))]
    known, around = {proposal: table[proposal] for proposal in proposals[:60]}, Swaps(proposals[60], 10)
    expected = Standings(known, 10).expect(around)
    assert spearmanr(expected.ravel(), [table[proposal] for proposal in around]).statistic > 0.95
    stretched = {proposal: np.exp(value) - 9 for proposal, value in known.items()}
    assert np.array_equal(Standings(stretched, 10).expect(around), expected)
