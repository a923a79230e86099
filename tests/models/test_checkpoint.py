"""Checkpoints that are damaged, do not fit together or bring code: one clear line each, and nothing is run."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from models import checkpoint, load_clip
from models.checkpoint import read_config, read_model, read_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_clip, tmp_path) -> Path:
    """A copy of a CLIP, to be damaged."""
    return Path(shutil.copytree(tiny_clip, tmp_path / "clip"))


def edit_config(folder: Path, text: dict | None = None, **settings) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | settings
    config["text_config"] |= text or {}
    path.write_text(json.dumps(config))


def edit_weights(folder: Path, change: Callable[[dict], None]) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def read(folder: Path) -> CLIPModel:
    return read_model(CLIPModel, str(folder), read_config(str(folder)))


# ---- code


@pytest.fixture
def canary(folder, tmp_path, monkeypatch) -> Path:
    """A file that exists once the code beside the checkpoint has run; who asks is told yes."""
    path = tmp_path / "canary"
    code = f"open({str(path)!r}, 'w')\nclass Evil:\n    pass\n"
    (folder / "evil.py").write_text(code)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return path


def test_code_of_an_unknown_model_is_never_run(folder, canary):
    edit_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    with pytest.raises(ValueError, match=r"model_type 'evil': the checkpoint brings its own code .* never run"):
        load_clip(str(folder))
    assert not canary.exists()


def test_code_beside_a_known_model_is_never_run(folder, canary):
    edit_config(folder, auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    with pytest.raises(ValueError, match="brings its own code"):  # without it the model is another one
        load_clip(str(folder))
    assert not canary.exists()


def test_code_of_a_tokenizer_is_never_run(folder, canary):
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="brings its own code"):
        load_clip(str(folder))
    assert not canary.exists()


def test_code_in_a_pickle_is_never_run(folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    (folder / WEIGHTS).unlink()
    torch.save({"logit_scale": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match="the weights cannot be read .a pickle of more than tensors, whose code is never run"
    ):
        read(folder)
    assert not (tmp_path / "canary").exists()


def test_a_pickle_of_tensors_is_read(folder):
    expected = read(folder).state_dict()
    torch.save(expected, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read(folder).state_dict().items())


# ---- configuration


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "JSONDecodeError"),
        (b'{"model_type": ', "JSONDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b"\xff\xfe{}", "UnicodeDecodeError"),
        (b"[]", "expected a JSON object with a model_type"),
        (b"null", "expected a JSON object with a model_type"),
        (b"{}", "expected a JSON object with a model_type"),
        (b'{"model_type": 7}', "expected a JSON object with a model_type"),
        (b'{"model_type": "clip", "text_config": 7}', "text_config"),
    ],
)
def test_a_damaged_configuration_is_named_with_its_cause(folder, content, message):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"clip/config.json: not the configuration of a model \(.*{message}"):
        read_config(str(folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": "four"}, "not the configuration of a model .*num_hidden_layers.* expected int, got str"),
        ({"num_attention_heads": 0}, "not the configuration of a model .*ZeroDivisionError"),
        ({"num_attention_heads": 7}, r"not a multiple of the number of attention heads \(7\)"),
        ({"hidden_act": "magic"}, "no CLIPModel can be made from it .*magic"),
    ],
)
def test_values_that_make_no_model_are_named(folder, settings, message):
    edit_config(folder, settings)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_an_unknown_kind_of_model_is_named(folder):
    edit_config(folder, model_type="clop")
    with pytest.raises(ValueError, match="model_type 'clop': this version of transformers has none"):
        read_config(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "model not found: the name is empty"),
        ("no/such", "'no/such' is no folder here, and .* no copy in .* cache; pass the folder of a model"),
        ("no such, at all", "this is no name of the hub either"),
        ("ViT-B-32", "models of open_clip are named as on the hub: hf-hub:"),
    ],
)
def test_what_is_not_there_is_said_with_the_reason(name, message):
    with pytest.raises(FileNotFoundError, match=message):
        read_config(name)


def test_a_folder_without_a_configuration_says_what_is_there(folder):
    (folder / "config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match="expected a config.json or an open_clip_config.json; found .*tokenizer.json"
    ):
        read_config(str(folder))
    (folder / "epoch_latest.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"open_clip training \(epoch_latest.pt\) are read when named"):
        read_config(str(folder))
    with pytest.raises(FileNotFoundError, match="expected the folder of a model, found a file"):
        read_config(str(folder / WEIGHTS))
    (folder / "modules.json").touch()
    shutil.copytree(folder, folder / "0_CLIPModel")
    (folder / "0_CLIPModel" / "config.json").touch()
    with pytest.raises(FileNotFoundError, match="this one is of sentence-transformers: pass .*0_CLIPModel"):
        read_config(str(folder))


# ---- weights


def test_weights_of_more_layers_than_the_configuration_says_are_refused(folder):
    edit_config(folder, {"num_hidden_layers": 3})
    with pytest.raises(
        ValueError, match="weights for 4 layers in text_model.encoder.layers, but its config.json says 3"
    ):
        read(folder)


def test_other_weights_without_a_place_are_named_in_a_warning(folder, caplog):
    edit_weights(folder, lambda state: state.update({"ema.shadow": torch.zeros(2)}))
    with caplog.at_level(logging.WARNING, logger="comflp"):
        read(folder)
    assert "1 weights have no place in a CLIPModel and are left out (ema.shadow)" in caplog.text


def test_missing_weights_are_named_unless_nothing_reads_them(folder):
    edit_weights(folder, lambda state: state.pop("text_projection.weight"))
    with pytest.raises(
        ValueError, match=r"1 weights that its config.json asks for are missing \(text_projection.weight\)"
    ):
        read(folder)
    read_model(CLIPModel, str(folder), read_config(str(folder)), unused=("text_projection.",))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named(folder, value):
    name = "text_model.encoder.layers.2.mlp.fc1.weight"
    edit_weights(folder, lambda state: state[name][0].fill_(value))
    with pytest.raises(ValueError, match=rf"NaN or infinity in 1 weights \({name}\)"):
        read(folder)


def test_a_weight_of_another_shape_is_named_with_both(folder):
    edit_config(folder, {"intermediate_size": 8})
    with pytest.raises(
        ValueError, match=r"do not fit its config.json: text_model.*fc1.bias is \(64,\), expected \(8,\)"
    ):
        read(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and so on", b"[]", b"{}"])
def test_damaged_weights_are_one_line(folder, name, content):
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="the weights cannot be read"):
        read(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_saved_as_it_came(folder, tmp_path, dtype):
    edit_weights(folder, lambda state: state.update({name: tensor.to(dtype) for name, tensor in state.items()}))
    edit_config(folder, dtype=str(dtype).removeprefix("torch."))
    clip = load_clip(str(folder))
    pruned = clip.drop([2])
    assert {parameter.dtype for part in (clip, pruned) for parameter in part.model.parameters()} == {torch.float32}
    pruned.save(tmp_path / "pruned")
    saved = load_file(tmp_path / "pruned" / WEIGHTS)
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
    assert json.loads((tmp_path / "pruned/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert {parameter.dtype for parameter in pruned.model.parameters()} == {torch.float32}
    again = load_clip(str(tmp_path / "pruned"))
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), pruned.model.parameters(), strict=True))


def test_float32_stays_float32(folder, tmp_path):
    load_clip(str(folder)).drop([2]).save(tmp_path / "pruned")
    assert {tensor.dtype for tensor in load_file(tmp_path / "pruned" / WEIGHTS).values()} == {torch.float32}


# ---- tokenizer, image processor


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_a_damaged_tokenizer_is_one_line(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="clip: the tokenizer cannot be read"):
        read_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tokenizer.json", "the tokenizer cannot be read .tokenizer.json is damaged; "),
        ("processor_config.json", "the image processor cannot be read .processor_config.json is damaged; "),
    ],
)
def test_the_damaged_file_is_named(folder, file, message):
    (folder / file).write_text("{")
    with pytest.raises(ValueError, match=message):
        load_clip(str(folder))


def test_a_tokenizer_of_another_model_is_refused(folder):
    def cut(state):
        name = "text_model.embeddings.token_embedding.weight"
        state[name] = state[name][:400].clone()

    tokens = len(read_tokenizer(str(folder)))
    edit_weights(folder, cut)
    edit_config(folder, {"vocab_size": 400})
    with pytest.raises(ValueError, match=rf"tokens up to {tokens - 1}, the model embeddings for 400"):
        load_clip(str(folder))


def test_an_end_token_that_is_never_written_is_refused(folder):
    edit_config(folder, {"eos_token_id": 5})
    with pytest.raises(
        ValueError, match=r"captions are read at token 5 \(eos_token_id 5\), but the tokenizer writes \["
    ):
        load_clip(str(folder))


def test_a_tokenizer_without_an_end_token_is_refused(folder):
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(ValueError, match="put the tokenizer there that the model was trained with"):
        load_clip(str(folder))


def test_messages_are_short_and_on_one_line():
    assert checkpoint.describe(ValueError("a\n  b" + "c" * 500)) == "ValueError: a b" + "c" * 197
    assert checkpoint.describe(EOFError()) == "EOFError"
