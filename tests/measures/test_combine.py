import numpy as np
import pytest
from scipy.stats import spearmanr

from measures.combine import combine


def symmetric(upper):
    size = next(n for n in range(2, 20) if n * (n - 1) // 2 == len(upper))
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size, 1)] = upper
    return matrix + matrix.T + np.eye(size)


def upper(matrix):
    return matrix[np.triu_indices(len(matrix), 1)].tolist()


def test_ranks_from_zero_to_one():
    assert upper(combine([symmetric([0.3, 0.1, 0.2])])) == [1.0, 0.0, 0.5]


def test_ties_get_their_mean_rank():
    assert upper(combine([symmetric([0.3, 0.3, 0.1])])) == [0.75, 0.75, 0.0]
    assert upper(combine([symmetric([0.3, 0.3, 0.3])])) == [0.5, 0.5, 0.5]
    assert upper(combine([symmetric([0.3])])) == [0.5]


def test_the_mean_of_the_ranks():
    first, second = symmetric([0.3, 0.1, 0.2]), symmetric([0.9, 0.95, 0.99])
    assert upper(combine([first, second])) == [0.5, 0.25, 0.75]


def test_symmetric_with_ones_on_the_diagonal_and_inputs_unchanged():
    rng = np.random.default_rng(0)
    matrices = [symmetric(rng.normal(size=21)) for _ in range(3)]
    copies = [matrix.copy() for matrix in matrices]
    combined = combine(matrices)
    assert combined.dtype == np.float64
    assert np.array_equal(combined, combined.T) and (np.diag(combined) == 1).all()
    assert all(np.array_equal(matrix, copied) for matrix, copied in zip(matrices, copies, strict=True))


def test_only_the_order_of_each_matrix_counts():
    rng = np.random.default_rng(0)
    first, second = rng.random(21), rng.random(21)
    expected = combine([symmetric(first), symmetric(second)])
    assert np.array_equal(combine([symmetric(np.exp(5 * first)), symmetric(second**3)]), expected)
    assert not np.array_equal(combine([symmetric(-first), symmetric(second)]), expected)
    assert spearmanr(upper(combine([symmetric(first)])), first)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ([], "at least one matrix to combine; found none"),
        ([np.eye(3), np.eye(4)], r"of one shape, \(3, 3\); matrix 1 has the shape \(4, 4\)"),
        ([np.ones((2, 3))], r"square matrices of at least 2 rows; matrix 0 has the shape \(2, 3\)"),
        ([np.eye(1)], r"at least 2 rows; matrix 0 has the shape \(1, 1\)"),
        ([np.eye(3), np.full((3, 3), np.nan)], "matrix 1 holds NaN or infinity"),
        ([np.triu(np.ones((3, 3)))], "matrix 0 is not symmetric"),
    ],
)
def test_refuses_what_is_not_a_similarity_matrix(matrices, message):
    with pytest.raises(ValueError, match=message):
        combine(matrices)
