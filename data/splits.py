"""Which rows are a split: those that the source or its column `split` names so, or a part cut from train."""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import datasets
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from common import SPLITS
from common.files import reading
from data.columns import captions_of, field_of, split_field
from data.sources import Rows, Splits

ALIASES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
HELD_OUT_PERCENT = 10  # of the captions, for each split that is cut from train
ROWS_TO_TELL = 1000  # of a stream, whether its column `split` has the names of splits


class ChosenRows(NamedTuple):
    """Rows that are a split, or that it is to be cut from."""

    rows: Rows
    how: str  # for the log
    cut: Sequence[str] = ()  # the splits to be cut from the rows; none where they are the split


# --- named splits


def choose_rows(splits: Splits, split: str, dataset: str, or_validation: bool = False) -> ChosenRows:
    """The rows for `train`, `validation` or `test`, or `all` rows there are.

    - Usual names are understood: `val`, `valid` and `dev` are validation, `restval` joins train.
    - A column `split` in the only split there is counts, not that split's own name.
    - A validation or test that is missing is cut from train, or from the only split, whatever its name.
    - Without train there is nothing to cut from; with `or_validation`, validation is read for train, with a warning.
    """
    if split == "all":
        return ChosenRows(_join(splits, list(splits)), f"read, all of {', '.join(splits)}")
    origin, read = "train", "read"
    if len(splits) == 1:
        (origin,) = splits
        rows = _join(splits, [origin])
        column = next((name for name in column_names(rows) if name.lower() == "split"), None)
        if by_column := column and _split_by_column(rows, column):
            splits, origin, read = by_column, "train", f"read by the column {column}"
        else:
            splits = {"train": rows}
    named = defaultdict(list)
    for name in splits:
        named[ALIASES.get(name.lower(), name)].append(name)
    missing = [name for name in ("validation", "test") if name not in named]
    if split in named and (split != "train" or not missing):
        rows = _join(splits, named[split])
        _refuse_empty(rows, split, dataset)
        return ChosenRows(rows, read if named[split] == [split] else f"{read}, {' and '.join(named[split])}")
    if "train" in named:
        rows = _join(splits, named["train"])
        _refuse_empty(rows, "train", dataset)
        return ChosenRows(rows, f"cut from {origin}", missing)
    if split == "train" and or_validation and "validation" in named:
        warnings.warn(f"{dataset}: there is no split train; validation is read in its place", stacklevel=2)
        return ChosenRows(_join(splits, named["validation"]), "validation, in the place of train")
    raise ValueError(f"{dataset}: no split train to take {split} from; it has the splits {', '.join(splits)}")


def _refuse_empty(rows: Rows, split: str, dataset: str) -> None:
    if isinstance(rows, datasets.Dataset) and not len(rows):
        raise ValueError(f"{dataset}: the split {split} has no rows")


def _join(splits: Splits, names: Sequence[str]) -> Rows:
    parts = [splits[name] for name in names]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def column_names(rows: Rows) -> list[str]:
    return rows.column_names or list(next(iter(rows), {}))


def _split_by_column(rows: Rows, column: str) -> Mapping[str, Rows]:
    """The rows of each value of a column, where these are names of splits; nothing for other values."""
    if isinstance(rows, datasets.IterableDataset):
        values = [str(row[column]).lower() for row in rows.take(ROWS_TO_TELL)]
        seen = {ALIASES[value] for value in values if value in ALIASES}
        # of a longer stream the others may yet come
        names = [name for name in SPLITS if seen and (name in seen or len(values) == ROWS_TO_TELL)]
        return {name: rows.filter(_is_in(column, name)) for name in names}
    indices = defaultdict(list)
    for row, value in enumerate(rows[column]):
        indices[str(value)].append(row)
    if not any(value.lower() in ALIASES for value in indices):
        return {}
    return {value: rows.select(of_value) for value, of_value in indices.items()}


def _is_in(column: str, split: str) -> Callable[[dict], bool]:
    return lambda row: ALIASES.get(str(row[column]).lower()) == split


# --- cut splits


def number_texts(texts: Sequence[str]) -> np.ndarray:
    """(n,) int64: equal texts have equal numbers, counted from 0 in the order of their first places."""
    numbers: dict[str, int] = {}
    return np.asarray([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)


def assign_splits(captions: Sequence[str], image_index: np.ndarray, missing: Sequence[str]) -> np.ndarray:
    """(n,) the split of each pair: one of `missing`, or train.

    Pairs that share an image or a caption, directly or through others, form a group and stay together. Its split is
    chosen by the hash of its first caption in the alphabet: the same on every machine and in any order. A group of more
    than a held-out split's share goes to train.
    """
    group = connect(number_texts(captions), image_index)
    first_caption: dict[int, str] = {}
    for number, caption in zip(group.tolist(), captions, strict=True):
        first_caption[number] = min(caption, first_caption.get(number, caption))
    large = np.bincount(group) * 100 > HELD_OUT_PERCENT * len(captions)
    split_of = ["train" if large[n] else hashed_split(first_caption[n], missing) for n in range(len(large))]
    return np.asarray(split_of)[group]


def connect(caption_index: np.ndarray, image_index: np.ndarray) -> np.ndarray:
    """(n,) the group of each pair: the connected component of its caption in the graph of captions and images."""
    num_captions, num_images = caption_index.max(initial=-1) + 1, image_index.max(initial=-1) + 1
    nodes = num_captions + num_images
    edges = np.ones(len(caption_index), dtype=bool), (caption_index, num_captions + image_index)
    _, component = connected_components(coo_matrix(edges, shape=(nodes, nodes)), directed=False)
    return component[caption_index]


def hashed_split(caption: str, missing: Sequence[str]) -> str:
    """One of `missing` for a tenth of all captions each, else train."""
    bucket = int(hashlib.sha256(caption.encode()).hexdigest(), 16) % 100 // HELD_OUT_PERCENT
    return missing[bucket] if bucket < len(missing) else "train"


# --- streaming


def take_from_stream(
    chosen: ChosenRows, split: str, columns: Sequence[str], others: Sequence[str], max_pairs: int, dataset: str
) -> datasets.Dataset:
    """The first rows of a stream that hold `max_pairs` captions: the columns of these, and the `others`.

    A stream cannot be grouped, since what comes later is not known. Of rows to cut it takes those whose captions all
    hash to the split: rows with a caption in common stay together, those that share an image alone may not.
    """
    taken, found = [], 0
    read = [split_field(column, column_names(chosen.rows)) for column in columns]
    for row in chosen.rows.select_columns(list(dict.fromkeys((*(name for name, _ in read), *others)))):
        with reading(dataset, "its captions cannot be read"):
            captions = [caption for name, field in read for caption in captions_of(field_of(row[name], field))]
        if chosen.cut and {hashed_split(caption, chosen.cut) for caption in captions} != {split}:
            continue
        taken.append(row)
        found += len(captions)
        if found >= max_pairs:
            break
    if not taken:
        raise ValueError(f"{dataset}: no rows for the split {split}")
    return datasets.Dataset.from_list(taken)
