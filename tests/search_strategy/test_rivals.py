"""The rivals choose what their papers say."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import norm, spearmanr

from data import load_pairs
from measures import KINDS
from models import load_clip
from search_strategy.climb import climb
from search_strategy.coarse import SCORES, coarse_score
from search_strategy.fine import FineSearch
from search_strategy.rivals import (
    BEST,
    DEPTHS,
    AllSubsets,
    Counted,
    best_block,
    block_influence,
    compare_pairs,
    every_other,
    greedy_by_loss,
    judge_scores,
    judge_searches,
    last_layers,
    random_rivals,
)

SUBSETS = list(combinations(range(1, 9), 4))


@pytest.fixture(scope="module")
def truth():
    """Drawn objectives, better where the first layers are kept."""
    rng = np.random.default_rng(0)
    return AllSubsets({proposal: float(rng.normal() - sum(proposal)) for proposal in SUBSETS})


@pytest.fixture(scope="module")
def draws():
    """Matrices of two measures from random walks, twice."""
    walks = np.random.default_rng(1).normal(size=(2, 2, 9, 30)).cumsum(axis=2)
    return [{name: np.corrcoef(walk) for name, walk in zip(("dc", "cka"), of_draw, strict=True)} for of_draw in walks]


def test_layer_calls_are_counted_as_a_fine_search_of_its_own_makes_them(tiny_clip, tiny_pairs):
    pairs = load_pairs(str(tiny_pairs), "validation")
    shared = FineSearch.from_pairs(load_clip(str(tiny_clip), "cpu"), pairs, loss_batch_size=20)
    shared.evaluate(combinations(range(1, 5), 2))
    own, counted = shared.without_memory(), Counted(shared.objectives, 4)
    assert climb(counted.objectives, [(1, 2)], 4, 9) == climb(own.objectives, [(1, 2)], 4, 9)
    costs = len(own.evaluated), own.layer_calls, own.layer_calls_unshared
    assert tuple(counted.costs.values()) == costs


def test_climbs_from_random_proposals_are_runs_of_one_outcome(truth):
    def objective(proposals):
        return [truth.objective[proposal] for proposal in proposals]

    best, median, climbs = random_rivals(objective, 8, 4, 20, 7, np.random.default_rng(0))
    assert best.costs == median.costs and best.costs["proposals_evaluated"] == 7
    assert truth.objective[best.proposal] <= truth.objective[median.proposal]
    assert len(climbs.runs) == 7 and climbs.proposal == climbs.runs[3].proposal
    values = objective([run.proposal for run in climbs.runs])
    assert values == sorted(values) and values[0] <= truth.objective[best.proposal]
    assert all(run.costs["proposals_evaluated"] > 1 for run in climbs.runs)
    assert len(random_rivals(objective, 8, 4, 0, 7, np.random.default_rng(0))) == 2  # nothing is refined


def test_scores_are_judged_against_all_objectives_for_every_draw(truth, draws):
    rows = {(row["measure"], row["score"]): row for row in judge_scores(draws, truth)}
    measured = {(name, score) for name in draws[0] for score in SCORES}
    assert set(rows) == measured | {("layer 1 is kept", "no matrix"), ("the first layers", "no matrix")}
    qualities = np.array([-truth.objective[proposal] for proposal in SUBSETS])
    kept = np.array([1 not in proposal for proposal in SUBSETS])
    for name, score in measured:
        row = rows[name, score]
        for number, matrices in enumerate(draws):
            scores = np.array([coarse_score(matrices[name], proposal, score) for proposal in SUBSETS])
            assert row["spearman"][number] == pytest.approx(spearmanr(scores, qualities).statistic)
            within = spearmanr(scores[kept], qualities[kept]).statistic
            assert row["spearman_layer_1_kept"][number] == pytest.approx(within)
            ten = sorted(zip(-scores, SUBSETS, strict=True))[:10]
            value = min(truth.objective[proposal] for _, proposal in ten)
            assert row["rank_of_best_within"][10][number] == 1 + sum(o < value for o in truth.objective.values())
            assert row["regret_at_10"][number] == pytest.approx(value - min(truth.objective.values()))
        ranks = [np.array(row["rank_of_best_within"][depth]) for depth in DEPTHS]
        assert all((later <= before).all() for before, later in zip(ranks, ranks[1:], strict=False))


def test_rules_without_a_matrix_are_judged_too(truth, draws):
    bit, order = judge_scores(draws, truth)[:2]
    kept = [1 not in proposal for proposal in SUBSETS]
    qualities = [-truth.objective[proposal] for proposal in SUBSETS]
    assert bit["spearman"] == [pytest.approx(spearmanr(kept, qualities).statistic)]
    assert bit["spearman_layer_1_kept"] == [None]
    assert order["spearman"] == [pytest.approx(spearmanr(range(len(SUBSETS)), qualities).statistic)]
    assert order["rank_of_best_within"][1] == [truth.rank(truth.objective[5, 6, 7, 8])]


def test_among_the_best_the_rest_does_not_count(draws):
    proposals = list(combinations(range(1, 13), 4))
    rng = np.random.default_rng(3)
    values = dict(zip(proposals, rng.normal(size=len(proposals)).tolist(), strict=True))
    matrix = np.corrcoef(rng.normal(size=(13, 30)).cumsum(axis=0))
    row = judge_scores([{"dc": matrix}], AllSubsets(values))[2]
    best = sorted(proposals, key=values.get)[:BEST]
    scores = [coarse_score(matrix, proposal, row["score"]) for proposal in best]
    assert row["spearman_best"] == [pytest.approx(spearmanr(scores, [-values[p] for p in best]).statistic)]


def test_the_default_search_is_replayed_for_every_measure_and_draw(truth, draws):
    for row in judge_searches(draws, 4, truth, refine_rounds=20):
        assert row["measure"] in KINDS
        assert [len(row[name]) for name in ("rank", "regret", "layer_calls")] == [2, 2, 2]
        for rank, regret in zip(row["rank"], row["regret"], strict=True):
            assert (rank == 1) == (regret == 0) and regret >= 0


def test_the_interval_of_a_difference_is_paired():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=4000)
    found = compare_pairs(reference + 0.1 + rng.normal(scale=0.1, size=4000), reference)
    assert found["difference"] == pytest.approx(0.1, abs=0.01)
    assert found["interval"] == pytest.approx(norm.ppf(0.975) * 0.1 / np.sqrt(4000), rel=0.05)
    assert compare_pairs(reference, reference) == {"difference": 0.0, "interval": 0.0}


def test_every_other_has_two_phases():
    assert every_other(12, 6, 0) == (2, 4, 6, 8, 10, 12)
    assert every_other(12, 6, 1) == (1, 3, 5, 7, 9, 11)


@pytest.mark.parametrize("num_layers", [5, 12, 24])
def test_every_other_drops_as_many_layers_as_asked(num_layers):
    for k in range(1, num_layers):
        for phase in (0, 1):
            layers = every_other(num_layers, k, phase)
            assert len(set(layers)) == k and min(layers) >= 1 and max(layers) <= num_layers
            assert max(np.diff(layers), default=0) - min(np.diff(layers), default=0) <= 1


def test_the_last_layers_are_dropped_where_the_first_are_kept():
    assert last_layers(12, 3) == (10, 11, 12)


def test_best_block_is_the_most_similar_stretch():
    matrix = np.random.default_rng(0).uniform(size=(9, 9))
    values = {tuple(range(a, a + 3)): matrix[a - 1, a + 2] for a in range(1, 7)}
    assert best_block(matrix, 3) == max(values, key=values.get)


def test_block_influence_takes_the_layers_that_change_least():
    matrix = np.eye(6)
    for layer, similarity in enumerate([0.2, 0.9, 0.1, 0.8, 0.9], start=1):
        matrix[layer - 1, layer] = similarity
    assert block_influence(matrix, 3) == (2, 4, 5)


def test_greedy_drops_the_least_harmful_layer_at_each_step():
    harm = {1: 9, 2: 1, 3: 4, 4: 2}
    both_2_and_4 = 10  # together they hurt more than each alone

    def objective(proposals):
        return [sum(harm[layer] for layer in p) + both_2_and_4 * ({2, 4} <= set(p)) for p in proposals]

    assert greedy_by_loss(objective, num_layers=4, num_clip_layers=1) == (2,)
    assert greedy_by_loss(objective, num_layers=4, num_clip_layers=2) == (2, 3)
