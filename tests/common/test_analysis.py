"""The three analysis scripts, from flags to files, on a CLIP of four layers and 60 captions."""

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, CLIPModel

import dc_analysis
import similarity_analysis
import svcca_analysis
from common import ROOT, Record, analysis, model_dir, plots, set_up_logging, write_array, write_json
from common.files import safe_name
from common.matrix_files import PER_TOKEN_MODES, MatrixSettings
from common.run import Stopwatch
from data import load_pairs
from measures import KINDS, MEASURES
from models import encoders, load_encoder

ALL_CAPTIONS = ("--batch_size", "10", "--iter_num", "6")  # the 60 of the train split
MAINS = {"svcca": svcca_analysis.main, "dc": dc_analysis.main}


@pytest.fixture
def analyse_and_draw(tiny_clip, tiny_pairs, tmp_path):
    """Run a script; returns the folder of its results."""

    def run(measure, *flags, model=tiny_clip, dataset=tiny_pairs):
        main = MAINS.get(measure, similarity_analysis.main)
        chosen = ("--precision", "float64", *(() if measure in MAINS else ("--measure", measure)))
        main([*chosen, *flags, "--model", str(model), "--dataset", str(dataset), "--exp_dir", str(tmp_path)])
        return model_dir(tmp_path, str(model))

    return run


@pytest.fixture
def analyse(analyse_and_draw, monkeypatch):
    """The same without the picture, which takes most of the time."""
    monkeypatch.setattr(plots, "heat_map", lambda *_, **__: None)
    return analyse_and_draw


def read(folder, ending=".npy"):
    """The one array of a folder whose name ends so."""
    found = [path for path in folder.glob("*.npy") if path.name.endswith(ending)]
    if ending == ".npy":
        found = [path for path in found if not path.name.endswith(("_std.npy", "_baseline.npy"))]
    assert len(found) == 1
    return np.load(found[0], allow_pickle=False)


def read_record(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


# --- an independent way to the hidden states: Hugging Face's own, every caption padded to the model's full length


@functools.cache
def padded_hidden_states(tiny_clip, tiny_pairs):
    """All train captions in the order of seed 0: L+1 tensors (60, 32, 16), and their numbers of tokens."""
    captions = load_pairs(str(tiny_pairs), "train", images=False).captions
    captions = [captions[i] for i in np.random.default_rng(0).permutation(len(captions))]
    tokens = AutoTokenizer.from_pretrained(tiny_clip)(
        captions, padding="max_length", max_length=32, return_tensors="pt"
    )
    text_model = CLIPModel.from_pretrained(tiny_clip).double().text_model
    with torch.no_grad():
        states = text_model(**tokens, output_hidden_states=True).hidden_states
    return states, tokens["attention_mask"].sum(1)


def vectors(state, lengths, mode, pool):
    """Samples as rows, one caption at a time."""
    captions = [rows[:length] for rows, length in zip(state, lengths, strict=True)]
    if mode == "T":
        return torch.cat(captions)
    if mode == "seq":
        return torch.stack(
            [torch.cat([rows.flatten(), torch.zeros(state[0].numel() - rows.numel())]) for rows in captions]
        )
    return torch.stack([rows[-1] if pool == "eos" else rows.mean(0) for rows in captions])


def expected_matrix(tiny_clip, tiny_pairs, measure, mode, pool, draw_size=None, rows=slice(None), **options):
    states, lengths = padded_hidden_states(tiny_clip, tiny_pairs)
    samples = [vectors(state[rows], lengths[rows], mode, pool) for state in states]
    oracle = MEASURES[measure](**options)
    for draw in zip(*(layer.split(draw_size or len(layer)) for layer in samples), strict=True):
        oracle.update(draw)
    return oracle.matrix()


@pytest.mark.parametrize(
    ("measure", "flags", "options"),
    [
        ("svcca", "--mode U --pool mean", {}),
        ("svcca", "--mode U --pool eos --thre 0.9", {"thre": 0.9}),
        ("svcca", "--mode T --thre_on variance", {"thre_on": "variance"}),
        ("dc", "--mode mean", {}),
        ("dc", "--mode mean --pool eos --estimator unbiased", {"estimator": "unbiased"}),
        ("dc", "--mode seq", {}),
        ("cka", "--mode U --debiased true", {"debiased": True}),
        ("pwcca", "--mode T --thre 0.9", {"thre": 0.9}),
    ],
)
def test_matrix_is_that_of_padded_batches_of_the_original_model(
    analyse, tiny_clip, tiny_pairs, measure, flags, options
):
    words = flags.split()
    matrix = read(analyse(measure, *words, *ALL_CAPTIONS))
    pool = "eos" if "eos" in words else "mean"
    draw_size = 10 if measure == "dc" else None
    mode = words[words.index("--mode") + 1]
    expected = expected_matrix(tiny_clip, tiny_pairs, measure, mode, pool, draw_size, **options)
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-10)


def test_modes_and_pools_give_different_matrices(tiny_clip, tiny_pairs):
    found = [
        expected_matrix(tiny_clip, tiny_pairs, measure, mode, pool)
        for measure, mode in (("dc", "mean"), ("dc", "seq"), ("cka", "U"), ("cka", "T"))
        for pool in (("mean",) if mode in PER_TOKEN_MODES else ("mean", "eos"))
    ]
    for i, matrix in enumerate(found):
        assert all(np.abs(matrix - other).max() > 1e-4 for other in found[:i])


def test_a_program_gets_the_matrix_of_the_script(analyse, tiny_clip, tiny_pairs):
    encoder = load_encoder(str(tiny_clip))
    encoder.model.double()
    captions = load_pairs(str(tiny_pairs), "train", images=False).captions
    for measure in ("dc", "ablation"):
        settings = MatrixSettings(measure, batch_size=5, iter_num=3, seed=2)
        matrix = analysis.measure_captions(encoder, captions, settings)
        folder = analyse(measure, "--batch_size", "5", "--iter_num", "3", "--seed", "2", "--precision", "float64")
        assert np.abs(matrix - np.load(folder / f"{settings.tag}_{safe_name(str(tiny_pairs))}.npy")).max() < 1e-12


def test_several_matrices_from_one_pass_are_those_made_one_by_one(tiny_clip, tiny_pairs):
    encoder, captions = (
        load_encoder(str(tiny_clip)),
        load_pairs(str(tiny_pairs), "train", images=False).captions,
    )
    settings = [
        MatrixSettings(name, batch_size=10, iter_num=6, seed=seed)
        for seed in (0, 1)
        for name in KINDS
        if name != "repair"
    ]
    together = analysis.measure_several(encoder, captions, settings, Stopwatch())
    for one, matrix in zip(settings, together, strict=True):
        assert np.allclose(matrix, analysis.measure_captions(encoder, captions, one), rtol=0, atol=1e-9), one.tag


# --- files


def test_files_have_the_documented_names_and_nothing_else_is_written(analyse_and_draw, tiny_pairs):
    folder = analyse_and_draw("svcca", *ALL_CAPTIONS, "--baseline", "true")
    dataset = safe_name(str(tiny_pairs))
    stem = f"cca_mat_60U_svthre0.99_{dataset}"
    endings = (".npy", "_baseline.npy", ".png", ".json")
    assert sorted(path.name for path in folder.iterdir()) == sorted(stem + ending for ending in endings)
    assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("measure", KINDS)
def test_every_measure_gives_a_symmetric_matrix_with_ones_on_the_diagonal(analyse, measure):
    matrix = read(analyse(measure, *ALL_CAPTIONS))
    assert matrix.dtype == np.float64
    assert matrix.shape == (5, 5)
    assert np.array_equal(matrix, matrix.T)
    assert np.array_equal(matrix.diagonal(), np.ones(5))
    assert (np.abs(matrix[np.triu_indices(5, 1)]) < 1).all()


@pytest.mark.parametrize("measure", ["svcca", "dc"])
def test_running_again_gives_the_same_bytes_but_for_the_seconds(analyse_and_draw, measure):
    flags = (*ALL_CAPTIONS, "--baseline", "true")
    folder = analyse_and_draw(measure, *flags)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    analyse_and_draw(measure, *flags)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == after.keys()
    for name in before:
        if not name.endswith(".json"):
            assert before[name] == after[name], name


def test_the_division_into_batches_chunks_and_forward_passes_does_not_matter(analyse, monkeypatch):
    found = []
    for flags, values, tokens in [("10 6", 2**24, 8192), ("6 10", 2000, 8192), ("1 60", 1, 1)]:
        monkeypatch.setattr(analysis, "CHUNK_VALUES", values)
        monkeypatch.setattr(encoders, "CPU_TOKENS", tokens)
        batch_size, iter_num = flags.split()
        folder = analyse("svcca", "--batch_size", batch_size, "--iter_num", iter_num, "--mode", "T")
        found.append(read(folder))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found[2], found[0], rtol=0, atol=1e-10)


def test_float32_is_close_to_float64(analyse):
    matrices = [read(analyse("dc", "--precision", precision)) for precision in ("float64", "float32")]
    difference = np.abs(matrices[0] - matrices[1]).max()
    assert 0 < difference < 1e-6


# --- draws


def test_draws_are_disjoint_and_follow_the_seed(clip):
    settings = MatrixSettings("svcca", batch_size=4, iter_num=5, repeats=3)
    captions = [f"caption {i}" for i in range(60)]
    draws = analysis.draw_samples(clip, captions, settings)
    assert [len(draw) for draw in draws] == [20, 20, 20]
    assert sorted(sum(draws, [])) == sorted(captions)
    assert draws == analysis.draw_samples(clip, captions, settings)
    other_seed = MatrixSettings("svcca", batch_size=4, iter_num=5, repeats=3, seed=1)
    assert draws != analysis.draw_samples(clip, captions, other_seed)


def test_repeats_give_mean_and_standard_deviation_of_disjoint_draws(analyse, tiny_clip, tiny_pairs):
    folder = analyse("cka", "--batch_size", "5", "--iter_num", "4", "--repeats", "3")
    draws = [
        expected_matrix(tiny_clip, tiny_pairs, "cka", "U", "mean", rows=slice(start, start + 20))
        for start in (0, 20, 40)
    ]
    np.testing.assert_allclose(read(folder), np.mean(draws, axis=0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(read(folder, "_std.npy"), np.std(draws, axis=0, ddof=1), rtol=0, atol=1e-10)
    assert [draw["samples"] for draw in read_record(folder)["draws"]] == [20, 20, 20]


@pytest.mark.parametrize(("measure", "flags"), [("svcca", "--thre 0.5"), ("cka", ""), ("dc", "--estimator unbiased")])
def test_baseline_is_lower_than_the_matrix(analyse, measure, flags, capsys):
    folder = analyse(measure, *flags.split(), *ALL_CAPTIONS, "--baseline", "true")
    pairs = np.triu_indices(5, 1)
    assert (read(folder, "_baseline.npy")[pairs] < read(folder)[pairs] - 0.05).all()
    assert "shuffled rows" in capsys.readouterr().out


# --- record and table


def test_record_says_how_the_matrix_was_made(analyse, tiny_clip, tiny_pairs):
    record = read_record(analyse("svcca", *ALL_CAPTIONS))
    assert record["flags"]["batch_size"] == 10
    assert (record["flags"]["thre"], record["flags"]["thre_on"], record["flags"]["seed"]) == (0.99, "singular", 0)
    assert record["model"]["name"] == str(tiny_clip)
    assert record["data"]["source"] == str(tiny_pairs)
    assert (record["data"]["split"], record["data"]["captions"], record["captions"]) == ("train", 60, 60)
    assert record["samples"] == 60
    assert len(record["effective_dims"]) == 5
    assert record["constant_layers"] == record["warnings"] == []
    assert record["seconds"] > record["seconds_forward"] + record["seconds_measure"] > 0
    assert {"torch", "transformers"} <= record["versions"].keys()


def test_samples_are_tokens_in_mode_t(analyse, tiny_clip, tiny_pairs):
    _, lengths = padded_hidden_states(tiny_clip, tiny_pairs)
    assert read_record(analyse("svcca", *ALL_CAPTIONS, "--mode", "T"))["samples"] == int(lengths.sum())


def test_the_command_in_the_record_makes_the_same_matrix(analyse):
    folder = analyse("dc", "--batch_size", "5", "--iter_num", "3", "--mode", "seq", "--seed", "7")
    matrix = read(folder)
    words = shlex.split(read_record(folder)["command"])
    shutil.rmtree(folder)
    assert words[:2] == ["python", "dc_analysis.py"]
    dc_analysis.main(words[2:])
    assert np.array_equal(read(folder), matrix)


def test_table_shows_each_layer_and_the_median(analyse, capsys):
    matrix = read(analyse("dc"))
    lines = capsys.readouterr().out.splitlines()
    values = {line.rsplit(maxsplit=1)[0]: line.split()[-1] for line in lines[2:]}
    assert values["input and output of layer 4"] == f"{matrix[3, 4]:.4f}"
    assert values["median of all pairs"] == f"{np.median(matrix[np.triu_indices(5, 1)]):.4f}"
    assert len([line for line in lines if line.startswith("input and output")]) == 4


# --- warnings


def changed_clip(tiny_clip, folder, change):
    """A copy of the model with some weights changed."""
    shutil.copytree(tiny_clip, folder)
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        change(model.text_model)
    model.save_pretrained(folder)
    return folder


def test_too_few_samples_are_named_with_the_number_needed(analyse, capsys):
    record = read_record(analyse("svcca", "--batch_size", "3", "--iter_num", "4"))
    needed = sum(sorted(record["effective_dims"])[-2:]) + 1  # centring takes one
    assert needed > 12
    (warning,) = record["warnings"]
    assert "12 samples are too few" in warning
    assert f"at least {needed} samples" in warning
    logged = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(logged) == 1
    assert logged[0].endswith(warning)


def test_a_constant_layer_has_entries_0_and_a_warning(analyse, tiny_clip, tmp_path):
    # the end token's embedding is the same in every caption once positions do not count
    model = changed_clip(tiny_clip, tmp_path / "flat", lambda text: text.embeddings.position_embedding.weight.zero_())
    folder = analyse("cka", *ALL_CAPTIONS, "--pool", "eos", "--baseline", "true", model=model)
    (stem,) = {path.stem for path in folder.glob("*_eos*.json")}
    matrix = np.load(folder / f"{stem}.npy")
    assert np.array_equal(matrix[0], [1, 0, 0, 0, 0])
    assert (matrix[1:, 1:] > 0).all()
    record = json.loads((folder / f"{stem}.json").read_text())
    assert record["constant_layers"] == [0]
    assert len(record["warnings"]) == 1
    assert "constant layers [0]" in record["warnings"][0]


def test_warnings_are_logged_once_and_as_one_line(tmp_path):
    set_up_logging(tmp_path / "run.log")
    args = svcca_analysis.build_parser().parse_args([])
    record = Record(args, "cpu")
    with record.warnings():
        for _ in range(2):
            warnings.warn("two\n  lines", stacklevel=1)
    assert record.content()["warnings"] == ["two lines"]
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("warning: two lines")


# --- wrong input: one line, exit status 2, nothing written

WRONG_FLAGS = [
    ("svcca", "--batch_size 7 --iter_num 9", r"--batch_size 7 times --iter_num 9 is 63 captions; .* has 60"),
    ("dc", "--batch_size 4 --iter_num 5 --repeats 4", r"times --repeats 4 is 80 captions; .* has 60"),
    ("svcca", "--thre 0 --batch_size 4", r"thre must be above 0 and at most 1; found 0"),
    ("svcca", "--thre 1.5", r"--thre: expected a number in 0\.\.1, got '1.5'"),
    ("svcca", "--mode mean", r"--mode: invalid choice: 'mean'"),
    ("dc", "--batch_size 0", r"--batch_size: expected a number of at least 1, got '0'"),
    ("dc", "--baseline yes", r"--baseline: expected true or false, got 'yes'"),
    ("dc", "--batch_size 2", r"--batch_size is 2; with these flags dc needs at least 3 captions"),
    ("dc", "--batch_size 3 --estimator unbiased", r"--batch_size is 3; with these flags dc needs at least 4"),
    ("dc", "--mode seq --pool eos", r"--pool eos: --mode seq pools nothing"),
    ("svcca", "--mode T --pool eos", r"--pool eos: --mode T pools nothing"),
    ("svcca", "--batch_size 1 --iter_num 1", r"--batch_size times --iter_num is 1; .* at least 2 captions"),
    ("cka", "--debiased true --batch_size 3 --iter_num 1", r"is 3; with these flags cka needs at least 4 captions"),
    ("cosine", "--debiased true", r"--debiased is an option of cka, not of cosine"),
    ("cka", "--thre 0.9", r"--thre is an option of svcca, pwcca, not of cka"),
    ("cka", "--thre_on variance", r"--thre_on is an option of svcca, pwcca, not of cka"),
    ("svcca", "--caption_column sentence2", r"no caption column; looked for sentence2; the columns are image, caption"),
]


def error_line(capsys, call):
    """The line on stderr of a call that must end with status 2; argparse shows the usage before it."""
    with pytest.raises(SystemExit, match="^2$"):
        call()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if not line.startswith(("usage:", " "))]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(("measure", "flags", "message"), WRONG_FLAGS)
def test_wrong_flags(analyse, tmp_path, capsys, measure, flags, message):
    line = error_line(capsys, lambda: analyse(measure, *flags.split()))
    assert re.search(message, line)
    assert not any(tmp_path.iterdir())


def test_model_not_found(analyse, tmp_path, capsys):
    line = error_line(capsys, lambda: analyse("dc", model="no/such-model"))
    assert "model not found: 'no/such-model'" in line
    assert "--model" in line
    assert not any(tmp_path.iterdir())


def test_model_of_another_kind(analyse, tmp_path_factory, tmp_path, capsys):
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    line = error_line(capsys, lambda: analyse("dc", model=folder))
    assert "the text tower of model_type gpt2 cannot be pruned by these scripts: it is none of bert, " in line
    assert not any(tmp_path.iterdir())


def test_data_set_not_found(analyse, tmp_path, capsys):
    line = error_line(capsys, lambda: analyse("dc", dataset="no/such-pairs"))
    assert "data set not found: 'no/such-pairs'" in line
    assert "icons" in line
    assert not any(tmp_path.iterdir())


@pytest.fixture
def pairs_with_empty_captions(tmp_path_factory):
    """A function that makes a folder of 300 train captions of which some are empty."""

    def make(num_empty):
        folder = tmp_path_factory.mktemp("pairs")
        for split in ("train", "validation", "test"):
            captions = [f"{split} {i}" for i in range(300 - num_empty)] + [""] * num_empty
            Dataset.from_dict({"caption": captions}).to_parquet(folder / f"{split}.parquet")
        return folder

    return make


def test_a_few_empty_captions_are_skipped_with_a_counted_warning(analyse, pairs_with_empty_captions):
    record = read_record(analyse("dc", dataset=pairs_with_empty_captions(3)))
    assert len(record["warnings"]) == 1
    assert "skipped 3 of 300 captions (are empty)" in record["warnings"][0]
    assert record["data"]["captions"] == 297


def test_many_empty_captions_are_an_error(analyse, pairs_with_empty_captions, tmp_path, capsys):
    line = error_line(capsys, lambda: analyse("dc", dataset=pairs_with_empty_captions(4)))
    assert "4 of 300 captions are empty; at most 1% may be skipped" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_that_is_absent(analyse, tmp_path, capsys):
    assert "--device cuda: this machine" in error_line(capsys, lambda: analyse("dc", "--device", "cuda"))
    assert not any(tmp_path.iterdir())


def test_nan_in_the_model_is_an_error_that_names_the_weight(analyse, tiny_clip, tmp_path_factory, tmp_path, capsys):
    def break_layer_3(text_model):
        text_model.encoder.layers[2].mlp.fc2.bias[0] = torch.nan

    model = changed_clip(tiny_clip, tmp_path_factory.mktemp("nan") / "clip", break_layer_3)
    assert "NaN or infinity in 1 weights (text_model.encoder.layers.2.mlp.fc2.bias)" in error_line(
        capsys, lambda: analyse("svcca", *ALL_CAPTIONS, model=model)
    )
    assert not any(tmp_path.iterdir())


# --- a killed run


@pytest.mark.parametrize("how", ["SIGKILL", "KeyboardInterrupt"])
def test_a_killed_writer_leaves_the_old_file(tmp_path, how):
    path = tmp_path / "matrix.npy"
    write_array(path, np.eye(3))
    die = "os.kill(os.getpid(), signal.SIGKILL)" if how == "SIGKILL" else "raise KeyboardInterrupt"
    code = (
        "import os, signal, sys; from pathlib import Path; from common.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        f"    temporary.write_bytes(b'half a fi'); {die}\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True)
    assert killed.returncode != 0
    assert np.array_equal(np.load(path), np.eye(3))
    if how == "KeyboardInterrupt":
        assert [file.name for file in tmp_path.iterdir()] == ["matrix.npy"]


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "record.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert not path.exists()
    write_json(path, {"value": 1.5})
    assert json.loads(path.read_text()) == {"value": 1.5}
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_a_streamed_data_set_gives_the_matrix_of_its_first_captions(analyse, tiny_pairs, tmp_path):
    captions = load_pairs(str(tiny_pairs), "train", images=False).captions
    (tmp_path / "first").mkdir()
    for split in ("train", "validation", "test"):
        Dataset.from_dict({"caption": captions[:12]}).to_parquet(tmp_path / "first" / f"{split}.parquet")
    folder = analyse("dc", "--iter_num", "3", "--streaming", "true")
    streamed, record = read(folder), read_record(folder)
    assert record["data"]["captions"] == 12 and record["data"]["read"] == "read, the first rows of a stream"
    shutil.rmtree(folder)
    assert np.array_equal(read(analyse("dc", "--iter_num", "3", dataset=tmp_path / "first")), streamed)


def test_validation_is_analysed_where_there_is_no_train(analyse, tiny_pairs, tmp_path):
    (tmp_path / "pairs").mkdir()
    for split in ("validation", "test"):
        shutil.copy(tiny_pairs / f"{split}.parquet", tmp_path / "pairs")
    record = read_record(analyse("dc", "--iter_num", "2", dataset=tmp_path / "pairs"))
    assert any("there is no split train; validation is read in its place" in text for text in record["warnings"])
    assert record["data"]["read"] == "validation, in the place of train"
