"""The result of a search as a file: its name, its rows, writing it, the newest one, and the winner in it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import DEFAULT_DATASET, DEFAULT_MODEL, Record, safe_name, write_json
from common.matrix_files import LONGEST_TAG
from search_strategy.coarse import coarse_score
from search_strategy.fine import Evaluation
from search_strategy.proposals import Proposal, kept_layers, segments
from search_strategy.verify import Scored, Verification
from tasks.base import Scores

NOISE = 0.05  # a proposal at least as good as the winner in more than this share of resamples is within noise of it


def result_path(folder: Path, num_layers: int, num_clip_layers: int, search_mode: str, tag: str) -> Path:
    """`clip<L>to<L-k>_<search_mode>_<tag>.json`."""
    return folder / f"clip{num_layers}to{num_layers - num_clip_layers}_{search_mode}_{tag}.json"


def result_tag(
    measure: str,
    matrix_tags: Sequence[str],
    *,
    score: str,
    objective: str,
    seed: int,
    dataset: str,
    max_pairs: int | None,
    repair: bool,
) -> str:
    """The end of the name: the matrix, and what is not at its default."""
    matrix = {"rand": f"rand_seed{seed}", "combine": "combine_" + "_".join(matrix_tags)}
    parts = [matrix.get(measure) or matrix_tags[0]]
    parts += [f"score_{score}"] if score != "mean" else []
    parts += [objective] if objective != "task_loss" else []
    parts += [] if repair else ["left_out"]
    parts += [safe_name(dataset)] if measure == "rand" and dataset != DEFAULT_DATASET else []
    parts += [f"max{max_pairs}"] if max_pairs else []
    tag = "_".join(parts)
    if len(tag) <= LONGEST_TAG:
        return tag
    return f"{tag[:LONGEST_TAG]}_{hashlib.sha256(tag.encode()).hexdigest()[:8]}"


def coarse_rows(scored: Scored, num_layers: int) -> list[dict]:
    """The `proposals` of a result after the coarse search alone."""
    return [
        describe_layers(proposal, num_layers)
        | {"rank": rank, "coarse_score": score, "task_loss": None, "recall": None, "found_by": "coarse"}
        for rank, (proposal, score) in enumerate(scored, start=1)
    ]


def verified_rows(
    verification: Verification, scored: Scored, matrix: np.ndarray | None, num_layers: int, score: str
) -> list[dict]:
    """The `proposals` of a result, ranked by the objective; with `left_out`, the figures without repair, where there is one."""
    proposed, rows = dict(scored), []
    left_out = verification.left_out or [None] * len(verification.ranked)
    ranked = zip(verification.ranked, verification.share_not_worse, left_out, strict=True)
    for rank, (evaluation, share, without) in enumerate(ranked, start=1):
        proposal = evaluation.dropped_layers
        found = {
            "rank": rank,
            "coarse_score": None if matrix is None else coarse_score(matrix, proposal, score),
            **describe_evaluation(evaluation),
            **({} if without is None else {"left_out": describe_evaluation(without)}),
            "found_by": "coarse" if proposal in proposed else "refine",
            "share_not_worse": share,
            "within_noise": rank > 1 and share > NOISE,
        }
        rows.append(describe_layers(proposal, num_layers) | found)
    return rows


def describe_layers(proposal: Proposal, num_layers: int) -> dict:
    return {
        "segments": segments(proposal),
        "dropped_layers": list(proposal),
        "kept_layers": list(kept_layers(proposal, num_layers)),
    }


def describe_evaluation(evaluation: Evaluation) -> dict:
    return {"objective": evaluation.objective, **describe_figures(evaluation)}


def describe_figures(evaluation: Evaluation | Scores) -> dict:
    """`task_loss` and `recall` as results have them; None where the task does not know them."""
    figures = evaluation.figures
    recall = {name: value for name, value in figures.items() if "_recall_at_" in name}
    return {"task_loss": figures.get("task_loss"), "recall": recall or None}


def write_result(path: Path, settings: dict, rows: list[dict], full_model: Evaluation | None, record: Record) -> None:
    """`settings`: what was asked for, `num_layers` and so on; `rows`: the proposals, best first."""
    full = None if full_model is None else describe_figures(full_model)
    found = {"full_model": full, "winner": rows[0], "proposals": rows}
    write_json(path, settings | found | {"record": record.content()})


def newest_result(folder: Path, model: str, num_layers: int, num_clip_layers: int) -> Path:
    """The result written last for these two numbers. Raises FileNotFoundError, with the command that makes one."""
    pattern = result_path(folder, num_layers, num_clip_layers, "*", "*")
    found = list(folder.glob(pattern.name))
    if not found:
        command = f"search_strategy/search_prune_then_verify_mix.py --num_layers {num_layers}"
        command += f" --num_clip_layers {num_clip_layers} --search_mode beam --select_measure dc"
        command += "" if Path(model).resolve() == DEFAULT_MODEL else f" --model {model}"
        raise FileNotFoundError(f"no search result: looked for {pattern}; run: python {command}; or pass --clip_layers")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def read_winner(path: Path) -> Proposal:
    """The layers dropped by the winner of a result. Raises ValueError where the file is not one."""
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8"))["winner"]["dropped_layers"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a search result with a winner and its dropped_layers ({error!r})"
        ) from error
