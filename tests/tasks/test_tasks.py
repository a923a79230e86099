"""The tasks: a plain ranking, plain losses and plain cosines as oracles."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tasks.distance import Distance
from tasks.image_retrieval import ImageRetrieval
from tasks.retrieval import Retrieval, sigmoid_loss, symmetric_cross_entropy


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


def test_the_sigmoid_loss_is_that_of_every_pair_on_its_own():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    losses = [[np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))], [np.log1p(np.exp(0.5)), np.log1p(np.exp(-3.0))]]
    assert sigmoid_loss(logits).item() == pytest.approx(np.sum(losses) / 2, rel=1e-6)
    assert sigmoid_loss(logits, "none")[0].item() == pytest.approx(
        (sum(losses[0]) + losses[0][0] + losses[1][0]) / 2, rel=1e-6
    )


def test_a_bias_makes_the_task_loss_the_sigmoid_loss(clip, pairs, images):
    text = clip.embeddings(pairs.captions)
    scores = Retrieval(images, pairs.image_index, 10.0, -3.0, batch_size=30).score(text)
    parts = [sigmoid_loss(10 * text[part] @ images[part].T - 3) for part in (slice(0, 30), slice(30, 60))]
    assert scores.figures["task_loss"] == pytest.approx(sum(parts).item() / 2, rel=1e-5)


@pytest.mark.parametrize("objective", Retrieval.OBJECTIVES)
@pytest.mark.parametrize("bias", [None, -3.0])
def test_images_score_as_their_texts_do_whatever_side_is_fixed(objective, bias):
    """Twelve texts of five images: the figures are those of the texts, a value the mean over an image's texts."""
    generator = torch.Generator().manual_seed(0)
    text, image = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (12, 5))
    index = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 0])
    options = {"objective": objective, "batch_size": 5}
    expected = Retrieval(image, index, 9.0, bias, **options).score(text)
    found = ImageRetrieval(text, index, 9.0, bias, **options).score(image)
    assert found.figures == pytest.approx(expected.figures)
    means = [expected.values[torch.from_numpy(index == number)].mean().item() for number in range(5)]
    assert found.values.tolist() == pytest.approx(means)


def test_images_on_some_rows_are_those_with_their_texts():
    generator = torch.Generator().manual_seed(0)
    text, image = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (6, 4))
    index = np.array([0, 1, 2, 3, 2, 0])
    found = ImageRetrieval(text, index, 9.0).on_rows([2, 0]).score(image[[2, 0]])
    of_them = [0, 2, 4, 5]
    expected = ImageRetrieval(text[of_them], np.array([1, 0, 0, 1]), 9.0).score(image[[2, 0]])
    assert found.figures == expected.figures
    assert torch.equal(found.values, expected.values)
