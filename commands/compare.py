"""Every way to choose the layers under one evaluation: `compare_strategies.py` after its flags."""

import argparse
import logging
from math import comb
from pathlib import Path

import numpy as np

from commands.search import draw_repair_captions, make_fine_search
from common import analysis, data_flags, plots, tower_dir, write_array, write_json
from common.cli import caption_flags
from common.files import dataset_name, dataset_tag, shorten
from common.matrix_files import SAMPLE_FLAGS, MatrixSettings, read_matrix, warn_of_other_weights
from common.run import Record, set_up, set_up_logging, show_progress
from data import ImageCaptionPairs, load_pairs
from measures import KINDS
from models import Encoder, check_num_layers, load_encoder
from models.segment_maps import MAP_CAPTIONS, SegmentMaps
from search_strategy import rivals
from search_strategy.climb import Objective
from search_strategy.comparison_tables import panel_table, scores_table, searches_table, sizes_table
from search_strategy.fine import FineSearch
from search_strategy.proposals import Proposal, check_num_clip_layers, segments
from search_strategy.results import describe_figures, read_losses

logger = logging.getLogger("comflp")


def run(args: argparse.Namespace) -> None:
    """From the flags to the files under exp/<model>/ and printed tables."""
    check_num_clip_layers(args.num_clip_layers, args.num_layers)
    check_num_layers(args.num_layers, args.model, args.tower)
    folder = tower_dir(args.exp_dir, args.model, args.tower)
    device = set_up(args)
    record = Record(args, device)
    encoder = load_encoder(args.model, args.tower, device)
    pairs = {split: load_pairs(args.dataset, split, **data_flags(args)) for split in ("validation", "test")}
    record.note_data(**pairs)
    record.note(model=encoder.identity())
    losses = find_losses(args, encoder, pairs["validation"], record) if args.losses else None
    maps = None
    if args.repair:
        captions = draw_repair_captions(args, encoder, record)[:MAP_CAPTIONS]
        maps = SegmentMaps(encoder, captions, batch_size=args.text_batch_size, progress=show_progress())
    fine, test = make_searches(args, encoder, pairs, folder, maps)
    scratch = {
        path: make_searches(args, load_encoder(str(path), args.tower, device), pairs, folder) for path in args.scratch
    }
    path = name_comparison(args, folder, f"{args.num_layers}to{args.num_layers - args.num_clip_layers}")
    set_up_logging(path.with_suffix(".log"))  # all input is there: from here on, files are written
    draws = find_matrices(args, encoder, folder, record)
    compare(args, fine, test, scratch, draws, losses, record, path)
    if args.all_k:
        path = name_comparison(args, folder, f"{args.num_layers}_all_k")
        sizes = compare_sizes(args, fine, test, draws[0]["dc"])
        write_json(path, {"sizes": sizes, "record": record.content()})
        plots.quality_curve(sizes, path.with_suffix(".png"))
        print(f"\n{sizes_table(sizes)}")


def name_comparison(args: argparse.Namespace, folder: Path, sizes: str) -> Path:
    """`compare_clip<sizes>[_<data set>][_max<pairs>][_left_out].json`."""
    parts = [f"compare_clip{sizes}", dataset_tag(args.dataset), f"max{args.max_pairs}" if args.max_pairs else ""]
    parts += [] if args.repair else ["left_out"]
    return folder / f"{shorten('_'.join(filter(None, parts)))}.json"


def find_losses(
    args: argparse.Namespace, encoder: Encoder, validation: ImageCaptionPairs, record: Record
) -> dict[Proposal, float]:
    """The losses of all subsets from the file of an earlier comparison of the same weights, pairs and ways."""
    flags = ("num_layers", "num_clip_layers", "loss_batch_size", "image_column", "target_column", "repair")
    flags += ("seed",) if args.repair else ()  # which draws the captions of the maps
    data = {name: validation.identity().get(name) for name in ("captions", "images", "targets", "captions_sha256")}
    made_of = {"model": {"weights_sha256": encoder.identity()["weights_sha256"]}, "validation": data}
    made_of["flags"] = {name: getattr(args, name) for name in flags}
    losses, earlier = read_losses(args.losses, made_of)
    measured = earlier.get("losses_of", earlier)  # where the file took them from another one, that
    facts = ("date", "commit", "layer_calls_all_subsets", "pairs")
    record.note(losses_of={name: measured[name] for name in facts if name in measured})
    return losses


Searches = tuple[FineSearch, FineSearch]


def make_searches(
    args: argparse.Namespace,
    encoder: Encoder,
    pairs: dict[str, ImageCaptionPairs],
    folder: Path,
    maps: SegmentMaps | None = None,
) -> Searches:
    """By the loss on validation; by R@10 on test, so that there is a value of it for every pair, at the same scale."""
    fine = make_fine_search(args, encoder, pairs["validation"], folder, maps=maps)
    options = {"objective": "recall", "logit_scale": fine.task.logit_scale, "maps": maps}
    return fine, make_fine_search(args, encoder, pairs["test"], folder, **options)


def find_matrices(
    args: argparse.Namespace, encoder: Encoder, folder: Path, record: Record
) -> list[dict[str, np.ndarray]]:
    """The matrix of every measure for each draw: read where it is there, made and written where it is not."""
    common = {name: getattr(args, name) for name in SAMPLE_FLAGS}
    draws, identity, samples = [], encoder.identity(), None
    for seed in range(args.seed, args.seed + args.draws):
        settings = [MatrixSettings(name, seed=seed, **common) for name in KINDS]
        missing = [setting for setting in settings if not setting.path(folder).exists()]
        if missing and samples is None:
            needed = max(setting.num_captions for setting in settings)  # of all draws, each a part of the same rows
            # of all captions, whatever --max_pairs: the matrices are those of the analysis scripts
            flags = caption_flags(args, needed) | ({} if args.streaming else {"max_pairs": None})
            samples = encoder.samples(load_pairs(args.dataset, "train", **flags))
            if len(samples) < needed:
                logger.warning("train has %d captions: matrices of fewer than usual, and draws overlap", len(samples))
        if samples is not None:
            settings = [setting.within(len(samples)) for setting in settings]
            missing = [setting for setting in settings if not setting.path(folder).exists()]
        with record.timed("matrices"):
            made = analysis.measure_several(encoder, samples, missing, record) if missing else []
        for setting, matrix in zip(missing, made, strict=True):
            write_array(setting.path(folder), matrix)
            facts = {"model": identity, "dataset": dataset_name(args.dataset)}
            write_json(setting.path(folder).with_suffix(".json"), record.content() | facts)
        with record.warnings():
            for setting in settings:
                warn_of_other_weights(setting, folder, identity)
        read = (read_matrix(setting, folder, args.num_layers, args.model) for setting in settings)
        draws.append(dict(zip(KINDS, read, strict=True)))
    return draws


def compare(
    args: argparse.Namespace,
    fine: FineSearch,
    test: FineSearch,
    scratch: dict[Path, Searches],
    draws: list[dict[str, np.ndarray]],
    losses: dict[Proposal, float] | None,
    record: Record,
    path: Path,
) -> None:
    """The panel on validation, with the figures on test, in a file, a picture and tables."""
    truth = rivals.AllSubsets(losses) if losses else find_truth(args, fine, record)

    def objective(proposals: list[Proposal]) -> list[float]:
        known = truth.objective if truth else {}
        rest = [proposal for proposal in proposals if proposal not in known]  # greedy search asks for other sizes
        known = known | dict(zip(rest, fine.objectives(rest), strict=True))
        return [known[proposal] for proposal in proposals]

    outcomes = run_panel(args, objective, draws[0])
    rows = [describe_outcome(outcome, truth, fine, test) for outcome in outcomes]
    if fine.maps:
        plain = fine.without_maps(), test.without_maps()
        for row, outcome in zip(rows, outcomes, strict=True):
            row["left_out"] = describe_both(*plain, outcome.proposal)
    own = [number for number, row in enumerate(rows) if row["strategy"].startswith(rivals.OURS)]
    ours = min(own, key=lambda number: rows[number]["task_loss"])
    reference = test.evaluate([outcomes[ours].proposal])[0].values
    of_test = [test.evaluate([outcome.proposal])[0].values for outcome in outcomes]
    for model, searches in scratch.items():
        rows.append(describe_scratch(model, truth, *searches))
        of_test.append(searches[1].full_model().values)
    for row, values in zip(rows, of_test, strict=True):  # minus R@10: smaller is better
        row["to_ours"] = rivals.compare_pairs(-values, -reference) if row is not rows[ours] else None
    rows.sort(key=lambda row: row["task_loss"])
    judged, found = [], []
    if truth:
        judged = rivals.judge_scores(draws, truth)
        found = rivals.judge_searches(draws, args.num_clip_layers, truth, args.refine)
    full = describe_both(fine, test, ())
    content = {"full_model": full, "strategies": rows, "coarse_scores": judged, "default_search": found}
    if truth:  # in the notation of --clip_layers: 924 lines at 12 to 6
        content["all_subsets"] = {",".join(map(str, dropped)): loss for dropped, loss in truth.objective.items()}
    write_json(path, content | {"record": record.content()})
    plots.strategy_panel(rows, judged, truth.sorted if truth else None, full["task_loss"], path.with_suffix(".png"))
    tables = [panel_table(rows, full["test_recall_at_10"])]
    tables += [scores_table(judged), searches_table(found)] if truth else []
    print("\n\n".join(tables))


def find_truth(args: argparse.Namespace, fine: FineSearch, record: Record) -> rivals.AllSubsets | None:
    """Every subset, evaluated, where there are at most `--max_subsets`."""
    if comb(args.num_layers, args.num_clip_layers) > args.max_subsets:
        return None
    subsets, before = rivals.all_subsets(args.num_layers, args.num_clip_layers), fine.layer_calls
    with record.timed("all_subsets"):
        truth = rivals.AllSubsets(dict(zip(subsets, fine.objectives(subsets), strict=True)))
    calls = fine.layer_calls - before
    logger.info("all %d subsets: %d layer calls a batch", len(subsets), calls)
    record.note(layer_calls_all_subsets=calls, num_subsets=len(subsets), pairs=fine.num_samples)
    return truth


def run_panel(args: argparse.Namespace, objective: Objective, matrices: dict[str, np.ndarray]) -> list[rivals.Outcome]:
    outcomes = []
    for name, choose in rivals.strategies(matrices, args.num_clip_layers, args.refine).items():
        outcomes.append(rivals.run_strategy(name, choose, objective, args.num_layers))
        value = objective([outcomes[-1].proposal])[0]
        logger.info("%s: %.4f after %d layer calls", name, value, outcomes[-1].costs["layer_calls"])
    sizes = (args.num_layers, args.num_clip_layers, args.refine, args.num_random)
    return outcomes + rivals.random_rivals(objective, *sizes, np.random.default_rng(args.seed))


def describe_outcome(
    outcome: rivals.Outcome, truth: rivals.AllSubsets | None, fine: FineSearch, test: FineSearch
) -> dict:
    """One row of the comparison as it is written; of a draw also `runs`: mean and standard deviation over its runs."""
    figures = describe_both(fine, test, outcome.proposal)
    row = {"strategy": outcome.strategy, "segments": segments(outcome.proposal), **figures, **outcome.costs}
    # by the losses that were searched: those of a file may differ from `task_loss` in their last digits
    row |= describe_place(truth.objective[outcome.proposal] if truth else None, truth)
    if outcome.runs:
        losses = (truth or fine).objectives([run.proposal for run in outcome.runs])
        of_runs = {"task_loss": losses, "layer_calls": [run.costs["layer_calls"] for run in outcome.runs]}
        of_runs |= {"rank": [truth.rank(loss) for loss in losses]} if truth else {}
        row["runs"] = {name: (float(np.mean(values)), float(np.std(values))) for name, values in of_runs.items()}
    return row


def describe_scratch(model: Path, truth: rivals.AllSubsets | None, fine: FineSearch, test: FineSearch) -> dict:
    """The same of a model trained from scratch: nothing is dropped, nothing searched; losses at its own best scale."""
    figures = describe_both(fine, test, ())
    costs = {"proposals_evaluated": 0, "layer_calls": 0, "layer_calls_unshared": 0}
    name = f"from scratch, {fine.encoder.num_layers} layers ({model.name})"
    return {"strategy": name, "segments": None, **figures, **costs, **describe_place(figures["task_loss"], truth)}


def describe_place(loss: float | None, truth: rivals.AllSubsets | None) -> dict:
    return {"rank": truth.rank(loss) if truth else None, "regret": float(truth.regret(loss)) if truth else None}


def describe_both(fine: FineSearch, test: FineSearch, proposal: Proposal) -> dict:
    """Figures of validation; those of test, with `test_recall_at_10` the mean of both directions."""
    of_test = test.evaluate([proposal])[0]
    figures = describe_figures(of_test) | {"recall_at_10": -of_test.objective}
    return describe_figures(fine.evaluate([proposal])[0]) | {f"test_{name}": value for name, value in figures.items()}


def compare_sizes(args: argparse.Namespace, fine: FineSearch, test: FineSearch, matrix: np.ndarray) -> list[dict]:
    """The curve of quality against layers kept, with the figures on validation and test."""
    options = {"max_subsets": args.max_subsets, "refine_rounds": args.refine}
    found = rivals.best_of_every_size(fine.objectives, matrix, **options)
    rows = []
    for row in [{"num_clip_layers": 0, "dropped_layers": (), "all_known": True, "nested": True}, *found]:
        proposal = row["dropped_layers"]
        place = {"segments": segments(proposal), "layers_kept": args.num_layers - row["num_clip_layers"]}
        rows.append(row | place | describe_both(fine, test, proposal))
    return rows
