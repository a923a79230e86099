"""Projection-weighted CCA: Morcos et al. 2018, section 3.2 (arXiv 1806.05759)."""

import torch
from torch import Tensor

from measures.svcca import SVCCA


class PWCCA(SVCCA):
    """Mean canonical correlation of every two layers, weighted by how much of a layer each direction accounts for.

    With canonical variates H = U_i A (n, c), c = min(k_i, k_j), and correlations rho, the weight of direction l seen
    from layer i is alpha_l = sum over features f of |<h_l, x_f>|, x_f the centred features of layer i projected on the
    directions kept; the weighted mean of rho is sum(alpha rho) / sum(alpha). The paper takes the weights from one of
    the two layers, so that its measure is not symmetric; here the entry is the mean of both ways. In [0, 1].

    Options, `diagnostics` and warnings are those of `SVCCA`; with `thre=1` nothing but null directions is cut off, as
    in the paper.
    """

    def _entries(
        self, products: Tensor, firsts: Tensor, seconds: Tensor, directions: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        pairs = zip(products, firsts.tolist(), seconds.tolist(), strict=True)
        entries = [_entry(product, directions[i], directions[j]) for product, i, j in pairs]
        return torch.tensor(entries, dtype=torch.float64)


def _entry(product: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """The entry of two layers from U_i'U_j, (k_i, k_j) but for zeros behind, and their singular values and vectors."""
    product = product[: len(first[0]), : len(second[0])]
    if 0 in product.shape:
        return 0.0
    left, correlations, right = torch.linalg.svd(product, full_matrices=False)
    correlations = correlations.clamp_max_(1)
    means = [
        _weighted_mean(correlations, values, vectors, rotation)
        for (values, vectors), rotation in ((first, left), (second, right.T))
    ]
    return sum(means) / 2


def _weighted_mean(correlations: Tensor, values: Tensor, vectors: Tensor, rotation: Tensor) -> float:
    projections = (vectors * values) @ rotation  # X'H = V S A: (d, c)
    weights = projections.abs().sum(0)
    return (weights @ correlations / weights.sum()).item()
