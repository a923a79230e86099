"""Every family through the scripts: a matrix, then a search of which the winner is the best of all."""

import json
import re
from itertools import combinations

import pytest
from accelerate.state import AcceleratorState
from family_models import write_sentence_encoder, write_siglip

import clip_finetune_train
import dc_analysis
import evaluate_clip
import export_clip
from data import load_pairs
from models import load_encoder
from models.exports import ONNX_NAME
from search_strategy import search_prune_then_verify_mix
from tasks.image_retrieval import retrieval_task

KINDS = {
    "clip vision": ["--tower", "vision"],
    "siglip": [],
    "siglip vision": ["--tower", "vision"],
    "sentence": ["--target_column", "text", "--caption_column", "caption"],
    "sentence alone": ["--objective", "embedding"],
    "modernbert": ["--target_column", "text", "--caption_column", "caption"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_pairs, tiny_clip) -> dict:
    words = {word for caption in load_pairs(str(tiny_pairs), "test", images=False).captions for word in caption.split()}
    root = tmp_path_factory.mktemp("families")
    siglip, sentence = write_siglip(root / "siglip", words), write_sentence_encoder(root / "sentence", words)
    modernbert = write_sentence_encoder(root / "modernbert", words, "modernbert")
    return {"clip": tiny_clip, "siglip": siglip, "sentence": sentence, "modernbert": modernbert}


@pytest.fixture(scope="module")
def text_pairs(tiny_pairs, tmp_path_factory):
    """The captions, each with its words in another order."""
    folder = tmp_path_factory.mktemp("text_pairs")
    for split in ("train", "validation", "test"):
        captions = load_pairs(str(tiny_pairs), split, images=False).captions
        rows = [{"caption": caption, "text": " ".join(reversed(caption.split()))} for caption in captions]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_and_a_search(models, tiny_pairs, text_pairs, tmp_path, capsys, kind):
    family, flags = models[kind.split()[0]], KINDS[kind]
    data = text_pairs if "--target_column" in flags else tiny_pairs
    common = ["--model", str(family), "--dataset", str(data), "--exp_dir", str(tmp_path), "--device", "cpu"]
    columns = flags if "--tower" in flags else flags[2:] if "--target_column" in flags else []
    dc_analysis.main([*common, *columns])
    layers = 2 if kind == "clip vision" else 4
    sizes = ["--num_layers", str(layers), "--num_clip_layers", str(layers // 2), "--repair", "false"]
    search_prune_then_verify_mix.main([*common, *flags, *sizes])
    (result,) = list(tmp_path.rglob("clip*.json"))
    found = json.loads(result.read_text())
    assert ("vision" in result.parts) == ("vision" in kind)
    assert len(found["proposals"]) == len(list(combinations(range(layers), layers // 2)))
    assert found["winner"]["objective"] == min(proposal["objective"] for proposal in found["proposals"])
    assert (found["winner"]["task_loss"] is None) == (kind == "sentence alone")
    assert "winner: drop" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["siglip", "siglip vision", "sentence", "modernbert"])
def test_a_search_of_repaired_proposals(models, tiny_pairs, text_pairs, tmp_path, kind):
    data = text_pairs if "--target_column" in KINDS[kind] else tiny_pairs
    common = [
        "--model",
        str(models[kind.split()[0]]),
        "--dataset",
        str(data),
        "--exp_dir",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    sizes = ["--num_layers", "4", "--num_clip_layers", "2", "--select_measure", "rand", "--refine", "0"]
    search_prune_then_verify_mix.main([*common, *KINDS[kind], *sizes, "--repair", "true"])
    (result,) = list(tmp_path.rglob("clip*.json"))
    assert json.loads(result.read_text())["winner"]["task_loss"] > 0


@pytest.mark.parametrize("kind", ["clip vision", "siglip", "siglip vision", "sentence", "modernbert"])
def test_a_training_that_starts_from_the_repaired_model(models, tiny_pairs, text_pairs, tmp_path, kind):
    AcceleratorState._reset_state(reset_partial_state=True)
    data = text_pairs if "--target_column" in KINDS[kind] else tiny_pairs
    layers = 2 if kind == "clip vision" else 4
    flags = [
        "--model",
        str(models[kind.split()[0]]),
        "--dataset",
        str(data),
        "--exp_dir",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    flags += ["--num_layers", str(layers), "--num_clip_layers", "1", "--clip_layers", "2", "--batch_size", "20"]
    clip_finetune_train.main([*flags, *KINDS[kind], "--output_dir", "run", "--max_epoch", "2"])
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert set(report["test"]) == {"full", "pruned", "repaired", "fine-tuned"}
    assert all(0 <= figures["mean_recall"] <= 1 for figures in report["test"].values())
    tower = "vision" if "vision" in kind else "text"
    assert load_encoder(str(tmp_path / "run"), tower).num_layers == layers - 1
    card = (tmp_path / "run/README.md").read_text()
    assert f"{layers - 1} of its {layers} {'image' if tower == 'vision' else 'text'} layers" in card


@pytest.mark.parametrize("kind", ["siglip", "sentence"])
def test_an_evaluation_beside_the_pruned_model(models, tiny_pairs, text_pairs, tmp_path, kind):
    load_encoder(str(models[kind])).drop([2]).save(tmp_path / "pruned")
    data = text_pairs if kind == "sentence" else tiny_pairs
    names = ["--model", str(models[kind]), str(tmp_path / "pruned")]
    evaluate_clip.main([*names, *KINDS[kind], "--dataset", str(data), "--exp_dir", str(tmp_path), "--device", "cpu"])
    (result,) = tmp_path.rglob("evaluation_*.json")
    full, pruned = json.loads(result.read_text())["models"]
    assert (full["text_layers"], pruned["text_layers"]) == (4, 3)
    pairs = load_pairs(
        str(data), "test", **dict(zip(("target_column", "caption_column"), KINDS[kind][1::2], strict=False))
    )
    pairs, targets = load_encoder(str(models[kind])).embed_pairs(pairs)  # the index is the full model's
    pruned_encoder = load_encoder(str(tmp_path / "pruned"))
    expected = retrieval_task(pruned_encoder, targets, pairs.image_index).score(
        pruned_encoder.embeddings(pairs.captions)
    )
    assert pruned["task_loss"] == pytest.approx(expected.figures["task_loss"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tower vision --images false --distill_mode feature", "--tower vision needs images"),
        ("--tower vision --clip_mode scratch", "--clip_mode scratch is for --tower text"),
        ("--images false --target_column text", "--images false takes captions alone"),
        ("--tower vision --clip_mode finetune", "no search result: .*vision.*--tower vision .*; or pass --clip_layers"),
    ],
)
def test_flags_of_towers_that_do_not_go_together(models, tmp_path, capsys, flags, message):
    common = ["--model", str(models["siglip"]), "--exp_dir", str(tmp_path), "--device", "cpu", "--output_dir", "run"]
    with pytest.raises(SystemExit):
        clip_finetune_train.main([*common, "--num_layers", "4", "--num_clip_layers", "1", *flags.split()])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("kind", ["siglip", "sentence", "modernbert"])
def test_the_text_tower_of_any_family_runs_in_onnx_runtime(models, tiny_pairs, tmp_path, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    common = ["--model", str(models[kind]), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path)]
    export_clip.main([*common, "--to", "onnx", "--output_dir", "onnx"])  # compares all captions in batches of 1, 7, 64
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / ONNX_NAME, providers=["CPUExecutionProvider"])
    names = ["input_ids"] if kind == "siglip" else ["input_ids", "attention_mask"]
    assert [entry.name for entry in session.get_inputs()] == names


@pytest.mark.parametrize("kind", ["siglip", "sentence"])
def test_exports_that_are_for_clip_alone_are_refused_by_kind(models, tiny_pairs, tmp_path, capsys, kind):
    common = ["--model", str(models[kind]), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        export_clip.main([*common, "--to", "text"])
    error = capsys.readouterr().err
    assert "--to text is for CLIP alone (model_type clip), found" in error and "--to onnx takes it" in error
    assert ("sentence-transformers loads its folder as it is" in error) == (kind == "sentence")
    assert not list(tmp_path.iterdir())
