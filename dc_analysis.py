"""Step 1: squared distance correlation (Szekely et al. 2007) between all layers of CLIP's text tower (or another one).

    python dc_analysis.py --batch_size 4 --iter_num 10
    python dc_analysis.py --batch_size 256 --iter_num 10 --estimator unbiased --repeats 5
    python dc_analysis.py --batch_size 32 --iter_num 30 --mode seq --baseline true

Writes exp/<model>/dc_mat_<mode>_bs<batch_size>_iter<iter_num>.npy, its picture (.png) and its run record (.json). The
mean over batches: the biased form of the original is near 1 for small ones, whatever the layers hold (--baseline true).
"""

import argparse
from collections.abc import Sequence

from common.cli import Parser, script
from common.matrix_flags import add_analysis_flags


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add_analysis_flags(parser, __file__)
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from common import analysis

    analysis.run(args)


if __name__ == "__main__":
    main()
