"""The folder of a training: what is kept, what is averaged, and when a run may write."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from training.settings import Average, parse_average
from training.states import LOCK, STATE, WEIGHTS, EpochStates, check_not_held, check_output_dir, hold


def commit(states: EpochStates, epoch: int) -> None:
    states.clear()
    save_file({"w": torch.tensor([float(epoch), 1.0])}, states.temporary / WEIGHTS)
    (states.temporary / "optimizer.bin").write_text("optimizer")
    (states.temporary / "random_states_0.pkl").write_text("random states")
    states.commit(epoch, {"history": [{"epoch": n} for n in range(1, epoch + 1)], "identity": {}})


@pytest.fixture
def states(tmp_path) -> EpochStates:
    states = EpochStates(tmp_path / "run")
    for epoch in (1, 2, 3, 4):
        commit(states, epoch)
    return states


def test_whole_states_weights_and_nothing_are_kept_as_asked(states: EpochStates):
    states.thin_out(resumable={3, 4}, with_weights={2})
    assert states.resumable() == [3, 4]
    assert states.with_weights() == [2, 3, 4]
    assert [path.name for path in states.path(2).iterdir()] == [WEIGHTS]
    assert not states.path(1).exists()
    assert len(states.read(4)["history"]) == 4
    shutil.copytree(states.path(4), states.folder / "0004 (copy)")
    assert states.resumable() == [3, 4] and states.with_weights() == [2, 3, 4]


def test_a_state_written_again_replaces_the_later_ones_of_the_older_run(states: EpochStates):
    commit(states, 2)
    assert states.resumable() == [1, 2]


def test_the_mean_of_weights_divides_by_the_number_found(states: EpochStates):
    mean, found = states.mean_weights([4, 7, 1, 9])
    assert sorted(found) == [1, 4]
    assert mean["w"].tolist() == [2.5, 1.0]
    assert mean["w"].dtype == torch.float32


def test_averages_name_the_best_or_the_last_epochs():
    scores = {1: 0.1, 2: 0.5, 3: 0.3, 4: 0.4}
    assert Average("best", 2).epochs(scores) == [2, 4]
    assert Average("last", 3).epochs(scores) == [4, 3, 2]
    assert Average("last", 9).epochs(scores) == [4, 3, 2, 1]
    assert parse_average("best:5") == ("best", 5)
    for wrong in ("best", "first:3", "last:1", "last:x"):
        with pytest.raises(Exception, match="expected best:N or last:N"):
            parse_average(wrong)


def test_a_folder_that_holds_a_run_is_not_written_to(states: EpochStates):
    run = states.folder.with_suffix("")
    with pytest.raises(
        ValueError,
        match=r"has the states of another run; pass --resume_epoch 4 .* 1, 2, 3, 4\), or another --output_dir",
    ):
        check_output_dir(run, 0)
    check_output_dir(run, 3)
    with pytest.raises(ValueError, match="no state of epoch 9 to go on from; --resume_epoch can be: 1, 2, 3, 4"):
        check_output_dir(run, 9)
    with pytest.raises(ValueError, match="--resume_epoch can be: none"):
        check_output_dir(run / "nothing", 1)


def test_a_run_killed_before_its_first_epoch_was_over_can_be_started_again(tmp_path):
    states = EpochStates(tmp_path / "run")
    states.clear()
    (states.temporary / STATE).write_text(json.dumps({}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").write_text("")
    check_output_dir(tmp_path / "run", 0)
    (tmp_path / "run" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"is not empty \(notes.txt\)"):
        check_output_dir(tmp_path / "run", 0)


def test_an_output_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output_dir: .*file/run is to be a folder, but .*file is a file"):
        check_output_dir(tmp_path / "file" / "run", 0)


def test_the_states_are_not_in_the_folder_that_is_uploaded(states: EpochStates, tmp_path):
    assert not states.folder.is_relative_to(tmp_path / "run")


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "changed": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x00"),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [WEIGHTS, "optimizer.bin", "random_states_0.pkl"])
def test_a_damaged_file_of_a_state_is_named_with_the_epochs_that_are_left(states: EpochStates, name: str, damage: str):
    DAMAGES[damage](states.path(3) / name)
    with pytest.raises(ValueError, match="0003/.*: damaged .*; --resume_epoch can be: 1, 2, 4$"):
        states.read(3)
    states.read(4)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", "{}", '{"files": {}, "history": 3, "identity": {}}', "[" * 100_000, '{"history": [1]}']
    + ['{"files": [], "history": [], "identity": {}}', '{"files": {}, "history": [{"epoch": 2}], "identity": {}}'],
)
def test_a_state_that_is_none_is_named(states: EpochStates, text: str):
    (states.path(3) / STATE).write_text(text)
    with pytest.raises(ValueError, match=f"0003/{STATE}: damaged .*; --resume_epoch can be: 1, 2, 4$"):
        states.read(3)


def test_weights_that_cannot_be_read_are_named(states: EpochStates):
    (states.path(2) / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ValueError, match=f"0002/{WEIGHTS}: damaged .*; --resume_epoch can be: 1, 3, 4$"):
        states.weights(2)


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def test_one_training_at_a_time_until_its_process_dies(tmp_path):
    output_dir = tmp_path / "run"
    with hold(output_dir):
        pass
    lock = EpochStates(output_dir).folder / LOCK
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for attempt in (lambda: check_not_held(output_dir), lambda: hold(output_dir).__enter__()):
            with pytest.raises(ValueError, match="run: another training is writing there; .* another --output_dir"):
                attempt()
        other.kill()
    check_not_held(output_dir)
    with hold(output_dir):
        pass
