"""The flags of the fine search: for the script that searches and the one that compares."""

import argparse

from common import bounded, positive_int, switch
from search_strategy.defaults import EVALUATIONS, REFINE_ROUNDS, SAMPLES_AT_ONCE
from tasks.base import LOSS_BATCH_SIZE


def add_size_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_layers", type=positive_int, required=True, help="layers of the model's tower")
    parser.add_argument("--num_clip_layers", type=int, required=True, help="how many of them to drop")


def add_fine_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Gives the group, for what a script has beside them."""
    group = parser.add_argument_group("fine search")
    what = "score proposals with a linear map in the place of what they drop; false: as published"
    group.add_argument("--repair", **switch(True, what))
    group.add_argument(
        "--refine",
        type=bounded(int, 0),
        default=REFINE_ROUNDS,
        help=f"rounds of refinement by swaps, {EVALUATIONS} evaluations each (default: %(default)s; 0: none)",
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
