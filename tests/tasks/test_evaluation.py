"""Figures of a CLIP: a plain ranking as the oracle, what is counted as text parameters, what is timed."""

import numpy as np
import pytest
import torch

from data import load_pairs
from models import load_clip
from tasks import evaluation
from tasks.evaluation import evaluate_retrieval, text_milliseconds, text_parameters
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
    similarity = (clip.text_embeddings(pairs.captions) @ images.T).numpy()
    recalls = []
    for k in (1, 5, 10):
        recalls += [plain_recall(similarity, k), plain_recall(similarity.T, k)]
        assert figures[f"text_to_image_recall_at_{k}"] == pytest.approx(recalls[-2])
        assert figures[f"image_to_text_recall_at_{k}"] == pytest.approx(recalls[-1])
    assert figures["mean_recall"] == pytest.approx(np.mean(recalls))
    assert 0 < figures["mean_recall"] < 1


def test_task_loss_is_the_mean_over_fixed_batches(clip, pairs, images):
    logits = clip.logit_scale * clip.text_embeddings(pairs.captions) @ images.T
    parts = [slice(0, 25), slice(25, 50), slice(50, 60)]
    expected = sum(symmetric_cross_entropy(logits[part, part]).item() * len(logits[part]) for part in parts) / 60
    assert evaluate_retrieval(clip, pairs, images, loss_batch_size=25)["task_loss"] == pytest.approx(expected, rel=1e-5)


def test_text_parameters_shrink_by_those_of_a_layer(clip, tiny_clip):
    width, inner, vocabulary, positions = 16, 64, len(clip.processor.tokenizer), 32
    layer = 4 * (width * width + width) + 2 * 2 * width + 2 * width * inner + inner + width
    rest = (vocabulary + positions) * width + 2 * width + width * width
    assert text_parameters(clip) == 4 * layer + rest
    pruned = load_clip(str(tiny_clip))
    pruned.model = clip.stack.drop([2, 3])
    assert text_parameters(pruned) == 2 * layer + rest


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 10), (4, [4, 4, 2])])
@pytest.mark.parametrize("full_length", [True, False])
def test_all_captions_are_timed_cut_or_at_the_models_length(clip, pairs, monkeypatch, batch_size, sizes, full_length):
    shapes = []
    forward = clip.model.get_text_features
    monkeypatch.setattr(
        clip.model,
        "get_text_features",
        lambda input_ids: shapes.append(input_ids.shape) or forward(input_ids=input_ids),
    )
    milliseconds = text_milliseconds(clip, pairs.captions[:10], batch_size, repeats=3, full_length=full_length)
    assert milliseconds > 0
    assert [shape[0] for shape in shapes] == sizes * 4  # one pass that is not counted and three that are
    assert all((shape[1] == 32) == full_length for shape in shapes)


def test_milliseconds_are_the_fastest_pass_divided_by_the_captions(clip, pairs, monkeypatch):
    seconds = iter([0.01, 0.5, 0.1, 0.2])
    monkeypatch.setattr(evaluation, "_pass_seconds", lambda *_: next(seconds))
    assert text_milliseconds(clip, pairs.captions[:10], 5, repeats=3) == pytest.approx(10)


def test_padding_to_the_models_length_changes_no_embedding(clip, pairs):
    batch = clip.batch(clip.tokenize(pairs.captions[:5]), range(5))
    padded = torch.nn.functional.pad(batch.input_ids, (0, 32 - batch.input_ids.shape[1]))
    with torch.no_grad():
        cut, full = (clip.model.get_text_features(input_ids=ids).pooler_output for ids in (batch.input_ids, padded))
    assert torch.allclose(cut, full, atol=1e-6)
