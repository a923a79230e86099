"""From a name to rows: what is bundled, every form of local file and folder, and the hub."""

import contextlib
import glob
import itertools
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pyarrow.parquet
from pandas.errors import ParserWarning
from pyarrow import ArrowException

from common.files import UnreadableError, check_writable, describe, reading
from data.annotations import read_annotations, split_in, table_options
from data.shards import FEATURES, IMAGE_ENDINGS, read_samples

Rows = datasets.Dataset | datasets.IterableDataset
Splits = Mapping[str, Rows]

BUNDLED = {name: Path(__file__).resolve().parent / name for name in ("icons", "scenes")}
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json"}
TEXTS = (".csv", ".tsv", ".txt")
# Where COCO and Flickr keep the images, which their caption files do not name.
IMAGE_FOLDERS = ("images", "Images", "train2014", "val2014", "train2017", "val2017")
MOST_FILES = 1_000_000
SUFFIXES = (*TABLES, *TEXTS, ".tar")


@dataclass(frozen=True)
class Source:
    """The rows of a data set, by its own names of splits."""

    splits: Splits
    form: str  # what it was read as, for the log
    folders: tuple[Path, ...] = (Path(),)  # where relative paths of images may begin, the likeliest first
    hint: str = ""  # what to try where no column of captions is found


def read_source(
    dataset: str, *, caption_column: str | None = None, image_root: Path | None = None, streaming: bool = False
) -> Source:
    """The rows of a bundled name, a local file, folder or pattern of files, or a hub name (`name:config@revision`).

    With `streaming` they are read when they are asked for. Raises FileNotFoundError where there is no such source and
    ValueError where it is of no known form.
    """
    if not dataset.strip():
        raise ValueError("--dataset is empty; expected a bundled name, a local file or folder, or a hub name")
    bundled = BUNDLED.get(dataset)
    path = bundled or Path(dataset)
    if path.is_dir():
        source = _read_folder(path, streaming)
    elif files := [path] if path.is_file() else _expand(dataset):
        source = _read_files(files, caption_column, streaming)
    elif path.suffix in SUFFIXES:
        raise FileNotFoundError(f"data set not found: looked for the file {path}")
    else:
        return _read_hub(dataset, streaming)
    folders = (image_root,) if image_root else source.folders
    below = [folder / name for folder in folders for name in IMAGE_FOLDERS]
    return replace(source, folders=(*folders, *below), form="bundled" if bundled else source.form)


# --- files


def _expand(pattern: str) -> list[Path]:
    """The files of `{00000..00005}.tar`, of `*.tar`, and of several such with `::` between them, in this order."""
    found = []
    for part in pattern.split("::"):
        for name in _expand_braces(part):
            names = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
            found += [Path(name) for name in names]
    if len(found) > 1 and (missing := next((path for path in found if not path.is_file()), None)):
        raise FileNotFoundError(f"data set not found: looked for the file {missing} of {pattern}")
    return [path for path in found if path.is_file()]


def _expand_braces(pattern: str) -> list[str]:
    """`{00..12}` counted out with its zeros, and the parts of `{a,b}`. Raises ValueError for more than MOST_FILES."""
    names = [pattern]
    while names and (found := re.search(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}|\{([^{}]*,[^{}]*)\}", names[0])):
        first, last, parts = found.groups()
        number = parts.count(",") + 1 if parts else int(last) - int(first) + 1
        if number * len(names) > MOST_FILES:
            raise ValueError(f"{pattern}: more than {MOST_FILES} files; write a pattern of fewer, or name their folder")
        middles = parts.split(",") if parts else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        names = [name.replace(found[0], middle, 1) for name in names for middle in middles]
    return names


def _read_files(files: Sequence[Path], caption_column: str | None, streaming: bool) -> Source:
    """Files of one form."""
    suffix, folders, shown = files[0].suffix.lower(), (files[0].parent,), _show(files)
    if {file.suffix.lower() for file in files} != {suffix} or suffix not in SUFFIXES:
        raise ValueError(f"{shown}: expected a folder, or files of one kind: {', '.join(SUFFIXES)}")
    if suffix == ".tar":
        return _read_shards(files, streaming)
    if suffix == ".json" and len(files) == 1 and (splits := read_annotations(files[0])):
        # beside `annotations/` lie the images
        return Source(_as_rows(splits, streaming), "json annotations", (*folders, files[0].parent.parent))
    options = table_options(files[0], caption_column) if suffix in TEXTS else {}
    if options is None:
        return Source(_as_rows({"train": _read_lines(files)}, streaming), "captions, a line each", folders)
    data_files = {"train": [glob.escape(str(file)) for file in files]}  # else taken for a pattern
    kind = TABLES.get(suffix, "csv")
    # captions such as `None` are no missing values, and a row with more fields than names has no index before them
    options |= {"index_col": False, "keep_default_na": False} if kind == "csv" else {}
    splits = _load(shown, kind, data_files=data_files, streaming=streaming, **options)
    separated = f", separated by {options['sep']!r}" if "sep" in options else ""
    return Source(splits, f"{len(files)} {suffix} file{'s' * (len(files) > 1)}{separated}", folders)


def _show(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _read_lines(files: Sequence[Path]) -> list[dict]:
    lines = []
    for file in files:
        with reading(file):
            lines += map(str.strip, file.read_text(encoding="utf-8-sig").splitlines())
    return [{"caption": line} for line in lines if line]


def _as_rows(splits: Mapping[str, list[dict]], streaming: bool) -> Splits:
    rows = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    return {name: part.to_iterable_dataset() for name, part in rows.items()} if streaming else rows


def _read_shards(files: Sequence[Path], streaming: bool, root: Path | None = None) -> Source:
    """WebDataset shards, or folders of loose samples; below `root` their paths may tell the split."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        split = root and split_in(str(file.relative_to(root)))
        by_split.setdefault(split or "train", []).append(file)
    splits = {}
    for name, of_split in by_split.items():
        paths = [str(file.absolute()) for file in of_split]
        stamps = [f"{file.stat().st_size} {file.stat().st_mtime_ns}" for file in of_split]
        splits[name] = _generate(paths, stamps, streaming)
    return Source(splits, f"WebDataset, shards: {len(files)}" if files[0].is_file() else "loose files, paired by name")


def _generate(paths: list[str], stamps: list[str], streaming: bool) -> Rows:
    made = (datasets.IterableDataset if streaming else datasets.Dataset).from_generator
    with _name_what_fails(paths[0]):
        return made(read_samples, features=FEATURES, gen_kwargs={"files": paths, "stamps": stamps})


# --- folders


def _read_folder(path: Path, streaming: bool) -> Source:
    """A folder by what is in it: saved to disk, shards, COCO's annotations, loose samples, or what `datasets` reads."""
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        return Source(_read_saved(path, streaming), "saved to disk", (path,))
    if shards := sorted([*path.glob("*.tar"), *path.glob("*/*.tar")]):
        return _read_shards(shards, streaming, path)
    if annotations := sorted([*path.glob("captions_*.json"), *path.glob("annotations/captions_*.json")]):
        return _read_coco_folder(annotations, path, streaming)
    if _has_loose_samples(path):
        of_splits = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and split_in(folder.name)]
        return _read_shards(of_splits or [path], streaming, path)
    if glob.has_magic(str(path)):
        raise ValueError(f"{path}: a folder with [, ], * or ? in its path cannot be read; rename it, or link to it")
    try:
        splits = _load(str(path), str(path), streaming=streaming)
    except (FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{path}: expected parquet, arrow, csv, json, .tar or images with metadata.csv or metadata.jsonl; found {found}"
        ) from error
    return Source(splits, "folder", (path,), _caption_files(path))


def _caption_files(path: Path) -> str:
    """A hint at captions beside pictures, which are taken for a folder of images alone."""
    found = sorted(file.name for file in path.iterdir() if file.suffix in (*TEXTS, ".json", ".jsonl"))
    return f"; or pass a file of captions that is there: {', '.join(found[:4])}" if found else ""


def _read_saved(path: Path, streaming: bool) -> Splits:
    with reading(path), _name_what_fails(str(path)):
        saved = datasets.load_from_disk(str(path))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    return {name: rows.to_iterable_dataset() for name, rows in splits.items()} if streaming else splits


def _read_coco_folder(files: Sequence[Path], path: Path, streaming: bool) -> Source:
    splits: dict[str, list[dict]] = {}
    for file in files:
        for name, rows in (read_annotations(file) or {}).items():
            splits.setdefault(name, []).extend(rows)
    return Source(_as_rows(splits, streaming), "json annotations", (path, path.parent))


def _has_loose_samples(path: Path) -> bool:
    """Whether texts lie beside images of the same name, as img2dataset writes files."""
    texts = itertools.chain(path.glob("*.txt"), path.glob("*/*.txt"))
    first = itertools.islice(texts, 20)
    return any(text.with_suffix(f".{ending}").exists() for text in first for ending in IMAGE_ENDINGS)


# --- `datasets`


def _load(shown: str, *args: str, **options: object) -> datasets.DatasetDict:
    if "::" in shown:
        raise ValueError(f"{shown}: a path with :: in it cannot be read; rename it, or link to it")
    with _name_what_fails(shown), warnings.catch_warnings():
        warnings.simplefilter("error", ParserWarning)
        return datasets.load_dataset(*args, **options)


@contextlib.contextmanager
def _name_what_fails(shown: str) -> Iterator[None]:
    """Errors of `datasets` in one line with the file; its own lines about them are not shown."""
    library = logging.getLogger("datasets")
    level = library.level
    library.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:  # of its readers' libraries too: yaml, pyarrow, pandas, fsspec
        # a cache that cannot be written shows in many ways, also as data that are not found
        check_writable(Path(datasets.config.HF_DATASETS_CACHE), "set HF_HOME to a folder that can")
        if isinstance(error, FileNotFoundError | datasets.exceptions.DatasetNotFoundError):
            raise
        cause = error.__cause__ or error
        if isinstance(cause, ParserWarning):
            raise UnreadableError(
                f"{shown}: its rows have more fields than its first line has names; put captions with commas in quotes"
            ) from error
        if "BatchSize must be greater than 0" in str(cause) or "corresponds to no data" in str(cause):
            raise UnreadableError(f"{shown}: no rows in {_empty_file(shown)}") from error
        raise UnreadableError(f"{shown}: cannot be read ({describe(cause)})") from error
    finally:
        library.setLevel(level)


def _empty_file(shown: str) -> str:
    """The parquet file without rows."""
    files = Path(shown).rglob("*.parquet") if Path(shown).is_dir() else [Path(shown)]
    empty = (file.name for file in files if file.is_file() and not pyarrow.parquet.read_metadata(file).num_rows)
    with contextlib.suppress(ArrowException):
        return next(empty, "one of its files")
    return "one of its files"


def _read_hub(dataset: str, streaming: bool) -> Source:
    """A name of the hub, `owner/name:config@revision`; what looks like a local path is not asked for there."""
    name, _, revision = dataset.partition("@")
    name, _, config = name.partition(":")
    missing = (
        f"data set not found: {dataset!r} is not a bundled name ({', '.join(BUNDLED)}), not a local file or folder"
    )
    if name.startswith((".", "/", "~", "exp/")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise FileNotFoundError(missing)
    try:
        splits = _load(dataset, name, config or None, revision=revision or None, streaming=streaming)
    except (OSError, ValueError) as error:
        hint = f"; try {name}@refs/convert/parquet" if "scripts are no longer supported" in str(error) else ""
        raise FileNotFoundError(
            f"{missing}, and the hub did not give it ({type(error).__name__}: {str(error)[:200]}{hint})"
        ) from error
    return Source(splits, "the hub")
