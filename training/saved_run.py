"""A training as files: the best epoch as a checkpoint, and after every epoch a state that it can go on from."""

import json
import logging
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from common import write_text
from training.batches import selection_score
from training.states import WEIGHTS, filling, remove_leftovers, save_checkpoint

logger = logging.getLogger("comflp")


class SavedRun:
    """What a `Trainer`, whose attributes these are, keeps of itself on disk; `training.states` has the files."""

    history: list[dict]  # the figures of each epoch

    def validate(self) -> dict[str, float]:
        """Figures of the model as it is."""
        return self.data.validation.figures(self.encoder, self.settings.freeze_vision)

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
        weights, found = self.states.mean_weights(self._epochs_to_average(self.history))
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

    def _epochs_to_average(self, history: list[dict]) -> list[int]:
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
            # the checkpoint there may be of an epoch after the one to go on from
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
        self.accelerator.wait_for_everyone()  # no process writes into the folder before it is empty
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
        self.states.thin_out(resumable, wanted.union(*map(self._epochs_to_average, histories)))

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


def differences(before: dict, now: dict) -> str:
    """What is not equal in two dicts, as text: what it was, and what it is now."""
    names = [name for name in before | now if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)} (now {now.get(name)})" for name in names)
