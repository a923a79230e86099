"""What the benchmarks share: `--out` and the common flags; encoder, pairs and fine search; the figures as JSON."""

import argparse
import copy
import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPModel

from common import Record, add_common_flags, data_flags, set_up, show_progress, tower_dir, write_json
from common.cli import Parser
from data import ImageCaptionPairs, load_pairs
from models import Clip, load_encoder
from search_strategy.fine import Evaluation, FineSearch
from search_strategy.rivals import compare_pairs
from training.batches import Split


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = Parser(description)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    add_common_flags(parser, tower=True, target_column=True)
    return parser


class Bench:
    """A benchmark that runs: its flags, its record, and what it measures with.

    Attributes:
        encoder: of `--model`.
        folder: of the model's results.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, device = args, set_up(args)
        self.record = Record(args, device)
        self.encoder = load_encoder(args.model, args.tower, device)
        self.folder = tower_dir(args.exp_dir, args.model, args.tower)
        self.record.note(model=self.encoder.identity())

    def pairs(self, split: str, **changes: object) -> ImageCaptionPairs:
        """A split of `--dataset`; `changes`: of what the data flags say."""
        return load_pairs(self.args.dataset, split, **data_flags(self.args) | changes)

    def fresh_clip(self, *, width: int, **sizes: int) -> Clip:
        return fresh_clip(self.encoder, width=width, seed=self.args.seed, **sizes)

    def captions(self, split: str) -> list[str]:
        """The distinct captions of a split."""
        return list(dict.fromkeys(self.pairs(split, images=False).captions))

    def fine_search(self, pairs: ImageCaptionPairs, **options: object) -> FineSearch:
        """By the task loss on these pairs; target embeddings from the model's cache."""
        return FineSearch.from_pairs(self.encoder, pairs, self.folder / "cache", progress=show_progress(), **options)

    def write(self, **content: object) -> None:
        """The figures and the record, where `--out` says."""
        if self.args.out:
            write_json(self.args.out, content | {"record": self.record.content()})


def fresh_clip(clip: Clip, *, width: int, seed: int = 0, **sizes: int | str) -> Clip:
    """A CLIP with fresh weights, the image tower and the tokenizer of another, and a text tower of these sizes."""
    config = copy.deepcopy(clip.model.config)
    config.text_config.update({"hidden_size": width, "intermediate_size": 4 * width, **sizes})
    if "projection_dim" in sizes:
        config.projection_dim = config.vision_config.projection_dim = sizes["projection_dim"]
    torch.manual_seed(seed)
    model = CLIPModel(config).eval().to(clip.device)
    return Clip(model, clip.processor, f"fresh {config.text_config.num_hidden_layers} x {width}")


def describe_change(left_out: list[Evaluation], repaired: list[Evaluation], full: float) -> dict:
    """How much of the lost objective repair wins back, and how often it hurts."""
    before, after = (np.array([evaluation.objective for evaluation in found]) for found in (left_out, repaired))
    worse, won_back = after > before, (before - after) / (before - full)
    rises = [compare_pairs(mended.values, plain.values) for plain, mended in zip(left_out, repaired, strict=True)]
    keeping = [1 not in evaluation.dropped_layers for evaluation in left_out]
    return {
        "proposals": len(before),
        "worse": int(worse.sum()),
        "worse_beyond_noise": sum(rise["difference"] > rise["interval"] for rise in rises),
        "largest_rise": float((after - before).max()),
        "median_share_won_back": float(np.median(won_back)),
        "median_share_won_back_keeping_layer_1": float(np.median(won_back[keeping])) if any(keeping) else None,
        "best_left_out": left_out[int(before.argmin())].dropped_layers,
        "best_repaired": repaired[int(after.argmin())].dropped_layers,
        "best_objective_left_out": float(before.min()),
        "best_objective_repaired": float(after.min()),
    }


def print_change(change: dict) -> None:
    for name, value in change.items():
        print(f"{name.replace('_', ' ')}: {round(value, 4) if isinstance(value, float) else value}")


def in_own_process(function: Callable, *args: object) -> object:
    """The result of a function in a fresh process: what others left in the heap changes peaks and seconds."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(function, args)
        pool.close()
        pool.join()  # let it end by itself, with what it has to give back
    return result


def peak_mib() -> float:
    """The largest resident size of this process; of this program alone where the system says so (Linux)."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def fastest(
    function: Callable[[], object], device: str, repeats: int = 3, at_least_seconds: float = 0.0
) -> tuple[float, object]:
    """Seconds of the fastest of `repeats` runs, or of as many as fill the time, and the result."""
    times: list[float] = []
    while len(times) < repeats or (sum(times) < at_least_seconds and len(times) < 1000):
        synchronize(device)
        start = time.perf_counter()
        result = function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times), result


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def first_pairs(split: Split, number: int) -> Split:
    """The first captions of a split, without their groups: all loops take the same batches."""
    captions, image_index = split.pairs.captions[:number], split.pairs.image_index[:number]
    pairs = replace(split.pairs, captions=captions, image_index=image_index, groups=None)
    return replace(split, pairs=pairs)
