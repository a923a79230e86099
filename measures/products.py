"""The products X_i'X_j of the centred samples of layers: two stores of one form, the samples, or sums over them.

Both take blocks of rows (n, D), all layers side by side, D = d_0 + ... + d_L, in any floating-point type, and give
products in float64. `moments.py` decides which of them is used.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

SINGLE_FROM = 2**44  # multiplications and additions: four minutes of two cores in float64
Maps = Sequence[Tensor] | None  # (d_i, k_i) for each layer; None: the identity


def pairs_of(rows: range, columns: range) -> list[tuple[int, int]]:
    """The pairs i < j of layers, in the order of the products that the stores give."""
    return [(i, j) for i in rows for j in columns if i < j]


class KeptSamples:
    """The samples as they came: n D numbers of their own type.

    Products are taken in float64, but for the largest: from `SINGLE_FROM` operations on, mapped samples that came in
    float32 are multiplied in it, in half of the time. Where maps make columns of length one, as SVCCA's do, that is
    within 2e-7, less than the rounding of float32 states moves an entry.
    """

    def __init__(self, widths: Sequence[int], device: torch.device) -> None:
        self.widths, self.rows = list(widths), 0
        self.blocks: list[Tensor] = []
        self._total = torch.zeros(sum(widths), dtype=torch.float64, device=device)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    def add(self, block: Tensor) -> None:
        """Keep a block, which may not be changed any more."""
        self.blocks.append(block)
        # layer by layer: a sum of float32 in float64 first makes a copy of all that it adds up
        self._total += torch.cat([states.sum(0, dtype=torch.float64) for states in block.split(self.widths, 1)])
        self.rows += len(block)

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self._total / self.rows

    def own(self, layer: int) -> Tensor:
        """X'X of a layer: (d, d)."""
        # block by block: large copies with a small product behind each break up the heap (3 GB for 1,001 layers)
        return sum(centred.T @ centred for centred in self._centred(range(layer, layer + 1)))

    def products(self, rows: range, groups: Sequence[range], maps: Maps) -> Iterator[list[Tensor]]:
        """For each group in turn maps_i' X_i' X_j maps_j of its `pairs_of(rows, group)`: a list of (k_i, k_j)."""
        left, left_widths = self._mapped(rows, maps)
        for group in groups:
            right, right_widths = (left, left_widths) if group == rows else self._mapped(group, maps)
            parts = [part.split(right_widths, 1) for part in (left.T @ right).double().split(left_widths)]
            yield [parts[i - rows.start][j - group.start] for i, j in pairs_of(rows, group)]

    def _mapped(self, layers: range, maps: Maps) -> tuple[Tensor, list[int]]:
        """X_i maps_i of consecutive layers side by side, (n, k_i + ...), and the k_i."""
        widths = self.widths[layers.start : layers.stop]
        mapped_widths = widths if maps is None else [maps[i].shape[1] for i in layers]
        large = maps is not None and self.rows * sum(self.widths) ** 2 >= SINGLE_FROM
        single = large and all(block.dtype == torch.float32 for block in self.blocks)
        dtype = torch.float32 if single else torch.float64
        mapped = self._total.new_empty(self.rows, sum(mapped_widths), dtype=dtype)
        # block by block, since that of a tile stays in the cache until it is multiplied
        places = mapped.split([len(block) for block in self.blocks])
        for place, centred in zip(places, self._centred(layers), strict=True):
            if maps is None:
                place.copy_(centred)
            else:
                parts = zip(layers, centred.split(widths, 1), strict=True)
                place.copy_(torch.cat([part @ maps[layer] for layer, part in parts], 1))
        return mapped, mapped_widths

    def _centred(self, layers: range) -> Iterator[Tensor]:
        """The centred samples of consecutive layers in float64, block by block."""
        start, stop = (sum(self.widths[:layer]) for layer in (layers.start, layers.stop))
        mean = self._total[start:stop] / self.rows
        for block in self.blocks:
            yield block[:, start:stop].double() - mean

    def norm_products(self) -> Tensor:
        """The sum over samples of |x_i|^2 |x_j|^2: (L+1, L+1)."""
        layers = range(len(self.widths))
        squares = torch.stack([self._mapped(layers[layer : layer + 1], None)[0].square().sum(1) for layer in layers])
        return squares @ squares.T


class ProductSums:
    """Sums over the samples of x_i, and of the products x_i x_j' of every two layers i <= j.

    Products are taken of values from which a running shift, the mean of the first block, was subtracted: a common
    offset of 100 standard deviations would otherwise cost four digits. Since sums about any shift can be translated to
    any other exactly, the result is that of the centred samples, and sums from several processes can be added.

    Args:
        cross: keep the products of different layers too, not only each layer with itself.
        norms: keep the sums of products with the squared row norms too.
    """

    def __init__(self, widths: Sequence[int], device: torch.device, *, cross: bool, norms: bool) -> None:
        total, layers = sum(widths), len(widths)
        zeros = {"dtype": torch.float64, "device": device}
        self.widths, self.norms, self.rows = list(widths), norms, 0
        self._shift: Tensor | None = None
        self._starts = [sum(widths[:layer]) for layer in range(layers)]
        self._sums = torch.zeros(total, **zeros)
        # strip i holds the products of layer i with the layers i, i+1, ..., L side by side: (d_i, d_i + ... + d_L)
        ends = [total if cross else start + width for start, width in zip(self._starts, widths, strict=True)]
        self._strips = [
            torch.zeros(width, end - start, **zeros)
            for start, end, width in zip(self._starts, ends, widths, strict=True)
        ]
        if norms:
            self._norm_sums = torch.zeros(layers, **zeros)  # sum of p_i, where p_i = |x_i|^2
            self._norm_rows = torch.zeros(layers, total, **zeros)  # sum of p_i x_j
            self._norm_products = torch.zeros(layers, layers, **zeros)  # sum of p_i p_j

    @staticmethod
    def bytes_of(widths: Sequence[int], *, cross: bool, norms: bool) -> int:
        """What they take, whatever the number of samples."""
        total, own = sum(widths), sum(width * width for width in widths)
        products = (total * total + own) // 2 if cross else own
        return 8 * (products + (len(widths) * total if norms else 0))

    def add(self, block: Tensor) -> None:
        """Add the rows of a block."""
        if self._shift is None:
            self._shift = block.double().mean(0)
        block = block.double() - self._shift
        self._sums += block.sum(0)
        for start, width, strip in zip(self._starts, self.widths, self._strips, strict=True):
            strip.addmm_(block[:, start : start + width].T, block[:, start : start + strip.shape[1]])
        if self.norms:
            squares = torch.stack([(rows * rows).sum(1) for rows in block.split(self.widths, 1)])  # (L+1, n)
            self._norm_sums += squares.sum(1)
            self._norm_rows.addmm_(squares, block)
            self._norm_products.addmm_(squares, squares.T)
        self.rows += len(block)

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self._shift + self._sums / self.rows

    def _part(self, layer: int, other: int) -> Tensor:
        """The sum of x_layer x_other' about the shift, layer <= other: (d_layer, d_other), a view."""
        start = self._starts[other] - self._starts[layer]
        return self._strips[layer][:, start : start + self.widths[other]]

    def own(self, layer: int) -> Tensor:
        """X'X of a layer: (d, d)."""
        sums = self._sums.split(self.widths)[layer]
        return torch.addr(self._part(layer, layer), sums, sums, alpha=-1 / self.rows)

    def products(self, rows: range, groups: Sequence[range], maps: Maps) -> Iterator[list[Tensor]]:
        """For each group in turn maps_i' X_i' X_j maps_j of its `pairs_of(rows, group)`: a list of (k_i, k_j)."""
        for group in groups:
            found = []
            for i in rows:
                later = range(max(group.start, i + 1), group.stop)
                products = self._row(i, later, None if maps is None else maps[i]) if later else []
                found += products if maps is None else [p @ maps[j] for p, j in zip(products, later, strict=True)]
            yield found

    def _row(self, layer: int, later: range, left: Tensor | None) -> Sequence[Tensor]:
        """`left' X_layer' X_j` for consecutive layers j after it: a list of (k, d_j)."""
        widths, start = self.widths[later.start : later.stop], self._starts[later.start]
        columns, begin = slice(start, start + sum(widths)), self._starts[layer]
        sums = self._sums[begin : begin + self.widths[layer]]
        products = self._strips[layer][:, columns.start - begin : columns.stop - begin]
        if left is not None:
            products, sums = left.T @ products, left.T @ sums
        return torch.addr(products, sums, self._sums[columns], alpha=-1 / self.rows).split(widths, 1)

    def merge(self, other: Self) -> None:
        """Add the sums of `other`, translated to this instance's shift."""
        device = self._sums.device
        if self._shift is None:
            self._shift = other._shift.to(device, copy=True)
        offset = other._shift.to(device) - self._shift  # x about this shift = x about the other's + offset
        sums, parts = other._sums.to(device), offset.split(self.widths)
        if self.norms:
            norms = self._norm_sums, self._norm_rows, self._norm_products
            for mine, theirs in zip(norms, other._moved_norms(offset.to(other._sums.device)), strict=True):
                mine += theirs.to(device)
        for start, strip, theirs, part in zip(self._starts, self._strips, other._strips, parts, strict=True):
            right = slice(start, start + strip.shape[1])
            strip += theirs.to(device)
            strip.addr_(part, sums[right] + other.rows * offset[right])
            strip.addr_(sums[start : start + len(part)], offset[right])
        self._sums += sums + other.rows * offset
        self.rows += other.rows

    def norm_products(self) -> Tensor:
        """The sum over samples of |x_i|^2 |x_j|^2: (L+1, L+1)."""
        return self._moved_norms(-self._sums / self.rows)[2]

    def _moved_norms(self, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of q_i, q_i y_j and q_i q_j for y = x + e, where q_i = |y_i|^2; e_i is the part of `offset` of layer
        i.

        Shapes (L+1), (L+1, total width), (L+1, L+1). With p_i = |x_i|^2, what is kept is P = sum p_i (`_norm_sums`),
        R = sum p_i x_j (`_norm_rows`) and Q = sum p_i p_j (`_norm_products`). Since q_i = p_i + 2 a_i + s_i, where
        a_i = x_i'e_i and s_i = |e_i|^2,

            sum q_i     = P_i + 2 sum a_i + n s_i
            sum q_i y_j = R_ij + 2 sum a_i x_j + s_i sum x_j + (sum q_i) e_j
            sum q_i q_j = Q_ij + C_ij + C_ji + 4 sum a_i a_j + n s_i s_j,
                          C_ij = 2 sum p_i a_j + (P_i + 2 sum a_i) s_j:

        the nine products of (p_i + 2 a_i + s_i)(p_j + 2 a_j + s_j), of which C holds p_i a_j, p_i s_j and a_i s_j, and
        its transpose the same with i and j exchanged.
        """
        parts, sums = offset.split(self.widths), self._sums.split(self.widths)
        size = torch.stack([part @ part for part in parts])  # s_i
        along = torch.stack([part @ total for part, total in zip(parts, sums, strict=True)])  # sum of a_i
        rows = self._rows_along(parts)  # sum of a_i x_j
        moved_sums = self._norm_sums + 2 * along + self.rows * size
        moved_rows = self._norm_rows + 2 * rows + torch.outer(size, self._sums) + torch.outer(moved_sums, offset)
        mixed = 2 * self._dotted(self._norm_rows, parts) + torch.outer(self._norm_sums + 2 * along, size)  # C
        even = 4 * self._dotted(rows, parts) + self.rows * torch.outer(size, size)
        return moved_sums, moved_rows, self._norm_products + mixed + mixed.T + even

    def _rows_along(self, parts: Sequence[Tensor]) -> Tensor:
        rows = torch.empty(len(parts), len(self._sums), dtype=torch.float64, device=self._sums.device)
        for layer, columns in enumerate(rows.split(self.widths, 1)):
            for other, part in enumerate(parts):
                low, high = min(layer, other), max(layer, other)
                product = self._part(low, high)
                columns[other] = part @ product if other == low else product @ part
        return rows

    def _dotted(self, rows: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Each layer's columns of `rows` times that layer's part: (L+1, L+1)."""
        return torch.stack(
            [columns @ part for columns, part in zip(rows.split(self.widths, 1), parts, strict=True)], dim=1
        )
