"""Step 1 with any other measure: similarity between all layers of a CLIP text transformer.

    python similarity_analysis.py --measure cka --debiased true
    python similarity_analysis.py --measure pwcca --thre 0.999
    python similarity_analysis.py --measure angular --pool eos

Writes exp/<model>/<measure>_mat_<captions><mode>.npy, its picture (.png) and its run record (.json). What each measure
means is in measures/README.md.
"""

import argparse
from collections.abc import Sequence

from common import analysis, boolean, script
from common.matrix_files import SCRIPTS
from measures import MEASURES


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Similarity between all layers of a CLIP text transformer.")
    measures = [name for name in MEASURES if name not in SCRIPTS]
    parser.add_argument("--measure", choices=measures, required=True, help="one file of measures/ each")
    parser.add_argument("--debiased", type=boolean, help="cka: HSIC without its bias (default: false)")
    analysis.add_threshold_flags(parser)
    analysis.add_flags(parser)
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    analysis.run(build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
