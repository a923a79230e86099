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
from training.run import make_trainer
from training.splits import load_split
from training.start import pruned

SETTINGS = Settings(max_epoch=3, batch_size=20, lr=1e-3, weight_decay=0.1, warmup_steps=2, seed=0)
DROPPED = (2, 3)


@pytest.fixture
def new_trainer(tiny_clip, tiny_pairs, tmp_path) -> Callable[..., Trainer]:
    """A function that makes the trainer of a model of two layers; it takes settings, `dropout` and `average`."""

    def make(output: str = "run", dropout: float = 0.0, average: Average | None = None, **changed) -> Trainer:
        AcceleratorState._reset_state(reset_partial_state=True)
        settings = replace(SETTINGS, **changed)
        full = load_clip(str(tiny_clip))
        columns = {"columns": {}, "images": settings.images, "image_embeddings": settings.freeze_vision}
        train = load_split(full, str(tiny_pairs), "train", teacher_text=settings.distill_mode != "none", **columns)
        validation = load_split(full, str(tiny_pairs), "validation", teacher_text=not settings.images, **columns)
        clip = pruned(full, DROPPED)
        for layer in clip.stack.layers:
            layer.self_attn.dropout = dropout
        torch.manual_seed(settings.seed)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=settings.grad_accum)
        card = ModelCard(
            folder="run",
            model="tiny",
            num_layers=4,
            num_clip_layers=2,
            dropped_layers=DROPPED,
            origin="test",
            trained="its text tower",
            dataset="tiny",
            num_pairs=len(train.pairs),
            command="command",
        )
        return make_trainer(
            clip,
            full,
            train,
            validation,
            settings=settings,
            accelerator=accelerator,
            output_dir=tmp_path / output,
            card=card,
            average=average,
        )

    return make
