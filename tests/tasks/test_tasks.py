"""The tasks: a plain ranking, plain losses and plain cosines as oracles."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data import load_pairs
from models import load_clip
from tasks.distance import Distance
from tasks.retrieval import Retrieval, symmetric_cross_entropy


@pytest.fixture(scope="module")
def clip(tiny_clip):
    return load_clip(str(tiny_clip))


@pytest.fixture(scope="module")
def pairs(tiny_pairs):
    return load_pairs(str(tiny_pairs), "test")


@pytest.fixture(scope="module")
def images(clip, pairs):
    return clip.image_embeddings(pairs.images)


def plain_recall(similarity, k):
    """Share of the rows whose own column is among their k largest; one image a caption, no ties."""
    order = np.argsort(-similarity, axis=1)
    return np.mean([row in order[row, :k] for row in range(len(similarity))])


def test_recall_is_that_of_a_plain_ranking(clip, pairs, images):
    text = clip.embeddings(pairs.captions)
    figures = Retrieval(images, pairs.image_index, clip.logit_scale).score(text).figures
    similarity = (text @ images.T).numpy()
    recalls = []
    for k in (1, 5, 10):
        recalls += [plain_recall(similarity, k), plain_recall(similarity.T, k)]
        assert figures[f"text_to_image_recall_at_{k}"] == pytest.approx(recalls[-2])
        assert figures[f"image_to_text_recall_at_{k}"] == pytest.approx(recalls[-1])
    assert figures["mean_recall"] == pytest.approx(np.mean(recalls))
    assert 0 < figures["mean_recall"] < 1


def test_task_loss_is_the_mean_over_fixed_batches(clip, pairs, images):
    text = clip.embeddings(pairs.captions)
    logits = clip.logit_scale * text @ images.T
    parts = [slice(0, 25), slice(25, 50), slice(50, 60)]
    expected = sum(symmetric_cross_entropy(logits[part, part]).item() * len(logits[part]) for part in parts) / 60
    scores = Retrieval(images, pairs.image_index, clip.logit_scale, batch_size=25).score(text)
    assert scores.figures["task_loss"] == pytest.approx(expected, rel=1e-5)
    assert scores.values.mean().item() == scores.figures["task_loss"]


@pytest.mark.parametrize("objective", Retrieval.OBJECTIVES)
def test_a_task_on_some_rows_is_that_of_those_rows(clip, pairs, images, objective):
    text, rows = clip.embeddings(pairs.captions), torch.tensor([3, 50, 7, 21])
    whole = Retrieval(images, pairs.image_index, clip.logit_scale, objective=objective)
    alone = Retrieval(images, pairs.image_index[rows], clip.logit_scale, objective=objective)
    assert torch.equal(whole.on_rows(rows).score(text[rows]).values, alone.score(text[rows]).values)


def test_distance_is_one_minus_the_cosine_row_by_row(clip, pairs):
    text = clip.embeddings(pairs.captions)
    other = clip.embeddings(pairs.captions, [1, 4])
    expected = [1 - F.cosine_similarity(a, b, dim=0).item() for a, b in zip(text, other, strict=True)]
    assert Distance(text).score(other).values.tolist() == pytest.approx(expected, abs=1e-6)
    assert Distance(text).on_rows([5, 2]).score(other[[5, 2]]).values.tolist() == pytest.approx(
        [expected[5], expected[2]], abs=1e-6
    )
