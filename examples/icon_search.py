"""Find pictures by words, with the full and the pruned text encoder side by side.

    python -m examples.icon_search "a blue cake under a large orange heart"
    python -m examples.icon_search "a purple apple above a green cake" "a purple cake above a green apple" --top 4

Only the text encoder was pruned, so both search the same image embeddings. The pruned model is `--pruned`, else
exp/clip12to6_exp1 where it is there; else the full model without the layers of `--clip_layers`, or without those that
the search dropped. The picture shows the images from the most similar on, their own captions below, and the
milliseconds from the query's text to its embedding (the fastest of 30 runs).
"""

import argparse
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from common import add_common_flags, data_flags, files, format_table, plots, script, set_up, whole_number
from common.cli import Parser, plain_text
from data import ImageCaptionPairs, load_pairs
from models import Clip, load_clip
from search_strategy.proposals import parse_clip_layers, segments
from search_strategy.results import Asked
from training.stages import choose_layers

PRUNED = files.EXP_DIR / "clip12to6_exp1"
COLUMNS = 4  # icons in a row of one model
CELL, PAD, CAPTION, HEADING, MARGIN = 1.15, 0.12, 0.2, 0.9, 0.4  # inches
RUNS = 30  # of a query, for its milliseconds


@dataclass(frozen=True)
class Found:
    """What one model found for one query: rows of the image embeddings, best first."""

    images: list[int]
    milliseconds: float


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("query", type=plain_text, nargs="+", help="what to look for; each argument is a query")
    parser.add_argument("--pruned", help="the pruned model (default: exp/clip12to6_exp1, if it is there)")
    parser.add_argument("--clip_layers", help="prune the full model instead: layers to drop, such as 2-3,5,7")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    parser.add_argument("--top", **whole_number(8, "icons for a query and model"))
    parser.add_argument("--output", type=Path, help="picture to write (default: icon_search.png in the model's folder)")
    add_common_flags(parser)
    return parser


def load_pruned(args: argparse.Namespace, full: Clip, device: str) -> tuple[Clip, str]:
    """The pruned model and what it is."""
    if args.pruned and args.clip_layers:
        raise ValueError("--pruned and --clip_layers exclude each other; pass one of them")
    is_bundled = files.real_path(full.name) == files.DEFAULT_MODEL
    path = args.pruned or (str(PRUNED) if is_bundled and PRUNED.is_dir() and not args.clip_layers else None)
    if path:
        return load_clip(path, device), Path(path).name
    folder = files.model_dir(args.exp_dir, full.name)
    number = len(parse_clip_layers(args.clip_layers)) if args.clip_layers else full.num_layers // 2
    asked = Asked(full.name, full.num_layers, number, args.dataset)
    choice = choose_layers(args.clip_layers, None, folder, asked)
    ranges = (f"{first}-{last}" if first < last else f"{first}" for first, last in segments(choice.dropped_layers))
    return full.drop(choice.dropped_layers), f"without layers {', '.join(ranges)}, not fine-tuned"


def search(clip: Clip, query: str, images: Tensor, top: int) -> Found:
    """The images most similar to a query. `images`: (m, d), L2-normalised."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        text = clip.embeddings([query])[0].cpu()
        seconds.append(time.perf_counter() - start)
    similarity = images.cpu() @ text
    best = similarity.topk(min(top, len(similarity))).indices
    return Found(best.tolist(), 1000 * min(seconds))


def draw(
    found: dict[str, list[Found]], models: Sequence[tuple[str, str]], pairs: ImageCaptionPairs, path: Path
) -> None:
    """For each query, downwards, one block of icons a model, side by side. All measures are inches from the top left.

    `found`: by query, in the order of `models`, each a name and a note.
    """
    captions = caption_of_image(pairs)
    num_icons = len(next(iter(found.values()))[0].images)
    block_width = COLUMNS * CELL
    block_height = -(-num_icons // COLUMNS) * (CELL + CAPTION) + HEADING + MARGIN / 2
    width, height = MARGIN + len(models) * (block_width + MARGIN), len(found) * block_height + MARGIN / 2
    figure = Figure(figsize=(width, height), dpi=150)

    def write(x: float, y: float, text: str, **style: object) -> None:
        figure.text(x / width, 1 - y / height, text, va="top", **style)

    for row, (query, of_query) in enumerate(found.items()):
        top = row * block_height + MARGIN / 2
        write(width / 2, top, f"“{query}”", fontsize=15, fontweight="bold", ha="center")
        for number, ((name, note), result) in enumerate(zip(models, of_query, strict=True)):
            left = MARGIN + number * (block_width + MARGIN)
            same = f"; {shared(result, of_query[0])} of {num_icons} icons are those on the left" if number else ""
            write(left + PAD, top + 0.4, f"{name}, {result.milliseconds:.1f} ms", fontsize=10)
            write(left + PAD, top + 0.6, note + same, fontsize=7.5, color="#666666")
            for i, image in enumerate(result.images):
                x, y = left + i % COLUMNS * CELL, top + HEADING + i // COLUMNS * (CELL + CAPTION)
                side = CELL - 2 * PAD
                axes = figure.add_axes(((x + PAD) / width, 1 - (y + side) / height, side / width, side / height))
                axes.imshow(pairs.images[image], interpolation="lanczos")
                axes.axis("off")
                caption = textwrap.fill(captions[image], 17, max_lines=2, placeholder=" …")
                write(x + CELL / 2, y + side + 0.06, caption, ha="center", fontsize=6.5)
    plots.save(figure, path)


def shared(one: Found, other: Found) -> int:
    return len(set(one.images) & set(other.images))


def caption_of_image(pairs: ImageCaptionPairs) -> dict[int, str]:
    """The first caption of each image."""
    return dict(zip(reversed(pairs.image_index.tolist()), reversed(pairs.captions), strict=True))


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    device = set_up(args)
    full = load_clip(args.model, device)
    small, what = load_pruned(args, full, device)
    pairs = load_pairs(args.dataset, args.split, **data_flags(args))
    folder = files.model_dir(args.exp_dir, full.name)
    embedded = [clip.embed_pairs(pairs, folder / "cache") for clip in (full, small)]
    pairs = embedded[0][0]  # without broken images
    clips = [(clip, images) for clip, (_, images) in zip((full, small), embedded, strict=True)]
    found = {query: [search(clip, query, of_clip, args.top) for clip, of_clip in clips] for query in args.query}
    models = [
        (f"full: {full.num_layers} layers", Path(full.name).name),
        (f"pruned: {small.num_layers} layers", what),
    ]
    path = args.output or folder / "icon_search.png"
    draw(found, models, pairs, path)
    captions = caption_of_image(pairs)
    for query, of_query in found.items():
        rows = zip(*([captions[image] for image in result.images] for result in of_query), strict=True)
        headers = [f"{name}, {result.milliseconds:.1f} ms" for (name, _), result in zip(models, of_query, strict=True)]
        print(f"{query!r}\n{format_table(rows, headers)}\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
