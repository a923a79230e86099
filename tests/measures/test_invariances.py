"""What each measure must ignore, and, as a counter-check, what it must not."""

import pytest
import torch
from measures_oracles import difference, walk

from measures import MEASURES

STATES = walk(400, 8, layers=2)


def generator():
    return torch.Generator().manual_seed(7)


def invertible(state):
    width = state.shape[1]
    return state @ (torch.randn(width, width, generator=generator()).double() + 2 * torch.eye(width)).double()


def rotation(state):
    width = state.shape[1]
    return state @ torch.linalg.qr(torch.randn(width, width, generator=generator(), dtype=torch.float64))[0]


def scaling(state):
    return 7.5 * state


def offset(state):
    return state + torch.arange(state.shape[1]) / 4


def unequal_scaling(state):
    return state * torch.linspace(0.2, 3, state.shape[1], dtype=torch.float64)


def nonlinear(state):
    return state**3


def row_order(state):
    return state.flip(0)


TRANSFORMATIONS = [invertible, rotation, scaling, offset, unequal_scaling, nonlinear, row_order]
CASES = {
    "svcca thre 1": ("svcca", {"thre": 1.0}, {invertible, rotation, scaling, offset, unequal_scaling}),
    "svcca": ("svcca", {"thre": 0.8}, {rotation, scaling, offset}),
    "pwcca": ("pwcca", {"thre": 0.8}, {offset, scaling}),  # its weights are sums over features
    "dc": ("dc", {}, {rotation, scaling}),  # rows are normalised, so an offset counts
    "dc unbiased": ("dc", {"estimator": "unbiased"}, {rotation, scaling}),
    "cka": ("cka", {}, {rotation, scaling, offset}),
    "cka debiased": ("cka", {"debiased": True}, {rotation, scaling, offset}),
    "cosine": ("cosine", {}, {scaling}),
    "angular": ("angular", {}, {scaling}),
    "covcorr": ("covcorr", {}, {scaling, offset, row_order}),
    "delta_mean": ("delta_mean", {}, set()),
}


def matrix(case, states):
    name, options, _ = CASES[case]
    measure = MEASURES[name](**options)
    measure.update(states)
    return measure.matrix()


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("case", CASES)
def test_transforming_one_layer(case, transformation):
    changed = [STATES[0], transformation(STATES[1]), STATES[2]]
    found = difference(matrix(case, changed), matrix(case, STATES))
    if transformation in CASES[case][2]:
        assert found < 1e-11
    else:
        assert found > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_the_same_order_of_samples_in_all_layers_does_not_matter(case):
    assert difference(matrix(case, [row_order(state) for state in STATES]), matrix(case, STATES)) < 1e-12
