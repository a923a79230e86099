"""The training loop: batches, optimiser steps, validation, and a state on disk after every epoch."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from common import write_text
from models import Clip
from training.batches import EpochBatches, PairBatches, make_loader
from training.losses import Objective
from training.splits import score
from training.states import WEIGHTS, EpochStates, filling, remove_leftovers, save_checkpoint
from training.towers import TrainedTowers

logger = logging.getLogger("comflp")

MAX_LOGIT_SCALE = math.log(100)  # as in CLIP (Radford et al. 2021, section 2.5)
ADAM_BETAS = (0.9, 0.98)
WARMUP_STEPS = 100
LOG_STEPS = 50
KEEP_EPOCHS = 2  # the last ones, that a training can go on from


@dataclass(frozen=True)
class Settings:
    """What the result of a training depends on beside model and data; the flags of the same names."""

    max_epoch: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_steps: int | None  # None: WARMUP_STEPS, at most a tenth of all steps
    seed: int
    grad_accum: int = 1
    max_grad_norm: float = 1.0
    layerdrop: float = 0.0
    freeze_vision: bool = True
    freeze_embeddings: bool = False
    freeze_logit_scale: bool = False
    distill_mode: str = "none"
    distill_weight: float = 1.0
    temperature: float = 1.0
    negatives: int = 0
    images: bool = True
    precision: str = "fp32"


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, not on biases, norms and the logit scale."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=ADAM_BETAS, fused=True)


class Trainer:
    """Trains a CLIP and keeps the files of its output folder: see `training.states`, and `metrics.jsonl` beside.

    Args:
        clip: the model; its weights change.
        batches: the training pairs.
        objective: the loss.
        validate: figures of the model as it is, by whose `training.splits.score` the best epoch is chosen.
        describe: the model card, from the figures of the epoch that the checkpoint is of.
        output_dir: where everything is written, by the main process alone.
        accelerator: device, precision, processes, accumulation of gradients.
        identity: what else must be equal in a run that goes on from a state of this one.
        averaged: which epochs, from the history so far, the caller will want the mean of: their weights are kept.
        keep_epochs: how many of the last epochs a training can go on from; None: all.
        after_batch: called after every batch with its number in the epoch, from 1.
    """

    def __init__(
        self,
        clip: Clip,
        batches: PairBatches,
        objective: Objective,
        settings: Settings,
        accelerator: Accelerator,
        output_dir: Path,
        *,
        validate: Callable[[], dict[str, float]],
        describe: Callable[[dict], str],
        identity: dict | None = None,
        averaged: Callable[[list[dict]], list[int]] = lambda history: [],
        after_batch: Callable[[int], None] = lambda step: None,
        num_workers: int = 0,
        compiled: bool = False,
        keep_epochs: int | None = KEEP_EPOCHS,
    ):
        self.clip, self.objective, self.settings, self.accelerator = clip, objective, settings, accelerator
        self.output_dir, self.states = output_dir, EpochStates(output_dir)
        self._keep_epochs = keep_epochs
        self.history: list[dict] = []
        self.validate, self._describe, self._averaged, self._after_batch = validate, describe, averaged, after_batch
        self._identity = {"settings": asdict(settings), **(identity or {})}
        self.towers = TrainedTowers(
            clip,
            train_vision=not settings.freeze_vision,
            freeze_embeddings=settings.freeze_embeddings,
            freeze_logit_scale=settings.freeze_logit_scale or not settings.images,
            compiled=compiled,
            bfloat16=settings.precision == "bf16",
        )
        self._sampler = EpochBatches(len(batches), settings.batch_size, settings.seed, batches.groups)
        self._prepare(make_loader(batches, self._sampler, num_workers))

    def _prepare(self, loader: torch.utils.data.DataLoader) -> None:
        """Optimiser and schedule, and all of them in accelerate's hands."""
        settings, accelerator = self.settings, self.accelerator
        optimizer = make_optimizer(self.towers, settings.lr, settings.weight_decay)
        steps = settings.max_epoch * math.ceil(len(self._sampler) / settings.grad_accum)
        warmup = min(WARMUP_STEPS, steps // 10) if settings.warmup_steps is None else settings.warmup_steps
        scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
        self._wrapped, self._optimizer, self._scheduler, self._loader = accelerator.prepare(
            self.towers, optimizer, scheduler, loader
        )
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    # --- epochs

    def train(self, progress: bool = False) -> list[dict]:
        """The epochs up to max_epoch that are not done; returns the figures of all. In the end the model is the best one."""
        for epoch in range(len(self.history) + 1, self.settings.max_epoch + 1):
            start = time.perf_counter()
            row = {"epoch": epoch, "train_loss": self.train_epoch(epoch, progress)}
            row["lr"] = self._scheduler.get_last_lr()[0]
            if self.accelerator.is_main_process:
                row |= self.validate() | {"seconds": round(time.perf_counter() - start, 2)}
            row = broadcast_object_list([row])[0]
            self._check_finite(row)
            log_epoch(row, self.settings.max_epoch)
            self.history.append(row)
            self._save(epoch)
            self.accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=epoch)
        if self.accelerator.is_main_process:
            self.load(self.states.weights(self.best()["epoch"]))
        return self.history

    def resume(self, epoch: int) -> None:
        """Model, optimiser, schedule, random states and figures as they were after `epoch`.

        Raises ValueError where there is no such state, or where it is of a run with other settings; nothing is written then.
        """
        state = self.states.read(epoch)
        changed = differences(state["identity"], self._identity)
        if changed:
            raise ValueError(f"{self.output_dir}: that run was started with {changed}; pass another --output_dir")
        best = best_of(state["history"])
        best_weights = self.states.weights(best["epoch"])
        if self.accelerator.is_main_process:
            remove_leftovers(self.output_dir)
        self.accelerator.load_state(str(self.states.path(epoch)))
        self.history = state["history"]
        if self.accelerator.is_main_process:
            self.load(best_weights)
            self.publish(best)
            self.load(self.states.weights(epoch))
            self._finish_epoch()

    def best(self) -> dict:
        """The figures of the best epoch; the earliest of equals."""
        return best_of(self.history)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Give the trained towers these weights."""
        self.towers.load_state_dict(weights)

    def publish(self, figures: dict) -> None:
        """Make the model as it is, with these figures, the checkpoint of the output folder."""
        save_checkpoint(self.clip, self.output_dir)
        write_text(self.output_dir / "README.md", self._describe(figures))

    def train_epoch(self, epoch: int, progress: bool) -> float:
        """One pass over the batches; returns the mean loss."""
        self.towers.train()
        self._sampler.epoch = epoch
        # equal in all processes, and a function of the epoch alone: nothing of it has to be kept in a state
        generator = np.random.default_rng((self.settings.seed, epoch, 1))
        total = torch.zeros((), device=self.accelerator.device)
        steps = len(self._sampler)
        bar = tqdm(self._loader, desc=f"epoch {epoch}", disable=not progress, leave=False)
        for step, batch in enumerate(bar, start=1):
            with self.accelerator.accumulate(self._wrapped):
                total += self._step(batch, generator)
            self._after_batch(step)
            if step % LOG_STEPS == 0:
                self._check_finite({"epoch": epoch, "train_loss": total.item()})
                loss, lr = total.item() / step, self._scheduler.get_last_lr()[0]
                logger.info("epoch %d step %d/%d loss %.4f lr %.2e", epoch, step, steps, loss, lr)
                bar.set_postfix(loss=f"{loss:.3f}")
        self.towers.eval()
        self._check_finite({"epoch": epoch, "train_loss": total.item()})
        return total.item() / steps

    def _check_finite(self, row: dict) -> None:
        """Raise ValueError where a figure of an epoch is NaN or infinite: neither it nor its weights are then kept."""
        for name, value in row.items():
            if not math.isfinite(value):
                kept = f"; the checkpoint stays that of epoch {self.best()['epoch']}" if self.history else ""
                raise ValueError(
                    f"{name} of epoch {row['epoch']} is {value}; pass a smaller --lr than {self.settings.lr}{kept}"
                )

    def _step(self, batch: dict[str, Tensor], generator: np.random.Generator) -> Tensor:
        keep = generator.random(self.towers.num_layers) >= self.settings.layerdrop
        loss = self.objective(self._wrapped(batch, keep.tolist()), batch, generator)
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.settings.max_grad_norm:
            self.accelerator.clip_grad_norm_(self._wrapped.parameters(), self.settings.max_grad_norm)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            self.towers.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        return loss.detach()

    # --- states

    def _save(self, epoch: int) -> None:
        """First the state, then what can be made again from it."""
        if self.accelerator.is_main_process:
            self.states.clear()
        self.accelerator.wait_for_everyone()
        with filling(self.states.temporary):
            self.accelerator.save_state(str(self.states.temporary))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self.states.commit(epoch, {"history": self.history, "identity": self._identity})
        if self.accelerator.is_main_process:
            if self.best()["epoch"] == epoch:
                self.publish(self.best())
            self._finish_epoch()
        self.accelerator.wait_for_everyone()

    def _finish_epoch(self) -> None:
        """The last checkpoint and `metrics.jsonl`; then leave out what is no longer needed of older states."""
        save_checkpoint(self.clip, self.states.last)
        lines = "".join(json.dumps(row) + "\n" for row in self.history)
        write_text(self.output_dir / "metrics.jsonl", lines)
        resumable = self.states.resumable()
        resumable = set(resumable if self._keep_epochs is None else resumable[-self._keep_epochs :])
        histories = [self.history[:n] for n in resumable]
        wanted = {best_of(history)["epoch"] for history in histories}
        self.states.thin_out(resumable, wanted.union(*map(self._averaged, histories)))

    def _save_weights(self, models: list, weights: list, folder: str) -> None:
        """In the place of accelerate's own: names do not depend on the number of processes."""
        weights.clear()
        if self.accelerator.is_main_process:
            tensors = {name: tensor.contiguous() for name, tensor in self.towers.state_dict().items()}
            save_file(tensors, Path(folder) / WEIGHTS)

    def _load_weights(self, models: list, folder: str) -> None:
        models.clear()
        self.load(self.states.weights(int(Path(folder).name)))


def best_of(history: list[dict]) -> dict:
    return max(history, key=lambda row: (score(row), -row["epoch"]))


def log_epoch(row: dict, max_epoch: int) -> None:
    names = ("train_loss", "task_loss", "feature_distance", "text_to_image_recall_at_10", "mean_recall")
    figures = " ".join(f"{name} {row[name]:.4f}" for name in names if name in row)
    logger.info("epoch %d/%d %s seconds %.1f", row["epoch"], max_epoch, figures, row["seconds"])


def differences(before: dict, now: dict) -> str:
    """What is not equal in two nested dicts, as text: what it was, and what it is now."""
    changed = []
    for name in before:
        if isinstance(before[name], dict):
            changed.append(differences(before[name], now.get(name, {})))
        elif before[name] != now.get(name):
            changed.append(f"{name} {before[name]} (now {now.get(name)})")
    return ", ".join(filter(None, changed))
