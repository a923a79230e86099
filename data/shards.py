"""WebDataset shards (`.tar`), and the same samples as loose files: members of one name are one sample.

`datasets` has a reader too; it refuses shards that mix jpg and png or lack a member, and copies every image to its
cache. This one notes where the images are, and reads the small members alone.
"""

import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import datasets

from common.files import reading
from data.columns import captions_of

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
LABEL = re.compile(r"[0-9]{1,18}")
TEXT_ENDINGS = ("txt", "json", "cls")

_STRING, _INT = datasets.Value("string"), datasets.Value("int64")
FEATURES = datasets.Features(
    {
        "__key__": _STRING,
        "image": {"path": _STRING, "offset": _INT, "size": _INT},
        "txt": _STRING,  # the captions, a line each; where there is no txt, those of the json
        "json": _STRING,
        "cls": _INT,
    }
)


class Member(NamedTuple):
    """A file, or a part of a shard."""

    key: str
    ending: str
    stored: dict  # path, offset, size: as `ImageFiles` takes it
    content: bytes | None  # of a small member


def read_samples(files: list[str], stamps: list[str] | None = None) -> Iterator[dict]:
    """The samples of these shards, or of files below these folders. `stamps` is there for the cache of `datasets`."""
    for file in map(Path, files):
        members = _members_of_folder(file) if file.is_dir() else _members_of_shard(file)
        for key, of_key in itertools.groupby(members, key=lambda member: member.key):
            if sample := _sample(of_key):
                yield dict.fromkeys(FEATURES) | {"__key__": key} | sample


def _members_of_shard(file: Path) -> Iterator[Member]:
    # uncompressed alone: an offset into a compressed shard leads nowhere
    with reading(file, "cannot be read as a .tar"), tarfile.open(file, "r:") as shard:
        for info in shard:
            key, ending = _split_name(info.name)
            if not info.isfile() or ending not in (*IMAGE_ENDINGS, *TEXT_ENDINGS):
                continue
            content = shard.extractfile(info).read() if ending in TEXT_ENDINGS else None
            yield Member(key, ending, {"path": str(file), "offset": info.offset_data, "size": info.size}, content)


def _members_of_folder(folder: Path) -> Iterator[Member]:
    for file in sorted(path for path in folder.rglob("*.*") if path.is_file()):
        key, ending = _split_name(str(file.relative_to(folder)))
        if ending in (*IMAGE_ENDINGS, *TEXT_ENDINGS):
            content = file.read_bytes() if ending in TEXT_ENDINGS else None
            yield Member(key, ending, {"path": str(file), "offset": 0, "size": None}, content)


def _split_name(name: str) -> tuple[str, str]:
    """Folder and name up to the first dot, and what follows it."""
    folder, _, name = name.rpartition("/")
    key, _, ending = name.partition(".")
    return f"{folder}/{key}", ending.lower() if key else ""


def _sample(members: Iterable[Member]) -> dict:
    """The columns of one sample; empty where it has neither an image nor captions."""
    sample = {}
    for member in members:
        if member.ending in IMAGE_ENDINGS:
            sample["image"] = member.stored
            continue
        text = member.content.decode("utf-8", errors="replace").strip()
        sample[member.ending] = (int(text) if LABEL.fullmatch(text) else None) if member.ending == "cls" else text
    if "txt" not in sample and "json" in sample:
        sample["txt"] = _captions_in(sample["json"])
    return sample if {"image", "txt"} & set(sample) else {}


def _captions_in(text: str) -> str | None:
    """The captions of a json member, a line each; None where it has none."""
    try:
        captions = captions_of(json.loads(text))
    except (ValueError, RecursionError):
        return None
    return "\n".join(" ".join(caption.split()) for caption in captions)
