"""The search from a matrix to a winner: coarse proposals, race, fine search, refinement; and what is written about it."""

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import spearmanr

from search_strategy.coarse import coarse_score, coarse_search
from search_strategy.fine import Evaluation, FineSearch, rank_key
from search_strategy.proposals import Proposal, kept_layers, random_proposals, segments
from search_strategy.refine import climb, race, share_not_worse

NOISE = 0.05  # a proposal at least as good as the winner in more than this share of resamples is within noise of it


@dataclass(frozen=True)
class Verification:
    """Every proposal evaluated on all validation pairs, best first, and how it went."""

    full_model: Evaluation
    ranked: list[Evaluation]
    share_not_worse: list[float]  # of each of `ranked`, against the first
    facts: dict = field(default_factory=dict)


def propose(
    matrix: np.ndarray | None,
    num_layers: int,
    num_clip_layers: int,
    *,
    mode: str,
    num_proposals: int,
    beam_size: int,
    score: str,
    generator: np.random.Generator,
) -> list[tuple[Proposal, float | None]]:
    """The K best proposals with their coarse scores; random ones without a score where there is no matrix."""
    if matrix is None:
        return [(p, None) for p in random_proposals(num_layers, num_clip_layers, num_proposals, generator)]
    return coarse_search(
        matrix, num_clip_layers, mode=mode, num_proposals=num_proposals, beam_size=beam_size, score=score
    )


def verify(
    fine: FineSearch,
    proposals: list[Proposal],
    *,
    use_race: bool = False,
    refine_rounds: int = 0,
    generator: np.random.Generator,
) -> Verification:
    """Fine search of the proposals, after a race among them and followed by hill climbing where asked for."""
    facts = {"proposals_given": len(proposals), "refine_rounds": 0}
    full_model = fine.full_model()
    calls, unshared = fine.layer_calls, fine.layer_calls_unshared
    if use_race:
        proposals, facts["race_pairs_evaluated"] = race(
            fine.objectives_on, proposals, fine.num_captions, generator, first_pairs=fine.loss_batch_size
        )
        facts["race_survivors"] = len(proposals)
    evaluations = fine.evaluate(proposals)
    if refine_rounds:
        starts = [evaluation.dropped_layers for evaluation in evaluations]
        _, facts["refine_rounds"] = climb(fine.objectives, starts, fine.clip.num_layers, refine_rounds)
    size = len(proposals[0])
    ranked = sorted((e for e in fine.evaluated if len(e.dropped_layers) == size), key=rank_key)
    facts |= {
        "proposals_evaluated": len(ranked),
        "layer_calls": round(fine.layer_calls - calls),
        "layer_calls_unshared": round(fine.layer_calls_unshared - unshared),
        "pairs": fine.num_captions,
    }
    values = np.stack([evaluation.values for evaluation in ranked])
    return Verification(full_model, ranked, share_not_worse(values, values[0], generator).tolist(), facts)


def rank_correlation(scored: list[tuple[Proposal, float | None]], ranked: list[Evaluation]) -> float | None:
    """Spearman correlation between the coarse scores of the proposals and minus their objectives; None where undefined."""
    objective = {evaluation.dropped_layers: evaluation.objective for evaluation in ranked}
    pairs = [(score, -objective[proposal]) for proposal, score in scored if score is not None and proposal in objective]
    scores, qualities = zip(*pairs, strict=True) if pairs else ((), ())
    if len(set(scores)) < 2 or len(set(qualities)) < 2:
        return None
    return float(spearmanr(scores, qualities).statistic)


def describe_coarse(scored: list[tuple[Proposal, float | None]], num_layers: int) -> list[dict]:
    """The `proposals` of a result file after the coarse search alone."""
    return [
        _layers(proposal, num_layers)
        | {"rank": rank, "coarse_score": score, "task_loss": None, "recall": None, "found_by": "coarse"}
        for rank, (proposal, score) in enumerate(scored, start=1)
    ]


def describe_verified(
    verification: Verification,
    scored: list[tuple[Proposal, float | None]],
    matrix: np.ndarray | None,
    num_layers: int,
    score: str,
) -> list[dict]:
    """The `proposals` of a result file, ranked by the objective."""
    proposed = dict(scored)
    rows = []
    for rank, (evaluation, share) in enumerate(
        zip(verification.ranked, verification.share_not_worse, strict=True), start=1
    ):
        proposal = evaluation.dropped_layers
        rows.append(
            _layers(proposal, num_layers)
            | {
                "rank": rank,
                "coarse_score": None if matrix is None else coarse_score(matrix, proposal, score),
                "objective": evaluation.objective,
                "task_loss": evaluation.task_loss,
                "recall": evaluation.recall,
                "found_by": "coarse" if proposal in proposed else "refine",
                "share_not_worse": share,
                "within_noise": rank > 1 and share > NOISE,
            }
        )
    return rows


def _layers(proposal: Proposal, num_layers: int) -> dict:
    return {
        "segments": segments(proposal),
        "dropped_layers": list(proposal),
        "kept_layers": list(kept_layers(proposal, num_layers)),
    }
