"""What a training keeps on disk, such that a kill at any moment leaves a folder that it can go on from.

    <output_dir>/config.json, model.safetensors, ...   the best model: a complete Hugging Face checkpoint
    <output_dir>/last/                                  the model after the last epoch, likewise
    <output_dir>/epochs/0007/                           weights of the trained towers after epoch 7; with `state.json`
                                                        also everything that is needed to go on from there

A state is written beside its place and renamed; checkpoints are replaced file by file, and only their weights differ.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from common import check_new_folder
from models import Clip

WEIGHTS = "weights.safetensors"
STATE = "state.json"  # the last file written and the first removed: where it is, the state is whole
STARTED = {"train.log", "tensorboard"}  # what a run leaves that was killed before its first epoch was over


class EpochStates:
    """The folder `epochs/` of an output folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.temporary = folder / ".writing"

    def path(self, epoch: int) -> Path:
        return self.folder / f"{epoch:04d}"

    def with_weights(self) -> list[int]:
        """Epochs whose weights are there."""
        return sorted(int(path.parent.name) for path in self.folder.glob(f"[0-9]*/{WEIGHTS}"))

    def resumable(self) -> list[int]:
        """Epochs that a training can go on from."""
        return sorted(int(path.parent.name) for path in self.folder.glob(f"[0-9]*/{STATE}"))

    def clear(self) -> None:
        """An empty folder `temporary`."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def read(self, epoch: int) -> dict:
        """What `commit` was given."""
        return json.loads((self.path(epoch) / STATE).read_text(encoding="utf-8"))

    def commit(self, epoch: int, state: dict) -> None:
        """Turn the folder `temporary`, filled by the caller, into the state of an epoch; later ones are of an older run."""
        (self.temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
        for old in self.with_weights():
            if old >= epoch:
                self._remove(old)
        os.replace(self.temporary, self.path(epoch))

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
        return load_file(self.path(epoch) / WEIGHTS)

    def mean_weights(self, epochs: Iterable[int]) -> tuple[dict[str, Tensor], list[int]]:
        """The mean of the weights of those epochs that are there, and which these are."""
        found = [epoch for epoch in epochs if epoch in self.with_weights()]
        total: dict[str, Tensor] = {}
        for epoch in found:
            for name, tensor in self.weights(epoch).items():
                total[name] = total.get(name, 0) + tensor.double()
        return {name: (tensor / len(found)).float() for name, tensor in total.items()}, found

    def _remove(self, epoch: int) -> None:
        """Rename first, so that no half of it is ever found."""
        removed = self.folder / ".removed"
        shutil.rmtree(removed, ignore_errors=True)
        os.replace(self.path(epoch), removed)
        shutil.rmtree(removed)


def check_output_dir(output_dir: Path, resume_epoch: int, first_epoch: int = 0) -> None:
    """Raise ValueError where a new run would write into another one, or where there is no run to go on with.

    `first_epoch`: how many epochs come before those of this folder in a run of several stages.
    """
    states = [first_epoch + epoch for epoch in EpochStates(output_dir / "epochs").resumable()]
    listed = ", ".join(map(str, states)) or "none"
    if resume_epoch and first_epoch + resume_epoch not in states:
        wanted = first_epoch + resume_epoch
        raise ValueError(f"{output_dir}: no state of epoch {wanted} to go on from; --resume_epoch can be: {listed}")
    if not resume_epoch and states:
        raise ValueError(
            f"{output_dir} holds another run; pass --resume_epoch {states[-1]} to go on with it "
            f"(there are states of the epochs {listed}), or another --output_dir"
        )
    if not resume_epoch:
        check_new_folder(output_dir, allowed=STARTED | {"epochs"})


def remove_leftovers(output_dir: Path) -> None:
    """Unfinished files of a killed run, by the names this project gives them: of no use to a new one."""
    unfinished = (".checkpoint", ".writing", ".removed", ".*.[0-9]*.*")
    folders = (output_dir, output_dir / "last", output_dir / "epochs")
    for path in [path for folder in folders for name in unfinished for path in folder.glob(name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_checkpoint(clip: Clip, folder: Path) -> None:
    """A Hugging Face folder: configuration, safetensors, tokenizer, image processor; other files in it stay."""
    temporary = folder / ".checkpoint"
    shutil.rmtree(temporary, ignore_errors=True)
    clip.save(temporary)
    for file in sorted(temporary.iterdir()):
        os.replace(file, folder / file.name)
    temporary.rmdir()
