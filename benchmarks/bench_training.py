"""Training throughput: our loop against the plain one, and what each part of the difference is worth.

    python -m benchmarks.bench_training
    python -m benchmarks.bench_training --model openai/clip-vit-base-patch32 --dataset my_pairs --steps 3

All loops fine-tune the same model, without every other layer, on the same batches with the same optimiser, so their
mean losses must be equal to rounding. The plain loop is what one writes first: every step decodes the images and runs
them through the frozen tower, and captions are padded to the model's length.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from benchmarks.frame import Bench, first_pairs, make_parser
from common import data_flags, format_table, script, whole_number
from models import Clip
from tasks.retrieval import symmetric_cross_entropy
from training.batches import EpochBatches, Split, TrainingData, load_split
from training.loop import Trainer, make_optimizer
from training.losses import Objective
from training.settings import Settings
from training.towers import TrainedTowers

logger = logging.getLogger("comflp")

MAX_GRAD_NORM = 1.0
LR = 1e-4
HEADERS = ("loop", "mean loss", "captions/s", "times the plain loop")
Epoch = Callable[[Clip, Split, Settings], float]


def plain_epoch(cached_images: bool, cut: bool) -> Epoch:
    """A function that trains one epoch as commonly written and returns its mean loss.

    `cached_images`: take the image embeddings from the split; `cut`: pad captions to the longest in the batch only.
    """

    def epoch(clip: Clip, split: Split, settings: Settings) -> float:
        optimizer = make_optimizer(TrainedTowers(clip), settings.lr, settings.weight_decay)
        batches = EpochBatches(len(split.pairs), settings.batch_size, settings.seed)
        scheduler = get_cosine_schedule_with_warmup(optimizer, 0, len(batches))
        clip.model.text_model.train()
        losses = []
        for rows in batches:
            image = _images(clip, split, rows, cached_images)
            captions = [split.pairs.captions[row] for row in rows]
            padding = "longest" if cut else "max_length"
            tokens = clip.processor.tokenizer(captions, padding=padding, truncation=True, return_tensors="pt")
            text = nn.functional.normalize(clip.model.get_text_features(**tokens.to(clip.device)).pooler_output, dim=-1)
            logits = clip.model.logit_scale.exp() * text @ image.T
            loss = symmetric_cross_entropy(logits.masked_fill(_no_negatives(split, rows).to(clip.device), -torch.inf))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(clip.model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    return epoch


def _no_negatives(split: Split, rows: list[int]) -> Tensor:
    """(n, n) booleans: two pairs that share the image or the caption."""
    images, captions = split.pairs.image_index[rows], np.array(split.pairs.captions)[rows]
    shared = (images[:, None] == images) | (captions[:, None] == captions)
    return torch.from_numpy(shared & ~np.eye(len(rows), dtype=bool))


@torch.no_grad()
def _images(clip: Clip, split: Split, rows: list[int], cached: bool) -> Tensor:
    image_rows = split.pairs.image_index[rows]
    if cached:
        return split.image_embeddings[image_rows]
    return clip.embed_images(clip.preprocess([split.pairs.images[row] for row in image_rows]).to(clip.device))


def our_epoch(clip: Clip, split: Split, settings: Settings) -> float:
    """The same epoch by our loop."""
    with tempfile.TemporaryDirectory() as folder:
        return Trainer(clip, TrainingData(split, split), Objective(), settings, Path(folder)).train_epoch(epoch=0)


LOOPS: dict[str, Epoch] = {
    "plain": plain_epoch(cached_images=False, cut=False),
    "image embeddings cached": plain_epoch(cached_images=True, cut=False),
    "and captions cut to the longest in a batch": plain_epoch(cached_images=True, cut=True),
    "ours": our_epoch,
}


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Training throughput of our loop against the plain one.")
    parser.add_argument("--batch_size", **whole_number(256, "pairs in a step"))
    parser.add_argument("--steps", **whole_number(8, "steps in an epoch"))
    parser.add_argument("--repeats", **whole_number(3, "epochs of each loop; the median counts"))
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    bench = Bench(args)
    full = bench.encoder
    with bench.record.timed("image_embeddings"):
        cache_dir = bench.folder / "cache"
        split = load_split(full, args.dataset, "train", options=data_flags(args), cache_dir=cache_dir)
    split = first_pairs(split, args.steps * args.batch_size)
    settings = Settings(1, args.batch_size, lr=LR, weight_decay=0.1, warmup_steps=0, seed=args.seed)
    seconds, losses = {name: [] for name in LOOPS}, {}
    for _ in range(args.repeats):
        for name, epoch in LOOPS.items():
            clip = full.drop(range(2, full.num_layers + 1, 2))
            start = time.perf_counter()
            losses[name] = epoch(clip, split, settings)
            seconds[name].append(time.perf_counter() - start)
            logger.info("%s: mean loss %.5f, %.2f s", name, losses[name], seconds[name][-1])
    speed = {name: len(split.pairs) / median(values) for name, values in seconds.items()}
    rows = [(name, losses[name], speed[name], speed[name] / speed["plain"]) for name in LOOPS]
    bench.write(rows=rows)
    print(format_table(rows, HEADERS, floatfmt=("", ".4f", ".0f", ".1f")))


if __name__ == "__main__":
    main()
