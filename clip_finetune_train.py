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
from pathlib import Path

from common.cli import Parser, add_common_flags, bounded, choice, positive_int, script, switch, whole_number
from training.settings import DISTILL_MODES, PRECISIONS, Settings, parse_average, parse_schedule

CLIP_MODES = {"finetune": "from the weights that stay", "scratch": "from fresh weights"}
TRACKERS = {"none": "metrics.jsonl and curves.png alone", "tensorboard": "its event files too"}


def all_or_number(text: str) -> int | None:
    """Read `all`, which is None, or a number of at least 1 (an argparse type)."""
    return None if text == "all" else positive_int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--output_dir", required=True, help="folder under exp/ for this run")
    add("--resume_epoch", **whole_number(0, "go on after this epoch; 0: a new run", 0))
    kept = "the last epochs that can be gone on from: a number, or all (default: %(default)s)"
    add("--keep_epochs", type=all_or_number, default=Settings.keep_epochs, help=kept)
    add("--num_layers", type=positive_int, required=True, help="layers of the model's tower")
    add("--num_clip_layers", type=int, required=True, help="how many of them to drop (0: the full model)")
    add("--clip_layers", help="layers to drop: [[2, 3], [5, 5]] or 2-3,5 (default: the winner of the search)")
    add(
        "--search_result",
        type=Path,
        help="result file to take the winner from (default: the newest of this model, on this data set if there is one)",
    )
    add("--clip_mode", **choice(CLIP_MODES, "finetune"))
    stages = "prune in stages such as 12,9,6, each with a search and --max_epoch epochs"
    add("--schedule", type=parse_schedule, help=stages)
    add("--repair", **switch(True, "start with a linear map in the place of what is dropped"))
    add_training_flags(parser)
    add = parser.add_argument_group("machine").add_argument
    add("--precision", **choice(PRECISIONS, "fp32", "of the forward pass"))
    add("--num_workers", type=bounded(int, 0, 256), default=0, help="processes that decode images ahead (default: 0)")
    add("--report_to", **choice(TRACKERS, "none"))
    add_common_flags(parser, tower=True, target_column=True)
    return parser


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """What is trained, towards what, and how."""
    add = parser.add_argument_group("what is trained").add_argument
    add("--freeze_vision", **switch(True, "keep the image tower"))
    add("--freeze_embeddings", **switch(False, "keep token and position embeddings"))
    add("--freeze_logit_scale", **switch(False, "keep the logit scale"))
    add("--images", **switch(True, "false: captions alone, distilled by feature"))
    add("--distill_mode", **choice(DISTILL_MODES, None, "what else is trained for, default none"))
    add("--distill_weight", type=bounded(float, 0), help="beside the contrastive loss (default: feature 4, others 1)")
    add("--temperature", type=bounded(float, 1e-6), default=1.0, help="of logit and affinity (default: 1)")
    add = parser.add_argument_group("optimisation").add_argument
    add("--max_epoch", **whole_number(50, "0: no training, the repaired model alone", 0))
    add("--batch_size", **whole_number(256, "pairs in a batch over all processes"))
    add("--grad_accum", **whole_number(1, "batches in an optimiser step"))
    add("--lr", type=bounded(float, 0), help="peak learning rate (default: 3e-4 at width 128, else inversely to it)")
    add("--warmup_steps", type=bounded(int, 0), help="linear, then cosine (default: 100, at most a tenth of all steps)")
    add("--weight_decay", type=bounded(float, 0), default=0.1, help="on matrices (default: 0.1)")
    add("--max_grad_norm", type=bounded(float, 0), default=1.0, help="of the whole gradient, 0: any (default: 1)")
    add("--layerdrop", type=bounded(float, 0, 1), default=0.0, help="chance of a layer to be left out (default: 0)")
    add("--augment", **switch(False, "change words, and images that are trained on"))
    add("--average", type=parse_average, help="also try the mean of epochs: best:N or last:N, by validation")


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from commands.finetune import run

    run(args)


if __name__ == "__main__":
    main()
