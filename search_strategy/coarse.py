"""Coarse search: the best proposals by a layer-to-layer correlation matrix alone.

CoMFLP (Liu, Peng, Lee, "CoMFLP: Correlation Measure based Fast Search on ASR Layer Pruning", Interspeech 2023,
arXiv 2309.11768), section 2. `matrix` is (L+1, L+1); row i is hidden state h_i: h_0 the embeddings, h_i the output of
layer i. Layers are counted from 1; a proposal is a sorted tuple of dropped layers (see `proposals`).

Order, in every mode: score descending, then dropped layers lexicographically. Scores that agree to 12 decimals count
as equal, so that mathematically equal ones tie whatever their rounding. Matrix entries are taken to be of order one.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain, combinations, islice
from math import comb, fsum
from typing import Any, NamedTuple

import numpy as np

from search_strategy.exact import best_proposals
from search_strategy.proposals import Proposal, check_dropped_layers, check_num_clip_layers, segments

DECIMALS = 12  # sums of some 50 entries of order one differ by a twentieth of the last at most, whatever their order
BEAM_SIZE = 10  # as published
MAX_EXHAUSTIVE = 5_000_000  # subsets; 24 layers to 12 has 2.7 million
_CHUNK = 1 << 16  # subsets scored at once: 6 MB of 12 layers

Scored = tuple[Proposal, float]


class Score(NamedTuple):
    """A coarse score, from the sum and the number of the entries M[a-1, b] over the segments [a, b] of a proposal.

    value: (total, count) -> score.
    excess: (matrix, x) -> (weights, constant), such that score >= x exactly when constant plus the sum of the weights
    over the segments is >= 0. This is what the exact search needs.
    """

    meaning: str
    value: Callable[[Any, Any], Any]
    excess: Callable[[np.ndarray, float], tuple[np.ndarray, float]]


SCORES = {
    "mean": Score(
        "of the entries of the segments, as published",
        lambda total, count: total / count,
        lambda matrix, x: (matrix - x, 0.0),
    ),
    "sum": Score("of what they lack of 1", lambda total, count: total - count, lambda matrix, x: (matrix - 1.0, -x)),
}


def coarse_score(matrix: np.ndarray, dropped_layers: Iterable[int], score: str = "mean") -> float:
    """Score of one proposal.

    mean: the mean of M[a-1, b] over its segments [a, b], as published. sum: minus the sum of 1 - M[a-1, b].
    The sum is exactly rounded (fsum), so it does not depend on an order.

    Raises ValueError for a matrix that is not square or not finite, no dropped layer, one out of range or repeated,
    and an unknown score.
    """
    matrix, rule = _checked_matrix(matrix), _choice(SCORES, score, "score")
    proposal = check_dropped_layers(dropped_layers, len(matrix) - 1)
    if not proposal:
        raise ValueError("no layer is dropped; the coarse score needs at least one segment")
    return _score(matrix, proposal, rule)


def coarse_search(
    matrix: np.ndarray,
    num_clip_layers: int,
    *,
    mode: str,
    num_proposals: int,
    beam_size: int = BEAM_SIZE,
    score: str = "mean",
) -> list[Scored]:
    """The best `num_proposals` proposals that drop `num_clip_layers` layers: [(dropped layers, score)], best first.

    mode (SEARCH_MODES):
    exhaustive: scores every subset. exact: the same result for any L, see `exact.best_proposals`.
    beam: starts from no dropped layer; each step extends every proposal of the beam by every layer that it keeps, and
    the best `beam_size` go on; the last step returns its best `num_proposals`, fewer if it has fewer candidates.
    greedy: a beam of 1.

    Exhaustive and exact return every proposal if no more than `num_proposals` exist.

    Raises ValueError for a matrix that is not square or not finite, `num_clip_layers` outside 1..L-1, a count below 1,
    an unknown mode or score, or an exhaustive search of more than MAX_EXHAUSTIVE subsets.
    """
    matrix, rule = _checked_matrix(matrix), _choice(SCORES, score, "score")
    search = _choice(SEARCH_MODES, mode, "mode")
    check_num_clip_layers(num_clip_layers, len(matrix) - 1)
    for name, number in (("num_proposals", num_proposals), ("beam_size", beam_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
    found = search(matrix, num_clip_layers, num_proposals, rule, beam_size)
    return sorted(((proposal, _score(matrix, proposal, rule)) for proposal in found), key=_order)


def missed_by(found: list[Scored], exact: list[Scored]) -> list[Scored]:
    """Those of the true best that `found` lacks.

    One that is not in `found` is not missed where `found` has another of equal score in its place.
    """
    true_best, present = {proposal for proposal, _ in exact}, {proposal for proposal, _ in found}
    replacements = Counter(round(score, DECIMALS) for proposal, score in found if proposal not in true_best)
    missed = []
    for proposal, score in exact:
        if proposal not in present:
            replacements[round(score, DECIMALS)] -= 1
            if replacements[round(score, DECIMALS)] < 0:
                missed.append((proposal, score))
    return missed


def _checked_matrix(matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"the matrix must be square, (L+1, L+1) with L >= 1; found shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(f"the matrix must be finite; found {matrix[row, column]} at [{row}, {column}]")
    return matrix


def _choice(table: dict[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(table)}")
    return table[name]


def _score(matrix: np.ndarray, proposal: Proposal, rule: Score) -> float:
    return float(rule.value(*_total(matrix, proposal)))


def _total(matrix: np.ndarray, proposal: Proposal) -> tuple[float, int]:
    """The sum of the entries of the segments, and their number."""
    entries = [matrix[first - 1, last] for first, last in segments(proposal)]
    return fsum(entries), len(entries)


def _order(scored: Scored) -> tuple[float, Proposal]:
    proposal, score = scored
    return -round(score, DECIMALS), proposal


def _best_rows(matrix: np.ndarray, proposals: np.ndarray, num_best: int, rule: Score) -> np.ndarray:
    """Indices of the best rows of `proposals` (n, k), in order; rows of equal score must come lexicographically."""
    # A segment opens where the layer before is not dropped, and closes where the next one opens.
    opens = np.ones(proposals.shape, dtype=bool)
    opens[:, 1:] = np.diff(proposals, axis=1) != 1
    closes = np.ones(proposals.shape, dtype=bool)
    closes[:, :-1] = opens[:, 1:]
    counts = opens.sum(axis=1)  # (n,) segments of each proposal
    entries = matrix[proposals[opens] - 1, proposals[closes]]  # row by row: the segments of the first, the second, ...
    scores = rule.value(np.add.reduceat(entries, np.cumsum(counts) - counts), counts)

    # All that may be among the best once scores are rounded; a partition spares sorting the rest.
    rows = np.arange(len(scores))
    if num_best < len(scores):
        rows = np.flatnonzero(scores >= np.partition(scores, -num_best)[-num_best] - 1e-9)
    rounded = np.round(scores[rows], DECIMALS)
    # A sum in another order may fall on the other side of a rounding boundary: score those near one again.
    doubtful = np.abs(scores[rows] * 10**DECIMALS % 1 - 0.5) < 0.05
    for i in np.flatnonzero(doubtful):
        rounded[i] = round(_score(matrix, proposals[rows[i]], rule), DECIMALS)
    return rows[np.argsort(-rounded, kind="stable")[:num_best]]


def _exhaustive(
    matrix: np.ndarray, num_clip_layers: int, num_proposals: int, rule: Score, beam_size: int
) -> Iterable[Proposal]:
    """scores every subset"""
    num_layers = len(matrix) - 1
    existing = comb(num_layers, num_clip_layers)
    if existing > MAX_EXHAUSTIVE:
        raise ValueError(
            f"exhaustive search of {existing} subsets ({num_clip_layers} of {num_layers} layers) is refused above "
            f"{MAX_EXHAUSTIVE}; use mode exact, which finds the same proposals"
        )
    subsets = combinations(range(1, num_layers + 1), num_clip_layers)
    best = np.empty((0, num_clip_layers), dtype=np.intp)
    for _chunk in range(0, existing, _CHUNK):
        flat = np.fromiter(chain.from_iterable(islice(subsets, _CHUNK)), dtype=np.intp)
        candidates = np.concatenate([best, flat.reshape(-1, num_clip_layers)])
        best = candidates[_best_rows(matrix, candidates, num_proposals, rule)]
    return map(tuple, best.tolist())


def _beam(
    matrix: np.ndarray, num_clip_layers: int, num_proposals: int, rule: Score, beam_size: int
) -> Iterable[Proposal]:
    """extends the best few, layer by layer, as published"""
    kept = np.ones((1, len(matrix) - 1), dtype=bool)  # one row a proposal of the beam
    for num_dropped in range(1, num_clip_layers + 1):
        num_best = num_proposals if num_dropped == num_clip_layers else beam_size
        rows, layers = _near_best(matrix, kept, num_best * len(kept), rule)  # each may be found from every row
        candidates = kept[rows]
        candidates[np.arange(len(rows)), layers] = False  # one more layer dropped in each
        candidates = np.unique(candidates, axis=0)  # sorted: earlier dropped layers first
        proposals = np.nonzero(~candidates)[1].reshape(-1, num_dropped) + 1
        best = _best_rows(matrix, proposals, num_best, rule)
        kept = candidates[best]
    return map(tuple, proposals[best].tolist())


def _near_best(matrix: np.ndarray, kept: np.ndarray, number: int, rule: Score) -> tuple[np.ndarray, np.ndarray]:
    """(row of `kept`, 0-based layer that it keeps) of at least the best `number` proposals that drop that layer too.

    Scored by what changes: layer i joins the dropped layers a .. i-1 before it, i+1 .. b after it, both or none.
    """
    places = np.arange(kept.shape[1])
    left = np.maximum.accumulate(np.where(kept, places + 1, 0), axis=1)
    first = np.c_[np.zeros(len(kept), dtype=int), left[:, :-1]]  # 0-based a: h_a goes in; i where i-1 is kept
    right = np.minimum.accumulate(np.where(kept, places, kept.shape[1])[:, ::-1], axis=1)[:, ::-1]
    last = np.c_[right[:, 1:], np.full(len(kept), kept.shape[1])]  # b: h_b comes out; i+1 where i+1 is kept
    rows, layers = np.nonzero(kept)
    first, last = first[rows, layers], last[rows, layers]
    joins_left, joins_right = first < layers, last > layers + 1
    gains = matrix[first, last]
    gains -= np.where(joins_left, matrix[first, layers], 0) + np.where(joins_right, matrix[layers + 1, last], 0)
    totals, counts = zip(*(_total(matrix, (np.flatnonzero(~row) + 1).tolist()) for row in kept), strict=True)
    scores = rule.value(
        np.array(totals)[rows] + gains, np.array(counts)[rows] + 1 - joins_left.astype(int) - joins_right
    )
    if number >= len(scores):
        return rows, layers
    near = scores >= np.partition(scores, -number)[-number] - 1e-9
    return rows[near], layers[near]


def _greedy(
    matrix: np.ndarray, num_clip_layers: int, num_proposals: int, rule: Score, beam_size: int
) -> Iterable[Proposal]:
    """a beam of 1"""
    return _beam(matrix, num_clip_layers, num_proposals, rule, 1)


def _exact(
    matrix: np.ndarray, num_clip_layers: int, num_proposals: int, rule: Score, beam_size: int
) -> Iterable[Proposal]:
    """the true best for any number of layers, in seconds"""
    return best_proposals(
        lambda x: rule.excess(matrix, x),
        lambda proposal: round(_score(matrix, proposal, rule), DECIMALS),
        0.5 * 10**-DECIMALS,
        float(matrix.max()),
        num_clip_layers,
        num_proposals,
    )


# All take what `coarse_search` checked; `beam_size` is read by beam alone. Their docstrings are what `--help` says.
SEARCH_MODES = {"exhaustive": _exhaustive, "greedy": _greedy, "beam": _beam, "exact": _exact}
