"""The tree of kept layers: what is run, how often, in which order."""

from itertools import combinations

import pytest

from search_strategy.prefix_tree import distinct_prefixes, walk


def run_steps(kept):
    """Follow the steps with tuples instead of hidden states; returns what ends where, and the longest path held."""
    path, ended, longest = [()], {}, 0
    for prefix, ending in walk(kept):
        del path[len(prefix) :]
        path.append((*path[-1], prefix[-1]))
        assert path[-1] == prefix
        longest = max(longest, len(path))
        if ending is not None:
            ended[ending] = path[-1]
    return ended, longest


@pytest.mark.parametrize(
    "kept",
    [
        [(1, 2, 3)],
        [(1, 2), (1, 3), (2, 3)],
        [(2, 3), (1, 2, 3), (1, 2), (1,)],
        list(combinations(range(1, 8), 4)),
        [c for size in (1, 3, 5) for c in combinations(range(1, 7), size)],
    ],
)
def test_every_tuple_is_reached_through_its_own_layers(kept):
    ended, longest = run_steps(kept)
    assert ended == dict(enumerate(kept))
    assert longest == 1 + max(map(len, kept))


def test_each_distinct_prefix_is_run_once():
    kept = list(combinations(range(1, 13), 6))
    prefixes = {k[:depth] for k in kept for depth in range(1, 7)}
    assert len(list(walk(kept))) == distinct_prefixes(kept) == len(prefixes) == 1715
    assert sum(map(len, kept)) == 5544


def test_order_of_the_tuples_does_not_change_the_work():
    kept = [(1, 4), (1, 2), (3, 4), (1, 3)]
    assert distinct_prefixes(kept) == distinct_prefixes(kept[::-1]) == 6
