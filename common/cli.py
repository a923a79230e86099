"""Command line: types and common flags, wrong input in one line, result tables.

Nothing heavy is imported here or by what a parser is built from: `--help` and a wrong flag are answered at once.
"""

import argparse
import contextlib
import functools
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from tabulate import tabulate

from common.files import DEFAULT_DATASET, DEFAULT_MODEL, EXP_DIR
from common.run import note_command

LARGEST_INT = 2**31 - 1  # that torch takes everywhere


class Parser(argparse.ArgumentParser):
    """A parser whose `--help` begins with the docstring of its script; a wrong flag is one line, without the usage."""

    def __init__(self, doc: str):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; --help says more\n")


def boolean(text: str) -> bool:
    """`true` or `false`, in any case; anything else is an error (an argparse type)."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def plain_text(text: str) -> str:
    """Text for a tokenizer (an argparse type): bytes that are no UTF-8 are an error."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"expected text in UTF-8, got {text!r}") from error
    return text


def switch(default: bool | None, what: str) -> dict:
    """What `add_argument` takes for a flag that is true or false, alone true. A default of None is not shown."""
    shown = "" if default is None else f" (default: {str(default).lower()})"
    values = {"type": boolean, "nargs": "?", "const": True, "metavar": "true|false"}
    return values | {"default": default, "help": what + shown}


def choice(meanings: Mapping[str, str], default: str | None, what: str = "") -> dict:
    """What `add_argument` takes for a flag with choices, each with what it means. A default of None is not shown."""
    told = "; ".join(f"{name}: {meaning}" for name, meaning in meanings.items())
    shown = "" if default is None else f" (default: {default})"
    return {"choices": tuple(meanings), "default": default, "help": f"{what}{what and '. '}{told}{shown}"}


def whole_number(default: int, what: str, at_least: int = 1) -> dict:
    """What `add_argument` takes for a whole number."""
    return {"type": bounded(int, at_least), "default": default, "help": f"{what} (default: {default})"}


def bounded(kind: type, minimum: float, maximum: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: a finite number of `kind` in [minimum, maximum]; whole numbers end where those of C do."""
    top = LARGEST_INT if kind is int and maximum == float("inf") else maximum

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        infinite = value == float("inf")
        if value is None or infinite or not minimum <= value <= top:
            is_open = maximum == float("inf") and (value is None or infinite or not value > top)
            limits = f"of at least {minimum}" if is_open else f"in {minimum}..{top}"
            raise argparse.ArgumentTypeError(f"expected a {'finite ' * infinite}number {limits}, got {text!r}")
        return value

    return parse


positive_int = bounded(int, 1)


TOWERS = {"text": "the text tower's", "vision": "the image tower's, for which the texts stay as they are"}
# Of `data.load_pairs`; target_column for scripts whose task takes texts in the place of images.
DATA_OPTIONS = ("image_column", "caption_column", "target_column", "image_root", "max_pairs")


def add_common_flags(
    parser: argparse.ArgumentParser,
    several_models: bool = False,
    *,
    max_pairs: bool = True,
    streaming: bool = False,
    tower: bool = False,
    target_column: bool = False,
) -> None:
    """The flags that every script has; with `several_models`, `--model` takes any number and `args.model` is a list.

    `max_pairs`: for scripts that take all pairs of a split; `streaming`: for those that take a few captions of train;
    `tower`: for those that work on any encoder; `target_column`: for those whose task may be a retrieval of texts.
    """
    group = parser.add_argument_group("common")
    several = {"nargs": "+", "default": [str(DEFAULT_MODEL)]} if several_models else {"default": str(DEFAULT_MODEL)}
    what = "models, the first being the reference" if several_models else "model"
    group.add_argument("--model", **several, help=f"{what}: local folder or hub name (default: the bundled one)")
    if tower:
        group.add_argument("--tower", **choice(TOWERS, "text", "whose layers"))
    group.add_argument(
        "--dataset",
        default=DEFAULT_DATASET,
        help="image-caption pairs: bundled name, local file or folder, or hub name (default: %(default)s)",
    )
    _add_data_options(group, max_pairs, streaming, target_column)
    group.add_argument("--seed", **whole_number(0, "seed of every random choice", 0))
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda where present")
    group.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's choice, one a core)")
    group.add_argument("--exp_dir", type=Path, default=EXP_DIR, help="where results are written (default: exp)")


def _add_data_options(group: argparse._ArgumentGroup, max_pairs: bool, streaming: bool, target_column: bool) -> None:
    add = group.add_argument
    add("--image_column", help="column of the images (default: found by its usual names)")
    add("--caption_column", help="column of the captions, or several: en,de (default: found by its usual names)")
    if target_column:
        add("--target_column", help="column of texts that are to be found, in the place of images (default: none)")
    add("--image_root", type=Path, help="folder where paths of images begin (default: that of the data)")
    if max_pairs:
        add(
            "--max_pairs",
            type=positive_int,
            help="the first so many pairs of each split, for a first try (default: all)",
        )
    if streaming:
        what = "captions of train: read the first that are needed, not all of a data set too large to hold"
        add("--streaming", **switch(False, what))


def data_flags(args: argparse.Namespace) -> dict:
    """The options of `data.load_pairs` that the flags give."""
    return {name: getattr(args, name) for name in DATA_OPTIONS if hasattr(args, name)}


def caption_flags(args: argparse.Namespace, num_captions: int) -> dict:
    """The same for captions alone, of which so many are needed: of train, or of validation where there is no train.

    For an image tower with the images.
    """
    options = data_flags(args) | {"images": getattr(args, "tower", "text") == "vision", "or_validation": True}
    return options | ({"streaming": True, "max_pairs": num_captions} if args.streaming else {})


def script(main: Callable) -> Callable:
    """Turn wrong input (ValueError, OSError) into one line on stderr and exit status 2, as argparse does for a flag.

    A script that is stopped (SIGINT) says so in one line and leaves with 130. Where nobody reads its output on, as
    behind `| head -1`, it is quiet. With the environment variable COMFLP_TRACEBACK set an exception is raised as it is.
    """
    path = Path(inspect.getfile(inspect.unwrap(main))).resolve()

    def leave(message: str, status: int) -> NoReturn:
        print(f"{path.name}: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(status)

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> object:
        argv = sys.argv[1:] if argv is None else list(argv)
        note_command(path, argv)
        try:
            with _print_anything():
                result = main(argv)
            _wait_for_the_others()
            return result
        except (ValueError, OSError) as error:
            if os.environ.get("COMFLP_TRACEBACK"):
                raise
            leave(f"error: {error}", 2)
        except KeyboardInterrupt:
            leave("stopped", 130)

    return wrapper


@contextlib.contextmanager
def _print_anything() -> Iterator[None]:
    """For a block that prints: `?` for what the encoding of the terminal lacks, and no word where the reader is gone.

    What is not flushed here Python would flush at its end, and complain at length.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            yield
        except SystemExit:  # of --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except OSError as error:
        if not _is_stuck(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _is_stuck(stream: TextIO) -> bool:
    """Whether there is something in it that cannot be written."""
    try:
        stream.flush()
    except OSError:
        return True
    return False


def _wait_for_the_others() -> None:
    """One of several processes that leaves while another still works can be aborted, and takes all with it."""
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_initialized():
        torch.distributed.barrier()


def format_table(
    rows: Iterable[Sequence], headers: Sequence[str], floatfmt: str | Sequence[str] = ".4f", **options: object
) -> str:
    """A result table as text; `options`: more of tabulate's."""
    return tabulate(rows, headers=headers, floatfmt=floatfmt, tablefmt="simple", missingval="-", **options)
