"""Coarse search against enumeration and a plain beam, both written out here."""

from itertools import combinations
from math import comb, fsum

import numpy as np
import pytest

from search_strategy.coarse import MAX_EXHAUSTIVE, SCORES, SEARCH_MODES, coarse_score, coarse_search, missed_by


def plain_score(matrix, dropped, score="mean"):
    entries, first = [], None
    for layer in dropped:
        if layer - 1 not in dropped:
            first = layer
        if layer + 1 not in dropped:
            entries.append(matrix[first - 1][layer])
    return fsum(entries) / len(entries) if score == "mean" else fsum(entries) - len(entries)


def enumerated(matrix, num_clip_layers, score="mean"):
    """Every proposal with its score, best first."""
    rows = matrix.tolist()
    scored = [(d, plain_score(rows, d, score)) for d in combinations(range(1, len(rows)), num_clip_layers)]
    return sorted(scored, key=lambda entry: (-round(entry[1], 12), entry[0]))


def plain_beam(matrix, num_clip_layers, num_proposals, beam_size, score="mean"):
    beam = [()]
    for step in range(1, num_clip_layers + 1):
        extended = {tuple(sorted((*d, new))) for d in beam for new in range(1, len(matrix)) if new not in d}
        scored = sorted(((d, plain_score(matrix, d, score)) for d in extended), key=lambda e: (-round(e[1], 12), e[0]))
        scored = scored[: num_proposals if step == num_clip_layers else beam_size]
        beam = [d for d, _ in scored]
    return scored


def matrices(num_layers, seed=0):
    generator, shape = np.random.default_rng(seed), (num_layers + 1, num_layers + 1)
    walk = np.cumsum(generator.normal(size=(num_layers + 1, 16)), axis=0)
    return {
        "random": generator.random(shape),
        "constant": np.full(shape, 0.1),
        "zero": np.zeros(shape),
        "halves": generator.integers(0, 3, shape) / 2,  # exact ties, between different numbers of segments too
        "thirds": generator.integers(0, 4, shape) / 3,  # ties up to rounding only
        "nearly tied": 0.5 + generator.choice([0.0, 0.37e-12, 1.21e-12], shape),  # equal or not to 12 decimals
        "negative": -generator.random(shape),
        "mixed": generator.normal(size=shape),
        "correlation": np.corrcoef(walk),
    }


KINDS = list(matrices(2))


@pytest.mark.parametrize("kind", KINDS)
def test_exact_and_exhaustive_equal_enumeration_for_every_size_up_to_ten_layers(kind):
    for num_layers in range(2, 11):
        matrix = matrices(num_layers, seed=num_layers)[kind]
        for k in range(1, num_layers):
            truth = enumerated(matrix, k)
            for num_proposals in (1, 3, 10, 50, 300):
                options = {"num_proposals": num_proposals}
                assert coarse_search(matrix, k, mode="exact", **options) == truth[:num_proposals]
                assert coarse_search(matrix, k, mode="exhaustive", **options) == truth[:num_proposals]


@pytest.mark.parametrize("num_layers", [12, 14])
@pytest.mark.parametrize("kind", ["random", "constant", "halves", "negative"])
def test_exact_equals_enumeration_for_every_size(kind, num_layers):
    matrix = matrices(num_layers, seed=7)[kind]
    for k in range(1, num_layers):
        truth = enumerated(matrix, k)
        for num_proposals in (1, 3, 10, 50):
            assert coarse_search(matrix, k, mode="exact", num_proposals=num_proposals) == truth[:num_proposals]


@pytest.mark.parametrize("kind", KINDS)
def test_exact_and_exhaustive_equal_enumeration_with_the_sum_score(kind):
    for num_layers in (2, 5, 8, 10):
        matrix = matrices(num_layers, seed=num_layers)[kind]
        for k in range(1, num_layers):
            truth = enumerated(matrix, k, "sum")
            for num_proposals in (1, 10, 300):
                options = {"num_proposals": num_proposals, "score": "sum"}
                assert coarse_search(matrix, k, mode="exact", **options) == truth[:num_proposals]
                assert coarse_search(matrix, k, mode="exhaustive", **options) == truth[:num_proposals]


@pytest.mark.parametrize("mode", ["exact", "exhaustive"])
@pytest.mark.parametrize("kind", ["correlation", "halves"])
def test_all_924_proposals_of_twelve_to_six(kind, mode):
    matrix = matrices(12)[kind]
    found = coarse_search(matrix, 6, mode=mode, num_proposals=10**6)
    assert len(found) == 924
    assert found == enumerated(matrix, 6)


def test_exhaustive_rounds_as_enumeration_does_where_the_thirteenth_decimal_is_a_five():
    for value in (0.1963029026535, 0.4511806818595, 0.8165060435085):
        matrix = np.full((9, 9), value)  # rounding errors decide for every subset whether it rounds up or down
        for k in range(1, 8):
            assert coarse_search(matrix, k, mode="exhaustive", num_proposals=10) == enumerated(matrix, k)[:10]


def test_exhaustive_keeps_the_best_across_its_chunks():
    matrix = matrices(20)["halves"]  # 184,756 subsets, three chunks, and ties in all of them
    exhaustive = coarse_search(matrix, 10, mode="exhaustive", num_proposals=50)
    assert exhaustive == coarse_search(matrix, 10, mode="exact", num_proposals=50)
    reversed_layers = matrix[::-1, ::-1].T  # the same scores with the layers counted from the other end: other chunks
    scores = [score for _, score in coarse_search(reversed_layers, 10, mode="exhaustive", num_proposals=50)]
    assert scores == [score for _, score in exhaustive]


def test_exact_finds_a_planted_best_among_c_300_150():
    matrix = -np.random.default_rng(0).random((301, 301))
    planted = [(10, 59), (100, 149), (200, 249)]
    for first, last in planted:
        matrix[first - 1, last] = 1.0
    best, *others = coarse_search(matrix, 150, mode="exact", num_proposals=5)
    assert best == (tuple(layer for first, last in planted for layer in range(first, last + 1)), 1.0)
    assert all(score < 1.0 for _, score in others)
    assert len({dropped for dropped, _ in others}) == 4


def test_exact_lists_the_first_ties_of_a_deep_constant_matrix():
    found = coarse_search(np.full((201, 201), 0.1), 100, mode="exact", num_proposals=5)
    assert [dropped for dropped, _ in found] == [(*range(1, 100), last) for last in range(100, 105)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", ["mean", "sum"])
def test_beam_equals_a_plain_beam(kind, score):
    matrix = matrices(11)[kind]
    for k, num_proposals, beam_size in [(1, 3, 10), (4, 10, 10), (5, 3, 4), (6, 20, 10), (10, 10, 2)]:
        options = {"num_proposals": num_proposals, "beam_size": beam_size, "score": score}
        assert coarse_search(matrix, k, mode="beam", **options) == plain_beam(
            matrix, k, num_proposals, beam_size, score
        )


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_a_beam_of_one(kind):
    matrix = matrices(11)[kind]
    for k in (1, 4, 10):
        greedy = coarse_search(matrix, k, mode="greedy", num_proposals=5)
        assert greedy == plain_beam(matrix, k, 5, 1)


def test_a_beam_of_every_subset_is_exhaustive():
    matrix = matrices(9)["random"]
    wide = coarse_search(matrix, 4, mode="beam", num_proposals=200, beam_size=200)
    assert wide == coarse_search(matrix, 4, mode="exhaustive", num_proposals=200)


def test_a_beam_of_ten_misses_a_block_whose_parts_look_bad():
    matrix = np.full((17, 17), 0.5)
    for layer in range(6, 10):
        matrix[layer - 1, layer] = 0.0  # each of the layers 6 to 9 alone
    matrix[5, 9] = 1.0  # all four together
    beam = coarse_search(matrix, 4, mode="beam", num_proposals=10)
    exact = coarse_search(matrix, 4, mode="exact", num_proposals=10)
    assert exact[0] == ((6, 7, 8, 9), 1.0)
    assert missed_by(beam, exact) == [((6, 7, 8, 9), 1.0)]
    assert coarse_search(matrix, 4, mode="beam", num_proposals=10, beam_size=comb(16, 3)) == exact


def test_missed_by_counts_equally_good_ones_as_found():
    exact = [((1, 2), 0.9), ((1, 3), 0.5), ((1, 4), 0.5)]
    assert missed_by(exact, exact) == []
    assert missed_by([((1, 2), 0.9), ((2, 3), 0.5), ((2, 4), 0.5)], exact) == []
    assert missed_by([((1, 3), 0.5), ((2, 3), 0.5), ((2, 4), 0.5)], exact) == [((1, 2), 0.9)]
    assert missed_by([((1, 2), 0.9), ((2, 3), 0.5)], exact) == [((1, 4), 0.5)]
    assert missed_by([], exact) == exact


def test_coarse_score_by_hand():
    matrix = np.zeros((8, 8))
    matrix[1, 3], matrix[4, 5], matrix[6, 7] = 0.9, 0.6, 0.3  # segments [2, 3], [5, 5], [7, 7]
    assert coarse_score(matrix, (2, 3, 5, 7)) == pytest.approx(0.6)
    assert coarse_score(matrix, (2, 3, 5, 7), "sum") == pytest.approx(-(0.1 + 0.4 + 0.7))
    assert coarse_score(matrix, [7, 3, 5, 2]) == coarse_score(matrix, (2, 3, 5, 7))


def test_coarse_score_is_exactly_rounded():
    matrix = np.zeros((6, 6))
    matrix[0, 1], matrix[2, 3], matrix[4, 5] = 1e16, 1.0, -1e16  # a plain sum loses the 1
    assert coarse_score(matrix, (1, 3, 5)) == 1 / 3


def test_searched_scores_are_coarse_scores_and_the_matrix_is_unchanged():
    for score in SCORES:
        matrix = matrices(10)["random"]
        before = matrix.copy()
        for mode in SEARCH_MODES:
            for dropped, value in coarse_search(matrix, 4, mode=mode, num_proposals=7, score=score):
                assert value == coarse_score(matrix, dropped, score)
        assert (matrix == before).all()


def test_scores_rank_differently():
    matrix = matrices(12)["random"]
    mean, total = (coarse_search(matrix, 6, mode="exact", num_proposals=10, score=score) for score in ("mean", "sum"))
    assert [dropped for dropped, _ in mean] != [dropped for dropped, _ in total]


def test_a_single_precision_matrix_and_lists_are_taken():
    matrix = matrices(6)["random"].astype(np.float32)
    expected = enumerated(matrix.astype(np.float64), 3)[:4]
    assert coarse_search(matrix, 3, mode="exact", num_proposals=4) == expected
    assert coarse_search(matrix.tolist(), 3, mode="exact", num_proposals=4) == expected


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((3, 4)), r"must be square.*found shape \(3, 4\)"),
        (np.ones(9), r"must be square.*found shape \(9,\)"),
        (np.ones((1, 1)), r"must be square.*found shape \(1, 1\)"),
        (np.diag([1.0, np.nan, 1.0]), r"must be finite; found nan at \[1, 1\]"),
        (np.full((3, 3), -np.inf), r"must be finite; found -inf at \[0, 0\]"),
    ],
)
def test_matrix_that_is_not_square_or_not_finite(matrix, message):
    with pytest.raises(ValueError, match=message):
        coarse_score(matrix, (1,))
    with pytest.raises(ValueError, match=message):
        coarse_search(matrix, 1, mode="exact", num_proposals=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clip_layers": 0}, r"num_clip_layers is 0; with num_layers 12 it must be in 1\.\.11"),
        ({"num_clip_layers": 12}, "num_clip_layers is 12"),
        ({"num_proposals": 0}, "num_proposals is 0; it must be at least 1"),
        ({"beam_size": 0}, "beam_size is 0; it must be at least 1"),
        ({"mode": "best"}, "unknown mode 'best'; choose from exhaustive, greedy, beam, exact"),
        ({"score": "max"}, "unknown score 'max'; choose from mean, sum"),
    ],
)
def test_wrong_options_of_the_search(options, message):
    options = {"num_clip_layers": 6, "mode": "beam", "num_proposals": 10, **options}
    with pytest.raises(ValueError, match=message):
        coarse_search(np.ones((13, 13)), **options)


def test_exhaustive_refuses_what_takes_too_long():
    assert comb(24, 12) < MAX_EXHAUSTIVE < comb(26, 13)
    with pytest.raises(ValueError, match=r"10400600 subsets \(13 of 26 layers\).*use mode exact"):
        coarse_search(np.ones((27, 27)), 13, mode="exhaustive", num_proposals=1)


@pytest.mark.parametrize(
    ("dropped", "score", "message"),
    [
        ((), "mean", "no layer is dropped"),
        ((3, 13), "mean", "layer 13 cannot be dropped: the model has layers 1 to 12"),
        ((3, 3), "mean", "layer 3 is to be dropped 2 times"),
        ((3,), "median", "unknown score 'median'; choose from mean, sum"),
    ],
)
def test_wrong_arguments_of_the_score(dropped, score, message):
    with pytest.raises(ValueError, match=message):
        coarse_score(np.ones((13, 13)), dropped, score)
