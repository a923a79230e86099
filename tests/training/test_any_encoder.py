"""Training needs of a model what `models.encoders.Encoder` says, and nothing of a family."""

import pytest
import torch
from accelerate.state import AcceleratorState
from bytes_encoder import WIDTH, BytesEncoder, BytesModel, make_encoder
from torch import nn

from data import load_pairs
from training.batches import Split, TrainingData
from training.loop import Settings, Trainer
from training.losses import Objective


@pytest.fixture
def full() -> BytesEncoder:
    return make_encoder()


@pytest.mark.parametrize("distill_mode", ["none", "feature", "affinity"])
def test_it_is_trained_against_fixed_targets_and_goes_on_with_the_same_bits(full, tiny_pairs, tmp_path, distill_mode):
    pairs = load_pairs(str(tiny_pairs), "train")
    images = nn.functional.normalize(torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1)
    split = Split(pairs, images, full.embeddings(pairs.captions))
    settings = Settings(max_epoch=2, batch_size=20, lr=3e-3, weight_decay=0.1, warmup_steps=0, seed=0, layerdrop=0.2)

    def new_trainer(folder: str) -> Trainer:
        AcceleratorState._reset_state(reset_partial_state=True)
        objective = Objective(distill_mode, teacher_scale=full.logit_scale)
        return Trainer(full.drop([2]), TrainingData(split, split, full), objective, settings, tmp_path / folder)

    trainer = new_trainer("whole")
    before = split.figures(trainer.encoder)
    history = trainer.train()
    assert history[-1]["task_loss"] < before["task_loss"]
    resumed = new_trainer("whole")
    resumed.resume(1)
    assert resumed.train()[-1]["train_loss"] == history[-1]["train_loss"]
    assert BytesModel.from_pretrained(tmp_path / "whole").config.num_hidden_layers == 2
