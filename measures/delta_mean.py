"""Mean relative change of the hidden state between two layers, as a similarity."""

import torch
from torch import Tensor

from measures.distances import pairwise_distances
from measures.pair_measure import PairMeasure


class DeltaMean(PairMeasure):
    """1 - r/2, where r is the mean over samples of |h_j - h_i| / ((|h_i| + |h_j|) / 2), in [0, 1].

    r is the relative change of the hidden state, taken relative to the mean of the two norms, which makes it symmetric
    and at most 2 (triangle inequality). The map is linear, so the mean of several entries, the coarse score, is minus
    the mean change up to a constant. 1 where a sample's two vectors are equal, 0 where they are opposite or one is 0.
    Layers of the same width only. Unlike the cosine it sees a change of norm.
    """

    def sum_over_samples(self, vectors: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(vectors, dim=-1)
        sizes = norms.unsqueeze(-1) + norms.unsqueeze(-2)  # (n, L+1, L+1): |h_i| + |h_j|
        return (1 - pairwise_distances(vectors) / torch.where(sizes > 0, sizes, 1)).sum(0)  # two zero vectors: 1
