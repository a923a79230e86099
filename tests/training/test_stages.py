"""Stages of a schedule: their folders, their epochs, and the search between them."""

import argparse

import pytest

from models import load_clip
from training import stages
from training.batches import TrainingData, load_split
from training.settings import parse_schedule
from training.stages import plan_stages, search


def test_a_schedule_is_read_and_must_fall():
    assert parse_schedule("12,9,6") == [12, 9, 6]
    for wrong in ("12", "6,9", "12,12,6", "12,x,6", "3,0", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected falling numbers of layers such as 12,9,6"):
            parse_schedule(wrong)


@pytest.mark.parametrize(
    ("resume_epoch", "resumed"), [(0, [0, 0]), (4, [4, 0]), (5, [5, 0]), (6, [5, 1]), (10, [5, 5]), (11, [5, 6])]
)
def test_every_stage_has_its_folder_and_its_share_of_the_epochs_done(tmp_path, resume_epoch: int, resumed: list[int]):
    first, last = plan_stages([12, 9, 6], tmp_path / "run", max_epoch=5, resume_epoch=resume_epoch)
    assert (first.output_dir, last.output_dir) == (tmp_path / "run_12to9", tmp_path / "run")
    assert (first.num_layers, first.num_clip_layers) == (12, 3)
    assert (last.num_layers, last.num_clip_layers) == (9, 3)
    assert [first.resume_epoch, last.resume_epoch] == resumed
    assert [first.first_epoch, last.first_epoch] == [0, 5]


def test_one_stage_is_a_plain_run(tmp_path):
    assert plan_stages([12, 6], tmp_path / "run", 5, 3) == [(tmp_path / "run", 12, 6, 3, 0)]


@pytest.mark.parametrize("images", [True, False])
def test_a_stage_drops_the_best_layers_by_validation(tiny_clip, tiny_pairs, images: bool):
    clip = load_clip(str(tiny_clip))
    train, validation = (
        load_split(clip, str(tiny_pairs), split, options={}, images=images, teacher_text=not images)
        for split in ("train", "validation")
    )
    dropped = search(clip, 1, TrainingData(train, validation), seed=0, use_repair=False).dropped_layers
    kept = {n: clip.embeddings(validation.pairs.captions, [k for k in range(1, 5) if k != n]) for n in range(1, 5)}
    if images:
        from tasks.retrieval import pair_losses

        image = validation.image_embeddings[validation.pairs.image_index]
        full = clip.embeddings(validation.pairs.captions)
        # not at the model's own scale, at which another layer would be dropped: the search script fits it too
        scale = min(range(1, 101), key=lambda scale: pair_losses(full, image, scale, 250).mean().item())
        losses = {n: pair_losses(text, image, scale, 250).mean().item() for n, text in kept.items()}
    else:
        losses = {n: -(text * validation.teacher_text).sum().item() for n, text in kept.items()}
    assert dropped == (min(losses, key=losses.get),)


@pytest.mark.parametrize(("before", "after", "warned"), [(0.5, 0.4, True), (0.5, 0.4995, False), (0.4, 0.5, False)])
def test_a_step_that_makes_the_model_worse_is_warned_of(before: float, after: float, warned: bool, caplog):
    stages.warn_if_worse(
        {"pruned": {"mean_recall": 0.1}, "repaired": {"mean_recall": before}, "fine-tuned": {"mean_recall": after}}
    )
    assert ("the fine-tuned model is worse than the repaired one: train" in caplog.text) == warned
    caplog.clear()
    stages.warn_if_worse({"pruned": {"distance": 1 - before}, "repaired": {"distance": 1 - after}})
    assert ("the repaired model is worse than the pruned one: give it more captions" in caplog.text) == warned
    stages.warn_if_worse({"pruned": {"mean_recall": 0.1}})
    stages.warn_if_worse({})
