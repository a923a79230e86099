"""Pictures of similarity matrices. The same matrix gives the same bytes, so committed pictures change only with it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from experiment import atomic_path

COLOURS = colormaps["viridis"]  # perceptually uniform
ACCENT = "#e6194b"  # of the chosen segments: in no part of the colour map
AXIS_LABEL = "h0: embeddings; hi: output of layer i"
CHANCE_LABEL = "the same with rows shuffled in every layer: what chance gives"
MOST_ANNOTATED = 14  # layers; with more, the numbers are too small to read
CELL = 0.46  # inches
DPI = 150


def heat_map(
    matrix: np.ndarray,
    path: Path,
    title: str,
    segments: Sequence[Sequence[int]] | None = None,
    baseline: np.ndarray | None = None,
) -> None:
    """Write a PNG of the similarity between the hidden states h0..hL.

    matrix: (L+1, L+1). segments: the dropped layers [[a, b], ...], counted from 1, for each of which the cell that the
    coarse score reads, row h(a-1) and column h(b), is outlined. baseline: a matrix of the same size to draw beside it,
    in the same colours.
    """
    matrices = [matrix] if baseline is None else [matrix, baseline]
    norm = _colour_range(matrices)
    side = min(max(CELL * len(matrix), 3.2), 8.0)
    figure = Figure(figsize=(len(matrices) * (side + 0.6) + 0.9, side + 1.0), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    images = [_draw_matrix(ax, part, norm) for ax, part in zip(axes, matrices, strict=True)]
    figure.suptitle(title, fontsize=11)
    for ax, label in zip(axes, (AXIS_LABEL, CHANCE_LABEL), strict=False):
        ax.set_xlabel(label, fontsize=8)
    for first, last in segments or ():
        _mark_segment(axes[0], first, last)
    figure.colorbar(images[0], ax=list(axes), fraction=0.046, pad=0.02, aspect=30).ax.tick_params(labelsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})


def _colour_range(matrices: Sequence[np.ndarray]) -> Normalize:
    """From the smallest value, rounded down to a twentieth, to 1."""
    lowest = min(float(matrix.min()) for matrix in matrices)
    return Normalize(min(np.floor(lowest * 20) / 20, 0.95), 1)


def _draw_matrix(ax: Axes, matrix: np.ndarray, norm: Normalize) -> AxesImage:
    size = len(matrix)
    image = ax.imshow(matrix, cmap=COLOURS, norm=norm, interpolation="nearest")
    ticks = range(0, size, -(-size // 16))
    labels = [f"h{i}" for i in ticks]
    ax.set_xticks(ticks, labels, fontsize=8)
    ax.set_yticks(ticks, labels, fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if size - 1 <= MOST_ANNOTATED:
        _annotate(ax, matrix, norm)
    return image


def _annotate(ax: Axes, matrix: np.ndarray, norm: Normalize) -> None:
    """Each value in its cell, but for the ones on the diagonal."""
    decimals = 3 if norm.vmin >= 0.9 else 2
    for row, column in zip(*np.nonzero(~np.eye(len(matrix), dtype=bool)), strict=True):
        value = matrix[row, column]
        colour = "black" if norm(value) > 0.6 else "white"
        ax.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=6.5, color=colour)


def _mark_segment(ax: Axes, first: int, last: int) -> None:
    """Outline the cell of the dropped layers first..last, and bracket h(first-1)..h(last) above the matrix."""
    left, right, top = first - 1 - 0.38, last + 0.38, -0.62
    halo = [patheffects.withStroke(linewidth=4, foreground="white")]
    ax.add_patch(
        Rectangle(
            (last - 0.5, first - 1.5), 1, 1, fill=False, edgecolor=ACCENT, linewidth=2.2, path_effects=halo, zorder=3
        )
    )
    ax.plot([left, left, right, right], [top, top - 0.2, top - 0.2, top], color=ACCENT, linewidth=1.6, clip_on=False)
    label = f"drop {first}" if first == last else f"drop {first}-{last}"
    ax.text(
        (left + right) / 2, top - 0.32, label, ha="center", va="bottom", fontsize=8, color=ACCENT, fontweight="bold"
    )
