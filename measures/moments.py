"""Products of hidden states of any number of samples: what SVCCA, PWCCA, CKA and covariances are computed from."""

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from measures.checks import check_hidden_states, check_same_layers, check_values, without_gradients
from measures.products import KeptSamples, Maps, ProductSums, pairs_of

BLOCK_ROWS = 1024  # large enough for the matrix product to dominate, small enough to stay in the cache
TILE_COLUMNS = 2048  # of the layers whose products are taken at once


class Moments:
    """The centred products of every two layers, from samples that come in updates of any size.

    Rows are collected into blocks of 1,024, so the result does not depend on how they were divided into updates. Memory
    is that of the samples as long as they are few, and then that of the sums over them (`_keeps`), whatever their
    number; of one block; and of the products of a tile of pairs.

    Args:
        cross: keep the products of different layers too, not only each layer with itself.
        norms: keep what the sums of products of squared row norms need too (for the debiased CKA).
        same_width: all layers must have the same width.
    """

    def __init__(self, *, cross: bool = True, norms: bool = False, same_width: bool = False) -> None:
        self.same_width = same_width
        self.widths: list[int] | None = None
        self._options = {"cross": cross, "norms": norms}
        self._pending = 0  # rows in the block that are not yet in the store
        self._block: Tensor | None = None
        self._store: KeptSamples | ProductSums | None = None

    @property
    def samples(self) -> int:
        """The number of rows seen."""
        return self._pending + (self._store.rows if self._store else 0)

    @without_gradients
    def update(self, hidden_states: Sequence[Tensor]) -> None:
        """Add the rows of one (n, d_i) tensor for each layer."""
        states = check_hidden_states(hidden_states, self.widths, same_width=self.same_width)
        check_values(states)
        if self.widths is None:
            self._start([state.shape[1] for state in states], states[0].device)
        done, rows = 0, states[0].shape[0]
        while done < rows:
            self._open_block(states)
            taken = min(rows - done, BLOCK_ROWS - self._pending)
            for columns, state in zip(self._block.split(self.widths, 1), states, strict=True):
                columns[self._pending : self._pending + taken].copy_(state[done : done + taken])
            self._pending += taken
            done += taken
            if self._pending == BLOCK_ROWS:
                self._flush()

    def _start(self, widths: list[int], device: torch.device) -> None:
        self.widths, self._device = widths, device
        self._store = KeptSamples(widths, device)

    def _open_block(self, states: Sequence[Tensor]) -> None:
        """Have a block that holds the states without loss: float32 where they are no wider."""
        # half precision is widened: sums of half floats would overflow, and a block has one type
        wide = any(state.dtype == torch.float64 for state in states)
        dtype = torch.float64 if wide else torch.float32
        if self._block is not None and self._block.dtype != dtype:
            self._flush()
            self._block = None
        if self._block is None:
            self._block = torch.empty(BLOCK_ROWS, sum(self.widths), dtype=dtype, device=self._device)

    @without_gradients
    def _flush(self) -> None:
        """Bring the rows that wait in the block into the store."""
        if self._pending == 0:
            return
        block = self._block[: self._pending]
        if isinstance(self._store, KeptSamples) and not self._keeps(self._store.nbytes + block.nbytes):
            self._sum_up()
        if isinstance(self._store, KeptSamples):
            # a full block is given away; of an unfinished one a copy, since the block is filled again
            block, self._block = (block, None) if len(block) == BLOCK_ROWS else (block.clone(), self._block)
        self._store.add(block)
        self._pending = 0

    def _keeps(self, nbytes: int) -> bool:
        """The rule: samples are kept as long as they take at most half of what their sums would.

        Half, since both are there while the one is turned into the other. 1,001 layers of width 64 have sums of 16 GB,
        and 9,600 samples of 2.5 GB; 13 layers of width 512 have sums of 0.2 GB, for which 3,000 samples are given up.
        """
        return nbytes <= ProductSums.bytes_of(self.widths, **self._options) / 2

    def _sum_up(self) -> None:
        """Go on with sums in the place of the samples."""
        sums = ProductSums(self.widths, self._device, **self._options)
        for block in self._store.blocks:
            sums.add(block)
        self._store = sums

    def groups(self) -> list[range]:
        """Consecutive layers of one width that are taken together: one, or several at most `TILE_COLUMNS` wide."""
        groups: list[range] = []
        for layer, width in enumerate(self.widths):
            last = groups[-1] if groups else range(0)
            if last and self.widths[last.start] == width and (len(last) + 1) * width <= TILE_COLUMNS:
                groups[-1] = range(last.start, layer + 1)
            else:
                groups.append(range(layer, layer + 1))
        return groups

    def own(self, layer: int) -> Tensor:
        """The sum of products of a layer's centred samples, X'X: (d, d), symmetric."""
        self._flush()
        product = self._store.own(layer)
        return (product + product.T) / 2  # exactly symmetric, as eigh takes it to be

    def cross(self, maps: Maps = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """maps_i' X_i' X_j maps_j for all pairs i < j of layers, tile by tile.

        `maps`: a (d_i, k_i) for each layer, the identity by default. Yields the i (b,), the j (b,), and the products
        (b, K, K'), filled up with zeros where layers of a tile have fewer than the most columns.
        """
        self._flush()
        groups = self.groups()
        for number, rows in enumerate(groups):
            others = groups[number:]
            for columns, products in zip(others, self._store.products(rows, others, maps), strict=True):
                if products:
                    firsts, seconds = torch.tensor(pairs_of(rows, columns)).T
                    yield firsts, seconds, _stack_padded(products)

    def constant_layers(self) -> list[int]:
        """The layers whose samples all are the same vector, up to the rounding of its mean."""
        self._flush()
        eps = torch.finfo(torch.float64).eps
        squares = torch.cat([self._store.own(layer).diagonal() for layer in range(len(self.widths))])
        # the variance that rounding of a mean of this size gives by itself, with a margin
        flat = squares <= self._store.rows * (64 * eps * self._store.mean) ** 2
        return [layer for layer, features in enumerate(flat.split(self.widths)) if bool(features.all())]

    @without_gradients
    def merge(self, other: Self) -> None:
        """Add the samples of `other`."""
        if other.samples == 0:
            return
        other._flush()
        if self.widths is None:
            self._start(list(other.widths), other._device)
        check_same_layers(self.widths, other.widths)
        # samples are added as if they came here; sums are translated to this store's shift
        if isinstance(other._store, KeptSamples):
            for block in other._store.blocks:
                self.update(block.to(self._device).split(self.widths, 1))
            return
        self._flush()
        if isinstance(self._store, KeptSamples):
            self._sum_up()
        self._store.merge(other._store)

    def centred_norm_products(self) -> Tensor:
        """The sum over samples of |x_i|^2 |x_j|^2 of the centred samples: (L+1, L+1)."""
        self._flush()
        return self._store.norm_products()

    def __getstate__(self) -> dict:
        self._flush()
        return {**self.__dict__, "_block": None}


def _stack_padded(matrices: Sequence[Tensor]) -> Tensor:
    """(b, K, K'), with zeros behind the columns and below the rows of smaller ones."""
    rows, columns = (max(matrix.shape[side] for matrix in matrices) for side in (0, 1))
    if all(matrix.shape == (rows, columns) for matrix in matrices):
        return torch.stack(list(matrices))
    stacked = matrices[0].new_zeros(len(matrices), rows, columns)
    for place, matrix in zip(stacked, matrices, strict=True):
        place[: matrix.shape[0], : matrix.shape[1]] = matrix
    return stacked
