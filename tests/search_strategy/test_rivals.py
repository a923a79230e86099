"""The rivals choose what their papers say."""

import numpy as np
import pytest

from search_strategy.rivals import best_block, block_influence, every_other, first_layers, greedy_by_loss, last_layers


def test_every_other_has_two_phases():
    assert every_other(12, 6, 0) == (2, 4, 6, 8, 10, 12)
    assert every_other(12, 6, 1) == (1, 3, 5, 7, 9, 11)


@pytest.mark.parametrize("num_layers", [5, 12, 24])
def test_every_other_drops_as_many_layers_as_asked(num_layers):
    for k in range(1, num_layers):
        for phase in (0, 1):
            layers = every_other(num_layers, k, phase)
            assert len(set(layers)) == k and min(layers) >= 1 and max(layers) <= num_layers
            assert max(np.diff(layers), default=0) - min(np.diff(layers), default=0) <= 1


def test_first_and_last_layers():
    assert first_layers(12, 3) == (1, 2, 3)
    assert last_layers(12, 3) == (10, 11, 12)


def test_best_block_is_the_most_similar_stretch():
    matrix = np.random.default_rng(0).uniform(size=(9, 9))
    values = {tuple(range(a, a + 3)): matrix[a - 1, a + 2] for a in range(1, 7)}
    assert best_block(matrix, 3) == max(values, key=values.get)


def test_block_influence_takes_the_layers_that_change_least():
    matrix = np.eye(6)
    for layer, similarity in enumerate([0.2, 0.9, 0.1, 0.8, 0.9], start=1):
        matrix[layer - 1, layer] = similarity
    assert block_influence(matrix, 3) == (2, 4, 5)


def test_greedy_drops_the_least_harmful_layer_at_each_step():
    harm = {1: 9, 2: 1, 3: 4, 4: 2}
    both_2_and_4 = 10  # together they hurt more than each alone

    def objective(proposals):
        return [sum(harm[layer] for layer in p) + both_2_and_4 * ({2, 4} <= set(p)) for p in proposals]

    assert greedy_by_loss(objective, 4, 1) == (2,)
    assert greedy_by_loss(objective, 4, 2) == (2, 3)
