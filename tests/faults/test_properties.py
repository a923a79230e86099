"""What holds for any input: proposals and their notations, names of files, columns and captions, forms of JSON."""

import argparse
import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from common.cli import bounded
from common.files import LONGEST_NAME, safe_name, shorten
from common.forms import parse
from data.columns import captions_of, find_caption_columns
from search_strategy.proposals import check_dropped_layers, kept_layers, parse_clip_layers, random_proposals, segments

settings.register_profile("faults", max_examples=60, deadline=None, derandomize=True, database=None)
settings.load_profile("faults")

LAYERS = st.sets(st.integers(1, 60), min_size=1).map(lambda layers: tuple(sorted(layers)))
WRITTEN = st.text("[]-, 0123456789x")
TEXTS = st.text(max_size=300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "raw", "caption"]), inner),
    max_leaves=12,
)


# --- proposals and segments


@given(LAYERS)
def test_segments_are_maximal_runs_and_go_back(layers):
    runs = segments(layers)
    assert all(first <= last for first, last in runs)
    assert all(last + 1 < first for (_, last), (first, _) in zip(runs, runs[1:], strict=False))
    assert tuple(layer for first, last in runs for layer in range(first, last + 1)) == layers
    assert sorted(layers + kept_layers(layers, 60)) == list(range(1, 61))


@given(LAYERS, st.randoms(use_true_random=False), st.sampled_from(["", " ", "  "]))
def test_every_notation_of_a_proposal_in_any_order_reads_the_same(layers, random, blank):
    runs = random.sample(segments(layers), len(segments(layers)))
    ranges = f"{blank},{blank}".join(str(a) if a == b else f"{a}{blank}-{blank}{b}" for a, b in runs)
    for text in (ranges, json.dumps(runs), f"{blank}{runs}{blank}"):
        assert parse_clip_layers(text) == layers


@given(WRITTEN | TEXTS)
def test_any_text_is_a_proposal_or_an_error_that_names_the_flag(text):
    try:
        layers = parse_clip_layers(text)
    except ValueError as error:
        assert str(error).startswith("clip_layers: ") and "\n" not in str(error)
    else:
        assert list(layers) == sorted(set(layers))


@given(st.lists(st.integers(-3, 12), max_size=8), st.integers(1, 9))
def test_layers_are_a_proposal_where_they_are_there_and_differ(layers, num_layers):
    if len(set(layers)) == len(layers) and all(1 <= layer <= num_layers for layer in layers):
        assert check_dropped_layers(layers, num_layers) == tuple(sorted(layers))
    else:
        with pytest.raises(ValueError, match="layer -?[0-9]+ (cannot be dropped|is to be dropped [0-9]+ times)"):
            check_dropped_layers(layers, num_layers)


@given(st.integers(2, 9), st.data(), st.integers(1, 40), st.integers(0, 99))
def test_random_proposals_differ_and_have_the_number_of_layers(num_layers, draw, number, seed):
    num_clip_layers = draw.draw(st.integers(1, num_layers - 1))
    drawn = random_proposals(num_layers, num_clip_layers, number, np.random.default_rng(seed))
    assert len(set(drawn)) == len(drawn) <= number
    assert all(check_dropped_layers(proposal, num_layers, num_clip_layers) == proposal for proposal in drawn)


# --- names of files


@given(TEXTS, TEXTS)
def test_safe_names_keep_what_differs(one, other):
    names = safe_name(one), safe_name(other)
    assert (names[0] == names[1]) == (one.strip("/") == other.strip("/"))
    assert all(re.fullmatch(r"[A-Za-z0-9._-]*", name) for name in names)


@given(st.text("ab/ -", min_size=1, max_size=8), st.text("ab/ -", min_size=1, max_size=8))
def test_safe_names_keep_what_differs_in_signs_alone(one, other):
    assert (safe_name(one) == safe_name(other)) == (one.strip("/") == other.strip("/"))


@given(st.text("ab", max_size=3), st.integers(0, 500), st.integers(0, 500))
def test_shortened_names_fit_and_keep_what_differs(start, one, other):
    names = shorten(start + "x" * one), shorten(start + "x" * other)
    assert (names[0] == names[1]) == (one == other)
    assert all(len(name) < LONGEST_NAME + 10 for name in names)


# --- numbers, columns, captions, JSON


@given(st.integers() | st.floats() | TEXTS)
def test_any_text_is_a_number_in_its_bounds_or_an_error(value):
    for kind in (int, float):
        try:
            assert 1 <= bounded(kind, 1, 5)(str(value)) <= 5
        except argparse.ArgumentTypeError as error:
            assert "expected a" in str(error) and "1..5" in str(error)


NAMES = st.lists(TEXTS | st.sampled_from(["caption", "Caption", "caption_1", "caption_0", "text", "a,b"]), unique=True)


@given(NAMES, st.none() | TEXTS | st.sampled_from(["caption", "text,caption", "caption.raw", " caption , text"]))
def test_columns_of_captions_are_columns_or_the_error_names_them(names, asked):
    try:
        found = find_caption_columns(names, asked, "pairs.csv")
    except ValueError as error:
        assert str(error).startswith("pairs.csv: no caption column; looked for ")
    else:
        assert found and all(name in names or name.partition(".")[0] in names for name in found)


@given(JSON | JSON.map(json.dumps) | JSON.map(repr) | st.text("[]{}\"':,\\ab"))
def test_captions_are_stripped_texts_or_an_error(value):
    try:
        captions = captions_of(value)
    except ValueError as error:
        assert str(error).startswith("expected captions to be text")
    else:
        assert captions and all(isinstance(caption, str) and caption == caption.strip() for caption in captions)


@dataclass(frozen=True)
class Inner:
    """A form inside another."""

    a: list[int]
    b: float | None = None


@dataclass(frozen=True)
class Outer:
    """A form with every kind of field."""

    a: Inner
    raw: dict[str, str] | None = None
    caption: bool = False


@given(JSON | st.fixed_dictionaries({"a": st.fixed_dictionaries({"a": st.lists(st.integers() | st.booleans())})}))
def test_any_json_has_the_form_or_an_error_that_names_the_entry(content):
    try:
        parsed = parse(Outer, content)
    except ValueError as error:
        assert re.match(r"(the file|[a-z0-9.]+): expected |[a-z0-9.]+ is missing", str(error))
    else:
        assert parsed.a.a == content["a"]["a"] and not any(isinstance(number, bool) for number in parsed.a.a)
