"""Notations of a proposal, their errors, and random proposals."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from search_strategy.proposals import (
    check_dropped_layers,
    check_num_clip_layers,
    kept_layers,
    parse_clip_layers,
    random_proposals,
    segments,
)


def test_segments_are_the_maximal_runs():
    assert segments((2, 3, 5, 7)) == [[2, 3], [5, 5], [7, 7]]
    assert segments((1, 2, 3)) == [[1, 3]]
    assert segments(()) == []


def test_segments_and_notations_round_trip_for_every_subset_of_eight_layers():
    for size in range(1, 9):
        for subset in combinations(range(1, 9), size):
            runs = segments(subset)
            assert all(b + 1 < c for (_, b), (c, _) in zip(runs, runs[1:], strict=False))
            assert tuple(layer for first, last in runs for layer in range(first, last + 1)) == subset
            assert parse_clip_layers(str(runs)) == subset
            assert parse_clip_layers(",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs)) == subset
            assert sorted(subset + kept_layers(subset, 8)) == list(range(1, 9))


@pytest.mark.parametrize(
    "text", ["[[2, 3], [5, 5], [7, 7]]", "[[7,7],[2,3],[5,5]]", " 2-3,5,7 ", "7, 5, 3, 2", "2 - 3,5-5,7"]
)
def test_every_notation_of_a_proposal_reads_the_same(text):
    assert parse_clip_layers(text) == (2, 3, 5, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read ''"),
        ("2-3,,5", "cannot read ''"),
        ("2-3,x", "cannot read 'x'"),
        ("2-3-4", "cannot read '2-3-4'"),
        ("-2", "cannot read '-2'"),
        ("2.5", r"cannot read '2\.5'"),
        ("123456789", "cannot read '123456789'"),
        ("[]", "cannot read ''"),
        ("[2, 3, 5]", r"cannot read '2, 3, 5'"),
        ("[[2, 3], [5]]", r"cannot read '\[5\]'"),
        ("[[2, 3], 5]", "cannot read '5'"),
        ("[[2, 3], [5, 5]", r"brackets do not match in '\[\[2, 3\], \[5, 5\]'"),
        ("2,5-3", "'5-3' runs backwards"),
        ("[[2, 3], [7, 5]]", r"'\[7, 5\]' runs backwards"),
        ("2-5,7,4", "'4' repeats layer 4"),
        ("[[2, 3], [3, 4]]", r"'\[3, 4\]' repeats layer 3"),
    ],
)
def test_unreadable_clip_layers_name_the_offending_entry(text, message):
    with pytest.raises(ValueError, match=message):
        parse_clip_layers(text)


def test_check_returns_the_sorted_proposal():
    assert check_dropped_layers([7, 2, np.int64(3)], 12, 3) == (2, 3, 7)
    assert check_dropped_layers([], 12) == ()


@pytest.mark.parametrize(
    ("layers", "count", "message"),
    [
        ([2, 13], None, "layer 13 cannot be dropped: the model has layers 1 to 12"),
        ([0, 2], None, "layer 0 cannot be dropped: the model has layers 1 to 12"),
        ([5, 2, 5], None, "layer 5 is to be dropped 2 times"),
        ([2, 3, 7], 6, r"3 layers are to be dropped, \[\[2, 3\], \[7, 7\]\], but num_clip_layers is 6"),
    ],
)
def test_check_names_the_offending_layer_or_both_counts(layers, count, message):
    with pytest.raises(ValueError, match=message):
        check_dropped_layers(layers, 12, count)


@pytest.mark.parametrize("number", [0, 12, -1])
def test_number_of_dropped_layers_out_of_range(number):
    with pytest.raises(ValueError, match=rf"num_clip_layers is {number}; with num_layers 12 it must be in 1\.\.11"):
        check_num_clip_layers(number, 12)
    with pytest.raises(ValueError, match=f"num_clip_layers is {number}"):
        random_proposals(12, number, 3, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("num_layers", "number", "count"), [(6, 3, 1), (6, 3, 9), (6, 3, 19), (12, 6, 300), (1000, 500, 20)]
)
def test_random_proposals_are_distinct_valid_and_seeded(num_layers, number, count):
    drawn = random_proposals(num_layers, number, count, np.random.default_rng(3))
    assert len(set(drawn)) == len(drawn) == count
    assert all(check_dropped_layers(proposal, num_layers, number) == proposal for proposal in drawn)
    assert drawn == random_proposals(num_layers, number, count, np.random.default_rng(3))
    assert drawn != random_proposals(num_layers, number, count, np.random.default_rng(4))


@pytest.mark.parametrize("count", [20, 21, 1000])
def test_random_proposals_are_all_when_no_more_exist(count):
    drawn = random_proposals(6, 3, count, np.random.default_rng(0))
    assert sorted(drawn) == list(combinations(range(1, 7), 3))


@pytest.mark.parametrize("count", [2, 15])  # redrawn one by one, and taken from the list
def test_random_proposals_are_uniform(count):
    generator = np.random.default_rng(0)
    draws = [proposal for _ in range(6000 // count) for proposal in random_proposals(6, 3, count, generator)]
    frequencies = [draws.count(subset) for subset in combinations(range(1, 7), 3)]
    assert len(frequencies) == comb(6, 3)
    assert sum((n - 300) ** 2 / 300 for n in frequencies) < 43.8  # chi-squared, 19 degrees, p = 0.001
