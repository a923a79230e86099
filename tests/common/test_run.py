"""What the scripts share: flags, errors in one line, safe names, files that are whole or not there, records."""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from common import (
    ROOT,
    Record,
    add_common_flags,
    atomic_folder,
    bounded,
    data_flags,
    positive_int,
    script,
    set_up_logging,
    switch,
    write_json,
)
from common.cli import DATA_OPTIONS, boolean, caption_flags
from common.files import machine, shorten
from common.run import select_device, set_up
from data import DataOptions


def parse(*flags):
    parser = argparse.ArgumentParser()
    add_common_flags(parser)
    return parser.parse_args(flags)


def test_a_folder_of_results_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    args = argparse.Namespace(exp_dir=tmp_path / "new" / "exp", device="cpu", threads=None, seed=0)
    asked = []
    monkeypatch.setattr("os.access", lambda path, _: asked.append(path))
    with pytest.raises(PermissionError, match="new/exp: cannot be written; pass another --exp_dir"):
        set_up(args)
    assert asked == [tmp_path]  # the nearest that there is


def test_data_flags_are_the_options_of_load_pairs():
    args = parse("--caption_column", "en", "--image_root", "pictures", "--max_pairs", "7")
    expected = {"image_column": None, "caption_column": "en", "image_root": Path("pictures"), "max_pairs": 7}
    assert data_flags(args) == expected
    assert set(DATA_OPTIONS) | {"streaming"} == {field.name for field in fields(DataOptions)}


def test_captions_alone_are_streamed_as_many_as_needed():
    parser = argparse.ArgumentParser()
    add_common_flags(parser, streaming=True)
    whole = caption_flags(parser.parse_args(["--max_pairs", "7"]), 40)
    assert (whole["images"], whole["or_validation"], whole["max_pairs"]) == (False, True, 7)
    assert "streaming" not in whole
    streamed = caption_flags(parser.parse_args(["--streaming", "true"]), 40)
    assert (streamed["streaming"], streamed["max_pairs"]) == (True, 40)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("FALSE", False), ("false", False)])
def test_booleans_are_true_or_false(text, value):
    assert boolean(text) is value


def test_a_boolean_flag_alone_is_true():
    parser = argparse.ArgumentParser()
    parser.add_argument("--race", **switch(False, "run"))
    parser.add_argument("--other")
    flags = ([], ["--race"], ["--race", "--other", "x"], ["--race", "False"])
    assert [parser.parse_args(given).race for given in flags] == [False, True, True, False]


@pytest.mark.parametrize("text", ["1", "yes", ""])
def test_any_other_boolean_is_an_error(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected true or false, got '{text}'"):
        boolean(text)


def test_bounded_numbers_name_their_limits():
    assert bounded(float, 0, 1)("0.99") == 0.99
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a number in 0\.\.1, got '1.5'"):
        bounded(float, 0, 1)("1.5")
    with pytest.raises(argparse.ArgumentTypeError, match="expected a finite number of at least 0, got 'inf'"):
        bounded(float, 0)("inf")
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number of at least 0, got 'nan'"):
        bounded(float, 0)("nan")
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number of at least 1, got 'many'"):
        positive_int("many")


@pytest.mark.parametrize(
    "error", [ValueError("expected this,\nfound that"), FileNotFoundError("expected this, found that")]
)
def test_wrong_input_is_one_line_and_exit_status_2(error, capsys):
    @script
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("error: expected this, found that")


def test_a_mistake_of_ours_keeps_its_traceback():
    @script
    def main(argv=None):
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        main([])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_says_what_to_pass_instead():
    with pytest.raises(ValueError, match="--device cuda: .* no CUDA device; pass --device cpu"):
        select_device("cuda")
    assert select_device("auto") == "cpu"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_files_of_dead_processes_are_removed_and_a_full_disk_is_named(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    others = [
        ".result.notes.json",
        f".result.{dead.pid}@another machine.json",
        f".result.5x@{machine()}.json",
        f".result.{os.getppid()}@{machine()}.json",
    ]
    # of a dead process, and of one that had this one's number before its container was started again
    for name in (f".result.{dead.pid}@{machine()}.json", f".result.{os.getpid()}@{machine()}.json", *others):
        (tmp_path / name).write_text("")
    write_json(path, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*others, "result.json"])

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="result.json: cannot be written .*No space left on device"):
        write_json(path, {})


def test_the_longest_names_can_be_written_on_a_machine_of_a_long_name(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "a" * 64)
    monkeypatch.setattr(os, "getpid", lambda: 4194304)
    path = tmp_path / f"{shorten('n' * 300)}_of_a_search.json"
    write_json(path, {})
    assert path.exists()


def test_a_folder_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "folder"
    (tmp_path / f".folder.{os.getpid()}@{machine()}").mkdir()
    with atomic_folder(path) as folder:
        (folder / "old").write_text("")
    with pytest.raises(OSError, match="folder: cannot be written .disk full."), atomic_folder(path) as folder:
        (folder / "half").write_text("")
        raise Exception("disk full")  # as tokenizers does
    assert [file.name for file in path.iterdir()] == ["old"]
    with atomic_folder(path) as folder:
        (folder / "new").write_text("")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_says_how_a_result_was_made(tmp_path):
    args = parse("--seed", "7", "--device", "cpu")
    record = Record(args, "cpu")
    for _ in range(2):
        with record.timed("forward"):
            time.sleep(0.01)
    record.note(samples=3, place=ROOT / "exp" / "x")
    content = record.content()
    assert content["flags"]["seed"] == 7
    assert content["flags"]["model"] == "exp/iconclip"
    assert content["place"] == "exp/x"
    assert content["seconds"] >= content["seconds_forward"] >= 0.02
    assert content["versions"]["torch"] == torch.__version__
    write_json(tmp_path / "record.json", content)


def test_warnings_are_one_log_line_each(tmp_path):
    import warnings

    set_up_logging(tmp_path / "run.log")
    warnings.warn("two\nlines", stacklevel=1)
    logging.getLogger("comflp").info("done")
    lines = Path(tmp_path / "run.log").read_text().splitlines()
    assert len(lines) == 2 and lines[0].endswith("warning: two lines") and lines[1].endswith("done")
    logging.captureWarnings(False)
