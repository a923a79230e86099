"""How a training goes: its settings with their defaults, and what their choices mean.

Apart from the training itself so that flags can be read without torch.
"""

import argparse
from dataclasses import asdict, dataclass
from typing import NamedTuple

MAY_CHANGE = ("num_workers", "keep_epochs", "average", "report_to")  # in a run that goes on
PRECISIONS = {
    "fp32": "as the weights are",
    "bf16": "faster where the processor has it",
    "fp16": "for CUDA alone",
}
DISTILL_MODES = {
    "none": "the contrastive loss alone",
    "feature": "distance to the full model's embeddings",
    "logit": "divergence from its similarities to the images of the batch",
    "affinity": "divergence from its similarities among the captions, and among the images",
}


class Average(NamedTuple):
    """Which epochs' weights to take the mean of: those of the `number` best ones, or of the last ones."""

    kind: str
    number: int

    def epochs(self, scores: dict[int, float]) -> list[int]:
        """Of the epochs so far, by what they are chosen by."""
        return sorted(scores, key=scores.get if self.kind == "best" else None, reverse=True)[: self.number]


def parse_average(text: str) -> Average:
    """Read `best:N` or `last:N` (an argparse type)."""
    kind, _, number = text.partition(":")
    if kind not in ("best", "last") or not number.isdigit() or int(number) < 2:
        raise argparse.ArgumentTypeError(f"expected best:N or last:N with N of at least 2, got {text!r}")
    return Average(kind, int(number))


@dataclass(frozen=True)
class Settings:
    """How a `Trainer` trains; the flags of the same names."""

    max_epoch: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_steps: int | None  # None: WARMUP_STEPS, at most a tenth of all steps
    seed: int
    grad_accum: int = 1
    max_grad_norm: float = 1.0
    layerdrop: float = 0.0
    augment: bool = False
    freeze_vision: bool = True
    freeze_embeddings: bool = False
    freeze_logit_scale: bool = False
    precision: str = "fp32"
    num_workers: int = 0
    keep_epochs: int | None = 2  # how many of the last epochs a training can go on from; None: all
    average: Average | None = None
    report_to: str = "none"

    def identity(self) -> dict:
        """What the result depends on."""
        return {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}


def parse_schedule(text: str) -> list[int]:
    """Read `12,9,6` (an argparse type)."""
    parts = text.split(",")
    sizes = [int(part) for part in parts if part.strip().isdigit()]
    if len(sizes) != len(parts) or len(sizes) < 2 or sizes[-1] < 1 or sorted(set(sizes), reverse=True) != sizes:
        raise argparse.ArgumentTypeError(f"expected falling numbers of layers such as 12,9,6, got {text!r}")
    return sizes
