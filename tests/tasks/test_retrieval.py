"""Task loss and recall against plain loops and values by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tasks.image_retrieval import ImageRetrieval
from tasks.retrieval import Retrieval, in_rounds, pair_losses, recall_hits, summarise_hits, symmetric_cross_entropy


def unit_rows(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def plain_recall(text, image, image_index, k):
    """Rank by rank, ties against."""
    similarity = (text @ image.T).numpy()
    to_image = [sum(similarity[i] >= similarity[i, own]) - 1 < k for i, own in enumerate(image_index)]
    to_text = []
    for j in range(len(image)):
        own = [i for i, index in enumerate(image_index) if index == j]
        best = max(similarity[i, j] for i in own)
        to_text.append(sum(similarity[i, j] >= best for i in range(len(text)) if i not in own) < k)
    return np.mean(to_image), np.mean(to_text)


def test_two_pairs_by_hand():
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    rows = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-2))
    columns = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))
    assert symmetric_cross_entropy(logits).item() == pytest.approx((rows + columns) / 4)


def test_loss_of_an_encoder_that_tells_nothing_apart_is_the_log_of_the_batch():
    same = torch.ones(40, 4) / 2
    assert pair_losses(same, same, logit_scale=100, batch_size=20).mean().item() == pytest.approx(
        math.log(20), abs=1e-5
    )


def test_the_last_smaller_batch_counts_by_its_size():
    text, image = unit_rows(50, 8, 0), unit_rows(50, 8, 1)
    parts = [
        symmetric_cross_entropy(5 * text[r] @ image[r].T).item() for r in (slice(0, 20), slice(20, 40), slice(40, 50))
    ]
    assert pair_losses(text, image, 5, 20).mean().item() == pytest.approx(
        (20 * parts[0] + 20 * parts[1] + 10 * parts[2]) / 50
    )
    assert pair_losses(text, image, 5, 20).shape == (50,)


def test_loss_depends_on_which_pairs_share_a_batch_and_on_nothing_else_in_their_order():
    text, image = unit_rows(40, 8, 0), unit_rows(40, 8, 1)
    within = torch.cat([torch.randperm(20), 20 + torch.randperm(20)])
    across = torch.arange(40).reshape(2, 20).T.reshape(-1)
    base = pair_losses(text, image, 5, 20).mean().item()
    assert pair_losses(text[within], image[within], 5, 20).mean().item() == pytest.approx(base, abs=1e-6)
    assert abs(pair_losses(text[across], image[across], 5, 20).mean().item() - base) > 1e-4


def test_captions_of_one_image_are_no_rivals_while_there_are_others():
    image_index = torch.arange(8).repeat_interleave(3)  # three captions an image, side by side
    assert in_rounds(image_index).tolist() == [3 * i + k for k in range(3) for i in range(8)]
    image = unit_rows(8, 16, 0)[image_index]
    losses = pair_losses(image, image, 100, 8, image_index)
    assert losses.max() < 0.1  # every caption is found
    assert pair_losses(image, image, 100, 8).mean() > math.log(2)  # side by side they are taken for each other


def test_with_one_caption_an_image_the_order_stays():
    assert in_rounds(torch.tensor([3, 1, 0, 2])).tolist() == [0, 1, 2, 3]
    text, image = unit_rows(50, 8, 0), unit_rows(50, 8, 1)
    assert torch.equal(pair_losses(text, image, 5, 20), pair_losses(text, image, 5, 20, torch.arange(50)))


@pytest.mark.parametrize("chunk", [7, 4096])
def test_recall_is_that_of_the_plain_loop(chunk):
    image = unit_rows(30, 6, 0)
    image_index = torch.arange(60) % 30
    text = F.normalize(image[image_index] + 0.5 * unit_rows(60, 6, 1), dim=-1)
    hits = recall_hits(text, image, image_index, chunk=chunk)
    for k in (1, 5, 10):
        to_image, to_text = plain_recall(text, image, image_index.tolist(), k)
        assert hits["text_to_image"][k].double().mean().item() == pytest.approx(to_image)
        assert hits["image_to_text"][k].double().mean().item() == pytest.approx(to_text)
    assert 0 < hits["text_to_image"][1].double().mean() < 1


def test_perfect_embeddings_recall_everything():
    same = unit_rows(50, 16, 0)
    assert set(summarise_hits(recall_hits(same, same, torch.arange(50))).values()) == {1.0}


def test_a_collapsed_encoder_recalls_nothing():
    same = torch.ones(50, 16) / 4
    assert set(summarise_hits(recall_hits(same, same, torch.arange(50))).values()) == {0.0}


@pytest.mark.parametrize("chunk", [2, 100])
def test_a_similarity_that_is_nan_is_a_miss_and_a_wrong_one_counts_against(chunk: int):
    text, lost = torch.eye(4), torch.full((4, 4), torch.nan)
    index = torch.arange(4)
    assert set(summarise_hits(recall_hits(lost, text, index)).values()) == {0}
    assert set(summarise_hits(recall_hits(text, lost, index)).values()) == {0}
    one = text.clone()
    one[3] = torch.nan
    hits = recall_hits(one, text, index, chunk)
    assert hits["text_to_image"][1].tolist() == [True, True, True, False]
    assert hits["image_to_text"][1].tolist() == [False] * 4  # the lost caption stands before all others
    assert hits["image_to_text"][5].tolist() == [True, True, True, False]


def test_any_caption_of_an_image_counts():
    image = torch.eye(12)
    text = torch.cat([image, image.roll(1, dims=0)])  # every second caption is about another image
    recall = summarise_hits(recall_hits(text, image, torch.arange(24) % 12))
    assert recall["text_to_image_recall_at_1"] == 0.5
    assert recall["image_to_text_recall_at_1"] == 0.0  # a wrong caption is as similar as the right one
    assert recall["image_to_text_recall_at_5"] == 1.0


def test_an_image_without_a_caption_is_no_hit():
    image = torch.eye(4)
    assert summarise_hits(recall_hits(image[:3], image, torch.arange(3)))["image_to_text_recall_at_1"] == 0.75


def test_the_fitted_scale_is_the_best_of_a_fine_grid():
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(60, 8, generator=generator), dim=-1)
    text = torch.nn.functional.normalize(image + 0.5 * torch.randn(60, 8, generator=generator), dim=-1)
    index = torch.arange(60)
    for task, scored in (
        (Retrieval(image, index, 99.0, batch_size=20), text),
        (ImageRetrieval(text, index, 99.0, batch_size=20), image),
    ):
        fitted = task.fit_scale(scored)
        grid = [pair_losses(text, image, scale, 20).mean().item() for scale in torch.linspace(1, 100, 400).tolist()]
        assert fitted.score(scored).figures["task_loss"] <= min(grid) + 1e-5
        assert fitted.score(scored).figures["task_loss"] < task.score(scored).figures["task_loss"] - 0.1
    biased = Retrieval(image, torch.arange(60), 10.0, -10.0)
    assert biased.fit_scale(text) is biased
