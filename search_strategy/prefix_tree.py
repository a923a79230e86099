"""Proposals as a tree of kept layers: a prefix that several proposals share is one node, run once."""

from collections.abc import Iterable, Iterator, Sequence

KeptLayers = tuple[int, ...]


def distinct_prefixes(kept: Iterable[KeptLayers]) -> int:
    """Number of distinct non-empty prefixes: the layer calls that a batch needs."""
    return len({layers[:depth] for layers in kept for depth in range(1, len(layers) + 1)})


def walk(kept: Sequence[KeptLayers]) -> Iterator[tuple[int, int, int | None]]:
    """Depth-first steps through the tree of distinct, non-empty tuples: (depth, layer, number of the tuple that ends here).

    A step says: take the hidden state at `depth` - 1 of the current path (0 is the embeddings), run `layer`, and keep the
    result as the state at `depth`. Only the states of one path are needed at a time. There are `distinct_prefixes` steps.
    """
    previous: KeptLayers = ()
    for number in sorted(range(len(kept)), key=lambda number: kept[number]):
        layers = kept[number]
        shared = next((i for i, (a, b) in enumerate(zip(previous, layers, strict=False)) if a != b), len(previous))
        for depth in range(shared + 1, len(layers) + 1):
            yield depth, layers[depth - 1], number if depth == len(layers) else None
        previous = layers
