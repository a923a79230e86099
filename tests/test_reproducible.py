"""Every script twice: the same seed gives the same bytes, two threads the same numbers, another seed others.

Analyses are compared in float64, where a sum in another order differs by less than 1e-9; what follows them runs in
float32, where the losses of two threads differ by less than 1e-5. Weights are not compared there: where a gradient is
nothing but rounding, Adam takes a step of full length all the same. Two processes are compared in
`test_accelerate.py` and `test_processes.py`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import clip_finetune_train
import dc_analysis
import evaluate_clip
import export_clip
import similarity_analysis
import svcca_analysis
from common import model_dir
from common.matrix_files import MatrixSettings
from measures import KINDS
from models import speed
from search_strategy import compare_strategies, search_prune_then_verify_mix

DRAW = "--precision float64 --batch_size 8 --iter_num 4"
SIZES = "--num_layers 4 --num_clip_layers 2"
SCRIPTS = {
    "svcca": (svcca_analysis, f"{DRAW} --baseline true"),
    "dc": (dc_analysis, DRAW),
    "similarity": (similarity_analysis, f"--measure cka {DRAW}"),
    "search": (search_prune_then_verify_mix, f"{SIZES} --bs 8 --iter 4 --loss_batch_size 20 --race true"),
    "compare": (compare_strategies, f"{SIZES} --loss_batch_size 20 --num_random 5"),
    "fine-tune": (clip_finetune_train, f"{SIZES} --output_dir half --max_epoch 1 --batch_size 20 --layerdrop 0.3"),
    "evaluate": (evaluate_clip, ""),
    "export": (export_clip, "--to text --output_dir text"),
}
ARRAYS = {".npy": np.load, ".safetensors": load_file}
TIMES = re.compile(r"seconds|date$|milliseconds|_ms$|captions_a_second")  # names of what a clock says
CLOCK = re.compile(r"\d{4}-\d\d-\d\d[T ][\d:,.+]+|\d+(\.\d+)? (s|ms)\b|\"seconds\w*\": [\d.]+|seconds [\d.]+")


def run_all(folder: Path, model: Path, pairs: Path, *flags: str) -> dict[str, dict[str, Path]]:
    """What each script writes, by its name and the file's; always by the same command line, then the folder moves."""
    exp, files = folder.parent / "exp", {}
    common = ["--model", str(model), "--dataset", str(pairs), "--exp_dir", str(exp), "--device", "cpu"]
    for name, (script, words) in SCRIPTS.items():
        if name == "compare":
            write_default_matrices(exp, model, pairs, seed=int(flags[-1]))
        before = set(exp.rglob("*"))
        script.main([*common, *words.split(), *flags])
        files[name] = sorted(path.relative_to(exp) for path in set(exp.rglob("*")) - before if path.is_file())
    exp.rename(folder)
    return {name: {str(path).replace("_seed1", ""): folder / path for path in paths} for name, paths in files.items()}


def write_default_matrices(exp: Path, model: Path, pairs: Path, seed: int) -> None:
    """The matrices that the comparison would make of more captions than there are."""
    for number, name in enumerate(KINDS):
        walk = np.cumsum(np.random.default_rng([seed, number]).normal(size=(5, 30)), axis=0)
        np.save(MatrixSettings(name, dataset=str(pairs), seed=seed).path(model_dir(exp, str(model))), np.corrcoef(walk))


@pytest.fixture(scope="module")
def runs(tiny_clip, tiny_pairs, tmp_path_factory) -> Iterator[dict]:
    """The files of all scripts: the first run, the same again, with two threads, with another seed."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {"first": "--threads 1 --seed 0", "again": "--threads 1 --seed 0"}
    changes |= {"threads": "--threads 2 --seed 0", "seed": "--threads 1 --seed 1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "_pass_seconds", lambda *_: 1.0)
        made = {name: run_all(folder / name, tiny_clip, tiny_pairs, *flags.split()) for name, flags in changes.items()}
    yield made
    torch.set_num_threads(1)


def timeless(value: object) -> object:
    """JSON without what a clock says."""
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if not TIMES.search(name)}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def content(path: Path) -> object:
    """Of a file, to the byte but for times."""
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix in (".log", ".jsonl", ".md"):
        return CLOCK.sub("", path.read_text())
    return path.read_bytes()


def numbers(path: Path) -> np.ndarray:
    """All fractions of a result, in order."""
    if path.suffix in ARRAYS:
        arrays = ARRAYS[path.suffix](path)
        arrays = arrays.values() if isinstance(arrays, dict) else [arrays]
        return np.concatenate([np.ravel(np.asarray(array, dtype=np.float64)) for array in arrays])
    found = []

    def collect(value: object) -> None:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(inner)
        if isinstance(value, float):
            found.append(value)

    collect(content(path))
    return np.array(found)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_seed_gives_the_same_bytes(runs, name):
    first, again = runs["first"][name], runs["again"][name]
    assert list(first) == list(again) and first
    assert [file for file in first if content(first[file]) != content(again[file])] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_threads_give_the_same_numbers(runs, name):
    exact = name in ("svcca", "dc", "similarity")
    compared = 0
    for file, path in runs["first"][name].items():
        if path.suffix == (".npy" if exact else ".json"):
            first, threads = numbers(path), numbers(runs["threads"][name][file])
            np.testing.assert_allclose(threads, first, rtol=0, atol=1e-9 if exact else 1e-5, err_msg=file)
            compared += len(first)
    assert compared > 0


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("evaluate", "export")])
def test_another_seed_gives_others(runs, name):
    first, seed = runs["first"][name], runs["seed"][name]
    results = [file for file in first if Path(file).suffix in (".npy", ".safetensors", ".json")]
    assert list(first) == list(seed)
    assert any(not np.array_equal(numbers(first[file]), numbers(seed[file])) for file in results)
