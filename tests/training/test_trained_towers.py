"""The trained towers give the model's own embeddings; what is frozen is not trained."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data import load_pairs
from models import Clip, load_clip
from training.batches import EpochBatches, PairBatches, Split
from training.towers import TrainedTowers


@pytest.fixture
def clip(tiny_clip) -> Clip:
    return load_clip(str(tiny_clip))


@pytest.fixture(scope="module")
def pairs(tiny_pairs):
    return load_pairs(str(tiny_pairs), "train")


def test_text_embeddings_are_those_of_the_model_on_padded_captions(clip: Clip, pairs):
    tokens = clip.processor.tokenizer(pairs.captions, padding="max_length", return_tensors="pt")
    expected = F.normalize(clip.model.get_text_features(input_ids=tokens["input_ids"]).pooler_output, dim=-1)
    batch = PairBatches(clip, Split(pairs, None, None)).__getitems__(list(range(len(pairs))))
    text, image, scale, bias = TrainedTowers(clip)(batch, [True] * 4)
    torch.testing.assert_close(text, expected, rtol=0, atol=2e-6)
    assert image is None
    assert bias is None
    assert scale.item() == pytest.approx(clip.logit_scale)


def test_a_layer_left_out_is_a_layer_dropped(clip: Clip, pairs):
    batch = PairBatches(clip, Split(pairs, None, None)).__getitems__(list(range(20)))
    text = TrainedTowers(clip)(batch, [True, False, True, False]).text
    expected = Clip(clip.stack.drop([2, 4]), clip.processor, "").embeddings(pairs.captions[:20])
    torch.testing.assert_close(text, expected, rtol=0, atol=2e-6)


def test_images_are_embedded_where_the_batch_has_them(clip: Clip, pairs):
    embeddings = clip.image_embeddings(pairs.images)
    batch = PairBatches(clip, Split(pairs, embeddings, None), pixels=True).__getitems__([3, 1])
    towers = TrainedTowers(clip, train_vision=True)
    live = towers(batch, [True] * 4).image
    torch.testing.assert_close(live, embeddings[[3, 1]], rtol=0, atol=2e-6)
    del batch["pixel_values"]
    given = towers(batch, [True] * 4).image
    assert torch.equal(given, embeddings[[3, 1]])


def test_only_what_is_asked_for_has_gradients(clip: Clip):
    def trained(**flags: bool) -> set[str]:
        TrainedTowers(clip, **flags)
        return {name for name, parameter in clip.model.named_parameters() if parameter.requires_grad}

    text = trained()
    assert text == {n for n, _ in clip.model.named_parameters() if n.startswith("text") or n == "logit_scale"}
    assert trained(train_vision=True) == {name for name, _ in clip.model.named_parameters()}
    assert text - trained(freeze_embeddings=True) == {
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
    }
    assert text - trained(freeze_logit_scale=True) == {"logit_scale"}


def test_a_batch_holds_the_rows_asked_for(clip: Clip, pairs):
    images, teacher = torch.randn(60, 3), torch.randn(60, 2)
    batch = PairBatches(clip, Split(pairs, images, teacher)).__getitems__([7, 2, 9])
    tokens = clip.prepare([pairs.captions[row] for row in (7, 2, 9)])
    assert batch["mask"].sum(1).tolist() == [len(ids) for ids in tokens]
    assert batch["inputs"]["input_ids"].shape == (3, max(map(len, tokens)))
    for row, ids in zip(batch["inputs"]["input_ids"], tokens, strict=True):
        assert row[: len(ids)].tolist() == ids
    assert torch.equal(batch["image_embeddings"], images[pairs.image_index[[7, 2, 9]]])
    assert torch.equal(batch["teacher_text"], teacher[[7, 2, 9]])


def test_batches_depend_on_seed_and_epoch_alone_and_repeat_no_pair():
    def epoch(seed: int, number: int) -> list[list[int]]:
        sampler = EpochBatches(23, 5, seed)
        sampler.epoch = number
        return list(sampler)

    assert epoch(0, 3) == epoch(0, 3)
    assert epoch(0, 3) != epoch(0, 4)
    assert epoch(0, 3) != epoch(1, 3)
    rows = np.concatenate(epoch(0, 3))
    assert len(rows) == 20 == len(set(rows))
    assert sorted(list(EpochBatches(3, 5, 0))[0]) == [0, 1, 2]
