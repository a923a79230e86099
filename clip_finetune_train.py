"""Step 4: build the pruned model from the winner of the search, and fine-tune its text tower.

    python clip_finetune_train.py --output_dir clip12to6_exp1 --resume_epoch 0 --num_layers 12 --num_clip_layers 6
    python clip_finetune_train.py --output_dir captions_alone --num_layers 12 --num_clip_layers 6 --images false
    accelerate launch --multi_gpu --num_processes 2 clip_finetune_train.py --device cpu ...

The image tower is frozen and its embeddings are computed once, so stored image embeddings stay valid. exp/<output_dir>/ is the
checkpoint of the best epoch on validation, with its model card, train.log, metrics.jsonl, curves.png and report.json; the states
to go on from are in exp/<output_dir>.states/. With `--clip_mode scratch` what is trained starts from fresh weights.
"""

import argparse
import importlib.util
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs

from common import Record, add_common_flags, boolean, bounded, data_flags, model_dir, positive_int, script, set_up
from models.encoders import check_num_layers, read_tower_config
from search_strategy.proposals import check_num_clip_layers
from training.averaging import parse_average
from training.loop import KEEP_EPOCHS, Settings
from training.losses import DISTILLATION
from training.run import Options, load_material, load_start, train_stage
from training.schedule import parse_schedule, search, stages
from training.start import choose_layers
from training.states import check_not_held, check_output_dir

LR_TIMES_WIDTH = (
    3e-4 * 128
)  # rates of Adam carry over between widths as 1 / width (Yang et al. 2022, Tensor Programs V)
FEATURE_WEIGHT = 4.0  # as in CLIP-KD (Yang et al. 2024): 2000 times the mean over 512 dimensions
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # accelerate's names


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
        default=KEEP_EPOCHS,
        help="how many of the last epochs can be gone on from: a number or all (default: %(default)s)",
    )
    add("--num_layers", type=positive_int, required=True, help="text layers of the model")
    add("--num_clip_layers", type=int, required=True, help="how many of them to drop (0: the full model)")
    add("--clip_layers", help="layers to drop: [[2, 3], [5, 5]] or 2-3,5 (default: the winner of the search)")
    add("--search_result", type=Path, help="result file to take the winner from (default: the newest of this model)")
    add("--clip_mode", choices=("finetune", "scratch"), default="finetune", help="default: finetune")
    add(
        "--schedule",
        type=parse_schedule,
        help="prune in stages, such as 12,9,6, each with a search and --max_epoch epochs",
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
    add("--max_epoch", type=positive_int, default=50, help="default: 50")
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
    add("--average", type=parse_average, help="also try the mean of epochs: best:N or last:N, by validation")
    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--precision", choices=tuple(PRECISIONS), default="fp32", help="of the forward pass (default: fp32)")
    add("--compile", type=boolean, default=False, help="compile the text layers (default: false)")
    add("--num_workers", type=bounded(int, 0), default=0, help="processes that decode images ahead (default: 0)")
    add("--report_to", choices=("none", "tensorboard"), default="none", help="default: none")
    add_common_flags(parser)
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
    if not args.images and not args.freeze_vision:
        yield "--images false needs --freeze_vision true"
    if args.negatives and not (args.freeze_vision and args.images):
        yield "--negatives are taken from image embeddings that stay: pass --freeze_vision true and --images true"
    if args.clip_mode == "scratch" and (args.clip_layers or args.search_result):
        yield "--clip_mode scratch drops no trained layers: leave out --clip_layers and --search_result"
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
    if args.precision == "fp16" and device == "cpu":
        yield "--precision fp16 needs --device cuda; on a CPU pass bf16"
    if args.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        yield "--report_to tensorboard: it is not installed; run: pip install tensorboard"


def run_dir(exp_dir: Path, output_dir: str) -> Path:
    """The folder of a run: `foo` and `exp/foo` are the same, where `exp` is the folder of all results."""
    parts = Path(output_dir).parts
    return exp_dir.joinpath(*parts[1:] if len(parts) > 1 and parts[0] == exp_dir.name else parts)


def make_accelerator(args: argparse.Namespace, device: str, output_dir: Path) -> Accelerator:
    """Processes, device and precision; batches are split over the processes."""
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=PRECISIONS[args.precision],
        gradient_accumulation_steps=args.grad_accum,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=output_dir,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=args.layerdrop > 0)],
    )
    if args.batch_size % accelerator.num_processes:
        raise ValueError(f"--batch_size {args.batch_size} cannot be split over {accelerator.num_processes} processes")
    return accelerator


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    device = set_up(args)
    scratch = args.clip_mode == "scratch"
    check_num_layers(args.num_layers, args.model)
    check_num_clip_layers(args.num_clip_layers, args.num_layers, fewest=0)
    fill_in(args, read_tower_config(args.model).hidden_size)
    check_flags(args, device)
    sizes = args.schedule or [args.num_layers, args.num_layers - args.num_clip_layers]
    plan = stages(sizes, run_dir(args.exp_dir, args.output_dir), args.max_epoch, args.resume_epoch)
    for stage in plan:
        check_not_held(stage.output_dir)
        check_output_dir(stage.output_dir, stage.resume_epoch, stage.first_epoch)
    choice = None
    if not scratch and not args.schedule:
        folder = model_dir(args.exp_dir, args.model)
        numbers = args.num_layers, args.num_clip_layers
        choice = choose_layers(args.clip_layers, args.search_result, folder, args.model, *numbers)
    accelerator = make_accelerator(args, device, plan[0].output_dir)
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    options = Options(settings, args.average, args.num_workers, args.compile, args.keep_epochs)
    full, clip = load_start(args.model, str(accelerator.device), scratch, args.num_clip_layers, settings)
    cache_dir = model_dir(args.exp_dir, args.model) / "cache"
    material = load_material(full, full or clip, args.dataset, data_flags(args), settings, cache_dir, accelerator)
    before = full
    for stage in plan:
        if args.schedule:
            choice = search(before, stage.num_clip_layers, material.train, material.validation, args.seed)
        if choice:
            clip = before.drop(choice.dropped_layers, str(stage.output_dir))
        accelerator = make_accelerator(args, device, stage.output_dir)
        train_stage(stage, choice, clip, before, material, options, accelerator, Record(args, device))
        before = clip
    accelerator.wait_for_everyone()  # the main process reports
    accelerator.end_training()


if __name__ == "__main__":
    main()
