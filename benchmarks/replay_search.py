"""The refinement replayed on recorded losses: how often it finds the best of all subsets, and its layer calls.

    python -m benchmarks.replay_search results/*/compare_clip12to*_left_out.json
    python -m benchmarks.replay_search results/*/compare_clip12to4*_left_out.json --chances 0.02 0.01 0.005

Reads what `compare_strategies.py` wrote where it knew every subset; no model is needed. Every climb starts from random
proposals, which is harder than from those of a matrix, so that more of them end elsewhere.
"""

import argparse
from pathlib import Path

import numpy as np

from common import bounded, format_table, script, whole_number, write_json
from common.cli import Parser
from search_strategy.climb import climb
from search_strategy.defaults import CHANCE, REFINE_ROUNDS
from search_strategy.proposals import random_proposals
from search_strategy.results import read_losses
from search_strategy.rivals import AllSubsets, Counted

HEADERS = ("record", "chance", "best found, %", "largest rank", "layer calls", "most")


def replay(truth: AllSubsets, num_layers: int, chance: float, num_starts: int, draws: int) -> dict[str, float]:
    """What climbs from `draws` draws of random proposals end in, and what they ask for."""
    ranks, calls, size = [], [], len(truth.best)
    for seed in range(draws):
        counted = Counted(truth.objectives, num_layers)
        starts = random_proposals(num_layers, size, num_starts, np.random.default_rng(seed))
        best, _ = climb(counted.objectives, starts, num_layers, REFINE_ROUNDS, chance=chance)
        ranks.append(truth.rank(truth.objective[best]))
        calls.append(counted.costs["layer_calls"])
    found = 100 * np.mean(np.array(ranks) == 1)
    values = (chance, found, max(ranks), np.median(calls), max(calls))
    return dict(zip(HEADERS[1:], map(float, values), strict=True))


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("records", type=Path, nargs="+", help="files of compare_strategies.py")
    parser.add_argument(
        "--chances", type=bounded(float, 0, 1), nargs="+", default=[CHANCE], help="at which a climb ends"
    )
    parser.add_argument("--starts", **whole_number(15, "random proposals to start from"))
    parser.add_argument("--draws", **whole_number(60, "of the starts"))
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    rows = []
    for path in args.records:
        truth = AllSubsets(read_losses(path)[0])
        num_layers = max(map(max, truth.objective))
        for chance in args.chances:
            rows.append({"record": str(path), **replay(truth, num_layers, chance, args.starts, args.draws)})
    if args.out:
        write_json(args.out, {"rows": rows})
    print(format_table([tuple(row.values()) for row in rows], HEADERS, ("", "g", ".0f", ".0f", ".0f", ".0f")))


if __name__ == "__main__":
    main()
