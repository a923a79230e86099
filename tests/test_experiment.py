"""What the scripts share: flags, errors in one line, safe names, files that are whole or not there."""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import experiment


def parse(*flags):
    parser = argparse.ArgumentParser()
    experiment.add_common_flags(parser)
    return parser.parse_args(flags)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_booleans_are_true_or_false(text, value):
    assert experiment.boolean(text) is value


@pytest.mark.parametrize("text", ["True", "1", "yes", ""])
def test_any_other_boolean_is_an_error(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected true or false, got '{text}'"):
        experiment.boolean(text)


def test_bounded_numbers_name_their_limits():
    assert experiment.bounded(float, 0, 1)("0.99") == 0.99
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a number in 0\.\.1, got '1.5'"):
        experiment.bounded(float, 0, 1)("1.5")
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number of at least 1, got 'many'"):
        experiment.positive_int("many")


@pytest.mark.parametrize(
    "error", [ValueError("expected this,\nfound that"), FileNotFoundError("expected this, found that")]
)
def test_wrong_input_is_one_line_and_exit_status_2(error, capsys):
    @experiment.script
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("error: expected this, found that")


def test_a_mistake_of_ours_keeps_its_traceback():
    @experiment.script
    def main(argv=None):
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        main([])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_says_what_to_pass_instead():
    with pytest.raises(ValueError, match="--device cuda: .* no CUDA device; pass --device cpu"):
        experiment.select_device("cuda")
    assert experiment.select_device("auto") == "cpu"


def test_a_model_folder_inside_exp_is_its_own_result_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    assert experiment.model_dir(tmp_path, str(tmp_path / "mine")) == tmp_path / "mine"


def test_hub_names_and_far_folders_become_safe_names(tmp_path):
    exp_dir = tmp_path / "exp"
    assert experiment.model_dir(exp_dir, "openai/clip-vit-base-patch32").name == "openai--clip-vit-base-patch32"
    (tmp_path / "a folder").mkdir()
    name = experiment.model_dir(exp_dir, str(tmp_path / "a folder")).name
    assert "/" not in name and " " not in name and name.endswith("a--folder")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    experiment.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        experiment.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_says_how_a_result_was_made(tmp_path):
    args = parse("--seed", "7", "--device", "cpu")
    record = experiment.Record(args, "cpu")
    with record.timed("forward"):
        pass
    record.note(samples=3, place=experiment.ROOT / "exp" / "x")
    content = record.content()
    assert content["flags"]["seed"] == 7
    assert content["flags"]["model"] == "exp/iconclip"
    assert content["place"] == "exp/x"
    assert content["seconds_forward"] >= 0 and content["seconds"] >= content["seconds_forward"]
    assert content["versions"]["torch"].startswith("2.13.0")
    experiment.write_json(tmp_path / "record.json", content)


def test_seeding_makes_the_global_generators_repeat():
    drawn = []
    for _ in range(2):
        experiment.seed_everything(5)
        drawn.append((np.random.rand(), torch.rand(1).item()))  # noqa: NPY002 - the global state is what is tested
    assert drawn[0] == drawn[1]


def test_warnings_are_one_log_line_each(tmp_path):
    import warnings

    experiment.set_up_logging(tmp_path / "run.log")
    warnings.warn("two\nlines", stacklevel=1)
    logging.getLogger("comflp").info("done")
    lines = Path(tmp_path / "run.log").read_text().splitlines()
    assert len(lines) == 2 and lines[0].endswith("warning: two lines") and lines[1].endswith("done")
    logging.captureWarnings(False)
