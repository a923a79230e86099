"""Sums of products of hidden states, kept instead of the samples: enough for SVCCA, PWCCA, CKA and covariances.

Products are taken of values from which a running shift, the mean of the first block of rows, was subtracted: a common
offset of 100 standard deviations would otherwise cost four digits. Since sums about any shift can be translated to any
other exactly, the result is that of the centred samples, and sums from several processes can be added.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from measures.checks import check_hidden_states, check_same_layers, check_values, without_gradients

BLOCK_ROWS = 1024  # large enough for the matrix product to dominate, small enough to stay in the cache


class Moments:
    """Running sums over samples of x_i, and of the products x_i x_j' of every two layers i <= j, in float64.

    Rows are collected into blocks of 1,024, so the sums do not depend on how rows were divided into updates. Memory is
    that of the sums, 4 (d_0 + ... + d_L)^2 bytes with `cross`, and of one block, whatever the number of samples.

    Args:
        cross: keep the products of different layers too, not only each layer with itself.
        norms: keep the sums of products with the squared row norms too (for the debiased CKA).
        same_width: all layers must have the same width.
    """

    def __init__(self, *, cross: bool = True, norms: bool = False, same_width: bool = False) -> None:
        self.cross, self.norms, self.same_width = cross, norms, same_width
        self.widths: list[int] | None = None
        self._rows = 0  # rows in the sums
        self._pending = 0  # rows in the block that are not yet in the sums
        self._block: Tensor | None = None
        self._shift: Tensor | None = None

    @property
    def samples(self) -> int:
        """The number of rows seen."""
        return self._rows + self._pending

    @without_gradients
    def update(self, hidden_states: Sequence[Tensor]) -> None:
        """Add the rows of one (n, d_i) tensor for each layer."""
        states = check_hidden_states(hidden_states, self.widths, same_width=self.same_width)
        check_values(states)
        if self.widths is None:
            self._start([state.shape[1] for state in states], states[0].device)
        if self._block is None:
            self._block = torch.empty(BLOCK_ROWS, sum(self.widths), dtype=torch.float64, device=self._sums.device)
        done, rows = 0, states[0].shape[0]
        while done < rows:
            taken = min(rows - done, BLOCK_ROWS - self._pending)
            for columns, state in zip(self._block.split(self.widths, 1), states, strict=True):
                columns[self._pending : self._pending + taken].copy_(state[done : done + taken])
            self._pending += taken
            done += taken
            if self._pending == BLOCK_ROWS:
                self.flush()

    def _start(self, widths: list[int], device: torch.device) -> None:
        total, layers = sum(widths), len(widths)
        zeros = {"dtype": torch.float64, "device": device}
        self.widths = widths
        self._starts = [sum(widths[:layer]) for layer in range(layers)]
        self._sums = torch.zeros(total, **zeros)
        # strip i holds the products of layer i with the layers i, i+1, ..., L side by side: (d_i, d_i + ... + d_L)
        ends = [total if self.cross else start + width for start, width in zip(self._starts, widths, strict=True)]
        self._strips = [
            torch.zeros(width, end - start, **zeros)
            for start, end, width in zip(self._starts, ends, widths, strict=True)
        ]
        if self.norms:
            self._norm_sums = torch.zeros(layers, **zeros)  # sum of p_i, where p_i = |x_i|^2
            self._norm_rows = torch.zeros(layers, total, **zeros)  # sum of p_i x_j
            self._norm_products = torch.zeros(layers, layers, **zeros)  # sum of p_i p_j

    @without_gradients
    def flush(self) -> None:
        """Bring the rows that wait in the block into the sums."""
        if self._pending == 0:
            return
        block = self._block[: self._pending]
        if self._shift is None:
            self._shift = block.mean(0)
        block -= self._shift
        self._sums += block.sum(0)
        for start, width, strip in zip(self._starts, self.widths, self._strips, strict=True):
            strip.addmm_(block[:, start : start + width].T, block[:, start : start + strip.shape[1]])
        if self.norms:
            squares = torch.stack([(rows * rows).sum(1) for rows in block.split(self.widths, 1)])  # (L+1, n)
            self._norm_sums += squares.sum(1)
            self._norm_rows.addmm_(squares, block)
            self._norm_products.addmm_(squares, squares.T)
        self._rows += self._pending
        self._pending = 0

    def _part(self, layer: int, other: int) -> Tensor:
        """The sum of x_layer x_other' about the shift, layer <= other: (d_layer, d_other), a view."""
        start = self._starts[other] - self._starts[layer]
        return self._strips[layer][:, start : start + self.widths[other]]

    def own(self, layer: int) -> Tensor:
        """The sum of products of a layer's centred samples, X'X: (d, d), symmetric."""
        self.flush()
        sums = self._sums.split(self.widths)[layer]
        product = torch.addr(self._part(layer, layer), sums, sums, alpha=-1 / self._rows)
        return (product + product.T) / 2

    def cross_products(self, layer: int, left: Tensor | None = None) -> list[Tensor]:
        """`left' X_layer' X_j` of the centred samples, for the layers j after `layer`: a list of (k, d_j).

        `left` is (d_layer, k), the identity by default.
        """
        self.flush()
        width, start = self.widths[layer], self._starts[layer]
        products, sums = self._strips[layer][:, width:], self._sums[start : start + width]
        if left is not None:
            products, sums = left.T @ products, left.T @ sums
        centred = torch.addr(products, sums, self._sums[start + width :], alpha=-1 / self._rows)
        return list(centred.split(self.widths[layer + 1 :], 1))

    def constant_layers(self) -> list[int]:
        """The layers whose samples all are the same vector, up to the rounding of its mean."""
        self.flush()
        eps = torch.finfo(torch.float64).eps
        squares = torch.cat([self.own(layer).diagonal() for layer in range(len(self.widths))])
        flat = squares <= self._rows * (64 * eps * self._shift) ** 2
        return [layer for layer, features in enumerate(flat.split(self.widths)) if bool(features.all())]

    @without_gradients
    def merge(self, other: Self) -> None:
        """Add the sums of `other`, translated to this instance's shift."""
        if other.samples == 0:
            return
        self.flush()
        other.flush()
        if self.widths is None:
            self._start(list(other.widths), other._sums.device)
        check_same_layers(self.widths, other.widths)
        device = self._sums.device
        if self._shift is None:
            self._shift = other._shift.to(device, copy=True)
        offset = other._shift.to(device) - self._shift  # x about this shift = x about the other's + offset
        sums, parts = other._sums.to(device), offset.split(self.widths)
        if self.norms:
            moved = zip(self._norm_fields(), other.moved_norms(offset.to(other._sums.device)), strict=True)
            for mine, theirs in moved:
                mine += theirs.to(device)
        for start, strip, theirs, part in zip(self._starts, self._strips, other._strips, parts, strict=True):
            right = slice(start, start + strip.shape[1])
            strip += theirs.to(device)
            strip.addr_(part, sums[right] + other._rows * offset[right])
            strip.addr_(sums[start : start + len(part)], offset[right])
        self._sums += sums + other._rows * offset
        self._rows += other._rows

    def _norm_fields(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._norm_sums, self._norm_rows, self._norm_products

    def centred_norm_products(self) -> Tensor:
        """The sum over samples of |x_i|^2 |x_j|^2 of the centred samples: (L+1, L+1)."""
        self.flush()
        return self.moved_norms(-self._sums / self._rows)[2]

    def moved_norms(self, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
        moved_sums = self._norm_sums + 2 * along + self._rows * size
        moved_rows = self._norm_rows + 2 * rows + torch.outer(size, self._sums) + torch.outer(moved_sums, offset)
        mixed = 2 * self._dotted(self._norm_rows, parts) + torch.outer(self._norm_sums + 2 * along, size)  # C
        even = 4 * self._dotted(rows, parts) + self._rows * torch.outer(size, size)
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

    def __getstate__(self) -> dict:
        self.flush()
        return {**self.__dict__, "_block": None}
