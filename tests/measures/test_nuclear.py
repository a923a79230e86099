"""Sums of singular values: by products, as on a GPU, the same as by decompositions, as on a CPU."""

import pytest
import torch

from measures.nuclear import by_decomposition, by_products, nuclear_norms


def correlations(values: list[float], rows: int, columns: int, number: int = 3) -> torch.Tensor:
    """Matrices (number, rows, columns) of these singular values."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(number, size, len(values), generator=generator, dtype=torch.float64))[0]
        for size in (rows, columns)
    )
    return left * torch.tensor(values, dtype=torch.float64) @ right.mT


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 20), (20, 8), (64, 50)])
@pytest.mark.parametrize(
    "values", [[1.0] * 8, [1.0, 0.9, 0.5, 0.1, 1e-2, 1e-4, 1e-6, 1e-9], [1e-10] * 8, [0.0] * 8, [1 + 1e-8, 0.3, 0.0]]
)
@pytest.mark.parametrize("way", [by_decomposition, by_products, nuclear_norms])
def test_sum_of_singular_values(way, values, rows, columns):
    assert way(correlations(values, rows, columns)).tolist() == pytest.approx([sum(values)] * 3, abs=3e-8)


def test_both_ways_agree_on_correlations_of_samples():
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.linalg.qr(torch.randn(5, 300, 40, generator=generator, dtype=torch.float64))[0] for _ in range(2)
    )
    products = torch.nn.functional.pad(first.mT @ second, (0, 3, 0, 2))  # filled up with zeros, as in a tile
    torch.testing.assert_close(by_products(products), by_decomposition(products), atol=1e-8, rtol=0)


@pytest.mark.parametrize("large", [1, 512])
def test_threads_take_parts_of_the_matrices_and_change_nothing(large, monkeypatch):
    monkeypatch.setattr("measures.nuclear.LARGE", large)
    products = correlations([0.9, 0.5, 0.1], 5, 4, 7)
    expected = by_decomposition(products[:1]), by_decomposition(products)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for number, values in zip((1, 7), expected, strict=True):
        assert torch.equal(by_decomposition(products[:number]), values)
