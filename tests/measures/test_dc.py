import math
import pickle

import numpy as np
import pytest
import torch
from measures_oracles import difference, pairwise, plain_dc, plain_distances, walk

from measures import dc as dc_module
from measures.dc import DC

ESTIMATORS = ("biased", "unbiased")


def dc(*draws, **options):
    measure = DC(**options)
    for states in draws:
        measure.update(states)
    return measure.matrix()


def normalised(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("samples", "width"), [(4, 3), (5, 1), (12, 6), (32, 16), (60, 200)])
def test_equals_the_double_loop(estimator, samples, width):
    states = walk(samples, width, layers=3)
    if width == 1:  # unit rows of width 1 are +1 or -1
        states = [torch.cat([state, torch.ones_like(state)], 1) for state in states]
    expected = pairwise(lambda x, y: plain_dc(x, y, estimator == "unbiased"), states)
    assert difference(dc(states, estimator=estimator), expected) < 1e-10


def test_literal_numbers():
    # dcor 0.7 on the rows divided by their norms
    x = torch.tensor([[1, 2, 3], [3, -1, 0], [2, 2, -5], [0, 4, 1], [-2, 1, 1]], dtype=torch.float64)
    y = torch.tensor([[2, 0], [1, 3], [-1, 1], [4, -3], [-2, -2]], dtype=torch.float64)
    assert dc([x, y])[0, 1] == pytest.approx(0.912540367886368, abs=1e-10)
    assert dc([x, y], estimator="unbiased")[0, 1] == pytest.approx(0.652794882960425, abs=1e-10)


def test_crossed_factors_do_not_correlate():
    e = torch.tensor([1.0, 0.0])
    first, second = torch.stack([e, e, -e, -e]), torch.stack([e, -e, e, -e])
    assert dc([first, second])[0, 1] == pytest.approx(0, abs=1e-14)


def test_four_points_by_hand():
    # two directions at a right angle, in groups of 2 and 2 against 1 and 3; centred distances in units of sqrt(2)
    e, f = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    a = np.kron(np.array([[-1, 1], [1, -1]]) / 2, np.ones((2, 2)))
    b = np.array([[-9, 3, 3, 3], [3, -1, -1, -1], [3, -1, -1, -1], [3, -1, -1, -1]]) / 8
    expected = (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())
    assert expected == pytest.approx(1 / 3)
    assert dc([torch.stack([e, e, f, f]), torch.stack([e, f, f, f])])[0, 1] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_matrix_is_the_mean_of_the_draws(estimator):
    draws = [walk(8, 6, seed=seed) for seed in range(3)]
    mean = np.mean([dc(draw, estimator=estimator) for draw in draws], axis=0)
    measure = DC(estimator=estimator)
    for draw in draws:
        measure.update(draw)
    assert difference(measure.matrix(), mean) < 1e-14
    assert measure.diagnostics() == {"samples": 24, "draws": 3, "constant_layers": []}


def test_draws_that_wait_count_whenever_they_are_asked_for():
    draws = [walk(rows, 6, seed=rows) for rows in (8, 8, 5, 8)]  # another size brings the waiting ones in
    expected = [np.mean([dc(draw) for draw in draws[: count + 1]], axis=0) for count in range(4)]
    measure = DC()
    for draw, mean in zip(draws, expected, strict=True):
        measure.update(draw)
        assert difference(measure.matrix(), mean) < 1e-14
    first, second = DC(), DC()
    for draw in draws[:2]:
        first.update(draw)
    for draw in draws[2:]:
        second.update(draw)
    first.merge(pickle.loads(pickle.dumps(second)))
    assert difference(first.matrix(), expected[-1]) < 1e-14
    assert first.samples == 29


def test_small_draws_are_taken_together_and_kept_apart_from_the_caller(monkeypatch):
    taken = []
    distances = dc_module.pairwise_distances
    monkeypatch.setattr(dc_module, "pairwise_distances", lambda states: taken.append(len(states)) or distances(states))
    monkeypatch.setattr("measures.dc.VALUES_AT_ONCE", 3 * 5 * 8 * 16)  # three draws of 5 layers
    draws, measure = [walk(8, seed=seed) for seed in range(7)], DC()
    for draw in draws:
        reused = [state.clone() for state in draw]
        measure.update(reused)
        for state in reused:
            state.zero_()
    assert difference(measure.matrix(), np.mean([dc(draw) for draw in draws], axis=0)) < 1e-14
    assert set(taken) == {3 * 5, 1 * 5}


def test_layers_of_different_widths_and_dtypes():
    states = [state[:, :width] for state, width in zip(walk(20), (16, 3, 9, 12, 2), strict=True)]
    expected = pairwise(plain_dc, states)
    assert difference(dc(states), expected) < 1e-12
    mixed = [state.to(dtype) for state, dtype in zip(states, [torch.float16] + 4 * [torch.float32], strict=True)]
    assert difference(dc(mixed), pairwise(plain_dc, mixed)) < 1e-12


def test_layers_in_several_groups_are_the_same(monkeypatch):
    states = walk(20)
    expected = dc(states)
    monkeypatch.setattr("measures.dc.VALUES_AT_ONCE", 2 * 20 * 16)
    assert difference(dc(states), expected) < 1e-14


def test_a_common_offset_of_1000():
    states = [state + 1000 for state in walk(40, 64, layers=2)]
    expected = pairwise(plain_dc, states)
    assert difference(dc(states), expected) < 1e-9
    unit = [normalised(state.numpy()).astype(np.float32) for state in states]
    squares = [2 - 2 * x @ x.T for x in unit]
    distances = [np.sqrt(np.clip(square, 0, None)).astype(np.float64) for square in squares]
    naive = plain_distances(unit[0].astype(np.float64))
    assert np.abs(distances[0] - naive).max() > 0.1 * naive.max()  # products of uncentred float32 rows


def test_nothing_is_added_to_denominators():
    spread = walk(20, 8, layers=0)[0]
    for size in (1e-3, 1e-6):
        base = torch.ones(8, dtype=torch.float64)
        assert dc([base + size * spread, base + size * spread])[0, 1] == pytest.approx(1, abs=1e-9)
        assert dc([base + size * spread, spread])[0, 1] < 0.999


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_duplicated_and_nearly_duplicated_rows(estimator):
    states = walk(10, 8, layers=2)
    states = [torch.cat([state, state, state + 1e-9, 3 * state]) for state in states]
    expected = pairwise(lambda x, y: plain_dc(x, y, estimator == "unbiased"), states)
    assert difference(dc(states, estimator=estimator), expected) < 1e-12


def test_a_zero_row_stays_zero():
    states = [state.clone() for state in walk(10, 8, layers=2)]
    states[1][3] = 0
    assert difference(dc(states), pairwise(plain_dc, states)) < 1e-12


def test_equidistant_rows_have_no_unbiased_correlation():
    states = [torch.eye(5).double(), walk(5, 8, layers=0)[0]]
    with pytest.warns(UserWarning, match=r"constant layers \[0\]"):
        assert dc(states, estimator="unbiased")[0, 1] == 0
    assert dc(states)[0, 1] > 0.5


def test_a_layer_constant_in_some_draws_counts_as_zero_there():
    states = walk(6, 4, layers=2)
    flat = [states[0], torch.ones_like(states[1]), states[2]]
    measure = DC()
    measure.update(states)
    measure.update(flat)
    with pytest.warns(UserWarning, match=r"constant in some of the 2 draws \(layer: draws\) \{1: 1\}"):
        mixed = measure.matrix()
    assert mixed[0, 1] == pytest.approx(dc(states)[0, 1] / 2)
    assert mixed[0, 2] == pytest.approx(dc(states)[0, 2])
    assert measure.diagnostics()["constant_layers"] == []


def test_independent_layers_are_near_one_biased_and_around_zero_unbiased():
    generator = torch.Generator().manual_seed(0)
    draws = [[torch.randn(32, 512, generator=generator) for _ in range(2)] for _ in range(50)]
    assert dc(*draws)[0, 1] == pytest.approx(0.985, abs=0.002)
    assert dc(*draws, estimator="unbiased")[0, 1] == pytest.approx(0, abs=4 * 0.046 / math.sqrt(50))


def test_refuses_too_few_samples_in_a_draw():
    with pytest.raises(ValueError, match=r"at least 3 samples \(rows\) in an update; found 2"):
        dc(walk(2, 4))  # whatever they are, they would correlate fully
    with pytest.raises(ValueError, match=r"at least 4 samples \(rows\) in an update; found 3"):
        dc(walk(3, 4), estimator="unbiased")


def test_refuses_options_that_do_not_exist():
    with pytest.raises(ValueError, match="estimator must be one of biased, unbiased; found 'exact'"):
        DC(estimator="exact")
