"""The rivals: other ways to choose layers, side by side with ours under one evaluation, and against the truth where
every subset is known."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from math import comb
from statistics import median

import numpy as np
from scipy.stats import spearmanr

from search_strategy.coarse import SCORES, coarse_score
from search_strategy.fine import Evaluation, FineSearch
from search_strategy.proposals import Proposal, random_proposals
from search_strategy.verify import Objective, search

DEPTHS = (1, 10, 50, 100)  # how many of the best proposals by coarse score are looked at


@dataclass(frozen=True)
class Outcome:
    """What one strategy chose, and what that took. `layer_calls`: for one batch of captions, with shared prefixes."""

    strategy: str
    evaluation: Evaluation
    proposals_evaluated: int
    layer_calls: int
    layer_calls_unshared: int
    seconds: float


def all_subsets(num_layers: int, num_clip_layers: int) -> list[Proposal]:
    return list(combinations(range(1, num_layers + 1), num_clip_layers))


class AllSubsets:
    """Every proposal of one size, evaluated."""

    def __init__(self, fine: FineSearch, num_clip_layers: int):
        evaluations = fine.evaluate(all_subsets(fine.encoder.num_layers, num_clip_layers))
        self.objective = {evaluation.dropped_layers: evaluation.objective for evaluation in evaluations}
        self.sorted = np.sort(np.array(list(self.objective.values())))
        self.best = min(self.objective, key=lambda proposal: (self.objective[proposal], proposal))

    def rank(self, proposal: Proposal) -> int:
        """1 for the best of all; equal objectives share the better rank."""
        return int(np.searchsorted(self.sorted, self.objective[proposal])) + 1

    def regret(self, proposal: Proposal) -> float:
        return self.objective[proposal] - self.sorted[0]


def run_strategy(name: str, choose: Callable[[FineSearch], Proposal], fine: FineSearch) -> Outcome:
    """Let a strategy choose with a fine search that knows nothing yet, so that its calls are its own."""
    own = fine.without_memory()
    start = time.perf_counter()
    proposal = choose(own)
    seconds = time.perf_counter() - start
    calls, unshared, evaluated = round(own.layer_calls), round(own.layer_calls_unshared), len(own.evaluated)
    return Outcome(name, own.evaluate([proposal])[0], evaluated, calls, unshared, seconds)


def strategies(
    matrices: dict[str, np.ndarray], num_layers: int, num_clip_layers: int, seed: int, refine_rounds: int
) -> dict[str, Callable[[FineSearch], Proposal]]:
    """The panel: rules that need no evaluation, the classic greedy search, CoMFLP as published, and ours."""
    k, fixed = num_clip_layers, {}
    fixed["every other layer, from 2"] = every_other(num_layers, k, phase=0)
    fixed["every other layer, from 1"] = every_other(num_layers, k, phase=1)
    fixed["first layers"] = first_layers(num_layers, k)
    fixed["last layers"] = last_layers(num_layers, k)
    fixed["best block (angular)"] = best_block(matrices["angular"], k)
    fixed["block influence (cosine)"] = block_influence(matrices["cosine"], k)
    panel = {name: lambda _, proposal=proposal: proposal for name, proposal in fixed.items()}
    panel["greedy by task loss"] = lambda fine: greedy_by_loss(fine.objectives, num_layers, k)
    for name in ("dc", "svcca"):
        own = partial(search_for, matrix=matrices[name], num_clip_layers=k, seed=seed)
        panel[f"CoMFLP as published ({name}, beam 10)"] = partial(own, mode="beam", num_proposals=10, refine_rounds=0)
        panel[f"ours: exact and refine ({name})"] = partial(own, mode="exact", refine_rounds=refine_rounds)
        panel[f"ours: exact 100 and race ({name})"] = partial(
            own, mode="exact", num_proposals=100, use_race=True, refine_rounds=0
        )
    return panel


def search_for(fine: FineSearch, *, seed: int, **options: object) -> Proposal:
    """The winner of a search with these options of `verify.search`."""
    return search(fine, generator=np.random.default_rng(seed), **options).winner


def random_draws(
    fine: FineSearch, num_clip_layers: int, num_draws: int, generator: np.random.Generator
) -> list[Outcome]:
    """Median and best of random proposals, as two outcomes with the cost of all draws."""
    own = fine.without_memory()
    start = time.perf_counter()
    evaluations = own.evaluate(random_proposals(fine.encoder.num_layers, num_clip_layers, num_draws, generator))
    cost = (len(evaluations), own.layer_calls, own.layer_calls_unshared, time.perf_counter() - start)
    middle = median(evaluation.objective for evaluation in evaluations)
    typical = min(evaluations, key=lambda evaluation: abs(evaluation.objective - middle))
    best = min(evaluations, key=lambda evaluation: evaluation.objective)
    return [
        Outcome(f"random, median of {num_draws}", typical, *cost),
        Outcome(f"random, best of {num_draws}", best, *cost),
    ]


def judge_scores(matrices: dict[str, np.ndarray], num_clip_layers: int, truth: AllSubsets) -> list[dict]:
    """How well every measure, under every rule of the coarse score, foretells the objective of all subsets.

    For each: Spearman correlation to minus the objective, the rank among all of the best within its first K, and the
    regret of that best at K = 10.
    """
    proposals = list(truth.objective)
    quality = [-truth.objective[proposal] for proposal in proposals]
    rows = []
    for name, matrix in matrices.items():
        for score in SCORES:
            values = np.array([coarse_score(matrix, proposal, score) for proposal in proposals])
            order = sorted(range(len(proposals)), key=lambda i: (-values[i], proposals[i]))
            best_within = {
                depth: min((proposals[i] for i in order[:depth]), key=truth.objective.__getitem__) for depth in DEPTHS
            }
            rows.append(
                {
                    "measure": name,
                    "score": score,
                    "spearman": float(spearmanr(values, quality).statistic),
                    "rank_of_best_within": {depth: truth.rank(best) for depth, best in best_within.items()},
                    "regret_at_10": float(truth.regret(best_within[10])),
                }
            )
    return rows


def best_of_every_size(
    fine: FineSearch, matrix: np.ndarray, *, max_subsets: int, seed: int, refine_rounds: int
) -> list[dict]:
    """The best proposal found for every k from 1 to L-1: of all subsets where there are at most `max_subsets`.

    `nested`: whether it contains the best proposal of the size before.
    """
    num_layers = fine.encoder.num_layers
    known = [k for k in range(1, num_layers) if comb(num_layers, k) <= max_subsets]
    fine.evaluate(chain.from_iterable(all_subsets(num_layers, k) for k in known))  # at once: sizes share prefixes
    rows, previous = [], set()
    for k in range(1, num_layers):
        if k in known:
            best = AllSubsets(fine, k).best
        else:
            best = search_for(
                fine, matrix=matrix, num_clip_layers=k, mode="exact", seed=seed, refine_rounds=refine_rounds
            )
        facts = {"all_known": k in known, "nested": previous <= set(best)}
        rows.append({"num_clip_layers": k, "dropped_layers": best, **facts})
        previous = set(best)
    return rows


# --- rules, each a pure function that gives one proposal


def every_other(num_layers: int, num_clip_layers: int, phase: int) -> Proposal:
    """Layers at equal distances: 12 to 6 drops 2, 4, .. 12 (phase 0) or 1, 3, .. 11 (phase 1)."""
    last = np.floor(np.arange(1, num_clip_layers + 1) * num_layers / num_clip_layers).astype(int)
    return tuple((last if phase == 0 else num_layers + 1 - last[::-1]).tolist())


def first_layers(num_layers: int, num_clip_layers: int) -> Proposal:
    """The first k layers (num_layers is there for the same call as the others)."""
    return tuple(range(1, num_clip_layers + 1))


def last_layers(num_layers: int, num_clip_layers: int) -> Proposal:
    """The last k layers."""
    return tuple(range(num_layers - num_clip_layers + 1, num_layers + 1))


def best_block(matrix: np.ndarray, num_clip_layers: int) -> Proposal:
    """The k consecutive layers whose input and output are most similar (Gromov et al. 2024, by angular distance)."""
    starts = range(len(matrix) - num_clip_layers)
    start = max(starts, key=lambda first: matrix[first, first + num_clip_layers])
    return tuple(range(start + 1, start + num_clip_layers + 1))


def block_influence(matrix: np.ndarray, num_clip_layers: int) -> Proposal:
    """The k layers that change their own input least, all at once (ShortGPT, Men et al. 2024, by cosine)."""
    neighbours = np.diagonal(matrix, offset=1)
    return tuple(sorted((np.argsort(-neighbours, kind="stable")[:num_clip_layers] + 1).tolist()))


def greedy_by_loss(objective: Objective, num_layers: int, num_clip_layers: int) -> Proposal:
    """At each step the layer whose removal hurts least, every layer tried: the classic search that CoMFLP replaces."""
    dropped: Proposal = ()
    for _ in range(num_clip_layers):
        candidates = [tuple(sorted((*dropped, layer))) for layer in range(1, num_layers + 1) if layer not in dropped]
        dropped = min(zip(objective(candidates), candidates, strict=True))[1]
    return dropped
