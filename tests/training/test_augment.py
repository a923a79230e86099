"""Augmentation: small, repeatable, and blind to nothing that the caption says."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from training.augment import EXCHANGE, LEAVE_OUT, SHIFT, Augmentation, may_be_mirrored

CAPTION = "small red heart above green star"


def test_words_are_left_out_and_exchanged_with_their_chances():
    words, found = CAPTION.split(), [Augmentation(0).caption(CAPTION, row).split() for row in range(4000)]
    left_out = np.mean([len(words) - len(changed) for changed in found]) / len(words)
    exchanged = np.mean([changed != sorted(changed, key=words.index) for changed in found])
    assert left_out == pytest.approx(LEAVE_OUT, abs=0.01)
    assert exchanged == pytest.approx(EXCHANGE, abs=0.02)
    assert all(set(changed) <= set(words) for changed in found)


def test_one_word_always_stays():
    assert {Augmentation(0).caption("heart", row) for row in range(200)} == {"heart"}


def test_a_pair_is_changed_in_the_same_way_each_time_and_otherwise_in_another_epoch():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    first, again, later = Augmentation(0, 1), Augmentation(0, 1), Augmentation(0, 2)
    pixels = [np.asarray(each.image(noise, CAPTION, 5)) for each in (first, again, later)]
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])
    assert [first.caption(CAPTION, row) for row in range(50)] == [again.caption(CAPTION, row) for row in range(50)]
    assert [first.caption(CAPTION, row) for row in range(50)] != [later.caption(CAPTION, row) for row in range(50)]


def dot(x: int) -> Image.Image:
    """A black square at that place of a white picture."""
    pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
    pixels[30:34, x - 2 : x + 2] = 0
    return Image.fromarray(pixels)


def places(caption: str) -> np.ndarray:
    """Where a dot at 12 of 64 is afterwards, as a fraction of the width, in 200 rows."""
    images = [np.asarray(Augmentation(0).image(dot(12), caption, row).convert("L")) for row in range(200)]
    assert all(image.shape == (64, 64) and image[0, 0] == 255 for image in images)
    return np.array([255.0 - image for image in images]).mean(1).argmax(-1) / 64


def test_images_move_little_and_are_mirrored_only_where_the_caption_allows_it():
    sided, free = places("heart left of a star"), places("heart")
    largest = SHIFT + 0.1 / 2 + 2 / 64
    assert np.abs(sided - 12 / 64).max() <= largest
    assert sided.std() > 0.01
    mirrored = free > 0.5
    assert 0.35 < mirrored.mean() < 0.65
    assert np.abs(free[mirrored] - 52 / 64).max() <= largest


@pytest.mark.parametrize("caption", ["on the left.", "left-hand", "Letter b", "a", "repeat 1", "skip next"])
def test_what_has_a_side_is_not_mirrored(caption: str):
    assert not may_be_mirrored(caption)
    assert may_be_mirrored("a dog in the grass")


def test_a_training_with_augmentation_resumes_with_the_same_bits_and_differs_from_one_without(new_trainer, tmp_path):
    flags = {"augment": True, "freeze_vision": False}
    new_trainer("whole", **flags).train()
    new_trainer("plain", freeze_vision=False).train()
    parts = new_trainer("parts", **flags)
    epochs = parts.train_epoch
    parts.train_epoch = lambda epoch, progress: 1 / 0 if epoch == 2 else epochs(epoch, progress)
    with pytest.raises(ZeroDivisionError):
        parts.train()
    resumed = new_trainer("parts", **flags)
    resumed.resume(1)
    resumed.train()
    weights = {run: load_file(tmp_path / run / "model.safetensors") for run in ("whole", "parts")}
    assert all((weights["whole"][name] == weights["parts"][name]).all() for name in weights["whole"])
    losses = {
        run: json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[-1]) for run in ("whole", "plain")
    }
    assert losses["whole"]["train_loss"] != losses["plain"]["train_loss"]
