"""Proposals, the sets of layers to drop: their notations, checks, and random ones.

A proposal is a sorted tuple of dropped layers; layers are counted from 1. A segment [a, b] is a maximal run of
consecutive dropped layers, as in CoMFLP (Liu, Peng, Lee, Interspeech 2023, section 2).
"""

import re
from collections.abc import Iterable
from itertools import combinations
from math import comb
from operator import index

import numpy as np

Proposal = tuple[int, ...]

_PAIR = re.compile(r"\[\s*([0-9]{1,5})\s*,\s*([0-9]{1,5})\s*\]")
_RANGE = re.compile(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?")


def segments(dropped_layers: Iterable[int]) -> list[list[int]]:
    """Maximal runs [a, b] of consecutive dropped layers: (2, 3, 5, 7) -> [[2, 3], [5, 5], [7, 7]]."""
    runs = []
    for layer in sorted(dropped_layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return runs


def kept_layers(dropped_layers: Iterable[int], num_layers: int) -> Proposal:
    """The layers of 1..num_layers that are not dropped."""
    dropped = set(dropped_layers)
    return tuple(layer for layer in range(1, num_layers + 1) if layer not in dropped)


def parse_clip_layers(text: str) -> Proposal:
    """Read `[[2, 3], [5, 5], [7, 7]]` or `2-3,5,7` as the proposal (2, 3, 5, 7).

    Raises ValueError that names the first entry that is malformed, runs backwards, or repeats a layer.
    """
    layers = []
    for entry, first, last in _entries(text.strip()):
        if last < first:
            raise ValueError(f"clip_layers: {entry!r} runs backwards; write the smaller layer first")
        repeated = [layer for layer in layers if first <= layer <= last]
        if repeated:
            raise ValueError(f"clip_layers: {entry!r} repeats layer {repeated[0]}; name every layer once")
        layers.extend(range(first, last + 1))
    return tuple(sorted(layers))


def _entries(text: str) -> Iterable[tuple[str, int, int]]:
    """Yield (entry as written, first layer, last layer)."""
    if text.startswith("["):
        # at the commas after a bracket, not at those inside
        entries, pattern = re.split(r"(?<=\])\s*,", text[1:].removesuffix("]")), _PAIR
        if text.count("[") != text.count("]"):
            raise ValueError(f"clip_layers: brackets do not match in {text!r}")
    else:
        entries, pattern = text.split(","), _RANGE
    for entry in map(str.strip, entries):
        match = pattern.fullmatch(entry)
        if match is None:
            raise ValueError(f"clip_layers: cannot read {entry!r}; expected [[2, 3], [5, 5], [7, 7]] or 2-3,5,7")
        yield entry, int(match[1]), int(match[2] or match[1])


def check_dropped_layers(
    dropped_layers: Iterable[int], num_layers: int, num_clip_layers: int | None = None
) -> Proposal:
    """The layers as a sorted tuple, if they are a proposal for `num_layers` layers.

    Raises ValueError that names the first layer outside 1..num_layers or repeated, or both counts where
    `num_clip_layers` is given and is not the number of layers.
    """
    proposal = tuple(sorted(index(layer) for layer in dropped_layers))
    for layer, previous in zip(proposal, (None, *proposal), strict=False):  # sorted, so a repeat follows at once
        if not 1 <= layer <= num_layers:
            raise ValueError(f"layer {layer} cannot be dropped: the model has layers 1 to {num_layers}")
        if layer == previous:
            raise ValueError(f"layer {layer} is to be dropped {proposal.count(layer)} times; name every layer once")
    if num_clip_layers is not None and len(proposal) != num_clip_layers:
        raise ValueError(
            f"{len(proposal)} layers are to be dropped, {segments(proposal)}, but num_clip_layers is {num_clip_layers}"
        )
    return proposal


def check_num_clip_layers(num_clip_layers: int, num_layers: int, fewest: int = 1) -> None:
    """Raise ValueError unless at least `fewest` layers are dropped and at least one is kept."""
    if not fewest <= num_clip_layers <= num_layers - 1:
        raise ValueError(
            f"num_clip_layers is {num_clip_layers}; with num_layers {num_layers} it must be in "
            f"{fewest}..{num_layers - 1}"
        )


def random_proposals(
    num_layers: int, num_clip_layers: int, num_proposals: int, generator: np.random.Generator
) -> list[Proposal]:
    """Distinct proposals drawn uniformly, in the order drawn; all of them if no more exist."""
    check_num_clip_layers(num_clip_layers, num_layers)
    existing = comb(num_layers, num_clip_layers)
    if existing <= 2 * num_proposals:  # few enough to list: redrawing the repeated ones would take long here
        listed = list(combinations(range(1, num_layers + 1), num_clip_layers))
        return [listed[i] for i in generator.permutation(existing)[:num_proposals]]
    # else draw until there are enough: repeats are rare, since at least twice as many exist
    drawn = {}  # a dict keeps the order
    while len(drawn) < num_proposals:
        layers = generator.choice(num_layers, num_clip_layers, replace=False, shuffle=False) + 1
        drawn[tuple(sorted(layers.tolist()))] = None
    return list(drawn)
