"""The figures of a CLIP on image-caption pairs: task loss, retrieval recall, size and speed of its text tower."""

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
    text = clip.text_embeddings(pairs.captions)
    image_index = torch.from_numpy(pairs.image_index).to(text.device)
    image = image_embeddings.to(text.device)
    recall = retrieval_recall(text, image, image_index)
    loss = task_loss(text, image[image_index], clip.logit_scale, loss_batch_size, image_index)
    return {"task_loss": loss, **recall, "mean_recall": sum(recall.values()) / len(recall)}


def text_parameters(clip: Clip) -> int:
    """Parameters that a text embedding needs: the text tower and its projection."""
    modules = (clip.model.text_model, clip.model.text_projection)
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@torch.no_grad()
def text_milliseconds(
    clip: Clip, captions: Sequence[str], batch_size: int, repeats: int = 5, full_length: bool = False
) -> float:
    """Milliseconds a caption from token ids to embedding.

    Batches are cut to their longest caption, or with `full_length` padded to as many tokens as the model takes. The fastest
    of `repeats` passes over the captions after one that is not counted: what else the machine does can only add time.
    Tokenising is not counted.
    """
    batches = [batch.input_ids for batch in clip.batches(clip.tokenize(captions), batch_size)]
    if full_length:
        positions = clip.model.config.text_config.max_position_embeddings
        batches = [F.pad(ids, (0, positions - ids.shape[1])) for ids in batches]
    passes = [_pass_seconds(clip, batches) for _ in range(repeats + 1)]
    return min(passes[1:]) / len(captions) * 1000


def _pass_seconds(clip: Clip, batches: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    for input_ids in batches:
        clip.model.get_text_features(input_ids=input_ids)
    if clip.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
