"""The panel of rivals: every way to choose the layers under one evaluation, in one table and one picture.

    python compare_strategies.py --num_layers 12 --num_clip_layers 6
    python compare_strategies.py --num_layers 12 --num_clip_layers 6 --all_k true

Needs the matrices of all measures (the message says how to make those that are missing). Choices are made on validation;
the figures of `test` are a report. Writes compare_clip<L>to<L-k>.json and .png under exp/<model>/, and with `--all_k`
compare_clip<L>_all_k.json and .png: the best proposal found for every number of layers.
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
    bounded,
    data_flags,
    format_table,
    model_dir,
    positive_int,
    script,
    set_up,
    set_up_logging,
    show_progress,
    write_json,
)
from common.matrix_files import MATRICES, MatrixSettings, read_matrix, warn_of_other_weights
from common.plots import quality_curve, strategy_panel
from data import load_pairs
from models import check_num_layers, load_encoder
from search_strategy.comparison import (
    Outcome,
    Truth,
    best_of_every_size,
    judge_scores,
    random_draws,
    run_strategy,
    strategies,
)
from search_strategy.fine import Evaluation, FineSearch
from search_strategy.proposals import check_num_clip_layers, segments

logger = logging.getLogger("comflp")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare every way to choose the layers to drop.")
    parser.add_argument("--num_layers", type=positive_int, required=True, help="text layers of the model")
    parser.add_argument("--num_clip_layers", type=int, required=True, help="how many of them to drop")
    parser.add_argument("--all_k", type=boolean, default=False, help="the best proposal for every number of layers too")
    parser.add_argument(
        "--max_subsets", type=positive_int, default=5000, help="evaluate all subsets up to so many (default: 5000)"
    )
    parser.add_argument("--num_random", type=positive_int, default=20, help="random proposals drawn (default: 20)")
    parser.add_argument("--refine", type=bounded(int, 0), default=20, help="rounds of hill climbing (default: 20)")
    parser.add_argument(
        "--loss_batch_size", type=positive_int, default=250, help="pairs in a batch of the loss (default: 250)"
    )
    parser.add_argument(
        "--text_batch_size", type=positive_int, default=512, help="captions in a forward pass (default: 512)"
    )
    add_common_flags(parser, streaming=True)
    return parser


def default_settings(args: argparse.Namespace) -> dict[str, MatrixSettings]:
    """Of the matrix of every measure."""
    common = {name: getattr(args, name) for name in ("seed", "dataset", "caption_column", "streaming")}
    return {name: MatrixSettings(name, **common) for name in MATRICES}


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


def describe(outcome: Outcome, truth: Truth | None, test: Evaluation) -> dict:
    """One row of the comparison as it is written."""
    proposal = outcome.evaluation.dropped_layers
    return {
        "strategy": outcome.strategy,
        "segments": segments(proposal),
        "task_loss": outcome.evaluation.task_loss,
        "recall": outcome.evaluation.recall,
        "rank": truth.rank(proposal) if truth else None,
        "regret": truth.regret(proposal) if truth else None,
        "test_task_loss": test.task_loss,
        "test_recall": test.recall,
        **{name: value for name, value in asdict(outcome).items() if name not in ("strategy", "evaluation")},
    }


def print_panel(rows: list[dict], judged: list[dict], full_test: Evaluation) -> None:
    at_10 = "text_to_image_recall_at_10"
    table = [
        (r["strategy"], r["segments"], r["task_loss"], r["rank"], r["proposals_evaluated"], r["layer_calls"])
        + (r["layer_calls_unshared"], r["seconds"], 100 * r["test_recall"][at_10] / full_test.recall[at_10])
        for r in rows
    ]
    headers = ("strategy", "dropped layers", "task loss", "rank", "proposals", "layer calls", "unshared", "seconds")
    print(format_table(table, (*headers, "test R@10, % of full"), ("", "", ".4f", "", "", "", "", ".1f", ".1f")))
    if judged:
        scores = [
            (j["measure"], j["score"], j["spearman"], *j["rank_of_best_within"].values(), j["regret_at_10"])
            for j in judged
        ]
        depths = [f"best of {depth}" for depth in judged[0]["rank_of_best_within"]]
        print()
        print(
            format_table(
                scores, ("measure", "score", "Spearman", *depths, "regret at 10"), (*["", "", ".2f"], *[""] * 4, ".4f")
            )
        )


def compare_sizes(args: argparse.Namespace, fine: FineSearch, test: FineSearch, matrix: np.ndarray) -> list[dict]:
    """The curve of quality against layers kept, with the figures on validation and test."""
    found = best_of_every_size(fine, matrix, max_subsets=args.max_subsets, seed=args.seed, refine_rounds=args.refine)
    rows = []
    for row in [{"num_clip_layers": 0, "dropped_layers": (), "all_known": True, "nested": True}, *found]:
        on_validation, on_test = (search.evaluate([row["dropped_layers"]])[0] for search in (fine, test))
        figures = {"task_loss": on_validation.task_loss, "recall": on_validation.recall}
        figures |= {"test_task_loss": on_test.task_loss, "test_recall": on_test.recall}
        rows.append(
            row
            | {"segments": segments(row["dropped_layers"]), "layers_kept": args.num_layers - row["num_clip_layers"]}
            | figures
        )
    return rows


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check_num_clip_layers(args.num_clip_layers, args.num_layers)
    folder = model_dir(args.exp_dir, args.model)
    check_num_layers(args.num_layers, args.model)
    settings = default_settings(args)
    matrices = read_matrices(args, settings, folder)
    device = set_up(args)
    record = Record(args, device)
    clip = load_encoder(args.model, device=device)
    options = {"loss_batch_size": args.loss_batch_size, "batch_size": args.text_batch_size}
    options["progress"] = show_progress()
    pairs = {split: load_pairs(args.dataset, split, **data_flags(args)) for split in ("validation", "test")}
    record.note_data(**pairs)
    fine, test = (FineSearch.from_pairs(clip, of_split, folder / "cache", **options) for of_split in pairs.values())
    identity = clip.identity()
    record.note(model=identity)
    with record.warnings():
        for one in settings.values():
            warn_of_other_weights(one, folder, identity)
    name = f"compare_clip{args.num_layers}to{args.num_layers - args.num_clip_layers}"
    name += f"_max{args.max_pairs}" if args.max_pairs else ""
    set_up_logging(folder / f"{name}.log")
    truth = None
    if comb(args.num_layers, args.num_clip_layers) <= args.max_subsets:
        everything = fine.restarted()
        with record.timed("all_subsets"):
            truth = Truth(everything, args.num_clip_layers)
        logger.info("all %d subsets: %d layer calls a batch", len(truth.objective), everything.layer_calls)
        record.note(
            layer_calls_all_subsets=everything.layer_calls, num_subsets=len(truth.objective), pairs=fine.num_captions
        )
    outcomes = run_panel(args, fine, matrices)
    rows = [describe(outcome, truth, test.evaluate([outcome.evaluation.dropped_layers])[0]) for outcome in outcomes]
    judged = judge_scores(matrices, args.num_clip_layers, truth) if truth else []
    full, full_test = fine.full_model(), test.full_model()
    content = {"full_model": {"task_loss": full.task_loss, "recall": full.recall, "test_recall": full_test.recall}}
    content |= {"strategies": rows, "coarse_scores": judged, "record": record.content()}
    write_json(folder / f"{name}.json", content)
    strategy_panel(rows, judged, truth.sorted if truth else None, full.task_loss, folder / f"{name}.png")
    print_panel(rows, judged, full_test)
    if args.all_k:
        sizes = compare_sizes(args, fine, test, matrices["dc"])
        path = folder / f"compare_clip{args.num_layers}_all_k.json"
        write_json(path, {"sizes": sizes, "record": record.content()})
        quality_curve(sizes, path.with_suffix(".png"))
        table = [
            (
                s["layers_kept"],
                s["segments"],
                s["task_loss"],
                *(100 * s[r]["text_to_image_recall_at_10"] for r in ("recall", "test_recall")),
                "yes" if s["nested"] else "no",
            )
            for s in sizes
        ]
        print()
        print(
            format_table(
                table,
                ("layers kept", "dropped layers", "task loss", "R@10", "test R@10", "nested"),
                ("", "", ".4f", ".1f", ".1f", ""),
            )
        )


if __name__ == "__main__":
    main()
