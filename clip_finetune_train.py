"""Step 4: build the pruned model from the winner of the search, and fine-tune its text tower.

    python clip_finetune_train.py --output_dir clip12to6_exp1 --resume_epoch 0 --num_layers 12 --num_clip_layers 6
    python clip_finetune_train.py --output_dir captions_alone --num_layers 12 --num_clip_layers 6 --images false
    accelerate launch --multi_gpu --num_processes 2 clip_finetune_train.py --device cpu ...

The image tower is frozen and its embeddings are computed once, so stored image embeddings stay valid. exp/<output_dir>/ is the
checkpoint of the best epoch on validation, with train.log, metrics.jsonl, curves.png, report.json and the states to go on
from. With `--clip_mode scratch` what is trained starts from fresh weights.
"""

import argparse
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs

import experiment
from experiment import boolean, bounded, positive_int
from models import Clip, load_clip
from search_strategy.proposals import segments
from training.averaging import parse_average
from training.loop import Settings
from training.losses import DISTILLATION
from training.model_card import ModelCard
from training.run import make_trainer, write_report
from training.splits import Split, load_split
from training.start import Choice, check_numbers, choose_layers, fresh, pruned
from training.states import check_output_dir

logger = logging.getLogger("comflp")

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # accelerate's names


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Fine-tune a pruned CLIP text transformer, or train one from scratch.")
    add = parser.add_argument
    add("--output_dir", required=True, help="folder under exp/ for this run")
    add("--resume_epoch", type=bounded(int, 0), default=0, help="go on after this epoch (default: 0, a new run)")
    add("--num_layers", type=positive_int, required=True, help="text layers of the model")
    add("--num_clip_layers", type=int, required=True, help="how many of them to drop")
    add("--clip_layers", help="layers to drop: [[2, 3], [5, 5]] or 2-3,5 (default: the winner of the search)")
    add("--search_result", type=Path, help="result file to take the winner from (default: the newest of this model)")
    add("--clip_mode", choices=("finetune", "scratch"), default="finetune", help="default: finetune")
    group = parser.add_argument_group("what is trained")
    add = group.add_argument
    add("--freeze_vision", type=boolean, default=True, help="keep the image tower (default: true)")
    add("--freeze_embeddings", type=boolean, default=False, help="keep token and position embeddings (default: false)")
    add("--freeze_logit_scale", type=boolean, default=False, help="keep the logit scale (default: false)")
    add("--images", type=boolean, default=True, help="false: captions alone, distilled by feature (default: true)")
    add("--distill_mode", choices=("none", *DISTILLATION), help="distance to the full model (default: none)")
    add("--distill_weight", type=bounded(float, 0), default=1.0, help="of that distance in the loss (default: 1)")
    add("--temperature", type=bounded(float, 1e-6), default=1.0, help="of logit and affinity (default: 1)")
    add("--negatives", type=bounded(int, 0), default=0, help="images beyond the batch for each caption (default: 0)")
    group = parser.add_argument_group("optimisation")
    add = group.add_argument
    add("--max_epoch", type=positive_int, default=50, help="default: 50")
    add("--batch_size", type=positive_int, default=256, help="pairs in a batch over all processes (default: 256)")
    add("--grad_accum", type=positive_int, default=1, help="batches in an optimiser step (default: 1)")
    add("--lr", type=bounded(float, 0), default=1e-4, help="peak learning rate (default: 1e-4)")
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
    experiment.add_common_flags(parser)
    return parser


def check_flags(args: argparse.Namespace, device: str) -> None:
    """Rules between flags; fills in the default of `--distill_mode`."""
    args.distill_mode = args.distill_mode or ("none" if args.images else "feature")
    rules = {
        "--images false trains by --distill_mode feature": not args.images and args.distill_mode != "feature",
        "--images false needs --freeze_vision true": not args.images and not args.freeze_vision,
        "--negatives are taken from image embeddings that stay as they are: pass --freeze_vision true and --images true": (
            args.negatives and not (args.freeze_vision and args.images)
        ),
        "--clip_mode scratch drops no trained layers: leave out --clip_layers and --search_result": (
            args.clip_mode == "scratch" and (args.clip_layers or args.search_result)
        ),
        "pass --clip_layers or --search_result, not both": args.clip_layers and args.search_result,
        "--precision fp16 needs --device cuda; on a CPU pass bf16": args.precision == "fp16" and device == "cpu",
        "--report_to tensorboard: it is not installed; run: pip install tensorboard": (
            args.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None
        ),
    }
    for message, broken in rules.items():
        if broken:
            raise ValueError(message)


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


def load_models(args: argparse.Namespace, device: str, choice: Choice | None) -> tuple[Clip | None, Clip]:
    """The full model, where its weights are used, and the one to train."""
    if choice is not None:
        full = load_clip(args.model, device)
        return full, pruned(full, choice.dropped_layers)
    full = load_clip(args.model, device) if args.freeze_vision or args.distill_mode != "none" else None
    experiment.seed_everything(args.seed)  # of the fresh weights, whatever was drawn before
    return full, fresh(args.model, device, args.num_clip_layers, full if args.freeze_vision else None)


def split_loader(args: argparse.Namespace, clip: Clip, cache_dir: Path, progress: bool) -> Callable[[str], Split]:
    """A function from the name of a split to its pairs with the embeddings that training or evaluation needs."""

    def load(name: str) -> Split:
        return load_split(
            clip,
            args.dataset,
            name,
            columns={"image_column": args.image_column, "caption_column": args.caption_column},
            images=args.images,
            image_embeddings=args.freeze_vision or (name == "train" and args.distill_mode in ("logit", "affinity")),
            teacher_text=args.distill_mode != "none" if name == "train" else not args.images,
            cache_dir=cache_dir,
            progress=progress,
        )

    return load


def model_card(args: argparse.Namespace, choice: Choice | None, num_pairs: int, record: dict) -> ModelCard:
    text = "its text tower" if choice else "the text tower"
    return ModelCard(
        folder=record["output_dir"],
        model=record["flags"]["model"],
        num_layers=args.num_layers,
        num_clip_layers=args.num_clip_layers,
        dropped_layers=choice and choice.dropped_layers,
        origin=choice.origin if choice else "",
        trained=text if args.freeze_vision else f"{text} and the image tower",
        dataset=args.dataset,
        num_pairs=num_pairs,
        command=record["command"],
    )


@experiment.script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    device = experiment.set_up(args)
    check_flags(args, device)
    output_dir, model_dir = args.exp_dir / args.output_dir, experiment.model_dir(args.exp_dir, args.model)
    scratch = args.clip_mode == "scratch"
    check_numbers(args.model, args.num_layers, args.num_clip_layers, smallest=0 if scratch else 1)
    check_output_dir(output_dir, args.resume_epoch)
    choice = None
    if not scratch:
        choice = choose_layers(
            args.clip_layers, args.search_result, model_dir, args.model, args.num_layers, args.num_clip_layers
        )
    accelerator = make_accelerator(args, device, output_dir)
    is_main = accelerator.is_main_process
    record = experiment.Record(args, device)
    record.note(output_dir=output_dir)
    full, clip = load_models(args, str(accelerator.device), choice)
    split = split_loader(args, full or clip, model_dir / "cache", is_main and experiment.show_progress())
    with accelerator.main_process_first():
        train, validation = split("train"), split("validation")
    card = model_card(args, choice, len(train.pairs), record.content())
    trainer = make_trainer(
        clip,
        full,
        train,
        validation,
        settings=Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)}),
        accelerator=accelerator,
        output_dir=output_dir,
        card=card,
        average=args.average,
        num_workers=args.num_workers,
        compiled=args.compile,
    )
    if args.resume_epoch:
        trainer.resume(args.resume_epoch)
    experiment.set_up_logging(output_dir / "train.log" if is_main else None, append=args.resume_epoch > 0)
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    log_start(args, choice, train, validation, accelerator.num_processes)
    accelerator.init_trackers("tensorboard")
    trainer.train(is_main and experiment.show_progress())
    if is_main:
        record.note(train=train.pairs.identity(), validation=validation.pairs.identity())
        write_report(trainer, full, split("test"), card, args.average, record)
    accelerator.end_training()


def log_start(
    args: argparse.Namespace, choice: Choice | None, train: Split, validation: Split, num_processes: int
) -> None:
    if args.resume_epoch:
        logger.info("goes on after epoch %d", args.resume_epoch)
    if choice:
        logger.info("drops the layers %s, from %s", segments(choice.dropped_layers), choice.origin)
    logger.info(
        "%d text layers, %d training and %d validation pairs, processes: %d",
        *(args.num_layers - args.num_clip_layers, len(train.pairs), len(validation.pairs), num_processes),
    )


if __name__ == "__main__":
    main()
