"""Steps 2 and 3: coarse search over a matrix, then fine search of its proposals with the task loss.

    python search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers 6 --search_mode beam --select_measure dc
    python search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers 6 --search_mode exact --race true

Reads the matrix that an analysis script cached under exp/<model>/, and writes
clip<L>to<L-k>_<search_mode>_<matrix>.json, .log and .png beside it. `num_clip_layers` is the number of layers to clip,
that is, to drop.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.cli import Parser, add_common_flags, bounded, choice, script, switch, whole_number
from common.matrix_flags import add_search_flags
from search_strategy.coarse import BEAM_SIZE, SCORES, SEARCH_MODES
from search_strategy.defaults import BEST_SHOWN, NUM_PROPOSALS, OBJECTIVE, OBJECTIVES, REFIT, SCORE, SEARCH_MODE
from search_strategy.fine_flags import add_fine_flags, add_size_flags


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add_size_flags(parser)
    coarse = parser.add_argument_group("coarse search")
    modes = {name: mode.__doc__ for name, mode in SEARCH_MODES.items()}
    coarse.add_argument("--search_mode", **choice(modes, SEARCH_MODE))
    scores = {name: score.meaning for name, score in SCORES.items()} | {"both": "the best by each"}
    coarse.add_argument("--score", **choice(scores, SCORE, "of a proposal"))
    coarse.add_argument("--beam_size", **whole_number(BEAM_SIZE, "proposals that go on"))
    coarse.add_argument("--topk_num", **whole_number(NUM_PROPOSALS, "proposals for the fine search"))
    coarse.add_argument("--coarse_search_only", **switch(False, "stop before the fine search"))
    add_search_flags(parser)
    fine = add_fine_flags(parser)
    fine.add_argument("--objective", **choice(OBJECTIVES, OBJECTIVE, "what is searched for"))
    refit = f"the best proposals to repair cut by cut, of which the best wins (default: {REFIT})"
    fine.add_argument("--refit", type=bounded(int, 1, BEST_SHOWN), default=REFIT, help=refit)
    fine.add_argument("--race", **switch(False, "halve the proposals over growing parts of the pairs first"))
    add_common_flags(parser, streaming=True, tower=True, target_column=True)
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from commands.search import run

    run(args)


if __name__ == "__main__":
    main()
