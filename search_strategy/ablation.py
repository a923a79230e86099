"""Step 1 by the effect itself: how much the text embedding changes when consecutive layers are skipped."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from common import Record, show_progress
from models import Encoder
from search_strategy.fine import FineSearch
from tasks.distance import Distance


def ablation_matrix(search: FineSearch) -> np.ndarray:
    """The (L+1, L+1) matrix of a fine search by `Distance`."""
    states = range(search.encoder.num_layers + 1)
    skipped = list(combinations(states, 2))
    distances = search.objectives(tuple(range(first + 1, last + 1)) for first, last in skipped)
    matrix = np.eye(len(states))
    for (first, last), distance in zip(skipped, distances, strict=True):
        matrix[first, last] = matrix[last, first] = 1 - distance
    return matrix


def ablations(clip: Encoder, draws: Sequence[list[str]], record: Record) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The matrix of each draw of captions; a model has no shuffled rows to compare with."""
    searches = [
        FineSearch(clip, captions, Distance(clip.embeddings(captions)), progress=show_progress()) for captions in draws
    ]
    with record.timed("measure"):
        matrices = [ablation_matrix(search) for search in searches]
    record.note(samples=len(draws[0]), layer_calls=round(searches[0].layer_calls))
    return matrices, []
