"""Two processes started by `accelerate launch` find what one finds, and write it once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dc_analysis
import svcca_analysis
from search_strategy import search_prune_then_verify_mix as search

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
]
LAUNCH += ["--num_cpu_threads_per_process", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
DRAWS = ["--precision", "float64", "--batch_size", "5", "--iter_num", "7"]  # an odd number: the parts are not equal
COMMANDS = [
    (svcca_analysis, DRAWS),
    (dc_analysis, DRAWS),
    (dc_analysis, [*DRAWS, "--mode", "seq"]),  # as wide as the longest caption of both parts
    (search, ["--num_layers", "4", "--num_clip_layers", "2", "--bs", "5", "--iter", "7", "--loss_batch_size", "20"]),
]


@pytest.fixture(scope="module")
def both(tiny_clip, tiny_pairs, tmp_path_factory):
    """The result folders of one process and of two, and what the two printed."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    places = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--device", "cpu", "--exp_dir"]
    for module, flags in COMMANDS:
        module.main([*flags, *places, str(folders[0])])
    script = folders[1] / "run.py"  # all commands in one start of the processes
    lines = [f"import gc, sys; gc.disable(); sys.path.insert(0, {str(ROOT)!r})"]
    for module, flags in COMMANDS:
        lines += [f"from {module.__name__} import main", f"main({[*flags, *places, str(folders[1])]!r})"]
    lines += ["from accelerate import PartialState", "print(f'processes: {PartialState().num_processes}')"]
    script.write_text("\n".join(lines))
    done = subprocess.run([*LAUNCH, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return *folders, done.stdout


@pytest.mark.parametrize("name", ["cca_mat_*", "dc_mat_mean_*", "dc_mat_seq_*"])
def test_matrices_are_the_same_to_rounding(both, name):
    one, two = (np.load(next(folder.glob(f"*/{name}.npy"))) for folder in both[:2])
    assert np.abs(one - two).max() < 1e-9
    samples = [json.loads(next(folder.glob(f"*/{name}.json")).read_text())["samples"] for folder in both[:2]]
    assert samples == [35, 35]


def test_the_search_gives_the_same_losses_and_layer_calls(both):
    one, two = (json.loads(next(folder.glob("*/clip4to2_*.json")).read_text()) for folder in both[:2])
    assert two["record"]["layer_calls"] == one["record"]["layer_calls"]
    assert [p["dropped_layers"] for p in two["proposals"]] == [p["dropped_layers"] for p in one["proposals"]]
    losses = [[p["task_loss"] for p in result["proposals"]] for result in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_there_are_two_processes_and_only_one_of_them_prints_results(both):
    assert both[2].count("processes: 2") == 2
    assert both[2].count("wrote ") == 3
    assert both[2].count("winner: drop") == 1
