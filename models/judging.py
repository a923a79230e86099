"""Whether a change of an encoder helps: what its embeddings of held-out samples lost of what the full model says."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from models.encoders import Encoder

STEPS = (1.0, 0.75, 0.5, 0.25)  # from the old weights to the new ones; few, since a choice among many fits the judges
SHARPNESS = 20.0  # of the similarities that are compared: sentence-transformers' scale (CLIP's reaches 100)
JUDGED_CALLS = 4096  # of layers that the judging of all L cuts may take: each is judged 4096 / L layers on, at most


def loss_of_meaning(embeddings: Tensor, meant: Tensor) -> float:
    """Mean KL divergence, in nats, of the softmax over a sample's similarities to the full model's embeddings of all
    samples, itself included, from that of the full model's own.

    `embeddings`, `meant`: (n, d), L2-normalised. A mean distance would not do: least squares pulls embeddings together,
    which makes them nearer and yet harder to tell apart; what retrieval sees is their similarities.
    """
    found = nn.functional.log_softmax(SHARPNESS * (embeddings @ meant.T).double(), -1)
    expected = nn.functional.log_softmax(SHARPNESS * (meant @ meant.T).double(), -1)
    return nn.functional.kl_div(found, expected, reduction="batchmean", log_target=True).item()


class Goal(NamedTuple):
    """What embeddings should be, (n, d), and the loss of those that tell nothing apart."""

    meant: Tensor
    nothing: float

    @classmethod
    def of(cls, meant: Tensor) -> Self:
        return cls(meant, loss_of_meaning(torch.zeros_like(meant), meant))


class Judge:
    """The full model on samples that nothing is fitted to.

    Attributes:
        batches: the samples; embeddings are in their order, everywhere here.
    """

    def __init__(self, full: Encoder, samples: Sequence, batch_size: int | None = None):
        self.full = full
        self.batches = list(full.batches(samples, batch_size))
        self.contexts = [full.stack.start(**batch.inputs)[1] for batch in self.batches]
        self._goal = Goal.of(self.embeddings(full))

    def embeddings(self, encoder: Encoder) -> Tensor:
        """(n, d), by any encoder of the same inputs."""
        layers = range(1, encoder.num_layers + 1)
        starts = [encoder.stack.start(**batch.inputs) for batch in self.batches]
        ends = [encoder.stack.run(*start, layers) for start in starts]
        return torch.cat([encoder.embed(end, batch) for end, batch in zip(ends, self.batches, strict=True)])

    def loss_after(self, layer: int, states: Iterable[Tensor]) -> float:
        """The loss where the full model goes on from a state (n, T, D) of each batch in the place of h_layer.

        To its end in models of up to 64 layers. Judging each of L cuts to the end takes L^2 layer calls, so in a deeper
        one both are read out `JUDGED_CALLS` / L layers on.
        """
        rest = range(layer + 1, self._end(layer) + 1)
        ends = [self.full.stack.run(*pair, rest) for pair in zip(states, self.contexts, strict=True)]
        return self.loss(self.read_out(ends), self._goal_after(layer))

    def loss(self, embeddings: Tensor, goal: Goal | None = None) -> float:
        """`loss_of_meaning` up to `nothing`: beyond it one embedding is as bad as another, so that no change helps."""
        meant, nothing = goal or self._goal
        return min(loss_of_meaning(embeddings, meant), nothing)

    def distance(self, embeddings: Tensor) -> float:
        """Mean of 1 - cosine between the embeddings and what they should be."""
        return (1 - (embeddings * self._goal.meant).sum(-1)).mean().item()

    def read_out(self, states: Iterable[Tensor]) -> Tensor:
        """(n, d): the embeddings of the last states (n, T, D) of each batch."""
        return torch.cat([self.full.embed(state, batch) for state, batch in zip(states, self.batches, strict=True)])

    def _end(self, layer: int) -> int:
        return min(self.full.num_layers, layer + max(1, JUDGED_CALLS // self.full.num_layers))

    def _goal_after(self, layer: int) -> Goal:
        end = self._end(layer)
        return self._goal if end == self.full.num_layers else self._goals[end]

    @cached_property
    def _goals(self) -> list[Goal]:
        """Of the full model's states h_0 .. h_L, read out."""
        stack, goals = self.full.stack, []
        states = [stack.start(**batch.inputs)[0] for batch in self.batches]
        for layer in range(self.full.num_layers + 1):
            layers = [layer] if layer else []
            states = [stack.run(*pair, layers) for pair in zip(states, self.contexts, strict=True)]
            goals.append(Goal.of(self.read_out(states)))
        return goals

    def best_step(self, loss_at: Callable[[float], float]) -> tuple[float, float, float]:
        """The best step of 0 and `STEPS`, and the losses without it and with it."""
        before = loss_at(0.0)
        step, after, last = 0.0, before, torch.inf
        for shorter in STEPS:
            loss = loss_at(shorter)
            if loss < after:
                step, after = shorter, loss
            if loss > last:  # from here on it goes up: the loss has one valley
                break
            last = loss
        return step, before, after
