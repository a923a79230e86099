"""The true K best proposals for any L: paths of one acyclic graph, in rounds as in Dinkelbach's method (1967)."""

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import islice
from math import comb

import numpy as np

from search_strategy.proposals import Proposal

# x -> (weights, constant), such that a proposal scores >= x exactly when constant plus the weights of its segments is
# >= 0
Excess = Callable[[float], tuple[np.ndarray, float]]


def best_proposals(
    excess: Excess,
    rounded_score: Callable[[Proposal], float],
    half_unit: float,
    start: float,
    num_clip_layers: int,
    num_proposals: int,
) -> list[Proposal]:
    """The `num_proposals` best proposals, in no order; of those that tie for the last places the first ones.

    By its definition a proposal scores >= x exactly when its excess at x is >= 0, and the excess is a sum over its
    segments, so that `ProposalGraph` finds the K greatest.

    1) A first round, at any x (`start`), yields K proposals. From then on x is the K-th best score seen.
    2) While K proposals or more beat x, the K of greatest excess all beat it, and x rises.
    3) Once it stays, fewer than K beat it, and all of these have been seen.
    4) The places left belong to proposals that score x itself. There may be exponentially many, so they are enumerated
       in lexicographic order.

    To beat x is meant in the order of `rounded_score`: the excess is taken half a unit of its last decimal
    (`half_unit`) above x, or below x for the ties, and what decides in the end is each proposal's own rounded score. So
    the result is that of enumeration, unless rounding errors alone part equal scores: a true score with a 5 behind its
    last decimal may round up for one proposal and down for another, and then either may be chosen.
    """
    num_proposals = min(num_proposals, comb(len(excess(start)[0]) - 1, num_clip_layers))
    seen: dict[Proposal, float] = {}
    x, worst, previous = start, None, -np.inf
    while worst != previous:  # x only rises, and there are finitely many scores
        previous = worst
        graph = ProposalGraph(*excess(x), num_clip_layers)
        for gain, proposal in islice(graph.by_excess(), num_proposals):
            if worst is not None and gain <= 0:
                break  # the rest does not beat x
            seen[proposal] = rounded_score(proposal)
        worst = sorted(seen.values())[-num_proposals]
        x = worst + half_unit
    better = [proposal for proposal, score in seen.items() if score > worst]
    candidates = ProposalGraph(*excess(worst - half_unit), num_clip_layers).lexicographic()
    ties = (proposal for proposal in candidates if rounded_score(proposal) == worst)
    return better + list(islice(ties, num_proposals - len(better)))


class ProposalGraph:
    """Proposals by their excess: `constant` plus the sum of weights[a-1, b] over the segments [a, b] of dropped layers.

    weights: (L+1, L+1), finite, read above the diagonal only and left unchanged; 1 <= num_clip_layers <= L-1.

    A node (q, d), 0 <= q <= m = L-k, 0 <= d <= k, means q layers kept so far and d dropped, so the hidden state reached
    is h_{q+d}. A step from it picks e >= d, drops the layers q+d+1 .. q+e (a segment; none if e = d), gains
    weights[q+d, q+e], and keeps layer q+e+1: it leads to node (q+1, e). The last step, from q = m, has e = k and keeps
    nothing. So a path (e_0, .., e_{m-1}), never falling, is one proposal and its length the excess. The greater e is
    lexicographically first, as it drops layer q+d+1 or goes on where the smaller keeps one.

    togo[q, d], the greatest length from a node to the end, is max_e weights[q+d, q+e] + togo[q+1, e]: for every q one
    vectorised operation on a block of (k+1, k+1).
    """

    def __init__(self, weights: np.ndarray, constant: float, num_clip_layers: int):
        self.num_layers, self.width = len(weights) - 1, num_clip_layers + 1
        self.num_steps = self.num_layers - num_clip_layers
        self.gain = np.triu(weights, 1).astype(np.float64, copy=False)
        self.gain[np.tri(len(weights), k=-1, dtype=bool)] = -np.inf
        self.togo = np.full((self.num_steps + 2, self.width), -np.inf)
        self.togo[-1, -1] = constant
        block = np.empty((self.width, self.width))
        for step in range(self.num_steps, -1, -1):
            reach = slice(step, step + self.width)
            np.add(self.gain[reach, reach], self.togo[step + 1], out=block).max(axis=1, out=self.togo[step])
        # Sums of up to L gains in another order may differ by this much.
        self.rounding = 1e-15 * self.num_layers * max(1.0, np.abs(weights).max())

    def by_excess(self) -> Iterator[tuple[float, Proposal]]:
        """All proposals with their excess, greatest first (Lawler 1972).

        A heap entry stands for the paths that follow `path` before `step` and take none of `taken` there; the best of
        them takes `choice`, then the best completion. When it is popped, the rest of them is split by where a path
        leaves it: one new entry for every step from there on.
        """
        heap = [(-self.togo[0, 0], 0, [], 0, int(np.argmax(self._lengths(0, 0))), ())]
        pushed = 0
        while heap:
            negative_excess, _, parent, step, choice, taken = heappop(heap)
            path = self._complete([*parent[:step], choice])
            yield -negative_excess, self._to_proposal(path)
            excesses, choices = self._best_departures(path, step, taken)
            for i in np.flatnonzero(excesses > -np.inf).tolist():
                barred = (path[step + i], *(taken if i == 0 else ()))
                pushed += 1  # decides between equal excesses, so that the paths are never compared
                heappush(heap, (-excesses[i], pushed, path, step + i, int(choices[i]), barred))

    def lexicographic(self) -> Iterator[Proposal]:
        """All proposals of excess >= 0, in lexicographic order, with those short of 0 by no more than rounding errors.

        Depth first, and only where `togo` says that there is one to be found, so that none is waited for long.
        """
        path: list[int] = []
        stack = self._open_steps(0, 0, 0.0)
        while stack:
            step, choice, length = stack.pop()
            path[step:] = [choice]
            if step + 1 == self.num_steps:
                yield self._to_proposal(path)
            else:
                stack += self._open_steps(step + 1, choice, length)

    def _lengths(self, step: int, num_dropped: int) -> np.ndarray:
        """Greatest length from node (step, num_dropped) to the end through each e."""
        return self.gain[step + num_dropped, step : step + self.width] + self.togo[step + 1]

    def _complete(self, path: list[int]) -> list[int]:
        for step in range(len(path), self.num_steps):
            path.append(int(np.argmax(self._lengths(step, path[-1]))))
        return path

    def _best_departures(self, path: list[int], first: int, taken: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """For each step from `first` on: the greatest excess of a path that leaves `path` there, and its choice."""
        steps, choices = np.arange(self.num_steps), np.array(path)
        states = steps + np.array([0, *path[:-1]])
        gains = self.gain[states, steps + choices]
        before = np.cumsum(gains) - gains
        steps, states = steps[first:], states[first:]
        lengths = self.gain[states[:, None], steps[:, None] + np.arange(self.width)] + self.togo[steps + 1]
        lengths[np.arange(len(steps)), choices[first:]] = -np.inf
        lengths[0, list(taken)] = -np.inf
        best = lengths.argmax(axis=1)
        return before[first:] + lengths[np.arange(len(steps)), best], best

    def _open_steps(self, step: int, num_dropped: int, length: float) -> list[tuple[int, int, float]]:
        """(step, e, length so far) for every e from which excess >= 0 can be reached; the greatest e last."""
        choices = np.flatnonzero(length + self._lengths(step, num_dropped) >= -self.rounding)
        lengths = length + self.gain[step + num_dropped, step + choices]
        return [(step, e, reached) for e, reached in zip(choices.tolist(), lengths.tolist(), strict=True)]

    def _to_proposal(self, path: list[int]) -> Proposal:
        kept = np.array(path) + np.arange(self.num_steps)  # 0-based: layer q+e+1 is at q+e
        return tuple(np.delete(np.arange(1, self.num_layers + 1), kept).tolist())
