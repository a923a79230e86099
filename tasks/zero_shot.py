"""Zero-shot classification of images by the names of the classes (Radford et al. 2021, section 3.1)."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

ACCURACY_AT = (1, 5)


def check_templates(templates: Sequence[str]) -> None:
    """Raise ValueError at a template that has no `{}` for the label."""
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"template {template!r}: expected a {{}} where the label goes, such as 'a photo of a {{}}'"
            )


def class_embeddings(embed: Callable[[list[str]], Tensor], labels: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(c, d), L2-normalised: of each label, the mean over the templates of what `embed` gives, normalised too."""
    prompts = [template.replace("{}", label) for label in labels for template in templates]
    embeddings = embed(prompts).view(len(labels), len(templates), -1)
    return nn.functional.normalize(embeddings.mean(1), dim=-1)


def right_classes(labels: Sequence[str], found: Sequence[str] | Sequence[int]) -> list[set[int]]:
    """The class of each image from a column of its rows: the label's text, whatever its case, or its line from 0.

    Raises ValueError at a value that is no label.
    """
    numbers = {label.casefold(): number for number, label in enumerate(labels)}
    numbers |= {number: number for number in range(len(labels))}
    keys = [value.casefold() if isinstance(value, str) else value for value in found]
    foreign = sorted({str(value) for value, key in zip(found, keys, strict=True) if key not in numbers})
    if foreign:
        raise ValueError(
            f"the labels of {len(foreign)} classes in the data are no line of --labels: {', '.join(foreign[:5])}"
        )
    return [{numbers[key]} for key in keys]


def classes_in_captions(labels: Sequence[str], captions: Sequence[str], image_index: Sequence[int]) -> list[set[int]]:
    """For data without classes: the labels that a caption of the image names, as whole words; none, one or several.

    Raises ValueError where no caption names any.
    """
    patterns = [re.compile(rf"\b{re.escape(label)}\b", re.IGNORECASE) for label in labels]
    classes = [set() for _ in range(max(image_index, default=-1) + 1)]
    for caption, image in zip(captions, image_index, strict=True):
        classes[image] |= {number for number, pattern in enumerate(patterns) if pattern.search(caption)}
    if not any(classes):
        raise ValueError(f"none of the {len(labels)} labels is a word of any caption; name a --label_column")
    return classes


def zero_shot_accuracy(image: Tensor, classes: Tensor, right: Sequence[set[int]]) -> dict[str, float]:
    """Share of the images with a right class for which one is among the k most similar classes.

    Ties count against, as in retrieval. `image`: (m, d); `classes`: (c, d); both L2-normalised; `right`: m sets of
    classes.
    """
    used = [row for row, numbers in enumerate(right) if numbers]
    is_right = torch.zeros(len(used), len(classes), dtype=torch.bool, device=image.device)
    for row, image_row in enumerate(used):
        is_right[row, list(right[image_row])] = True
    similarity = image[used] @ classes.T  # (used, c)
    best_right = similarity.masked_fill(~is_right, -torch.inf).amax(1, keepdim=True)
    rank = ((similarity >= best_right) & ~is_right).sum(1)  # wrong classes at least as similar as the best right one
    accuracy = {f"zero_shot_accuracy_at_{k}": (rank < k).double().mean().item() for k in ACCURACY_AT}
    return accuracy | {"zero_shot_images": len(used)}
