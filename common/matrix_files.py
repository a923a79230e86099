"""The matrices under `exp/<model>/`: their names, the commands that make them, and checked reading.

A name holds every setting that changes the matrix; those that stand at their default are left out, but for the ones
that the names of the original have: `dc_mat_mean_bs4_iter10.npy`, `cca_mat_9600U_svthre0.99.npy`.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import files
from common.forms import read_form
from measures import KINDS
from measures.table import Kind, Option

if TYPE_CHECKING:
    from measures.base import Measure

PER_TOKEN_MODES = ("T", "seq")  # nothing is pooled
DEFAULT_POOL = "mean"
LARGEST = 1e100  # of an entry: sums over them stay finite


# flags of every script, and settings of the same names: which captions, or images, a matrix is of
SAMPLE_FLAGS = ("dataset", "caption_column", "image_column", "streaming", "tower")


@dataclass(frozen=True)
class MatrixSettings:
    """What a matrix depends on beside the model; the analysis flags of the same names. What is None, and an option that
    is not given, becomes the default of the measure.

    Raises ValueError for a mode or an option that the measure has not, and for a pooling where nothing is pooled.
    """

    measure: str
    options: Mapping[str, object] = field(default_factory=dict)
    batch_size: int | None = None
    iter_num: int | None = None
    mode: str | None = None
    pool: str | None = None
    repeats: int = 1
    seed: int = 0
    dataset: str = files.DEFAULT_DATASET
    caption_column: str | None = None
    image_column: str | None = None  # in the name of an image tower's matrix alone
    streaming: bool = False
    tower: str = "text"  # says which folder, not which name

    def __post_init__(self) -> None:
        batch_size, iter_num = self.kind.draws
        defaults = {"batch_size": batch_size, "iter_num": iter_num, "mode": self.kind.modes[0], "pool": DEFAULT_POOL}
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for option in self.options.keys() - self.kind.defaults.keys():
            owners = ", ".join(name for name, kind in KINDS.items() if option in kind.defaults)
            raise ValueError(f"--{option} is an option of {owners}, not of {self.measure}; leave it out")
        object.__setattr__(self, "options", self.kind.defaults | dict(self.options))
        if self.mode not in self.kind.modes:
            raise ValueError(f"--mode {self.mode}: {self.measure} has the modes {', '.join(self.kind.modes)}")
        if self.pool != DEFAULT_POOL and not pools(self.measure, self.mode):
            what = f"--mode {self.mode}" if pools(self.measure, self.kind.modes[0]) else self.measure
            raise ValueError(f"--pool {self.pool}: {what} pools nothing; leave --pool out")

    @property
    def kind(self) -> Kind:
        """The row of the table of measures."""
        return KINDS[self.measure]

    def new_measure(self) -> "Measure":
        """The measure with its options; raises ValueError for an option out of range."""
        return self.kind(**self.options)

    @property
    def draw_size(self) -> int:
        """Captions that are measured together: a batch, or all batches."""
        return self.batch_size if self.kind.measure.per_draw else self.batch_size * self.iter_num

    @property
    def num_captions(self) -> int:
        """Captions of all draws."""
        return self.batch_size * self.iter_num * self.repeats

    def within(self, number: int) -> "MatrixSettings":
        """The same, with no more batches than `number` captions give."""
        return replace(self, iter_num=max(1, min(self.iter_num, number // self.batch_size)))

    @property
    def tag(self) -> str:
        """The name of the file without `.npy`."""
        name = f"{self.kind.tag or self.measure}_mat_"
        draws = f"{self.mode}_bs{self.batch_size}_iter{self.iter_num}"
        name += draws if self.kind.measure.per_draw else f"{self.draw_size}{self.mode}"
        name += "".join(map(self._suffix, self.kind.options))
        suffixes = (
            (f"_{self.pool}", self.pool != DEFAULT_POOL),
            (f"_rep{self.repeats}", self.repeats > 1),
            (f"_seed{self.seed}", self.seed != 0),
            (f"_{files.dataset_tag(self.dataset)}", self.dataset != files.DEFAULT_DATASET),
            (f"_{files.safe_name(self.caption_column or '')}", self.caption_column),
            (f"_{files.safe_name(self.image_column or '')}", self.image_column and self.tower == "vision"),
            ("_streaming", self.streaming),
        )
        return files.shorten(name + "".join(suffix for suffix, used in suffixes if used))

    def _suffix(self, option: Option) -> str:
        return option.suffix(self.options[option.name])

    def path(self, folder: Path) -> Path:
        return folder / f"{self.tag}.npy"

    def command(self, model: str, exp_dir: Path = files.EXP_DIR) -> str:
        """The command that makes this matrix, for the working directory."""
        shared = [name for name, kind in KINDS.items() if kind.script == self.kind.script]
        flags = {"measure": self.measure} if len(shared) > 1 else {}
        flags |= {"batch_size": self.batch_size, "iter_num": self.iter_num}
        flags |= {"mode": self.mode} if len(self.kind.modes) > 1 else {}
        flags |= {option.name: self.options[option.name] for option in self.kind.options if self._suffix(option)}
        plain = MatrixSettings(self.measure)
        others = ("pool", "repeats", "seed", *SAMPLE_FLAGS)
        flags |= {name: getattr(self, name) for name in others if getattr(self, name) != getattr(plain, name)}
        return files.script_command(self.kind.script, model, exp_dir, flags)


def pools(measure: str, mode: str) -> bool:
    """Whether a measure in that mode takes one vector a caption, so that `--pool` says which."""
    return KINDS[measure].fed == "states" and mode not in PER_TOKEN_MODES


def read_matrix(settings: MatrixSettings, folder: Path, num_layers: int, model: str) -> np.ndarray:
    """The (L+1, L+1) matrix of these settings.

    Raises FileNotFoundError where it is missing, and ValueError where it is not a finite symmetric matrix of that size,
    or its record names other data; both say how to make it.
    """
    path = settings.path(folder)
    how = _how_to_make(settings, folder, model)
    if not path.exists():
        found = found_matrices(folder)
        raise FileNotFoundError(
            f"matrix not found: {path}; there are {found} (--bs and --iter choose); to make it, {how}"
        )
    with (
        files.reading(path, "not a readable .npy file", f"to make it again, {how}"),
        files.check_regular(path).open("rb") as file,
    ):
        matrix = np.lib.format.read_array(file, allow_pickle=False)
    size = num_layers + 1
    if matrix.shape != (size, size):
        raise ValueError(f"{path}: found shape {matrix.shape}, expected {(size, size)} for {num_layers} layers; {how}")
    if matrix.dtype.kind not in "fiu":
        raise ValueError(f"{path}: found entries of the kind {matrix.dtype}, expected numbers; {how}")
    matrix = matrix.astype(np.float64)
    if broken := np.sum(~(np.abs(matrix) < LARGEST)):  # NaN compares false
        raise ValueError(f"{path}: found {broken} entries that are NaN or infinite, or beyond {LARGEST:g}; {how}")
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-9):
        raise ValueError(f"{path}: not symmetric, by up to {np.abs(matrix - matrix.T).max():.2g}; {how}")
    made_of, expected = _read_record(path).dataset, files.dataset_name(settings.dataset)
    if made_of not in (None, expected):
        raise ValueError(f"{path}: made of the data set {made_of}, expected {expected}; {how}")
    return (matrix + matrix.T) / 2  # exactly symmetric: no score may depend on which triangle is read


def warn_of_other_weights(settings: MatrixSettings, folder: Path, identity: dict) -> None:
    """Warn where the record beside a matrix names other weights than those of the model, as `identity` gives them."""
    path = settings.path(folder)
    made_of = _read_record(path).model
    if made_of and made_of.weights_sha256 != identity["weights_sha256"]:
        warnings.warn(
            f"{path}: made of other weights ({made_of.name}, {made_of.weights_sha256[:12]}) than the model "
            f"searched ({identity['name']}, {identity['weights_sha256'][:12]}), so the proposals may be poor ones; to "
            f"make it again, {_how_to_make(settings, folder, identity['name'])}",
            stacklevel=2,
        )


def warn_of_other_captions(settings: MatrixSettings, folder: Path, train: dict, model: str) -> None:
    """Warn where the record beside a matrix names other captions than those of train now, by their `identity`; nothing
    where one of them is a part of all.
    """
    path = settings.path(folder)
    made_of = _read_record(path).data
    whole = made_of and made_of.max_pairs is None and train.get("max_pairs") is None
    if whole and made_of.captions_sha256 != train["captions_sha256"]:
        warnings.warn(
            f"{path}: made of other captions than {settings.dataset} has now, so the proposals may be poor ones; to make "
            f"it again, {_how_to_make(settings, folder, model)}",
            stacklevel=2,
        )


@dataclass(frozen=True)
class _Model:
    weights_sha256: str
    name: str | None = None


@dataclass(frozen=True)
class _Data:
    captions_sha256: str
    max_pairs: int | None = None


@dataclass(frozen=True)
class _Record:
    """What is read again of the record beside a matrix."""

    dataset: str | None = None
    model: _Model | None = None
    data: _Data | None = None


def _read_record(path: Path) -> _Record:
    """The record beside a matrix; empty for a matrix without a record of ours."""
    try:
        with files.reading(path):
            return read_form(path.with_suffix(".json"), _Record)
    except files.UnreadableError:
        return _Record()


def _how_to_make(settings: MatrixSettings, folder: Path, model: str) -> str:
    return f"run: {settings.command(model, files.exp_dir_of(folder, model, settings.tower))}"


def found_matrices(folder: Path) -> str:
    """The matrices of a folder as text, for error messages."""
    names: Iterable[str] = sorted(path.name for path in folder.glob("*_mat_*.npy")) if folder.is_dir() else []
    return ", ".join(name for name in names if not name.endswith(("_std.npy", "_baseline.npy"))) or "none"
