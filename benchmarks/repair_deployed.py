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

from benchmarks.frame import Bench, make_parser
from common import format_table, script, show_progress, whole_number
from models.repair import draw_captions, repair
from search_strategy.fine import Evaluation, FineSearch
from search_strategy.proposals import Proposal, segments
from search_strategy.results import read_losses
from search_strategy.rivals import all_subsets, compare_pairs


def choose_proposals(subsets: list[Proposal], draws: int, seed: int, losses: list[Path], worst: int) -> list[Proposal]:
    """Those that the one-pass repair made worst, then as many others at random."""
    first = []
    if losses:
        left_out, repaired = (read_losses(path)[0] for path in losses)
        first = sorted(subsets, key=lambda proposal: left_out[proposal] - repaired[proposal])[:worst]
    others = [
        subsets[row] for row in np.random.default_rng(seed).permutation(len(subsets)) if subsets[row] not in first
    ]
    return first + others[:draws]


def compare_repair(fine: FineSearch, before: Evaluation, captions: list[str]) -> dict:
    """A proposal left out and repaired: both losses, and how sure the difference is."""
    model, what = repair(fine.encoder, before.dropped_layers, captions)
    scores = fine.task.score(model.embeddings(fine.samples))
    values = scores.values.cpu().numpy()
    return {
        "proposal": before.dropped_layers,
        "left_out": before.objective,
        "repaired": float(values.mean()),
        "helped": any(cut.step for cut in what.cuts),
        **compare_pairs(values, before.values),
    }


def describe(rows: list[dict], full: float) -> dict:
    rises = np.array([row["repaired"] - row["left_out"] for row in rows])
    lost = np.array([row["left_out"] - full for row in rows])
    return {
        "proposals": len(rows),
        "left as they are": sum(not row["helped"] for row in rows),
        "worse": int((rises > 0).sum()),
        "worse beyond noise": sum(row["difference"] > row["interval"] for row in rows),
        "largest rise": float(rises.max()),
        "median share won back": float(np.median(-rises / lost)),
    }


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
    full, rows = fine.full_model().objective, []
    for before in tqdm(fine.evaluate(proposals), desc="proposals", disable=not show_progress()):
        rows.append(compare_repair(fine, before, captions))
        # as it grows: a run that is stopped has what it has made
        bench.write(full_model=full, rows=rows, summary=describe(rows, full))
    worst = sorted(rows, key=lambda row: row["left_out"] - row["repaired"])[:10]
    print(f"full model: {full:.4f}; the proposals that gained least:")
    cells = [
        (str(segments(r["proposal"])), r["left_out"], r["repaired"], r["difference"], r["interval"]) for r in worst
    ]
    print(
        format_table(cells, ("dropped", "left out", "repaired", "difference", "+-"), ("", ".3f", ".3f", "+.3f", ".3f"))
    )
    for name, value in describe(rows, full).items():
        print(f"{name}: {round(value, 4)}")


if __name__ == "__main__":
    main()
