"""Files of results: of a search its name, rows and winner, and the newest; of a comparison all losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import comb
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import Record, files, write_json
from common.forms import read_form
from search_strategy.coarse import BEAM_SIZE, coarse_score
from search_strategy.defaults import NUM_PROPOSALS, OBJECTIVE, REFINE_ROUNDS, REFIT, SCORE
from search_strategy.fine import Evaluation
from search_strategy.proposals import Proposal, check_dropped_layers, kept_layers, parse_clip_layers, segments
from search_strategy.verify import ScoredProposals, Verification
from tasks.base import LOSS_BATCH_SIZE, Scores
from tasks.distance import Distance

NOISE = 0.05  # a proposal whose p-value is greater is within noise of the winner
CHOICES = {  # flags of a search that are in the name of its result, and their defaults
    "score": SCORE,
    "objective": OBJECTIVE,
    "loss_batch_size": LOSS_BATCH_SIZE,
    "topk_num": NUM_PROPOSALS,
    "beam_size": BEAM_SIZE,
    "refine": REFINE_ROUNDS,
    "refit": REFIT,
    "race": False,
    "image_column": None,
    "target_column": None,
}
COARSE_CHOICES = ("score", "topk_num", "beam_size")  # those that change what the coarse search finds


def result_path(folder: Path, num_layers: int, num_clip_layers: int, search_mode: str, tag: str) -> Path:
    """`clip<L>to<L-k>_<search_mode>_<tag>.json`."""
    return folder / f"clip{num_layers}to{num_layers - num_clip_layers}_{search_mode}_{tag}.json"


def result_tag(
    measure: str,
    matrix_tags: Sequence[str],
    *,
    seed: int,
    dataset: str,
    caption_column: str | None = None,
    max_pairs: int | None,
    repair: bool,
    coarse_search_only: bool = False,
    **choices: object,
) -> str:
    """The end of the name: the matrix, and of all these what is not at its default, so that no result replaces one for
    which another of them was given.

    `choices`: those of `CHOICES` that were made.
    """
    if coarse_search_only:  # it evaluates nothing
        repair, max_pairs, choices = True, None, {name: choices[name] for name in COARSE_CHOICES}
    matrix = {"rand": f"rand_seed{seed}", "combine": "combine_" + "_".join(matrix_tags)}
    parts = [matrix.get(measure) or matrix_tags[0]]
    parts += [] if repair else ["left_out"]
    # a matrix has data set and column in its own name
    parts += [files.dataset_tag(dataset), files.safe_name(caption_column or "")] if measure == "rand" else []
    parts += [f"max{max_pairs}"] if max_pairs else []
    parts += [f"{name}_{files.safe_name(str(value))}" for name, value in choices.items() if value != CHOICES[name]]
    parts += ["coarse"] if coarse_search_only else []
    return files.shorten("_".join(filter(None, parts)))


def coarse_rows(scored: ScoredProposals, num_layers: int) -> list[dict]:
    """The `proposals` of a result after the coarse search alone."""
    unknown = dict.fromkeys(("objective", "task_loss", "recall"))
    return [
        describe_layers(proposal, num_layers) | {"rank": rank, "coarse_score": score, **unknown, "found_by": "coarse"}
        for rank, (proposal, score) in enumerate(scored, start=1)
    ]


def verified_rows(
    verification: Verification, scored: ScoredProposals, matrix: np.ndarray | None, num_layers: int, score: str
) -> list[dict]:
    """The `proposals` of a result, ranked by the objective; `left_out`: the figures of the best without repair.

    `score`: the name of their coarse score.
    """
    proposed, rows = dict(scored), []
    ranked = zip_longest(verification.ranked, verification.p_values, verification.left_out)
    for rank, (evaluation, p_value, without) in enumerate(ranked, start=1):
        proposal = evaluation.dropped_layers
        found = {
            "rank": rank,
            "coarse_score": None if matrix is None else coarse_score(matrix, proposal, score),
            **describe_evaluation(evaluation),
            **({} if without is None else {"left_out": describe_evaluation(without)}),
            "found_by": "coarse" if proposal in proposed else "refine",
            "p_value": p_value,
            "within_noise": rank > 1 and p_value > NOISE,
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


def write_result(
    path: Path, settings: dict, winner: dict, rows: list[dict], full_model: Evaluation | None, record: Record
) -> None:
    """`settings`: what was asked for, `num_layers` and so on; `rows`: the proposals, best first; the winner is one."""
    full = None if full_model is None else describe_figures(full_model)
    found = {"full_model": full, "winner": winner, "proposals": rows}
    write_json(path, settings | found | {"record": record.content()})


class Asked(NamedTuple):
    """What a result must be of; and the data set, and `--caption_column` and the like, that it is better of.

    `captions_alone`: whether a search can have no images, which the advice to make one says.
    """

    model: str
    num_layers: int
    num_clip_layers: int
    dataset: str
    columns: dict[str, str | None] = {}
    captions_alone: bool = False


class Result(NamedTuple):
    """What training needs of a result file. `is_verified`: the winner was evaluated, not only scored by the matrix."""

    path: Path
    dropped_layers: Proposal
    is_verified: bool
    flags: "SearchFlags"
    date: str
    weights_sha256: str | None


def differences(result: Result, asked: Asked) -> list[str]:
    """What data a result is of, in words, where they are not those asked for; nothing of what its file leaves out."""
    found = []
    if result.flags.dataset and not same_dataset(result.flags.dataset, asked.dataset):
        found.append(f"that search was on {result.flags.dataset}, this training is on {asked.dataset}")
    for name, column in asked.columns.items():
        if (searched := getattr(result.flags, name)) != column and result.flags.dataset:
            found.append(f"that search had the {name} {searched}, this training has {column}")
    return found


def same_dataset(first: str | None, second: str) -> bool:
    """Whether two `--dataset` are one, also where a path is written in two ways."""
    return first is not None and files.real_path(first) == files.real_path(second)


def newest_result(folder: Path, asked: Asked) -> Result:
    """The verified result with the latest date in its record, of a search on this data set rather than on another.

    Files of before there were dates are the oldest; of equals the last one written counts. Raises FileNotFoundError,
    with the command that makes one, where there is none, and ValueError where a file is no result.
    """
    pattern = result_path(folder, asked.num_layers, asked.num_clip_layers, "*", "*")
    found = [read_result(path, asked) for path in folder.glob(pattern.name)]
    verified = [result for result in found if result.is_verified]
    if not verified:
        tower = "vision" if folder.name == "vision" else "text"
        flags = {"num_layers": asked.num_layers, "num_clip_layers": asked.num_clip_layers, "select_measure": "dc"}
        flags |= {} if tower == "text" else {"tower": tower}
        flags |= {} if asked.dataset == files.DEFAULT_DATASET else {"dataset": asked.dataset}
        flags |= {name: column for name, column in asked.columns.items() if column}
        flags |= {"objective": Distance.objective} if asked.captions_alone else {}
        exp_dir = files.exp_dir_of(folder, asked.model, tower)
        command = files.script_command("search_strategy/search_prune_then_verify_mix.py", asked.model, exp_dir, flags)
        coarse = f"; {found[0].path.name} is of the coarse search alone" if found else ""
        raise FileNotFoundError(
            f"no search result: looked for {pattern}{coarse}; run: {command}; or pass --clip_layers"
        )

    def preference(result: Result) -> tuple:
        fits = same_dataset(result.flags.dataset, asked.dataset), -len(differences(result, asked))
        return *fits, result.date, result.path.stat().st_mtime_ns

    return max(verified, key=preference)


@dataclass(frozen=True)
class _Winner:
    """The entries of a result file that are read again: of the winner."""

    dropped_layers: list[int]
    objective: float | None = None


@dataclass(frozen=True)
class SearchFlags:
    """Of the flags in the record."""

    dataset: str | None = None
    model: str | None = None
    caption_column: str | None = None
    image_column: str | None = None
    target_column: str | None = None


@dataclass(frozen=True)
class _Model:
    """Of the model in the record."""

    weights_sha256: str | None = None


@dataclass(frozen=True)
class _Record:
    """Of the record."""

    flags: SearchFlags | None = None
    model: _Model | None = None
    date: str | None = None


@dataclass(frozen=True)
class _File:
    """Of all."""

    winner: _Winner
    num_layers: int | None = None
    num_clip_layers: int | None = None
    record: _Record | None = None


def read_result(path: Path, asked: Asked) -> Result:
    """Raises FileNotFoundError where there is no such file, ValueError where it is the result of no such search."""
    wrong = "expected a search result with a winner and its dropped_layers, a list of layers"
    hint = "name another with --search_result, or pass --clip_layers"
    if not path.exists():
        raise FileNotFoundError(f"search result not found: {path}; {hint}")
    with files.reading(path, wrong, hint):
        content = read_form(path, _File)
        for name in ("num_layers", "num_clip_layers"):
            if getattr(content, name) not in (None, getattr(asked, name)):
                raise ValueError(f"found {name} {getattr(content, name)}, not {getattr(asked, name)}")
        dropped = check_dropped_layers(content.winner.dropped_layers, asked.num_layers, asked.num_clip_layers)
        record = content.record or _Record()
        flags = record.flags or SearchFlags()
        # by the last name: folders are moved, and a path can be written in several ways
        if flags.model and Path(flags.model).name != Path(asked.model).name:
            raise ValueError(f"found the model {flags.model}, not {asked.model}")
    weights = record.model and record.model.weights_sha256
    return Result(path, dropped, content.winner.objective is not None, flags, record.date or "", weights)


@dataclass(frozen=True)
class _Comparison:
    """Of a file of `compare_strategies.py`."""

    all_subsets: dict[str, float]
    record: dict


def read_losses(path: Path, made_of: dict[str, dict] | None = None) -> tuple[dict[Proposal, float], dict]:
    """The losses of all subsets that a comparison wrote, and its record.

    made_of: parts of the record and what they must hold. ValueError for another file, or one that was made of others.
    """
    wrong = "expected a file of compare_strategies.py with the losses of all_subsets"
    with files.reading(path, wrong, "pass the model, data and flags that it was made with"):
        content = read_form(path, _Comparison)
        for part, facts in (made_of or {}).items():
            for name, expected in facts.items():
                if (found := content.record.get(part, {}).get(name)) != expected:
                    raise ValueError(f"found {name} {found}, not {expected}")
        losses = {parse_clip_layers(text): loss for text, loss in content.all_subsets.items()}
        sizes, num_layers = {len(proposal) for proposal in losses}, max(map(max, losses), default=0)
        if len(sizes) != 1 or len(losses) != comb(num_layers, *sizes):
            raise ValueError(f"found {len(losses)} subsets, which are not all of one size")
    return losses, content.record
