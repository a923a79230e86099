"""Does a measure foretell the loss of leaving out, or that after repair? Every proposal of a size, both ways.

    python -m benchmarks.repair_ranks --num_clip_layers 6 --max_pairs 500 --out build/repair_ranks.json

For every matrix under exp/<model>/ the Spearman correlation of its coarse scores (mean and sum over segments) to minus
the objective of all proposals, left out and repaired from one pass; and of those that keep layer 1, which says most of
the loss by itself. SVCCA measures what a linear map can restore, so it should foretell the second. Also how many
proposals are worse repaired than left out, by how much, and of how many the paired 95 % interval says so.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.frame import Bench, describe_change, make_parser, print_change
from common import format_table, script, whole_number
from models.repair import draw_captions
from models.segment_maps import MAP_CAPTIONS, SegmentMaps
from search_strategy.coarse import SCORES, coarse_score
from search_strategy.fine import Evaluation
from search_strategy.rivals import all_subsets
from search_strategy.verify import spearman


def read_matrices(folder: Path, num_layers: int) -> Iterator[tuple[str, np.ndarray]]:
    """The matrices of the model under their names."""
    for path in sorted(folder.glob("*_mat_*.npy")):
        matrix = np.load(path, allow_pickle=False)
        if matrix.shape == (num_layers + 1, num_layers + 1):
            yield path.stem, matrix


def rank_matrix(name: str, matrix: np.ndarray, left_out: list[Evaluation], repaired: list[Evaluation]) -> list[dict]:
    keeping = [1 not in evaluation.dropped_layers for evaluation in left_out]
    losses = {
        way: np.array([e.objective for e in found]) for way, found in (("left_out", left_out), ("repaired", repaired))
    }
    rows = []
    for score in SCORES:
        values = np.array([coarse_score(matrix, evaluation.dropped_layers, score) for evaluation in left_out])
        ranks = {way: spearman(values, -of) for way, of in losses.items()}
        ranks |= {f"{way}_keeping_layer_1": spearman(values[keeping], -of[keeping]) for way, of in losses.items()}
        rows.append({"matrix": name, "score": score, **ranks})
    return rows


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("What each measure foretells: the loss left out, or repaired.")
    parser.add_argument("--num_clip_layers", **whole_number(6, "layers to drop"))
    parser.add_argument("--captions", **whole_number(MAP_CAPTIONS, "of train"))
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    bench = Bench(args)
    encoder, pairs = bench.encoder, bench.pairs("validation")
    train = bench.pairs("train", images=False, max_pairs=None)
    record = bench.record
    record.note_data(data=pairs)
    with record.timed("maps"):
        maps = SegmentMaps(encoder, draw_captions(train.captions, args.seed, args.captions))
    fine = bench.fine_search(pairs, maps=maps)
    subsets = all_subsets(encoder.num_layers, args.num_clip_layers)
    with record.timed("repaired"):
        repaired = fine.evaluate(subsets)
    with record.timed("left_out"):
        left_out = fine.without_maps().evaluate(subsets)
    matrices = read_matrices(bench.folder, encoder.num_layers)
    ranks = [row for name, matrix in matrices for row in rank_matrix(name, matrix, left_out, repaired)]
    change = describe_change(left_out, repaired, fine.full_model().objective)
    both = zip(subsets, left_out, repaired, strict=True)
    proposals = [(proposal, plain.objective, mended.objective) for proposal, plain, mended in both]
    bench.write(ranks=ranks, change=change, proposals=proposals)
    headers = ("matrix", "score", "left out", "repaired", "left out, layer 1 kept", "repaired, layer 1 kept")
    print("Spearman correlation of the coarse scores to minus the loss:")
    print(format_table([tuple(row.values()) for row in ranks], headers, ("", "", *[".2f"] * 4)))
    print_change(change)


if __name__ == "__main__":
    main()
