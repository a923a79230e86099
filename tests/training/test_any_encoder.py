"""Training needs of a model what `models.encoders.Encoder` says, and nothing of a family: here one of a few lines."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from data import load_pairs
from models.encoders import Batch, Encoder, pad_tokens
from models.layer_stack import LayerStack
from training.batches import Split, TrainingData
from training.loop import Settings, Trainer
from training.losses import Objective

WIDTH = 16


class BytesConfig(PreTrainedConfig):
    model_type = "bytes"
    hidden_size, num_hidden_layers = WIDTH, 3


class BytesModel(PreTrainedModel):
    config_class = BytesConfig

    def __init__(self, config: BytesConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(256, WIDTH)
        layer = {"d_model": WIDTH, "nhead": 2, "dim_feedforward": 32, "dropout": 0.0, "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(**layer) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        return hidden


class BytesEncoder(Encoder):
    """A caption is the mean of its bytes' last states."""

    tower, name, logit_scale, projection, max_length = "text", "bytes", 10.0, None, 100

    def __init__(self, model: BytesModel):
        self.model, self.stack = model, LayerStack(model)

    def prepare(self, samples):
        return [list(sample.encode()) for sample in samples]

    def batch(self, prepared, rows, length=None):
        ids, mask = pad_tokens([prepared[row] for row in rows], 0, length)
        return Batch(np.asarray(rows), {"input_ids": ids, "padding": ~mask}, mask)

    def own_pool(self, hidden, batch):
        return self.pool(hidden, batch, "mean")

    features = own_pool

    def parts(self):
        return {"model": self.model}

    def drop(self, dropped_layers, name=""):
        return BytesEncoder(self.stack.drop(dropped_layers))

    def save(self, folder):
        self.model.save_pretrained(folder)

    def samples(self, pairs):
        return pairs.captions


@pytest.fixture
def full() -> BytesEncoder:
    torch.manual_seed(0)
    return BytesEncoder(BytesModel(BytesConfig()).eval())


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
