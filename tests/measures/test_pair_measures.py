"""cosine, angular, delta_mean, covcorr: values that can be worked out by hand, and what they see."""

import numpy as np
import pytest
import torch
from measures_oracles import difference, walk

from measures import MEASURES
from measures.angular import Angular
from measures.cosine import Cosine
from measures.covcorr import CovCorr
from measures.delta_mean import DeltaMean


def entry(kind, first, second):
    return matrix(kind, [torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)])[0, 1]


def matrix(kind, states):
    measure = kind()
    measure.update(states)
    return measure.matrix()


FIRST = [[1, 0], [2, 0], [0, 3]]
SECOND = [[1, 1], [-4, 0], [0, 1]]  # at 45, 180 and 0 degrees


def test_cosine_by_hand():
    assert entry(Cosine, FIRST, SECOND) == pytest.approx((np.sqrt(0.5) - 1 + 1) / 3, abs=1e-15)


def test_angular_by_hand():
    assert entry(Angular, FIRST, SECOND) == pytest.approx((0.75 + 0 + 1) / 3, abs=1e-15)


def test_delta_mean_by_hand():
    unchanged = [1 - 1 / (1 + np.sqrt(2)), 0, 1 - 2 / 4]
    assert entry(DeltaMean, FIRST, SECOND) == pytest.approx(sum(unchanged) / 3, abs=1e-15)


def test_covcorr_by_hand():
    first = [[1, 0], [-1, 0], [0, 1], [0, -1]]  # covariance diag(1, 1) / 2
    second = [[1, 1], [-1, -1], [0, 0], [0, 0]]  # all entries 1 / 2
    third = [[2, 0], [-2, 0], [0, 0], [0, 0]]  # diag(2, 0)
    assert entry(CovCorr, first, third) == pytest.approx(1 / np.sqrt(3), abs=1e-15)
    with pytest.warns(UserWarning, match=r"constant layers \[1\]"):  # entries that are all equal correlate with nothing
        assert entry(CovCorr, first, second) == 0


def test_zero_vectors():
    first, second = [[1, 0], [0, 0], [0, 0]], [[1, 0], [5, 5], [0, 0]]
    assert entry(Cosine, first, second) == pytest.approx(1 / 3)
    assert entry(Angular, first, second) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert entry(DeltaMean, first, second) == pytest.approx((1 + 0 + 1) / 3)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-12])
def test_small_angles_and_changes_keep_their_digits(size):
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    second = torch.tensor([[1.0, size], [-size, 1.0]]).double()
    assert 1 - matrix(Angular, [first, second])[0, 1] == pytest.approx(np.arctan(size) / np.pi, rel=1e-3)
    assert 1 - matrix(DeltaMean, [first, second])[0, 1] == pytest.approx(size / 2, rel=1e-3)


def test_only_delta_mean_sees_a_change_of_norm():
    states = walk(50, 8, layers=1)
    scaled = [states[0], 3 * states[1]]
    assert difference(matrix(Cosine, scaled), matrix(Cosine, states)) < 1e-14
    assert difference(matrix(Angular, scaled), matrix(Angular, states)) < 1e-14
    assert difference(matrix(DeltaMean, scaled), matrix(DeltaMean, states)) > 0.05


def test_covcorr_does_not_see_which_sample_is_which():
    states = walk(50, 8, layers=1)
    reordered = [states[0], states[1].flip(0)]
    assert difference(matrix(CovCorr, reordered), matrix(CovCorr, states)) < 1e-13
    assert difference(matrix(MEASURES["cka"], reordered), matrix(MEASURES["cka"], states)) > 0.3


def test_many_samples_in_chunks_are_the_same(monkeypatch):
    states = walk(50, 8)
    expected = matrix(Angular, states)
    monkeypatch.setattr("measures.pair_measure.VALUES_AT_ONCE", 7 * 5 * 8)
    assert difference(matrix(Angular, states), expected) < 1e-14
