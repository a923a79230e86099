"""Losses against plain loops, and what must hold for any distance to a teacher."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.losses import DISTILLATION, Objective, Similarities, contrastive_loss, feature_distance
from training.towers import Outputs

N, D = 6, 5


def unit_rows(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.double), dim=-1)


def similarities(seed: int = 0, scale: float = 7.0) -> Similarities:
    text, image, teacher = (unit_rows(N, 10 * seed + i) for i in range(3))
    return Similarities(text, image, torch.tensor(scale).double(), teacher, image, 11.0)


def plain_cross_entropy(scores: list[float], right: int) -> float:
    return -scores[right] + math.log(sum(math.exp(score) for score in scores))


def plain_contrastive(batch: Similarities) -> float:
    total = 0.0
    for i in range(N):
        scores = [float(batch.scale * batch.text[i] @ image) for image in batch.image]
        total += plain_cross_entropy(scores, i)
        total += plain_cross_entropy([float(batch.scale * text @ batch.image[i]) for text in batch.text], i)
    return total / (2 * N)


def test_contrastive_loss_is_that_of_a_plain_loop():
    assert contrastive_loss(similarities()).item() == pytest.approx(plain_contrastive(similarities()), rel=1e-12)


def test_with_a_bias_every_pair_is_right_or_wrong_on_its_own():
    """As SigLIP, with pairs that share a caption."""
    batch = similarities()
    same = torch.eye(N, dtype=torch.bool)
    same[1, 4] = same[4, 1] = True
    total = 0.0
    for i in range(N):
        for j in range(N):
            if i == j or not same[i, j]:
                logit = float(batch.scale * batch.text[i] @ batch.image[j]) - 3.0
                total += math.log(1 + math.exp(-logit if i == j else logit))
    biased = replace(batch, same=same, bias=torch.tensor(-3.0).double())
    assert contrastive_loss(biased).item() == pytest.approx(total / N, rel=1e-12)


@pytest.mark.parametrize("mode", DISTILLATION)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_distilling_the_teacher_onto_itself_costs_nothing_and_another_onto_it_does(mode: str, temperature: float):
    batch = similarities()
    itself = Similarities(batch.text, batch.image, batch.scale, batch.text, batch.image, batch.scale.item())
    assert DISTILLATION[mode](itself, temperature).item() == pytest.approx(0, abs=1e-12)
    assert DISTILLATION[mode](batch, temperature).item() > 0.01


def test_feature_distance_is_two_minus_twice_the_cosine():
    batch = similarities()
    cosines = [float(a @ b) for a, b in zip(batch.text, batch.teacher_text, strict=True)]
    assert feature_distance(batch).item() == pytest.approx(2 - 2 * np.mean(cosines))


@pytest.mark.parametrize("mode", ["logit", "affinity"])
def test_divergences_are_those_of_a_plain_loop(mode: str):
    batch, temperature = similarities(), 2.0
    student_scale = batch.scale.item() if mode == "logit" else batch.teacher_scale
    student = (student_scale / temperature * batch.text @ batch.image.T).numpy()
    teacher = (batch.teacher_scale / temperature * batch.teacher_text @ batch.teacher_image.T).numpy()
    directions = [(student, teacher)] if mode == "logit" else [(student, teacher), (student.T, teacher.T)]
    total = 0.0
    for ours, theirs in directions:
        for i in range(N):
            p, q = (np.exp(row) / np.exp(row).sum() for row in (theirs[i], ours[i]))
            total += float(np.sum(p * np.log(p / q))) / N
    assert DISTILLATION[mode](batch, temperature).item() == pytest.approx(4 * total / len(directions), rel=1e-9)


def test_affinity_does_not_depend_on_the_students_scale_and_logit_does():
    changed = [DISTILLATION[mode](similarities(scale=20.0), 1.0) for mode in ("affinity", "logit")]
    before = [DISTILLATION[mode](similarities(), 1.0) for mode in ("affinity", "logit")]
    assert changed[0] == before[0]
    assert abs(changed[1] - before[1]) > 0.1


def test_objective_adds_the_weighted_distance_and_is_that_alone_without_images():
    batch = similarities()
    rows = {
        "teacher_text": batch.teacher_text,
        "image_embeddings": batch.image,
        "caption_numbers": torch.arange(N),
        "image_rows": torch.arange(N),
    }
    both = Objective("feature", distill_weight=3.0)(Outputs(batch.text, batch.image, batch.scale), rows)
    alone = Objective("feature", distill_weight=3.0)(Outputs(batch.text, None, batch.scale), rows)
    assert both.item() == pytest.approx((contrastive_loss(batch) + 3 * feature_distance(batch)).item())
    assert alone.item() == pytest.approx(feature_distance(batch).item())
