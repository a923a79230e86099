"""The training loop: batches, optimiser steps, validation."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from models.encoders import Encoder
from training.augment import Augmentation
from training.batches import EpochBatches, PairBatches, TrainingData, make_loader
from training.losses import Objective
from training.report import ModelCard
from training.saved_run import SavedRun
from training.settings import Settings
from training.states import EpochStates
from training.towers import TrainedTowers

logger = logging.getLogger("comflp")

ADAM_BETAS = (0.9, 0.98)  # CLIP's: a second moment that forgets sooner keeps large batches stable
WARMUP_STEPS = 100  # of fine-tuning: the weights are good already, the moments of Adam are not
LOG_STEPS = 50


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, not on biases, norms and the logit scale."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=ADAM_BETAS, fused=True)


def make_accelerator(settings: Settings, cpu: bool, output_dir: Path) -> Accelerator:
    """Processes, device, precision and trackers; batches are split over the processes."""
    return Accelerator(
        cpu=cpu,
        mixed_precision="no" if settings.precision == "fp32" else settings.precision,
        gradient_accumulation_steps=settings.grad_accum,
        log_with=None if settings.report_to == "none" else settings.report_to,
        project_dir=output_dir,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        # a layer that LayerDrop leaves out has no gradient to wait for
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=settings.layerdrop > 0)],
    )


class Trainer(SavedRun):
    """Trains an encoder towards fixed targets, and keeps the files of a run.

    Args:
        encoder: the model; its weights change.
        data: the pairs; the best epoch is chosen on validation, by `training.batches.selection_score`.
        objective: the loss.
        settings: how.
        output_dir: where the checkpoint and `metrics.jsonl` are written, by the main process alone.
        card: what the encoder was made from; it is the README of the checkpoint, and equal in a run that goes on.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: TrainingData,
        objective: Objective,
        settings: Settings,
        output_dir: Path,
        card: ModelCard | None = None,
    ):
        self.encoder, self.data, self.objective, self.settings = encoder, data, objective, settings
        self.output_dir, self.states, self.card = output_dir, EpochStates(output_dir), card
        self.history: list[dict] = []
        self.accelerator = make_accelerator(settings, encoder.device.type == "cpu", output_dir)
        captions_alone = data.train.captions_alone
        self.towers = TrainedTowers(
            encoder,
            train_vision=not settings.freeze_vision,
            freeze_embeddings=settings.freeze_embeddings,
            freeze_logit_scale=settings.freeze_logit_scale or captions_alone,
            bfloat16=settings.precision == "bf16",
        )
        # its stack learns how its layers return, before anything is drawn
        encoder.embeddings(encoder.samples(data.train.pairs)[:1])
        self._augmentation = Augmentation(settings.seed) if settings.augment else None
        if settings.max_epoch:  # else the captions need not be tokenized: a minute for a million
            self._prepare()

    def _prepare(self) -> None:
        """Batches, optimiser and schedule, and all of them in accelerate's hands."""
        settings, accelerator = self.settings, self.accelerator
        batches = PairBatches(self.encoder, self.data.train, not settings.freeze_vision, self._augmentation)
        self._sampler = EpochBatches(len(batches), settings.batch_size, settings.seed, batches.groups)
        loader = make_loader(batches, self._sampler, settings.num_workers)
        optimizer = make_optimizer(self.towers, settings.lr, settings.weight_decay)
        # of the optimiser; the last of an epoch may be of fewer batches
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
        """The epochs up to max_epoch that are not done; returns the figures of all. In the end the model is the best
        one.

        With a max_epoch of 0 the model as it is becomes the checkpoint, and there is nothing to go on from.
        """
        self.accelerator.init_trackers("tensorboard")
        for epoch in range(len(self.history) + 1, self.settings.max_epoch + 1):
            start = time.perf_counter()
            row = {"epoch": epoch, "train_loss": self.train_epoch(epoch, progress)}
            row["lr"] = self._scheduler.get_last_lr()[0]
            if self.accelerator.is_main_process:  # validation is short, and one process has all of it
                row |= self.validate() | {"seconds": round(time.perf_counter() - start, 2)}
            row = broadcast_object_list([row])[0]
            self._check_finite(row)
            log_epoch(row, self.settings.max_epoch)
            self.history.append(row)
            self._save(epoch)
            self.accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=epoch)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.accelerator.is_main_process:
            if self.history:
                self.load(self.states.weights(self.best()["epoch"]))
            else:
                self.publish(self.best())
        return self.history

    def train_epoch(self, epoch: int, progress: bool = False) -> float:
        """One pass over the batches; returns the mean loss."""
        loss = deque(self.steps(epoch, progress), maxlen=1).pop().item() / len(self._sampler)
        self._check_finite({"epoch": epoch, "train_loss": loss})
        return loss

    def steps(self, epoch: int, progress: bool = False) -> Iterator[Tensor]:
        """The same step by step: after every batch its model can be looked at; yields the sum of all losses so far."""
        self.towers.train()
        self._sampler.epoch = epoch
        if self._augmentation:
            self._augmentation.epoch = epoch
        # equal in all processes, and a function of the epoch alone: nothing of it has to be kept in a state
        generator = np.random.default_rng((self.settings.seed, epoch, 1))
        total = torch.zeros((), device=self.accelerator.device)
        bar = tqdm(self._loader, desc=f"epoch {epoch}", disable=not progress, leave=False)
        for step, batch in enumerate(bar, start=1):
            with self.accelerator.accumulate(self._wrapped):
                total += self._step(batch, generator)
            if step % LOG_STEPS == 0:
                loss, lr = total.item() / step, self._scheduler.get_last_lr()[0]
                self._check_finite({"epoch": epoch, "train_loss": loss})
                logger.info("epoch %d step %d/%d loss %.4f lr %.2e", epoch, step, len(self._sampler), loss, lr)
                bar.set_postfix(loss=f"{loss:.3f}")
            yield total
        self.towers.eval()

    def _step(self, batch: dict, generator: np.random.Generator) -> Tensor:
        # LayerDrop (Fan et al. 2020): each layer is left out by chance, in this step alone
        keep = generator.random(self.towers.num_layers) >= self.settings.layerdrop
        loss = self.objective(self._wrapped(batch, keep.tolist()), batch)
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.settings.max_grad_norm:
            self.accelerator.clip_grad_norm_(self._wrapped.parameters(), self.settings.max_grad_norm)
        self._optimizer.step()  # accelerate skips it, and the schedule's, until all batches of a step are there
        self._scheduler.step()
        self._optimizer.zero_grad()
        self.towers.clamp_logit_scale()  # after the step, as CLIP does
        return loss.detach()

    def _check_finite(self, row: dict) -> None:
        """Raise ValueError where a figure of an epoch is NaN or infinite: neither it nor its weights are then kept."""
        for name, value in row.items():
            if not math.isfinite(value):
                kept = f"; the checkpoint stays that of epoch {self.best()['epoch']}" if self.history else ""
                raise ValueError(
                    f"{name} of epoch {row['epoch']} is {value}; pass a smaller --lr than {self.settings.lr}{kept}"
                )


def log_epoch(row: dict, max_epoch: int) -> None:
    names = ("train_loss", "task_loss", "distance", "text_to_image_recall_at_10", "mean_recall")
    figures = " ".join(f"{name} {row[name]:.4f}" for name in names if name in row)
    logger.info("epoch %d/%d %s seconds %.1f", row["epoch"], max_epoch, figures, row["seconds"])
