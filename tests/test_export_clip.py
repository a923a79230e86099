"""export_clip.py: every export in its own runtime, what stops one, a pruned model in Hugging Face's entry points."""

import importlib
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer, CLIPTextModelWithProjection, pipeline

import export_clip
from commands import export
from data import load_pairs
from models import exports, load_clip
from models.exports import batches, largest_difference
from models.repair import repaired


@pytest.fixture(scope="module")
def pruned(tiny_clip, tiny_pairs, tmp_path_factory):
    """A folder with the tiny CLIP without its layers 2 and 3, repaired."""
    folder = tmp_path_factory.mktemp("models") / "pruned"
    clip = load_clip(str(tiny_clip))
    repaired(clip, [2, 3], load_pairs(str(tiny_pairs), "train", images=False).captions).save(folder)
    return folder


@pytest.fixture(scope="module")
def captions(tiny_pairs):
    return load_pairs(str(tiny_pairs), "test").captions


def run(tmp_path, model, pairs, to, *flags):
    """Run the script; returns the folder that it names and its record."""
    common = ["--model", str(model), "--dataset", str(pairs), "--exp_dir", str(tmp_path)]
    export_clip.main([*common, "--to", to, "--output_dir", "export", *flags])
    return tmp_path / "export", json.loads((tmp_path / "export" / export.RECORD_NAME).read_text())


def test_the_folder_of_all_results_is_not_named_twice(tmp_path, pruned, tiny_pairs, capsys):
    places = ["--model", str(pruned), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path / "exp")]
    export_clip.main([*places, "--to", "text", "--output_dir", "exp/foo"])
    assert (tmp_path / "exp" / "foo" / export.RECORD_NAME).is_file()
    with pytest.raises(SystemExit):
        export_clip.main([*places, "--to", "text", "--output_dir", "../foo"])
    assert "--output_dir '../foo': expected the name of a folder below" in capsys.readouterr().err


# --- each kind


def test_the_text_export_is_a_text_model_with_projection(tmp_path, pruned, tiny_pairs, captions, capsys):
    folder, record = run(tmp_path, pruned, tiny_pairs, "text")
    model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
    assert model.config.num_hidden_layers == 2
    inputs = AutoTokenizer.from_pretrained(folder)(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        embeddings = F.normalize(model(**inputs).text_embeds, dim=-1)
    assert torch.allclose(embeddings, load_clip(str(pruned)).embeddings(captions), atol=1e-6)
    assert record["normalized"] is False and record["captions"] == 60
    assert 0 <= record["largest_difference"]["captions"] < 1e-5
    assert "compared on" in capsys.readouterr().out


def test_the_export_truncates_long_captions_by_itself(tmp_path, pruned, tiny_pairs):
    folder, _ = run(tmp_path, pruned, tiny_pairs, "text")
    ids = AutoTokenizer.from_pretrained(folder)("red square " * 40, truncation=True)["input_ids"]
    assert ids == load_clip(str(pruned)).prepare(["red square " * 40])[0] and len(ids) == 32


@pytest.mark.parametrize(("ids", "normalize"), [("int64", "true"), ("int32", "false")])
def test_the_onnx_export_takes_any_batch_and_length(tmp_path, pruned, tiny_pairs, ids, normalize):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, record = run(tmp_path, pruned, tiny_pairs, "onnx", "--ids", ids, "--normalize", normalize)
    assert record["normalized"] is (normalize == "true")
    session = onnxruntime.InferenceSession(folder / exports.ONNX_NAME, providers=["CPUExecutionProvider"])
    (entry,), (result,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == ("input_ids", f"tensor({ids})", ["batch", "length"])
    assert (result.name, result.shape) == ("text_embeds", ["batch", 16])
    clip = load_clip(str(pruned))
    end = clip.model.config.text_config.eos_token_id
    for size, length in ((1, 2), (3, 7), (5, 32)):
        tokens = torch.randint(0, end, (size, length), generator=torch.Generator().manual_seed(0))
        tokens[:, length - 1] = end
        found = torch.from_numpy(session.run(None, {"input_ids": tokens.to(getattr(torch, ids)).numpy()})[0])
        with torch.no_grad():
            expected = clip.model.get_text_features(input_ids=tokens).pooler_output
        expected = F.normalize(expected, dim=-1) if normalize == "true" else expected
        assert torch.allclose(found, expected, atol=1e-5)


def test_the_open_clip_export_is_compared_on_captions_and_images(tmp_path, pruned, tiny_pairs, captions):
    pytest.importorskip("open_clip", exc_type=ImportError)
    folder, record = run(tmp_path, pruned, tiny_pairs, "open_clip")
    assert set(record["largest_difference"]) == {"captions", "images"}
    assert max(record["largest_difference"].values()) < 1e-5 and record["images"] == 32
    again = load_clip(str(folder))
    assert again.num_layers == 2
    expected = load_clip(str(pruned)).embeddings(captions)
    assert torch.allclose(again.embeddings(captions), expected, atol=1e-6)


def test_the_open_clip_export_knows_where_its_tokenizer_will_be(tmp_path, pruned):
    exports.write_open_clip(load_clip(str(pruned)), tmp_path, exports.Options(hub_name="owner/name"))
    settings = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert settings["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "owner/name"


def test_what_is_compared_is_what_the_runtime_gives(tmp_path, pruned, tiny_pairs, monkeypatch):
    seen = {}

    def read(folder, captions, images):
        seen.update(folder=folder, captions=list(captions))
        return exports.read_text(folder, captions, images)

    monkeypatch.setitem(export.EXPORTS, "text", (exports.write_text, read))
    folder, _ = run(tmp_path, pruned, tiny_pairs, "text", "--num_captions", "9")
    assert seen["captions"] == load_pairs(str(tiny_pairs), "validation").captions[:9]
    assert seen["folder"] != folder and not seen["folder"].exists()


# --- what stops an export


def test_an_export_that_differs_is_not_written(tmp_path, pruned, tiny_pairs, monkeypatch, capsys):
    def write(clip, folder, options):
        with torch.no_grad():
            clip.model.text_projection.weight[0, 0] += 0.01
        exports.write_text(clip, folder, options)
        with torch.no_grad():
            clip.model.text_projection.weight[0, 0] -= 0.01

    monkeypatch.setitem(export.EXPORTS, "text", (write, exports.read_text))
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, pruned, tiny_pairs, "text")
    assert "--to text differs from the model by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("to", "module"), [("onnx", "onnxruntime"), ("open_clip", "open_clip")])
def test_a_missing_runtime_names_the_requirements(tmp_path, pruned, tiny_pairs, monkeypatch, capsys, to, module):
    def import_module(name):
        if name == module:
            raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, pruned, tiny_pairs, to)
    error = capsys.readouterr().err
    assert f"--to {to} needs {module}, which cannot be imported" in error
    assert "pip install -r requirements-export.txt" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ids", "int32"], "--ids is for --to onnx only, not for --to text"),
        (["--normalize", "false"], "--normalize is for --to onnx only"),
        (["--normalize", "yes"], "expected true or false, got 'yes'"),
        (["--num_captions", "0"], "expected a number of at least 1"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, pruned, tiny_pairs, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, pruned, tiny_pairs, "text", *flags)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_and_anything_else_is_not(tmp_path, pruned, tiny_clip, tiny_pairs, capsys):
    run(tmp_path, tiny_clip, tiny_pairs, "text")
    folder, record = run(tmp_path, pruned, tiny_pairs, "text")
    assert record["model"]["text_layers"] == 2
    (folder / export.RECORD_NAME).rename(folder / "notes.json")
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, tiny_clip, tiny_pairs, "text")
    assert "holds something else than an export; pass another --output_dir" in capsys.readouterr().err
    assert CLIPTextModelWithProjection.from_pretrained(folder).config.num_hidden_layers == 2
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


# --- parts


def test_the_difference_is_a_share_of_the_originals_length():
    original = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert largest_difference(original, original) == 0
    assert largest_difference(original + torch.tensor([[0.5, 0.0], [0.0, 0.0]]), original) == pytest.approx(0.1)
    assert largest_difference(torch.full((2, 2), torch.nan), original) == torch.inf


def test_batches_cover_the_captions_in_changing_sizes():
    captions = [str(i) for i in range(100)]
    parts = list(batches(captions))
    assert sum(parts, []) == captions
    assert [len(part) for part in parts] == [1, 7, 64, 1, 7, 20]


# --- a pruned model is a model like any other


def test_a_pruned_model_loads_as_auto_model(pruned, captions):
    model = AutoModel.from_pretrained(pruned).eval()
    assert model.config.text_config.num_hidden_layers == len(model.text_model.encoder.layers) == 2
    inputs = AutoTokenizer.from_pretrained(pruned)(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        embeddings = F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)
    assert torch.allclose(embeddings, load_clip(str(pruned)).embeddings(captions), atol=1e-6)


def test_a_pruned_model_classifies_in_a_pipeline(pruned, tiny_pairs):
    clip, pairs = load_clip(str(pruned)), load_pairs(str(tiny_pairs), "test")
    labels = ["red square", "blue triangle", "green hexagon"]
    classify = pipeline("zero-shot-image-classification", model=str(pruned), device="cpu")
    scores = {row["label"]: row["score"] for row in classify(pairs.images[0], candidate_labels=labels)}
    prompts = [f"This is a photo of {label}." for label in labels]
    with torch.no_grad():
        image = clip.embed_images(clip.preprocess([pairs.images[0]]))
    expected = (clip.logit_scale * image @ clip.embeddings(prompts).T).softmax(-1)[0]
    assert [scores[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_pruned_model_is_a_text_model_with_projection_without_an_export(pruned, captions):
    model = CLIPTextModelWithProjection.from_pretrained(pruned).eval()
    inputs = AutoTokenizer.from_pretrained(pruned)(captions, padding="max_length", max_length=32, return_tensors="pt")
    with torch.no_grad():
        embeddings = F.normalize(model(**inputs).text_embeds, dim=-1)
    assert torch.allclose(embeddings, load_clip(str(pruned)).embeddings(captions), atol=1e-6)


def test_a_pruned_model_embeds_in_sentence_transformers(pruned, tiny_pairs, captions):
    package = pytest.importorskip("sentence_transformers")
    model, clip = package.SentenceTransformer(str(pruned), device="cpu"), load_clip(str(pruned))
    texts = F.normalize(torch.from_numpy(model.encode(captions[:9])), dim=-1)
    assert torch.allclose(texts, clip.embeddings(captions[:9]), atol=1e-5)
    picture = load_pairs(str(tiny_pairs), "test").images[0]
    image = F.normalize(torch.from_numpy(model.encode([picture])), dim=-1)
    with torch.no_grad():
        assert torch.allclose(image, clip.embed_images(clip.preprocess([picture])), atol=1e-5)
