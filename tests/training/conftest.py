"""Trainings on the tiny fixtures."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from models import load_clip
from training.averaging import Average
from training.loop import Settings, Trainer
from training.model_card import ModelCard
from training.run import Options, load_material, make_trainer
from training.schedule import Stage
from training.start import Choice

SETTINGS = Settings(max_epoch=3, batch_size=20, lr=1e-3, weight_decay=0.1, warmup_steps=2, seed=0)
CHOICE = Choice((2, 3), "a test")


@pytest.fixture
def new_trainer(tiny_clip, tiny_pairs, tmp_path) -> Callable[..., Trainer]:
    """A function that makes the trainer of a model of two layers; it takes settings, `dropout`, `average` and `keep_epochs`."""

    def make(
        output: str = "run",
        dropout: float = 0.0,
        average: Average | None = None,
        keep_epochs: int | None = 2,
        **changed,
    ) -> Trainer:
        AcceleratorState._reset_state(reset_partial_state=True)
        settings = replace(SETTINGS, **changed)
        full = load_clip(str(tiny_clip))
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=settings.grad_accum)
        material = load_material(full, full, str(tiny_pairs), {}, settings, tmp_path / "cache", accelerator)
        clip = full.drop(CHOICE.dropped_layers)
        for layer in clip.stack.layers:
            layer.self_attn.dropout = dropout
        torch.manual_seed(settings.seed)
        stage = Stage(tmp_path / output, 4, 2, 0)
        record = {"model": "tiny", "output_dir": "run", "command": "command", "flags": {"dataset": "tiny"}}
        card = ModelCard(stage, CHOICE, settings.freeze_vision, record | {"train": {"captions": 60}})
        options = Options(settings, average, keep_epochs=keep_epochs)
        return make_trainer(clip, full, CHOICE, material, options, accelerator, stage.output_dir, card)

    return make
