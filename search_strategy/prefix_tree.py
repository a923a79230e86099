"""Proposals as a tree of kept layers: a prefix that several proposals share is one node, run once."""

from collections.abc import Iterable, Iterator, Sequence

KeptLayers = tuple[int, ...]


def distinct_prefixes(kept: Iterable[KeptLayers]) -> int:
    """Number of distinct non-empty prefixes: the layer calls that a batch needs."""
    return len({layers[:depth] for layers in kept for depth in range(1, len(layers) + 1)})


def walk(kept: Sequence[KeptLayers]) -> Iterator[tuple[KeptLayers, int | None]]:
    """Depth-first through the tree of distinct tuples: (prefix, number of the tuple that is this prefix, or None).

    The state of a prefix is that of the prefix without its last layer, after this layer. The walk comes to it while the path
    to it is at hand, so only the states of one path are needed at a time. There are `distinct_prefixes` steps; none leads to the
    empty tuple, whose state is the one to start from.
    """
    previous: KeptLayers = ()
    for number in sorted(range(len(kept)), key=lambda number: kept[number]):
        layers = kept[number]
        shared = next((i for i, (a, b) in enumerate(zip(previous, layers, strict=False)) if a != b), len(previous))
        for depth in range(shared + 1, len(layers) + 1):
            yield layers[:depth], number if depth == len(layers) else None
        previous = layers
