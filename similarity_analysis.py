"""Step 1 with any other measure: similarity between all layers of CLIP's text tower or another encoder.

    python similarity_analysis.py --measure cka --debiased true
    python similarity_analysis.py --measure pwcca --thre 0.999
    python similarity_analysis.py --measure angular --pool eos
    python similarity_analysis.py --measure ablation

Writes exp/<model>/<measure>_mat_<captions><mode>.npy, its picture (.png) and its run record (.json). What each measure
means is in measures/README.md.
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
