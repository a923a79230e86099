import pytest
import torch
from measures_oracles import difference, pairwise, plain_cka, plain_debiased_cka, walk

from measures.cka import CKA


def cka(states, **options):
    measure = CKA(**options)
    measure.update(states)
    return measure.matrix()


@pytest.mark.parametrize("samples", [4, 7, 150])
def test_equals_the_gram_matrix_version_for_layers_of_different_widths(samples):
    states = [state[:, :width] + 1 for state, width in zip(walk(samples), (16, 3, 9, 12, 1), strict=True)]
    assert difference(cka(states), pairwise(plain_cka, states)) < 1e-12
    expected = pairwise(lambda x, y: plain_debiased_cka(x, y, centred=False), states)
    assert difference(cka(states, debiased=True), expected.clip(-1, 1)) < 1e-9


def test_orthogonal_factors_by_hand():
    a = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    b = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    x, y = torch.stack([2 * a, b], 1), torch.stack([a, a], 1)
    # |X'Y|^2 = 8^2 + 8^2, |X'X|^2 = 16^2 + 4^2, |Y'Y|^2 = 4 * 4^2
    assert cka([x, y])[0, 1] == pytest.approx(128 / (272 * 64) ** 0.5, abs=1e-14)


def test_only_the_debiased_form_is_around_zero_for_independent_layers():
    generator = torch.Generator().manual_seed(0)
    values = {False: [], True: []}
    for _ in range(30):
        states = [torch.randn(50, 40, generator=generator, dtype=torch.float64) for _ in range(2)]
        for debiased, found in values.items():
            found.append(cka(states, debiased=debiased)[0, 1])
    assert sum(values[False]) / 30 == pytest.approx(40 / 90, abs=0.03)
    assert sum(values[True]) / 30 == pytest.approx(0, abs=0.02)


def test_a_layer_without_unbiased_variance_counts_as_constant():
    states = [torch.eye(5).double(), walk(5, 8, layers=0)[0]]
    with pytest.warns(UserWarning, match=r"constant layers \[0\]"):
        assert cka(states, debiased=True)[0, 1] == 0
    assert cka(states)[0, 1] > 0.3


def test_the_debiased_form_needs_four_samples():
    with pytest.raises(ValueError, match="expected at least 4 samples; found 3: call update with more rows first"):
        cka(walk(3), debiased=True)
    assert 0 < cka(walk(3))[0, 1] < 1
