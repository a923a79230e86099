"""The folder of a training: what is kept, what is averaged, and when a run may write."""

import json

import pytest
import torch
from safetensors.torch import save_file

from training.averaging import Average, parse_average
from training.states import STATE, WEIGHTS, EpochStates, check_output_dir


def commit(states: EpochStates, epoch: int) -> None:
    states.clear()
    save_file({"w": torch.tensor([float(epoch), 1.0])}, states.temporary / WEIGHTS)
    (states.temporary / "optimizer.bin").write_text("")
    states.commit(epoch, {"epoch": epoch})


@pytest.fixture
def states(tmp_path) -> EpochStates:
    states = EpochStates(tmp_path / "run" / "epochs")
    for epoch in (1, 2, 3, 4):
        commit(states, epoch)
    return states


def test_whole_states_weights_and_nothing_are_kept_as_asked(states: EpochStates):
    states.thin_out(resumable={3, 4}, with_weights={2})
    assert states.resumable() == [3, 4]
    assert states.with_weights() == [2, 3, 4]
    assert [path.name for path in states.path(2).iterdir()] == [WEIGHTS]
    assert not states.path(1).exists()
    assert states.read(4) == {"epoch": 4}


def test_a_state_written_again_replaces_the_later_ones_of_the_older_run(states: EpochStates):
    commit(states, 2)
    assert states.resumable() == [1, 2]


def test_the_mean_of_weights_divides_by_the_number_found(states: EpochStates):
    mean, found = states.mean_weights([4, 7, 1, 9])
    assert sorted(found) == [1, 4]
    assert mean["w"].tolist() == [2.5, 1.0]
    assert mean["w"].dtype == torch.float32


def test_averages_name_the_best_or_the_last_epochs():
    history = [{"epoch": n, "mean_recall": recall} for n, recall in enumerate([0.1, 0.5, 0.3, 0.4], start=1)]
    assert Average("best", 2).epochs(history) == [2, 4]
    assert Average("last", 3).epochs(history) == [4, 3, 2]
    assert Average("last", 9).epochs(history) == [4, 3, 2, 1]
    assert parse_average("best:5") == ("best", 5)
    for wrong in ("best", "first:3", "last:1", "last:x"):
        with pytest.raises(Exception, match="expected best:N or last:N"):
            parse_average(wrong)


def test_a_folder_that_holds_a_run_is_not_written_to(states: EpochStates):
    run = states.folder.parent
    with pytest.raises(
        ValueError, match=r"holds another run; pass --resume_epoch 4 .* 1, 2, 3, 4\), or another --output_dir"
    ):
        check_output_dir(run, 0)
    check_output_dir(run, 3)
    with pytest.raises(ValueError, match="no state of epoch 9 to go on from; --resume_epoch can be: 1, 2, 3, 4"):
        check_output_dir(run, 9)
    with pytest.raises(ValueError, match="--resume_epoch can be: none"):
        check_output_dir(run / "nothing", 1)


def test_a_run_killed_before_its_first_epoch_was_over_can_be_started_again(tmp_path):
    states = EpochStates(tmp_path / "epochs")
    states.clear()
    (states.temporary / STATE).write_text(json.dumps({}))
    (tmp_path / "train.log").write_text("")
    check_output_dir(tmp_path, 0)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"is not empty \(notes.txt\)"):
        check_output_dir(tmp_path, 0)
