"""A training put together from its parts, and what is done when it is over."""

from pathlib import Path

from accelerate import Accelerator

import experiment
from models import Clip
from search_strategy.proposals import segments
from training.averaging import Average, use_average
from training.batches import PairBatches
from training.loop import Settings, Trainer
from training.losses import Objective
from training.model_card import ModelCard
from training.report import draw_curves, figures_table, model_figures
from training.splits import Split
from training.start import pruned


def make_trainer(
    clip: Clip,
    full: Clip | None,
    train: Split,
    validation: Split,
    *,
    settings: Settings,
    accelerator: Accelerator,
    output_dir: Path,
    card: ModelCard,
    average: Average | None = None,
    num_workers: int = 0,
    compiled: bool = False,
) -> Trainer:
    """The trainer of `clip`. `full`: the model that it comes from, the teacher; None where everything is fresh."""
    if settings.negatives and settings.negatives > len(train.image_embeddings):
        found = len(train.image_embeddings)
        raise ValueError(f"--negatives {settings.negatives}: the training pairs have {found} images")
    objective = Objective(
        settings.distill_mode,
        settings.distill_weight,
        settings.temperature,
        settings.negatives,
        train.image_embeddings,
        teacher_scale=full.logit_scale if full else 1.0,
    )
    return Trainer(
        clip,
        PairBatches(clip, train.pairs, train.image_embeddings, train.teacher_text, pixels=not settings.freeze_vision),
        objective,
        settings,
        accelerator,
        output_dir,
        validate=lambda: validation.figures(clip, settings.freeze_vision),
        describe=card.text,
        identity={
            "dropped_layers": None if card.dropped_layers is None else list(card.dropped_layers),
            "text_layers": clip.num_layers,
            "model_weights": full and full.identity()["weights_sha256"],
            "captions": train.pairs.identity()["captions_sha256"],
        },
        averaged=average.epochs if average else lambda history: [],
        num_workers=num_workers,
        compiled=compiled,
    )


def write_report(
    trainer: Trainer,
    full: Clip | None,
    test: Split,
    card: ModelCard,
    average: Average | None,
    record: experiment.Record,
) -> None:
    """After training: the mean of epochs where asked for, figures of all models on test, curves, the final model card."""
    validation = use_average(trainer, average) if average else trainer.best()
    models = {} if full is None else {"full": model_figures(full, test)}
    if card.dropped_layers is not None:
        models["pruned"] = model_figures(pruned(full, card.dropped_layers), test)
    name = "trained" if card.dropped_layers is None else "fine-tuned"
    models[name] = model_figures(trainer.clip, test, trainer.settings.freeze_vision)
    draw_curves(trainer.history, trainer.output_dir / "curves.png")
    experiment.write_text(trainer.output_dir / "README.md", card.text(validation, models))
    content = {
        "dropped_layers": list(card.dropped_layers or ()),
        "segments": segments(card.dropped_layers or ()),
        "origin": card.origin,
        "validation": validation,
        "test": models,
        "record": record.content(),
    }
    experiment.write_json(trainer.output_dir / "report.json", content)
    print(figures_table(models))
    print(f"figures on test, also in {trainer.output_dir / 'report.json'}; the model is {trainer.output_dir}")
