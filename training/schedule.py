"""Pruning in several stages: from L layers to fewer, training after each; every later stage searches by itself.

The search is that of the two scripts with their default settings: distance correlation of 10 times 4 captions, beam, the task
loss of the ten best on validation, hill climbing from them.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from measures import MEASURES
from models import Clip
from search_strategy.fine import FineSearch
from search_strategy.pipeline import propose, verify
from training.splits import Split
from training.start import Choice

BATCH_SIZE, ITER_NUM = 4, 10
NUM_PROPOSALS = 10
BEAM_SIZE = 10
REFINE_ROUNDS = 20


class Stage(NamedTuple):
    """One pruning and the training after it. `resume_epoch`: counted from the stage's own first epoch, before which the
    stages before it have `first_epoch` epochs."""

    output_dir: Path
    num_layers: int
    num_clip_layers: int
    resume_epoch: int
    first_epoch: int = 0


def parse_schedule(text: str) -> list[int]:
    """Read `12,9,6` (an argparse type)."""
    parts = text.split(",")
    sizes = [int(part) for part in parts if part.strip().isdigit()]
    if len(sizes) != len(parts) or len(sizes) < 2 or sizes[-1] < 1 or sorted(set(sizes), reverse=True) != sizes:
        raise argparse.ArgumentTypeError(f"expected falling numbers of layers such as 12,9,6, got {text!r}")
    return sizes


def stages(sizes: list[int], output_dir: Path, max_epoch: int, resume_epoch: int) -> list[Stage]:
    """The stages of a schedule. The last one writes to `output_dir`, the others beside it; all train `max_epoch` epochs, and
    `resume_epoch` counts from the first epoch of the first stage.
    """
    found = []
    for number, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
        is_last = number == len(sizes) - 2
        folder = output_dir if is_last else output_dir.with_name(f"{output_dir.name}_{before}to{after}")
        resumed = min(max(resume_epoch - number * max_epoch, 0), resume_epoch if is_last else max_epoch)
        found.append(Stage(folder, before, before - after, resumed, number * max_epoch))
    return found


def search(clip: Clip, num_clip_layers: int, train: Split, validation: Split, seed: int) -> Choice:
    """The layers to drop from a model. Without images the fine search is by the distance to the model's own embeddings."""
    generator = np.random.default_rng(seed)
    matrix = distance_correlation(clip, train.pairs.captions, generator)
    scored = propose(
        matrix,
        clip.num_layers,
        num_clip_layers,
        mode="beam",
        num_proposals=NUM_PROPOSALS,
        beam_size=BEAM_SIZE,
        score="mean",
        generator=generator,
    )
    images = validation.image_embeddings
    fine = FineSearch(
        clip,
        validation.pairs.captions,
        images,
        None if images is None else validation.pairs.image_index,
        objective="embedding" if images is None else "task_loss",
    )
    proposals = [proposal for proposal, _ in scored]
    verification = verify(fine, proposals, refine_rounds=REFINE_ROUNDS, generator=generator)
    return Choice(verification.ranked[0].dropped_layers, "a search of this stage")


@torch.inference_mode()
def distance_correlation(clip: Clip, captions: list[str], generator: np.random.Generator) -> np.ndarray:
    """(L+1, L+1): between the hidden states of random captions, mean over their tokens."""
    measure = MEASURES["dc"]()
    number = min(BATCH_SIZE * ITER_NUM, len(captions))
    tokens = clip.prepare([captions[row] for row in generator.permutation(len(captions))[:number]])
    for start in range(0, number - BATCH_SIZE + 1, BATCH_SIZE):
        batch = clip.batch(tokens, range(start, start + BATCH_SIZE))
        states = clip.stack.hidden_states(**batch.inputs)
        measure.update([clip.pool(state, batch, "mean") for state in states])
    return measure.matrix()
