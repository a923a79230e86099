"""Any depth: analysis, search and repair of CLIP text towers of 12 to 1,000 narrow layers, with seconds and memory.

    python -m benchmarks.deep --threads 2 --out deep.json                 # 12, 48, 192 and 1,000 layers of width 64
    python -m benchmarks.deep --threads 2 --depths 32 --width 1280 --heads 20 --captions 1000 --stages dc svcca coarse

The second line is the shape of bigG's text tower. The towers are made from configuration, with fresh weights and the
tokenizer of `--model`; half of the layers are dropped. Every depth runs in a process of its own, so that its peak
memory is its own. Captions are those of `--dataset`; proposals are scored by the distance to the full model's
embeddings, for which no image is needed. Seconds are of the wall; `cpu` are those that the process had a core for.
"""

import argparse
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.frame import Bench, in_own_process, make_parser, peak_mib
from common import analysis, bounded, format_table, plots, script, whole_number
from common.matrix_files import MatrixSettings
from models.clip import Clip
from models.repair import repair
from models.segment_maps import SegmentMaps
from search_strategy.coarse import coarse_search
from search_strategy.fine import FineSearch
from search_strategy.proposals import Proposal
from tasks.distance import Distance

logger = logging.getLogger("comflp")

STAGES = ("dc", "svcca", "coarse", "fine", "repair")
HEADERS = ("layers", "stage", "seconds", "cpu seconds", "peak MiB", "note")
SVCCA_BATCH = 32


class Run:
    """One depth: its tower, and a row for each part of the work."""

    def __init__(self, encoder: Clip, args: argparse.Namespace):
        self.encoder, self.args, self.rows = encoder, args, []

    @contextmanager
    def timed(self, stage: str, note: Callable[[], str] = str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        self.rows.append((self.encoder.num_layers, stage, *seconds, peak_mib(), note()))
        logger.info("%d layers, %s: %.1f s, %.1f of the CPU, peak %.0f MiB; %s", *self.rows[-1])

    def go(self, train: list[str], validation: list[str]) -> list[tuple]:
        args, num_clip_layers = self.args, self.encoder.num_layers // 2
        matrix = np.eye(self.encoder.num_layers + 1)
        if "dc" in args.stages:
            with self.timed("dc"):
                matrix = analysis.measure_captions(self.encoder, train, MatrixSettings("dc", seed=args.seed))
        if "svcca" in args.stages:
            draws = {"batch_size": SVCCA_BATCH, "iter_num": args.captions // SVCCA_BATCH, "seed": args.seed}
            with self.timed("svcca", lambda: f"{SVCCA_BATCH * draws['iter_num']} captions"):
                matrix = analysis.measure_captions(self.encoder, train, MatrixSettings("svcca", **draws))
        if "coarse" in args.stages:
            for mode in ("beam", "exact"):
                with self.timed(f"coarse, {mode}"):
                    found = coarse_search(matrix, num_clip_layers, mode=mode, num_proposals=args.proposals)
            proposals = [proposal for proposal, _ in found]
            winner = self.search(proposals, train, validation) if "fine" in args.stages else proposals[0]
            if "repair" in args.stages:
                self.repair(winner, train)
        return self.rows

    def search(self, proposals: list[Proposal], train: list[str], validation: list[str]) -> Proposal:
        """Score the proposals left out, then repaired; the best of these."""
        task = Distance(self.encoder.embeddings(validation))
        fine = FineSearch(self.encoder, validation, task)
        with self.timed("fine, left out", lambda: f"{len(proposals)} proposals, best {min(losses):.4f}"):
            losses = fine.objectives(proposals)
        with self.timed("fine, repaired", lambda: f"{len(proposals)} proposals, best {min(losses):.4f}"):
            maps = SegmentMaps(self.encoder, train[: self.args.repair_captions])
            losses = FineSearch(self.encoder, validation, task, maps=maps).objectives(proposals)
        return min(zip(losses, proposals, strict=True))[1]

    def repair(self, winner: Proposal, train: list[str]) -> None:
        def note() -> str:
            return f"{report.samples} captions, {len(report.cuts)} cuts, {report.before:.4f} -> {report.after:.4f}"

        with self.timed("repair of the best", note):
            _, report = repair(self.encoder, winner, train[: self.args.repair_captions])


def run_depth(depth: int, args: argparse.Namespace) -> list[tuple]:
    """The rows of one depth."""
    bench = Bench(args)
    train, validation = bench.captions("train"), bench.captions("validation")[: args.pairs]
    start = time.perf_counter()
    encoder = bench.fresh_clip(width=args.width, num_hidden_layers=depth, num_attention_heads=args.heads)
    made = time.perf_counter() - start
    run = Run(encoder, args)
    run.rows.append((depth, "model", made, made, peak_mib(), f"{encoder.num_parameters() / 1e6:.1f} M parameters"))
    rows = run.go(train, validation)
    rows.append((depth, "all", *(sum(row[place] for row in rows) for place in (2, 3)), peak_mib(), ""))
    return rows


def draw_growth(rows: list[tuple], path: Path) -> None:
    """Seconds of each stage, and peak memory, against depth."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for stage in dict.fromkeys(row[1] for row in rows):
        points = [(row[0], row[2]) for row in rows if row[1] == stage]
        seconds.loglog(*zip(*points, strict=True), marker="o", label=stage, lw=3 if stage == "all" else 1)
    memory.loglog(*zip(*[(row[0], row[4]) for row in rows if row[1] == "all"], strict=True), marker="o")
    for axes, label in ((seconds, "seconds"), (memory, "peak memory (MiB)")):
        axes.set(xlabel="layers", ylabel=label)
        axes.grid(alpha=0.3)
    seconds.legend(fontsize="small", frameon=False)
    plots.save(figure, path, dpi=150)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Analysis, search and repair of towers of any depth.")
    add = parser.add_argument
    add("--depths", type=bounded(int, 2), nargs="+", default=[12, 48, 192, 1000], help="default: 12 48 192 1000")
    add("--width", **whole_number(64, "of a hidden state"))
    add("--heads", **whole_number(2, "of attention"))
    add("--captions", type=bounded(int, SVCCA_BATCH), default=9600, help="for SVCCA (default: 9600)")
    add("--proposals", **whole_number(3, "verified"))
    add("--pairs", **whole_number(250, "captions of validation"))
    add("--repair_captions", **whole_number(300, "captions for repairs", 20))
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to run (default: all)")
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not {"fine", "repair"}.isdisjoint(args.stages) and "coarse" not in args.stages:
        parser.error("--stages fine and repair take what coarse proposes: give it too")
    bench, rows = Bench(args), []  # before the runs, so that the record has their seconds
    for depth in args.depths:
        rows += in_own_process(run_depth, depth, args)
    if args.out:
        draw_growth(rows, args.out.with_suffix(".png"))
    bench.write(rows=[dict(zip(HEADERS, row, strict=True)) for row in rows])
    print(format_table(rows, HEADERS, ("", "", ".1f", ".1f", ".0f", "")))


if __name__ == "__main__":
    main()
