"""The mean of the weights of several epochs (Wortsman et al. 2022, model soups): uniform, and only kept where it is better."""

import argparse
import logging
from collections.abc import Sequence
from typing import NamedTuple

from training.loop import Trainer
from training.splits import score

logger = logging.getLogger("comflp")


class Average(NamedTuple):
    """Which epochs: the `number` best ones, or the last ones."""

    kind: str
    number: int

    def epochs(self, history: Sequence[dict]) -> list[int]:
        rows = sorted(history, key=score, reverse=True) if self.kind == "best" else history[::-1]
        return [row["epoch"] for row in rows[: self.number]]


def parse_average(text: str) -> Average:
    """Read `best:N` or `last:N` (an argparse type)."""
    kind, _, number = text.partition(":")
    if kind not in ("best", "last") or not number.isdigit() or int(number) < 2:
        raise argparse.ArgumentTypeError(f"expected best:N or last:N with N of at least 2, got {text!r}")
    return Average(kind, int(number))


def use_average(trainer: Trainer, average: Average) -> dict:
    """Make the mean of these epochs the checkpoint if it is better on validation than the best epoch.

    Returns the figures of what the checkpoint is then; the model has its weights.
    """
    weights, found = trainer.states.mean_weights(average.epochs(trainer.history))
    trainer.load(weights)
    figures = {"mean_of_epochs": sorted(found), **trainer.validate()}
    best = trainer.best()
    better = score(figures) > score(best)
    verdict = "kept" if better else f"not kept: epoch {best['epoch']} has {score(best):.4f}"
    logger.info("mean of epochs %s: validation score %.4f, %s", sorted(found), score(figures), verdict)
    if not better:
        trainer.load(trainer.states.weights(best["epoch"]))
        return best
    trainer.publish(figures)
    return figures
