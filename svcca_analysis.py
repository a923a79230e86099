"""Step 1: SVCCA (Raghu et al. 2017) between all layers of CLIP's text tower or another encoder.

    python svcca_analysis.py --batch_size 32 --iter_num 300 --thre 0.99 --mode U
    python svcca_analysis.py --mode T --baseline true
    python svcca_analysis.py --model openai/clip-vit-base-patch32 --dataset path/to/pairs --pool eos

Writes exp/<model>/cca_mat_<captions><mode>_svthre<thre>.npy, its picture (.png) and its run record (.json). Batches
only say how many captions are seen, batch_size times iter_num: the measure takes them together.
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
