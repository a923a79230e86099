"""Strategies and coarse scores side by side under one evaluation, and against the truth where every subset is known."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, combinations
from math import comb
from statistics import median

import numpy as np
from scipy.stats import spearmanr

from search_strategy.coarse import SCORES, coarse_score, coarse_search
from search_strategy.fine import Evaluation, FineSearch
from search_strategy.pipeline import verify
from search_strategy.proposals import Proposal, random_proposals
from search_strategy.strategies import (
    best_block,
    block_influence,
    every_other,
    first_layers,
    greedy_by_loss,
    last_layers,
)

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


class Truth:
    """Every proposal of one size, evaluated."""

    def __init__(self, fine: FineSearch, num_clip_layers: int):
        evaluations = fine.evaluate(all_subsets(fine.clip.num_layers, num_clip_layers))
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
    own = fine.restarted()
    start = time.perf_counter()
    proposal = choose(own)
    seconds = time.perf_counter() - start
    calls, unshared, evaluated = round(own.layer_calls), round(own.layer_calls_unshared), len(own.evaluated)
    return Outcome(name, own.evaluate([proposal])[0], evaluated, calls, unshared, seconds)


def search_for(
    matrix: np.ndarray, num_clip_layers: int, *, mode: str, num_proposals: int, seed: int, **options: object
) -> Callable[[FineSearch], Proposal]:
    """The search script's way: coarse proposals, then `verify` with its options."""

    def choose(fine: FineSearch) -> Proposal:
        scored = coarse_search(matrix, num_clip_layers, mode=mode, num_proposals=num_proposals)
        proposals = [proposal for proposal, _ in scored]
        return verify(fine, proposals, generator=np.random.default_rng(seed), **options).ranked[0].dropped_layers

    return choose


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
        common = {"matrix": matrices[name], "num_clip_layers": k, "seed": seed}
        panel[f"CoMFLP as published ({name}, beam 10)"] = search_for(mode="beam", num_proposals=10, **common)
        panel[f"ours: exact and refine ({name})"] = search_for(
            mode="exact", num_proposals=10, refine_rounds=refine_rounds, **common
        )
        panel[f"ours: exact 100 and race ({name})"] = search_for(
            mode="exact", num_proposals=100, use_race=True, **common
        )
    return panel


def random_draws(
    fine: FineSearch, num_clip_layers: int, num_draws: int, generator: np.random.Generator
) -> list[Outcome]:
    """Median and best of random proposals, as two outcomes with the cost of all draws."""
    own = fine.restarted()
    start = time.perf_counter()
    evaluations = own.evaluate(random_proposals(fine.clip.num_layers, num_clip_layers, num_draws, generator))
    cost = (len(evaluations), own.layer_calls, own.layer_calls_unshared, time.perf_counter() - start)
    middle = median(evaluation.objective for evaluation in evaluations)
    typical = min(evaluations, key=lambda evaluation: abs(evaluation.objective - middle))
    best = min(evaluations, key=lambda evaluation: evaluation.objective)
    return [
        Outcome(f"random, median of {num_draws}", typical, *cost),
        Outcome(f"random, best of {num_draws}", best, *cost),
    ]


def judge_scores(matrices: dict[str, np.ndarray], num_clip_layers: int, truth: Truth) -> list[dict]:
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
    num_layers = fine.clip.num_layers
    known = [k for k in range(1, num_layers) if comb(num_layers, k) <= max_subsets]
    fine.evaluate(chain.from_iterable(all_subsets(num_layers, k) for k in known))  # at once: sizes share prefixes
    rows, previous = [], set()
    for k in range(1, num_layers):
        if k in known:
            best = Truth(fine, k).best
        else:
            best = search_for(matrix, k, mode="exact", num_proposals=10, seed=seed, refine_rounds=refine_rounds)(fine)
        facts = {"all_known": k in known, "nested": previous <= set(best)}
        rows.append({"num_clip_layers": k, "dropped_layers": best, **facts})
        previous = set(best)
    return rows
