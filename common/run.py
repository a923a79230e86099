"""What every run has: seed, device, logging, and the record of how its results were made.

torch and accelerate are imported where they are used: parsers are built with this module, and need neither.
"""

import argparse
import atexit
import contextlib
import logging
import platform
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

from common.files import ROOT, check_writable, plain

MODULE_FOLDERS = ("benchmarks", "examples", "tools")  # whose scripts run as `python -m folder.name`

logger = logging.getLogger("comflp")
_command = ""  # of the script that runs, for its record


def note_command(script: Path, argv: Sequence[str]) -> None:
    """The command line for the records of this run: a script in a folder of its own kind runs as a module."""
    global _command
    as_module = script.parent in [ROOT / folder for folder in MODULE_FOLDERS]
    words = ["-m", f"{script.parent.name}.{script.stem}"] if as_module else [str(script)]
    _command = shlex.join(["python", *map(plain, [*words, *argv])])


def set_up(args: argparse.Namespace) -> str:
    """Processes, logging, threads, seed and device of a script; returns the device.

    Started by `accelerate launch`, a script runs in several processes that share the work: each sees a part of the
    data, and only the main one logs, prints, and writes.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import set_seed

    if hasattr(args, "exp_dir"):  # before any work
        check_writable(args.exp_dir, "pass another --exp_dir")
    device = select_device(args.device)
    processes = PartialState(cpu=device == "cpu")
    atexit.register(processes.destroy_process_group)
    set_up_logging()
    if args.threads:
        torch.set_num_threads(args.threads)
    set_seed(args.seed)
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


class LineFormatter(logging.Formatter):
    """Warnings and errors say that they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING:
            record.message = f"{record.levelname.lower()}: {record.message}"
        return super().formatMessage(record)


def set_up_logging(log_file: Path | None = None, append: bool = False) -> None:
    """Log to stderr and, where given, to a file; warnings of libraries go the same way, as one line each."""
    handlers = [logging.StreamHandler(sys.stderr)] if is_main_process() else [logging.NullHandler()]
    if log_file is not None and is_main_process():
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="a" if append else "w", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(LineFormatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    logging.captureWarnings(False)  # else the next line does nothing where a caller has put back its own way of warning
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_, **__: " ".join(str(message).split())
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


@cache
def git_state() -> str:
    """The commit of this checkout at the first call, marked where files differ from it; `unknown` outside one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def versions() -> dict[str, str]:
    """Of the libraries that figures depend on."""
    return {name: version(name) for name in ("torch", "numpy", "scipy", "transformers", "datasets")}


def hardware(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return f"{device} ({name}, {torch.get_num_threads()} CPU threads)"


class Stopwatch:
    """Seconds by name, added up over all blocks of that name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of this name."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start


class Record(Stopwatch):
    """What a result file says about its own making: command, flags, versions, device, seconds, and `note`d facts."""

    def __init__(self, args: argparse.Namespace, device: str):
        super().__init__()
        self._start = time.perf_counter()
        self._content = {
            "command": _command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "flags": {name: plain(value) for name, value in sorted(vars(args).items())},
            "commit": git_state(),
            "device": hardware(device),
            "versions": versions(),
            "python": platform.python_version(),
        }

    def note(self, **facts: object) -> None:
        self._content |= {name: plain(fact) for name, fact in facts.items()}

    def note_data(self, **pairs: object) -> None:
        """Note what data were read, and log it: `data.ImageCaptionPairs` by the name they have in the record."""
        for name, of_name in pairs.items():
            self.note(**{name: of_name.identity()})
            logger.info("data: %s", of_name.describe())

    @contextlib.contextmanager
    def warnings(self) -> Iterator[list[str]]:
        """Log the warnings raised in the block, one line each and no line twice, and note them as `warnings`; yields
        those noted."""
        noted = self._content.setdefault("warnings", [])

        def show(message: Warning | str, *_: object, **__: object) -> None:
            text = " ".join(str(message).split())
            if text not in noted:
                noted.append(text)
                logger.warning("%s", text)

        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = show
            yield noted

    def content(self) -> dict:
        seconds = {f"seconds_{name}": value for name, value in self.seconds.items()}
        seconds["seconds"] = time.perf_counter() - self._start
        return self._content | {name: round(value, 4) for name, value in seconds.items()}
