"""Is what is deployed ever worse than leaving out? Proposals repaired as the winner of a search is, cut by cut.

    python -m benchmarks.repair_deployed --draws 924 --max_pairs 1000 --out build/repair_deployed.json
    python -m benchmarks.repair_deployed --draws 40 --losses LEFT_OUT.json REPAIRED.json --worst 20

The proposals are drawn at random, and where `--losses` names two files of `compare_strategies.py`, the ones that a
repair from one pass made worst come first. Both losses are of validation; a rise is beyond noise where the paired 95 %
interval says so.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.frame import Bench, describe_change, make_parser, print_change
from common import format_table, script, show_progress, whole_number
from models.repair import draw_captions, repaired
from search_strategy.fine import Evaluation, FineSearch
from search_strategy.proposals import Proposal, segments
from search_strategy.results import read_losses
from search_strategy.rivals import all_subsets


def choose_proposals(subsets: list[Proposal], draws: int, seed: int, losses: list[Path], worst: int) -> list[Proposal]:
    """Those that the one-pass repair made worst, then as many others at random."""
    first = []
    if losses:
        before, after = (read_losses(path)[0] for path in losses)
        first = sorted(subsets, key=lambda proposal: before[proposal] - after[proposal])[:worst]
    others = [
        subsets[row] for row in np.random.default_rng(seed).permutation(len(subsets)) if subsets[row] not in first
    ]
    return first + others[:draws]


def evaluate_deployed(fine: FineSearch, proposal: Proposal, captions: list[str]) -> Evaluation:
    model = repaired(fine.encoder, proposal, captions)
    scores = fine.task.score(model.embeddings(fine.samples))
    values = scores.values.cpu().numpy()
    return Evaluation(proposal, float(values.mean()), scores.figures, values)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Whether a repair, made as the winner of a search is, makes a proposal worse.")
    parser.add_argument("--num_clip_layers", **whole_number(6, "layers to drop"))
    parser.add_argument("--captions", **whole_number(1000, "of train"))
    parser.add_argument("--draws", **whole_number(40, "proposals at random"))
    parser.add_argument("--losses", nargs=2, type=Path, default=[], help="of all subsets, left out and repaired")
    parser.add_argument("--worst", **whole_number(20, "proposals that the one-pass repair made worst"))
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    bench = Bench(args)
    encoder, pairs = bench.encoder, bench.pairs("validation")
    captions = draw_captions(bench.pairs("train", images=False, max_pairs=None).captions, args.seed, args.captions)
    fine = bench.fine_search(pairs)
    bench.record.note_data(data=pairs)
    subsets = all_subsets(encoder.num_layers, args.num_clip_layers)
    proposals = choose_proposals(subsets, args.draws, args.seed, args.losses, args.worst)
    full, left_out, found, rows = fine.full_model().objective, fine.evaluate(proposals), [], []
    for before in tqdm(left_out, desc="proposals", disable=not show_progress()):
        found.append(evaluate_deployed(fine, before.dropped_layers, captions))
        rows.append((before.dropped_layers, before.objective, found[-1].objective))
        change = describe_change(left_out[: len(found)], found, full)
        bench.write(change=change, proposals=rows)  # as it grows: a run that is stopped has what it has made
    least = [(str(segments(p)), *both) for p, *both in sorted(rows, key=lambda row: row[1] - row[2])[:10]]
    print(f"full model: {full:.4f}; the proposals that gained least:")
    print(format_table(least, ("dropped", "left out", "repaired")))
    print_change(change)


if __name__ == "__main__":
    main()
