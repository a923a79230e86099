import pickle

import numpy as np
import pytest
import torch
from measures_oracles import walk

from measures.moments import BLOCK_ROWS, Moments


def moments(*updates, **options):
    sums = Moments(**options)
    for states in updates:
        sums.update(states)
    return sums


def centred(states):
    return [state.double().numpy() - state.double().numpy().mean(0) for state in states]


def relative(found, expected):
    return np.abs(found.numpy() - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("samples", [3, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS - 5])
def test_products_are_those_of_the_centred_samples(samples):
    states = [state[:, :width] + 50 for state, width in zip(walk(samples, 8), (8, 3, 1, 5, 8), strict=True)]
    sums, exact = moments(states), centred(states)
    assert sums.samples == samples
    for layer in range(5):
        own = sums.own(layer).numpy()
        assert np.array_equal(own, own.T)
        assert np.abs(own / samples - exact[layer].T @ exact[layer] / samples).max() < 1e-12
        for other, product in enumerate(sums.cross_products(layer), layer + 1):
            assert product.dtype == torch.float64
            assert np.abs(product.numpy() - exact[layer].T @ exact[other]).max() / samples < 1e-12


def test_products_from_the_left():
    states, left = walk(50, 8), torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for found, product in zip(moments(states).cross_products(1, left), moments(states).cross_products(1), strict=True):
        assert torch.allclose(found, left.T @ product, atol=1e-12)


def test_sums_do_not_depend_at_all_on_the_division_into_updates():
    states = walk(2 * BLOCK_ROWS + 7, 8)
    parts = [state.split([1, 30, BLOCK_ROWS + 5, BLOCK_ROWS - 29]) for state in states]
    first, second = moments(states), moments(*zip(*parts, strict=True))
    for layer in range(4):
        for one, other in zip(first.cross_products(layer), second.cross_products(layer), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("offset", [0.0, 1e-3, 1.0, 1e4])
def test_sums_about_another_shift_are_translated(offset):
    states = walk(400, 6, layers=3)
    first = [state[:150] for state in states]
    second = [state[150:] + offset * (layer + 1) for layer, state in enumerate(states)]
    exact = centred([torch.cat(pair) for pair in zip(first, second, strict=True)])
    merged = moments(first, norms=True)
    merged.merge(moments(second, norms=True))
    for layer in range(4):
        assert relative(merged.own(layer), exact[layer].T @ exact[layer]) < 1e-13
        for other, product in enumerate(merged.cross_products(layer), layer + 1):
            assert relative(product, exact[layer].T @ exact[other]) < 1e-13
    norms = np.stack([(state**2).sum(1) for state in exact])
    assert relative(merged.centred_norm_products(), norms @ norms.T) < 1e-13


def test_memory_is_that_of_the_sums_whatever_the_number_of_samples():
    sums, sizes = Moments(), []
    for rows in (10, 5 * BLOCK_ROWS):
        sums.update(walk(rows, 8))
        sizes.append(len(pickle.dumps(sums)))
    values = 15 * 64 + 2 * 40  # products of 15 pairs of layers, sums, shift; nothing of the rows
    assert abs(sizes[0] - sizes[1]) < 100 and sizes[0] < 8 * values + 10_000


def test_constant_layers_by_feature():
    states = walk(2000, 8)
    states[1] = torch.full_like(states[1], 0.1)
    states[2] = torch.full_like(states[2], 1e6)
    states[2][:, 3] = 1e-3 * states[3][:, 0]  # one feature varies, far below the size of the others
    assert moments(states).constant_layers() == [1]
