"""Mean cosine: 1 minus the block influence of ShortGPT, Men et al. 2024, equation 1 (arXiv 2403.03853)."""

from torch import Tensor

from measures.pair_measure import PairMeasure, unit_vectors


class Cosine(PairMeasure):
    """Mean over samples of cos(h_i, h_j), the vectors of one sample after two layers of the same width, in [-1, 1].

    Nothing is centred, so a large component that all samples share gives values near 1. No layer is compared with
    anything but itself at the same sample: not invariant to rotations of one layer. A zero vector's cosine is 0.
    """

    lowest = -1.0

    def sum_over_samples(self, vectors: Tensor) -> Tensor:
        unit = unit_vectors(vectors)
        return (unit @ unit.mT).sum(0)
