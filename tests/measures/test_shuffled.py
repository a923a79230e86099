import pickle

import numpy as np
import pytest
import torch
from measures_oracles import difference, walk

from measures import MEASURES
from measures.baseline import ROWS_AT_ONCE, Shuffled
from measures.cka import CKA
from measures.covcorr import CovCorr
from measures.dc import DC
from measures.svcca import SVCCA


def shuffled(measure, *updates, seed=0):
    baseline = Shuffled(measure, torch.Generator().manual_seed(seed))
    for states in updates:
        baseline.update(states)
    return baseline


class Recorder:
    """A measure that keeps the updates it gets."""

    options, min_samples, samples = {}, 2, 0

    def __init__(self, per_draw):
        self.per_draw, self.updates = per_draw, []

    def update(self, hidden_states):
        self.updates.append(hidden_states)

    def matrix(self):
        return self.updates


def numbered(rows, start=0):
    return [torch.arange(start, start + rows).double().unsqueeze(1).clone() for _ in range(3)]


@pytest.mark.parametrize("per_draw", [True, False])
def test_every_layer_gets_an_order_of_its_own(per_draw):
    (update,) = shuffled(Recorder(per_draw), numbered(50)).matrix()
    orders = [state.flatten().tolist() for state in update]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(50)]}) == 4


def test_draws_are_shuffled_each_by_itself():
    updates = shuffled(Recorder(True), numbered(8), numbered(8, start=8)).matrix()
    assert [sorted(state.flatten().tolist()) for state, *_ in updates] == [list(range(8)), list(range(8, 16))]


def test_small_updates_are_shuffled_together():
    updates = [numbered(32, start) for start in range(0, ROWS_AT_ONCE + 64, 32)]
    first, second = shuffled(Recorder(False), *updates).matrix()
    assert first[0].shape[0] == ROWS_AT_ONCE and second[0].shape[0] == 64
    kept = sum(int(a // 32 == b // 32) for a, b in zip(first[0], first[1], strict=True))
    assert kept < ROWS_AT_ONCE / 8  # 1/32 of the rows by chance


def test_nothing_is_left_of_a_strong_correlation():
    states = walk(3000, 6, step=0.1)
    measure = CKA(debiased=True)
    measure.update(states)
    baseline = shuffled(CKA(debiased=True), *zip(*(state.split(32) for state in states), strict=True))
    assert measure.matrix()[0, 1] > 0.9
    assert abs(baseline.matrix()[np.triu_indices(5, 1)]).max() < 0.01
    assert baseline.samples == 3000
    assert baseline.diagnostics() == measure.diagnostics()


def test_svcca_of_shuffled_layers_is_that_of_independent_ones():
    baseline = shuffled(SVCCA(thre=1.0), walk(2000, 20)).matrix()[0, 1]
    assert 0.02 < baseline < 0.2  # about sqrt(k / n) = 0.1


def test_what_looks_at_each_layer_by_itself_stays():
    states = walk(100, 6)
    measure = CovCorr()
    measure.update(states)
    assert difference(shuffled(CovCorr(), states).matrix(), measure.matrix()) < 1e-12


@pytest.mark.parametrize("name", MEASURES)
def test_the_same_seed_gives_the_same_and_inputs_are_unchanged(name):
    states = walk(40, 6)
    before = [state.clone() for state in states]
    first, second, third = (shuffled(MEASURES[name](), states, seed=seed).matrix() for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    other_seed = difference(first, third)
    assert other_seed < 1e-12 if name == "covcorr" else other_seed > 1e-4
    assert all(torch.equal(state, copied) for state, copied in zip(states, before, strict=True))


@pytest.mark.parametrize("kind", [SVCCA, DC])
def test_merging_and_pickling(kind):
    first, second = walk(60, 6), walk(60, 6, seed=1)
    total = pickle.loads(pickle.dumps(shuffled(kind(), first)))
    total.merge(shuffled(kind(), second))
    assert total.samples == 120
    assert total.per_draw == kind.per_draw and total.options == kind().options
    plain = kind()
    plain.update(first)
    plain.update(second)
    assert difference(total.matrix(), plain.matrix()) > 0.1


def test_refuses_what_the_measure_would_refuse():
    baseline = shuffled(SVCCA(), walk(10, 6))
    with pytest.raises(ValueError, match="expected 5 layers of widths"):
        baseline.update(walk(10, 7))
    broken = walk(10, 6)
    broken[2][3] = float("nan")
    with pytest.raises(ValueError, match="layer 2 .* has NaN or infinite values"):
        baseline.update(broken)
    with pytest.raises(ValueError, match="expected another Shuffled to merge; found a SVCCA"):
        baseline.merge(SVCCA())
    assert baseline.samples == 10
