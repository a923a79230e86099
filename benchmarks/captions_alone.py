"""How well do captions alone choose? The distance to the full model's embeddings beside the task loss, of every subset.

    python -m benchmarks.captions_alone --losses results/iconclip/compare_clip12to6_max1000.json --max_pairs 1000

`--losses` names a file of `compare_strategies.py` of the same model, data and way, left out or repaired; the distances
(`--objective embedding`: the mean of 1 - cosine) are evaluated here. Printed: their Spearman correlation to the losses,
of all proposals and of those that keep layer 1, and the ten nearest with their ranks by the loss.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.frame import Bench, make_parser
from common import format_table, script, switch, whole_number
from models.repair import draw_captions
from models.segment_maps import MAP_CAPTIONS, SegmentMaps
from search_strategy.proposals import Proposal, segments
from search_strategy.results import read_losses
from search_strategy.rivals import AllSubsets
from search_strategy.verify import spearman

NEAREST = 10


def describe(losses: dict[Proposal, float], distances: dict[Proposal, float]) -> dict:
    truth, proposals = AllSubsets(losses), sorted(losses, key=distances.get)
    both = np.array([(losses[proposal], distances[proposal]) for proposal in proposals])
    keeping = [1 not in proposal for proposal in proposals]
    nearest = [
        {"proposal": p, "distance": distances[p], "loss": losses[p], "rank": truth.rank(losses[p])}
        for p in proposals[:NEAREST]
    ]
    return {
        "spearman": spearman(*both.T),
        "spearman_keeping_layer_1": spearman(*both[keeping].T),
        "best_by_loss": truth.best,
        "nearest": nearest,
    }


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("How well captions alone order all subsets, beside the task loss.")
    parser.add_argument("--losses", type=Path, required=True, help="of all subsets, by compare_strategies.py")
    parser.add_argument("--repair", **switch(True, "as in the losses: each proposal repaired from one pass"))
    parser.add_argument("--captions", **whole_number(MAP_CAPTIONS, "of train, for the repairs"))
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    losses, _ = read_losses(args.losses)
    bench, maps = Bench(args), None
    pairs = bench.pairs("validation", images=False)
    bench.record.note_data(data=pairs)
    if args.repair:
        train = bench.pairs("train", images=False, max_pairs=None).captions
        maps = SegmentMaps(bench.encoder, draw_captions(train, args.seed, args.captions))
    with bench.record.timed("distances"):
        distances = bench.fine_search(pairs, maps=maps, objective="embedding").objectives(losses)
    found = describe(losses, dict(zip(losses, distances, strict=True)))
    bench.write(**found)
    print(f"Spearman of the distance to the loss: {found['spearman']:.3f}")
    print(f"of the proposals that keep layer 1: {found['spearman_keeping_layer_1']:.3f}")
    rows = [(str(segments(near["proposal"])), *list(near.values())[1:]) for near in found["nearest"]]
    print(format_table(rows, ("nearest", "distance", "loss", "rank by loss")))


if __name__ == "__main__":
    main()
