"""A training put together from its parts: data, model, loop, and the report when it is over."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import accelerate.utils
from accelerate import Accelerator

from common import Record, seed_everything, set_up_logging, show_progress, write_json, write_text
from models import Clip, load_clip
from search_strategy.proposals import segments
from training.averaging import Average, use_average
from training.batches import PairBatches
from training.loop import KEEP_EPOCHS, Settings, Trainer
from training.losses import Objective
from training.model_card import ModelCard
from training.report import draw_curves, figures_table, model_figures
from training.schedule import Stage
from training.splits import Split, load_split
from training.start import Choice, fresh
from training.states import check_output_dir, hold

logger = logging.getLogger("comflp")


@dataclass(frozen=True)
class Options:
    """How to train: what the result depends on, and what else there is to say."""

    settings: Settings
    average: Average | None = None
    num_workers: int = 0
    compiled: bool = False
    keep_epochs: int | None = KEEP_EPOCHS


@dataclass(frozen=True)
class Material:
    """What all stages of a run share. `full`: the model as it was given, the teacher; None where everything is fresh."""

    full: Clip | None
    train: Split
    validation: Split
    load_test: Callable[[], Split]


def load_start(
    model: str, device: str, scratch: bool, num_clip_layers: int, settings: Settings
) -> tuple[Clip | None, Clip | None]:
    """The model as it is, where its weights are used; and one with fresh weights, where it is trained from scratch."""
    needs_full = not scratch or settings.freeze_vision or settings.distill_mode != "none"
    full = load_clip(model, device) if needs_full else None
    if not scratch:
        return full, None
    seed_everything(settings.seed)  # of the fresh weights, whatever was drawn before
    return full, fresh(model, device, num_clip_layers, full if settings.freeze_vision else None)


def load_material(
    full: Clip | None,
    embedder: Clip,
    dataset: str,
    data_options: dict,
    settings: Settings,
    cache_dir: Path,
    accelerator: Accelerator,
) -> Material:
    """The splits with the embeddings by `embedder` that training and evaluation need; the main process writes the cache."""

    def load(name: str) -> Split:
        teacher_images = name == "train" and settings.distill_mode in ("logit", "affinity")
        return load_split(
            embedder,
            dataset,
            name,
            options=data_options,
            images=settings.images,
            image_embeddings=settings.freeze_vision or teacher_images,
            teacher_text=settings.distill_mode != "none" if name == "train" else not settings.images,
            cache_dir=cache_dir,
            progress=show_progress() and accelerator.is_main_process,
        )

    with accelerator.main_process_first():
        return Material(full, load("train"), load("validation"), lambda: load("test"))


def train_stage(
    stage: Stage,
    choice: Choice | None,
    clip: Clip,
    before: Clip | None,
    material: Material,
    options: Options,
    accelerator: Accelerator,
    record: Record,
) -> None:
    """Train one model and report. `before`: what it was pruned from. In the end it has the weights of its checkpoint."""
    is_main = accelerator.is_main_process
    train, validation = material.train.pairs, material.validation.pairs
    record.note(model=before.name if before else clip.name, output_dir=stage.output_dir)
    record.note(train=train.identity(), validation=validation.identity())
    card = ModelCard(stage, choice, options.settings.freeze_vision, record.content())
    seed_everything(options.settings.seed)
    trainer = make_trainer(clip, before, choice, material, options, accelerator, stage.output_dir, card)
    with hold(stage.output_dir):
        if is_main:
            # again, now that no other run can write there
            check_output_dir(stage.output_dir, stage.resume_epoch, stage.first_epoch)
        if stage.resume_epoch:
            trainer.resume(stage.resume_epoch)
        set_up_logging(stage.output_dir / "train.log" if is_main else None, append=stage.resume_epoch > 0)
        logger.setLevel(logging.INFO if is_main else logging.ERROR)
        log_start(stage, choice, material, accelerator.num_processes)
        accelerator.init_trackers("tensorboard")
        trainer.train(is_main and show_progress())
        if is_main:
            write_report(trainer, before, choice, material, card, options.average, record)
    for tracker in accelerator.trackers:
        tracker.finish()
    for tensor in clip.model.state_dict().values():  # the main process alone has chosen between epochs
        accelerate.utils.broadcast(tensor)


def make_trainer(
    clip: Clip,
    before: Clip | None,
    choice: Choice | None,
    material: Material,
    options: Options,
    accelerator: Accelerator,
    output_dir: Path,
    card: ModelCard,
) -> Trainer:
    settings, train = options.settings, material.train
    if settings.negatives and settings.negatives > len(train.image_embeddings):
        found = len(train.image_embeddings)
        raise ValueError(f"--negatives {settings.negatives}: the training pairs have {found} images")
    objective = Objective(
        settings.distill_mode,
        settings.distill_weight,
        settings.temperature,
        settings.negatives,
        train.image_embeddings,
        teacher_scale=material.full.logit_scale if material.full else 1.0,
    )
    return Trainer(
        clip,
        PairBatches(clip, train.pairs, train.image_embeddings, train.teacher_text, pixels=not settings.freeze_vision),
        objective,
        settings,
        accelerator,
        output_dir,
        validate=lambda: material.validation.figures(clip, settings.freeze_vision),
        describe=card.text,
        identity={
            "dropped_layers": choice and list(choice.dropped_layers),
            "text_layers": clip.num_layers,
            "model_weights": before and before.identity()["weights_sha256"],
            "captions": train.pairs.identity()["captions_sha256"],
        },
        averaged=options.average.epochs if options.average else lambda history: [],
        num_workers=options.num_workers,
        compiled=options.compiled,
        keep_epochs=options.keep_epochs,
    )


def write_report(
    trainer: Trainer,
    before: Clip | None,
    choice: Choice | None,
    material: Material,
    card: ModelCard,
    average: Average | None,
    record: Record,
) -> None:
    """After training: the mean of epochs where asked for, figures of all models on test, curves, the final model card."""
    validation = use_average(trainer, average) if average else trainer.best()
    test, models = material.load_test(), {}
    if material.full:
        models["full"] = model_figures(material.full, test)
    if choice and choice.dropped_layers:
        models["pruned"] = model_figures(before.drop(choice.dropped_layers), test)
    models["fine-tuned" if choice else "trained"] = model_figures(trainer.clip, test, trainer.settings.freeze_vision)
    draw_curves(trainer.history, trainer.output_dir / "curves.png")
    write_text(trainer.output_dir / "README.md", card.text(validation, models))
    content = {
        "dropped_layers": list(choice.dropped_layers) if choice else [],
        "segments": segments(choice.dropped_layers) if choice else [],
        "origin": choice and choice.origin,
        "validation": validation,
        "test": models,
        "record": record.content(),
    }
    write_json(trainer.output_dir / "report.json", content)
    print(figures_table(models))
    print(f"figures on test, also in {trainer.output_dir / 'report.json'}; the model is {trainer.output_dir}")


def log_start(stage: Stage, choice: Choice | None, material: Material, num_processes: int) -> None:
    if stage.resume_epoch:
        logger.info("goes on after epoch %d", stage.resume_epoch)
    if choice and choice.dropped_layers:
        logger.info("drops the layers %s, from %s", segments(choice.dropped_layers), choice.origin)
    for pairs in (material.train.pairs, material.validation.pairs):
        logger.info("data: %s", pairs.describe())
    logger.info(
        "%d text layers, %d training and %d validation pairs, processes: %d",
        *(stage.num_layers - stage.num_clip_layers, len(material.train.pairs), len(material.validation.pairs)),
        num_processes,
    )
