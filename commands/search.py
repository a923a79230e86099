"""Coarse search over a matrix, then fine search of its proposals: `search_prune_then_verify_mix.py` after its flags."""

import argparse
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np

from common import Record, data_flags, format_table, is_main_process, set_up, set_up_logging, show_progress, tower_dir
from common.cli import caption_flags
from common.matrix_files import MatrixSettings, read_matrix, warn_of_other_captions, warn_of_other_weights
from common.matrix_flags import searched_matrices
from common.plots import heat_map
from data import ImageCaptionPairs, load_pairs
from measures.combine import combine
from models import Encoder, check_num_layers, load_encoder
from models.repair import REPAIR_CAPTIONS, draw_captions, repair
from models.segment_maps import MAP_CAPTIONS, SegmentMaps
from search_strategy import results
from search_strategy.coarse import coarse_search, missed_by
from search_strategy.defaults import BEST_SHOWN
from search_strategy.fine import FineSearch
from search_strategy.proposals import Proposal, check_num_clip_layers, random_proposals, segments
from search_strategy.verify import ScoredProposals, Verification, propose, rank_correlation, verify
from tasks.distance import Distance
from tasks.retrieval import RECALL_AT

logger = logging.getLogger("comflp")

MAX_LAYERS_TO_CHECK = 200  # up to here the exact search takes a moment, so the log can say what another mode missed
FEWEST_PAIRS = 100  # of validation; below, one pair is more than a percent of recall
FEWEST_RANKED = 10  # below, a rank correlation of 0.6 comes by chance once in twenty times
SCORE_FORMAT = ".6f"  # biased DC of few samples differs in the fourth decimal and later


def run(args: argparse.Namespace) -> None:
    """From the flags to the files under exp/<model>/ and a printed table."""
    check_num_clip_layers(args.num_clip_layers, args.num_layers)
    if args.refit > 1 and not args.repair:
        raise ValueError("--refit repairs: leave out --repair false")
    folder = tower_dir(args.exp_dir, args.model, args.tower)
    check_num_layers(args.num_layers, args.model, args.tower)
    settings = searched_matrices(args)
    matrices = [read_matrix(of_matrix, folder, args.num_layers, args.model) for of_matrix in settings]
    matrix = combine(matrices) if args.combine else matrices[0] if matrices else None
    tags = [of_matrix.tag for of_matrix in settings]
    result = name_result(args, tags, folder)
    device = set_up(args)
    record = Record(args, device)
    fine, captions = (None, []) if args.coarse_search_only else prepare(args, settings, device, folder, record)
    set_up_logging(result.with_suffix(".log"))  # all input is there: from here on, files are written
    generator = np.random.default_rng(args.seed)
    with record.timed("coarse"):
        scored = choose_proposals(args, matrix, generator)
    log_missed(args, matrix)
    verification, rows = None, results.coarse_rows(scored, args.num_layers)
    if fine is not None:
        starts = [proposal for proposal, _ in scored]
        with record.timed("fine"):
            verification = verify(fine, starts, use_race=args.race, refine_rounds=args.refine, generator=generator)
        rows = results.verified_rows(verification, scored, matrix, args.num_layers, published_score(args))
        correlation = rank_correlation(scored, verification.ranked)
        record.note(**verification.facts, rank_correlation=correlation)
        log_facts(verification.facts, correlation, len(scored))
    if not is_main_process():
        return
    best = rows[: args.refit] if captions else []
    if best:
        with record.timed("repair"):
            for row in best:
                row["refitted"] = refit(fine, row["dropped_layers"], captions, args.text_batch_size)
    winner = min(best, key=lambda row: row["refitted"]["objective"], default=rows[0])
    asked = describe_request(args, tags) | {"repair": bool(captions)}
    results.write_result(result, asked, winner, rows, verification.full_model if verification else None, record)
    if matrix is not None:
        title = f"{args.select_measure}: {args.num_layers} to {args.num_layers - args.num_clip_layers} layers"
        heat_map(matrix, result.with_suffix(".png"), title, segments=winner["segments"])
    print_table(rows, verification, args.objective)
    for row in best:
        print_refitted(row, args.objective)
    print(f"winner: drop {winner['segments']}, keep {winner['kept_layers']}; written to {result}")


def name_result(args: argparse.Namespace, tags: list[str], folder: Path) -> Path:
    """The result's path, by the names of its matrices and the flags that change it."""
    names = ("seed", "dataset", "caption_column", "max_pairs", "repair", "coarse_search_only", *results.CHOICES)
    tag = results.result_tag(args.select_measure, tags, **{name: getattr(args, name) for name in names})
    return results.result_path(folder, args.num_layers, args.num_clip_layers, args.search_mode, tag)


def describe_request(args: argparse.Namespace, tags: list[str]) -> dict:
    """What was searched, as the result says it."""
    numbers = {name: getattr(args, name) for name in ("num_layers", "num_clip_layers", "search_mode")}
    files = [f"{tag}.npy" for tag in tags]
    matrix = files[0] if len(files) == 1 else files or None  # one, those that were combined, or none
    return numbers | {"measure": args.select_measure, "matrix": matrix, "objective": args.objective}


def prepare(
    args: argparse.Namespace, settings: list[MatrixSettings], device: str, folder: Path, record: Record
) -> tuple[FineSearch, list[str]]:
    """Model, validation pairs, their image embeddings and the maps of all segments, ready to evaluate proposals.

    Beside it the captions that the winner is repaired with; none without repair.
    """
    encoder = load_encoder(args.model, args.tower, device)
    images = args.tower == "vision" or args.objective != Distance.objective
    pairs = load_pairs(args.dataset, "validation", images=images, **data_flags(args))
    identity = encoder.identity()
    record.note(model=identity)
    record.note_data(data=pairs)
    with record.warnings():
        for of_matrix in settings:
            warn_of_other_weights(of_matrix, folder, identity)
    maps, captions = None, []
    if args.repair:
        captions = draw_repair_captions(args, encoder, record)
        with record.warnings():
            for of_matrix in settings:
                warn_of_other_captions(of_matrix, folder, record.content()["train"], encoder.name)
        with record.timed("maps"):
            maps = SegmentMaps(
                encoder, captions[:MAP_CAPTIONS], batch_size=args.text_batch_size, progress=show_progress()
            )
    with record.timed("image_embeddings"):
        fine = make_fine_search(args, encoder, pairs, folder, objective=args.objective, maps=maps)
    if fine.num_samples < FEWEST_PAIRS:
        logger.warning("%d pairs of validation are few: much of what tells proposals apart is chance", fine.num_samples)
    return fine, captions


def refit(fine: FineSearch, proposal: Proposal, captions: list[str], batch_size: int | None) -> dict:
    """A proposal repaired cut by cut, and the projection; its figures and what became of each cut."""
    model, report = repair(fine.encoder, proposal, captions, batch_size=batch_size, progress=fine.progress)
    scores = fine.task.score(model.embeddings(fine.samples))
    for cut in report.cuts:
        logger.info("repair of %s", cut)
    return {
        "objective": scores.values.mean().item(),
        **results.describe_figures(scores),
        "repair": asdict(report),
    }


def log_missed(args: argparse.Namespace, matrix: np.ndarray | None) -> None:
    """Say what beam or greedy missed by the published score, where the exact answer is quick to get."""
    if matrix is None or args.search_mode not in ("beam", "greedy") or args.num_layers > MAX_LAYERS_TO_CHECK:
        return
    options = {"num_proposals": args.topk_num, "score": published_score(args)}
    scored = coarse_search(matrix, args.num_clip_layers, mode=args.search_mode, beam_size=args.beam_size, **options)
    exact = coarse_search(matrix, args.num_clip_layers, mode="exact", **options | {"num_proposals": len(scored)})
    missed = missed_by(scored, exact)
    best = f"; the best of them: {segments(missed[0][0])} with {missed[0][1]:{SCORE_FORMAT}}" if missed else ""
    logger.info("%s missed %d of the true %d best%s", args.search_mode, len(missed), len(scored), best)


def print_table(proposals: list[dict], verification: Verification | None, objective: str) -> None:
    """The best proposals, the full model first; recall in percent (t>i: text to image)."""
    shown = proposals[:BEST_SHOWN]
    if verification is None:
        rows = [(p["rank"], p["segments"], p["coarse_score"]) for p in shown]
        print(format_table(rows, ("rank", "dropped layers", "coarse score"), ("", "", SCORE_FORMAT)))
        return
    full = results.describe_evaluation(verification.full_model)
    models = [full, *shown]
    columns = {  # heading: format, values
        "rank": ("", ["full", *(p["rank"] for p in shown)]),
        "dropped layers": ("", [[], *(p["segments"] for p in shown)]),
        "coarse score": (SCORE_FORMAT, [None, *(p["coarse_score"] for p in shown)]),
    }
    if objective != "task_loss":  # which has a column anyway
        columns[objective] = (".4f", [model["objective"] for model in models])
    columns["task loss"] = (".4f", [model["task_loss"] for model in models])
    if verification.left_out:
        columns["left out"] = (".4f", [None, *(p["left_out"]["objective"] for p in shown)])
    recalls = zip(*(_percent(model["recall"]) for model in models), strict=True)
    headings = [f"{way} R@{k}" for way in ("t>i", "i>t") for k in RECALL_AT]
    columns |= {heading: (".1f", values) for heading, values in zip(headings, recalls, strict=True)}
    notes = [p["found_by"] + (", within noise" if p["within_noise"] else "") for p in shown]
    columns["found by"] = ("", ["", *notes])
    columns = {heading: column for heading, column in columns.items() if any(value is not None for value in column[1])}
    formats, values = zip(*columns.values(), strict=True)
    print(format_table(list(zip(*values, strict=True)), list(columns), formats))


def _percent(recall: dict[str, float] | None) -> list[float | None]:
    return [None] * 2 * len(RECALL_AT) if recall is None else [100 * value for value in recall.values()]


def print_refitted(row: dict, objective: str) -> None:
    """A proposal without repair, repaired as the search had it, and as it is deployed."""
    ways = ("left out", row["left_out"]), ("repaired by one pass", row), ("repaired cut by cut", row["refitted"])
    values = ", ".join(f"{way} {found['objective']:.4f}" for way, found in ways)
    print(f"{objective} of rank {row['rank']}: {values}")
    if row["refitted"]["objective"] > row["left_out"]["objective"]:
        logger.warning(
            "rank %d is worse for its repair: give it more captions of train, or pass --repair false", row["rank"]
        )


def choose_proposals(
    args: argparse.Namespace, matrix: np.ndarray | None, generator: np.random.Generator
) -> ScoredProposals:
    """The best proposals with their coarse scores; random ones without a score where there is no matrix."""
    if matrix is None:
        drawn = random_proposals(args.num_layers, args.num_clip_layers, args.topk_num, generator)
        return [(proposal, None) for proposal in drawn]
    score = published_score(args) if args.coarse_search_only else args.score
    return propose(
        matrix,
        args.num_clip_layers,
        score=score,
        mode=args.search_mode,
        num_proposals=args.topk_num,
        beam_size=args.beam_size,
    )


def published_score(args: argparse.Namespace) -> str:
    """The score of the ranking that is shown: of `both` that of the paper."""
    return "mean" if args.score == "both" else args.score


def log_facts(facts: dict, correlation: float | None, num_scored: int) -> None:
    logger.info(
        "%d proposals evaluated on %d pairs with %d layer calls a batch, %d without shared prefixes; "
        "%d rounds of refinement",
        *(
            facts[name]
            for name in ("proposals_evaluated", "pairs", "layer_calls", "layer_calls_unshared", "refine_rounds")
        ),
    )
    text = "undefined" if correlation is None else f"{correlation:.2f}"
    few = ", too few to mean much" if num_scored < FEWEST_RANKED else ""
    logger.info("Spearman of coarse score and objective over the %d coarse proposals%s: %s", num_scored, few, text)


def make_fine_search(
    args: argparse.Namespace, encoder: Encoder, pairs: ImageCaptionPairs, folder: Path, **options: object
) -> FineSearch:
    """On these pairs, with the flags; `options`: more of those of `FineSearch.from_pairs`."""
    sizes = {"loss_batch_size": args.loss_batch_size, "batch_size": args.text_batch_size}
    return FineSearch.from_pairs(encoder, pairs, folder / "cache", progress=show_progress(), **sizes, **options)


def draw_repair_captions(args: argparse.Namespace, encoder: Encoder, record: Record) -> list:
    """Samples of train, of validation where there is none, that repairs are fitted to; the first are a draw too."""
    with record.warnings():
        pairs = load_pairs(args.dataset, "train", **caption_flags(args, REPAIR_CAPTIONS))
        record.note_data(train=pairs)
        return encoder.readable(draw_captions(encoder.samples(pairs), args.seed), None, args.dataset)
