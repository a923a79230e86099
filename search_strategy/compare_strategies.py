"""The panel of rivals: every way to choose the layers under one evaluation, in one table and one picture.

    python compare_strategies.py --num_layers 12 --num_clip_layers 6
    python compare_strategies.py --num_layers 12 --num_clip_layers 6 --all_k true

Needs the matrices of all measures (the message says how to make those that are missing). Choices are made on
validation; the figures of `test` are a report. All choices, losses and ranks are of repaired proposals, with those left
out without repair beside them; with `--repair false` of these alone. Writes compare_clip<L>to<L-k>.json and .png under
exp/<model>/, and with `--all_k` compare_clip<L>_all_k.json and .png: the best proposal found for every number of
layers.
"""

import argparse
import logging
import sys
from dataclasses import asdict
from math import comb
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import (
    Record,
    add_common_flags,
    boolean,
    data_flags,
    format_table,
    positive_int,
    script,
    set_up,
    set_up_logging,
    tower_dir,
    write_json,
)
from common.matrix_files import MatrixSettings, read_matrix, warn_of_other_weights
from common.plots import quality_curve, strategy_panel
from data import load_pairs
from measures import KINDS
from models import check_num_layers, load_encoder
from models.segment_maps import CAPTIONS as MAP_CAPTIONS
from models.segment_maps import SegmentMaps
from search_strategy.fine import Evaluation, FineSearch
from search_strategy.fine_flags import add_fine_flags, add_size_flags, draw_repair_captions, make_fine_search
from search_strategy.proposals import Proposal, check_num_clip_layers, segments
from search_strategy.results import describe_figures
from search_strategy.rivals import (
    AllSubsets,
    Outcome,
    best_of_every_size,
    judge_scores,
    random_draws,
    run_strategy,
    strategies,
)

logger = logging.getLogger("comflp")

AT_10 = "text_to_image_recall_at_10"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare every way to choose the layers to drop.")
    add_size_flags(parser)
    add_fine_flags(parser)
    parser.add_argument("--all_k", type=boolean, default=False, help="the best proposal for every number of layers too")
    parser.add_argument(
        "--max_subsets", type=positive_int, default=5000, help="evaluate all subsets up to so many (default: 5000)"
    )
    parser.add_argument("--num_random", type=positive_int, default=20, help="random proposals drawn (default: 20)")
    add_common_flags(parser, streaming=True, tower=True, target_column=True)
    return parser


def default_settings(args: argparse.Namespace) -> dict[str, MatrixSettings]:
    """Of the matrix of every measure."""
    common = {name: getattr(args, name) for name in ("seed", "dataset", "caption_column", "streaming", "tower")}
    return {name: MatrixSettings(name, **common) for name in KINDS}


def read_matrices(args: argparse.Namespace, settings: dict[str, MatrixSettings], folder: Path) -> dict[str, np.ndarray]:
    """The matrix of every measure; the message names the commands for all that are missing."""
    missing = [s.command(args.model, args.exp_dir) for s in settings.values() if not s.path(folder).exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} matrices not found in {folder}; to make them, run: {' && '.join(missing)}"
        )
    return {name: read_matrix(s, folder, args.num_layers, args.model) for name, s in settings.items()}


def run_panel(args: argparse.Namespace, fine: FineSearch, matrices: dict[str, np.ndarray]) -> list[Outcome]:
    """Every strategy, best first."""
    panel = strategies(matrices, args.num_layers, args.num_clip_layers, args.seed, args.refine)
    outcomes = []
    for name, choose in panel.items():
        outcomes.append(run_strategy(name, choose, fine))
        logger.info("%s: %.4f after %d layer calls", name, outcomes[-1].evaluation.objective, outcomes[-1].layer_calls)
    outcomes += random_draws(fine, args.num_clip_layers, args.num_random, np.random.default_rng(args.seed))
    return sorted(outcomes, key=lambda outcome: outcome.evaluation.objective)


def describe(outcome: Outcome, truth: AllSubsets | None, fine: FineSearch, test: FineSearch) -> dict:
    """One row of the comparison as it is written."""
    proposal = outcome.evaluation.dropped_layers
    return {
        "strategy": outcome.strategy,
        "segments": segments(proposal),
        "rank": truth.rank(proposal) if truth else None,
        "regret": truth.regret(proposal) if truth else None,
        **describe_both(fine, test, proposal),
        **{name: value for name, value in asdict(outcome).items() if name not in ("strategy", "evaluation")},
    }


def describe_both(fine: FineSearch, test: FineSearch, proposal: Proposal) -> dict:
    return describe_figures(fine.evaluate([proposal])[0]) | describe_test(test.evaluate([proposal])[0])


def describe_test(evaluation: Evaluation) -> dict:
    return {f"test_{name}": value for name, value in describe_figures(evaluation).items()}


def print_panel(rows: list[dict], judged: list[dict], full_recall: float) -> None:
    """The strategies, best first, and how well coarse scores foretell the loss; `full_recall`: on test."""
    lines = [
        (r["strategy"], r["segments"], r["task_loss"], r["rank"], r["proposals_evaluated"], r["layer_calls"])
        + (r["layer_calls_unshared"], r["seconds"], 100 * r["test_recall"][AT_10] / full_recall)
        for r in rows
    ]
    headers = ["strategy", "dropped layers", "task loss", "rank", "proposals", "layer calls", "unshared", "seconds"]
    headers, formats = [*headers, "test R@10, % of full"], ["", "", ".4f", "", "", "", "", ".1f", ".1f"]
    if "left_out" in rows[0]:
        without = [row["left_out"] for row in rows]
        lines = [
            (*line, w["task_loss"], 100 * w["test_recall"][AT_10] / full_recall)
            for line, w in zip(lines, without, strict=True)
        ]
        headers, formats = [*headers, "left out: task loss", "test R@10, % of full"], [*formats, ".4f", ".1f"]
    print(format_table(lines, headers, formats))
    if judged:
        scores = [
            (j["measure"], j["score"], j["spearman"], *j["rank_of_best_within"].values(), j["regret_at_10"])
            for j in judged
        ]
        depths = [f"best of {depth}" for depth in judged[0]["rank_of_best_within"]]
        headers = ("measure", "score", "Spearman", *depths, "regret at 10")
        print(f"\n{format_table(scores, headers, (*['', '', '.2f'], *[''] * 4, '.4f'))}")


def compare_sizes(args: argparse.Namespace, fine: FineSearch, test: FineSearch, matrix: np.ndarray) -> list[dict]:
    """The curve of quality against layers kept, with the figures on validation and test."""
    found = best_of_every_size(fine, matrix, max_subsets=args.max_subsets, seed=args.seed, refine_rounds=args.refine)
    rows = []
    for row in [{"num_clip_layers": 0, "dropped_layers": (), "all_known": True, "nested": True}, *found]:
        proposal = row["dropped_layers"]
        place = {"segments": segments(proposal), "layers_kept": args.num_layers - row["num_clip_layers"]}
        figures = describe_figures(fine.evaluate([proposal])[0]) | describe_test(test.evaluate([proposal])[0])
        rows.append(row | place | figures)
    return rows


def print_sizes(sizes: list[dict]) -> None:
    lines = [
        (s["layers_kept"], s["segments"], s["task_loss"], 100 * s["recall"][AT_10], 100 * s["test_recall"][AT_10])
        + ("yes" if s["nested"] else "no",)
        for s in sizes
    ]
    headers = ("layers kept", "dropped layers", "task loss", "R@10", "test R@10", "nested")
    print(f"\n{format_table(lines, headers, ('', '', '.4f', '.1f', '.1f', ''))}")


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check_num_clip_layers(args.num_clip_layers, args.num_layers)
    check_num_layers(args.num_layers, args.model, args.tower)
    folder = tower_dir(args.exp_dir, args.model, args.tower)
    settings = default_settings(args)
    matrices = read_matrices(args, settings, folder)
    device = set_up(args)
    record = Record(args, device)
    encoder = load_encoder(args.model, args.tower, device)
    pairs = {split: load_pairs(args.dataset, split, **data_flags(args)) for split in ("validation", "test")}
    record.note_data(**pairs)
    maps = SegmentMaps(encoder, draw_repair_captions(args, encoder)[:MAP_CAPTIONS]) if args.repair else None
    fine = make_fine_search(args, encoder, pairs["validation"], folder, maps=maps)
    test = make_fine_search(args, encoder, pairs["test"], folder, maps=maps, logit_scale=fine.task.logit_scale)
    identity = encoder.identity()
    record.note(model=identity)
    with record.warnings():
        for of_measure in settings.values():
            warn_of_other_weights(of_measure, folder, identity)
    part = (f"_max{args.max_pairs}" if args.max_pairs else "") + ("" if args.repair else "_left_out")
    path = folder / f"compare_clip{args.num_layers}to{args.num_layers - args.num_clip_layers}{part}.json"
    set_up_logging(path.with_suffix(".log"))
    compare(args, fine, test, matrices, record, path)
    if args.all_k:
        path = folder / f"compare_clip{args.num_layers}_all_k{part}.json"
        sizes = compare_sizes(args, fine, test, matrices["dc"])
        write_json(path, {"sizes": sizes, "record": record.content()})
        quality_curve(sizes, path.with_suffix(".png"))
        print_sizes(sizes)


def compare(
    args: argparse.Namespace,
    fine: FineSearch,
    test: FineSearch,
    matrices: dict[str, np.ndarray],
    record: Record,
    path: Path,
) -> None:
    """The panel on validation, with the figures on test, in a file, a picture and a table."""
    truth = find_truth(args, fine, record)
    outcomes = run_panel(args, fine, matrices)
    rows = [describe(outcome, truth, fine, test) for outcome in outcomes]
    if fine.maps:
        plain = fine.without_maps(), test.without_maps()
        for row, outcome in zip(rows, outcomes, strict=True):
            row["left_out"] = describe_both(*plain, outcome.evaluation.dropped_layers)
    judged = judge_scores(matrices, args.num_clip_layers, truth) if truth else []
    full = describe_figures(fine.full_model()) | {"test_recall": describe_figures(test.full_model())["recall"]}
    content = {"full_model": full, "strategies": rows, "coarse_scores": judged, "record": record.content()}
    write_json(path, content)
    strategy_panel(rows, judged, truth.sorted if truth else None, full["task_loss"], path.with_suffix(".png"))
    print_panel(rows, judged, full["test_recall"][AT_10])


def find_truth(args: argparse.Namespace, fine: FineSearch, record: Record) -> AllSubsets | None:
    """Every subset, evaluated, where there are few enough."""
    if comb(args.num_layers, args.num_clip_layers) > args.max_subsets:
        return None
    everything = fine.without_memory()
    with record.timed("all_subsets"):
        truth = AllSubsets(everything, args.num_clip_layers)
    calls, number = everything.layer_calls, len(truth.objective)
    logger.info("all %d subsets: %d layer calls a batch", number, calls)
    record.note(layer_calls_all_subsets=calls, num_subsets=number, pairs=fine.num_samples)
    return truth


if __name__ == "__main__":
    main()
