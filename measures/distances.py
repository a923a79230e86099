"""Euclidean distances of rows by one matrix product, exact also where rows nearly coincide."""

import torch
from torch import Tensor

CLOSE = 1e-6  # share of |x|^2 + |y|^2 below which digits of float64 are lost
PAIRS_AT_ONCE = 4096


def pairwise_distances(rows: Tensor) -> Tensor:
    """|x_a - x_b| for the rows of every float64 matrix: (b, m, d) -> (b, m, m), symmetric, zeros on the diagonal.

    |x|^2 + |y|^2 - 2 x'y loses digits where the rows nearly coincide; those pairs are computed again by differences,
    so the absolute error stays below 1e-12 of the rows' norms. Subtract a common offset first.
    """
    norms = torch.linalg.vector_norm(rows, dim=-1).square_()
    squares = torch.baddbmm(norms.unsqueeze(-1) + norms.unsqueeze(-2), rows, rows.mT, alpha=-2)
    diagonal = squares.diagonal(dim1=-2, dim2=-1)
    diagonal.fill_(torch.inf)
    if squares.amin() < 2 * CLOSE * norms.amax():
        _recompute_close(squares, rows, norms)
    diagonal.zero_()
    return squares.sqrt_()


def _recompute_close(squares: Tensor, rows: Tensor, norms: Tensor) -> None:
    sizes = norms.unsqueeze(-1) + norms.unsqueeze(-2)
    batch, first, second = torch.nonzero((squares <= CLOSE * sizes).triu(1), as_tuple=True)
    for start in range(0, len(batch), PAIRS_AT_ONCE):
        b, i, j = (index[start : start + PAIRS_AT_ONCE] for index in (batch, first, second))
        exact = (rows[b, i] - rows[b, j]).square().sum(-1)
        squares[b, i, j] = exact
        squares[b, j, i] = exact
