"""Fine search against the plain way: each pruned model rebuilt, and run on images and on captions at full length.

    python -m benchmarks.fine_search --num_proposals 10
    python -m benchmarks.fine_search --all_subsets true

Both ways give the task loss of the same proposals on the same pairs in one run; the largest difference is printed
beside the times. Ours is timed with the image embeddings in the cache, and without. With --all_subsets our time for
every proposal of the size, the race among them, and the rank of its winner are printed too.
"""

import argparse
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from benchmarks.frame import Bench, make_parser
from common import format_table, script, show_progress, switch, whole_number
from data import ImageCaptionPairs
from models import Clip
from search_strategy.fine import FineSearch
from search_strategy.proposals import Proposal, random_proposals
from search_strategy.verify import race
from tasks.base import LOSS_BATCH_SIZE as BATCH_SIZE
from tasks.retrieval import task_loss


@torch.no_grad()
def plain_task_loss(clip: Clip, pairs: ImageCaptionPairs, proposal: Proposal) -> float:
    """As commonly written: a pruned copy of the model, every caption padded to full length, every image encoded."""
    model = clip.stack.drop(proposal)
    length = model.config.text_config.max_position_embeddings
    texts, images = [], []
    for start in range(0, len(pairs), BATCH_SIZE):
        rows = range(start, min(start + BATCH_SIZE, len(pairs)))
        captions = [pairs.captions[row] for row in rows]
        inputs = clip.processor.tokenizer(
            captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        pixels = clip.preprocess([pairs.images[int(pairs.image_index[row])] for row in rows])
        output = model(**inputs.to(clip.device), pixel_values=pixels.to(clip.device))
        texts.append(torch.nn.functional.normalize(output.text_embeds, dim=-1))
        images.append(torch.nn.functional.normalize(output.image_embeds, dim=-1))
    return task_loss(torch.cat(texts), torch.cat(images), clip.logit_scale, BATCH_SIZE)


def compare(clip: Clip, pairs: ImageCaptionPairs, proposals: list[Proposal]) -> list[tuple]:
    """Rows of (what, seconds, times faster than plain, largest difference in loss)."""
    start = time.perf_counter()
    plain = [plain_task_loss(clip, pairs, proposal) for proposal in proposals]
    plain_seconds = time.perf_counter() - start
    rows = [(f"plain, {len(proposals)} proposals", plain_seconds, 1.0, 0.0)]
    with tempfile.TemporaryDirectory() as cache:
        for what in ("ours, images encoded once", "ours, image embeddings cached"):
            start = time.perf_counter()
            fine = FineSearch.from_pairs(clip, pairs, Path(cache))
            losses = [evaluation.objective for evaluation in fine.evaluate(proposals)]
            seconds = time.perf_counter() - start
            rows.append((what, seconds, plain_seconds / seconds, float(np.abs(np.subtract(losses, plain)).max())))
    return rows


def search_everything(clip: Clip, pairs: ImageCaptionPairs, num_clip_layers: int, seed: int) -> list[tuple]:
    """Rows of (what, seconds, pairs evaluated, layer calls, rank of the winner)."""
    subsets = list(combinations(range(1, clip.num_layers + 1), num_clip_layers))
    fine = FineSearch.from_pairs(clip, pairs, progress=show_progress())
    start = time.perf_counter()
    ranked = [e.dropped_layers for e in sorted(fine.evaluate(subsets), key=lambda e: e.objective)]
    rows = [(f"all {len(subsets)}", time.perf_counter() - start, len(subsets) * len(pairs), round(fine.layer_calls), 1)]
    racing = fine.without_memory()
    start = time.perf_counter()
    left, evaluated = race(
        racing.objectives_on, subsets, len(pairs), np.random.default_rng(seed), first_pairs=BATCH_SIZE
    )
    winner = min(zip(racing.objectives(left), left, strict=True))[1]
    evaluated += len(left) * len(pairs)
    seconds = time.perf_counter() - start
    return [
        *rows,
        (f"race among {len(subsets)}", seconds, evaluated, round(racing.layer_calls), ranked.index(winner) + 1),
    ]


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Time the fine search against the plain way.")
    parser.add_argument("--num_clip_layers", **whole_number(6, "layers to drop"))
    parser.add_argument("--num_proposals", **whole_number(10, "random proposals"))
    parser.add_argument("--all_subsets", **switch(False, "evaluate every proposal of the size too"))
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    bench = Bench(args)
    clip, pairs = bench.encoder, bench.pairs("validation")
    generator = np.random.default_rng(args.seed)
    proposals = random_proposals(clip.num_layers, args.num_clip_layers, args.num_proposals, generator)
    content = {"compare": compare(clip, pairs, proposals), "pairs": len(pairs)}
    print(format_table(content["compare"], ("way", "seconds", "times faster", "difference"), ("", ".2f", ".1f", ".1e")))
    if args.all_subsets:
        content["all_subsets"] = search_everything(clip, pairs, args.num_clip_layers, args.seed)
        headers = ("search", "seconds", "pairs evaluated", "layer calls", "rank of its winner")
        print(format_table(content["all_subsets"], headers, ("", ".1f", "", "", "")))
    bench.write(**content)


if __name__ == "__main__":
    main()
