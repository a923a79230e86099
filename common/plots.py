"""Pictures. The same figures give the same bytes, so committed pictures change only with them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, patheffects, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from common.files import atomic_path

COLOURS = colormaps["viridis"]  # perceptually uniform
ACCENT = "#e6194b"  # of the chosen segments: in no part of the colour map
AXIS_LABEL = "h0: embeddings; hi: output of layer i"
CHANCE_LABEL = "the same with rows shuffled in every layer: what chance gives"
MOST_ANNOTATED = 14  # layers; with more, the numbers are too small to read
CELL = 0.46  # inches
DPI = 150


rcParams["text.parse_math"] = False  # captions and names are no formulas, whatever signs they have


def save(figure: Figure, path: Path, **options: object) -> None:
    """Write a figure as a PNG without what differs from run to run; `options`: of `savefig`."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None}, **options)


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
    figure, axes, bar = _layout(min(max(CELL * len(matrix), 3.2), 8.0), len(matrices))
    for ax, part, label in zip(axes, matrices, (AXIS_LABEL, CHANCE_LABEL), strict=False):
        image = _draw_matrix(ax, part, norm)
        ax.set_xlabel(label, fontsize=8)
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=8)
    for first, last in segments or ():
        _mark_segment(axes[0], first, last)
    axes[0].set_title(title, fontsize=11, pad=30 if segments else 10)
    save(figure, path)


def _layout(side: float, num_matrices: int) -> tuple[Figure, list[Axes], Axes]:
    """A figure with square axes of `side` inches beside each other, and those of the colour bar."""
    left, bottom, top, gap, bar = 0.5, 0.6, 1.0, 0.65, 0.2
    width, height = left + num_matrices * (side + gap) + bar + 0.1, bottom + side + top
    figure = Figure(figsize=(width, height), dpi=DPI)

    def place(x: float, wide: float) -> Axes:
        return figure.add_axes((x / width, bottom / height, wide / width, side / height))

    axes = [place(left + i * (side + gap), side) for i in range(num_matrices)]
    return figure, axes, place(left + num_matrices * (side + gap) - gap + 0.15, bar)


def _colour_range(matrices: Sequence[np.ndarray]) -> Normalize:
    """From the smallest value, rounded down to half a digit of its distance from 1, to 1."""
    lowest = min(float(matrix.min()) for matrix in matrices)
    step = 10.0 ** np.floor(np.log10(max(1 - lowest, 1e-6))) / 2
    return Normalize(1 - np.ceil((1 - lowest) / step + 1e-9) * step, 1)


def _draw_matrix(ax: Axes, matrix: np.ndarray, norm: Normalize) -> AxesImage:
    size = len(matrix)
    image = ax.imshow(matrix, cmap=COLOURS, norm=norm, interpolation="nearest")
    ax.autoscale(False)
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
    decimals = int(np.clip(1 - np.floor(np.log10(1 - norm.vmin)), 2, 4))
    for row, column in zip(*np.nonzero(~np.eye(len(matrix), dtype=bool)), strict=True):
        value = matrix[row, column]
        colour = "black" if norm(value) > 0.6 else "white"
        ax.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=6.5, color=colour)


def _mark_segment(ax: Axes, first: int, last: int) -> None:
    """Outline the cell of the dropped layers first..last, and bracket h(first-1)..h(last) above the matrix."""
    halo = [patheffects.withStroke(linewidth=4, foreground="white")]
    cell = Rectangle((last - 0.5, first - 1.5), 1, 1, fill=False, edgecolor=ACCENT, linewidth=2.2, path_effects=halo)
    ax.add_patch(cell).set_zorder(3)
    num_states = ax.get_xlim()[1] + 0.5
    inch = num_states * DPI / ax.bbox.height  # in cells
    left, right, low, high = first - 1.38, last + 0.38, -0.5 - 0.06 * inch, -0.5 - 0.14 * inch
    ax.plot([left, left, right, right], [low, high, high, low], color=ACCENT, linewidth=1.6, clip_on=False)
    label = f"{first}" if first == last else f"{first}-{last}"
    if num_states - 1 <= MOST_ANNOTATED:
        label = f"drop {label}"
    style = {"ha": "center", "va": "bottom", "fontsize": 8, "color": ACCENT, "fontweight": "bold"}
    ax.text((left + right) / 2, high - 0.04 * inch, label, **style)


def strategy_panel(
    strategies: Sequence[dict], judged: Sequence[dict], all_losses: np.ndarray | None, full_loss: float, path: Path
) -> None:
    """Task loss of every strategy against all subsets, and how well every coarse score foretells the loss.

    strategies: rows with `strategy`, `task_loss`, `layer_calls`, best first. judged: rows with `measure`, `score` and
    `spearman`, a list over draws; none where not all subsets are known. all_losses: the task loss of every subset,
    sorted, or None.
    """
    figure = Figure(
        figsize=(12 if judged else 8, 0.34 * max(len(strategies), len(judged)) + 1.6), dpi=DPI, layout="constrained"
    )
    axes = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
    _draw_losses(axes[0], strategies, all_losses, full_loss)
    if judged:
        _draw_correlations(axes[1], judged)
    save(figure, path, bbox_inches="tight")


def _draw_losses(ax: Axes, strategies: Sequence[dict], all_losses: np.ndarray | None, full_loss: float) -> None:
    """One line a strategy: a dot at its loss, its layer calls beside it; every subset as a tick below."""
    rows = range(len(strategies))
    losses = [row["task_loss"] for row in strategies]
    ax.axvline(full_loss, color="0.6", linewidth=1, linestyle=":", label="full model")
    if all_losses is not None:
        ax.plot(all_losses, np.full(len(all_losses), len(strategies)), "|", color="0.5", markersize=9, alpha=0.35)
    ax.hlines(rows, min(full_loss, *losses), losses, color="0.85", linewidth=1)
    ax.plot(losses, rows, "o", color=COLOURS(0.35), markersize=5)
    for row, strategy in enumerate(strategies):
        calls = f"{strategy['layer_calls']:.0f} calls" if strategy["layer_calls"] else "no evaluation"
        ax.annotate(
            calls, (losses[row], row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=7, color="0.35"
        )
    labels = [row["strategy"] for row in strategies] + (["all subsets"] if all_losses is not None else [])
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set_xlabel("task loss on validation (nats); dotted: full model", fontsize=8)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_correlations(ax: Axes, judged: Sequence[dict]) -> None:
    """Spearman correlation of each coarse score to minus the loss, the mean over draws, best first."""
    judged = [row for row in judged if None not in row["spearman"]]
    ordered = sorted(judged, key=lambda row: -np.mean(row["spearman"]))
    means = [float(np.mean(row["spearman"])) for row in ordered]
    ax.barh(range(len(ordered)), means, color=COLOURS(0.6), height=0.6)
    for row, mean in enumerate(means):
        ax.annotate(f"{mean:.2f}", (mean, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)
    ax.set_yticks(range(len(ordered)), [f"{row['measure']}, {row['score']}" for row in ordered], fontsize=8)
    ax.invert_yaxis()
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set_xlabel("Spearman correlation of the coarse score to minus the loss, all subsets", fontsize=8)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def quality_curve(sizes: Sequence[dict], path: Path) -> None:
    """Recall of the best proposal found against the layers kept; rows with `layers_kept`, `recall`, `test_recall`."""
    figure = Figure(figsize=(6.4, 4), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    kept = [row["layers_kept"] for row in sizes]
    for name, style in (("recall", "o-"), ("test_recall", "s--")):
        recall = [100 * row[name]["text_to_image_recall_at_10"] for row in sizes]
        ax.plot(kept, recall, style, markersize=4, label="test" if name == "test_recall" else "validation")
    ax.set_xlabel("layers kept", fontsize=9)
    ax.set_ylabel("text to image R@10, %", fontsize=9)
    ax.set_xticks(kept)
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    save(figure, path, bbox_inches="tight")
