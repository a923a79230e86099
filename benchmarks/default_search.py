"""Does the search find the true best of all subsets, and at what cost? Every measure, several depths and seeds.

    python -m benchmarks.default_search --num_clip_layers 3 6 8 --num_seeds 5 --out build/default_search.json

Every proposal of each size is evaluated once on the validation pairs. With that table the searches are replayed: the
coarse search of each measure's matrix (made anew for every seed, from other captions), and the refinement from its ten
best. Layer calls are the distinct prefixes of kept layers: those of a fine search that keeps its hidden states.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

import numpy as np

from benchmarks.frame import Bench, make_parser
from common import Record, analysis, bounded, format_table, positive_int, script
from common.matrix_files import MatrixSettings
from measures import KINDS
from models import Clip
from search_strategy.coarse import SCORES, coarse_search
from search_strategy.fine import FineSearch, distinct_prefixes
from search_strategy.proposals import Proposal, kept_layers
from search_strategy.rivals import greedy_by_loss
from search_strategy.verify import NUM_PROPOSALS, REFINE_ROUNDS, climb


@dataclass
class Replay:
    """Objectives from a table, with the layer calls that a fine search would have made to know them."""

    table: dict[Proposal, float]
    num_layers: int
    known: dict[Proposal, tuple[int, ...]] = field(default_factory=dict)  # with the layers kept

    def objectives(self, proposals: list[Proposal]) -> list[float]:
        self.known |= {proposal: kept_layers(proposal, self.num_layers) for proposal in proposals}
        return [self.table[proposal] for proposal in proposals]

    @property
    def layer_calls(self) -> int:
        return distinct_prefixes(self.known.values())

    @property
    def layer_calls_unshared(self) -> int:
        return sum(map(len, self.known.values()))


def matrices_of(clip: Clip, captions: list[str], seed: int, record: Record) -> dict[str, np.ndarray]:
    """The matrix of every measure at its default settings, from one pass over the captions for all that share it."""
    settings = {name: MatrixSettings(name, seed=seed) for name in KINDS}
    groups = defaultdict(list)
    for name, one in settings.items():
        groups[one.kind.fed, one.batch_size, one.iter_num, one.mode].append(name)
    matrices = {}
    for names in groups.values():
        first = settings[names[0]]
        measures = {name: settings[name].new_measure() for name in names}
        analysis.feed(clip, analysis.draw_samples(captions, first)[0], first, list(measures.values()), record)
        matrices |= {name: measure.matrix() for name, measure in measures.items()}
    return matrices


@dataclass(frozen=True)
class Found:
    """What one search found, and what that took: layer calls with and without shared prefixes, proposals evaluated."""

    value: float
    layer_calls: int
    layer_calls_unshared: int
    proposals: int


def replay(
    table: dict[Proposal, float],
    matrix: np.ndarray,
    num_clip_layers: int,
    *,
    mode: str,
    score: str,
    rounds: int,
) -> Found:
    """Coarse search for ten, fine search, refinement."""
    counter = Replay(table, len(matrix) - 1)
    scored = coarse_search(matrix, num_clip_layers, mode=mode, num_proposals=NUM_PROPOSALS, score=score)
    best = climb(counter.objectives, [proposal for proposal, _ in scored], counter.num_layers, rounds)[0]
    return Found(table[best], counter.layer_calls, counter.layer_calls_unshared, len(counter.known))


def run_greedy(fine: FineSearch, num_clip_layers: int) -> Found:
    """Greedy by task loss. It looks at proposals of every size, so it is run and not replayed."""
    own = fine.without_memory()
    best = greedy_by_loss(own.objectives, own.encoder.num_layers, num_clip_layers)
    value = own.objectives([best])[0]
    return Found(value, round(own.layer_calls), round(own.layer_calls_unshared), len(own.evaluated))


def judge(args: argparse.Namespace, table: dict[Proposal, float], greedy: Found, matrices: dict) -> list[dict]:
    """One row a measure, score and way: how often the true best was found, the worst regret, the layer calls."""
    k, best = len(next(iter(table))), min(table.values())
    common = {"num_clip_layers": k, "subsets": len(table)}
    rows = [common | _row("greedy by task loss", "-", [greedy], best, greedy.value)]
    for score in SCORES:
        for rounds, way in ((0, "coarse and fine"), (args.refine, "and refine")):
            for measure in KINDS:
                options = {"mode": args.search_mode, "score": score, "rounds": rounds}
                found = [replay(table, of_seed[measure], k, **options) for of_seed in matrices.values()]
                rows.append(common | _row(f"{measure}, {score}", way, found, best, greedy.value))
    return rows


def _row(search_name: str, way: str, found: list[Found], best: float, greedy: float) -> dict:
    return {
        "search": search_name,
        "way": way,
        "true_best": sum(each.value == best for each in found),
        "runs": len(found),
        "worst_regret": max(each.value for each in found) - best,
        "not_worse_than_greedy": sum(each.value <= greedy for each in found),
        "layer_calls_median": int(median(each.layer_calls for each in found)),
        "layer_calls_most": max(each.layer_calls for each in found),
        "unshared_median": int(median(each.layer_calls_unshared for each in found)),
        "proposals_median": int(median(each.proposals for each in found)),
    }


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("How often the search finds the true best, and at what cost.")
    parser.add_argument("--num_clip_layers", type=positive_int, nargs="+", default=[3, 6, 8], help="default: 3 6 8")
    parser.add_argument("--num_seeds", type=positive_int, default=5, help="of the calibration captions (default: 5)")
    parser.add_argument("--search_mode", choices=("beam", "exact"), default="beam", help="default: beam")
    parser.add_argument(
        "--refine", type=bounded(int, 0), default=REFINE_ROUNDS, help="rounds of refinement (default: %(default)s)"
    )
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    bench = Bench(args)
    captions = bench.pairs("train", images=False).captions
    matrices = {seed: matrices_of(bench.encoder, captions, seed, bench.record) for seed in range(args.num_seeds)}
    fine = bench.fine_search(bench.pairs("validation"))
    rows = []
    for k in args.num_clip_layers:
        subsets = list(combinations(range(1, bench.encoder.num_layers + 1), k))
        with bench.record.timed("all_subsets"):
            table = dict(zip(subsets, fine.objectives(subsets), strict=True))
        rows += judge(args, table, run_greedy(fine, k), matrices)
        print(format_table([list(row.values()) for row in rows if row["num_clip_layers"] == k], list(rows[0])))
        print()
    bench.write(rows=rows)


if __name__ == "__main__":
    main()
