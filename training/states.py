"""What a training keeps on disk, such that a kill at any moment leaves a folder that it can go on from.

    <output_dir>/config.json, model.safetensors, ...   the best model: a complete Hugging Face checkpoint
    <output_dir>.states/last/                           the model after the last epoch, likewise
    <output_dir>.states/0007/                           weights of the trained towers after epoch 7; with `state.json`
                                                        also everything that is needed to go on from there
    <output_dir>.states/lock                            held by the process that trains

The states, several times the size of the model, are beside the checkpoint's folder, which can so be copied or uploaded
as it is. A state is written beside its place and renamed; checkpoints are replaced file by file, and only their weights
differ.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from common import is_main_process
from common.files import check_new_folder, file_hash, reading
from common.forms import read_form
from models import Encoder

WEIGHTS = "weights.safetensors"
STATE = "state.json"  # the last file written and the first removed: where it is, the state is whole
LOCK = "lock"
STARTED = {"train.log", "tensorboard"}  # what a run leaves that was killed before its first epoch was over


@dataclass(frozen=True)
class State:
    """`state.json`: figures of all epochs, what must be equal in a run that goes on, hashes of the files."""

    history: list[dict[str, float]]
    identity: dict
    files: dict[str, str]


class EpochStates:
    """The folder with the states of a training that writes to `output_dir`."""

    def __init__(self, output_dir: Path):
        self.folder = output_dir.with_name(f"{output_dir.name}.states")
        self.temporary = self.folder / ".writing"
        self.last = self.folder / "last"

    def path(self, epoch: int) -> Path:
        return self.folder / f"{epoch:04d}"

    def with_weights(self) -> list[int]:
        """Epochs whose weights are there."""
        return self._epochs(WEIGHTS)

    def resumable(self) -> list[int]:
        """Epochs that a training can go on from."""
        return self._epochs(STATE)

    def _epochs(self, file: str) -> list[int]:
        folders = [path.parent.name for path in self.folder.glob(f"*/{file}")]
        return sorted(int(name) for name in folders if name.isdecimal())  # others may be a user's copies

    def clear(self) -> None:
        """Empty the folder `temporary`, to be filled and committed; the states stay."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def commit(self, epoch: int, state: dict) -> None:
        """Turn the folder `temporary`, which the caller filled, into the state of an epoch; later ones go."""
        files = {path.name: file_hash(path) for path in sorted(self.temporary.iterdir())}
        (self.temporary / STATE).write_text(json.dumps(state | {"files": files}), encoding="utf-8")
        for old in self.with_weights():
            if old >= epoch:
                self._remove(old)
        os.replace(self.temporary, self.path(epoch))

    def read(self, epoch: int) -> dict:
        """What `commit` was given. Raises ValueError where a file of the state is not as it was written."""
        path = self.path(epoch) / STATE
        with self._reading(path, epoch):
            state = read_form(path, State)
            if [row["epoch"] for row in state.history] != list(range(1, epoch + 1)):
                raise ValueError(f"its figures are of the epochs {[row['epoch'] for row in state.history]}")
            if any(row.keys() != state.history[0].keys() for row in state.history):
                raise ValueError("its epochs have different figures")
            found = {file.name for file in path.parent.iterdir()} - {STATE}
            if missing := found ^ state.files.keys():
                raise ValueError(f"it has other files than were written: {', '.join(sorted(missing))}")
        for name, written in state.files.items():
            with self._reading(path.with_name(name), epoch):
                if file_hash(path.with_name(name)) != written:
                    raise ValueError("it is not what was written after that epoch")
        return asdict(state)

    def thin_out(self, resumable: set[int], with_weights: set[int]) -> None:
        """Keep whole states of some epochs, the weights alone of others, and nothing else."""
        for epoch in self.with_weights():
            if epoch in resumable:
                continue
            if epoch not in with_weights:
                self._remove(epoch)
                continue
            (self.path(epoch) / STATE).unlink(missing_ok=True)
            for file in self.path(epoch).iterdir():
                if file.name != WEIGHTS:
                    file.unlink()

    def weights(self, epoch: int) -> dict[str, Tensor]:
        """Raises ValueError where they cannot be read."""
        path = self.path(epoch) / WEIGHTS
        with self._reading(path, epoch):
            return load_file(path)

    def mean_weights(self, epochs: Iterable[int]) -> tuple[dict[str, Tensor], list[int]]:
        """The mean of the weights of those epochs that are there, and which these are."""
        found = [epoch for epoch in epochs if epoch in self.with_weights()]
        total: dict[str, Tensor] = {}
        for epoch in found:
            for name, tensor in self.weights(epoch).items():
                total[name] = total.get(name, 0) + tensor.double()
        return {name: (tensor / len(found)).float() for name, tensor in total.items()}, found

    def _reading(self, path: Path, epoch: int) -> contextlib.AbstractContextManager:
        others = ", ".join(str(other) for other in self.resumable() if other != epoch) or "none"
        return reading(path, "damaged", f"--resume_epoch can be: {others}")

    def _remove(self, epoch: int) -> None:
        """Rename first, so that no half of it is ever found."""
        removed = self.folder / ".removed"
        shutil.rmtree(removed, ignore_errors=True)
        os.replace(self.path(epoch), removed)
        shutil.rmtree(removed)


@contextlib.contextmanager
def hold(output_dir: Path) -> Iterator[None]:
    """Keep all other trainings from writing to `output_dir` until the block ends or this process dies.

    Raises ValueError where one does. A record lock: the system takes it back when the process dies, and processes that
    it has started do not inherit it. Of several processes that train together the main one holds it.
    """
    if not is_main_process():
        yield
        return
    folder = EpochStates(output_dir).folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(
                f"{output_dir}: another training is writing there; wait for its end, or pass another --output_dir"
            ) from error
        yield


def check_not_held(output_dir: Path) -> None:
    """Raise ValueError where another training writes to this folder; not where this process holds it itself."""
    if (EpochStates(output_dir).folder / LOCK).exists():
        with hold(output_dir):  # a process that closes a file loses its lock on it, whichever way it had it
            pass


def check_output_dir(output_dir: Path, resume_epoch: int, first_epoch: int = 0) -> None:
    """Raise ValueError where a new run would write into another one, or where there is no run to go on with.

    `first_epoch`: how many epochs come before those of this folder in a run of several stages.
    """
    found = EpochStates(output_dir)
    file = next((path for path in (output_dir, *output_dir.parents) if path.exists() and not path.is_dir()), None)
    if file:
        raise ValueError(f"--output_dir: {output_dir} is to be a folder, but {file} is a file; pass another one")
    states = [first_epoch + epoch for epoch in found.resumable()]
    listed = ", ".join(map(str, states)) or "none"
    if resume_epoch and first_epoch + resume_epoch not in states:
        wanted = first_epoch + resume_epoch
        raise ValueError(f"{found.folder}: no state of epoch {wanted} to go on from; --resume_epoch can be: {listed}")
    if not resume_epoch and states:
        raise ValueError(
            f"{found.folder} has the states of another run; pass --resume_epoch {states[-1]} to go on with it "
            f"(there are states of the epochs {listed}), or another --output_dir"
        )
    if not resume_epoch:
        check_new_folder(output_dir, allowed=STARTED)


def remove_leftovers(output_dir: Path) -> None:
    """Unfinished files of a killed run, by the names this project gives them: of no use to a new one."""
    unfinished = (".checkpoint", ".writing", ".removed", ".*.[0-9]*.*")
    states = EpochStates(output_dir)
    folders = (output_dir, states.folder, states.last)
    for path in [path for folder in folders for name in unfinished for path in folder.glob(name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_checkpoint(encoder: Encoder, folder: Path) -> None:
    """A Hugging Face folder: configuration, safetensors, tokenizer, image processor; other files in it stay."""
    temporary = folder / ".checkpoint"
    shutil.rmtree(temporary, ignore_errors=True)
    with filling(temporary):
        encoder.save(temporary)
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
        shutil.rmtree(temporary)


@contextlib.contextmanager
def filling(temporary: Path) -> Iterator[None]:
    """For a block that fills a folder: where it fails, the folder is removed, and an OSError says so in one line.

    On a full disk safetensors raises SafetensorError, torch RuntimeError, tokenizers Exception.
    """
    try:
        yield
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{temporary.parent}: cannot be written ({error}); the states before it are whole") from error
