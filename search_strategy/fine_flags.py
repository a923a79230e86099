"""The flags of the fine search: for the script that searches and the one that compares."""

import argparse

from common import positive_int, switch, whole_number
from search_strategy.defaults import EVALUATIONS, REFINE_ROUNDS
from tasks.base import LOSS_BATCH_SIZE


def add_size_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_layers", type=positive_int, required=True, help="layers of the model's tower")
    parser.add_argument("--num_clip_layers", type=int, required=True, help="how many of them to drop")


def add_fine_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Gives the group, for what a script has beside them."""
    group = parser.add_argument_group("fine search")
    what = "score proposals with a linear map in the place of what they drop; false: as published"
    group.add_argument("--repair", **switch(True, what))
    what = f"rounds of refinement by swaps, {EVALUATIONS} evaluations each; 0: none"
    group.add_argument("--refine", **whole_number(REFINE_ROUNDS, what, 0))
    group.add_argument("--loss_batch_size", **whole_number(LOSS_BATCH_SIZE, "pairs in a batch of the loss"))
    what = "captions in a forward pass (default: as many as the processor's cache holds, more on a GPU)"
    group.add_argument("--text_batch_size", type=positive_int, help=what)
    return group
