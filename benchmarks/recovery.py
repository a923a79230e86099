"""How soon a pruned model recovers: steps to shares of the full model's recall, with and without distillation.

    python -m benchmarks.recovery --clip_layers 4-8,10
    python -m benchmarks.recovery --clip_layers 4-8,10 --weights 4 16 --shares 0.97 0.99

Text-to-image R@10 on validation, looked at every few steps. Runs start from the pruned model as it is, and from the
same one repaired, with the same batches, learning rate, warm-up and cosine, as the first epochs of a training of
`--max_epoch` epochs.
"""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.frame import Bench, make_parser
from common import bounded, data_flags, format_table, script, show_progress, whole_number
from models import Clip
from models.repair import draw_captions, repaired
from search_strategy.proposals import check_dropped_layers, parse_clip_layers
from training.batches import Split, TrainingData, load_split
from training.loop import Trainer
from training.losses import Objective
from training.settings import Settings

logger = logging.getLogger("comflp")

RECALL = "text_to_image_recall_at_10"


class Curve(list):
    """(step, R@10) pairs of one run, in their order."""

    def steps_to(self, recall: float) -> int | None:
        """The first step looked at that has at least this recall; None where none has."""
        return next((step for step, value in self if value >= recall), None)


def train(
    clip: Clip, train: Split, validation: Split, settings: Settings, weight: float, num_epochs: int, every: int
) -> Curve:
    """The recall of a run; `weight`: of the feature distance to the full model, 0 for the contrastive loss alone."""
    curve = Curve([(0, validation.figures(clip)[RECALL])])
    start = 0

    with tempfile.TemporaryDirectory() as folder:
        objective = Objective("feature" if weight else "none", weight)
        trainer = Trainer(clip, TrainingData(train, validation), objective, settings, Path(folder))
        for epoch in range(1, num_epochs + 1):
            for step, _ in enumerate(trainer.steps(epoch, show_progress()), start=1):
                if step % every == 0:
                    trainer.towers.eval()
                    curve.append((start + step, validation.figures(clip)[RECALL]))
                    trainer.towers.train()
            start += step
    return curve


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Steps of fine-tuning to shares of the full model's recall.")
    add = parser.add_argument
    add("--clip_layers", required=True, help="layers to drop: [[2, 3], [5, 5]] or 2-3,5")
    add(
        "--weights",
        type=bounded(float, 0),
        nargs="+",
        default=[],
        help="of the distillation, by feature (default: none)",
    )
    add("--shares", type=bounded(float, 0, 1), nargs="+", default=[0.97, 0.99, 0.995], help="default: 0.97 0.99 0.995")
    add("--every", **whole_number(10, "steps between two looks"))
    add("--num_epochs", **whole_number(1, "epochs that are run"))
    add("--max_epoch", **whole_number(4, "epochs that the learning rate is planned for"))
    add("--batch_size", **whole_number(256, "pairs in a step"))
    add("--lr", type=bounded(float, 0), default=3e-4, help="default: 3e-4")
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    bench = Bench(args)
    full = bench.encoder
    dropped = check_dropped_layers(parse_clip_layers(args.clip_layers), full.num_layers)
    cache_dir = bench.folder / "cache"
    train_split, validation = (
        load_split(
            full,
            args.dataset,
            split,
            options=data_flags(args),
            cache_dir=cache_dir,
            teacher_text=split == "train" and bool(args.weights),
        )
        for split in ("train", "validation")
    )
    settings = Settings(args.max_epoch, args.batch_size, args.lr, 0.1, None, args.seed)
    captions = draw_captions(train_split.pairs.captions, args.seed)
    starts = {"plain": full.drop(dropped), "repaired": repaired(full, dropped, captions)}
    recall, curves = validation.figures(full)[RECALL], {}
    for weight in (0.0, *args.weights):
        for start, pruned in starts.items():
            name = f"{start}, {f'distilled by feature, weight {weight:g}' if weight else 'contrastive loss alone'}"
            clip = pruned.drop(())  # a copy: the start stays
            curves[name] = train(clip, train_split, validation, settings, weight, args.num_epochs, args.every)
            logger.info("%s: R@10 %.4f before, %.4f after", name, curves[name][0][1], curves[name][-1][1])
            bench.write(full=recall, curves=curves)
    rows = [(name, *(curve.steps_to(share * recall) for share in args.shares)) for name, curve in curves.items()]
    print(format_table(rows, ("steps to a share of the full R@10", *(f"{share:.0%}" for share in args.shares))))
    print(f"full model: R@10 {recall:.4f}; an epoch has {len(train_split.pairs) // args.batch_size} steps")


if __name__ == "__main__":
    main()
