"""Losses of a batch: contrastive, and the distances to a teacher.

Every process computes the loss of the whole batch, from embeddings gathered over all processes, such that the mean of
the processes' gradients, which data-parallel training takes, is the gradient of that loss.
"""

from dataclasses import dataclass

import torch
from accelerate import PartialState, utils
from torch import Tensor, nn

from tasks.retrieval import sigmoid_loss, symmetric_cross_entropy
from training.towers import Outputs


def gather(tensor: Tensor) -> Tensor:
    """The rows of all processes, in their order; the tensor itself in a single process.

    Only the own rows have a gradient: the others' reaches the weights through their own process. It is multiplied by
    the number of processes, which the mean over processes divides it by.
    """
    state = PartialState()
    if state.num_processes == 1:
        return tensor
    # the others' rows without a gradient, the own ones with theirs
    rows = list(utils.gather(tensor.detach()).chunk(state.num_processes))
    if tensor.requires_grad:
        tensor.register_hook(lambda gradient: gradient * state.num_processes)
    rows[state.process_index] = tensor
    return torch.cat(rows)


@dataclass(frozen=True)
class Similarities:
    """The embeddings of a batch, L2-normalised, of the student and of the teacher.

    `text`, `image`, `teacher_text`, `teacher_image`: (n, d), row i of each belongs to pair i; `scale`, `teacher_scale`:
    the factors on cosine similarities. Without images `image` and `teacher_image` are None.
    """

    text: Tensor
    image: Tensor | None
    scale: Tensor
    teacher_text: Tensor | None = None
    teacher_image: Tensor | None = None
    teacher_scale: float = 1.0
    same: Tensor | None = None  # (n, n) booleans: two pairs that share the image or the caption
    bias: Tensor | None = None  # added to the scaled similarities in SigLIP's loss; None: the loss is CLIP's


def contrastive_loss(batch: Similarities) -> Tensor:
    """CLIP's symmetric cross entropy (Radford et al. 2021), or with a bias SigLIP's sigmoid loss (Zhai et al. 2023);
    nats.
    """
    logits = batch.scale * batch.text @ batch.image.T
    if batch.same is not None:  # no negatives of each other
        others = batch.same & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(others, -torch.inf)  # no share in any softmax, nor in the sum of sigmoids
    return symmetric_cross_entropy(logits) if batch.bias is None else sigmoid_loss(logits + batch.bias)


def feature_distance(batch: Similarities, temperature: float = 1.0) -> Tensor:
    """Mean squared distance between the student's and the teacher's text embeddings: 2 - 2 cos, in 0..4.

    Feature distillation, the strongest single term in CLIP-KD (Yang et al. 2024, section 3.2).
    """
    return (batch.text - batch.teacher_text).square().sum(-1).mean()


def logit_divergence(batch: Similarities, temperature: float) -> Tensor:
    """KL divergence between the two models' distributions over the images for each caption, each with its own scale.

    Logits are divided by the temperature and the mean over captions is multiplied by its square (Hinton et al. 2015).
    Nats.
    """
    teacher = batch.teacher_scale * batch.teacher_text @ batch.teacher_image.T
    student = batch.scale * batch.text @ batch.image.T
    return _divergence(student / temperature, teacher / temperature) * temperature**2


def affinity_divergence(batch: Similarities, temperature: float) -> Tensor:
    """Affinity mimicking (TinyCLIP, Wu et al. 2023, section 3.1): the mean, over both directions, of the KL divergence
    between the soft affinities of the two models, both at the teacher's scale divided by the temperature. Nats.

    The published loss is the cross entropy; it differs by the teacher's entropy, which has no gradient.
    """
    scale = batch.teacher_scale / temperature
    teacher = scale * batch.teacher_text @ batch.teacher_image.T
    student = scale * batch.text @ batch.image.T
    return (_divergence(student, teacher) + _divergence(student.T, teacher.T)) / 2 * temperature**2


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax over each row of logits, mean over rows."""
    return nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )


DISTILLATION = {"feature": feature_distance, "logit": logit_divergence, "affinity": affinity_divergence}


@dataclass(frozen=True)
class Objective:
    """The loss that is trained: contrastive, plus `distill_weight` times a distance to the teacher.

    Without images it is that distance alone, not multiplied by anything; it must then be `feature`.

    Args:
        distill_mode: one of `DISTILLATION`, or `none`.
        distill_weight, temperature: of the distillation.
        teacher_scale: the teacher's factor on cosine similarities.
    """

    distill_mode: str = "none"
    distill_weight: float = 1.0
    temperature: float = 1.0
    teacher_scale: float = 1.0

    def settings(self) -> dict:
        """What the result of a training depends on."""
        return {name: getattr(self, name) for name in ("distill_mode", "distill_weight", "temperature")}

    def __call__(self, outputs: Outputs, batch: dict[str, Tensor]) -> Tensor:
        """The loss over all processes' rows."""
        text, image, scale, bias = outputs
        gathered = Similarities(
            text=gather(text),
            image=None if image is None else gather(image),
            scale=scale,
            teacher_text=gather(batch["teacher_text"]) if "teacher_text" in batch else None,
            # those of the batch: the tower that gave them is the full model's
            teacher_image=gather(batch["image_embeddings"]) if "image_embeddings" in batch else None,
            teacher_scale=self.teacher_scale,
            same=_share_image_or_caption(batch),
            bias=bias,
        )
        if image is None:
            return feature_distance(gathered)
        loss = contrastive_loss(gathered)
        if self.distill_mode != "none":
            loss = loss + self.distill_weight * DISTILLATION[self.distill_mode](gathered, self.temperature)
        return loss


def _share_image_or_caption(batch: dict[str, Tensor]) -> Tensor:
    """(n, n) booleans over the rows of all processes."""
    images, captions = gather(batch["image_rows"]), gather(batch["caption_numbers"])
    return (images[:, None] == images) | (captions[:, None] == captions)
