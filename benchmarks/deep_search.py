"""A depth where not all subsets can be known: the default search against greedy and against many more random proposals.

    python -m tools.deepen_clip --output_dir exp/iconclip24
    python clip_finetune_train.py --model exp/iconclip24 --output_dir iconclip24_tuned --num_layers 24 \\
        --num_clip_layers 0 --layerdrop 0.2 --max_epoch 2 --lr 5e-4
    python -m benchmarks.deep_search --model exp/iconclip24_tuned --num_clip_layers 12

The default search: distance correlation on its default captions (drawn anew for every seed), beam of 10, the ten best
verified, refinement by swaps. Random: `--times` as many proposals as the largest of these searches evaluated. All
losses are on the first `--num_pairs` validation pairs; layer calls are those a batch of captions needs, with shared
prefixes.
"""

import argparse
from functools import partial

import numpy as np

from benchmarks.frame import Bench, make_parser
from common import Record, analysis, format_table, positive_int, script
from common.matrix_files import MatrixSettings
from search_strategy.fine import FineSearch
from search_strategy.proposals import check_num_clip_layers
from search_strategy.rivals import Outcome, greedy_by_loss, random_rivals, run_strategy
from search_strategy.verify import search


def default_searches(fine: FineSearch, captions: list[str], k: int, seeds: range, record: Record) -> list[Outcome]:
    outcomes = []
    for seed in seeds:
        with record.timed("measure"):
            matrix = analysis.measure_captions(fine.encoder, captions, MatrixSettings("dc", seed=seed))
        choose = partial(search, matrix=matrix, num_clip_layers=k)
        outcomes.append(run_strategy(f"default search, seed {seed}", choose, fine.objectives, len(matrix) - 1))
    return outcomes


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("The default search of a deep model against greedy and random ones.")
    parser.add_argument("--num_clip_layers", type=int, required=True, help="layers to drop")
    parser.add_argument("--num_pairs", type=positive_int, default=250, help="validation pairs (default: 250)")
    parser.add_argument("--num_seeds", type=positive_int, default=3, help="of the calibration captions (default: 3)")
    parser.add_argument("--times", type=positive_int, default=20, help="as many random proposals (default: 20)")
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    bench = Bench(args)
    k, num_layers = args.num_clip_layers, bench.encoder.num_layers
    check_num_clip_layers(k, num_layers)
    captions = bench.pairs("train", images=False).captions
    fine = bench.fine_search(bench.pairs("validation"))
    fine = fine.on_rows(range(min(args.num_pairs, fine.num_samples)))
    outcomes = default_searches(fine, captions, k, range(args.num_seeds), bench.record)
    num_random = args.times * max(outcome.costs["proposals_evaluated"] for outcome in outcomes)
    greedy = partial(greedy_by_loss, num_layers=num_layers, num_clip_layers=k)
    outcomes.append(run_strategy("greedy by task loss", greedy, fine.objectives, num_layers))
    outcomes += random_rivals(fine.objectives, num_layers, k, 0, num_random, np.random.default_rng(args.seed))
    full, rows = fine.full_model(), []
    for outcome in outcomes:
        found = fine.evaluate([outcome.proposal])[0]
        recall = 100 * found.figures["text_to_image_recall_at_10"]
        rows.append((outcome.strategy, found.objective, recall, *outcome.costs.values()))
    headers = ("search", "task loss", "R@10, %", "proposals", "layer calls", "unshared")
    print(format_table(rows, headers, ("", ".4f", ".1f", "", "", "")))
    print(f"full model: task loss {full.figures['task_loss']:.4f}; {fine.num_samples} pairs")
    bench.write(rows=[dict(zip(headers, row, strict=True)) for row in rows])


if __name__ == "__main__":
    main()
