"""Images as their files hold them: told apart by their bytes, decoded when asked for."""

import hashlib
import io
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

# long side to short side: beyond it an image is broken, since scaling it to a square model takes gigabytes
MAX_ASPECT = 100
HEAD_BYTES = 4096  # of two files of one size, what is compared before all of them is read


class ImageFiles(Sequence):
    """Encoded images, decoded when asked for.

    `rows[column]` tells where each image is: `bytes`, or `path` with, for a file inside a shard, `offset` and `size`.
    """

    def __init__(self, rows: datasets.Dataset, column: str, indices: np.ndarray):
        self._rows, self._column, self._indices = rows, column, indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def row_numbers(self) -> np.ndarray:
        """(m,) the first row of each image."""
        return self._indices

    def encoded(self, index: int) -> bytes:
        """The bytes of the image file; empty where there are none."""
        return read_bytes(self._rows[int(self._indices[index])][self._column])

    def name(self, index: int) -> str:
        """Where the image is, for messages."""
        row = int(self._indices[index])
        stored = self._rows[row][self._column] or {}
        path = stored.get("path")
        if not path or stored.get("bytes") or stored.get("offset"):  # its path alone does not lead to it
            return f"that of row {row + 1}"
        return path if Path(path).exists() else f"{path}, which is not there"

    def __getitem__(self, index: int) -> Image.Image | None:
        """The image in RGB, or None where it cannot be decoded."""
        return decode(self.encoded(index))

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


def read_bytes(stored: dict | None, limit: int | None = None) -> bytes:
    """The bytes of an image as a row tells where it is, or the first `limit` of them; empty where there are none."""
    stored = stored or {}
    if stored.get("bytes"):
        return stored["bytes"][:limit]
    path = stored.get("path")
    if not path or not Path(path).is_file():
        return b""
    sizes = [size for size in (stored.get("size"), limit) if size is not None]
    with open(path, "rb") as file:
        file.seek(stored.get("offset") or 0)
        return file.read(min(sizes, default=-1))


def decode(content: bytes) -> Image.Image | None:
    """An image file in RGB, or None where it is broken."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if max(image.size) > MAX_ASPECT * min(image.size) or width * height > Image.MAX_IMAGE_PIXELS:
                return None
            return _in_eight_bits(image).convert("RGB")
    except Exception:  # codecs raise what they like: OSError, SyntaxError, RuntimeError, struct.error, ...
        return None


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8, which Pillow would clip at 255; white is 65535 = 255 * 257."""
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip((grey + 128) // 257, 0, 255).astype(np.uint8))


def distinct_images(rows: datasets.Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each image, and the image of each row: rows with the same bytes share one, under whatever name.

    A row without an image, or whose file is not there, shares it with those that give the same path alone.
    """
    keys: list[Hashable] = []  # of each row; equal where the image is
    files: dict[tuple, dict] = {}  # those on disk, by path and offset
    for row, stored in enumerate(_read_stored(rows, column)):
        if stored.get("bytes"):
            keys.append(hashlib.sha256(stored["bytes"]).digest())
        elif stored.get("path"):
            keys.append((stored["path"], stored.get("offset")))
            files[keys[-1]] = stored
        else:
            keys.append(row)
    content_keys = dict(zip(files, _tell_files_apart(list(files.values())), strict=True))
    numbers: dict[Hashable, int] = {}
    first_row, image_of_row = [], np.empty(len(keys), dtype=np.int64)
    for row, key in enumerate(keys):
        image = numbers.setdefault(content_keys.get(key, key), len(numbers))
        if image == len(first_row):
            first_row.append(row)
        image_of_row[row] = image
    return np.asarray(first_row, dtype=np.int64), image_of_row


def _read_stored(rows: datasets.Dataset, column: str) -> Iterator[dict]:
    """Where the image of each row is, a bounded number of rows at a time."""
    for batch in rows.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        yield from (stored or {} for stored in batch.column(column).to_pylist())


def _tell_files_apart(files: list[dict]) -> list[Hashable]:
    """A key for each file, equal where the bytes are. Files are read as far as it takes: size, beginning, all."""
    keys: list[Hashable] = [_size(file) for file in files]
    for limit in (HEAD_BYTES, None):
        count = Counter(keys)
        keys = [
            key if count[key] == 1 else (key, hashlib.sha256(read_bytes(file, limit)).digest())
            for key, file in zip(keys, files, strict=True)
        ]
    return keys


def _size(file: dict) -> Hashable:
    """In bytes; the file's path and offset where there is nothing to compare."""
    path, size = Path(file["path"]), file.get("size")
    if size is None and path.is_file():
        size = path.stat().st_size
    return size or (file["path"], file.get("offset"))
