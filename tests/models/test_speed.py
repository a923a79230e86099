"""What is counted as an encoder's parameters, and what is timed."""

from types import SimpleNamespace

import pytest
import torch

from commands import finetune
from models import speed
from models.speed import bfloat16_slowdown, measure_milliseconds


def test_text_parameters_shrink_by_those_of_a_layer(clip):
    width, inner, vocabulary, positions = 16, 64, len(clip.processor.tokenizer), 32
    layer = 4 * (width * width + width) + 2 * 2 * width + 2 * width * inner + inner + width
    rest = (vocabulary + positions) * width + 2 * width + width * width
    assert clip.num_parameters() == 4 * layer + rest
    assert clip.drop([2, 3]).num_parameters() == 2 * layer + rest


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 10), (4, [4, 4, 2])])
@pytest.mark.parametrize("full_length", [True, False])
def test_all_captions_are_timed_cut_or_at_the_models_length(clip, pairs, monkeypatch, batch_size, sizes, full_length):
    shapes = []
    forward = clip.model.get_text_features
    monkeypatch.setattr(
        clip.model,
        "get_text_features",
        lambda input_ids: shapes.append(input_ids.shape) or forward(input_ids=input_ids),
    )
    measure_milliseconds(clip, pairs.captions[:10], batch_size, repeats=3, full_length=full_length)
    assert [shape[0] for shape in shapes] == sizes * 4  # one pass that is not counted and three that are
    assert all((shape[1] == 32) == full_length for shape in shapes)


def test_milliseconds_are_the_fastest_pass_divided_by_the_captions(clip, pairs, monkeypatch):
    seconds = iter([0.01, 0.5, 0.1, 0.2])
    monkeypatch.setattr(speed, "_pass_seconds", lambda *_: next(seconds))
    assert measure_milliseconds(clip, pairs.captions[:10], 5, repeats=3) == pytest.approx(10)


def test_padding_to_the_models_length_changes_no_embedding(clip, pairs):
    batch = clip.batch(clip.prepare(pairs.captions[:5]), range(5))
    padded = clip.batch(clip.prepare(pairs.captions[:5]), range(5), clip.max_length)
    assert padded.inputs["input_ids"].shape[1] == 32 > batch.inputs["input_ids"].shape[1]
    with torch.no_grad():
        cut, full = (clip.deployed(one.inputs) for one in (batch, padded))
    assert torch.allclose(cut, full, atol=1e-6)


def test_bfloat16_is_timed_beside_float32(monkeypatch):
    seconds = {torch.float32: iter([9.0, *[0.01] * 9]), torch.bfloat16: iter([9.0, *[0.6] * 9])}
    monkeypatch.setattr(speed, "_product_seconds", lambda matrix: next(seconds[matrix.dtype]))
    assert bfloat16_slowdown("cpu") == pytest.approx(60)


@pytest.mark.parametrize(
    ("precision", "times", "warned"), [("bf16", 60.0, True), ("bf16", 0.7, False), ("fp32", 60.0, False)]
)
def test_a_processor_without_bfloat16_is_remarked_on(precision, times, warned, monkeypatch, caplog):
    monkeypatch.setattr(finetune, "bfloat16_slowdown", lambda device: times)
    finetune.warn_of_slow_precision(SimpleNamespace(precision=precision), "cpu")
    assert ("60 times as long as in fp32" in caplog.text) == warned
