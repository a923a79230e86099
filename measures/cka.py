"""Linear CKA: Kornblith et al. 2019 (arXiv 1905.00414); debiased with the HSIC of Song et al. 2012 (equation 5)."""

import numpy as np
import torch
from torch import Tensor

from measures.base import SummedMeasure, symmetric_matrix
from measures.checks import check_samples, without_gradients
from measures.moments import Moments


class CKA(SummedMeasure):
    """Linear centred kernel alignment: HSIC(K_i, K_j) / sqrt(HSIC(K_i, K_i) HSIC(K_j, K_j)), with K_i = X_i X_i'.

    The n x n kernels are never formed. For centred samples the biased HSIC is |X_i'X_j|^2 (Frobenius), in [0, 1] as
    CKA. The unbiased one, with the diagonals of K and L left out, is

        [|X'Y|^2 - n/(n-2) sum_s |x_s|^2 |y_s|^2 + sum_s |x_s|^2 sum_s |y_s|^2 / ((n-1)(n-2))] / (n (n-3)),

    since the rows of a centred kernel sum to 0; all of it are sums over samples, so the debiased CKA, in [-1, 1] and
    around 0 for independent layers, is exact for any number of samples in updates of any size.

    Warning:
        The biased form of independent layers grows with width over samples: about d / (n + d) for d Gaussian features.

    Args:
        debiased: use the unbiased HSIC; needs 4 samples.
    """

    def __init__(self, *, debiased: bool = False) -> None:
        super().__init__(Moments(norms=debiased), debiased=debiased)
        self.min_samples = 4 if debiased else 3  # of two samples it is 1, whatever they are

    @without_gradients
    def matrix(self) -> np.ndarray:
        """The (L+1, L+1) matrix. ValueError below 3 samples (debiased: 4)."""
        debiased = self.options["debiased"]
        check_samples(self.samples, self.min_samples)
        hsic = self._squared_products()
        smallest = 1e-13 * hsic.diagonal()  # what is left of less, when the bias is taken off, is rounding
        if debiased:
            hsic = self._remove_bias(hsic)
        constant = hsic.diagonal() <= smallest
        constant[self._sums.constant_layers()] = True
        inverses = torch.where(constant, 0.0, hsic.diagonal().rsqrt())
        undefined = torch.nonzero(constant).flatten().tolist()
        return symmetric_matrix(
            (hsic * torch.outer(inverses, inverses)).cpu(), undefined, lowest=-1.0 if debiased else 0.0
        )

    def _squared_products(self) -> Tensor:
        """|X_i'X_j|^2 for i <= j: (L+1, L+1)."""
        layers = range(len(self._sums.widths))
        own = torch.stack([self._sums.own(layer).square().sum() for layer in layers])
        squares = torch.diag(own)
        for firsts, seconds, products in self._sums.cross():
            squares[firsts, seconds] = products.square_().sum((1, 2))
        return squares

    def _remove_bias(self, squares: Tensor) -> Tensor:
        n = self.samples
        variances = torch.stack([self._sums.own(layer).trace() for layer in range(len(squares))])
        corrected = squares - n / (n - 2) * self._sums.centred_norm_products()
        return (corrected + torch.outer(variances, variances) / ((n - 1) * (n - 2))) / (n * (n - 3))
