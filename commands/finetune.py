"""The pruned model, built and fine-tuned: `clip_finetune_train.py` after its flags."""

import argparse
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import fields

from accelerate import PartialState
from accelerate.utils import set_seed

from common import Record, data_flags, files, set_up, tower_dir
from models import Encoder, load_encoder
from models.families import check_num_layers, read_tower_config
from models.speed import bfloat16_slowdown
from search_strategy.proposals import check_num_clip_layers
from search_strategy.results import Asked
from training.losses import Objective
from training.settings import Settings
from training.stages import Run, Start, choose_layers, fresh_encoder, load_data, plan_stages, prune, search, train_stage
from training.states import check_not_held, check_output_dir

logger = logging.getLogger("comflp")

# rates of Adam carry over between widths as 1 / width (Yang et al. 2022, Tensor Programs V)
LR_TIMES_WIDTH = 3e-4 * 128
FEATURE_WEIGHT = 4.0  # as in CLIP-KD (Yang et al. 2024): 2000 times the mean over 512 dimensions
SLOW = 3  # times as long in bf16 as in float32: the processor does not have it


def run(args: argparse.Namespace) -> None:
    """From the flags to the files under exp/<output_dir>/."""
    device = set_up(args)
    check_num_layers(args.num_layers, args.model, args.tower)
    check_num_clip_layers(args.num_clip_layers, args.num_layers, fewest=0)
    fill_in(args, read_tower_config(args.model, args.tower).hidden_size)
    check_flags(args, device)
    warn_of_slow_precision(args, device)
    depths = args.schedule or [args.num_layers, args.num_layers - args.num_clip_layers]
    stages = plan_stages(depths, files.run_dir(args.exp_dir, args.output_dir), args.max_epoch, args.resume_epoch)
    for stage in stages:  # all of them before any work: a later one would fail after hours
        check_not_held(stage.output_dir)
        check_output_dir(stage.output_dir, stage.resume_epoch, stage.first_epoch)
    choice = None
    if args.clip_mode == "finetune" and not args.schedule:
        folder = tower_dir(args.exp_dir, args.model, args.tower)
        names = ("caption_column", "image_column", "target_column") if args.images else ("caption_column",)
        columns, sizes = {name: getattr(args, name) for name in names}, (args.num_layers, args.num_clip_layers)
        asked = Asked(args.model, *sizes, args.dataset, columns, captions_alone=not args.images)
        choice = choose_layers(args.clip_layers, args.search_result, folder, asked)
    full, encoder = load_start(args, device)
    with Record(args, device).warnings() as of_data:
        training = make_run(args, full, full or encoder)
    before = full
    for stage in stages:
        record = Record(args, device)
        record.note(warnings=of_data)
        if args.schedule:
            choice = search(before, stage.num_clip_layers, training.data, args.seed, args.repair)
        start = Start(encoder)
        if choice:
            with record.timed("repair"):
                start = prune(before, choice, training.data, stage.output_dir, args.repair, args.seed)
        train_stage(training, stage, start, record)
        before = start.encoder  # trained by now: the next stage prunes it
    PartialState().wait_for_everyone()  # the main process reports


def fill_in(args: argparse.Namespace, width: int) -> None:
    """Defaults that depend on other flags or on the width of the tower."""
    if args.distill_mode is None:
        args.distill_mode = "none" if args.images else "feature"
    if args.distill_weight is None:
        args.distill_weight = FEATURE_WEIGHT if args.distill_mode == "feature" else 1.0
    if args.lr is None:
        args.lr = LR_TIMES_WIDTH / width


def check_flags(args: argparse.Namespace, device: str) -> None:
    """Rules between flags."""
    for message in broken_rules(args, device):
        raise ValueError(message)


def broken_rules(args: argparse.Namespace, device: str) -> Iterator[str]:
    if not args.images and args.distill_mode != "feature":
        yield "--images false trains by --distill_mode feature"
    if args.tower == "vision" and not args.images:
        yield "--tower vision needs images: pass --images true"
    if args.tower == "vision" and args.clip_mode == "scratch":
        yield "--clip_mode scratch is for --tower text"
    if args.augment and (args.tower == "vision" or args.distill_mode != "none"):
        yield "--augment true changes what the full model has embedded: pass --tower text and --distill_mode none"
    if args.target_column and not args.images:
        yield "--images false takes captions alone: leave out --target_column"
    if not args.images and not args.freeze_vision:
        yield "--images false needs --freeze_vision true"
    if args.clip_mode == "scratch" and (args.clip_layers or args.search_result):
        yield "--clip_mode scratch drops no trained layers: leave out --clip_layers and --search_result"
    if args.clip_mode == "scratch" and not args.max_epoch:
        yield "--clip_mode scratch has nothing without training: pass --max_epoch 1 or more"
    if args.average and not args.max_epoch:
        yield "--average takes the mean of epochs: pass --max_epoch 1 or more"
    if args.clip_layers and args.search_result:
        yield "pass --clip_layers or --search_result, not both"
    if args.schedule and (args.clip_layers or args.search_result or args.clip_mode == "scratch"):
        yield "--schedule searches by itself: leave out --clip_layers, --search_result and --clip_mode scratch"
    ends = args.num_layers, args.num_layers - args.num_clip_layers
    if args.schedule and (args.schedule[0], args.schedule[-1]) != ends:
        yield (
            f"--schedule goes from {args.schedule[0]} to {args.schedule[-1]} layers; expected from --num_layers to "
            f"--num_layers minus --num_clip_layers, {ends[0]} to {ends[1]}"
        )
    processes = PartialState().num_processes
    if args.batch_size % processes:
        yield f"--batch_size {args.batch_size} cannot be split over {processes} processes"
    if args.precision == "fp16" and device == "cpu":
        yield "--precision fp16 needs --device cuda; on a CPU pass bf16"
    if args.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        yield "--report_to tensorboard: it is not installed; run: pip install tensorboard"


def warn_of_slow_precision(args: argparse.Namespace, device: str) -> None:
    if args.precision == "bf16" and (times := bfloat16_slowdown(device)) > SLOW:
        logger.warning("--precision bf16: a product takes %.0f times as long as in fp32 on this processor", times)


def load_start(args: argparse.Namespace, device: str) -> tuple[Encoder | None, Encoder | None]:
    """The model as it is, where its weights are used; and one with fresh weights, where it is trained from scratch."""
    scratch = args.clip_mode == "scratch"
    needs_full = not scratch or args.freeze_vision or args.distill_mode != "none"
    full = load_encoder(args.model, args.tower, device) if needs_full else None
    if not scratch:
        return full, None
    set_seed(args.seed)  # of the fresh weights, whatever was drawn before
    return full, fresh_encoder(args.model, device, args.num_clip_layers, full if args.freeze_vision else None)


def make_run(args: argparse.Namespace, full: Encoder | None, embedder: Encoder) -> Run:
    """Data, loss and settings. `embedder`: the model whose embeddings of images and captions are taken."""
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    scale = full.logit_scale if full else 1.0
    objective = Objective(args.distill_mode, args.distill_weight, args.temperature, scale)
    cache_dir = tower_dir(args.exp_dir, args.model, args.tower) / "cache"
    data = load_data(full, embedder, args.dataset, data_flags(args), settings, objective, args.images, cache_dir)
    return Run(data, objective, settings)
