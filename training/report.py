"""What is said about a training when it is over: figures on test, the model card, curves."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from common import atomic_path
from models import Clip
from models.speed import measure_milliseconds
from training.splits import Split

TIMED_CAPTIONS = 512
TIMED_BATCH_SIZE = 64
RECALLS = [f"{way}_recall_at_{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
COLUMNS = {  # of the tables: figure, heading and factor
    "text_layers": ("layers", 1),
    "task_loss": ("task loss", 1),
    "feature_distance": ("distance to full", 1),
    **{name: (name.replace("_to_", ">").replace("_recall_at_", " R@") + " %", 100) for name in RECALLS},
    "text_parameters": ("text parameters (M)", 1e-6),
    "milliseconds_per_caption": ("ms a caption", 1),
}


def model_figures(clip: Clip, split: Split, frozen_vision: bool = True) -> dict[str, float]:
    """All figures of one model on a split."""
    return {
        "text_layers": clip.num_layers,
        **split.figures(clip, frozen_vision),
        "text_parameters": clip.num_parameters(),
        "milliseconds_per_caption": measure_milliseconds(clip, split.pairs.captions[:TIMED_CAPTIONS], TIMED_BATCH_SIZE),
    }


def figures_table(models: dict[str, dict[str, float]], tablefmt: str = "simple") -> str:
    """A row for each model; recall in percent."""
    names = [name for name in COLUMNS if any(name in figures for figures in models.values())]
    rows = [[model, *(figures[name] * COLUMNS[name][1] for name in names)] for model, figures in models.items()]
    formats = ["", *(".1f" if name in RECALLS else ".3f" for name in names)]
    return tabulate(rows, ["model", *(COLUMNS[name][0] for name in names)], tablefmt, floatfmt=formats)


def draw_curves(history: Sequence[dict], path: Path) -> None:
    """Loss and recall (or the distance to the teacher) after each epoch, as a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for axes, names in ((left, ("train_loss", "task_loss")), (right, (*RECALLS, "feature_distance"))):
        for name in names:
            if name in history[0]:
                axes.plot(epochs, [row[name] for row in history], marker=".", label=name.replace("_", " "))
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    left.set_title("loss (nats)")
    right.set_title("validation")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
