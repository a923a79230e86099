"""Image-caption pairs through `datasets`: a bundled name, a local file or folder, or a hub name.

Splits that a source has are taken as they are. Where it has no validation or test split, that is cut from train, or from
the only split there is, by the hash of the caption: disjoint by caption, and the same on every machine.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from pyarrow import ArrowException

BUNDLED = {"icons": Path(__file__).resolve().parent / "icons"}
IMAGE_COLUMNS = ("image", "images", "img", "jpg", "png", "image_path", "file_name", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "sentences", "sentences_raw", "raw", "alt_text", "title")
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
FILE_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json"}
MAX_SKIPPED = 0.01  # share of broken images or empty captions that is still only a warning
HELD_OUT_PERCENT = 10  # of the captions, for each split that is cut from train


class ImageFiles(Sequence):
    """Encoded images, decoded when asked for."""

    def __init__(self, rows: datasets.Dataset, column: str, indices: np.ndarray):
        self._rows, self._column, self._indices = rows, column, indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def row_numbers(self) -> np.ndarray:
        """(m,) the first row of each image in its split."""
        return self._indices

    def encoded(self, index: int) -> bytes:
        """The bytes of the image file; empty where there are none."""
        value = self._rows[int(self._indices[index])][self._column] or {}
        if value.get("bytes"):
            return value["bytes"]
        path = value.get("path")
        return Path(path).read_bytes() if path and Path(path).is_file() else b""

    def __getitem__(self, index: int) -> Image.Image | None:
        """The image in RGB, or None where it cannot be decoded."""
        try:
            with Image.open(io.BytesIO(self.encoded(index))) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None

    def select(self, kept: np.ndarray) -> "ImageFiles":
        return ImageFiles(self._rows, self._column, self._indices[kept])

    def content_hash(self) -> str:
        """sha256 of all encoded images in order, with their sizes."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            content = self.encoded(index)
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageCaptionPairs:
    """Captions and, for each, the number of its image; `images` is None where only captions were asked for."""

    captions: list[str]
    image_index: np.ndarray  # (n,) int64: caption i belongs to images[image_index[i]]
    images: ImageFiles | None
    source: str
    split: str
    notes: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.captions)

    def identity(self) -> dict:
        """What a run record says about the data."""
        digest = hashlib.sha256("\0".join(self.captions).encode()).hexdigest()
        return {
            "source": self.source,
            "split": self.split,
            "captions": len(self),
            "captions_sha256": digest,
            **self.notes,
        }

    def without_images(self, broken: np.ndarray) -> "ImageCaptionPairs":
        """The pairs whose image is not in `broken` (a boolean mask over the images)."""
        if not broken.any():
            return self
        _check_skipped(int(broken.sum()), len(broken), "image", "cannot be decoded", self.source)
        kept_captions = np.flatnonzero(~broken[self.image_index])
        renumbered = np.cumsum(~broken) - 1
        return ImageCaptionPairs(
            [self.captions[i] for i in kept_captions],
            renumbered[self.image_index[kept_captions]],
            self.images.select(np.flatnonzero(~broken)),
            self.source,
            self.split,
            self.notes | {"broken_images": int(broken.sum())},
        )


def load_pairs(
    dataset: str,
    split: str,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    images: bool = True,
) -> ImageCaptionPairs:
    """The pairs of one split (`train`, `validation` or `test`).

    A row holds one image and one caption or a list of captions; rows that name the same image file share it. Empty
    captions are skipped with one warning, and images that have no other; more than 1 % of them is an error. With
    `images=False` no image is read. Raises FileNotFoundError where there is no such source and ValueError where it has no
    such column or split.
    """
    rows = _read_split(dataset, split, caption_column)
    caption_column = _find_column(rows, caption_column, CAPTION_COLUMNS, "caption", dataset)
    captions, row_of_caption = _flatten_captions(rows[caption_column], dataset)
    if not images:
        return ImageCaptionPairs(captions, row_of_caption, None, dataset, split)
    image_column = _find_column(rows, image_column, IMAGE_COLUMNS, "image", dataset)
    rows = _as_image_files(rows.select_columns([image_column]), image_column, dataset)
    first_row, image_of_row = _distinct_images(rows, image_column)
    used, image_index = np.unique(image_of_row[row_of_caption], return_inverse=True)
    return ImageCaptionPairs(captions, image_index, ImageFiles(rows, image_column, first_row[used]), dataset, split)


def load_labels(
    pairs: ImageCaptionPairs, label_column: str, caption_column: str | None = None
) -> list[str] | list[int]:
    """The label of each image of `pairs`, from another column of its rows: text, or the numbers of classes without names.

    Raises ValueError where there is no such column, or where it holds neither text nor whole numbers.
    """
    rows = _read_split(pairs.source, pairs.split, caption_column)
    column = _find_column(rows, label_column, (), "label", pairs.source)
    values = list(rows[column])
    labels = [values[row] for row in pairs.images.row_numbers]
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return [feature.int2str(label) for label in labels]
    if not (all(isinstance(label, str) for label in labels) or all(isinstance(label, int) for label in labels)):
        raise ValueError(f"{pairs.source}: the column {column} is {feature}; expected text or numbers of classes")
    return labels


def _read_split(dataset: str, split: str, caption_column: str | None) -> datasets.Dataset:
    """The rows of a split; cut from train, or from the only split, where the source has no such split."""
    source = _read_source(dataset)
    named = {name: rows for name, aliases in SPLIT_NAMES.items() for alias in aliases if (rows := source.get(alias))}
    if "train" not in named and len(source) == 1:
        named = {"train": next(iter(source.values()))}
    missing = [name for name in ("validation", "test") if name not in named]
    if split in named and (split != "train" or not missing):
        return named[split]
    if "train" not in named:
        raise ValueError(f"{dataset}: no split train to take {split} from; it has the splits {', '.join(source)}")
    rows = named["train"]
    column = _find_column(rows, caption_column, CAPTION_COLUMNS, "caption", dataset)
    kept = [i for i, value in enumerate(rows[column]) if _assigned_split(value, missing) == split]
    if not kept:
        raise ValueError(f"{dataset}: no rows for the split {split}; it has the splits {', '.join(source)}")
    return rows.select(kept)


def _read_source(dataset: str) -> datasets.DatasetDict:
    """All splits of a source, as `datasets` reads them."""
    path = BUNDLED.get(dataset, Path(dataset))
    if path.suffix in FILE_FORMATS and not path.is_file():
        raise FileNotFoundError(f"data set not found: looked for the file {path}")
    if path.is_file():
        if path.suffix not in FILE_FORMATS:
            raise ValueError(f"{path}: expected a folder or a file of the kind {', '.join(FILE_FORMATS)}")
        return _load(str(path), FILE_FORMATS[path.suffix], data_files={"train": str(path)})
    if path.is_dir():
        return _read_folder(path)
    return _read_hub(dataset)


class UnreadableError(ValueError):
    """A file that the reader of its format gives up on."""


def _load(dataset: str, *args: str, **options: object) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(*args, **options)
    except (datasets.exceptions.DatasetGenerationError, ArrowException) as error:
        cause = error.__cause__ or error
        raise UnreadableError(f"{dataset}: cannot be read ({type(cause).__name__}: {str(cause)[:200]})") from error


def _read_folder(path: Path) -> datasets.DatasetDict:
    if (path / "dataset_dict.json").exists():
        return datasets.load_from_disk(str(path))
    if (path / "dataset_info.json").exists():
        return datasets.DatasetDict(train=datasets.load_from_disk(str(path)))
    try:
        return _load(str(path), str(path))
    except UnreadableError:
        raise
    except (FileNotFoundError, datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{path}: expected parquet, arrow, csv or images with metadata.csv or metadata.jsonl; found {found}"
        ) from error


def _read_hub(dataset: str) -> datasets.DatasetDict:
    try:
        return _load(dataset, dataset)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"data set not found: {dataset!r} is not a bundled name ({', '.join(BUNDLED)}), not a local file or "
            f"folder, and the hub did not give it ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _find_column(rows: datasets.Dataset, asked: str | None, usual: tuple[str, ...], what: str, dataset: str) -> str:
    """The column asked for, or the first of the usual names that is there."""
    candidates = (asked,) if asked else usual
    for name in candidates:
        if name in rows.column_names:
            return name
    raise ValueError(
        f"{dataset}: no {what} column; looked for {', '.join(candidates)}; the columns are "
        f"{', '.join(rows.column_names)}; name it with --{what}_column"
    )


def _captions_of(value: str | list[str] | None) -> list[str]:
    """The captions of a row, stripped. Raises ValueError where they are not text."""
    captions = [caption or "" for caption in (value if isinstance(value, (list, tuple)) else [value])]
    other = next((caption for caption in captions if not isinstance(caption, str)), None)
    if other is not None:
        raise ValueError(
            f"expected captions to be text or lists of text; found {other!r}: name another --caption_column"
        )
    return [caption.strip() for caption in captions]


def _assigned_split(value: str | list[str] | None, missing: list[str]) -> str:
    """The split of a row by the hash of its first caption."""
    bucket = int(hashlib.sha256(_captions_of(value)[0].encode()).hexdigest(), 16) % 100 // HELD_OUT_PERCENT
    return missing[bucket] if bucket < len(missing) else "train"


def _flatten_captions(column: Sequence, dataset: str) -> tuple[list[str], np.ndarray]:
    """All captions and the row of each; empty ones left out."""
    pairs = [(caption, row) for row, value in enumerate(column) for caption in _captions_of(value)]
    kept = [(caption, row) for caption, row in pairs if caption]
    if len(kept) < len(pairs):
        _check_skipped(len(pairs) - len(kept), len(pairs), "caption", "are empty", dataset)
    captions, rows = zip(*kept, strict=True) if kept else ((), ())
    return list(captions), np.asarray(rows, dtype=np.int64)


def _check_skipped(skipped: int, total: int, what: str, why: str, dataset: str) -> None:
    if skipped > MAX_SKIPPED * total:
        raise ValueError(f"{dataset}: {skipped} of {total} {what}s {why}; at most {MAX_SKIPPED:.0%} may be skipped")
    warnings.warn(f"{dataset}: skipped {skipped} of {total} {what}s ({why})", stacklevel=2)


def _as_image_files(rows: datasets.Dataset, column: str, dataset: str) -> datasets.Dataset:
    """The column as encoded images; paths in a local table are relative to its folder."""
    feature = rows.features[column]
    if isinstance(feature, datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise ValueError(f"{dataset}: the column {column} is {feature}; expected images or paths of images")
    folder = Path(dataset).parent if Path(dataset).is_file() else Path(dataset)
    files = [{"path": str(folder / path) if path else None, "bytes": None} for path in rows[column]]
    return datasets.Dataset.from_dict(
        {column: files}, features=datasets.Features({column: datasets.Image(decode=False)})
    )


def _distinct_images(rows: datasets.Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each image, and the image of each row: rows with the same path, and the same bytes, share one."""
    numbers, first_row, image_of_row = {}, [], np.empty(len(rows), dtype=np.int64)
    for row, (path, content) in enumerate(_files(rows, column)):
        key = (path, content and hashlib.sha256(content).digest()) if path else row
        if key not in numbers:
            numbers[key] = len(first_row)
            first_row.append(row)
        image_of_row[row] = numbers[key]
    return np.asarray(first_row, dtype=np.int64), image_of_row


def _files(rows: datasets.Dataset, column: str) -> Iterator[tuple[str | None, bytes | None]]:
    """Path and bytes of every row, as they are stored; bytes only where there is a path too."""
    for chunk in rows.with_format("arrow")[:].column(column).chunks:
        for path, content in zip(chunk.field("path"), chunk.field("bytes"), strict=True):
            yield path.as_py(), content.as_py() if path.is_valid else None
