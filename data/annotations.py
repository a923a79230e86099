"""Caption files that are no plain tables: COCO's and Karpathy's json, open_clip's csv, Flickr's text files."""

import csv
import json
import re
from collections import defaultdict
from pathlib import Path

from common.files import reading
from data.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, URL_COLUMNS

HEAD_CHARACTERS = 65_536  # of a json file, where its form shows
IMAGE_NAME = re.compile(r"\S.*\.(jpe?g|png|webp|gif|bmp)(#\d+)?", re.IGNORECASE)


# --- json


def read_annotations(path: Path) -> dict[str, list[dict]] | None:
    """The rows of each split of a COCO captions file or of Karpathy's; None for any other json.

    A row is an image (`image`, its path) with all its `captions`. A COCO file is one split, named by the file.
    """
    with reading(path), path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.read(HEAD_CHARACTERS)
        if not head.lstrip().startswith("{") or not ('"images"' in head or '"annotations"' in head):
            return None
        try:
            content = json.loads(head + file.read())
        except ValueError:  # lines of json, or broken: `datasets` says which
            return None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return None
    with reading(path, "not the json of COCO's captions, nor Karpathy's"):
        if "annotations" in content:
            return {split_in(path.stem) or "train": _coco_rows(content)}
        return _karpathy_splits(content)


def _coco_rows(content: dict) -> list[dict]:
    captions = defaultdict(list)
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    return [
        {"image": image["file_name"], "captions": captions[image["id"]]}
        for image in content["images"]
        if image["id"] in captions
    ]


def _karpathy_splits(content: dict) -> dict[str, list[dict]]:
    splits = defaultdict(list)
    for image in content["images"]:
        path = "/".join(filter(None, (image.get("filepath"), image["filename"])))
        captions = [sentence["raw"] for sentence in image["sentences"]]
        splits[image["split"]].append({"image": path, "captions": captions})
    return dict(splits)


def split_in(name: str) -> str | None:
    """The split that a path or file name tells: `captions_val2017`, `data/train-00000`."""
    found = re.search(r"(?:^|[^a-z])(train|training|validation|valid|val|dev|test)(?![a-z])", name.lower())
    return found and found[1]


# --- tables in text


def table_options(path: Path, asked: str | None = None) -> dict | None:
    """How the csv reader of `datasets` has to read a text file; None where it is captions alone, a line each.

    The separator is the one that splits the first line into names of columns, one of them (or `asked`) a caption;
    without such names the one that splits it into an image's name or address, and a caption.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline().rstrip("\r\n")
    tables = {separator: _fields(first, separator) for separator in "\t|,;"}
    for separator, fields in tables.items():
        if _is_header(fields, asked, image_too=path.suffix == ".txt"):
            # Flickr30k's `a| b| c` quotes nothing
            return {"sep": separator} | (
                {"skipinitialspace": True, "quoting": csv.QUOTE_NONE} if separator == "|" else {}
            )
    for separator, fields in tables.items():
        if len(fields) == 2 and len(names := [_kind(field) for field in fields]) == len(set(names)):
            return {"sep": separator, "header": None, "names": names, "quoting": csv.QUOTE_NONE}
    return None if path.suffix == ".txt" else {"sep": "\t" if path.suffix == ".tsv" else ","}


def _fields(line: str, separator: str) -> list[str]:
    return [field.strip().strip('"') for field in line.split(separator)]


def _is_header(fields: list[str], asked: str | None, image_too: bool) -> bool:
    """Whether these are names of several columns; a file of captions may have a comma before `text`."""
    names = {field.lower() for field in fields}
    captions = names & {*CAPTION_COLUMNS, *filter(None, (asked or "").lower().split(","))}
    return len(fields) > 1 and bool(captions) and (not image_too or bool(names & {*IMAGE_COLUMNS, *URL_COLUMNS}))


def _kind(field: str) -> str:
    """The name of a column without one, by what is in its first row."""
    if re.match(r"https?://", field):
        return "url"
    return "image" if IMAGE_NAME.fullmatch(field) else "caption"
