"""What a training changes, what it leaves, and that it goes on exactly."""

import json
import logging

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

from training.batches import selection_score as score
from training.settings import Average


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.encoder.model.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    "flags", [{}, {"freeze_embeddings": True, "freeze_logit_scale": True}, {"freeze_vision": False}], ids=str
)
def test_frozen_parameters_stay_as_they_are_and_all_others_change(new_trainer, flags: dict):
    trainer = new_trainer(max_epoch=1, **flags)
    before = weights(trainer)
    trainer.train()
    trained = {name for name, parameter in trainer.encoder.model.named_parameters() if parameter.requires_grad}
    moved = changed(before, weights(trainer))
    unmoved = {name for name in trained - moved if not name.endswith("k_proj.bias")}  # their gradient is zero
    assert moved <= trained
    assert unmoved == set()
    assert any(name.startswith("vision_model") for name in moved) == (flags == {"freeze_vision": False})


def test_the_loss_goes_down_and_the_model_in_the_end_is_the_best_one(new_trainer):
    trainer = new_trainer(max_epoch=8, lr=5e-3)
    history = trainer.train()
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.5
    assert trainer.best() == max(history, key=score)
    assert score(trainer.validate()) == score(trainer.best())


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_the_gradient_is_clipped_once_a_step_after_all_of_it_is_there(new_trainer, monkeypatch, grad_accum: int):
    trainer = new_trainer(max_epoch=2, batch_size=12, grad_accum=grad_accum, max_grad_norm=1e-3)
    steps, norms = [], []
    step, clip = AcceleratedOptimizer.step, trainer.accelerator.clip_grad_norm_

    def clip_and_note(parameters, max_norm):
        parameters = list(parameters)
        clip(parameters, max_norm)
        norms.append(
            torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters if p.requires_grad])).item()
        )

    def step_and_note(optimizer):
        steps.append(trainer.accelerator.sync_gradients)
        step(optimizer)

    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", clip_and_note)
    monkeypatch.setattr(AcceleratedOptimizer, "step", step_and_note)
    trainer.train()
    assert len(steps) == 10  # five batches an epoch
    assert sum(steps) == {1: 10, 2: 6}[grad_accum] == len(norms)
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-2)
    assert trainer.history[-1]["lr"] == pytest.approx(0, abs=1e-9)  # the schedule ends with the last step


def test_layers_are_dropped_in_training_and_not_in_evaluation(new_trainer, monkeypatch):
    trainer = new_trainer(max_epoch=2, layerdrop=0.5)
    kept, forward = [], type(trainer.towers).forward
    monkeypatch.setattr(
        type(trainer.towers), "forward", lambda self, batch, keep: (kept.append(keep), forward(self, batch, keep))[1]
    )
    calls = []
    for layer in trainer.encoder.stack.layers:
        layer.register_forward_hook(lambda *_: calls.append(trainer.towers.training))
    trainer.train()
    assert {flag for keep in kept for flag in keep} == {True, False}
    validation_calls = calls.count(False)
    trainer.validate()
    assert calls.count(False) * 2 == validation_calls * 3  # as many as in either epoch: all layers
    assert trainer.validate() == trainer.validate()


def test_nothing_is_dropped_by_default(new_trainer, monkeypatch):
    trainer = new_trainer(max_epoch=1)
    kept, forward = [], type(trainer.towers).forward
    monkeypatch.setattr(
        type(trainer.towers), "forward", lambda self, batch, keep: (kept.append(keep), forward(self, batch, keep))[1]
    )
    trainer.train()
    assert kept == [[True, True]] * 3


def test_a_resumed_training_ends_with_the_same_bits(new_trainer, tmp_path):
    """With everything random: dropout from the global state, dropped layers from their own."""
    flags = {"dropout": 0.3, "layerdrop": 0.3, "distill_mode": "affinity", "grad_accum": 2}
    new_trainer("whole", **flags).train()
    interrupted = new_trainer("parts", **flags)
    train_epoch = interrupted.train_epoch
    interrupted.train_epoch = lambda epoch, progress: 1 / 0 if epoch == 3 else train_epoch(epoch, progress)
    with pytest.raises(ZeroDivisionError):
        interrupted.train()
    resumed = new_trainer("parts", **flags)
    torch.manual_seed(12345)
    resumed.resume(2)
    resumed.train()
    for name in ("{}/model.safetensors", "{}.states/last/model.safetensors"):
        ours, theirs = (load_file(tmp_path / name.format(run)) for run in ("parts", "whole"))
        assert changed(ours, theirs) == set(), name
    figures = [json.loads(line)["train_loss"] for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert figures == [
        json.loads(line)["train_loss"] for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    ]


def test_going_on_from_an_earlier_state_brings_back_the_best_model_of_then(new_trainer, tmp_path):
    trainer = new_trainer()
    trainer.validate = iter([{"mean_recall": recall} for recall in (0.5, 0.1, 0.9)]).__next__
    trainer.train()
    assert trainer.best()["epoch"] == 3
    first = trainer.states.weights(1)
    resumed = new_trainer()
    resumed.resume(2)
    published = load_file(tmp_path / "run/model.safetensors")
    assert resumed.best()["epoch"] == 1
    assert all(torch.equal(published[name], tensor) for name, tensor in first.items())


def test_a_run_with_other_settings_is_not_gone_on_with(new_trainer, tmp_path):
    new_trainer(max_epoch=1).train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run*/**/*")}
    other = new_trainer(max_epoch=1, lr=0.5)
    with pytest.raises(ValueError, match=r"that run was started with lr 0.001 \(now 0.5\); pass another --output_dir"):
        other.resume(1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("run*/**/*")} == before


def test_the_output_folder_is_a_checkpoint_with_fewer_layers(new_trainer, tmp_path):
    trainer = new_trainer(max_epoch=1)
    trainer.train()
    for folder in (tmp_path / "run", tmp_path / "run.states" / "last"):
        model = CLIPModel.from_pretrained(folder)
        CLIPProcessor.from_pretrained(folder)
        assert model.config.text_config.num_hidden_layers == 2 == len(model.text_model.encoder.layers)
        assert changed(weights(trainer), model.state_dict()) == set()
    assert "text layers, without [[2, 3]]" in (tmp_path / "run/README.md").read_text()


def test_an_average_replaces_the_best_epoch_only_where_it_is_better(new_trainer, tmp_path):
    trainer = new_trainer(average=Average("last", 2))
    trainer.train()
    mean = {n: (trainer.states.weights(2)[n].double() + t.double()) / 2 for n, t in trainer.states.weights(3).items()}
    trainer.validate = lambda: {"mean_recall": 2.0}
    assert trainer.use_average()["mean_of_epochs"] == [2, 3]
    published = load_file(tmp_path / "run/model.safetensors")
    assert all(torch.equal(published[name], tensor.float()) for name, tensor in mean.items())
    trainer.validate = lambda: {"mean_recall": -1.0}
    assert trainer.use_average() == trainer.best()
    best = trainer.states.weights(trainer.best()["epoch"])
    assert changed(best, trainer.towers.state_dict()) == set()


def test_captions_alone_are_trained_towards_the_teacher_and_touch_no_image(new_trainer, monkeypatch):
    def fail(*_):
        raise AssertionError("an image was opened")

    monkeypatch.setattr("data.pairs.ImageFiles.encoded", fail)
    trainer = new_trainer(images=False, distill_mode="feature", lr=5e-3)
    history = trainer.train()
    assert history[-1]["distance"] < 0.8 * history[0]["distance"]
    assert trainer.best() == min(history, key=lambda row: row["distance"])
    assert "task_loss" not in history[0]


def test_a_loss_that_is_not_finite_ends_the_run_with_what_to_do(new_trainer):
    with pytest.raises(ValueError, match="train_loss of epoch 1 is nan; pass a smaller --lr than 1e[+]30$"):
        new_trainer(lr=1e30, warmup_steps=0, max_grad_norm=0.0).train()


@pytest.mark.parametrize("flags", [{}, {"images": False, "distill_mode": "feature"}], ids=["images", "captions alone"])
def test_weights_that_are_lost_in_the_last_step_of_an_epoch_do_not_replace_the_good_ones(
    new_trainer, tmp_path, flags: dict
):
    trainer = new_trainer(**flags)
    train_epoch = trainer.train_epoch

    def lose_weights(epoch: int, progress: bool) -> float:
        loss = train_epoch(epoch, progress)
        if epoch == 2:
            torch.nn.init.constant_(trainer.towers.text_projection.weight, torch.nan)
        return loss

    trainer.train_epoch = lose_weights
    what = "task_loss" if not flags else "distance"
    with pytest.raises(
        ValueError,
        match=f"{what} of epoch 2 is nan; pass a smaller --lr than 0.001; the checkpoint stays that of epoch 1",
    ):
        trainer.train()
    assert trainer.states.with_weights() == [1]
    published, first = load_file(tmp_path / "run/model.safetensors"), trainer.states.weights(1)
    assert all(torch.equal(published[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize(("keep_epochs", "kept"), [(1, [4]), (2, [3, 4]), (None, [1, 2, 3, 4])])
def test_as_many_epochs_as_asked_can_be_gone_on_from(new_trainer, keep_epochs: int | None, kept: list[int]):
    trainer = new_trainer(max_epoch=4, keep_epochs=keep_epochs)
    trainer.train()
    assert trainer.states.resumable() == kept


def test_a_full_disk_is_one_line_and_leaves_no_half_of_a_state(new_trainer, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("PytorchStreamWriter failed writing file")

    trainer = new_trainer(max_epoch=2)
    train_epoch = trainer.train_epoch
    trainer.train_epoch = lambda epoch, progress: (
        epoch == 2 and monkeypatch.setattr(torch, "save", fail),
        train_epoch(epoch, progress),
    )[1]
    with pytest.raises(
        OSError, match=r"run.states: cannot be written \(PytorchStreamWriter .*states before it are whole"
    ):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "run.states").iterdir()) == ["0001", "last"]


def test_the_log_has_two_line_shapes(new_trainer, caplog):
    caplog.set_level(logging.INFO)
    new_trainer(max_epoch=1, batch_size=1).train()
    step, epoch = (record.getMessage() for record in caplog.records if record.name == "comflp")
    assert step.startswith("epoch 1 step 50/60 loss ")
    assert epoch.startswith("epoch 1/1 train_loss ")
    assert " mean_recall " in epoch
