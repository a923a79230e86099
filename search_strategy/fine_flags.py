"""The flags of the fine search, and a fine search from them: for the script that searches and the one that compares."""

import argparse
from pathlib import Path

from common import boolean, bounded, data_flags, positive_int, show_progress
from data import ImageCaptionPairs, load_pairs
from models import Encoder
from models.repair import draw_captions
from search_strategy.fine import SAMPLES_AT_ONCE, FineSearch
from search_strategy.verify import REFINE_ROUNDS
from tasks.base import LOSS_BATCH_SIZE


def add_size_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_layers", type=positive_int, required=True, help="layers of the model's tower")
    parser.add_argument("--num_clip_layers", type=int, required=True, help="how many of them to drop")


def add_fine_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Gives the group, for what a script has beside them."""
    group = parser.add_argument_group("fine search")
    group.add_argument(
        "--repair",
        type=boolean,
        default=True,
        help="score proposals with a linear map in the place of what they drop (default: true; false: as published)",
    )
    group.add_argument(
        "--refine",
        type=bounded(int, 0),
        default=REFINE_ROUNDS,
        help="rounds of hill climbing by swaps (default: %(default)s)",
    )
    group.add_argument(
        "--loss_batch_size",
        type=positive_int,
        default=LOSS_BATCH_SIZE,
        help="pairs in a batch of the loss (default: %(default)s)",
    )
    group.add_argument(
        "--text_batch_size",
        type=positive_int,
        default=SAMPLES_AT_ONCE,
        help="captions in a forward pass (default: %(default)s)",
    )
    return group


def make_fine_search(
    args: argparse.Namespace, encoder: Encoder, pairs: ImageCaptionPairs, folder: Path, **options: object
) -> FineSearch:
    """On these pairs, with the flags; `options`: more of those of `FineSearch.from_pairs`."""
    sizes = {"loss_batch_size": args.loss_batch_size, "batch_size": args.text_batch_size}
    return FineSearch.from_pairs(encoder, pairs, folder / "cache", progress=show_progress(), **sizes, **options)


def draw_repair_captions(args: argparse.Namespace, encoder: Encoder) -> list:
    """Samples of train, of validation where there is none, that repairs are fitted to; the first are a draw too."""
    options = {"images": encoder.tower == "vision", "or_validation": True}
    return draw_captions(encoder.samples(load_pairs(args.dataset, "train", **data_flags(args) | options)), args.seed)
