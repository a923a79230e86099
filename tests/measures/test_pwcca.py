import pytest
import torch
from measures_oracles import difference, pairwise, plain_pwcca, walk

from measures.pwcca import PWCCA
from measures.svcca import SVCCA


def matrix(kind, states, **options):
    measure = kind(**options)
    measure.update(states)
    return measure.matrix()


@pytest.mark.parametrize("thre", [0.5, 0.9, 1.0])
def test_equals_the_plain_version(thre):
    states = [state[:, :width] for state, width in zip(walk(), (16, 3, 9, 12, 16), strict=True)]
    assert difference(matrix(PWCCA, states, thre=thre), pairwise(lambda x, y: plain_pwcca(x, y, thre), states)) < 1e-11


def test_weights_count_the_directions_a_layer_consists_of():
    a = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).double()
    b = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0]).double()
    c = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0]).double()
    x, y = torch.stack([9 * a, b], 1), torch.stack([3 * a, c], 1)  # correlations 1 (of a) and 0
    assert matrix(PWCCA, [x, y], thre=1.0)[0, 1] == pytest.approx((9 / 10 + 3 / 4) / 2, abs=1e-14)
    assert matrix(SVCCA, [x, y], thre=1.0)[0, 1] == pytest.approx(0.5, abs=1e-14)


def test_it_has_svccas_options_diagnostics_and_warnings():
    measure = PWCCA(thre=0.999, thre_on="variance")
    assert measure.options == {"thre": 0.999, "thre_on": "variance"}
    measure.update(walk(10, 16))
    with pytest.warns(UserWarning, match="10 samples are too few"):
        measure.matrix()
    assert set(measure.diagnostics()) == {"samples", "effective_dims", "constant_layers"}
