"""What the scripts share: common flags, seed, device, logging, run record, and the names of the files under `exp/`."""

import argparse
import atexit
import contextlib
import functools
import inspect
import json
import logging
import os
import platform
import random
import re
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent
EXP_DIR = ROOT / "exp"
DEFAULT_MODEL = EXP_DIR / "iconclip"
DEFAULT_DATASET = "icons"

logger = logging.getLogger("comflp")
_command = ""  # of the script that runs, for its record


# --- command line


def boolean(text: str) -> bool:
    """`true` or `false`; anything else is an error (an argparse type)."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text == "true"


def bounded(kind: type, minimum: float, maximum: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: a number of `kind` in [minimum, maximum]."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            limits = f"of at least {minimum}" if maximum == float("inf") else f"in {minimum}..{maximum}"
            raise argparse.ArgumentTypeError(f"expected a number {limits}, got {text!r}")
        return value

    return parse


positive_int = bounded(int, 1)


def add_common_flags(parser: argparse.ArgumentParser, several_models: bool = False) -> None:
    """The flags that every script has; with `several_models`, `--model` takes any number of them and `args.model` is a list."""
    group = parser.add_argument_group("common")
    several = {"nargs": "+", "default": [str(DEFAULT_MODEL)]} if several_models else {"default": str(DEFAULT_MODEL)}
    what = "CLIP models, the first being the reference" if several_models else "CLIP model"
    group.add_argument("--model", **several, help=f"{what}: local folder or hub name (default: the bundled one)")
    group.add_argument(
        "--dataset",
        default=DEFAULT_DATASET,
        help="image-caption pairs: bundled name, local file or folder, or hub name (default: %(default)s)",
    )
    group.add_argument("--image_column", help="column of the images (default: found by its usual names)")
    group.add_argument("--caption_column", help="column of the captions (default: found by its usual names)")
    group.add_argument("--seed", type=bounded(int, 0), default=0, help="seed of every random choice (default: 0)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda where present")
    group.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's choice, one a core)")
    group.add_argument("--exp_dir", type=Path, default=EXP_DIR, help="where results are written (default: exp)")


def script(main: Callable) -> Callable:
    """Turn wrong input (ValueError, OSError) into one line on stderr and exit status 2, as argparse does for a flag.

    With the environment variable COMFLP_TRACEBACK set the exception is raised as it is.
    """
    path = Path(inspect.getfile(main)).resolve()

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> object:
        global _command
        argv = sys.argv[1:] if argv is None else list(argv)
        _command = shlex.join(["python", *map(plain, [str(path), *argv])])
        try:
            result = main(argv)
            _wait_for_the_others()
            return result
        except (ValueError, OSError) as error:
            if os.environ.get("COMFLP_TRACEBACK"):
                raise
            message = " ".join(str(error).split())
            print(f"{path.name}: error: {message}", file=sys.stderr)
            raise SystemExit(2) from error

    return wrapper


def _wait_for_the_others() -> None:
    """One of several processes that leaves while another still works can be aborted, and takes all with it."""
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_initialized():
        torch.distributed.barrier()


# --- seed, device, logging


def seed_everything(seed: int) -> None:
    """Seed the generators that libraries use on their own; our own choices take a generator."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that draw from the global state
    torch.manual_seed(seed)


def set_up(args: argparse.Namespace) -> str:
    """Processes, logging, threads, seed and device of a script; returns the device.

    Started by `accelerate launch`, a script runs in several processes that share the work: each sees a part of the data, and
    only the main one logs, prints and writes.
    """
    import torch
    from accelerate import PartialState

    device = select_device(args.device)
    processes = PartialState(cpu=device == "cpu")
    atexit.register(processes.destroy_process_group)
    set_up_logging()
    if args.threads:
        torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    return device if processes.num_processes == 1 else str(processes.device)


def is_main_process() -> bool:
    """Whether this process logs, prints and writes: always, but for the helpers that `accelerate launch` starts."""
    from accelerate import PartialState

    return PartialState().is_main_process


def select_device(name: str) -> str:
    """`cpu` or `cuda` for the flag `--device`."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine or this build of torch has no CUDA device; pass --device cpu")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def set_up_logging(log_file: Path | None = None, append: bool = False) -> None:
    """Log to stderr and, where given, to a file; warnings of libraries go the same way, as one line each."""
    handlers = [logging.StreamHandler(sys.stderr)] if is_main_process() else [logging.NullHandler()]
    if log_file is not None and is_main_process():
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="a" if append else "w", encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
    logging.captureWarnings(False)  # else the next line does nothing where a caller has put back its own way of warning
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}"
    for library in ("httpx", "huggingface_hub", "datasets", "transformers", "accelerate", "matplotlib"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if not show_progress():
        _hide_library_bars()


def show_progress() -> bool:
    """Bars are shown on a terminal only, by the main process."""
    return sys.stderr.isatty() and is_main_process()


def _hide_library_bars() -> None:
    """The same for the bars of libraries, where they are in use."""
    switches = {
        "datasets": "disable_progress_bars",
        "huggingface_hub.utils": "disable_progress_bars",
        "transformers.utils.logging": "disable_progress_bar",
    }
    for library, switch in switches.items():
        if library in sys.modules:
            getattr(sys.modules[library], switch)()


# --- files


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that replaces `path` when the block ends well, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_new_folder(path: Path, allowed: Collection[str] = ()) -> None:
    """Raise ValueError where there is something in the folder already, other than the names that are `allowed`."""
    found = sorted({file.name for file in path.iterdir()} - set(allowed)) if path.is_dir() else []
    if found:
        raise ValueError(f"{path} is not empty ({', '.join(found[:5])}); pass another --output_dir")


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def model_dir(exp_dir: Path, model: str) -> Path:
    """The folder of a model's results: its path or hub name made safe. A model inside `exp_dir` is its own folder."""
    path = Path(model).resolve()
    if path.is_dir() and path.parent == exp_dir.resolve():
        return path
    if path.is_dir():
        path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        model = path.name if path.parent in (Path("."), EXP_DIR.relative_to(ROOT)) else str(path)
    return exp_dir / safe_name(model)


def safe_name(text: str) -> str:
    """A path or hub name as (part of) a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "--", text.strip("/"))


def search_path(folder: Path, num_layers: int, num_clip_layers: int, search_mode: str, tag: str) -> Path:
    """Name of a search result: `clip<L>to<L-k>_<search_mode>_<measure tag>.json`."""
    return folder / f"clip{num_layers}to{num_layers - num_clip_layers}_{search_mode}_{tag}.json"


# --- record


def git_state() -> str:
    """The commit of this checkout, marked where files differ from it; `unknown` outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return f"{device} ({name}, {torch.get_num_threads()} CPU threads)"


class Record:
    """What a result file says about its own making: command, flags, versions, device, seconds, and `note`d facts."""

    def __init__(self, args: argparse.Namespace, device: str):
        self._start = time.perf_counter()
        self._content = {
            "command": _command,
            "flags": {name: plain(value) for name, value in sorted(vars(args).items())},
            "commit": git_state(),
            "device": hardware(device),
            "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "transformers", "datasets")},
            "python": platform.python_version(),
        }

    def note(self, **facts: object) -> None:
        self._content |= {name: plain(fact) for name, fact in facts.items()}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to `seconds_<name>`."""
        start = time.perf_counter()
        yield
        key = f"seconds_{name}"
        self._content[key] = round(self._content.get(key, 0) + time.perf_counter() - start, 4)

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """Log the warnings raised in the block, one line each and no line twice, and note them as `warnings`."""
        noted = self._content.setdefault("warnings", [])

        def show(message: Warning | str, *_: object, **__: object) -> None:
            text = " ".join(str(message).split())
            if text not in noted:
                noted.append(text)
                logger.warning("warning: %s", text)

        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = show
            yield

    def content(self) -> dict:
        return self._content | {"seconds": round(time.perf_counter() - self._start, 3)}


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


def table(
    rows: Iterable[Sequence], headers: Sequence[str], floatfmt: str | Sequence[str] = ".4f", **options: object
) -> str:
    """A result table as text; `options`: more of tabulate's."""
    return tabulate(rows, headers=headers, floatfmt=floatfmt, tablefmt="simple", missingval="-", **options)
