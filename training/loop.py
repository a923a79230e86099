"""The training loop: one optimiser step a batch, validation and a resumable state after every epoch."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from models import Clip
from models.retrieval import symmetric_cross_entropy
from training.batches import EpochBatches, PairBatches, make_loader

logger = logging.getLogger("comflp")

MAX_LOGIT_SCALE = math.log(100)  # as in CLIP (Radford et al. 2021, section 2.5)
ADAM_BETAS = (0.9, 0.98)
LENGTH_PARTS = 3


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of a training; the flags of the same names."""

    max_epoch: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_steps: int
    max_grad_norm: float
    seed: int
    keep_checkpoints: int = 2
    num_workers: int = 0


class TwoTowers(nn.Module):
    """Text and image embeddings of a batch, in one forward call."""

    def __init__(self, clip: Clip):
        super().__init__()
        self.model = clip.model
        self._embed_images = clip.embed_images

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns text (n, d) and image (n, d) embeddings, both L2-normalised, and the similarity factor."""
        text = F.normalize(self._embed_text(batch["input_ids"], batch["lengths"]), dim=-1)
        image = batch["image_embeddings"] if "image_embeddings" in batch else self._embed_images(batch["pixel_values"])
        return text, image, self.model.logit_scale.exp()

    def _embed_text(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """(n, d). On a CPU in parts of similar length, each cut to its longest: less padding, a fifth less time."""
        if input_ids.is_cuda:
            return self.model.get_text_features(input_ids=input_ids).pooler_output
        order = lengths.argsort()
        parts = [
            self.model.get_text_features(input_ids=input_ids[rows, : lengths[rows].max()]).pooler_output
            for rows in order.chunk(LENGTH_PARTS)
        ]
        return torch.cat(parts)[order.argsort()]


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, not on biases, norms and the logit scale."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=ADAM_BETAS)


class Trainer:
    """Trains what requires a gradient in `clip.model`, and keeps `train.log`, `metrics.jsonl`, `best/` and `resume/`.

    `validate()` returns a flat dict of figures with `mean_recall`, by which the best epoch is chosen.
    """

    def __init__(
        self,
        clip: Clip,
        batches: PairBatches,
        validate: Callable[[], dict],
        output_dir: Path,
        settings: Settings,
        accelerator: Accelerator,
    ):
        self.clip, self.validate, self.output_dir, self.settings = clip, validate, output_dir, settings
        self.accelerator, self.history = accelerator, []
        self.sampler = EpochBatches(len(batches), settings.batch_size, settings.seed)
        self.loader = make_loader(batches, self.sampler, settings.num_workers)
        towers = TwoTowers(clip)
        optimizer = make_optimizer(towers, settings)
        scheduler = get_cosine_schedule_with_warmup(
            optimizer, settings.warmup_steps, settings.max_epoch * len(self.sampler)
        )
        self.towers, self.optimizer, self.scheduler = accelerator.prepare(towers, optimizer, scheduler)

    def train(self, start_epoch: int, progress: bool) -> list[dict]:
        """Epochs start_epoch+1 .. max_epoch; returns the figures of all epochs."""
        if start_epoch:
            self.resume(start_epoch)
        for epoch in range(start_epoch + 1, self.settings.max_epoch + 1):
            start = time.perf_counter()
            self.sampler.epoch = epoch
            loss = self._train_epoch(epoch, progress)
            row = {"epoch": epoch, "train_loss": loss, "lr": self.scheduler.get_last_lr()[0]} | self.validate()
            row["seconds"] = round(time.perf_counter() - start, 2)
            self.history.append(row)
            self._save(epoch)
            logger.info(
                "epoch %d/%d train_loss %.4f task_loss %.4f recall@10 %.4f mean_recall %.4f seconds %.1f",
                epoch,
                self.settings.max_epoch,
                *(
                    row[name]
                    for name in ("train_loss", "task_loss", "text_to_image_recall_at_10", "mean_recall", "seconds")
                ),
            )
        return self.history

    def best_epoch(self) -> int:
        return max(self.history, key=lambda row: (row["mean_recall"], -row["epoch"]))["epoch"]

    def _train_epoch(self, epoch: int, progress: bool) -> float:
        """One pass over the batches; returns the mean loss."""
        self.towers.train()
        total = 0.0
        bar = tqdm(self.loader, desc=f"epoch {epoch}", disable=not progress, leave=False)
        for step, batch in enumerate(bar, start=1):
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            loss = self._step(batch)
            total += loss
            bar.set_postfix(loss=f"{loss:.3f}")
            if step % 50 == 0:
                logger.info("epoch %d step %d/%d loss %.4f", epoch, step, len(self.sampler), total / step)
        self.towers.eval()
        return total / len(self.sampler)

    def _step(self, batch: dict[str, Tensor]) -> float:
        with self.accelerator.autocast():
            text, image, logit_scale = self.towers(batch)
            loss = symmetric_cross_entropy(logit_scale * text @ image.T)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.towers.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.clip.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        return loss.item()

    # --- states on disk

    def _save(self, epoch: int) -> None:
        """First the resumable state, then what can be made again from it."""
        with replaced_folder(self.resume_dir(epoch)) as folder:
            self.accelerator.save_state(folder, safe_serialization=True)
            (folder / "history.json").write_text(json.dumps(self.history))
            (folder / "settings.json").write_text(json.dumps(asdict(self.settings)))
        self._save_best(epoch)
        for old in sorted(self.resume_epochs())[: -self.settings.keep_checkpoints]:
            shutil.rmtree(self.resume_dir(old))

    def _save_best(self, epoch: int) -> None:
        save_clip(self.clip, self.output_dir / "last")
        if self.best_epoch() == epoch:
            save_clip(self.clip, self.output_dir / "best")
        lines = "".join(json.dumps(row) + "\n" for row in self.history)
        metrics = self.output_dir / "metrics.jsonl"
        metrics.with_suffix(".tmp").write_text(lines, encoding="utf-8")
        metrics.with_suffix(".tmp").replace(metrics)

    def resume_dir(self, epoch: int) -> Path:
        return self.output_dir / "resume" / f"epoch_{epoch:04d}"

    def resume_epochs(self) -> list[int]:
        """Epochs whose state is on disk."""
        return sorted(int(path.name[6:]) for path in (self.output_dir / "resume").glob("epoch_*"))

    def resume(self, epoch: int) -> None:
        """Model, optimiser, schedule, random states and figures as they were after `epoch`."""
        if epoch not in self.resume_epochs():
            found = ", ".join(map(str, self.resume_epochs())) or "none"
            raise ValueError(f"{self.output_dir}: no state of epoch {epoch} to resume from; there are: {found}")
        folder = self.resume_dir(epoch)
        settings = json.loads((folder / "settings.json").read_text())
        changed = [name for name, value in asdict(self.settings).items() if settings[name] != value]
        if changed:
            raise ValueError(
                f"{self.output_dir}: the run to resume had "
                + ", ".join(f"--{name} {settings[name]}" for name in changed)
                + "; pass the same, or another --output_dir"
            )
        self.accelerator.load_state(str(folder))
        self.history = json.loads((folder / "history.json").read_text())
        self._save_best(epoch)


class replaced_folder:
    """A temporary folder that takes the place of `path` when the block ends well."""

    def __init__(self, path: Path):
        self.path, self.temporary = path, path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> Path:
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        return self.temporary

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.replace(self.temporary, self.path)
        else:
            shutil.rmtree(self.temporary, ignore_errors=True)


def save_clip(clip: Clip, path: Path) -> None:
    """A Hugging Face folder: configuration, safetensors, tokenizer, image processor."""
    with replaced_folder(path) as folder:
        clip.model.save_pretrained(folder)
        clip.processor.save_pretrained(folder)
