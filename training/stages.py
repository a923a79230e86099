"""From a model to a trained one, in one stage or several: what to drop, the training, the report.

With a schedule such as 12,9,6 every stage searches by itself, with the default settings of the two scripts: distance
correlation of 10 times 4 captions, beam, the task loss on validation of the ten best by each score, repaired, and hill
climbing from them.
"""

import logging
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState, utils
from accelerate.utils import set_seed

from common import Record, files, is_main_process, set_up_logging, show_progress
from common.analysis import measure_captions
from common.matrix_files import MatrixSettings
from data import ImageCaptionPairs
from models import Encoder, load_encoder
from models.repair import Repair, draw_captions, repair
from models.segment_maps import MAP_CAPTIONS, SegmentMaps
from search_strategy import verify
from search_strategy.fine import FineSearch
from search_strategy.proposals import Proposal, check_dropped_layers, parse_clip_layers, segments
from search_strategy.results import Asked, Result, differences, newest_result, read_result
from tasks.distance import Distance
from tasks.image_retrieval import retrieval_task
from training.batches import Split, TrainingData, load_split, selection_score
from training.loop import Trainer
from training.losses import Objective
from training.report import ModelCard, draw_curves, figures_table, model_figures
from training.settings import Settings
from training.states import check_output_dir, hold

logger = logging.getLogger("comflp")

WORSE = 0.002  # of the score before; what is less may be chance
REMEDIES = {  # where a step made the model worse
    "repaired": "give it more captions of train, or pass --repair false",
    "fine-tuned": "train with a smaller --lr or more pairs, or keep the one before with --max_epoch 0",
}


class Stage(NamedTuple):
    """One pruning and the training after it. `resume_epoch`: counted from the stage's own first epoch, before which the
    stages before it have `first_epoch` epochs."""

    output_dir: Path
    num_layers: int
    num_clip_layers: int
    resume_epoch: int
    first_epoch: int = 0


class Choice(NamedTuple):
    """Layers to drop, where that choice comes from, and where it is a result, what of it is not as asked for."""

    dropped_layers: Proposal
    origin: str
    result: Result | None = None
    differences: tuple[str, ...] = ()


class Start(NamedTuple):
    """What is trained. Where it is a pruned model: by which choice, from what; and where it is a repaired one, a copy
    of it that stays, and what was repaired."""

    encoder: Encoder
    choice: Choice | None = None
    before: Encoder | None = None
    repaired: Encoder | None = None
    repair: Repair | None = None


@dataclass(frozen=True)
class Run:
    """What all stages share."""

    data: TrainingData
    objective: Objective
    settings: Settings


# --- what there is to train


def plan_stages(sizes: list[int], output_dir: Path, max_epoch: int, resume_epoch: int) -> list[Stage]:
    """The stages of a schedule. The last one writes to `output_dir`, the others beside it; all train `max_epoch`
    epochs, and `resume_epoch` counts from the first epoch of the first stage.
    """
    stages = []
    for number, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
        is_last = number == len(sizes) - 2
        folder = output_dir if is_last else output_dir.with_name(f"{output_dir.name}_{before}to{after}")
        first_epoch = number * max_epoch
        resumed = min(max(resume_epoch - first_epoch, 0), resume_epoch if is_last else max_epoch)
        stages.append(Stage(folder, before, before - after, resumed, first_epoch))
    return stages


def load_data(
    full: Encoder | None,
    embedder: Encoder,
    dataset: str,
    data_options: dict,
    settings: Settings,
    objective: Objective,
    images: bool,
    cache_dir: Path,
) -> TrainingData:
    """The splits with the embeddings by `embedder` that training and evaluation need; the main process caches them."""

    def load(name: str) -> Split:
        teacher_images = name == "train" and objective.distill_mode in ("logit", "affinity")
        trained = name != "train" or settings.max_epoch > 0  # else its captions are enough: a repair needs no image
        return load_split(
            embedder,
            dataset,
            name,
            options=data_options,
            images=images and (trained or embedder.tower == "vision"),
            image_embeddings=settings.freeze_vision or teacher_images,
            teacher_text=objective.distill_mode != "none" if name == "train" else not images,
            cache_dir=cache_dir,
            progress=show_progress(),
        )

    with PartialState().main_process_first():
        # test too: what is wrong with it is better said before hours of training
        return TrainingData(load("train"), load("validation"), full, load("test"))


def fresh_encoder(name: str, device: str, num_clip_layers: int, full: Encoder | None) -> Encoder:
    """An encoder with fresh weights and `num_clip_layers` layers less than the model's configuration says.

    `full`: the model whose other tower it has, where that stays frozen; None: everything is fresh.
    """
    encoder = load_encoder(name, device=device, weights=False)
    num_layers = encoder.num_layers
    if num_clip_layers:
        encoder = encoder.drop(range(num_layers - num_clip_layers + 1, num_layers + 1))
    for part, module in encoder.target_parts().items() if full else ():
        module.load_state_dict(full.target_parts()[part].state_dict())
    return encoder


# --- which layers to drop


def choose_layers(clip_layers: str | None, search_result: Path | None, folder: Path, asked: Asked) -> Choice:
    """The layers of `clip_layers`, else the winner of `search_result`, else of the newest verified search in `folder`,
    on this data set where there is one.

    None of them where `num_clip_layers` is 0. Raises ValueError where they are not a proposal for what is asked for,
    and FileNotFoundError where there is no result.
    """
    if asked.num_clip_layers == 0 and clip_layers is None and search_result is None:
        return Choice((), "nothing is dropped")
    if clip_layers is not None:
        proposal = check_dropped_layers(parse_clip_layers(clip_layers), asked.num_layers, asked.num_clip_layers)
        return Choice(proposal, "--clip_layers")
    result = read_result(search_result, asked) if search_result else newest_result(folder, asked)
    return Choice(result.dropped_layers, files.plain(result.path), result, tuple(differences(result, asked)))


def search(encoder: Encoder, num_clip_layers: int, data: TrainingData, seed: int, use_repair: bool = True) -> Choice:
    """The layers to drop. Where image embeddings are at hand, and stay, the fine search is by the loss at its best
    scale, as in the search script; else by the distance to the model's own embeddings.
    """
    train = encoder.samples(data.train.pairs)
    matrix = measure_captions(encoder, train, MatrixSettings("dc", seed=seed).within(len(train)))
    pairs, images = data.validation.pairs, data.validation.image_embeddings
    samples = encoder.samples(pairs)
    if images is None:
        task = Distance(encoder.embeddings(samples))
    else:
        task = retrieval_task(encoder, images.to(encoder.device), pairs.image_index)
    maps = None
    if use_repair:
        maps = SegmentMaps(encoder, draw_captions(train, seed, MAP_CAPTIONS), progress=show_progress())
    fine = FineSearch(encoder, samples, task, maps=maps)
    if images is not None:
        fine.fit_scale()
    return Choice(verify.search(fine.objectives, matrix, num_clip_layers), "a search of this stage")


# --- training and report


def prune(before: Encoder, choice: Choice, data: TrainingData, output_dir: Path, use_repair: bool, seed: int) -> Start:
    """The model without the layers of the choice, repaired on captions of train where that is asked for."""
    name = str(output_dir)
    if not (use_repair and choice.dropped_layers):
        return Start(before.drop(choice.dropped_layers, name), choice, before)
    captions = draw_captions(before.samples(data.train.pairs), seed)
    model, report = repair(before, choice.dropped_layers, captions, progress=show_progress())
    return Start(model.drop((), name), choice, before, model if report else None, report)


def train_stage(run: Run, stage: Stage, start: Start, record: Record) -> None:
    """Train one model and report. In the end it has the weights of its checkpoint."""
    settings, train, validation = run.settings, run.data.train.pairs, run.data.validation.pairs
    encoder, choice, before = start[:3]
    record.note(
        model=before.name if before else encoder.name,
        made_from=before and before.identity(),
        output_dir=stage.output_dir,
        train=train.identity(),
        validation=validation.identity(),
    )
    if start.repair:
        record.note(repair=asdict(start.repair))
    dropped, origin = choice[:2] if choice else (None, None)
    card = ModelCard(
        stage.num_layers,
        stage.num_clip_layers,
        dropped,
        origin,
        settings.freeze_vision,
        record.content(),
        type(encoder),
        start.repair,
    )
    set_seed(settings.seed)
    trainer = Trainer(encoder, run.data, run.objective, settings, stage.output_dir, card)
    with hold(stage.output_dir):
        if is_main_process():
            # again, now that no other run can write there
            check_output_dir(stage.output_dir, stage.resume_epoch, stage.first_epoch)
        if stage.resume_epoch:
            trainer.resume(stage.resume_epoch)
        set_up_logging(stage.output_dir / "train.log" if is_main_process() else None, append=stage.resume_epoch > 0)
        logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)
        log_start(stage, start, train, validation)
        trainer.train(show_progress())
        if is_main_process():
            write_report(trainer, start, record)
    for tensor in encoder.model.state_dict().values():  # the main process alone has chosen between epochs
        utils.broadcast(tensor)


def log_start(stage: Stage, start: Start, train: ImageCaptionPairs, validation: ImageCaptionPairs) -> None:
    if stage.resume_epoch:
        logger.info("goes on after epoch %d", stage.resume_epoch)
    if start.choice and start.choice.dropped_layers:
        logger.info("drops the layers %s, from %s", segments(start.choice.dropped_layers), start.choice.origin)
        for difference in start.choice.differences:
            logger.warning("%s", difference)
        searched = start.choice.result and start.choice.result.weights_sha256
        if searched and start.before and searched != start.before.identity()["weights_sha256"]:
            logger.warning("that search was of other weights than those of %s: search again", start.before.name)
    for cut in start.repair.cuts if start.repair else ():
        logger.info("repair of %s", cut)
    for pairs in (train, validation):
        logger.info("data: %s", pairs.describe())
    logger.info(
        "%d layers, %d training and %d validation pairs, processes: %d",
        *(stage.num_layers - stage.num_clip_layers, len(train), len(validation), PartialState().num_processes),
    )


def warn_if_worse(figures: dict[str, dict]) -> None:
    """Of a step that made the model worse on validation: what it was before and after are neighbours in `figures`."""
    scores = {name: selection_score(of_model) for name, of_model in figures.items()}
    for before, after in pairwise(scores):
        if scores[after] < scores[before] - WORSE * abs(scores[before]):
            logger.warning("on validation the %s model is worse than the %s one: %s", after, before, REMEDIES[after])


def write_report(trainer: Trainer, start: Start, record: Record) -> None:
    """After training: the mean of epochs if asked for, figures of all models on test, curves, the final model card."""
    validation, choice = trainer.use_average(), start.choice
    data, folder, frozen = trainer.data, trainer.output_dir, trainer.settings.freeze_vision
    steps: dict[str, Encoder] = {}  # what the model was on its way; of the last one, the checkpoint, are `validation`
    if choice and choice.dropped_layers:
        steps["pruned"] = start.before.drop(choice.dropped_layers)
    if start.repaired:
        steps["repaired"] = start.repaired
    if trainer.history:
        steps["fine-tuned" if choice else "trained"] = trainer.encoder
        draw_curves(trainer.history, folder / "curves.png")
    full = {"full": data.full} if data.full else {}
    models = {name: model_figures(encoder, data.test, frozen) for name, encoder in (full | steps).items()}
    before = {name: data.validation.figures(encoder, frozen) for name, encoder in list(steps.items())[:-1]}
    warn_if_worse(before | dict.fromkeys(list(steps)[-1:], validation))
    files.write_text(folder / "README.md", trainer.card.text(validation, models))
    content = {
        "dropped_layers": list(choice.dropped_layers) if choice else [],
        "segments": segments(choice.dropped_layers) if choice else [],
        "origin": choice and choice.origin,
        "validation": validation,
        "test": models,
        "record": record.content(),
    }
    files.write_json(folder / "report.json", content)
    print(figures_table(models))
    print(f"figures on test, also in {folder / 'report.json'}; the model is {folder}")
