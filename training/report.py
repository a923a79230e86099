"""What is said about a trained model: its figures, its curves, and the model card of its checkpoint."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard as HubCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from matplotlib.figure import Figure
from tabulate import tabulate

from common import ROOT, plots
from data import BUNDLED
from models import Encoder
from models.repair import Repair
from models.speed import measure_milliseconds
from search_strategy.proposals import Proposal, segments
from tasks.retrieval import RECALL_AT
from training.batches import Split

TIMED_CAPTIONS = 512
TIMED_BATCH_SIZE = 64
RECALLS = [f"{way}_recall_at_{k}" for way in ("text_to_image", "image_to_text") for k in RECALL_AT]
COLUMNS = {  # of the tables: figure, heading, factor and format
    "text_layers": ("layers", 1, ".3f"),
    "task_loss": ("task loss", 1, ".3f"),
    "distance": ("distance to full", 1, ".4f"),
    **{name: (name.replace("_to_", ">").replace("_recall_at_", " R@") + " %", 100, ".1f") for name in RECALLS},
    "text_parameters": ("parameters (M)", 1e-6, ".3f"),
    "milliseconds_per_caption": ("ms a caption", 1, ".3f"),
}
EVALUATED = {"text_to_image_recall_at_10": "text to image R@10", "image_to_text_recall_at_10": "image to text R@10"}


def model_figures(encoder: Encoder, split: Split, frozen_vision: bool = True) -> dict[str, float]:
    """All figures of one model on a split."""
    samples = encoder.samples(split.pairs)[:TIMED_CAPTIONS]
    return {
        "text_layers": encoder.num_layers,
        **split.figures(encoder, frozen_vision),
        "text_parameters": encoder.num_parameters(),
        "milliseconds_per_caption": measure_milliseconds(encoder, samples, TIMED_BATCH_SIZE),
    }


def figures_table(models: dict[str, dict[str, float]], tablefmt: str = "simple") -> str:
    """A row for each model; recall in percent."""
    names = [name for name in COLUMNS if any(name in figures for figures in models.values())]
    rows = [[model, *(figures[name] * COLUMNS[name][1] for name in names)] for model, figures in models.items()]
    formats = ["", *(COLUMNS[name][2] for name in names)]
    return tabulate(rows, ["model", *(COLUMNS[name][0] for name in names)], tablefmt, floatfmt=formats)


def draw_curves(history: Sequence[dict], path: Path) -> None:
    """Loss and recall (or the distance to the teacher) after each epoch, as a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for axes, names in ((left, ("train_loss", "task_loss")), (right, (*RECALLS, "distance"))):
        for name in names:
            if name in history[0]:
                axes.plot(epochs, [row[name] for row in history], marker=".", label=name.replace("_", " "))
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    left.set_title("loss (nats)")
    right.set_title("validation")
    plots.save(figure, path, dpi=120)


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint says about its making, and what does not change while it is trained.

    `num_layers`: of the model that was pruned; `dropped_layers` and `origin`, where that choice comes from: None where
    everything is fresh; `record`: the run's, with the identities of `made_from` (None: no weights) and of the data;
    `kind`: of the encoder, which says how it is loaded.
    """

    num_layers: int
    num_clip_layers: int
    dropped_layers: Proposal | None
    origin: str | None
    freeze_vision: bool
    record: dict
    kind: type[Encoder]
    repair: Repair | None = None

    def identity(self) -> dict:
        """What must be equal in a run that goes on."""
        made_from = self.record["made_from"]
        return {
            "dropped_layers": None if self.dropped_layers is None else list(self.dropped_layers),
            "model_weights": made_from and made_from["weights_sha256"],
            "repair": self.repair is not None,
        }

    def text(self, validation: dict, test: dict[str, dict[str, float]] | None = None) -> str:
        """`validation`: figures of the checkpoint; `test`: those of all models compared, its own last, where known."""
        name = Path(self.record["output_dir"]).name
        evaluated = list(test.values())[-1] if test else validation
        command = shlex.join(map(without_folders, shlex.split(self.record["command"])))
        parts = [
            f"---\n{self._metadata(name, evaluated, 'test' if test else 'validation').to_yaml()}\n---",
            f"# {name}",
            self._describe_making(trained=validation.get("epoch") != 0),
            f"Made by\n\n    {command}",
            f'```python\nfolder = "{name}"  # where this folder is, or its name on the hub\n\n{self.kind.usage}\n```',
            f"Validation ({_epochs(validation)}):\n\n{figures_table({'this model': validation}, 'pipe')}",
        ]
        if test:
            parts.append(f"Test:\n\n{figures_table(test, 'pipe')}")
        return "\n\n".join(parts) + "\n"

    def _metadata(self, name: str, figures: dict, split: str) -> ModelCardData:
        """What the hub reads of a card. A base model or a data set is named where the hub has it, by its name there."""
        model, dataset = self.record["model"], self.record["flags"]["dataset"]
        on_hub = dataset not in BUNDLED and is_hub_name(dataset)
        results = [
            EvalResult(
                task_type="retrieval",
                task_name="image-text retrieval",
                dataset_type=dataset if on_hub else Path(dataset).name,
                dataset_name=Path(dataset).name,
                dataset_split=split,
                metric_type="recall_at_10",
                metric_name=title,
                metric_value=figures[figure],
            )
            for figure, title in EVALUATED.items()
            if figure in figures
        ]
        return ModelCardData(
            license=license_of(model),
            base_model=hub_name(model) if is_hub_name(model) else None,
            datasets=[dataset] if on_hub else None,
            library_name=self.kind.library_name,
            pipeline_tag=self.kind.pipeline_tag,
            tags=["layer-pruning"],
            model_name=name,
            eval_results=results or None,
        )

    def _describe_making(self, trained: bool) -> str:
        model, dataset = (without_folders(text) for text in (self.record["model"], self.record["flags"]["dataset"]))
        left = self.num_layers - self.num_clip_layers
        own = "image" if self.kind.tower == "vision" else "text"
        towers = f"{own} tower" if self.freeze_vision else "text and image tower"
        data = f"on {self.record['train']['captions']:,} captions of `{dataset}`"
        if self.dropped_layers is None:
            return f"{left} {own} layers in the shape of `{model}`, its {towers} trained from scratch {data}."
        training = f"its {towers} fine-tuned {data}" if trained else "without training"
        if not self.dropped_layers:
            return f"`{model}` with all its {left} {own} layers, {training}."
        return (
            f"`{model}` with {left} of its {self.num_layers} {own} layers, without {segments(self.dropped_layers)} "
            f"(counted from 1; from {without_folders(self.origin)}){self._describe_repair()}; {training}."
        )

    def _describe_repair(self) -> str:
        if self.repair is None:
            return ""
        return (
            f", repaired by linear maps in the place of what was dropped, which were fitted to {self.repair.samples:,} "
            "captions of the same data and are part of its weights"
        )


def _epochs(figures: dict) -> str:
    if figures.get("epoch") == 0:
        return "not trained"
    return f"epoch {figures['epoch']}" if "epoch" in figures else f"mean of epochs {figures['mean_of_epochs']}"


def without_folders(word: str) -> str:
    """An absolute path, also one after `--flag=`, by its last name: its folders say nothing on another machine."""
    return re.sub(r"^(--\w+=)?/.*/(?=.)", r"\1", word)


def hub_name(model: str) -> str:
    return model.removeprefix("hf-hub:")


def is_hub_name(name: str) -> bool:
    """Whether the hub can have it under this name: a repository's, and nothing of this machine."""
    if Path(name).exists() or (ROOT / name).exists():
        return False
    try:
        validate_repo_id(hub_name(name))
    except HFValidationError:
        return False
    return True


def license_of(model: str) -> str | None:
    """The licence that a local model's card names, which holds for what is made of it; None where there is none."""
    card = next((path for path in (Path(model) / "README.md", ROOT / model / "README.md") if path.is_file()), None)
    try:
        return HubCard.load(card, ignore_metadata_errors=True).data.license if card else None
    except ValueError:
        return None
