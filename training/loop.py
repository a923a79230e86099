"""The training loop: batches, optimiser steps, validation, and a state on disk after every epoch."""

import json
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
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from common import write_text
from models.encoders import Encoder
from training.augment import Augmentation
from training.batches import EpochBatches, PairBatches, TrainingData, make_loader, selection_score
from training.losses import Objective
from training.report import ModelCard
from training.settings import Settings
from training.states import WEIGHTS, EpochStates, filling, remove_leftovers, save_checkpoint
from training.towers import TrainedTowers

logger = logging.getLogger("comflp")

ADAM_BETAS = (0.9, 0.98)
WARMUP_STEPS = 100
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
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=settings.layerdrop > 0)],
    )


class Trainer:
    """Trains an encoder towards fixed targets, and keeps the files of a run: see `training.states`.

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
            compiled=settings.compile,
            bfloat16=settings.precision == "bf16",
        )
        # its stack learns how its layers return, before anything is drawn
        encoder.embeddings(encoder.samples(data.train.pairs)[:1])
        self._augmentation = Augmentation(settings.seed) if settings.augment else None
        batches = PairBatches(encoder, data.train, not settings.freeze_vision, self._augmentation)
        self._sampler = EpochBatches(len(batches), settings.batch_size, settings.seed, batches.groups)
        self._prepare(make_loader(batches, self._sampler, settings.num_workers))

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
        """The epochs up to max_epoch that are not done; returns the figures of all. In the end the model is the best
        one.

        With a max_epoch of 0 the model as it is becomes the checkpoint, and there is nothing to go on from.
        """
        self.accelerator.init_trackers("tensorboard")
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
        keep = generator.random(self.towers.num_layers) >= self.settings.layerdrop
        loss = self.objective(self._wrapped(batch, keep.tolist()), batch, generator)
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.settings.max_grad_norm:
            self.accelerator.clip_grad_norm_(self._wrapped.parameters(), self.settings.max_grad_norm)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        self.towers.clamp_logit_scale()
        return loss.detach()

    def validate(self) -> dict[str, float]:
        """Figures of the model as it is."""
        return self.data.validation.figures(self.encoder, self.settings.freeze_vision)

    def _check_finite(self, row: dict) -> None:
        """Raise ValueError where a figure of an epoch is NaN or infinite: neither it nor its weights are then kept."""
        for name, value in row.items():
            if not math.isfinite(value):
                kept = f"; the checkpoint stays that of epoch {self.best()['epoch']}" if self.history else ""
                raise ValueError(
                    f"{name} of epoch {row['epoch']} is {value}; pass a smaller --lr than {self.settings.lr}{kept}"
                )

    # --- the model of an epoch

    def best(self) -> dict:
        """The figures of the best epoch, the earliest of equals; at epoch 0 those of the model as it is."""
        return best_of(self.history) if self.history else {"epoch": 0, **self.validate()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Give the trained towers these weights."""
        self.towers.load_state_dict(weights)

    def publish(self, figures: dict) -> None:
        """Make the model as it is, with these figures, the checkpoint of the output folder."""
        save_checkpoint(self.encoder, self.output_dir)
        if self.card:
            write_text(self.output_dir / "README.md", self.card.text(figures))

    def use_average(self) -> dict:
        """Make the mean of the epochs asked for the checkpoint if it is better on validation than the best epoch.

        Returns the figures of what the checkpoint is then; the model has its weights. Uniform means of weights, kept
        where they are better: Wortsman et al. 2022, model soups.
        """
        best = self.best()
        if self.settings.average is None or not self.history:
            return best
        weights, found = self.states.mean_weights(self._averaged(self.history))
        self.load(weights)
        figures = {"mean_of_epochs": sorted(found), **self.validate()}
        better = selection_score(figures) > selection_score(best)
        verdict = "kept" if better else f"not kept: epoch {best['epoch']} has {selection_score(best):.4f}"
        logger.info("mean of epochs %s: validation score %.4f, %s", sorted(found), selection_score(figures), verdict)
        if not better:
            self.load(self.states.weights(best["epoch"]))
            return best
        self.publish(figures)
        return figures

    def _averaged(self, history: list[dict]) -> list[int]:
        scores = {row["epoch"]: selection_score(row) for row in history}
        return self.settings.average.epochs(scores) if self.settings.average else []

    # --- states

    def resume(self, epoch: int) -> None:
        """Model, optimiser, schedule, random states and figures as they were after `epoch`.

        Raises ValueError where there is no such state, where it is damaged, or of a run with other settings; nothing is
        written then.
        """
        state = self.states.read(epoch)
        changed = differences(state["identity"], self.identity())
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

    def identity(self) -> dict:
        """What must be equal in a run that goes on."""
        made_from = self.card.identity() if self.card else {}
        mine = {**self.settings.identity(), **self.objective.settings(), **self.data.identity(), **made_from}
        return mine | {"layers": self.encoder.num_layers}

    def _save(self, epoch: int) -> None:
        """First the state, then what can be made again from it."""
        if self.accelerator.is_main_process:
            self.states.clear()
        self.accelerator.wait_for_everyone()
        with filling(self.states.temporary):
            self.accelerator.save_state(str(self.states.temporary))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self.states.commit(epoch, {"history": self.history, "identity": self.identity()})
        if self.accelerator.is_main_process:
            if self.best()["epoch"] == epoch:
                self.publish(self.best())
            self._finish_epoch()
        self.accelerator.wait_for_everyone()

    def _finish_epoch(self) -> None:
        """The last checkpoint and `metrics.jsonl`; then leave out what is no longer needed of older states."""
        save_checkpoint(self.encoder, self.states.last)
        lines = "".join(json.dumps(row) + "\n" for row in self.history)
        write_text(self.output_dir / "metrics.jsonl", lines)
        resumable, keep = self.states.resumable(), self.settings.keep_epochs
        resumable = set(resumable if keep is None else resumable[-keep:])
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
    return max(history, key=lambda row: (selection_score(row), -row["epoch"]))


def log_epoch(row: dict, max_epoch: int) -> None:
    names = ("train_loss", "task_loss", "feature_distance", "text_to_image_recall_at_10", "mean_recall")
    figures = " ".join(f"{name} {row[name]:.4f}" for name in names if name in row)
    logger.info("epoch %d/%d %s seconds %.1f", row["epoch"], max_epoch, figures, row["seconds"])


def differences(before: dict, now: dict) -> str:
    """What is not equal in two dicts, as text: what it was, and what it is now."""
    return ", ".join(
        f"{name} {value} (now {now.get(name)})" for name, value in before.items() if value != now.get(name)
    )
