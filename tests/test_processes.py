"""Real processes: a training that is killed, one that is shared between two, a repair made in another one."""

import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path

import process_children
import pytest
import torch

from models.repair import repaired
from training.states import EpochStates

MAX_EPOCH = 3
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def processes():
    """Processes forked from a server that has imported everything, so that each takes a second and not ten."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["process_children", "commands.finetune"])  # the script imports the latter late
    yield context
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def argv(tiny_clip, tiny_pairs, tmp_path) -> list[str]:
    words = f"--model {tiny_clip} --dataset {tiny_pairs} --exp_dir {tmp_path} --device cpu --num_layers 4"
    words += " --num_clip_layers 2"
    words += f" --clip_layers 2-3 --max_epoch {MAX_EPOCH} --batch_size 20 --lr 1e-3"
    return words.split()


def finish(process: multiprocessing.Process) -> int:
    process.start()
    process.join(120)
    return process.exitcode


def history(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_training_killed_at_any_moment_loses_at_most_the_running_epoch(processes, argv, tmp_path):
    stderr = tmp_path / "stderr"
    whole, counter = tmp_path / "whole", processes.Value("i", 0)
    arguments = ([*argv, "--output_dir", "whole"], stderr, whole, counter)
    assert finish(processes.Process(target=process_children.train_and_count, args=arguments)) == 0, stderr.read_text()
    assert counter.value > 40
    for moment in range(counter.value // 8, counter.value, counter.value // 4):
        name = f"killed_{moment}"
        folder = tmp_path / name
        run = [*argv, "--output_dir", name]
        arguments = (run, stderr, folder, moment)
        assert finish(processes.Process(target=process_children.train_and_die, args=arguments)) == -signal.SIGKILL
        finished = (folder / "train.log").read_text().count("train_loss")
        saved = max(EpochStates(folder).resumable(), default=0)
        assert finished - 1 <= saved <= finished
        arguments = ([*run, "--resume_epoch", str(saved)], stderr)
        assert finish(processes.Process(target=process_children.train, args=arguments)) == 0, stderr.read_text()
        for file in ("model.safetensors", "config.json", "tokenizer.json", f"../{name}.states/last/model.safetensors"):
            expected = whole / file.replace(name, "whole")
            assert (folder / file).read_bytes() == expected.read_bytes(), (moment, file)
        assert history(folder) == history(whole)
        for ending in ("", ".states"):
            left, expected = (path.with_name(path.name + ending).iterdir() for path in (folder, whole))
            assert sorted(path.name for path in left) == sorted(path.name for path in expected)


@pytest.mark.parametrize("flags", ["--layerdrop 0.5", "--freeze_vision false --distill_mode feature"])
def test_two_processes_give_the_losses_of_one(processes, argv, tmp_path, flags: str):
    argv = [*argv, *flags.split(), "--max_epoch", "2"]
    stderr = tmp_path / "stderr"
    arguments = ([*argv, "--output_dir", "one"], stderr)
    assert finish(processes.Process(target=process_children.train, args=arguments)) == 0, stderr.read_text()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [([*argv, "--output_dir", "two"], stderr, rank, 2, port) for rank in (0, 1)]
    both = [processes.Process(target=process_children.train_as_process, args=a) for a in arguments]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0, stderr.read_text()
    log = (tmp_path / "two" / "train.log").read_text()
    assert log.count("processes: 2") == log.count("drops the layers") == 1  # the main process alone writes it
    for ours, theirs in zip(history(tmp_path / "two"), history(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_another_process_repairs_the_same_and_reads_what_is_saved(processes, clip, captions, tiny_clip, tmp_path):
    dropped = (2, 4)
    fixed = repaired(clip, dropped, captions)
    fixed.save(tmp_path / "saved")
    arguments = (str(tiny_clip), dropped, captions, str(tmp_path / "saved"), tmp_path / "found.pt")
    assert finish(processes.Process(target=process_children.repair_and_read, args=arguments)) == 0
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    expected = fixed.embeddings(captions)
    torch.testing.assert_close(found["repaired"], expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(found["read"], expected, atol=1e-5, rtol=0)
