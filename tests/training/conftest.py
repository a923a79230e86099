"""Trainings on the tiny fixtures."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState

from models import load_encoder
from training.loop import Trainer
from training.losses import Objective
from training.report import ModelCard
from training.settings import Settings
from training.stages import load_data

SETTINGS = Settings(max_epoch=3, batch_size=20, lr=1e-3, weight_decay=0.1, warmup_steps=2, seed=0)
DROPPED = (2, 3)


@pytest.fixture
def new_trainer(tiny_clip, tiny_pairs, tmp_path) -> Callable[..., Trainer]:
    """A function that makes the trainer of a model of two layers; it takes the objective's and the trainer's settings,
    `images` and `dropout`."""

    def make(
        output: str = "run",
        dropout: float = 0.0,
        images: bool = True,
        distill_mode: str = "none",
        **changed,
    ) -> Trainer:
        AcceleratorState._reset_state(reset_partial_state=True)
        settings, full = replace(SETTINGS, **changed), load_encoder(str(tiny_clip))
        objective = Objective(distill_mode, teacher_scale=full.logit_scale)
        data = load_data(full, full, str(tiny_pairs), {}, settings, objective, images, tmp_path / "cache")
        encoder = full.drop(DROPPED)
        for layer in encoder.stack.layers:
            layer.self_attn.dropout = dropout
        torch.manual_seed(settings.seed)
        record = {"model": "tiny", "output_dir": "run", "command": "command", "flags": {"dataset": "tiny"}}
        record |= {"train": {"captions": 60}, "made_from": full.identity()}
        card = ModelCard(4, 2, DROPPED, "a test", settings.freeze_vision, record, type(full))
        return Trainer(encoder, data, objective, settings, tmp_path / output, card)

    return make
