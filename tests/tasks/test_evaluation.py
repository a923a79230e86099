"""Figures of a CLIP: a plain ranking as the oracle."""

import numpy as np
import pytest

from data import load_pairs
from models import load_clip
from tasks.evaluation import evaluate_retrieval
from tasks.retrieval import symmetric_cross_entropy


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
    figures = evaluate_retrieval(clip, pairs, images)
    similarity = (clip.embeddings(pairs.captions) @ images.T).numpy()
    recalls = []
    for k in (1, 5, 10):
        recalls += [plain_recall(similarity, k), plain_recall(similarity.T, k)]
        assert figures[f"text_to_image_recall_at_{k}"] == pytest.approx(recalls[-2])
        assert figures[f"image_to_text_recall_at_{k}"] == pytest.approx(recalls[-1])
    assert figures["mean_recall"] == pytest.approx(np.mean(recalls))
    assert 0 < figures["mean_recall"] < 1


def test_task_loss_is_the_mean_over_fixed_batches(clip, pairs, images):
    logits = clip.logit_scale * clip.embeddings(pairs.captions) @ images.T
    parts = [slice(0, 25), slice(25, 50), slice(50, 60)]
    expected = sum(symmetric_cross_entropy(logits[part, part]).item() * len(logits[part]) for part in parts) / 60
    assert evaluate_retrieval(clip, pairs, images, loss_batch_size=25)["task_loss"] == pytest.approx(expected, rel=1e-5)
