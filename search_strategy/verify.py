"""From a matrix to a winner: coarse proposals, a race, fine search, refinement by swaps, and how sure the winner is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, spearmanr

from search_strategy.climb import Objective, climb
from search_strategy.coarse import BEAM_SIZE, coarse_score, coarse_search
from search_strategy.defaults import BEST_SHOWN, NUM_PROPOSALS, REFINE_ROUNDS, SCORE, SEARCH_MODE
from search_strategy.fine import Evaluation, FineSearch
from search_strategy.proposals import Proposal
from tasks.base import LOSS_BATCH_SIZE

SURVIVORS = 10  # of a race, which are then evaluated on all pairs

# proposals with their coarse scores, best first; None: drawn at random
ScoredProposals = list[tuple[Proposal, float | None]]


@dataclass(frozen=True)
class Verification:
    """Every proposal evaluated on all samples, best first, and how it went."""

    full_model: Evaluation
    ranked: list[Evaluation]
    p_values: list[float]  # of each of `ranked`, that it is worse than the first by chance alone
    left_out: list[Evaluation]  # the first of `ranked` without repair, if they have one
    facts: dict


def propose(
    matrix: np.ndarray,
    num_clip_layers: int,
    *,
    score: str = SCORE,
    mode: str = SEARCH_MODE,
    num_proposals: int = NUM_PROPOSALS,
    beam_size: int = BEAM_SIZE,
) -> ScoredProposals:
    """The proposals of the coarse search: the best by the mean, as published, or by the sum, or with `both` those of
    the mean and then those of the sum that are not among them, each with its mean.

    Which score foretells the loss better depends on how a model was trained, so the fine search starts from the best of
    both.
    """
    options = {"mode": mode, "num_proposals": num_proposals, "beam_size": beam_size}
    if score != "both":
        return coarse_search(matrix, num_clip_layers, score=score, **options)
    published = coarse_search(matrix, num_clip_layers, score="mean", **options)
    known = {proposal for proposal, _ in published}
    by_sum = [proposal for proposal, _ in coarse_search(matrix, num_clip_layers, score="sum", **options)]
    return published + [(proposal, coarse_score(matrix, proposal)) for proposal in by_sum if proposal not in known]


def search(
    objective: Objective,
    matrix: np.ndarray,
    num_clip_layers: int,
    *,
    refine_rounds: int = REFINE_ROUNDS,
    **options: object,
) -> Proposal:
    """The default search, from a matrix (L+1, L+1) to a winner, by any objective; `options`: changes of `propose`."""
    starts = [proposal for proposal, _ in propose(matrix, num_clip_layers, **options)]
    return climb(objective, starts, len(matrix) - 1, refine_rounds)[0]


def verify(
    fine: FineSearch,
    proposals: list[Proposal],
    *,
    use_race: bool = False,
    refine_rounds: int = 0,
    generator: np.random.Generator,
) -> Verification:
    """Fine search of the proposals, after a race among them and followed by refinement where asked for.

    Where the fine search has maps, all of this goes by the repaired proposals.
    """
    facts = {"proposals_given": len(proposals), "refine_rounds": 0, "pairs": fine.num_samples}
    full_model = fine.full_model()
    calls, unshared = fine.layer_calls, fine.layer_calls_unshared
    # 1) a race among the proposals
    if use_race:
        # a whole batch at least: with fewer negatives it would be another loss
        proposals, facts["race_pairs_evaluated"] = race(
            fine.objectives_on, proposals, fine.num_samples, generator, first_pairs=fine.task.batch_size
        )
        facts["race_survivors"] = len(proposals)
    # 2) all that are left on all samples, 3) refinement from the best; `fine` remembers what both have evaluated
    evaluations = fine.evaluate(proposals)
    if refine_rounds:
        starts = [evaluation.dropped_layers for evaluation in evaluations]
        _, facts["refine_rounds"] = climb(fine.objectives, starts, fine.encoder.num_layers, refine_rounds)
    # 4) ranks of the proposals of this size: others, such as the full model, are known too
    size = len(proposals[0])
    ranked = [evaluation for evaluation in fine.evaluated if len(evaluation.dropped_layers) == size]
    facts |= {"proposals_evaluated": len(ranked), "layer_calls": round(fine.layer_calls - calls)}
    facts |= {"layer_calls_unshared": round(fine.layer_calls_unshared - unshared)}
    values = np.stack([evaluation.values for evaluation in ranked])
    p_values = p_values_of_worse(values, values[0]).tolist()
    # 5) the best of them without repair, for the table
    left_out = []
    if fine.maps:
        plain = fine.without_maps()
        left_out = plain.evaluate(evaluation.dropped_layers for evaluation in ranked[:BEST_SHOWN])
        facts["layer_calls_left_out"] = round(plain.layer_calls)
    return Verification(full_model, ranked, p_values, left_out, facts)


def race(
    objective_on: Callable[[list[Proposal], np.ndarray], list[float]],
    proposals: Sequence[Proposal],
    num_pairs: int,
    generator: np.random.Generator,
    *,
    first_pairs: int = LOSS_BATCH_SIZE,
) -> tuple[list[Proposal], int]:
    """Successive halving (Karnin et al. 2013; Jamieson and Talwalkar 2016) over growing parts of the validation pairs.

    Round r evaluates those still in the race on the first `first_pairs` * 2^r pairs of a permutation drawn by
    `generator` and keeps the better half; it stops as soon as at most `SURVIVORS` are left or a round would use all
    pairs. Returns those left, best first, and the pairs evaluated (pairs times proposals).
    """
    order = generator.permutation(num_pairs)  # one for all rounds: a larger part holds the smaller ones
    left, size, evaluated = list(proposals), first_pairs, 0
    while len(left) > SURVIVORS and size < num_pairs:
        values = objective_on(left, order[:size])
        evaluated += size * len(left)
        ranked = [proposal for _, proposal in sorted(zip(values, left, strict=True))]
        left, size = ranked[: max(SURVIVORS, (len(left) + 1) // 2)], 2 * size
    return left, evaluated


def p_values_of_worse(values: np.ndarray, winner: np.ndarray) -> np.ndarray:
    """For each proposal the p-value of being as good as the winner although it came out worse: a paired z-test.

    The winner was picked as the best of K on the same pairs, so by luck alone it is ahead of each. With m in the
    running, the winner among them, the chance that one of them is ahead of a given proposal by so many standard errors
    is at most m times that of one (Bonferroni), and this is the p-value. In the running are those within three standard
    errors of the winner, as by chance 999 of 1,000 equal ones are. A pair's loss is taken as it is, with the negatives
    of its batch.

    `values`: (K, n) per pair, smaller is better; `winner`: (n,) likewise. Returns (K,), 1 where nothing is different.
    """
    differences = values - winner
    measured = differences.mean(axis=1)
    errors = differences.std(axis=1) / np.sqrt(values.shape[1])
    in_the_running = np.count_nonzero(measured <= 3 * errors)
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = measured / errors  # in standard errors; infinite for a constant difference
    return np.where(measured == 0, 1.0, np.minimum(1.0, in_the_running * norm.sf(distances)))


def rank_correlation(scored: ScoredProposals, ranked: list[Evaluation]) -> float | None:
    """Spearman correlation of the proposals' coarse scores with minus their objectives; None where undefined."""
    objective = {evaluation.dropped_layers: evaluation.objective for evaluation in ranked}
    pairs = [(score, -objective[proposal]) for proposal, score in scored if score is not None and proposal in objective]
    return spearman(*zip(*pairs, strict=True)) if pairs else None


def spearman(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Rank correlation; None where one of them is constant, which has no ranks."""
    if len(np.unique(values)) < 2 or len(np.unique(others)) < 2:
        return None
    return float(spearmanr(values, others).statistic)
