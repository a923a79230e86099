"""Whether a change of an encoder helps: what its embeddings of held-out samples lost of what the full model says."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoders import Encoder

STEPS = (1.0, 0.75, 0.5, 0.25)  # of the way from the old weights to the new ones
SHARPNESS = 20.0  # of the similarities that are compared


def loss_of_meaning(embeddings: Tensor, meant: Tensor) -> float:
    """Mean KL divergence of each sample's similarities to all others from those in the full model, in nats.

    `embeddings`, `meant`: (n, d), L2-normalised. A mean distance would not do: least squares pulls embeddings together,
    which makes them nearer and yet harder to tell apart; what retrieval sees is their similarities.
    """
    found = F.log_softmax(SHARPNESS * (embeddings @ meant.T).double(), -1)
    expected = F.log_softmax(SHARPNESS * (meant @ meant.T).double(), -1)
    return F.kl_div(found, expected, reduction="batchmean", log_target=True).item()


class Judge:
    """The full model on samples that nothing is fitted to.

    Attributes:
        batches: the samples.
        meant: (n, d), their embeddings by the full model, in the order of the batches, as everywhere here.
        nothing: the loss of embeddings that tell nothing apart.
    """

    def __init__(self, full: Encoder, samples: Sequence, batch_size: int):
        self.full = full
        self.batches = list(full.batches(samples, batch_size))
        self.contexts = [full.stack.start(**batch.inputs)[1] for batch in self.batches]
        self.meant = self.embeddings(full)
        self.nothing = loss_of_meaning(torch.zeros_like(self.meant), self.meant)

    def embeddings(self, encoder: Encoder) -> Tensor:
        """(n, d), by any encoder of the same inputs."""
        layers = range(1, encoder.num_layers + 1)
        starts = [encoder.stack.start(**batch.inputs) for batch in self.batches]
        ends = [encoder.stack.run(*start, layers) for start in starts]
        return torch.cat([encoder.embed(end, batch) for end, batch in zip(ends, self.batches, strict=True)])

    def embeddings_after(self, layer: int, states: Iterable[Tensor]) -> Tensor:
        """(n, d), by the layers after this one of the full model from a state (n, T, D) of each batch."""
        rest = range(layer + 1, self.full.num_layers + 1)
        ends = [self.full.stack.run(*pair, rest) for pair in zip(states, self.contexts, strict=True)]
        return torch.cat([self.full.embed(end, batch) for end, batch in zip(ends, self.batches, strict=True)])

    def loss(self, embeddings: Tensor) -> float:
        """`loss_of_meaning` up to `nothing`: beyond it one embedding is as bad as another, so that no change helps."""
        return min(loss_of_meaning(embeddings, self.meant), self.nothing)

    def best_step(self, embeddings_at: Callable[[float], Tensor]) -> tuple[float, float, float]:
        """The best step of 0 and `STEPS`, and the losses without it and with it; `embeddings_at(step)` gives (n, d)."""
        before = self.loss(embeddings_at(0.0))
        step, after, last = 0.0, before, torch.inf
        for shorter in STEPS:
            loss = self.loss(embeddings_at(shorter))
            if loss < after:
                step, after = shorter, loss
            if loss > last:  # from here on it goes up: the loss has one valley
                break
            last = loss
        return step, before, after
