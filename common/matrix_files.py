"""The matrices under `exp/<model>/`: their names, the commands that make them, writing, and checked reading.

A name holds every setting that changes the matrix; those that stand at their default are left out, but for the ones that
the names of the original have: `dc_mat_mean_bs4_iter10.npy`, `cca_mat_9600U_svthre0.99.npy`.
"""

import json
import os
import shlex
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from common.files import DEFAULT_DATASET, DEFAULT_MODEL, EXP_DIR, ROOT, model_dir, safe_name
from measures import MEASURES

MATRICES = (*MEASURES, "ablation")  # what matrices are made of; each has a command
MEASURE_TAGS = {"svcca": "cca"}  # in file names, as in the original; every other measure has its own name
SCRIPTS = {
    "svcca": "svcca_analysis.py",
    "dc": "dc_analysis.py",
    "ablation": "ablation_analysis.py",
}  # every other: similarity_analysis.py --measure <name>
OPTIONS = {"svcca": ("thre", "thre_on"), "pwcca": ("thre", "thre_on"), "dc": ("estimator",), "cka": ("debiased",)}
MODES = {"dc": ("mean", "seq"), "ablation": ("U",)}  # the first is the default
OTHER_MODES = ("U", "T")
DRAWS = {"dc": (4, 10), "ablation": (4, 10)}  # default (batch_size, iter_num)
OTHER_DRAWS = (32, 300)
PER_TOKEN_MODES = ("T", "seq")  # nothing is pooled
LONGEST_TAG = 200  # characters; file systems take names of 255 bytes


def modes(measure: str) -> tuple[str, ...]:
    """Choices of `--mode`, the default first."""
    return MODES.get(measure, OTHER_MODES)


def default_draws(measure: str) -> tuple[int, int]:
    """Default `--batch_size` and `--iter_num`."""
    return DRAWS.get(measure, OTHER_DRAWS)


@dataclass(frozen=True)
class MatrixSettings:
    """What a matrix depends on beside the model; the analysis flags of the same names."""

    measure: str
    batch_size: int | None = None
    iter_num: int | None = None
    mode: str | None = None
    thre: float = 0.99
    thre_on: str = "singular"
    estimator: str = "biased"
    debiased: bool = False
    pool: str = "mean"
    repeats: int = 1
    seed: int = 0
    dataset: str = DEFAULT_DATASET
    caption_column: str | None = None
    streaming: bool = False

    def options(self) -> dict:
        """The options of the measure itself."""
        return {name: getattr(self, name) for name in OPTIONS.get(self.measure, ())}

    def filled(self) -> "MatrixSettings":
        """The same with the measure's defaults for what is None."""
        batch_size, iter_num = default_draws(self.measure)
        return replace(
            self,
            batch_size=self.batch_size or batch_size,
            iter_num=self.iter_num or iter_num,
            mode=self.mode or modes(self.measure)[0],
            pool=self.pool if self.measure in MEASURES else MatrixSettings.pool,  # only hidden states are pooled
        )

    def check_pool(self) -> None:
        """Raise ValueError where a pooling is asked for and nothing is pooled."""
        if self.mode in PER_TOKEN_MODES and self.pool != MatrixSettings.pool:
            raise ValueError(f"--pool {self.pool}: --mode {self.mode} pools nothing; leave one of them out")

    @property
    def tag(self) -> str:
        """The name of the file without `.npy`."""
        s, options = self.filled(), self.options()
        if s.measure == "dc":
            name = f"dc_mat_{s.mode}_bs{s.batch_size}_iter{s.iter_num}"
        else:
            name = f"{MEASURE_TAGS.get(s.measure, s.measure)}_mat_{s.batch_size * s.iter_num}{s.mode}"
        if "thre" in options:
            name += f"_svthre{s.thre:.10g}"
        suffixes = (
            ("_variance", options.get("thre_on") == "variance"),
            ("_unbiased", options.get("estimator") == "unbiased"),
            ("_debiased", options.get("debiased")),
            (f"_{s.pool}", s.pool != "mean"),
            (f"_rep{s.repeats}", s.repeats > 1),
            (f"_seed{s.seed}", s.seed != 0),
            (f"_{_dataset_name(s.dataset)}", s.dataset != DEFAULT_DATASET),
            (f"_{safe_name(s.caption_column or '')}", s.caption_column),
            ("_streaming", s.streaming),
        )
        return name + "".join(suffix for suffix, used in suffixes if used)

    def path(self, folder: Path) -> Path:
        return folder / f"{self.tag}.npy"

    def command(self, model: str, exp_dir: Path = EXP_DIR) -> str:
        """The command that makes this matrix, for the working directory."""
        s = self.filled()
        script = os.path.relpath(ROOT / SCRIPTS.get(s.measure, "similarity_analysis.py"))
        words = ["python", script] + ([] if s.measure in SCRIPTS else ["--measure", s.measure])
        unused = {name for names in OPTIONS.values() for name in names} - set(s.options())
        unused |= {"mode"} if len(modes(s.measure)) == 1 else set()
        for field in fields(s)[1:]:
            value = getattr(s, field.name)
            if field.name not in unused and (value != field.default or field.name == "thre"):
                words += [f"--{field.name}", str(value).lower() if isinstance(value, bool) else str(value)]
        if Path(model).resolve() != DEFAULT_MODEL:
            words += ["--model", model]
        if exp_dir.resolve() != EXP_DIR:
            words += ["--exp_dir", str(exp_dir)]
        return shlex.join(words)


def _dataset_name(dataset: str) -> str:
    """The same for every way to write the path of a local data set."""
    path = Path(dataset).resolve()
    if not path.exists():
        return safe_name(dataset)
    return safe_name(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path))


def read_matrix(settings: MatrixSettings, folder: Path, num_layers: int, model: str) -> np.ndarray:
    """The (L+1, L+1) matrix of these settings.

    Raises FileNotFoundError where it is missing and ValueError where it is not a finite symmetric matrix of that size;
    both say how to make it.
    """
    path = settings.path(folder)
    how = _how_to_make(settings, folder, model)
    if not path.exists():
        raise FileNotFoundError(f"matrix not found: {path}; there are {found_matrices(folder)}; to make it, {how}")
    try:
        with path.open("rb") as file:
            matrix = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable .npy file ({error}); to make it again, {how}") from error
    size = num_layers + 1
    if matrix.shape != (size, size):
        raise ValueError(f"{path}: found shape {matrix.shape}, expected {(size, size)} for {num_layers} layers; {how}")
    if matrix.dtype.kind not in "fiu":
        raise ValueError(f"{path}: found entries of the kind {matrix.dtype}, expected numbers; {how}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{path}: found {np.sum(~np.isfinite(matrix))} entries that are NaN or infinite; {how}")
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-9):
        raise ValueError(f"{path}: not symmetric, by up to {np.abs(matrix - matrix.T).max():.2g}; {how}")
    return (matrix + matrix.T) / 2


def warn_of_other_weights(settings: MatrixSettings, folder: Path, identity: dict) -> None:
    """Warn where the record beside a matrix names other weights than those of the model, as `Clip.identity` gives them."""
    path = settings.path(folder)
    try:
        made_of = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["model"]
        other = made_of["weights_sha256"] != identity["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # a matrix without a record of ours: nothing to compare
    if other:
        warnings.warn(
            f"{path}: made of other weights ({made_of.get('name')}, {made_of['weights_sha256'][:12]}) than the model "
            f"searched ({identity['name']}, {identity['weights_sha256'][:12]}), so the proposals may be poor ones; to "
            f"make it again, {_how_to_make(settings, folder, identity['name'])}",
            stacklevel=2,
        )


def _how_to_make(settings: MatrixSettings, folder: Path, model: str) -> str:
    exp_dir = EXP_DIR if folder == model_dir(EXP_DIR, model) else folder.parent
    return f"run: {settings.command(model, exp_dir)}"


def found_matrices(folder: Path) -> str:
    """The matrices of a folder as text, for error messages."""
    names: Iterable[str] = sorted(path.name for path in folder.glob("*_mat_*.npy")) if folder.is_dir() else []
    return ", ".join(name for name in names if not name.endswith(("_std.npy", "_baseline.npy"))) or "none"
