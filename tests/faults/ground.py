"""What a situation is made from: a folder with a small CLIP, pairs and results; and the ways to damage it."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from common import model_dir
from common.files import machine
from common.matrix_files import MatrixSettings

DEAD = f"4999999@{machine()}"  # a process of this machine that does not run, as temporary files name it
NUM_PICTURES = 120  # one that is broken is then less than 1 %
WEIGHTS = "model.safetensors"
CODE = 'open({canary!r}, "w").close()\nclass Evil:\n    pass\n'


@dataclass
class Ground:
    """The places of one situation. `canary` is written by code that must never run."""

    root: Path
    model: Path
    data: str
    patch: pytest.MonkeyPatch
    trained: Path  # a run of two epochs, to be copied
    query: str = "red"
    flags: list[str] = field(default_factory=list)
    undo: Callable[[], object] = lambda: None

    @property
    def exp(self) -> Path:
        return self.root / "exp"

    @property
    def canary(self) -> Path:
        return self.root / "canary"

    @property
    def results(self) -> Path:
        """The folder of the model's results."""
        folder = model_dir(self.exp, str(self.model))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def matrix(self) -> Path:
        return MatrixSettings("dc", dataset=self.data).path(self.results)

    @property
    def states(self) -> Path:
        """The states of a run of two epochs in `exp/out`."""
        folder = self.exp / "out.states"
        if not folder.exists():
            for ending in ("", ".states"):
                shutil.copytree(f"{self.trained}{ending}", self.exp / f"out{ending}")
        return folder


Make = Callable[[Ground], None]


def all_of(*makes: Make) -> Make:
    def make(ground: Ground) -> None:
        for one in makes:
            one(ground)

    return make


def flags(text: str) -> Make:
    """More flags; `{root}` and the like stand for the places."""

    def make(ground: Ground) -> None:
        places = {name: getattr(ground, name) for name in ("root", "model", "exp", "data") if f"{{{name}}}" in text}
        ground.flags += text.format(**places).split()

    return make


# --- files


def write(path: Path, content: object) -> None:
    """Bytes and text as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def puts(name: str, content: object, where: str = "model") -> Make:
    """A file in one of the places of the ground."""
    return lambda ground: write(getattr(ground, where) / name, content)


def cuts(name: str, size: int, where: str = "model") -> Make:
    return lambda ground: os.truncate(getattr(ground, where) / name, size)


def removes(*names: str, where: str = "model") -> Make:
    def make(ground: Ground) -> None:
        for name in names:
            (getattr(ground, where) / name).unlink()

    return make


def turns_into_folder(name: str, where: str = "model") -> Make:
    def make(ground: Ground) -> None:
        path = getattr(ground, where) / name
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)

    return make


def turns_into_pipe(name: str, where: str = "model") -> Make:
    def make(ground: Ground) -> None:
        path = getattr(ground, where) / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    return make


def links(name: str, target: str) -> Make:
    """A file of the model as a link to something else."""

    def make(ground: Ground) -> None:
        (ground.model / name).unlink()
        (ground.model / name).symlink_to(target)

    return make


def edits(name: str, changes: dict, where: str = "model") -> Make:
    """JSON with other values; `a.b` is `b` in `a`, and `...` removes it."""

    def make(ground: Ground) -> None:
        path = getattr(ground, where) / name
        content = json.loads(path.read_text())
        for key, value in changes.items():
            part, (*parents, last) = content, key.split(".")
            for parent in parents:
                part = part[int(parent) if isinstance(part, list) else parent]
            if value is ...:
                del part[last]
            else:
                part[last] = value
        write(path, content)

    return make


def nested(depth: int = 100_000) -> str:
    return "[" * depth


# --- models


def weights(change: Callable[[dict], object], name: str = WEIGHTS, where: str = "model") -> Make:
    """The tensors of a file as `change` leaves them."""

    def make(ground: Ground) -> None:
        path = getattr(ground, where) / name
        state = load_file(path)
        change(state)
        save_file(state, path, metadata={"format": "pt"})

    return make


def one_layer(ground: Ground) -> None:
    """A text tower of the first layer alone."""
    edits("config.json", {"text_config.num_hidden_layers": 1})(ground)
    others = tuple(f"text_model.encoder.layers.{number}" for number in (1, 2, 3))
    weights(lambda state: [state.pop(name) for name in [*state] if name.startswith(others)])(ground)


def fills(tensor: str, value: float) -> Make:
    return weights(lambda state: state[tensor].fill_(value))


def pickles(name: str, where: str = "model") -> Make:
    """A pickle that writes the canary when it is loaded, as torch would save it."""

    def make(ground: Ground) -> None:
        class Evil:
            def __reduce__(self) -> tuple:
                return (open, (str(ground.canary), "w"))

        path = getattr(ground, where) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": Evil()}, path)

    return make


def pickles_plainly(name: str, where: str = "model", before: bytes = b"") -> Make:
    """The same as a plain pickle, behind some bytes."""

    def make(ground: Ground) -> None:
        evil = f"cbuiltins\nopen\n(V{ground.canary}\nVw\ntR.".encode()
        write(getattr(ground, where) / name, before + evil)

    return make


def brings_code(*names: str) -> Make:
    """Python beside the model, which writes the canary when it is imported."""

    def make(ground: Ground) -> None:
        for name in names:
            write(ground.model / name, CODE.format(canary=str(ground.canary)))

    return make


def untrained_sentence_encoder(ground: Ground) -> None:
    from tests.models.family_models import write_sentence_encoder

    ground.model = ground.root / "sentences"
    write_sentence_encoder(ground.model, {"red", "green", "blue", "square", "triangle"}, "bert")


# --- pairs


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (number, 255 - number, 40))


def as_png(image: Image.Image) -> bytes:
    return as_bytes(image, "PNG")


def as_bytes(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form)
    return file.getvalue()


def pairs(
    change: Callable[[list[dict]], object] | None = None, number: int = NUM_PICTURES, name: str = "pairs"
) -> Make:
    """A folder with train, validation and test in parquet, `image` and `caption`; `change` the rows of each."""

    def make(ground: Ground) -> None:
        from datasets import Dataset, Image as ImageFeature

        folder = ground.root / name
        folder.mkdir(parents=True)
        rows = [
            {"image": {"bytes": as_png(picture(i)), "path": None}, "caption": f"red square {i}"} for i in range(number)
        ]
        if change:
            change(rows)
        rows = Dataset.from_list(rows)
        if "image" in rows.column_names and isinstance(rows.features["image"], dict):
            rows = rows.cast_column("image", ImageFeature(decode=False))
        for split in ("train", "validation", "test"):
            rows.to_parquet(folder / f"{split}.parquet")
        ground.data = str(folder)

    return make


def as_image(mode: str, form: str) -> bytes:
    return as_bytes(Image.new(mode, (8, 8)), form)


def image_is(content: bytes, rows: range | tuple[int, ...] = (3,)) -> Make:
    """Pairs of which some images are this file."""

    def change(all_rows: list[dict]) -> None:
        for row in rows:
            all_rows[row]["image"]["bytes"] = content

    return pairs(change)


def data(name: str, content: object) -> Make:
    """A data set of one file."""

    def make(ground: Ground) -> None:
        write(ground.root / "data" / name, content)
        ground.data = str(ground.root / "data" / name)

    return make


def data_folder(**files: object) -> Make:
    """A data set of these files, `__` for the dot in a name."""

    def make(ground: Ground) -> None:
        for name, content in files.items():
            write(ground.root / "data" / name.replace("__", "."), content)
        ground.data = str(ground.root / "data")

    return make


def shard(**members: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


# --- results


def similarity(size: int = 5) -> np.ndarray:
    walk = np.cumsum(np.random.default_rng(0).normal(size=(size, 30)), axis=0)
    return (np.corrcoef(walk) + np.corrcoef(walk).T) / 2


def matrix(content: np.ndarray | bytes | None = None, record: object = None) -> Make:
    """A matrix for the search, and what stands beside it as its record."""

    def make(ground: Ground) -> None:
        if isinstance(content, bytes):
            ground.matrix.write_bytes(content)
        else:
            np.save(ground.matrix, similarity() if content is None else content, allow_pickle=True)
        if record is not None:
            write(ground.matrix.with_suffix(".json"), record)

    return make


def as_npy(shape: str, dtype: str = "<f8") -> bytes:
    """A file of numpy whose header promises more than there is."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)


def matrix_file(make: Callable[[str, str], Make]) -> Make:
    """Something else in the place of the matrix."""
    return lambda ground: make(ground.matrix.name, "results")(ground)


def states(make: Make) -> Make:
    """Something done to the states of a run, which are there."""
    return lambda ground: (ground.states, make(ground))


def caches(content: object) -> Make:
    """Caches of the right names with something else in them; `...` for folders."""

    def make(ground: Ground) -> None:
        for path in ground.trained.parent.glob("*/cache/*.npy"):
            if content is ...:
                (ground.results / "cache" / path.name).mkdir(parents=True)
            else:
                write(ground.results / "cache" / path.name, content(path.read_bytes()))

    return make


def result(changes: object = None, name: str = "clip4to2_beam_dc_mat_mean_bs4_iter10.json") -> Make:
    """A result of the search: one that is whole, with other values, or something else under its name."""

    def make(ground: Ground) -> None:
        content = {
            "num_layers": 4,
            "num_clip_layers": 2,
            "winner": {"dropped_layers": [2, 3], "objective": 2.0},
            "record": {"date": "2026-11-08T10:00:00+00:00", "flags": {"dataset": ground.data}},
        }
        write(ground.results / name, content)
        if isinstance(changes, dict):
            edits(name, changes, "results")(ground)
        elif changes is not None:
            write(ground.results / name, changes)

    return make


def state(name: str, change: Callable[[bytes], bytes | None], epoch: int = 2) -> Make:
    """A file of the state after an epoch, with what `change` makes of its content; removed for None."""

    def make(ground: Ground) -> None:
        path = ground.states / f"{epoch:04d}" / name
        content = change(path.read_bytes())
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return make


def edits_state(**changes: object) -> Make:
    return states(edits("0002/state.json", changes, "states"))


# --- processes


def types(answer: str) -> Make:
    """Somebody who types on the terminal."""
    return lambda ground: ground.patch.setattr(sys, "stdin", io.StringIO(answer))


def loop(ground: Ground) -> None:
    (ground.root / "loop").symlink_to(ground.root / "loop")


def interrupts(target: str) -> Make:
    """Ctrl-C at the first call of a function."""

    def stop(*_: object, **__: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
        signal.raise_signal(signal.SIGINT)

    return lambda ground: ground.patch.setattr(target, stop)


def largest_file(size: int) -> Make:
    """A disk on which no file grows beyond this."""

    def make(ground: Ground) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        ground.undo = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return make


def stdout_is(make_stream: Callable[[], io.TextIOBase]) -> Make:
    return lambda ground: ground.patch.setattr(sys, "stdout", make_stream())


def closed_pipe() -> io.TextIOWrapper:
    read, written = os.pipe()
    os.close(read)
    return os.fdopen(written, "w")


def full_disk() -> io.TextIOBase:
    return open("/dev/full", "w")  # noqa: SIM115


def another_training(ground: Ground) -> None:
    """A process that holds the folder of the run."""
    lock = ground.exp / "out.states" / "lock"
    lock.parent.mkdir(parents=True)
    code = (
        f"import fcntl; f = open({str(lock)!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    ground.undo = lambda: process.communicate(b"\n")
