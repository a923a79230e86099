"""Task loss and retrieval recall from embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor

RECALL_AT = (1, 5, 10)


def symmetric_cross_entropy(logits: Tensor) -> Tensor:
    """CLIP's loss (Radford et al. 2021, figure 3): mean of both directions' cross entropy, pair i being right for i.

    `logits`: (n, n), text against image, scaled. Nats.
    """
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def task_loss(text: Tensor, image: Tensor, logit_scale: float, batch_size: int) -> float:
    """Mean symmetric contrastive loss over fixed batches of consecutive pairs.

    `text`, `image`: (n, d), L2-normalised, row i of one belongs to row i of the other; `logit_scale`: the factor itself,
    not its logarithm. The last batch may be smaller and counts by its size.
    """
    total = 0.0
    for start in range(0, len(text), batch_size):
        rows = slice(start, start + batch_size)
        logits = logit_scale * text[rows] @ image[rows].T
        total += symmetric_cross_entropy(logits).item() * len(logits)
    return total / len(text)


def retrieval_recall(text: Tensor, image: Tensor, image_index: Tensor, chunk: int = 4096) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions, as fractions.

    text_to_image: the caption's own image is among the k most similar images. image_to_text: any of the image's captions
    is among the k most similar captions. Ties count against: an equally similar wrong candidate ranks before the right
    one, so a collapsed encoder scores 0, not 1.

    `text`: (n, d); `image`: (m, d); both L2-normalised. `image_index`: (n,), caption i belongs to image image_index[i].
    """
    text_rank = torch.empty(len(text), dtype=torch.long, device=text.device)
    best_caption = torch.full((len(image),), -torch.inf, dtype=text.dtype, device=text.device)
    for start in range(0, len(text), chunk):
        rows = slice(start, start + chunk)
        similarity = text[rows] @ image.T  # (chunk, m)
        right = similarity.gather(1, image_index[rows, None])
        text_rank[rows] = (similarity >= right).sum(1) - 1
        best_caption.scatter_reduce_(0, image_index[rows], right.squeeze(1), "amax")
    image_rank = torch.zeros(len(image), dtype=torch.long, device=text.device)
    for start in range(0, len(text), chunk):
        rows = slice(start, start + chunk)
        better = text[rows] @ image.T >= best_caption
        better[torch.arange(len(better), device=text.device), image_index[rows]] = False
        image_rank += better.sum(0)
    image_rank = image_rank[best_caption > -torch.inf]
    recall = {f"text_to_image_recall_at_{k}": (text_rank < k).double().mean().item() for k in RECALL_AT}
    return recall | {f"image_to_text_recall_at_{k}": (image_rank < k).double().mean().item() for k in RECALL_AT}
