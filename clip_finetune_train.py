"""Step 4: build the pruned model from the winner of the search, and fine-tune its text tower.

    python clip_finetune_train.py --output_dir clip12to6_exp1 --resume_epoch 0 --num_layers 12 --num_clip_layers 6
    python clip_finetune_train.py --output_dir repaired --num_layers 12 --num_clip_layers 6 --max_epoch 0
    python clip_finetune_train.py --output_dir captions_alone --num_layers 12 --num_clip_layers 6 --images false
    accelerate launch --multi_gpu --num_processes 2 clip_finetune_train.py --device cpu ...

The image tower is frozen and its embeddings are computed once, so stored image embeddings stay valid. exp/<output_dir>/
is the checkpoint of the best epoch on validation, with its model card, train.log, metrics.jsonl, curves.png and
report.json; the states to go on from are in exp/<output_dir>.states/. The pruned model is repaired before it is trained
(`models/repair.py`); with `--max_epoch 0` that is all, in seconds. With `--clip_mode scratch` what is trained starts
from fresh weights.
"""

import argparse
import importlib.util
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from accelerate import PartialState

from common import (
    Record,
    add_common_flags,
    boolean,
    bounded,
    data_flags,
    positive_int,
    script,
    seed_everything,
    set_up,
    tower_dir,
)
from models import Encoder, load_encoder
from models.families import check_num_layers, read_tower_config
from search_strategy.proposals import check_num_clip_layers
from training.loop import PRECISIONS, Settings
from training.losses import DISTILLATION, Objective
from training.stages import (
    Run,
    Start,
    choose_layers,
    fresh_encoder,
    load_data,
    parse_schedule,
    plan_stages,
    prune,
    search,
    train_stage,
)
from training.states import check_not_held, check_output_dir, parse_average

# rates of Adam carry over between widths as 1 / width (Yang et al. 2022, Tensor Programs V)
LR_TIMES_WIDTH = 3e-4 * 128
FEATURE_WEIGHT = 4.0  # as in CLIP-KD (Yang et al. 2024): 2000 times the mean over 512 dimensions


def all_or_number(text: str) -> int | None:
    """Read `all`, which is None, or a number of at least 1 (an argparse type)."""
    return None if text == "all" else positive_int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Fine-tune a pruned CLIP text transformer, or train one from scratch.")
    add = parser.add_argument
    add("--output_dir", required=True, help="folder under exp/ for this run")
    add("--resume_epoch", type=bounded(int, 0), default=0, help="go on after this epoch (default: 0, a new run)")
    add(
        "--keep_epochs",
        type=all_or_number,
        default=Settings.keep_epochs,
        help="how many of the last epochs can be gone on from: a number or all (default: %(default)s)",
    )
    add("--num_layers", type=positive_int, required=True, help="layers of the model's tower")
    add("--num_clip_layers", type=int, required=True, help="how many of them to drop (0: the full model)")
    add("--clip_layers", help="layers to drop: [[2, 3], [5, 5]] or 2-3,5 (default: the winner of the search)")
    add("--search_result", type=Path, help="result file to take the winner from (default: the newest of this model)")
    add("--clip_mode", choices=("finetune", "scratch"), default="finetune", help="default: finetune")
    add(
        "--schedule",
        type=parse_schedule,
        help="prune in stages, such as 12,9,6, each with a search and --max_epoch epochs",
    )
    add(
        "--repair",
        type=boolean,
        default=True,
        help="start with a linear map in the place of what is dropped (default: true)",
    )
    group = parser.add_argument_group("what is trained")
    add = group.add_argument
    add("--freeze_vision", type=boolean, default=True, help="keep the image tower (default: true)")
    add("--freeze_embeddings", type=boolean, default=False, help="keep token and position embeddings (default: false)")
    add("--freeze_logit_scale", type=boolean, default=False, help="keep the logit scale (default: false)")
    add("--images", type=boolean, default=True, help="false: captions alone, distilled by feature (default: true)")
    add("--distill_mode", choices=("none", *DISTILLATION), help="distance to the full model (default: none)")
    add("--distill_weight", type=bounded(float, 0), help="beside the contrastive loss (default: feature 4, others 1)")
    add("--temperature", type=bounded(float, 1e-6), default=1.0, help="of logit and affinity (default: 1)")
    add("--negatives", type=bounded(int, 0), default=0, help="images beyond the batch for each caption (default: 0)")
    group = parser.add_argument_group("optimisation")
    add = group.add_argument
    add("--max_epoch", type=bounded(int, 0), default=50, help="0: no training, the repaired model alone (default: 50)")
    add("--batch_size", type=positive_int, default=256, help="pairs in a batch over all processes (default: 256)")
    add("--grad_accum", type=positive_int, default=1, help="batches in an optimiser step (default: 1)")
    add(
        "--lr",
        type=bounded(float, 0),
        help="peak learning rate (default: 3e-4 at width 128, else in inverse proportion)",
    )
    add("--warmup_steps", type=bounded(int, 0), help="linear, then cosine (default: 100, at most a tenth of all steps)")
    add("--weight_decay", type=bounded(float, 0), default=0.1, help="on matrices (default: 0.1)")
    add("--max_grad_norm", type=bounded(float, 0), default=1.0, help="of the whole gradient, 0: any (default: 1)")
    add("--layerdrop", type=bounded(float, 0, 1), default=0.0, help="chance of a layer to be left out (default: 0)")
    add("--augment", type=boolean, default=False, help="change words, and images that are trained on (default: false)")
    add("--average", type=parse_average, help="also try the mean of epochs: best:N or last:N, by validation")
    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--precision", choices=tuple(PRECISIONS), default="fp32", help="of the forward pass (default: fp32)")
    add("--compile", type=boolean, default=False, help="compile the text layers (default: false)")
    add("--num_workers", type=bounded(int, 0), default=0, help="processes that decode images ahead (default: 0)")
    add("--report_to", choices=("none", "tensorboard"), default="none", help="default: none")
    add_common_flags(parser, tower=True, target_column=True)
    return parser


def fill_in(args: argparse.Namespace, width: int) -> None:
    """Defaults that depend on other flags or on the width of the text tower."""
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
    if args.tower == "vision" and (args.clip_mode == "scratch" or args.negatives):
        yield "--clip_mode scratch and --negatives are for --tower text"
    if args.augment and (args.tower == "vision" or args.distill_mode != "none"):
        yield "--augment true changes what the full model has embedded: pass --tower text and --distill_mode none"
    if args.target_column and not args.images:
        yield "--images false takes captions alone: leave out --target_column"
    if not args.images and not args.freeze_vision:
        yield "--images false needs --freeze_vision true"
    if args.negatives and not (args.freeze_vision and args.images):
        yield "--negatives are taken from image embeddings that stay: pass --freeze_vision true and --images true"
    if args.clip_mode == "scratch" and (args.clip_layers or args.search_result):
        yield "--clip_mode scratch drops no trained layers: leave out --clip_layers and --search_result"
    if args.clip_mode == "scratch" and not args.max_epoch:
        yield "--clip_mode scratch has nothing without training: pass --max_epoch 1 or more"
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


def run_dir(exp_dir: Path, output_dir: str) -> Path:
    """The folder of a run: `foo` and `exp/foo` are the same, where `exp` is the folder of all results."""
    parts = Path(output_dir).parts
    return exp_dir.joinpath(*parts[1:] if len(parts) > 1 and parts[0] == exp_dir.name else parts)


def load_start(args: argparse.Namespace, device: str) -> tuple[Encoder | None, Encoder | None]:
    """The model as it is, where its weights are used; and one with fresh weights, where it is trained from scratch."""
    scratch = args.clip_mode == "scratch"
    needs_full = not scratch or args.freeze_vision or args.distill_mode != "none"
    full = load_encoder(args.model, args.tower, device) if needs_full else None
    if not scratch:
        return full, None
    seed_everything(args.seed)  # of the fresh weights, whatever was drawn before
    return full, fresh_encoder(args.model, device, args.num_clip_layers, full if args.freeze_vision else None)


def make_run(args: argparse.Namespace, full: Encoder | None, embedder: Encoder) -> Run:
    """Data, loss and settings. `embedder`: the model whose embeddings of images and captions are taken."""
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    objective = Objective(args.distill_mode, args.distill_weight, args.temperature, args.negatives)
    cache_dir = tower_dir(args.exp_dir, args.model, args.tower) / "cache"
    data = load_data(full, embedder, args.dataset, data_flags(args), settings, objective, args.images, cache_dir)
    images = data.train.image_embeddings
    if args.negatives and args.negatives > len(images):
        raise ValueError(f"--negatives {args.negatives}: the training pairs have {len(images)} images")
    scale = full.logit_scale if full else 1.0
    return Run(data, replace(objective, image_embeddings=images, teacher_scale=scale), settings)


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    device = set_up(args)
    check_num_layers(args.num_layers, args.model, args.tower)
    check_num_clip_layers(args.num_clip_layers, args.num_layers, fewest=0)
    fill_in(args, read_tower_config(args.model, args.tower).hidden_size)
    check_flags(args, device)
    sizes = args.schedule or [args.num_layers, args.num_layers - args.num_clip_layers]
    stages = plan_stages(sizes, run_dir(args.exp_dir, args.output_dir), args.max_epoch, args.resume_epoch)
    for stage in stages:
        check_not_held(stage.output_dir)
        check_output_dir(stage.output_dir, stage.resume_epoch, stage.first_epoch)
    choice = None
    if args.clip_mode == "finetune" and not args.schedule:
        folder = tower_dir(args.exp_dir, args.model, args.tower)
        numbers = args.num_layers, args.num_clip_layers
        choice = choose_layers(args.clip_layers, args.search_result, folder, args.model, *numbers)
    full, encoder = load_start(args, device)
    run = make_run(args, full, full or encoder)
    before = full
    for stage in stages:
        if args.schedule:
            choice = search(before, stage.num_clip_layers, run.data, args.seed, args.repair)
        start = Start(encoder)
        if choice:
            start = prune(before, choice, run.data, stage.output_dir, args.repair, args.seed)
        train_stage(run, stage, start, Record(args, device))
        before = start.encoder
    PartialState().wait_for_everyone()  # the main process reports


if __name__ == "__main__":
    main()
