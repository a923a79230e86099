import pickle
from functools import partial

import numpy as np
import pytest
import torch
from measures_oracles import walk

from measures import moments as module
from measures.cka import CKA
from measures.moments import BLOCK_ROWS, Moments
from measures.pwcca import PWCCA
from measures.svcca import SVCCA


def moments(*updates, **options):
    sums = Moments(**options)
    for states in updates:
        sums.update(states)
    return sums


def crosses(sums, maps=None):
    """Every pair of layers and its product."""
    return {
        (int(i), int(j)): product
        for firsts, seconds, products in sums.cross(maps)
        for i, j, product in zip(firsts, seconds, products, strict=True)
    }


@pytest.fixture(params=["rule", "samples", "sums"])
def store(request, monkeypatch):
    """What is kept: by the rule, or one of both whatever it says."""
    if request.param != "rule":
        monkeypatch.setattr(Moments, "_keeps", lambda *_: request.param == "samples")
    return request.param


def centred(states):
    return [state.double().numpy() - state.double().numpy().mean(0) for state in states]


def relative(found, expected):
    return np.abs(found.numpy() - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("samples", [3, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS - 5])
def test_products_are_those_of_the_centred_samples(samples, store):
    states = [state[:, :width] + 50 for state, width in zip(walk(samples, 8), (8, 3, 1, 5, 8), strict=True)]
    sums, exact = moments(states), centred(states)
    assert sums.samples == samples
    for layer in range(5):
        own = sums.own(layer).numpy()
        assert np.array_equal(own, own.T)
        assert np.abs(own / samples - exact[layer].T @ exact[layer] / samples).max() < 1e-12
    found = crosses(sums)
    assert list(found) == [(i, j) for i in range(5) for j in range(i + 1, 5)]
    for (i, j), product in found.items():
        assert product.dtype == torch.float64
        assert np.abs(product.numpy() - exact[i].T @ exact[j]).max() / samples < 1e-12


@pytest.mark.parametrize("tile", [8, 24, 2048])
def test_maps_are_applied_from_both_sides_whatever_the_tile(tile, store, monkeypatch):
    monkeypatch.setattr(module, "TILE_COLUMNS", tile)
    states, kept = walk(50, 8), (3, 8, 1, 5, 8)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(8, k, generator=generator, dtype=torch.float64) for k in kept]
    exact = centred(states)
    for (i, j), product in crosses(moments(states), maps).items():
        expected = torch.zeros_like(product)  # what a smaller one of a tile lacks
        expected[: kept[i], : kept[j]] = maps[i].T @ torch.from_numpy(exact[i].T @ exact[j]) @ maps[j]
        torch.testing.assert_close(product, expected, atol=1e-12, rtol=1e-12)


def test_nothing_depends_at_all_on_the_division_into_updates(store):
    states = walk(2 * BLOCK_ROWS + 7, 8)
    parts = [state.split([1, 30, BLOCK_ROWS + 5, BLOCK_ROWS - 29]) for state in states]
    first, second = crosses(moments(states)), crosses(moments(*zip(*parts, strict=True)))
    assert all(torch.equal(first[pair], second[pair]) for pair in first)


@pytest.mark.parametrize("offset", [0.0, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("kept", [(False, False), (True, False), (False, True), (True, True)])
def test_samples_and_sums_about_any_shift_can_be_merged(offset, kept, monkeypatch):
    states = walk(400, 6, layers=3)
    first = [state[:150] for state in states]
    second = [state[150:] + offset * (layer + 1) for layer, state in enumerate(states)]
    exact = centred([torch.cat(pair) for pair in zip(first, second, strict=True)])
    sums = []
    for part, keeps in zip((first, second), kept, strict=True):
        monkeypatch.setattr(Moments, "_keeps", lambda *_, keeps=keeps: keeps)
        sums.append(pickle.loads(pickle.dumps(moments(part, norms=True))))
    merged, other = sums
    merged.merge(other)
    assert merged.samples == 400
    for layer in range(4):
        assert relative(merged.own(layer), exact[layer].T @ exact[layer]) < 1e-13
    for (i, j), product in crosses(merged).items():
        assert relative(product, exact[i].T @ exact[j]) < 1e-13
    norms = np.stack([(state**2).sum(1) for state in exact])
    assert relative(merged.centred_norm_products(), norms @ norms.T) < 1e-13


def test_memory_is_that_of_the_samples_or_of_the_sums_whichever_is_smaller():
    few, sizes = Moments(), []
    for rows in (10, 5 * BLOCK_ROWS, 20 * BLOCK_ROWS):
        few.update(walk(rows, 8))
        sizes.append(len(pickle.dumps(few)))
    values = 15 * 64 + 2 * 40  # products of 15 pairs of layers, sums, shift; nothing of the rows
    assert sizes[0] < 8 * 10 * 40 + 8 * 40 + 5_000
    assert abs(sizes[1] - sizes[2]) < 100 and sizes[1] < 8 * values + 10_000


def test_samples_are_kept_in_their_own_type():
    wide, narrow = (moments([state.to(dtype) for state in walk(10, 8)]) for dtype in (torch.float64, torch.float32))
    assert len(pickle.dumps(wide)) - len(pickle.dumps(narrow)) == pytest.approx(4 * 10 * 40, abs=10)
    mixed = moments([state.float() for state in walk(10, 8)], walk(10, 8))
    assert mixed.samples == 20


@pytest.mark.parametrize("samples", [40, 2500])
@pytest.mark.parametrize("make", [SVCCA, PWCCA, CKA, partial(CKA, debiased=True)])
def test_measures_are_the_same_from_samples_and_from_sums(make, samples, monkeypatch):
    matrices = []
    for keeps in (True, False):
        monkeypatch.setattr(Moments, "_keeps", lambda *_, keeps=keeps: keeps)
        measure = make()
        measure.update([state.float() for state in walk(samples, 16, layers=6)])
        matrices.append(measure.matrix())
    assert np.abs(matrices[0] - matrices[1]).max() < 1e-9


@pytest.mark.parametrize("make", [SVCCA, PWCCA])
def test_large_products_of_float32_samples_are_taken_in_float32(make, monkeypatch):
    monkeypatch.setattr(Moments, "_keeps", lambda *_: True)
    matrices = {}
    for dtype in (torch.float32, torch.float64):
        for at_least in (0, 2**44):
            monkeypatch.setattr("measures.products.SINGLE_FROM", at_least)
            measure = make()
            measure.update([state.float().to(dtype) for state in walk(200, 16, layers=6)])
            matrices[dtype, at_least] = measure.matrix()
    exact = matrices[torch.float64, 2**44]
    assert np.array_equal(matrices[torch.float64, 0], exact)
    assert np.abs(matrices[torch.float32, 2**44] - exact).max() < 1e-12
    assert 0 < np.abs(matrices[torch.float32, 0] - exact).max() < 5e-7


def test_constant_layers_by_feature(store):
    states = walk(2000, 8)
    states[1] = torch.full_like(states[1], 0.1)
    states[2] = torch.full_like(states[2], 1e6)
    states[2][:, 3] = 1e-3 * states[3][:, 0]  # one feature varies, far below the size of the others
    assert moments(states).constant_layers() == [1]
