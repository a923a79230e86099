"""The panel of rivals: every way to choose the layers under one evaluation, in tables and one picture.

    python compare_strategies.py --num_layers 12 --num_clip_layers 6
    python compare_strategies.py --num_layers 12 --num_clip_layers 6 --draws 5 --scratch exp/depth6 exp/depth6_short
    python compare_strategies.py --num_layers 12 --num_clip_layers 6 --refine 20 --losses compare_clip12to6.json
    python compare_strategies.py --num_layers 12 --num_clip_layers 6 --all_k true

Makes the matrices of all measures that are missing, in one pass over the captions of a draw. Choices are made on
validation; the figures of `test` are a report, with paired 95 % intervals on the difference to our winner. All choices,
losses and ranks are of repaired proposals, with those left out without repair beside them; with `--repair false` of
these alone. Where all subsets are few enough to be known, whatever chooses among them is replayed, its layer calls
counted as it would make them. Writes compare_clip<L>to<L-k>[_<data set>].json and .png under exp/<model>/, and with
`--all_k` compare_clip<L>_all_k.json and .png: the best proposal found for every number of layers.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.cli import Parser, add_common_flags, script, switch, whole_number
from search_strategy.fine_flags import add_fine_flags, add_size_flags


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add_size_flags(parser)
    add_fine_flags(parser)
    parser.add_argument("--draws", **whole_number(1, "of the captions of every matrix, by seed"))
    parser.add_argument(
        "--scratch", type=Path, nargs="+", default=[], help="checkpoints of small models trained from scratch"
    )
    parser.add_argument("--all_k", **switch(False, "the best proposal for every number of layers too"))
    parser.add_argument("--max_subsets", **whole_number(5000, "evaluate all subsets up to so many"))
    parser.add_argument(
        "--losses", type=Path, help="a file that this script wrote: take its losses of all subsets, evaluate none"
    )
    parser.add_argument("--num_random", **whole_number(20, "random proposals drawn"))
    add_common_flags(parser, streaming=True, tower=True, target_column=True)
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from commands.compare import run

    run(args)


if __name__ == "__main__":
    main()
