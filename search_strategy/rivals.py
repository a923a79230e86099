"""The rivals: other ways to choose layers beside ours on one objective, and the truth where every subset is known.

Pure: arrays and objectives in, rows out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import comb

import numpy as np
from scipy.stats import norm

from search_strategy.climb import Objective, climb
from search_strategy.coarse import SCORES, coarse_score
from search_strategy.fine import distinct_prefixes
from search_strategy.proposals import Proposal, kept_layers, random_proposals
from search_strategy.verify import search, spearman

DEPTHS = (1, 10, 50, 100)  # how many of the best proposals by coarse score are looked at
BEST = 100  # the best subsets by objective, among which a score may tell nothing any more
INTERVAL = 0.95
OURS = "ours"  # starts the names of our strategies

Choice = Callable[[Objective], Proposal]


class Counted:
    """An objective as one strategy sees it: what it asked for, and the layer calls of a fine search asked for that.

    The objective is expected to remember what it has evaluated, so nothing is run twice, whoever asked first.
    """

    def __init__(self, objective: Objective, num_layers: int):
        self._objective, self._num_layers = objective, num_layers
        self._kept: dict[Proposal, Proposal] = {}

    def objectives(self, proposals: Sequence[Proposal]) -> list[float]:
        self._kept |= {proposal: kept_layers(proposal, self._num_layers) for proposal in proposals}
        return self._objective(proposals)

    @property
    def costs(self) -> dict[str, int]:
        """Proposals evaluated; layer calls for each sample, with shared prefixes and without."""
        kept = self._kept.values()
        shared, unshared = distinct_prefixes(kept), sum(map(len, kept))
        return {"proposals_evaluated": len(kept), "layer_calls": shared, "layer_calls_unshared": unshared}


@dataclass(frozen=True)
class Outcome:
    """What a strategy chose, and what that took (`Counted.costs`).

    `runs`: of a strategy that starts from a draw the outcome of every draw, best first; it is itself the middle one.
    """

    strategy: str
    proposal: Proposal
    costs: dict[str, int]
    runs: "tuple[Outcome, ...]" = ()


class AllSubsets:
    """The objective of every proposal of one size."""

    def __init__(self, objective: dict[Proposal, float]):
        self.objective = objective
        self.sorted = np.sort(np.array(list(objective.values())))
        self.best = min(objective, key=lambda proposal: (objective[proposal], proposal))

    def objectives(self, proposals: Sequence[Proposal]) -> list[float]:
        return [self.objective[proposal] for proposal in proposals]

    def rank(self, objective: float) -> int:
        """1 for the best of all; equal objectives share the better rank."""
        return int(np.searchsorted(self.sorted, objective)) + 1

    def regret(self, objective: float) -> float:
        return objective - self.sorted[0]


def all_subsets(num_layers: int, num_clip_layers: int) -> list[Proposal]:
    return list(combinations(range(1, num_layers + 1), num_clip_layers))


def strategies(matrices: dict[str, np.ndarray], num_clip_layers: int, refine_rounds: int) -> dict[str, Choice]:
    """The panel: rules that need no evaluation, the classic greedy search, CoMFLP as published, and ours."""
    k, num_layers = num_clip_layers, len(matrices["dc"]) - 1
    fixed = {
        "keep layer 1, then the first layers": last_layers(num_layers, k),
        "every other layer, from 2": every_other(num_layers, k, phase=0),
        "every other layer, from 1": every_other(num_layers, k, phase=1),
        "best block (angular)": best_block(matrices["angular"], k),
        "block influence (cosine)": block_influence(matrices["cosine"], k),
    }
    panel = {name: lambda _, proposal=proposal: proposal for name, proposal in fixed.items()}
    panel["greedy by task loss"] = partial(greedy_by_loss, num_layers=num_layers, num_clip_layers=k)
    for name in ("dc", "svcca"):
        own = partial(search, matrix=matrices[name], num_clip_layers=k)
        panel[f"CoMFLP as published ({name})"] = partial(own, score="mean", refine_rounds=0)
        panel[f"{OURS} ({name})"] = partial(own, refine_rounds=refine_rounds)
    return panel


def run_strategy(name: str, choose: Choice, objective: Objective, num_layers: int) -> Outcome:
    counted = Counted(objective, num_layers)
    return Outcome(name, choose(counted.objectives), counted.costs)


def random_rivals(
    objective: Objective,
    num_layers: int,
    num_clip_layers: int,
    refine_rounds: int,
    num_draws: int,
    generator: np.random.Generator,
) -> list[Outcome]:
    """Median and best of random proposals, each with the cost of all draws; and a climb from each of them."""
    drawn = random_proposals(num_layers, num_clip_layers, num_draws, generator)
    counted = Counted(objective, num_layers)
    ranked = [proposal for _, proposal in sorted(zip(counted.objectives(drawn), drawn, strict=True))]
    outcomes = [
        Outcome(f"random, {what} of {len(drawn)}", proposal, counted.costs)
        for what, proposal in (("best", ranked[0]), ("median", ranked[len(ranked) // 2]))
    ]
    if not refine_rounds:
        return outcomes
    name = f"climb from a random proposal, mean of {len(drawn)}"
    climbs = []
    for start in drawn:
        counted = Counted(objective, num_layers)
        found, _ = climb(counted.objectives, [start], num_layers, refine_rounds)
        climbs.append(Outcome(name, found, counted.costs))
    values = objective([outcome.proposal for outcome in climbs])
    order = sorted(range(len(climbs)), key=lambda i: (values[i], climbs[i].proposal))
    climbs = [climbs[i] for i in order]
    middle = climbs[len(climbs) // 2]
    return [*outcomes, Outcome(name, middle.proposal, middle.costs, tuple(climbs))]


def compare_pairs(values: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The mean difference of paired values (n,), both of the same samples, and half the width of its 95 % interval."""
    differences = values - reference
    half = norm.ppf((1 + INTERVAL) / 2) * differences.std(ddof=1) / np.sqrt(len(differences))
    return {"difference": float(differences.mean()), "interval": float(half)}


def judge_scores(draws: Sequence[dict[str, np.ndarray]], truth: AllSubsets) -> list[dict]:
    """How well every measure, under every rule of the coarse score, foretells the objective of all subsets.

    Before them two rules that look at no matrix: whether layer 1 is kept, and how many of the first layers are.
    draws: the matrices of every measure, of different captions each. A row has lists, an entry a draw: Spearman
    correlation to minus the objective, of all, of those that keep layer 1, of the best `BEST` by the objective (None
    where a score does not differ); the rank of the best within its first K; and the regret of that best at K = 10.
    """
    proposals = list(truth.objective)
    in_order = sorted(range(len(proposals)), key=proposals.__getitem__)
    first_kept = np.empty(len(proposals))
    first_kept[in_order] = range(len(proposals))
    rules = {"layer 1 is kept": np.array([float(1 not in p) for p in proposals]), "the first layers": first_kept}
    rows = [{"measure": name, "score": "no matrix"} | judge([values], truth) for name, values in rules.items()]
    for name in draws[0]:
        for score in SCORES:
            values = [
                np.array([coarse_score(matrices[name], proposal, score) for proposal in proposals])
                for matrices in draws
            ]
            rows.append({"measure": name, "score": score} | judge(values, truth))
    return rows


def judge(draws: Sequence[np.ndarray], truth: AllSubsets) -> dict[str, object]:
    """The figures of a row of `judge_scores`. draws: arrays (n,), a score of every proposal, larger is better."""
    proposals, objectives = list(truth.objective), np.array(list(truth.objective.values()))
    parts = {
        "spearman": np.ones(len(proposals), bool),
        "spearman_layer_1_kept": np.array([1 not in proposal for proposal in proposals]),
        "spearman_best": objectives <= truth.sorted[min(BEST, len(proposals)) - 1],
    }
    row = {name: [spearman(values[part], -objectives[part]) for values in draws] for name, part in parts.items()}
    orders = [
        sorted(range(len(proposals)), key=lambda i, values=values: (-values[i], proposals[i])) for values in draws
    ]
    best = {depth: [objectives[order[:depth]].min() for order in orders] for depth in DEPTHS}
    row["rank_of_best_within"] = {depth: [truth.rank(value) for value in of_draws] for depth, of_draws in best.items()}
    return row | {"regret_at_10": [float(truth.regret(value)) for value in best[10]]}


def judge_searches(
    draws: Sequence[dict[str, np.ndarray]], num_clip_layers: int, truth: AllSubsets, refine_rounds: int
) -> list[dict]:
    """The default search from the matrix of every measure, replayed: lists with an entry a draw of `rank`, `regret` and
    what it cost."""
    rows = []
    for name in draws[0]:
        row = {"measure": name, "rank": [], "regret": [], "proposals_evaluated": [], "layer_calls": []}
        for matrices in draws:
            counted = Counted(truth.objectives, len(matrices[name]) - 1)
            found = search(counted.objectives, matrices[name], num_clip_layers, refine_rounds=refine_rounds)
            value = truth.objective[found]
            row["rank"].append(truth.rank(value))
            row["regret"].append(float(truth.regret(value)))
            for cost in ("proposals_evaluated", "layer_calls"):
                row[cost].append(counted.costs[cost])
        rows.append(row)
    return rows


def best_of_every_size(objective: Objective, matrix: np.ndarray, *, max_subsets: int, refine_rounds: int) -> list[dict]:
    """The best proposal found for every k from 1 to L-1: of all subsets where there are at most `max_subsets`.

    `nested`: whether it contains the best proposal of the size before.
    """
    num_layers = len(matrix) - 1
    known = {k: all_subsets(num_layers, k) for k in range(1, num_layers) if comb(num_layers, k) <= max_subsets}
    objective([proposal for subsets in known.values() for proposal in subsets])  # at once: sizes share prefixes
    rows, previous = [], set()
    for k in range(1, num_layers):
        if k in known:
            best = AllSubsets(dict(zip(known[k], objective(known[k]), strict=True))).best
        else:
            best = search(objective, matrix, k, mode="exact", refine_rounds=refine_rounds)
        facts = {"all_known": k in known, "nested": previous <= set(best)}
        rows.append({"num_clip_layers": k, "dropped_layers": best, **facts})
        previous = set(best)
    return rows


# --- rules, each a pure function that gives one proposal


def every_other(num_layers: int, num_clip_layers: int, phase: int) -> Proposal:
    """Layers at equal distances: 12 to 6 drops 2, 4, .. 12 (phase 0) or 1, 3, .. 11 (phase 1)."""
    last = np.floor(np.arange(1, num_clip_layers + 1) * num_layers / num_clip_layers).astype(int)
    return tuple((last if phase == 0 else num_layers + 1 - last[::-1]).tolist())


def last_layers(num_layers: int, num_clip_layers: int) -> Proposal:
    """The last k layers: keep layer 1, then the first layers."""
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


def greedy_by_loss(objective: Objective, *, num_layers: int, num_clip_layers: int) -> Proposal:
    """At each step the layer whose removal hurts least, every layer tried: the classic search that CoMFLP replaces."""
    dropped: Proposal = ()
    for _ in range(num_clip_layers):
        candidates = [tuple(sorted((*dropped, layer))) for layer in range(1, num_layers + 1) if layer not in dropped]
        dropped = min(zip(objective(candidates), candidates, strict=True))[1]
    return dropped
