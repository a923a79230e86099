"""Build the bundled data set `icons`: icons from open icon sets, each with its name as a caption.

Every icon of the Iconify sets below is rendered to a 32x32 grey image, black on white, and captioned with its
name ("account-multiple-check-outline" becomes "account multiple check outline"). Icons are split by *concept*, the
words of the caption without those of style, in the order of a hash, so that no concept is in two splits and a rebuild
gives the same bytes; an icon that is nearly the same as one of validation or test is left out of what comes later.

Not needed to use the project. To rebuild, with `npm` on the path (it downloads the pinned sets, 10 MB):

    pip install -r requirements.txt resvg-py==0.5.0 pypng==0.20220715.0
    python -m tools.build_icons --output_dir data/icons
"""

import argparse
import hashlib
import io
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from common import script
from common.cli import Parser
from data import BUNDLED
from tools.icon_sets import ICON_SETS, SIZE_WORDS, collect, render

SPLIT_SIZES = {"validation": 2_000, "test": 2_000, "train": 56_000}  # in this order: held-out concepts are chosen first
STYLE_WORDS = frozenset(
    ("alt", "baseline", "bold", "duotone", "fill", "filled", "light", "line", "o", "outline", "outlined", "regular")
    + ("round", "rounded", "sharp", "simple", "solid", "thin", "twotone", "variant")
)
NEAR = 0.1  # root mean square difference, of 1, below which two icons are nearly the same

README = """---
pretty_name: Icons and their names
license: [mit, apache-2.0, isc]
language: en
task_categories: [image-to-text, zero-shot-image-classification]
size_categories: [10K<n<100K]
configs:
- config_name: default
  data_files:
  - {{split: train, path: train.parquet}}
  - {{split: validation, path: validation.parquet}}
  - {{split: test, path: test.parquet}}
---

# Icons and their names

{total:,} pairs of an icon (32x32, 16 greys, black on white) and its name as a caption, in the columns `image`,
`caption` and `icon_set`. A real retrieval task, find an icon by words, with compositional captions such as
"{example}".

| split | pairs | distinct captions |
|---|---|---|
{splits}

No *concept* is in two splits: captions with the same words apart from those of style ({styles}) are
all in one. No icon of one split is nearly the same as one of another: every two differ by at least {near} (root mean square,
pixels in 0..1). What is left: words are shared (a test icon "bell off" beside "bell" and "camera off" in train), and
families of icons look alike. Captions are unique within validation and within test; in train, icons of several sets can share
one. The order within a split is random.

## Sources

The npm packages `@iconify-json/<set>`, rendered and renamed, nothing else changed. Each set keeps its licence.

| set | name | author | licence | version | pairs used |
|---|---|---|---|---|---|
{sources}

## How it is made

`tools/build_icons.py` downloads the versions above, skips hidden icons, turns `-` into spaces, removes bare size numbers
({sizes}), drops repeats of a caption within a set, renders, and splits by the hash of the concept. With the versions of
`requirements.txt` a rebuild gives the same bytes:

    pip install -r requirements.txt resvg-py==0.5.0 pypng==0.20220715.0
    python -m tools.build_icons --output_dir data/icons
"""


def digest(*parts: str) -> str:
    """A fixed pseudo-random order for strings."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def concept(caption: str) -> str:
    """The words of a caption without those of style, in alphabetical order; all of them where nothing else is left."""
    return " ".join(sorted(set(caption.split()) - STYLE_WORDS)) or caption


def split(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows of each split: by concept, and without icons that are nearly the same as one of an earlier split.

    Rows of one concept go into one split. Validation and test have one row a caption.
    """
    rows = sorted(rows, key=lambda row: digest(row["icon_set"], row["caption"]))
    images = pictures([row["png"] for row in rows])
    of_concept: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        of_concept.setdefault(concept(row["caption"]), []).append(number)
    concepts = iter(sorted(of_concept, key=digest))
    splits, near = {}, np.zeros(len(rows), dtype=bool)
    for name, size in SPLIT_SIZES.items():
        part: dict[str | int, int] = {}  # one row a caption; in train any number
        while len(part) < size and (key := next(concepts, None)) is not None:
            for number in of_concept[key]:
                if not near[number]:
                    part.setdefault(number if name == "train" else rows[number]["caption"], number)
        numbers = sorted(list(part.values())[:size])
        splits[name] = [rows[number] for number in numbers]
        if name != "train":
            near |= near_any(images, images[numbers])
    return splits


def pictures(files: list[bytes]) -> np.ndarray:
    """(n, 1024) float32 in 0..1 of icons as PNGs."""
    return (
        np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("L"), dtype=np.float32).ravel() for file in files])
        / 255
    )


def near_any(some: np.ndarray, others: np.ndarray, chunk: int = 4096) -> np.ndarray:
    """(n,) booleans: which of `some` (n, 1024) are within `NEAR` of any of `others` (m, 1024), root mean square."""
    squares, limit = np.square(others).sum(1), NEAR**2 * some.shape[1]
    found = []
    for start in range(0, len(some), chunk):
        part = some[start : start + chunk]
        distances = np.square(part).sum(1)[:, None] + squares - 2 * part @ others.T  # (chunk, m), squared
        found.append((distances < limit).any(1))
    return np.concatenate(found)


def write_parquet(rows: list[dict], path: Path) -> None:
    """Write one split."""
    columns = {
        "image": [{"bytes": row["png"], "path": None} for row in rows],
        "caption": [row["caption"] for row in rows],
        "icon_set": [row["icon_set"] for row in rows],
    }
    features = datasets.Features(
        image=datasets.Image(), caption=datasets.Value("string"), icon_set=datasets.Value("string")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))


def license_link(license_info: dict) -> str:
    """The licence's identifier, linked where the set names a page."""
    return f"[{license_info['spdx']}]({license_info['url']})" if "url" in license_info else license_info["spdx"]


def describe(splits: dict[str, list[dict]], infos: dict[str, dict]) -> str:
    """The README beside the data."""
    names = ("train", "validation", "test")
    used = Counter(row["icon_set"] for rows in splits.values() for row in rows)
    sources = (
        f"| `{s}` | {i['name']} | [{i['author']['name']}]({i['author'].get('url', '')}) | "
        f"{license_link(i['license'])} | {ICON_SETS[s]} | {used[s]:,} |"
        for s, i in infos.items()
    )
    return README.format(
        total=sum(used.values()),
        example=max((row["caption"] for row in splits["validation"]), key=lambda caption: caption.count(" ")),
        splits="\n".join(f"| {n} | {len(splits[n]):,} | {len({r['caption'] for r in splits[n]}):,} |" for n in names),
        sources="\n".join(sources),
        sizes=", ".join(sorted(SIZE_WORDS)),
        styles=", ".join(sorted(STYLE_WORDS)),
        near=NEAR,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=BUNDLED["icons"], help="where to write")
    parser.add_argument(
        "--download_dir", type=Path, default=Path("build/icon_sets"), help="where the downloaded packages are kept"
    )
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    rows, infos = collect(args.download_dir)
    for row in tqdm(rows, desc="icons", disable=None):
        row["png"] = render(row["svg"])
    splits = split(rows)
    for name, split_rows in splits.items():
        write_parquet(split_rows, args.output_dir / f"{name}.parquet")
    (args.output_dir / "README.md").write_text(describe(splits, infos), encoding="utf-8")
    print(f"{len(rows):,} icons, {len({row['caption'] for row in rows}):,} distinct captions; wrote {args.output_dir}")


if __name__ == "__main__":
    main()
