"""Files and names: where things are, safe names, and writes that are whole or not there."""

import contextlib
import glob
import hashlib
import json
import os
import pickle
import re
import shlex
import shutil
import socket
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

ROOT = Path(__file__).resolve().parents[1]
EXP_DIR = ROOT / "exp"
DEFAULT_MODEL = EXP_DIR / "iconclip"
DEFAULT_DATASET = "scenes"
SPLITS = ("train", "validation", "test")
MESSAGE_LENGTH = 200  # characters of what another library says
LONGEST_NAME = 200  # characters of a name before its ending; file systems take names of 255 bytes


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that replaces `path` when the block ends well, and is removed otherwise.

    Those of killed processes are removed too. An OSError of the block, as on a full disk, says which file it was.
    """
    temporary = _temporary(path.with_suffix(""), path.suffix)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder, which replaces all that is in `path`."""
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)  # os.replace takes no folder that is not empty
        os.replace(temporary, path)
    except Exception as error:
        # what safetensors and tokenizers raise on a full disk
        if isinstance(error, OSError | SafetensorError) or type(error) is Exception:
            raise OSError(f"{path}: cannot be written ({error})") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path, suffix: str = "") -> Path:
    """A name beside `path` for this process alone. Those that killed processes of this machine left are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begin, end, own = f".{path.name}.", f"@{machine()}{suffix}", str(os.getpid())
    for left in path.parent.glob(f"{glob.escape(begin)}[0-9]*{glob.escape(end)}"):
        process = left.name.removeprefix(begin).removesuffix(end)
        # in a container that starts again, a process can have the number of one that was killed
        if process == own or not _is_running(process):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{begin}{own}{end}")


def machine() -> str:
    """This machine in the name of a file: short, since the name of a host can take a quarter of what is allowed."""
    return _short_hash(socket.gethostname())


def _is_running(process_id: str) -> bool:
    """Whether there is such a process; also where that is not a number, so that nothing is taken for a dead one's."""
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        pass
    return True


class UnreadableError(ValueError):
    """A file of others that cannot be used, said in one line."""


@contextlib.contextmanager
def reading(path: Path | str, wrong: str = "cannot be read", hint: str = "") -> Iterator[None]:
    """For a block that reads a file, or a folder, of others: whatever a library raises becomes one line.

    It names the file, what is `wrong` with it ("not the configuration of a model"), what was found, and what to do
    (`hint`). Only an UnreadableError, which says all that itself, stays as it is.
    """
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:
        damaged = damaged_json(Path(path))
        cause = f"{f'{damaged} is damaged; ' if damaged else ''}{describe(error)}"
        raise UnreadableError(f"{path}: {wrong} ({cause}){hint and f'; {hint}'}") from error


def check_regular(path: Path) -> Path:
    """The path of a file. Raises OSError for a folder, and for a pipe, which would wait for a writer for ever."""
    if path.exists() and not path.is_file():
        raise OSError("it is no file")
    return path


def describe(error: BaseException) -> str:
    """What another library said, short and on one line."""
    if isinstance(error, pickle.UnpicklingError):
        return "a pickle of more than tensors, whose code is never run"
    text = " ".join(str(error).split())[:MESSAGE_LENGTH]
    return f"{type(error).__name__}{f': {text}' if text else ''}"


def damaged_json(folder: Path) -> str | None:
    """The first file of a folder that should be JSON and is not."""
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError):
            return path.name
    return None


def check_new_folder(path: Path, allowed: Collection[str] = ()) -> None:
    """Raise ValueError where there is something in the folder already, other than the names that are `allowed`."""
    found = sorted({file.name for file in path.iterdir()} - set(allowed)) if path.is_dir() else []
    if found:
        raise ValueError(f"{path} is not empty ({', '.join(found[:5])}); pass another --output_dir")


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_hash(path: Path) -> str:
    """sha256 of the content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def cached_array(folder: Path | None, name: str, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What `make` gives, kept in `folder` (None: not at all) under a hash of `key`, which says all it depends on.

    Behind the array stands its checksum: what a damaged file should hold is made again, with a warning.
    """
    if folder is None:
        return make()
    path = folder / f"{name}_{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if path.is_file():
        kept = _read_checked(path)
        if kept is not None:
            return kept
        warnings.warn(f"{path}: not what was written there; it is made again", stacklevel=2)
    array = make()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.write(_checksum(array))
    return array


def _read_checked(path: Path) -> np.ndarray | None:
    """The array of a file that `cached_array` wrote; None where the file is damaged."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            return array if file.read() == _checksum(array) else None
    except Exception:  # a damaged header can raise anything
        return None


def _checksum(array: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.digest()


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file that are not empty, each once. Raises ValueError where there are none."""
    with reading(path, f"expected one {what} a line"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines or len(set(lines)) < len(lines):
        raise ValueError(
            f"{path}: expected one {what} a line, each once; found {len(lines)}, {len(set(lines))} different"
        )
    return lines


def tower_dir(exp_dir: Path, model: str, tower: str) -> Path:
    """The folder of what is found out about a tower: the model's for `text`, else a folder of its name in that."""
    folder = model_dir(exp_dir, model)
    return folder if tower == "text" else folder / tower


def model_dir(exp_dir: Path, model: str) -> Path:
    """The folder of a model's results: its path or hub name made safe. A model inside `exp_dir` is its own folder."""
    path = real_path(model)
    if path.is_dir() and path.parent == real_path(exp_dir):
        return path
    if path.is_dir():
        path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        model = path.name if path.parent in (Path("."), EXP_DIR.relative_to(ROOT)) else str(path)
    return exp_dir / shorten(safe_name(model))


def script_command(script: str, model: str, exp_dir: Path, flags: Mapping[str, object]) -> str:
    """A command for the working directory: a script of ours with flags, the model and where results are."""
    flags = dict(flags) | ({} if real_path(model) == DEFAULT_MODEL else {"model": model})
    flags |= {} if real_path(exp_dir) == EXP_DIR else {"exp_dir": exp_dir}
    words = ["python", os.path.relpath(ROOT / script)]
    for name, value in flags.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return shlex.join(words)


def exp_dir_of(folder: Path, model: str, tower: str) -> Path:
    """The `exp_dir` of which this is the `tower_dir`."""
    own = folder if tower == "text" else folder.parent
    return EXP_DIR if own == model_dir(EXP_DIR, model) else own.parent


def run_dir(exp_dir: Path, output_dir: str) -> Path:
    """What `--output_dir` names: `foo` and `exp/foo` are the same, where `exp` is the folder of all results.

    An absolute path is itself.
    """
    parts = Path(output_dir).parts
    if not parts or ".." in parts:
        raise ValueError(f"--output_dir {output_dir!r}: expected the name of a folder below {exp_dir}")
    return exp_dir.joinpath(*parts[1:] if len(parts) > 1 and parts[0] == exp_dir.name else parts)


def real_path(path: Path | str) -> Path:
    """The absolute path without links; unlike `Path.resolve` it takes links in a loop, which lead nowhere."""
    return Path(os.path.realpath(path))


def check_writable(folder: Path, hint: str) -> None:
    """Raise PermissionError, with a hint, where a folder, or the nearest above it that there is, cannot be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{folder}: cannot be written; {hint}")


def dataset_name(dataset: str) -> str:
    """One name for every way to write a local path: absolute, or from the project's folder where it lies there."""
    path = real_path(dataset)
    if not os.path.exists(path):  # which, unlike `path.exists()`, takes a name that is too long
        return dataset
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def dataset_tag(dataset: str) -> str:
    """What the name of a file says of the data set that it is of; of the default one nothing."""
    return "" if dataset == DEFAULT_DATASET else safe_name(dataset_name(dataset))


def safe_name(text: str) -> str:
    """A path or hub name as part of a file name: `/` becomes `--`; where more is replaced, a hash keeps names apart."""
    text = text.strip("/")
    name = re.sub(r"[^A-Za-z0-9._-]+", "--", text)
    return name if name.replace("--", "/") == text else f"{name}_{_short_hash(text)}"


def shorten(name: str) -> str:
    """The name of a file, without its ending, cut where file systems would not take it; a hash keeps names apart."""
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}_{_short_hash(name)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def plain(value: object) -> object:
    """A JSON value; paths inside the project are written relative to it."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, Path):
        return str(value.relative_to(ROOT)) if value.is_relative_to(ROOT) else str(value)
    if isinstance(value, str) and value.startswith(f"{ROOT}{os.sep}"):
        return os.path.relpath(value, ROOT)
    return value
