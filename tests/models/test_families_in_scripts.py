"""Every family through the scripts: a matrix, then a search of which the winner is the best of all."""

import json
from itertools import combinations

import pytest
from family_models import write_sentence_encoder, write_siglip

import dc_analysis
from data import load_pairs
from search_strategy import search_prune_then_verify_mix

KINDS = {
    "clip vision": ["--tower", "vision"],
    "siglip": [],
    "siglip vision": ["--tower", "vision"],
    "sentence": ["--target_column", "text", "--caption_column", "caption"],
    "sentence alone": ["--objective", "embedding"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_pairs, tiny_clip) -> dict:
    words = {word for caption in load_pairs(str(tiny_pairs), "test", images=False).captions for word in caption.split()}
    root = tmp_path_factory.mktemp("families")
    siglip, sentence = write_siglip(root / "siglip", words), write_sentence_encoder(root / "sentence", words)
    return {"clip": tiny_clip, "siglip": siglip, "sentence": sentence}


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
    data = text_pairs if kind == "sentence" else tiny_pairs
    common = ["--model", str(family), "--dataset", str(data), "--exp_dir", str(tmp_path), "--device", "cpu"]
    columns = flags if "--tower" in flags else flags[2:] if kind == "sentence" else []
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


@pytest.mark.parametrize("kind", ["siglip", "siglip vision", "sentence"])
def test_a_search_of_repaired_proposals(models, tiny_pairs, text_pairs, tmp_path, kind):
    data = text_pairs if kind == "sentence" else tiny_pairs
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
