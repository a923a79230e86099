"""evaluate_clip.py through its command line: the table, the JSON and the picture against the library's own figures."""

import json

import pytest
from datasets import ClassLabel, load_dataset
from transformers import CLIPConfig, CLIPModel

import evaluate_clip
from commands import evaluate
from data import load_pairs
from models import load_clip
from tasks.retrieval import Retrieval
from tasks.zero_shot import class_embeddings, classes_in_captions, zero_shot_accuracy

SHAPES = ["square", "triangle", "hexagon"]


@pytest.fixture(scope="module")
def pruned(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "pruned"
    clip = load_clip(str(tiny_clip))
    clip.stack.drop([2, 3]).save_pretrained(folder)
    clip.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(SHAPES))
    return path


def run(tmp_path, models, dataset, *flags):
    """Run the script; returns what it wrote as JSON."""
    words = [
        "--model",
        *map(str, models),
        "--dataset",
        str(dataset),
        "--exp_dir",
        str(tmp_path / "exp"),
        *map(str, flags),
    ]
    evaluate_clip.main(words)
    (path,) = (tmp_path / "exp").glob("*/evaluation_*.json")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return json.loads(path.read_text()) | {"path": path}


def test_every_model_has_the_figures_of_the_library(tmp_path, tiny_clip, tiny_pairs, pruned, labels, capsys):
    result = run(tmp_path, [tiny_clip, pruned], tiny_pairs, "--labels", labels, "--template", "red {}")
    assert result["path"].name.startswith("evaluation_test_") and result["path"].name.endswith("_vs_pruned.json")
    assert [model["text_layers"] for model in result["models"]] == [4, 2]
    pairs = load_pairs(str(tiny_pairs), "test")
    for figures, folder in zip(result["models"], (tiny_clip, pruned), strict=True):
        clip = load_clip(str(folder))
        images = clip.image_embeddings(pairs.images)
        task = Retrieval(images, pairs.image_index, clip.logit_scale)
        expected = task.score(clip.embeddings(pairs.captions)).figures
        right = classes_in_captions(SHAPES, pairs.captions, pairs.image_index)
        expected |= zero_shot_accuracy(images, class_embeddings(clip.embeddings, SHAPES, ["red {}"]), right)
        expected["text_parameters"] = clip.num_parameters()
        expected["weights_bytes"] = (folder / "model.safetensors").stat().st_size
        assert {name: figures[name] for name in expected} == pytest.approx(expected)
        assert all(figures[name] > 0 for name in evaluate.MILLISECONDS)
    out = capsys.readouterr().out
    share = result["models"][1]["text_parameters"] / result["models"][0]["text_parameters"]
    assert f"{share:.1%}" in out and evaluate.RULE in out


def test_one_model_alone_has_no_comparison(tmp_path, tiny_clip, tiny_pairs, capsys):
    result = run(tmp_path, [tiny_clip], tiny_pairs, "--split", "validation")
    assert "_vs_" not in result["path"].name and result["path"].name.startswith("evaluation_validation")
    assert result["data"]["split"] == "validation"
    assert "zero_shot_accuracy_at_1" not in result["models"][0]
    assert "zero-shot" not in capsys.readouterr().out


def test_captions_alone_are_judged_by_the_distance_to_the_first_model(tmp_path, tiny_clip, tiny_pairs, pruned, capsys):
    (tmp_path / "captions.txt").write_text("\n".join(load_pairs(str(tiny_pairs), "test", images=False).captions))
    flags = ("--images", "false", "--split", "all")
    full, half = run(tmp_path, [tiny_clip, pruned], tmp_path / "captions.txt", *flags)["models"]
    one, other = (load_clip(str(folder)).embeddings(["red square"]) for folder in (tiny_clip, pruned))
    assert full["distance_to_the_first"] == pytest.approx(0, abs=1e-6)
    assert 0.1 < half["distance_to_the_first"] / (1 - (one * other).sum().item()) < 10
    assert not any("recall" in name for name in half)
    assert f"distance to {tiny_clip.name}" in capsys.readouterr().out


def test_all_rows_of_a_benchmark_can_be_read(tmp_path, tiny_clip, tiny_pairs):
    """A source with one split alone is cut into three, but for `--split all`."""
    rows = load_dataset("parquet", data_files=str(tiny_pairs / "test.parquet"))["train"]
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "test.parquet")
    assert run(tmp_path, [tiny_clip], tmp_path / "data", "--split", "all")["data"]["captions"] == 60
    assert run(tmp_path / "cut", [tiny_clip], tmp_path / "data")["data"]["captions"] < 20


def with_shapes(tiny_pairs, folder, kind):
    """The pairs with a column `shape`, by name, by class with a name, or by number."""
    for path in tiny_pairs.glob("*.parquet"):
        rows = load_dataset("parquet", data_files=str(path))["train"]
        numbers = [next(i for i, shape in enumerate(SHAPES) if shape in words.split()) for words in rows["caption"]]
        rows = rows.add_column("shape", [SHAPES[i] for i in numbers] if kind == "name" else numbers)
        if kind == "class":
            rows = rows.cast_column("shape", ClassLabel(names=SHAPES))
        rows.to_parquet(folder / path.name)
    return folder


@pytest.mark.parametrize("kind", ["name", "class", "number"])
def test_classes_may_come_from_a_column(tmp_path, tiny_clip, tiny_pairs, labels, kind):
    (tmp_path / "data").mkdir()
    pairs = with_shapes(tiny_pairs, tmp_path / "data", kind)
    # every caption names its shape, so the column says what the captions say
    expected = run(tmp_path / "words", [tiny_clip], tiny_pairs, "--labels", labels)["models"][0]
    figures = run(tmp_path, [tiny_clip], pairs, "--labels", labels, "--label_column", "shape")["models"][0]
    assert figures["zero_shot_accuracy_at_1"] == expected["zero_shot_accuracy_at_1"]
    assert figures["zero_shot_images"] == 60


def test_names_are_as_short_as_they_can_be():
    assert evaluate.short_names(["exp/iconclip", "exp/run/best"]) == ["iconclip", "run/best"]
    assert evaluate.short_names(["a/clip", "b/clip"]) == ["a/clip", "b/clip"]
    assert evaluate.short_names(["openai/clip-vit-base-patch32"]) == ["clip-vit-base-patch32"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--template", "a {}"], "--templates, --template and --label_column need --labels"),
        (["--label_column", "shape"], "--templates, --template and --label_column need --labels"),
        (["--labels", "LABELS", "--template", "a photo"], "expected a {} where the label goes"),
        (["--labels", "LABELS", "--label_column", "shape"], "no label column; looked for shape"),
        (["--labels", "LABELS", "--label_column", "caption"], "are no line of --labels"),
        (["--labels", "LABELS", "--label_column", "image"], "expected text or numbers of classes"),
        (["--labels", "missing.txt"], "No such file or directory: 'missing.txt'"),
        (["--labels", "LABELS", "--images", "false"], "--labels classifies images: leave out"),
        (["--target_column", "x", "--images", "false"], "captions alone: leave out --target_column"),
        (["--split", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(tmp_path, tiny_clip, tiny_pairs, labels, capsys, flags, message):
    words = [str(labels) if word == "LABELS" else word for word in flags]
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, [tiny_clip], tiny_pairs, *words)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "error:" in error
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label_column", "shape"], "--templates, --template and --label_column need --labels"),
        (["--labels", "LABELS", "--template", "a photo"], "expected a {} where the label goes"),
        (["--labels", "missing.txt"], "No such file or directory: 'missing.txt'"),
        (["--labels", "LABELS", "--images", "false"], "--labels classifies images: leave out"),
        (["--target_column", "x", "--images", "false"], "captions alone: leave out --target_column"),
    ],
)
def test_wrong_flags_are_said_before_a_model_is_read(tmp_path, labels, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(evaluate, "load_encoder", lambda *_, **__: pytest.fail("a model is read"))
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, ["clip"], "icons", *[str(labels) if word == "LABELS" else word for word in flags])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--images", "false"), ("--target_column", "caption")])
def test_models_of_another_width_are_named_before_data_is_read(
    tmp_path, tiny_clip, tiny_pairs, monkeypatch, capsys, flags
):
    config = CLIPConfig.from_pretrained(tiny_clip, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path / "narrow")
    load_clip(str(tiny_clip)).processor.save_pretrained(tmp_path / "narrow")
    monkeypatch.setattr(evaluate, "load_pairs", lambda *_, **__: pytest.fail("data is read"))
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, [tiny_clip, tmp_path / "narrow"], tiny_pairs, *flags)
    assert "narrow has embeddings of width 8, " in capsys.readouterr().err


def test_a_missing_model_is_named(tmp_path, tiny_clip, tiny_pairs, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, [tiny_clip, tmp_path / "nowhere"], tiny_pairs)
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "exp").exists()
