"""Fine search of an encoder that is of no family, on both tasks, against rebuilt models."""

from itertools import combinations

import numpy as np
import pytest
import torch
from bytes_encoder import make_encoder

from search_strategy.fine import FineSearch
from search_strategy.verify import search
from tasks.distance import Distance
from tasks.retrieval import Retrieval

SAMPLES = [
    f"{size} {colour} {shape}" for size in ("small", "large") for colour in "abcde" for shape in ("disc", "cube")
]
PROPOSALS = [*combinations((1, 2, 3), 1), *combinations((1, 2, 3), 2)]


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


def test_fine_search_scores_what_rebuilt_models_score(encoder):
    full = encoder.embeddings(SAMPLES)
    targets = torch.nn.functional.normalize(
        full + torch.randn(full.shape, generator=torch.Generator().manual_seed(0)), dim=1
    )
    for task in (Distance(full), Retrieval(targets, np.arange(len(SAMPLES)), encoder.logit_scale, batch_size=7)):
        found = FineSearch(encoder, SAMPLES, task, batch_size=6).evaluate(PROPOSALS)
        for proposal, evaluation in zip(PROPOSALS, found, strict=True):
            expected = task.score(encoder.drop(proposal).embeddings(SAMPLES))
            assert np.allclose(evaluation.values, expected.values, atol=1e-5)
            assert evaluation.figures == pytest.approx(expected.figures, abs=1e-5)


def test_the_default_search_ends_at_the_best_of_all(encoder):
    fine = FineSearch(encoder, SAMPLES, Distance(encoder.embeddings(SAMPLES)))
    matrix = np.corrcoef(np.random.default_rng(0).normal(size=(4, 9)))
    objectives = dict(zip(PROPOSALS[:3], fine.objectives(PROPOSALS[:3]), strict=True))
    assert search(fine.objectives, matrix, 1) == min(objectives, key=objectives.get)
