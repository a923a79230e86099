"""Angular similarity: 1 minus the angular distance of Gromov et al. 2024, equation 6 (arXiv 2403.17887)."""

import math

import torch
from torch import Tensor

from measures.distances import pairwise_distances
from measures.pair_measure import PairMeasure, unit_vectors


class Angular(PairMeasure):
    """Mean over samples of 1 - arccos(cos(h_i, h_j)) / pi, two layers of the same width, in [0, 1].

    The original takes the last token's vector; here it is whatever vector a sample has (`--pool eos` for that). As with
    the cosine nothing is centred, and independent vectors give 0.5. A zero vector is at a right angle to everything.
    """

    def sum_over_samples(self, vectors: Tensor) -> Tensor:
        # the angle of unit vectors is 2 arcsin(|u - v| / 2): the arc cosine loses half of the digits near 1
        chords = pairwise_distances(unit_vectors(vectors))
        zero = ~vectors.any(-1)
        chords.masked_fill_(zero.unsqueeze(-1) | zero.unsqueeze(-2), math.sqrt(2))
        return (1 - 2 / math.pi * torch.asin((chords / 2).clamp_max_(1))).sum(0)
