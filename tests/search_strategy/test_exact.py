"""The two enumerations of the proposal graph against sums over all subsets."""

from itertools import combinations

import numpy as np
import pytest

from search_strategy.exact import ProposalGraph
from search_strategy.proposals import segments


def plain_excesses(weights, constant, num_clip_layers):
    subsets = combinations(range(1, len(weights)), num_clip_layers)
    return {d: constant + sum(weights[a - 1, b] for a, b in segments(d)) for d in subsets}


@pytest.mark.parametrize("num_layers", [2, 3, 7, 9])
def test_by_excess_yields_every_proposal_once_greatest_first(num_layers):
    weights = np.random.default_rng(num_layers).normal(size=(num_layers + 1, num_layers + 1))
    for k in range(1, num_layers):
        truth = plain_excesses(weights, 0.25, k)
        found = list(ProposalGraph(weights, 0.25, k).by_excess())
        assert len(found) == len(truth)
        assert [proposal for _, proposal in found] == sorted(truth, key=truth.get, reverse=True)
        assert [excess for excess, _ in found] == pytest.approx([truth[proposal] for _, proposal in found])


@pytest.mark.parametrize("constant", [-100.0, -1.0, 0.0, 1.0, 100.0])
def test_lexicographic_yields_those_not_below_zero_in_order(constant):
    weights = np.random.default_rng(5).integers(-2, 3, size=(10, 10)).astype(float)  # sums of exactly 0 are many
    for k in range(1, 9):
        truth = plain_excesses(weights, constant, k)
        found = list(ProposalGraph(weights, constant, k).lexicographic())
        assert found == [proposal for proposal, excess in truth.items() if excess >= 0]


def test_only_entries_above_the_diagonal_are_read_and_none_is_written():
    weights = np.random.default_rng(0).random((8, 8))
    other = np.triu(weights, 1) + np.tril(np.full((8, 8), 9.0))
    before = weights.copy()
    assert list(ProposalGraph(weights, 0.0, 3).by_excess()) == list(ProposalGraph(other, 0.0, 3).by_excess())
    assert (weights == before).all()
