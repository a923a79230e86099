"""Race and p-values on known objectives; the whole of it on the bundled model."""

from itertools import combinations

import numpy as np
import pytest

from common.files import DEFAULT_DATASET, DEFAULT_MODEL
from data import load_pairs
from models import load_clip
from search_strategy.coarse import coarse_score, coarse_search
from search_strategy.fine import FineSearch
from search_strategy.verify import p_values_of_worse, propose, race, verify
from tasks.distance import Distance


def random_table(num_layers, size, seed):
    rng = np.random.default_rng(seed)
    return {proposal: rng.normal() for proposal in combinations(range(1, num_layers + 1), size)}


def noisy_objective(table, noise):
    """Values whose error shrinks with the number of pairs, as a mean over pairs would."""

    def objective_on(proposals, rows):
        return [table[p] + noise[p][rows].mean() for p in proposals]

    return objective_on


def test_race_keeps_the_best_where_the_noise_is_smaller_than_the_gaps():
    rng = np.random.default_rng(0)
    table = {p: float(rank) for rank, p in enumerate(combinations(range(1, 10), 4))}
    noise = {p: rng.normal(scale=1, size=2000) for p in table}
    left, evaluated = race(noisy_objective(table, noise), list(table), 2000, rng, first_pairs=250)
    assert len(left) == 16  # 126 -> 63 -> 32 -> 16, and the next round would use all 2,000 pairs
    assert left[0] == (1, 2, 3, 4)
    assert evaluated == 126 * 250 + 63 * 500 + 32 * 1000 < 126 * 2000


def test_race_with_few_proposals_evaluates_nothing():
    proposals = list(combinations(range(1, 5), 2))
    left, evaluated = race(None, proposals, 2000, np.random.default_rng(0))
    assert (left, evaluated) == (proposals, 0)


def test_race_is_the_same_for_the_same_seed():
    table = random_table(9, 4, 1)
    noise = {p: np.random.default_rng(i).normal(scale=9, size=1000) for i, p in enumerate(table)}
    runs = [
        race(noisy_objective(table, noise), list(table), 1000, np.random.default_rng(seed), first_pairs=10)[0]
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_p_values_tell_a_clear_loser_from_a_tie():
    rng = np.random.default_rng(0)
    winner = rng.normal(size=500)
    values = np.stack(
        [winner, winner + rng.normal(scale=0.1, size=500) + 0.1, winner[rng.permutation(500)], winner + 1]
    )
    p_values = p_values_of_worse(values, winner)
    assert p_values[0] == 1  # nothing tells it from itself
    assert p_values[1] < 1e-6
    assert p_values[2] > 0.2
    assert p_values[3] == 0  # worse by the same on every pair
    assert p_values_of_worse(values[[0, 3]], winner).tolist() == [1, 0]  # alone in the running


def test_p_values_account_for_having_picked_the_best_of_many():
    """Of 60 proposals that are equally good, few are called worse than the one that came out best by chance."""
    called = pointwise = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        values = rng.normal(size=(60, 400))
        winner = values[values.mean(1).argmin()]
        called += (p_values_of_worse(values, winner) < 0.05).sum()
        differences = values - winner
        errors = differences.std(1).clip(1e-9) / 20
        pointwise += (differences.mean(1) / errors > 1.645).sum()
    assert pointwise > 0.4 * 40 * 60
    assert called < 0.08 * 40 * 60


def test_both_scores_give_the_published_proposals_first_and_then_those_of_the_sum():
    matrix = np.random.default_rng(3).uniform(0.5, 1, (13, 13))
    matrix = (matrix + matrix.T) / 2
    by_mean, by_sum = (
        coarse_search(matrix, 6, mode="beam", num_proposals=10, score=score) for score in ("mean", "sum")
    )
    both = propose(matrix, 6)
    assert both[:10] == by_mean
    assert {p for p, _ in both} == {p for p, _ in by_mean} | {p for p, _ in by_sum}
    assert all(score == coarse_score(matrix, proposal) for proposal, score in both)
    assert propose(matrix, 6, score="sum") == by_sum


# --- on the bundled model: a race among all ways to drop two layers against evaluating every one


SUBSETS = list(combinations(range(1, 13), 2))


@pytest.fixture(scope="module")
def fine():
    """By the distance to the full model's text embeddings, which needs no image, on 40 validation captions."""
    captions = load_pairs(DEFAULT_DATASET, "validation", images=False).captions[:40]
    clip = load_clip(str(DEFAULT_MODEL), "cpu")
    return FineSearch(clip, captions, Distance(clip.embeddings(captions), batch_size=10))


def test_a_race_finds_a_winner_among_the_best_with_a_part_of_the_work(fine):
    everything, raced = (
        verify(fine.without_memory(), SUBSETS, use_race=race, generator=np.random.default_rng(0))
        for race in (False, True)
    )
    # 66 proposals on 10 pairs, 33 on 20; 17 are left, and the next round would use all 40
    assert raced.facts["race_pairs_evaluated"] == 66 * 10 + 33 * 20
    assert raced.facts["race_survivors"] == raced.facts["proposals_evaluated"] == len(raced.ranked) == 17
    assert raced.facts["layer_calls"] < everything.facts["layer_calls"]
    ranks = {evaluation.dropped_layers: rank for rank, evaluation in enumerate(everything.ranked, start=1)}
    assert ranks[raced.ranked[0].dropped_layers] == 1
    values = {evaluation.dropped_layers: evaluation.objective for evaluation in everything.ranked}
    assert all(e.objective == pytest.approx(values[e.dropped_layers], rel=1e-6) for e in raced.ranked)


def test_refinement_goes_on_after_a_race(fine):
    plain, refined = (
        verify(
            fine.without_memory(), SUBSETS[::3], use_race=True, refine_rounds=rounds, generator=np.random.default_rng(0)
        )
        for rounds in (0, 20)
    )
    assert plain.facts["refine_rounds"] == 0 < refined.facts["refine_rounds"]
