import pytest
import torch
from measures_oracles import plain_distances

from measures.distances import pairwise_distances


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(batch):
    return torch.stack([torch.from_numpy(plain_distances(matrix.double().numpy())) for matrix in batch])


@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4, 1e-9, 0.0])
def test_rows_however_close(gap):
    base = rows(3, 6, 4)
    batch = torch.cat([base, base + gap * rows(3, 6, 4).flip(0)], 1)
    found, expected = pairwise_distances(batch), exact(batch)
    assert (found - expected).abs().max() < 1e-13 * (1 + expected.max())
    assert torch.equal(found, found.mT) and (found.diagonal(dim1=1, dim2=2) == 0).all()


def test_the_plain_product_loses_the_digits_of_close_rows():
    batch = torch.cat([rows(1, 6, 4), rows(1, 6, 4) + 1e-9], 1)
    squares = batch.square().sum(-1)
    naive = (squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * batch @ batch.mT).clamp_min(0).sqrt()
    expected = exact(batch)[0, 0, 6]
    assert abs(naive[0, 0, 6] - expected) > 0.1 * expected
    assert abs(pairwise_distances(batch)[0, 0, 6] - expected) < 1e-6 * expected


def test_many_close_pairs_in_several_steps(monkeypatch):
    monkeypatch.setattr("measures.distances.PAIRS_AT_ONCE", 7)
    batch = 1e-5 * rows(2, 10, 3) + torch.tensor([1.0, 0.0, 0.0])
    assert (pairwise_distances(batch) - exact(batch)).abs().max() < 1e-15


def test_the_input_is_unchanged():
    batch = rows(2, 5, 3)
    before = batch.clone()
    pairwise_distances(batch)
    assert torch.equal(batch, before)
