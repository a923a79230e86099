import warnings

import numpy as np
import pytest
import torch
from measures_oracles import difference, pairwise, plain_directions, plain_svcca, walk
from sklearn.cross_decomposition import CCA

from measures.svcca import SVCCA, kept_directions


def svcca(states, **options):
    measure = SVCCA(**options)
    measure.update(states)
    return measure.matrix()


def gaussian(samples, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("thre", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize(("thre_on", "power"), [("singular", 1), ("variance", 2)])
def test_equals_the_plain_version_per_pair(thre, thre_on, power):
    states = walk()
    expected = pairwise(lambda x, y: plain_svcca(x, y, thre, power), states)
    assert difference(svcca(states, thre=thre, thre_on=thre_on), expected) < 1e-12


def test_the_two_thresholds_differ():
    states = walk()
    assert difference(svcca(states, thre=0.9), svcca(states, thre=0.9, thre_on="variance")) > 1e-3


def test_equals_the_plain_version_for_layers_of_different_widths():
    states = [state[:, :width] for state, width in zip(walk(), (16, 3, 9, 12, 1), strict=True)]
    assert difference(svcca(states), pairwise(plain_svcca, states)) < 1e-12


def test_equals_scikit_learns_cca_where_nothing_is_cut_off():
    x, y = (state.numpy() for state in walk(samples=300, width=4, layers=1, step=1.0))
    u, v = CCA(n_components=4, scale=False, max_iter=100_000, tol=1e-14).fit_transform(x, y)
    correlations = [np.corrcoef(u[:, k], v[:, k])[0, 1] for k in range(4)]
    found = svcca([torch.from_numpy(x), torch.from_numpy(y)], thre=1.0)[0, 1]
    assert found == pytest.approx(np.mean(correlations), abs=1e-7)


def test_two_features_of_known_correlation():
    a = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    b = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    x = torch.stack([a, b], 1)
    y = torch.stack([0.6 * a + 0.8 * a * b, b], 1)
    found = svcca([x, y], thre=1.0)[0, 1]
    assert found == pytest.approx((0.6 + 1.0) / 2, abs=1e-14)


@pytest.mark.parametrize(
    ("singular_values", "thre", "kept"),
    [
        ([4, 3, 2, 1], 0.39, 1),
        ([4, 3, 2, 1], 0.41, 2),
        ([4, 3, 2, 1], 0.7 + 1e-9, 3),
        ([4, 3, 2, 1], 0.7 - 1e-9, 2),
        ([4, 3, 2, 1], 0.99, 4),
        ([4, 3, 2, 1], 1.0, 4),
        ([4, 3, 0, 0], 1.0, 2),
        ([4, 3, 1e-9, 0], 1.0, 2),
        ([5], 0.01, 1),
        ([0, 0], 0.5, 0),
        ([2, 2, 2, 2], 0.5, 3),  # 0.5 does not exceed 0.5
    ],
)
def test_keeps_the_smallest_number_whose_share_exceeds_the_threshold(singular_values, thre, kept):
    product = torch.diag(torch.tensor(singular_values, dtype=torch.float64) ** 2)
    [(values, vectors)] = kept_directions(product[None], thre, "singular")
    assert len(values) == vectors.shape[1] == kept
    assert values.tolist() == pytest.approx(singular_values[:kept], abs=1e-12)


def test_the_threshold_on_variance_uses_squares():
    product = torch.diag(torch.tensor([16.0, 9.0, 4.0, 1.0], dtype=torch.float64))
    assert len(kept_directions(product[None], 0.5, "variance")[0][0]) == 1  # 16/30 > 0.5
    assert len(kept_directions(product[None], 0.5, "singular")[0][0]) == 2  # 4/10, 7/10


def test_effective_dims_are_those_of_the_plain_version():
    states = walk()
    measure = SVCCA(thre=0.9)
    measure.update(states)
    expected = [plain_directions(state.numpy(), 0.9).shape[1] for state in states]
    assert measure.diagnostics() == {"samples": 200, "effective_dims": expected, "constant_layers": []}
    measure.update(states)
    assert measure.diagnostics()["samples"] == 400


def test_diagnostics_of_nothing():
    assert SVCCA().diagnostics() == {"samples": 0, "effective_dims": [], "constant_layers": []}


def test_common_offset_of_100_standard_deviations():
    states = [(state + 100 * state.std()).float() for state in walk(samples=3000, width=24)]
    expected = pairwise(plain_svcca, states)
    assert difference(svcca(states), expected) < 1e-6
    uncentred = [torch.mm(state.T, state) - len(state) * torch.outer(state.mean(0), state.mean(0)) for state in states]
    exact = [np.cov(state.double().numpy().T, bias=True) * len(state) for state in states]
    assert max(np.abs(u.numpy() - e).max() / e.max() for u, e in zip(uncentred, exact, strict=True)) > 1e-4


def low_rank_layers(rank=40, width=128, samples=800):
    first = gaussian(samples, rank) @ gaussian(rank, width, seed=1)
    second = (gaussian(samples, rank) + gaussian(samples, rank, seed=2)) @ gaussian(rank, width, seed=3)
    return [first, second]


@pytest.mark.parametrize("thre", [0.9999, 1.0])
def test_a_layer_of_rank_40_keeps_at_most_40_directions(thre):
    measure = SVCCA(thre=thre)
    states = low_rank_layers()
    measure.update(states)
    assert measure.diagnostics()["effective_dims"] == [40, 40]
    assert difference(measure.matrix(), pairwise(lambda x, y: plain_svcca(x, y, thre), states)) < 1e-6


def test_one_feature_10000_times_the_others():
    states = [state.clone() for state in walk(samples=1000, width=24)]
    for state in states:
        state[:, 5] *= 1e4
    expected = pairwise(lambda x, y: plain_svcca(x, y, 0.999999), states)
    assert difference(svcca(states, thre=0.999999), expected) < 1e-6


@pytest.mark.parametrize("width", [1, 2, 8, 40])
def test_duplicated_features_count_once(width):
    states = walk(samples=1000, width=width)
    doubled = [torch.cat([state, state], 1) for state in states]
    measure = SVCCA(thre=1.0)
    measure.update(doubled)
    assert measure.diagnostics()["effective_dims"] == [width] * 5
    assert difference(measure.matrix(), svcca(states, thre=1.0)) < 1e-10


def test_warns_of_too_few_samples_with_the_number_needed():
    states = [gaussian(50, 40, seed) for seed in range(3)]
    measure = SVCCA(thre=1.0)
    measure.update(states)
    with pytest.warns(UserWarning, match="50 samples are too few: two layers together keep 80 directions.*at least 81"):
        measure.matrix()
    measure.update([gaussian(31, 40, seed) for seed in range(3, 6)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure.matrix()


@pytest.mark.parametrize(("samples", "width"), [(2, 1), (20, 10)])
def test_samples_whose_mean_takes_the_last_dimension_are_too_few(samples, width):
    states = [gaussian(samples, width, seed) for seed in range(2)]
    with pytest.warns(UserWarning, match=f"{samples} samples are too few.*use at least {2 * width + 1} samples"):
        assert svcca(states, thre=1.0)[0, 1] == pytest.approx(1) or width > 1
    directions = [torch.linalg.svd(state - state.mean(0), full_matrices=False)[0] for state in states]
    assert torch.linalg.svdvals(directions[0].T @ directions[1])[0] == pytest.approx(1)  # although independent


def test_the_independence_floor_of_too_few_samples():
    states = [gaussian(320, 300, seed) for seed in range(2)]
    with pytest.warns(UserWarning, match="too few"):
        assert svcca(states)[0, 1] > 0.85
    many = [gaussian(20_000, 8, seed) for seed in range(2)]
    assert svcca(many, thre=1.0)[0, 1] < 0.04  # about sqrt(k / n) = 0.02


@pytest.mark.parametrize("thre", [0, -0.1, 1.01, float("nan")])
def test_refuses_a_threshold_out_of_range(thre):
    with pytest.raises(ValueError, match="thre must be above 0 and at most 1; found"):
        SVCCA(thre=thre)


def test_refuses_options_that_do_not_exist():
    with pytest.raises(ValueError, match="thre_on must be one of singular, variance; found 'values'"):
        SVCCA(thre_on="values")
    with pytest.raises(TypeError):
        SVCCA(0.99)
