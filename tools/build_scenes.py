"""Build the bundled icon scenes: the sheet of concepts they are drawn from, and those of validation and test.

    pip install -r requirements.txt resvg-py==0.5.0 pypng==0.20220715.0
    python -m tools.build_scenes --output_dir data/scenes

Not needed to use the project. A concept is a common noun that at least two icon sets draw differently.
"""

import argparse
import io
import json
from itertools import count
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from common import script
from common.cli import Parser
from data import scenes
from tools.icon_sets import collect, render

NOUNS = """
    airplane anchor apple balloon bell bicycle book bus cake camera car chat cloud crown cube egg eye fish flag flower folder
    ghost gift globe hammer heart home hourglass key lamp leaf lock magnet moon mouse pencil phone puzzle robot rocket shield
    skull star sun tree truck umbrella wrench
"""
NUM_DESIGNS = 2
LEAST_DIFFERENCE = 0.08  # root mean square, of 1, between two designs of a concept
HELD_OUT_SIZE, HELD_OUT_GROUP_SIZE = 2_000, 20


def distinct_designs(pictures: list[np.ndarray]) -> list[np.ndarray]:
    """The first pictures (32, 32) uint8 of which no two are nearly the same."""
    kept: list[np.ndarray] = []
    for picture in pictures:
        differences = [np.sqrt(np.square(picture / 255.0 - other / 255.0).mean()) for other in kept]
        if all(difference > LEAST_DIFFERENCE for difference in differences):
            kept.append(picture)
    return kept[:NUM_DESIGNS]


def write_concepts(download_dir: Path, output_dir: Path) -> None:
    """The sheet of concepts, a row each, and their names."""
    rows, _ = collect(download_dir)
    pictures = {noun: [] for noun in NOUNS.split()}
    for row in rows:
        if row["caption"] in pictures:
            pictures[row["caption"]].append(np.asarray(Image.open(io.BytesIO(render(row["svg"]))).convert("L")))
    designs = {noun: distinct_designs(found) for noun, found in pictures.items()}
    sheet = np.concatenate([np.concatenate(found, axis=1) for found in designs.values()])
    Image.fromarray(sheet).save(output_dir / scenes.CONCEPTS.name, optimize=True)
    (output_dir / scenes.NAMES.name).write_text(json.dumps(list(designs)), encoding="utf-8")


def held_out_scenes(split: str, taken: set[str]) -> list[tuple[int, scenes.Scene, str]]:
    """`HELD_OUT_SIZE` scenes, each with the number of its group and its caption, which is added to `taken`.

    Whole groups, but for the last; without those of which a caption is taken already.
    """
    found = []
    for number in count():
        group = scenes.draw_group(split, number, HELD_OUT_GROUP_SIZE)
        captions = [scenes.captions(scene, 1)[0] for scene in group]
        if not taken.isdisjoint(captions):
            continue
        taken.update(captions)
        found += [(number, scene, caption) for scene, caption in zip(group, captions, strict=True)]
        if len(found) >= HELD_OUT_SIZE:
            return found[:HELD_OUT_SIZE]
    raise AssertionError("unreachable")


def png_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_split(held_out: list[tuple[int, scenes.Scene, str]], path: Path) -> None:
    groups, drawn, captions = zip(*held_out, strict=True)
    images = [{"bytes": png_bytes(scenes.render(scene)), "path": None} for scene in drawn]
    features = datasets.Features(
        image=datasets.Image(), caption=datasets.Value("string"), group=datasets.Value("int64")
    )
    columns = {"image": images, "caption": captions, "group": groups}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=scenes.CONCEPTS.parent, help="where to write")
    parser.add_argument(
        "--download_dir", type=Path, default=Path("build/icon_sets"), help="where the downloaded packages are kept"
    )
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_concepts(args.download_dir, args.output_dir)
    taken = {caption for _, scene in scenes.train_scenes() for caption in scenes.captions(scene)}
    for split in ("validation", "test"):
        write_split(held_out_scenes(split, taken), args.output_dir / f"{split}.parquet")
    print(f"{len(NOUNS.split())} concepts, {HELD_OUT_SIZE:,} scenes of validation and of test; wrote {args.output_dir}")


if __name__ == "__main__":
    main()
