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
import io
import json
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from data import BUNDLED

# Icon sets under MIT, Apache-2.0 or ISC: npm package @iconify-json/<set>, pinned.
ICON_SETS = {
    "bi": "1.2.7",
    "bx": "1.2.3",
    "carbon": "1.2.29",
    "fluent": "1.2.60",
    "heroicons": "1.2.3",
    "hugeicons": "1.2.35",
    "ic": "1.2.4",
    "iconoir": "1.2.11",
    "ion": "1.2.7",
    "lucide": "1.2.137",
    "material-symbols": "1.2.98",
    "mdi": "1.2.3",
    "mingcute": "1.2.8",
    "octicon": "1.2.36",
    "ph": "1.2.2",
    "tabler": "1.2.41",
    "uil": "1.2.3",
}
LICENSES = ("MIT", "Apache-2.0", "ISC")
SIZE_WORDS = {"10", "12", "16", "20", "24", "28", "32", "48"}  # "add-circle-24-filled": a size, not a meaning
IMAGE_SIZE = 32
GREY_BITS = 4
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


def read_icon_set(name: str, version: str, download_dir: Path) -> tuple[dict, dict]:
    """The icons (`icons.json`) and the description (`info.json`) of one pinned set, downloaded where missing."""
    archive = download_dir / f"iconify-json-{name}-{version}.tgz"
    if not archive.exists():
        download_dir.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"], cwd=download_dir, check=True)
    with tarfile.open(archive) as tar:
        icons, info = (json.load(tar.extractfile(f"package/{file}.json")) for file in ("icons", "info"))
    if info["license"]["spdx"] not in LICENSES:
        raise ValueError(f"{name} {version} is under {info['license']['spdx']}; expected one of {', '.join(LICENSES)}")
    return icons, info


def caption_of(icon_name: str) -> str:
    """The icon's name as words, without size numbers."""
    return " ".join(word for word in icon_name.split("-") if word not in SIZE_WORDS)


def svg_of(icon: dict, icons: dict) -> str:
    """A square SVG of one icon, black; a missing size falls back to the set's, then to Iconify's 16."""
    left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    body = icon["body"].replace("currentColor", "#000")
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{side}" height="{side}" viewBox="{box}">{body}</svg>'


def render(svg: str) -> bytes:
    """PNG bytes, `IMAGE_SIZE` squared, `GREY_BITS` bits of grey, black on white."""
    import png  # build tools, not in requirements.txt
    import resvg_py

    rendered = resvg_py.svg_to_bytes(svg_string=svg, width=IMAGE_SIZE, height=IMAGE_SIZE, background="white")
    grey = np.asarray(Image.open(io.BytesIO(bytes(rendered))).convert("L"))
    buffer = io.BytesIO()
    png.Writer(IMAGE_SIZE, IMAGE_SIZE, greyscale=True, bitdepth=GREY_BITS, compression=9).write(
        buffer, np.rint(grey / 255 * (2**GREY_BITS - 1)).astype(np.uint8)
    )
    return buffer.getvalue()


def digest(*parts: str) -> str:
    """A fixed pseudo-random order for strings."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def collect(download_dir: Path) -> tuple[list[dict], dict[str, dict]]:
    """Every usable icon as {caption, icon_set, svg}, and the description of each set."""
    rows, infos = [], {}
    for icon_set, version in ICON_SETS.items():
        icons, infos[icon_set] = read_icon_set(icon_set, version, download_dir)
        seen = set()
        for icon_name, icon in icons["icons"].items():
            caption = caption_of(icon_name)
            if icon.get("hidden") or not caption or caption in seen:
                continue
            seen.add(caption)
            rows.append({"caption": caption, "icon_set": icon_set, "svg": svg_of(icon, icons)})
    return rows, infos


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
