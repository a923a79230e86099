"""Do the losses that a search goes by foretell those of what is deployed? Records beside each other; no model needed.

    python -m benchmarks.foretell_deployed results/repair/deployed_iconclip.json --losses \
        results/iconclip/compare_clip12to6_max1000_left_out.json results/iconclip/compare_clip12to6_max1000.json

Reads what `benchmarks.repair_deployed` wrote of all subsets, repaired cut by cut, and what `compare_strategies.py` did.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from common import format_table, script
from common.cli import Parser
from search_strategy.proposals import Proposal, segments
from search_strategy.results import read_losses
from search_strategy.rivals import BEST, AllSubsets, judge

HEADERS = ("losses", "Spearman", "layer 1 kept", f"of the {BEST} best", "its best", "rank", "regret")


def compare_orders(losses: dict[Proposal, float], deployed: AllSubsets) -> tuple:
    """Of the losses: their rank correlation to those deployed, of all and of two parts; where their best stands."""
    row = judge([-np.array([losses[proposal] for proposal in deployed.objective])], deployed)
    alike = (row[name][0] for name in ("spearman", "spearman_layer_1_kept", "spearman_best"))
    best = AllSubsets(losses).best
    found = deployed.objective[best]
    return (*alike, str(segments(best)), deployed.rank(found), deployed.regret(found))


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("deployed", type=Path, help="a file of benchmarks.repair_deployed, of all subsets")
    parser.add_argument("--losses", type=Path, nargs="+", required=True, help="files of compare_strategies.py")
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    deployed = AllSubsets({tuple(p): after for p, _, after in json.loads(args.deployed.read_text())["proposals"]})
    rows = [(path.stem, *compare_orders(read_losses(path)[0], deployed)) for path in args.losses]
    print(format_table(rows, HEADERS, ("", ".2f", ".2f", ".2f", "", "", ".4f")))


if __name__ == "__main__":
    main()
