"""Correlation between the covariance matrices of two layers."""

import numpy as np
import torch

from measures.base import SummedMeasure, symmetric_matrix
from measures.checks import check_samples, without_gradients
from measures.moments import Moments


class CovCorr(SummedMeasure):
    """Pearson correlation over the d^2 entries of the covariance matrices of two layers, in [-1, 1].

    Looks at how features vary together, never at which samples: layers of the same width only, and with their features
    in the same basis, as in a residual stream. Not invariant to rotations. It needs each layer's own products only, in
    float64.

    Warning:
        Two layers over unrelated samples can correlate at 1. Shuffling the rows does not change it: `Shuffled` gives
        the same matrix.
    """

    def __init__(self) -> None:
        super().__init__(Moments(cross=False, same_width=True))

    @without_gradients
    def matrix(self) -> np.ndarray:
        """The (L+1, L+1) matrix. ValueError below 2 samples."""
        check_samples(self.samples)
        covariances = torch.stack([self._sums.own(layer).flatten() for layer in range(len(self._sums.widths))])
        centred = covariances - covariances.mean(1, keepdim=True)  # (L+1, d d)
        norms = torch.linalg.vector_norm(centred, dim=1)
        # entries that are all equal but for rounding have no correlation
        constant = norms <= 1e-14 * torch.linalg.vector_norm(covariances, dim=1)
        constant[self._sums.constant_layers()] = True
        directions = centred / torch.where(constant, 1.0, norms).unsqueeze(1)
        return symmetric_matrix(
            (directions @ directions.T).cpu(), torch.nonzero(constant).flatten().tolist(), lowest=-1.0
        )
