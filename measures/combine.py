"""One matrix out of several measures' matrices."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def combine(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the matrices after a rank transform of their entries above the diagonal; ones on the diagonal.

    In each matrix the m entries above the diagonal become their ranks from 0 to 1, (rank - 1) / (m - 1), with the mean
    rank for ties (0.5 when all are equal, or when there is only one). So each measure counts the same, whatever its
    scale, and only its order of the pairs matters.

    Args:
        matrices: at least one (n, n) matrix, n >= 2, all of one shape, symmetric and finite.

    Returns:
        (n, n) float64, symmetric, entries in [0, 1].

    Raises:
        ValueError: no matrix, or one that is not as above.
    """
    matrices = [np.asarray(matrix, dtype=np.float64) for matrix in matrices]
    if not matrices:
        raise ValueError("expected at least one matrix to combine; found none")
    for number, matrix in enumerate(matrices):
        _check_matrix(matrix, number, matrices[0].shape)
    upper = np.triu_indices(len(matrices[0]), 1)
    ranks = [_unit_ranks(matrix[upper]) for matrix in matrices]
    combined = np.zeros_like(matrices[0])
    combined[upper] = np.mean(ranks, axis=0)
    combined += combined.T
    np.fill_diagonal(combined, 1.0)
    return combined


def _unit_ranks(values: np.ndarray) -> np.ndarray:
    if len(values) == 1:
        return np.array([0.5])
    return (rankdata(values) - 1) / (len(values) - 1)


def _check_matrix(matrix: np.ndarray, number: int, shape: tuple[int, ...]) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"expected square matrices of at least 2 rows; matrix {number} has the shape {matrix.shape}")
    if matrix.shape != shape:
        raise ValueError(f"expected matrices of one shape, {shape}; matrix {number} has the shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"expected finite matrices; matrix {number} holds NaN or infinity: compute it again")
    if not np.array_equal(matrix, matrix.T):
        raise ValueError(f"expected symmetric matrices; matrix {number} is not symmetric: compute it again")
