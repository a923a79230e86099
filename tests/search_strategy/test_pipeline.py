"""The whole search on the bundled model: a race among all ways to drop two layers against evaluating every one."""

from itertools import combinations

import numpy as np
import pytest

from common import DEFAULT_DATASET, DEFAULT_MODEL
from data import load_pairs
from models import load_clip
from search_strategy.fine import FineSearch
from search_strategy.pipeline import verify

SUBSETS = list(combinations(range(1, 13), 2))


@pytest.fixture(scope="module")
def fine():
    """By the distance to the full model's text embeddings, which needs no image, on 200 validation captions."""
    captions = load_pairs(DEFAULT_DATASET, "validation", images=False).captions[:200]
    clip = load_clip(str(DEFAULT_MODEL), "cpu")
    return FineSearch(clip, captions, None, None, objective="embedding", loss_batch_size=50)


def test_a_race_finds_a_winner_among_the_best_with_a_part_of_the_work(fine):
    everything, raced = (
        verify(fine.restarted(), SUBSETS, use_race=race, generator=np.random.default_rng(0)) for race in (False, True)
    )
    # 66 proposals on 50 pairs, 33 on 100; 17 are left, and the next round would use all 200
    assert raced.facts["race_pairs_evaluated"] == 66 * 50 + 33 * 100
    assert raced.facts["race_survivors"] == raced.facts["proposals_evaluated"] == len(raced.ranked) == 17
    assert raced.facts["layer_calls"] < everything.facts["layer_calls"]
    ranks = {evaluation.dropped_layers: rank for rank, evaluation in enumerate(everything.ranked, start=1)}
    assert ranks[raced.ranked[0].dropped_layers] == 1
    values = {evaluation.dropped_layers: evaluation.objective for evaluation in everything.ranked}
    assert all(e.objective == pytest.approx(values[e.dropped_layers], rel=1e-6) for e in raced.ranked)


def test_refinement_after_a_race_is_never_worse(fine):
    plain, refined = (
        verify(fine.restarted(), SUBSETS[::3], use_race=True, refine_rounds=rounds, generator=np.random.default_rng(0))
        for rounds in (0, 20)
    )
    assert refined.ranked[0].objective <= plain.ranked[0].objective
    assert plain.facts["refine_rounds"] == 0 < refined.facts["refine_rounds"]
