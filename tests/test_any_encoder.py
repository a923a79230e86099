"""Analysis, search, repair and training need of a model what `models.encoders.Encoder` says, and nothing of a family.

The proof is an encoder of a few lines that is defined here.
"""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from common.analysis import draw_samples, measure_captions
from common.matrix_files import MatrixSettings
from data import load_pairs
from models.encoders import Batch, Encoder, pad_tokens
from models.layer_stack import LayerStack
from models.repair import repair
from models.segment_maps import SegmentMaps
from search_strategy.fine import FineSearch
from search_strategy.verify import search
from tasks.distance import Distance
from tasks.retrieval import Retrieval
from training.batches import Split, TrainingData
from training.loop import Trainer
from training.losses import Objective
from training.settings import Settings

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


SAMPLES = [" ".join(words) for words in product(("small", "large"), "abcdefgh", ("disc", "cube"), ("left", "right"))]
PROPOSALS = [*combinations((1, 2, 3), 1), *combinations((1, 2, 3), 2)]


@pytest.fixture
def encoder() -> BytesEncoder:
    torch.manual_seed(0)
    return BytesEncoder(BytesModel(BytesConfig()).eval())


@torch.no_grad()
def plain_states(encoder: BytesEncoder, caption: str) -> list[torch.Tensor]:
    """h_0 .. h_L of one caption, (T, d) each, without a batch and without padding."""
    hidden = encoder.model.embeddings(torch.tensor([list(caption.encode())]))
    states = [hidden]
    for layer in encoder.model.layers:
        states.append(layer(states[-1]))
    return [state[0] for state in states]


@pytest.mark.parametrize(("measure", "mode"), [("dc", "mean"), ("cosine", "U"), ("svcca", "T")])
def test_its_layers_are_compared(encoder, measure, mode):
    settings = MatrixSettings(measure, batch_size=4, iter_num=5, mode=mode)
    expected = settings.new_measure()
    captions = draw_samples(encoder, SAMPLES, settings)[0]
    for start in range(0, len(captions), 4):
        of_captions = [plain_states(encoder, caption) for caption in captions[start : start + 4]]
        if mode != "T":
            of_captions = [[state.mean(0, keepdim=True) for state in states] for states in of_captions]
        expected.update([torch.cat(states) for states in zip(*of_captions, strict=True)])
    assert np.allclose(measure_captions(encoder, SAMPLES, settings), expected.matrix(), atol=1e-4)


def test_fine_search_scores_what_rebuilt_models_score(encoder):
    full = encoder.embeddings(SAMPLES)
    noise = torch.randn(full.shape, generator=torch.Generator().manual_seed(0))
    targets = nn.functional.normalize(full + noise, dim=1)
    for task in (Distance(full), Retrieval(targets, np.arange(len(SAMPLES)), encoder.logit_scale, batch_size=7)):
        found = FineSearch(encoder, SAMPLES, task, batch_size=6).evaluate(PROPOSALS)
        for proposal, evaluation in zip(PROPOSALS, found, strict=True):
            expected = task.score(encoder.drop(proposal).embeddings(SAMPLES))
            assert np.allclose(evaluation.values, expected.values, atol=1e-5)
            assert evaluation.figures == pytest.approx(expected.figures, abs=1e-5)


def test_the_default_search_ends_at_the_best_of_all(encoder):
    fine = FineSearch(encoder, SAMPLES, Distance(encoder.embeddings(SAMPLES)))
    matrix = np.corrcoef(np.random.default_rng(0).normal(size=(4, 9)))
    objectives = dict(zip(PROPOSALS[:3], fine.objectives(PROPOSALS[:3]), strict=True))
    assert search(fine.objectives, matrix, 1) == min(objectives, key=objectives.get)


def test_it_is_repaired_alone_and_in_the_search(encoder):
    task = Distance(encoder.embeddings(SAMPLES))
    left_out = task.score(encoder.drop([2]).embeddings(SAMPLES)).values.mean()
    model, report = repair(encoder, [2], SAMPLES)
    assert report.cuts[0].segment == (2, 2) and report.cuts[0].step > 0
    assert report.after < report.before
    assert task.score(model.embeddings(SAMPLES)).values.mean() < left_out
    assert FineSearch(encoder, SAMPLES, task, maps=SegmentMaps(encoder, SAMPLES)).objectives([(2,)])[0] < left_out


@pytest.mark.parametrize("distill_mode", ["none", "feature", "affinity"])
def test_it_is_trained_against_fixed_targets_and_goes_on_with_the_same_bits(
    encoder, tiny_pairs, tmp_path, distill_mode
):
    pairs = load_pairs(str(tiny_pairs), "train")
    images = nn.functional.normalize(torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1)
    split = Split(pairs, images, encoder.embeddings(pairs.captions))
    settings = Settings(max_epoch=2, batch_size=20, lr=3e-3, weight_decay=0.1, warmup_steps=0, seed=0, layerdrop=0.2)

    def new_trainer(folder: str) -> Trainer:
        AcceleratorState._reset_state(reset_partial_state=True)
        objective = Objective(distill_mode, teacher_scale=encoder.logit_scale)
        return Trainer(encoder.drop([2]), TrainingData(split, split, encoder), objective, settings, tmp_path / folder)

    trainer = new_trainer("whole")
    before = split.figures(trainer.encoder)
    history = trainer.train()
    assert history[-1]["task_loss"] < before["task_loss"]
    resumed = new_trainer("whole")
    resumed.resume(1)
    assert resumed.train()[-1]["train_loss"] == history[-1]["train_loss"]
    assert BytesModel.from_pretrained(tmp_path / "whole").config.num_hidden_layers == 2
