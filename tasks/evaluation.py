"""The figures of a CLIP on image-caption pairs: task loss and retrieval recall."""

import torch
from torch import Tensor

from data import ImageCaptionPairs
from models.clip import Clip
from tasks.retrieval import retrieval_recall, task_loss

LOSS_BATCH_SIZE = 250  # pairs in a batch of the task loss; divides the 2,000 pairs of the bundled splits


def evaluate_retrieval(
    clip: Clip, pairs: ImageCaptionPairs, image_embeddings: Tensor, loss_batch_size: int = LOSS_BATCH_SIZE
) -> dict[str, float]:
    """Task loss and recall at 1, 5 and 10 in both directions; `mean_recall` is the mean of these six.

    `image_embeddings`: (m, d), L2-normalised, one row for each image that `pairs.image_index` counts, none of them NaN.
    Returns `task_loss`, `text_to_image_recall_at_<k>`, `image_to_text_recall_at_<k>` and `mean_recall`; fractions.
    """
    text = clip.embeddings(pairs.captions)
    image_index = torch.from_numpy(pairs.image_index).to(text.device)
    image = image_embeddings.to(text.device)
    recall = retrieval_recall(text, image, image_index)
    loss = task_loss(text, image[image_index], clip.logit_scale, loss_batch_size, image_index)
    return {"task_loss": loss, **recall, "mean_recall": sum(recall.values()) / len(recall)}
