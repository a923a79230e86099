"""Build the bundled data set: icons from open icon sets, each with its name as a caption.

Every icon of the Iconify sets below is rendered to a 32x32 grey image, black on white, and captioned with its
name ("account-multiple-check-outline" becomes "account multiple check outline"). Validation and test captions are
chosen by the hash of the caption, so that no caption is in two splits and a rebuild gives the same bytes.

Not needed to use the project. To rebuild, with `npm` on the path (it downloads the pinned sets, 10 MB):

    pip install -r requirements.txt resvg-py==0.5.0 pypng==0.20220715.0
    python -m tools.build_icons --output_dir data/icons
"""

import argparse
import hashlib
from collections import Counter
from pathlib import Path

import datasets
from tqdm import tqdm

from data import BUNDLED
from tools.icon_sets import ICON_SETS, SIZE_WORDS, collect, render

SPLIT_SIZES = {"validation": 2_000, "test": 2_000, "train": 56_000}  # in this order: held-out captions are chosen first

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

No caption is in two splits. Captions are unique within validation and within test; in train, icons of several sets can
share one. The order within a split is random.

## Sources

The npm packages `@iconify-json/<set>`, rendered and renamed, nothing else changed. Each set keeps its licence.

| set | name | author | licence | version | pairs used |
|---|---|---|---|---|---|
{sources}

## How it is made

`tools/build_icons.py` downloads the versions above, skips hidden icons, turns `-` into spaces, removes bare size numbers
({sizes}), drops repeats of a caption within a set, renders, and splits by the hash of the caption. With the versions of
`requirements.txt` a rebuild gives the same bytes:

    pip install -r requirements.txt resvg-py==0.5.0 pypng==0.20220715.0
    python -m tools.build_icons --output_dir data/icons
"""


def digest(*parts: str) -> str:
    """A fixed pseudo-random order for strings."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def split(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows of each split: disjoint by caption; one row a caption in validation and test."""
    captions = sorted({row["caption"] for row in rows}, key=digest)
    num_validation, num_test = SPLIT_SIZES["validation"], SPLIT_SIZES["test"]
    of_caption = dict.fromkeys(captions[:num_validation], "validation")
    of_caption |= dict.fromkeys(captions[num_validation : num_validation + num_test], "test")
    splits, seen = {name: [] for name in SPLIT_SIZES}, set()
    for row in sorted(rows, key=lambda row: digest(row["icon_set"], row["caption"])):
        name = of_caption.get(row["caption"], "train")
        if name == "train" or row["caption"] not in seen:
            seen.add(row["caption"])
            splits[name].append(row)
    return {name: splits[name][:size] for name, size in SPLIT_SIZES.items()}


def write_parquet(rows: list[dict], path: Path) -> None:
    """Render the rows and write one split."""
    columns = {
        "image": [{"bytes": render(row["svg"]), "path": None} for row in tqdm(rows, desc=path.name, disable=None)],
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
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Build the bundled icon-caption pairs from pinned npm packages.")
    parser.add_argument("--output_dir", type=Path, default=BUNDLED["icons"], help="where to write")
    parser.add_argument(
        "--download_dir", type=Path, default=Path("build/icon_sets"), help="where the downloaded packages are kept"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    rows, infos = collect(args.download_dir)
    splits = split(rows)
    for name, split_rows in splits.items():
        write_parquet(split_rows, args.output_dir / f"{name}.parquet")
    (args.output_dir / "README.md").write_text(describe(splits, infos), encoding="utf-8")
    print(f"{len(rows):,} icons, {len({row['caption'] for row in rows}):,} distinct captions; wrote {args.output_dir}")


if __name__ == "__main__":
    main()
