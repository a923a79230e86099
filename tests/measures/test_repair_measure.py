"""The share that a repaired layer explains: against plain regressions, and however the samples are divided."""

import warnings

import numpy as np
import pytest
import torch

from measures.repair import Repair
from measures.ridge import RIDGE, RidgeSums

L, F, D, N = 3, 6, 4, 60


def draw(seed: int = 0, number: int = N) -> list[torch.Tensor]:
    """Layers of F hidden units, whose sums and later states are noisy linear functions of them."""
    generator = np.random.default_rng(seed)
    tensors = []
    for layer in range(L):
        inputs = generator.normal(size=(number, F))
        sums = [
            inputs @ generator.normal(size=(F, D)) + generator.normal(size=(number, D)) + 1
            for _ in range(1 + L - layer)
        ]
        tensors += [torch.from_numpy(array) for array in (inputs, *sums)]
    return tensors


def plain_matrix(tensors: list[torch.Tensor], ridge: float) -> np.ndarray:
    """Every layer and later state by a regression with the penalty as further rows."""
    matrix, rest = np.eye(L + 1), [tensor.numpy() for tensor in tensors]
    for i in range(L):
        inputs, current = rest.pop(0), rest.pop(0)
        penalty = np.sqrt(ridge * (inputs**2).sum() / len(inputs)) * np.eye(F, F + 1)
        features = np.c_[inputs, np.ones(len(inputs))]
        for j in range(i + 1, L + 1):
            wanted = rest.pop(0)
            targets = np.r_[wanted - current, np.zeros((F, D))]
            change = np.linalg.lstsq(np.r_[features, penalty], targets, rcond=None)[0]
            left = wanted - current - features @ change
            share = 1 - (left**2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
            matrix[i, j] = matrix[j, i] = max(share, 0)
    return matrix


def measure(*updates: list[torch.Tensor], ridge: float = RIDGE) -> Repair:
    made = Repair(ridge)
    for tensors in updates:
        made.update(tensors)
    return made


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_matrix_is_that_of_plain_regressions(ridge: float) -> None:
    np.testing.assert_allclose(measure(draw(), ridge=ridge).matrix(), plain_matrix(draw(), ridge), atol=1e-10)


def test_a_ridge_of_zero_is_least_squares_and_features_of_zeros_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    features = 0.01 * torch.randn(200, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    for given, expected in ((features, weights), (0 * features, 0 * weights)):
        sums = RidgeSums(False)
        sums.add(given, features @ weights)
        torch.testing.assert_close(sums.solve(0.0), expected, atol=1e-9, rtol=0)


def test_samples_can_be_divided_and_merged() -> None:
    whole = measure(draw()).matrix()
    parts = [[tensor[rows] for tensor in draw()] for rows in (slice(0, 7), slice(7, 8), slice(8, N))]
    np.testing.assert_allclose(measure(*parts).matrix(), whole, atol=1e-12)
    merged = Repair()
    merged.merge(measure(*parts[:2]))
    merged.merge(measure(parts[2]))
    merged.merge(Repair())
    np.testing.assert_allclose(merged.matrix(), whole, atol=1e-12)
    assert merged.diagnostics() == {"samples": N}


def test_what_is_linear_in_the_inputs_is_explained_and_noise_is_not() -> None:
    tensors = draw(number=4000)
    tensors[2] = tensors[0] @ torch.ones(F, D, dtype=torch.float64)
    tensors[3] = torch.from_numpy(np.random.default_rng(1).normal(size=(4000, D)))
    tensors[1] = torch.zeros_like(tensors[1])
    matrix = measure(tensors, ridge=1e-9).matrix()
    assert matrix[0, 1] == pytest.approx(1, abs=1e-9)
    assert matrix[0, 2] < 0.01


def test_fewer_samples_than_ten_for_each_feature_are_a_warning() -> None:
    with pytest.warns(UserWarning, match=f"{10 * F - 1} samples are too few: .* use at least {10 * F}"):
        measure(draw(number=10 * F - 1)).matrix()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(draw(number=10 * F)).matrix()


def test_a_layer_without_a_map_explains_what_it_does_as_it_is() -> None:
    tensors = draw()
    tensors[0] = tensors[0][:, :0]
    current, wanted = tensors[1].numpy(), tensors[2].numpy()
    tensors[2] = torch.from_numpy(current + 0.1 * wanted)
    target = tensors[2].numpy()
    share = 1 - ((target - current) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    assert measure(tensors).matrix()[0, 1] == pytest.approx(share)


def test_a_constant_state_is_not_explained() -> None:
    tensors = draw()
    tensors[2] = torch.ones_like(tensors[2])
    assert measure(tensors).matrix()[0, 1] == 0


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (draw()[:-1], r"expected L \(L \+ 5\) / 2 tensors for some number of layers L; found 11"),
        ([], "found 0"),
        ([tensor * np.nan for tensor in draw()], "NaN or infinite"),
    ],
)
def test_what_is_no_update_is_refused(tensors: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Repair().update(tensors)


def test_updates_of_other_depth_are_refused() -> None:
    made = measure(draw())
    with pytest.raises(ValueError, match="expected the tensors of 3 layers, as in the first update; found 1"):
        made.update(draw()[:3])


def test_no_samples_give_no_matrix() -> None:
    with pytest.raises(ValueError, match="2"):
        Repair().matrix()
