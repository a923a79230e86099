"""From the columns of a table to captions and images: usual names in any case, every way to write several captions."""

import ast
import contextlib
import io
import json
import re
import tokenize
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np

CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences", "sentences_raw", "raw", "alt_text", "title"),
    *("txt", "comment", "description", "answer"),
)
IMAGE_COLUMNS = (
    *("image", "images", "img", "jpg", "png", "image_path", "file_name", "path"),
    *("jpeg", "webp", "filepath", "image_name", "filename", "img_path"),
)
URL_COLUMNS = ("url", "image_url", "img_url", "coco_url", "flickr_url")
CAPTIONS_ALONE = (
    "captions alone do for the analyses, --objective embedding (search) and --images false (fine-tuning, evaluation)"
)


# --- names


def find_column(
    names: Sequence[str], asked: str | None, usual: Sequence[str], what: str, dataset: str, hint: str = ""
) -> str:
    """The column asked for, or the first of the usual names that is there. Raises ValueError where there is none."""
    candidates = (asked,) if asked else usual
    for candidate in candidates:
        if found := _in_any_case(names, candidate):
            return found
    raise ValueError(
        f"{dataset}: no {what} column; looked for {', '.join(candidates)}; the columns are {', '.join(names)}; "
        f"name it with --{what}_column{hint}"
    )


def find_caption_columns(names: Sequence[str], asked: str | None, dataset: str, hint: str = "") -> list[str]:
    """The columns of the captions: one; several, numbered (`caption_0`, `caption_1`); or those asked for (`en,de`)."""
    if asked:
        parts = [asked] if _in_any_case(names, asked) else [part.strip() for part in asked.split(",")]
        return [_find_with_field(names, part, dataset, hint) for part in parts]
    for usual in CAPTION_COLUMNS:
        if found := _in_any_case(names, usual):
            return [found]
        if numbered := [name for name in names if re.fullmatch(rf"{usual}_?\d+", name, re.IGNORECASE)]:
            return sorted(numbered, key=lambda name: int(re.search(r"\d+$", name)[0]))
    return [find_column(names, None, CAPTION_COLUMNS, "caption", dataset, hint)]


def _in_any_case(names: Sequence[str], wanted: str) -> str | None:
    """The name itself where it is there, or the one that differs in case alone."""
    return wanted if wanted in names else next((name for name in names if name.lower() == wanted.lower()), None)


def _find_with_field(names: Sequence[str], asked: str, dataset: str, hint: str) -> str:
    """A column, or a field of one: `json.title`."""
    column, _, field = asked.partition(".")
    if field and not _in_any_case(names, asked):
        return f"{find_column(names, column, (), 'caption', dataset, hint)}.{field}"
    return find_column(names, asked, (), "caption", dataset, hint)


# --- captions


def read_captions(rows: datasets.Dataset, columns: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """All captions of these columns, stripped, and the row of each; a row without one has an empty one."""
    values = zip(*(_values(rows, column) for column in columns), strict=True)
    pairs = [(caption, row) for row, of_row in enumerate(values) for value in of_row for caption in captions_of(value)]
    captions, row_of_caption = zip(*pairs, strict=True) if pairs else ((), ())
    return list(captions), np.asarray(row_of_caption, dtype=np.int64)


def _values(rows: datasets.Dataset, column: str) -> Iterable:
    name, field = split_field(column, rows.column_names)
    return [field_of(value, field) for value in rows[name]] if field else rows[name]


def split_field(column: str, names: Sequence[str]) -> tuple[str, str]:
    """A column and no field; or, for `json.title` where no column has that name, `json` and `title`."""
    if column in names:
        return column, ""
    name, _, field = column.partition(".")
    return name, field


def field_of(value: object, field: str) -> object:
    """A field of a struct, of each of several, or of JSON in text; the value itself where no field is named."""
    if not field:
        return value
    if isinstance(value, str):
        value = json.loads(value)
    return [field_of(part, field) for part in value] if isinstance(value, list) else (value or {}).get(field)


def captions_of(value: object) -> list[str]:
    """The captions in a value, stripped: text, lines, a list, a struct (`raw`, `caption`), or one of these as JSON.

    No value and an empty list are one empty caption. Raises ValueError where there is something else than text.
    """
    if value is None:
        return [""]
    if isinstance(value, str):
        written = _structure_in(value)
        return captions_of(written) if written is not None else _lines(value)
    if isinstance(value, list | tuple):
        return [
            part for each in value for part in ([each.strip()] if isinstance(each, str) else captions_of(each))
        ] or [""]
    if isinstance(value, dict) and (name := _caption_field(value)):
        return captions_of(value[name])
    raise ValueError(
        f"expected captions to be text or lists of text; found {repr(value)[:100]}: name another --caption_column"
    )


def _caption_field(value: dict) -> str | None:
    names = [name for name, content in value.items() if content is not None]
    return next((found for usual in ("raw", *CAPTION_COLUMNS) if (found := _in_any_case(names, usual))), None)


def _lines(text: str) -> list[str]:
    return [line for part in text.splitlines() if (line := part.strip())] or [""]


def _structure_in(text: str) -> list | dict | None:
    """The list or struct that a text is the JSON or the Python form of; None for other text.

    Raises ValueError for what NumPy has written and nobody can read again.
    """
    text = text.strip()
    if not re.match(r"""\[\s*(["'{].*)?\]$|\{\s*["'].*\}$""", text, re.DOTALL):
        return None
    for read in (json.loads, lambda text: ast.literal_eval(_with_commas(text))):
        # nested deep either raises other things than ValueError; of Python's signs the other may warn
        with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
            written = read(text)
            return written if isinstance(written, list | dict) else None
    if "array(" in text:
        raise ValueError(f"expected captions to be text or lists of text; found NumPy's arrays as text: {text[:100]}")
    return None


def _with_commas(text: str) -> str:
    """A list as NumPy writes an array, ['a cat' 'a dog'], with the commas that keep Python from joining the two."""
    tokens = [token[:2] for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.NL]
    written = tokens[:1]
    for before, token in pairwise(tokens):
        if before[0] == token[0] == tokenize.STRING or (before[1], token[1]) == ("}", "{"):
            written.append((tokenize.OP, ","))
        written.append(token)
    return tokenize.untokenize(written)


# --- images


def as_image_files(
    rows: datasets.Dataset, column: str, folders: Sequence[Path], dataset: str, must_exist: bool = True
) -> datasets.Dataset:
    """The column alone, as `ImageFiles` takes it. Paths are relative to the first of `folders` where the images are.

    Raises ValueError where the column holds no images and FileNotFoundError where none of the first files is there;
    without `must_exist` paths that lead nowhere stay as they are.
    """
    rows = rows.select_columns([column])
    feature = rows.features[column]
    fields = set(feature) if isinstance(feature, dict) else set()
    if "offset" in fields:  # inside a shard
        return rows
    kind = getattr(feature, "dtype", None)
    if isinstance(feature, datasets.Image) or fields == {"bytes", "path"} or kind in ("binary", "large_binary"):
        return rows.cast_column(column, datasets.Image(decode=False))
    if kind not in ("string", "large_string"):
        raise ValueError(f"{dataset}: the column {column} is {feature}; expected images or paths of images")
    paths = [path and _without_number(path) for path in rows[column]]
    if must_exist:
        _refuse_urls(paths, column, dataset)
    folder = _folder_of(paths, folders, dataset, must_exist)
    files = [{"path": str(folder / path) if path else None, "bytes": None} for path in paths]
    return datasets.Dataset.from_dict(
        {column: files}, features=datasets.Features({column: datasets.Image(decode=False)})
    )


def _without_number(path: str) -> str:
    """`1000.jpg` for Flickr30k's `1000.jpg#0`."""
    return re.sub(r"(\.\w{3,4})#\d+$", r"\1", path)


def _refuse_urls(paths: Sequence[str | None], column: str, dataset: str) -> None:
    url = next((path for path in paths[:10] if path and re.match(r"https?://", path)), None)
    if url:
        raise ValueError(
            f"{dataset}: the column {column} holds addresses ({url[:80]}), not images: download them first, for example "
            "with img2dataset"
        )


def _folder_of(paths: Sequence[str | None], folders: Sequence[Path], dataset: str, must_exist: bool) -> Path:
    """The first of `folders` that has one of the first ten images."""
    first = [path for path in paths if path][:10]
    for folder in folders:
        if any((folder / path).is_file() for path in first):
            return folder
    if not first or not must_exist:
        return folders[0]
    raise FileNotFoundError(
        f"{dataset}: the image {folders[0] / first[0]} is not there; paths are relative to --image_root "
        f"(default: the folder of the data)"
    )
