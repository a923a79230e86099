"""Retrieval: contrastive task loss and recall of pairs, of which one side is fixed (the images of CLIP: the index)."""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from tasks.base import LOSS_BATCH_SIZE, Scores, Task

RECALL_AT = (1, 5, 10)
MISS = max(RECALL_AT)  # a rank, from 0, that is no hit however few candidates there are


class Retrieval(Task):
    """Pairs of an embedding that is scored, here called text, and a target that stays as it is, here called image.

    Args:
        images: (m, d), L2-normalised: the targets.
        image_index: (n,), the image of each text.
        logit_scale: the factor on cosine similarities in the loss.
        logit_bias: what is added to them in SigLIP's sigmoid loss; None for CLIP's symmetric loss.
        objective: `task_loss`, or `recall`: minus the recall at 10, mean of both directions.
        batch_size: pairs in a batch of the loss.
    """

    OBJECTIVES = ("task_loss", "recall")

    def __init__(
        self,
        images: Tensor,
        image_index: np.ndarray | Tensor,
        logit_scale: float,
        logit_bias: float | None = None,
        *,
        objective: str = "task_loss",
        batch_size: int = LOSS_BATCH_SIZE,
    ):
        self.images, self.image_index = images, torch.as_tensor(image_index, device=images.device)
        self.logit_scale, self.logit_bias = logit_scale, logit_bias
        self.objective, self.batch_size = objective, batch_size

    def score(self, embeddings: Tensor) -> Scores:
        """`figures`: task_loss, recall at 1, 5 and 10 in both directions as fractions, and the mean of these six."""
        return self.score_pairs(*self.sides(embeddings))

    def score_pairs(self, text: Tensor, image: Tensor) -> Scores:
        """The same from both sides, with a value for each text."""
        losses = pair_losses(
            text, image[self.image_index], self.logit_scale, self.batch_size, self.image_index, self.logit_bias
        )
        hits = recall_hits(text, image, self.image_index)
        recall = summarise_hits(hits)
        figures = {"task_loss": losses.mean().item(), **recall, "mean_recall": sum(recall.values()) / len(recall)}
        if self.objective == "task_loss":
            return Scores(losses, figures)
        # of each text: its own hit, and that of its image; smaller is better, so minus their mean
        both_ways = hits["text_to_image"][10].double() + hits["image_to_text"][10][self.image_index].double()
        return Scores(-both_ways / 2, figures)

    def sides(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Texts (n, d) and images (m, d), of which one is what is scored."""
        return embeddings, self.images.to(embeddings)

    def fit_scale(self, embeddings: Tensor) -> Self:
        """The same task at the scale in 1..100, CLIP's limits, at which the loss of these embeddings is least.

        With a bias, which belongs to its scale, the task itself.
        """
        if self.logit_bias is not None:
            return self
        text, image = self.sides(embeddings)

        # one-dimensional and smooth in the logarithm, which is how CLIP learns it
        def loss(log_scale: float) -> float:
            scale = math.exp(log_scale)
            return pair_losses(text, image[self.image_index], scale, self.batch_size, self.image_index).mean().item()

        fitted = minimize_scalar(loss, bounds=(0, math.log(100)), method="bounded", options={"xatol": 1e-3})
        return self.change(logit_scale=math.exp(fitted.x))

    def on_rows(self, rows: Sequence[int]) -> Self:
        return self.change(image_index=self.image_index[torch.as_tensor(rows)])

    def change(self, **changes: object) -> Self:
        """The same task but for some of its arguments."""
        return type(self)(**vars(self) | changes)


def symmetric_cross_entropy(logits: Tensor, reduction: str = "mean") -> Tensor:
    """CLIP's loss (Radford et al. 2021, figure 3): mean of both directions' cross entropy, pair i being right for i.

    `logits`: (n, n), text against image, scaled. Nats; a scalar, or (n,) with `reduction="none"`.
    """
    target = torch.arange(len(logits), device=logits.device)
    return (
        nn.functional.cross_entropy(logits, target, reduction=reduction)
        + nn.functional.cross_entropy(logits.T, target, reduction=reduction)
    ) / 2


def sigmoid_loss(logits: Tensor, reduction: str = "mean") -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, algorithm 1): every pair of the batch on its own is right (on the diagonal) or
    wrong.

    `logits`: (n, n), text against image, scaled, with the bias added. Nats, the sum over all n * n pairs divided by n;
    a scalar, or (n,) with `reduction="none"`: for pair i the mean of the sums of row i and column i.
    """
    # log sigmoid(z x): z is +1 for a pair, -1 for all others
    right = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    losses = -nn.functional.logsigmoid(right * logits)
    values = (losses.sum(0) + losses.sum(1)) / 2
    return values if reduction == "none" else values.mean()


def pair_losses(
    text: Tensor,
    image: Tensor,
    logit_scale: float,
    batch_size: int,
    image_index: Tensor | None = None,
    logit_bias: float | None = None,
) -> Tensor:
    """Contrastive loss (symmetric, or with a bias the sigmoid loss) of each pair within fixed batches of consecutive
    pairs; the task loss is its mean.

    `text`, `image`: (n, d), L2-normalised, row i of one belongs to row i of the other; `logit_scale`: the factor
    itself, not its logarithm. `image_index`: (n,), the number of each pair's image, where images have several captions:
    batches are then of consecutive pairs in the order of `in_rounds`. Returns (n,) float64, nats. The last batch may be
    smaller.
    """
    order = torch.arange(len(text), device=text.device) if image_index is None else in_rounds(image_index)
    losses = torch.empty(len(text), dtype=torch.float64, device=text.device)
    for rows in order.split(batch_size):
        logits = logit_scale * text[rows] @ image[rows].T
        if logit_bias is None:
            losses[rows] = symmetric_cross_entropy(logits, reduction="none").double()
        else:
            losses[rows] = sigmoid_loss(logits + logit_bias, reduction="none").double()
    return losses


def in_rounds(image_index: Tensor) -> Tensor:
    """The order (n,) of pairs in which the first captions of all images come before any second one, and so on.

    Captions of one image, which are no negatives of each other, are then as far apart as they can be. Where every image
    has one caption nothing moves.
    """
    # a caption's round is its place among those of its image, in their order
    by_image = image_index.argsort(stable=True)
    grouped = image_index[by_image]
    rounds = torch.empty_like(by_image)
    rounds[by_image] = torch.arange(len(grouped), device=grouped.device) - torch.searchsorted(grouped, grouped)
    return rounds.argsort(stable=True)


def recall_hits(text: Tensor, image: Tensor, image_index: Tensor, chunk: int = 2048) -> dict[str, dict[int, Tensor]]:
    """Whether each query finds its match among the k most similar, for k in `RECALL_AT`.

    `text_to_image`: (n,) booleans, the caption's own image is among the k. `image_to_text`: (m,), any caption of the
    image is; an image without a caption is no hit. Ties count against: an equally similar wrong candidate ranks before
    the right one, so a collapsed encoder scores 0, not 1. A similarity that is NaN is a miss, and a wrong one counts
    against.

    `text`: (n, d); `image`: (m, d); both L2-normalised. `image_index`: (n,), caption i belongs to image image_index[i].
    """
    chunks = [(rows, image_index[rows]) for rows in torch.arange(len(text), device=text.device).split(chunk)]
    text_rank, right = [], []
    for rows, own in chunks:
        similarity = text[rows] @ image.T  # (chunk, m)
        own_similarity = similarity.gather(1, own[:, None])
        right.append(own_similarity.masked_fill(own_similarity.isnan(), -torch.inf))
        # the wrong ones at least as similar: all that are not less (`>=` would miss NaN), but for the right one itself
        rank = (~(similarity < right[-1])).sum(1) - 1
        text_rank.append(rank.masked_fill(right[-1].squeeze(1) == -torch.inf, MISS))
    best_right = torch.full((len(image),), -torch.inf, dtype=text.dtype, device=text.device)
    best_right.scatter_reduce_(0, image_index, torch.cat(right).squeeze(1), "amax")
    image_rank = torch.zeros(len(image), dtype=torch.long, device=text.device)
    # once the best right caption of each image is known, count the wrong ones that are at least as similar
    for rows, own in chunks:
        if len(chunks) > 1:  # else it is still there
            similarity = text[rows] @ image.T
        better = ~(similarity < best_right)
        better[torch.arange(len(rows), device=text.device), own] = False  # the image's own captions are no rivals
        image_rank += better.sum(0)
    image_rank[best_right == -torch.inf] = MISS
    text_rank = torch.cat(text_rank)
    return {
        "text_to_image": {k: text_rank < k for k in RECALL_AT},
        "image_to_text": {k: image_rank < k for k in RECALL_AT},
    }


def summarise_hits(hits: dict[str, dict[int, Tensor]]) -> dict[str, float]:
    """Recall as fractions: `text_to_image_recall_at_1` and so on."""
    return {
        f"{direction}_recall_at_{k}": hit.double().mean().item()
        for direction, of_k in hits.items()
        for k, hit in of_k.items()
    }
