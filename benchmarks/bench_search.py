"""The exact coarse search against a plain beam: seconds, and how many of the true best proposals the beam misses.

    python -m benchmarks.bench_search
    python -m benchmarks.bench_search --sizes 12 24 --out search_benchmark.json

For every number of layers L, half of them are dropped and the best 10 proposals asked for. The matrix is the absolute
correlation between the states of a random walk whose steps differ in size, so that near layers correlate most, as in
a transformer. Both searches run on one core.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.frame import fastest
from common import Record, bounded, format_table, positive_int, script, set_up_logging, whole_number, write_json
from common.cli import Parser
from search_strategy.coarse import BEAM_SIZE, coarse_search, missed_by
from search_strategy.defaults import NUM_PROPOSALS

logger = logging.getLogger("comflp")

HEADERS = ("layers", "dropped", "exact (s)", "beam (s)", "beam / exact", "missed by the beam")


def walk_matrix(num_layers: int, seed: int) -> np.ndarray:
    """(L+1, L+1): absolute correlations between the states of a random walk in 64 dimensions."""
    generator = np.random.default_rng([seed, num_layers])
    sizes = generator.exponential(size=(num_layers + 1, 1))
    states = np.cumsum(sizes * generator.normal(size=(num_layers + 1, 64)), axis=0)
    return np.abs(np.corrcoef(states))


def plain_score(matrix: np.ndarray, dropped: list[int]) -> float:
    values = []
    for layer in dropped:
        if layer - 1 not in dropped:
            first = layer
        if layer + 1 not in dropped:
            values.append(matrix[first - 1, layer])
    return sum(values) / len(values)


def plain_beam(matrix: np.ndarray, num_clip_layers: int) -> list[tuple[tuple[int, ...], float]]:
    """Beam search as commonly written: list copies, membership tests, one score at a time."""
    beam = [[]]
    for _ in range(num_clip_layers):
        scored = {}
        for dropped in beam:
            for layer in range(1, len(matrix)):
                if layer in dropped:
                    continue
                candidate = sorted([*dropped, layer])
                if tuple(candidate) not in scored:
                    scored[tuple(candidate)] = plain_score(matrix, candidate)
        best = sorted(scored.items(), key=lambda item: -item[1])[:BEAM_SIZE]
        beam = [list(dropped) for dropped, _ in best]
    return best


def limit_cores(number: int) -> None:
    """Keep this process on the first `number` of the cores that it may use."""
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("--threads: this system cannot limit the cores of a process; leave the flag out")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])


def measure(num_layers: int, seed: int, repeats: int, with_beam: bool) -> dict:
    """One row of the benchmark; the entries of the beam are None where it is not run."""
    matrix, k = walk_matrix(num_layers, seed), num_layers // 2
    search = partial(coarse_search, matrix, k, mode="exact", num_proposals=NUM_PROPOSALS)
    exact_seconds, exact = fastest(search, "cpu", repeats)
    row = {"num_layers": num_layers, "num_clip_layers": k, "exact_seconds": exact_seconds}
    if not with_beam:
        return row | {"beam_seconds": None, "ratio": None, "num_missed": None}
    beam_seconds, beam = fastest(partial(plain_beam, matrix, k), "cpu", repeats)
    missed = missed_by(beam, exact)
    return row | {"beam_seconds": beam_seconds, "ratio": beam_seconds / exact_seconds, "num_missed": len(missed)}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--sizes",
        type=bounded(int, 2),
        nargs="+",
        default=[12, 24, 48, 96, 192, 1000],
        help="numbers of layers (default: 12 24 48 96 192 1000)",
    )
    parser.add_argument("--beam_up_to", **whole_number(192, "most layers at which the beam is run too"))
    parser.add_argument("--repeats", **whole_number(3, "runs; the fastest counts"))
    parser.add_argument("--seed", **whole_number(0, "seed of the matrices", 0))
    parser.add_argument("--threads", type=positive_int, help="cores that may be used (default: all, as given to us)")
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    set_up_logging()
    if args.threads:
        limit_cores(args.threads)
    rows, record = [], Record(args, "cpu")
    for num_layers in args.sizes:
        rows.append(measure(num_layers, args.seed, args.repeats, with_beam=num_layers <= args.beam_up_to))
        logger.info("%d layers: exact %.4f s", num_layers, rows[-1]["exact_seconds"])
    if args.out:
        record.note(num_proposals=NUM_PROPOSALS, beam_size=BEAM_SIZE)
        write_json(args.out, {"rows": rows, "record": record.content()})
    print(format_table([row.values() for row in rows], HEADERS, floatfmt=("", "", ".4f", ".4f", ".1f", "")))


if __name__ == "__main__":
    main()
