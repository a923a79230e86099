"""Mean cosine: 1 minus the block influence of ShortGPT, Men et al. 2024, equation 1 (arXiv 2403.03853)."""

import numpy as np
from torch import Tensor

from measures.base import SummedMeasure, symmetric_matrix
from measures.checks import check_samples
from measures.pairsums import PairSums, unit_vectors


def summed_cosines(vectors: Tensor) -> Tensor:
    """The sum over samples of the cosines between layers: (n, L+1, d) -> (L+1, L+1). A zero vector's is 0."""
    unit = unit_vectors(vectors)
    return (unit @ unit.mT).sum(0)


class Cosine(SummedMeasure):
    """Mean over samples of cos(h_i, h_j), the vectors of one sample after two layers of the same width, in [-1, 1].

    Nothing is centred, so a large component that all samples share gives values near 1. No layer is compared with
    anything but itself at the same sample: not invariant to rotations of one layer.
    """

    def __init__(self) -> None:
        super().__init__(PairSums(summed_cosines))

    def matrix(self) -> np.ndarray:
        """The (L+1, L+1) matrix. ValueError below 2 samples."""
        check_samples(self.samples)
        return symmetric_matrix(self._sums.mean(), self._sums.constant_layers(), lowest=-1.0)
