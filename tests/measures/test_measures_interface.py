"""What every measure must do, whatever it measures."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from measures_oracles import (
    difference,
    pairwise,
    plain_angular,
    plain_cka,
    plain_cosine,
    plain_covcorr,
    plain_dc,
    plain_debiased_cka,
    plain_delta_mean,
    plain_pwcca,
    plain_svcca,
    walk,
)

from measures import MEASURES

CASES = {
    "svcca": ("svcca", {}, plain_svcca),
    "svcca variance": ("svcca", {"thre_on": "variance"}, lambda x, y: plain_svcca(x, y, power=2)),
    "pwcca": ("pwcca", {}, plain_pwcca),
    "dc": ("dc", {}, plain_dc),
    "dc unbiased": ("dc", {"estimator": "unbiased"}, lambda x, y: plain_dc(x, y, unbiased=True)),
    "cka": ("cka", {}, plain_cka),
    "cka debiased": ("cka", {"debiased": True}, plain_debiased_cka),
    "cosine": ("cosine", {}, plain_cosine),
    "angular": ("angular", {}, plain_angular),
    "covcorr": ("covcorr", {}, plain_covcorr),
    "delta_mean": ("delta_mean", {}, plain_delta_mean),
}
every_case = pytest.mark.parametrize("case", CASES)
divisible_case = pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("dc")])


def new(case, **options):
    name, own_options, _ = CASES[case]
    return MEASURES[name](**own_options, **options)


def measured(case, *updates, **options):
    measure = new(case, **options)
    for states in updates:
        measure.update(states)
    return measure.matrix()


def split(states, sizes):
    parts = [state.split(sizes) for state in states]
    return [list(part) for part in zip(*parts, strict=True)]


def test_every_measure_has_a_case():
    assert {name for name, _, _ in CASES.values()} == set(MEASURES)


@every_case
def test_equals_the_plain_version(case):
    states = walk(60, 8)
    matrix = measured(case, states)
    assert difference(matrix, pairwise(CASES[case][2], states)) < 1e-11
    assert np.ptp(matrix[np.triu_indices(5, 1)]) > 1e-3


@every_case
def test_the_matrix_is_float64_symmetric_with_ones_on_the_diagonal(case):
    matrix = measured(case, walk(60, 8, dtype=torch.float32))
    assert matrix.dtype == np.float64
    assert np.array_equal(matrix, matrix.T)
    assert (np.diag(matrix) == 1).all()


@every_case
def test_identical_layers_give_one(case):
    state = walk(60, 8, layers=0)[0]
    assert measured(case, [state, state.clone()])[0, 1] == pytest.approx(1, abs=1e-12)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_dtypes_equal_their_values_in_float64(case, dtype):
    states = walk(60, 8, dtype=dtype)
    assert difference(measured(case, states), measured(case, [state.double() for state in states])) < 1e-14


@every_case
def test_float16_values_whose_products_overflow(case):
    states = [(10_000 * state).half() for state in walk(60, 8)]
    assert torch.isinf((states[0].T @ states[0]).max())
    assert difference(measured(case, states), pairwise(CASES[case][2], states)) < 1e-10


@divisible_case
def test_the_division_into_updates_does_not_matter(case):
    states = walk(2500, 6)
    whole = measured(case, states)
    assert difference(measured(case, *split(states, [1, 1, 98, 1024, 1300, 76])), whole) < 1e-12
    assert difference(measured(case, *split(states, 25)), whole) < 1e-12


def test_only_dc_is_an_average_of_draws():
    assert [name for name, kind in MEASURES.items() if kind.measure.per_draw] == ["dc"]


@every_case
def test_merged_parts_equal_a_single_pass(case):
    rows = 80 if case.startswith("dc") else 800
    states = walk(3 * rows, 6)
    states = [state + layer for layer, state in enumerate(states)]
    updates = split(states, rows)
    updates[2] = [state + 3 for state in updates[2]]  # another mean, so another running shift
    parts = [new(case) for _ in updates]
    for part, update in zip(parts, updates, strict=True):
        part.update(update)
    last = copy.deepcopy(parts[2])
    total = new(case)
    for part in parts:
        total.merge(part)
    total.merge(new(case))
    assert total.samples == 3 * rows
    assert difference(total.matrix(), measured(case, *updates)) < 1e-11
    total.update(updates[0])  # neither shares anything with what it was merged from
    assert np.array_equal(parts[2].matrix(), last.matrix())


@every_case
def test_pickled_halfway_it_goes_on(case):
    rows = 50 if case.startswith("dc") else 500
    updates = split(walk(3 * rows, 6), rows)
    measure = new(case)
    measure.update(updates[0])
    measure = pickle.loads(pickle.dumps(measure))
    measure.update(updates[1])
    measure.update(updates[2])
    assert difference(measure.matrix(), measured(case, *updates)) < 1e-12


@every_case
def test_a_matrix_can_be_taken_halfway(case):
    rows = 50 if case.startswith("dc") else 500
    updates = split(walk(3 * rows, 6), rows)
    measure = new(case)
    measure.update(updates[0])
    assert difference(measure.matrix(), measured(case, updates[0])) < 1e-12
    measure.update(updates[1])
    assert difference(measure.matrix(), measured(case, *updates[:2])) < 1e-12


@every_case
def test_updates_inside_and_outside_inference_mode_mix(case):
    updates = split(walk(60, 8), 20)
    measure = new(case)
    with torch.inference_mode():
        measure.update([state.clone() for state in updates[0]])
        measure.update(updates[1])
    measure.update(updates[2])
    assert difference(measure.matrix(), measured(case, *updates)) < 1e-12


@every_case
def test_inputs_are_unchanged_and_not_kept(case):
    states = [state.requires_grad_() for state in walk(60, 8)]
    before = [state.detach().clone() for state in states]
    measure = new(case)
    measure.update(states)
    assert all(torch.equal(state, copied) for state, copied in zip(states, before, strict=True))
    with torch.no_grad():
        for state in states:
            state.zero_()
    assert np.array_equal(measure.matrix(), measured(case, before))


@every_case
def test_no_global_random_state_is_used(case):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measured(case, walk(60, 8))
    assert torch.equal(torch.rand(1), expected)


@every_case
@pytest.mark.parametrize("value", [0.0, 0.1, -3000.7])
def test_a_constant_layer_is_zero_with_a_warning(case, value):
    states = walk(1030, 8) if not case.startswith("dc") else walk(30, 8)
    flat = torch.full_like(states[2], value) * torch.arange(1, 9)
    others = [0, 1, 3, 4]
    measure = new(case)
    measure.update([states[0], states[1], flat, states[3], states[4]])
    with pytest.warns(UserWarning, match=r"constant layers \[2\] \(0 is the embeddings\)"):
        matrix = measure.matrix()
    assert matrix[2].tolist() == matrix[:, 2].tolist() == [0, 0, 1, 0, 0]
    assert measure.diagnostics()["constant_layers"] == [2]
    assert difference(matrix[np.ix_(others, others)], measured(case, states)[np.ix_(others, others)]) < 1e-12


@every_case
def test_a_layer_that_barely_varies_is_not_constant(case):
    states = walk(60, 8)
    states[2] = 1 + 1e-5 * states[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = measured(case, states)
    assert difference(matrix, pairwise(CASES[case][2], states)) < 1e-6


@every_case
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nan_and_infinity_name_the_layer_and_leave_the_measure_as_it_was(case, value, dtype):
    states = walk(30, 8, dtype=dtype)
    measure = new(case)
    measure.update(states)
    broken = [state.clone() for state in states]
    broken[3][7, 2] = value
    with pytest.raises(ValueError, match=r"layer 3 \(0 is the embeddings\) has NaN or infinite values; expected"):
        measure.update(broken)
    assert measure.samples == 30
    assert np.array_equal(measure.matrix(), measured(case, states))


@every_case
def test_values_too_large_for_float64_products_are_refused(case):
    states = walk(30, 8)
    states[1] = states[1] * 1e80
    with pytest.raises(ValueError, match="layer 1 .* has values above 1e70"):
        measured(case, states)


@every_case
def test_large_and_small_layers(case):
    states = walk(30, 8)
    scaled = [state * scale for state, scale in zip(states, (1e30, 1e-30, 1, 1e15, 1e-15), strict=True)]
    expected = pairwise(CASES[case][2], scaled)
    assert difference(measured(case, scaled), expected) < 1e-10


@every_case
def test_one_sample_is_too_few(case):
    one = walk(1, 8)
    needed = {"dc": 3, "dc unbiased": 4, "cka": 3, "cka debiased": 4}.get(case, 2)
    with pytest.raises(ValueError, match=rf"expected at least {needed} samples.*found 1"):
        measured(case, one)
    with pytest.raises(ValueError, match=rf"expected at least {needed} samples; found 0: call"):
        new(case).matrix()
    assert new(case).diagnostics()["samples"] == 0


@every_case
def test_refuses_what_is_not_a_list_of_matrices(case):
    states = walk(30, 8)
    with pytest.raises(ValueError, match="hidden states of at least 2 layers; found 1"):
        measured(case, states[:1])
    bad = {
        r"torch.float64 \(30, 2, 4\) for layer 1": states[1].view(30, 2, 4),
        r"torch.int64 \(30, 8\) for layer 1": states[1].long(),
        r"torch.float64 \(30, 0\) for layer 1": states[1][:, :0],
        "ndarray for layer 1": states[1].numpy(),
    }
    for found, state in bad.items():
        with pytest.raises(ValueError, match=rf"floating-point tensor of shape \(samples, features\).*found {found}"):
            measured(case, [states[0], state])


@every_case
def test_refuses_other_shapes_than_before(case):
    states = walk(30, 8)
    with pytest.raises(ValueError, match=r"same samples as rows; found \[30, 29\] rows"):
        measured(case, [states[0], states[1][:29]])
    with pytest.raises(ValueError, match=r"expected 5 layers of widths .*found 4 layers of widths"):
        measured(case, states, states[:4])
    with pytest.raises(ValueError, match=r"expected 5 layers of widths \[8, .*found 5 layers of widths \[7, "):
        measured(case, states, [state[:, :7] for state in states])
    with pytest.raises(ValueError, match=r"at least \d samples \(rows\) in an update; found 0"):
        measured(case, [state[:0] for state in states])


@pytest.mark.parametrize("case", ["cosine", "angular", "delta_mean", "covcorr"])
def test_refuses_different_widths_where_features_are_compared(case):
    states = walk(30, 8)
    with pytest.raises(ValueError, match=r"all layers must have the same width; found \[8, 7\]: use svcca"):
        measured(case, [states[0], states[1][:, :7]])


@every_case
def test_refuses_to_merge_what_does_not_belong_together(case):
    states = walk(30, 8)
    measure = new(case)
    measure.update(states)
    stranger = MEASURES["dc" if CASES[case][0] == "svcca" else "svcca"]()
    with pytest.raises(ValueError, match=f"expected another {type(measure).__name__} to merge; found a"):
        measure.merge(stranger)
    narrow = new(case)
    narrow.update([state[:, :7] for state in states])
    with pytest.raises(ValueError, match=r"layers of widths \[8, .*to merge; found \[7, "):
        measure.merge(narrow)
    assert np.array_equal(measure.matrix(), measured(case, states))


def test_refuses_to_merge_other_options():
    for name, options in (("svcca", {"thre": 0.9}), ("dc", {"estimator": "unbiased"}), ("cka", {"debiased": True})):
        with pytest.raises(
            ValueError, match=rf"expected the options \{{.*\}} to merge; found \{{.*{next(iter(options))}"
        ):
            MEASURES[name]().merge(MEASURES[name](**options))


@every_case
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_cuda_gives_the_same(case, dtype):
    states = walk(1500 if not case.startswith("dc") else 200, 32, dtype=dtype)
    on_device = new(case)
    on_device.update([state.cuda() for state in states])
    assert difference(on_device.matrix(), measured(case, states)) < 1e-9
    total = new(case)
    total.update(states)
    total.merge(pickle.loads(pickle.dumps(on_device)))
    assert total.samples == 2 * on_device.samples
    assert difference(total.matrix(), measured(case, states, states)) < 1e-9
