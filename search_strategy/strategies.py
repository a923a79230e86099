"""The rivals: other ways to choose layers to drop, each a pure function that gives one proposal."""

import numpy as np

from search_strategy.proposals import Proposal
from search_strategy.refine import Objective


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
