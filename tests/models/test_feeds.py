"""The feeds of the measures that see more than hidden states, ablation and repair, from script to search."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

import similarity_analysis
from common import model_dir, tower_dir
from common.matrix_files import MatrixSettings
from data import load_pairs
from models import feeds, load_clip
from search_strategy import search_prune_then_verify_mix as search
from search_strategy.coarse import coarse_search

NUM_LAYERS = 4
COUNTS = ("--batch_size", "5", "--iter_num", "2", "--repeats", "2", "--precision", "float64")


@pytest.fixture(scope="module")
def places(tiny_clip, tiny_pairs, tmp_path_factory):
    return ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path_factory.mktemp("exp"))]


@pytest.fixture(scope="module")
def folder(places):
    """The files of a run on two draws of ten captions."""
    similarity_analysis.main(["--measure", "ablation", *COUNTS, *places])
    return model_dir(Path(places[-1]), places[1])


def plain_matrix(tiny_clip, captions):
    """The same by rebuilding the model for every run of layers, one caption at a time."""
    clip = load_clip(str(tiny_clip), "cpu")
    clip.model.double()

    def embed(model):
        ids = [torch.tensor([tokens]) for tokens in clip.prepare(captions)]
        with torch.no_grad():
            rows = torch.cat([model.get_text_features(input_ids=one).pooler_output for one in ids])
        return torch.nn.functional.normalize(rows, dim=-1)

    full, matrix = embed(clip.model), np.eye(NUM_LAYERS + 1)
    for first in range(NUM_LAYERS + 1):
        for last in range(first + 1, NUM_LAYERS + 1):
            pruned = deepcopy(clip.model)
            del pruned.text_model.encoder.layers[first:last]
            matrix[first, last] = matrix[last, first] = (embed(pruned) * full).sum(-1).mean()
    return matrix


def test_matrix_is_that_of_rebuilt_models(folder, tiny_clip, tiny_pairs):
    captions = load_pairs(str(tiny_pairs), "train", images=False).captions
    order = np.random.default_rng(0).permutation(len(captions))[:20].reshape(2, 10)
    draws = [plain_matrix(tiny_clip, [captions[row] for row in rows]) for rows in order]
    (path,) = (path for path in folder.glob("ablation_mat_*_rep2_*.npy") if not path.stem.endswith("_std"))
    assert path.name.startswith("ablation_mat_10U")
    assert np.abs(np.load(path) - np.mean(draws, axis=0)).max() < 1e-12
    assert np.abs(np.load(path.with_name(f"{path.stem}_std.npy")) - np.std(draws, axis=0, ddof=1)).max() < 1e-12


def test_a_segment_costs_only_the_layers_behind_it(tiny_clip, tiny_pairs):
    clip, calls = load_clip(str(tiny_clip)), []
    tokens = clip.prepare(load_pairs(str(tiny_pairs), "train", images=False).captions[:5])
    feeds.embeddings_without_segments(clip, tokens, MatrixSettings("ablation"), 32)  # the first `start` runs layer 1
    for layer in clip.stack.layers:
        layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    feeds.embeddings_without_segments(clip, tokens, MatrixSettings("ablation"), 32)
    unshared = NUM_LAYERS + sum(NUM_LAYERS - (last - first) for last in range(NUM_LAYERS + 1) for first in range(last))
    assert len(calls) == (NUM_LAYERS**3 + 5 * NUM_LAYERS) // 6 < unshared


def test_the_search_reads_it_and_names_the_command_where_it_is_missing(places, folder, capsys):
    flags = ["--num_layers", "4", "--num_clip_layers", "2", "--select_measure", "ablation", "--score", "sum", *places]
    flags += ["--coarse_search_only", "true"]
    with pytest.raises(SystemExit):
        search.main(flags)
    assert "similarity_analysis.py --measure ablation --batch_size 4 --iter_num 10" in capsys.readouterr().err
    search.main([*flags, "--bs", "5", "--iter", "2", "--repeats", "2"])
    (path,) = folder.glob("clip4to2_*ablation*.json")
    (matrix,) = (np.load(file) for file in folder.glob("ablation_mat_*.npy") if not file.stem.endswith("_std"))
    expected = coarse_search(matrix, 2, mode="beam", num_proposals=10, score="sum")
    found = json.loads(path.read_text())["proposals"]
    assert [tuple(p["dropped_layers"]) for p in found] == [proposal for proposal, _ in expected]


def test_the_feed_of_repair_holds_inputs_sums_and_later_states(tiny_clip, tiny_pairs):
    clip = load_clip(str(tiny_clip))
    captions = load_pairs(str(tiny_pairs), "train", images=False).captions[:7]
    tokens = clip.prepare(captions)
    tensors = feeds.repairs(clip, tokens, MatrixSettings("repair"), max(map(len, tokens)))
    assert len(tensors) == NUM_LAYERS * (NUM_LAYERS + 5) // 2
    assert {len(tensor) for tensor in tensors} == {sum(map(len, tokens))}
    with torch.no_grad():
        (batch,) = clip.batches(captions, 7)
        states = [state[batch.mask] for state in clip.stack.hidden_states(**batch.inputs)]
    inputs, current, *later = tensors[2 + NUM_LAYERS : 2 + NUM_LAYERS + 5]  # of layer 1
    linear = clip.stack.layers[0].mlp.fc2
    torch.testing.assert_close(current, states[1])
    assert inputs.shape[1] == linear.in_features
    for found, expected in zip(later, states[2:], strict=True):
        torch.testing.assert_close(found, expected)


def test_the_matrix_of_repair_is_written_and_searched(places):
    similarity_analysis.main(["--measure", "repair", "--batch_size", "10", "--iter_num", "5", *places])
    (path,) = model_dir(Path(places[-1]), places[1]).glob("repair_mat_50T*.npy")
    matrix = np.load(path)
    assert matrix.shape == (NUM_LAYERS + 1, NUM_LAYERS + 1)
    assert (matrix.diagonal() == 1).all() and (matrix >= 0).all() and (matrix <= 1).all()
    flags = ["--num_layers", "4", "--num_clip_layers", "2", "--select_measure", "repair", "--bs", "10", "--iter", "5"]
    search.main([*flags, "--coarse_search_only", "true", *places])
    assert list(path.parent.glob("clip4to2_beam_repair_mat_50T*.json"))


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_repair_of_shuffled_rows_explains_next_to_nothing(places, tower: str):
    """Also where the embeddings, made of patches, take no map: a feed without columns."""
    flags = ("--measure", "repair", "--batch_size", "12", "--iter_num", "4", "--baseline", "true", "--tower", tower)
    similarity_analysis.main([*flags, *places])
    folder = tower_dir(Path(places[-1]), places[1], tower)
    (path,) = folder.glob("repair_mat_48T*_baseline.npy")
    assert 0 <= np.triu(np.load(path), 1).max() < 0.1
