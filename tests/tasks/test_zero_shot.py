"""Zero-shot classification: a plain loop as the oracle, ties, several right classes, and what the labels must be."""

import pytest
import torch
import torch.nn.functional as F

from common.files import read_lines
from tasks.zero_shot import check_templates, class_embeddings, classes_in_captions, right_classes, zero_shot_accuracy


def test_a_class_is_the_normalised_mean_over_its_templates(clip):
    embeddings = class_embeddings(clip.embeddings, ["square", "triangle"], ["red {}", "{} on the left", "{}"])
    for row, label in enumerate(("square", "triangle")):
        texts = [f"red {label}", f"{label} on the left", label]
        expected = F.normalize(clip.embeddings(texts).mean(0), dim=0)
        assert torch.allclose(embeddings[row], expected, atol=1e-6)


def test_one_template_is_the_embedding_of_the_text(clip):
    assert torch.allclose(class_embeddings(clip.embeddings, ["square"], ["{}"]), clip.embeddings(["square"]), atol=1e-6)


def test_accuracy_is_that_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    images, classes = (F.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (50, 12))
    right = [{i % 12} | ({(i * 7) % 12} if i % 3 else set()) for i in range(50)]
    right[4] = right[9] = set()  # left out
    figures = zero_shot_accuracy(images, classes, right)
    for k in (1, 5):
        hits = []
        for image, numbers in zip(images, right, strict=True):
            if numbers:
                order = sorted(range(12), key=lambda c: -float(image @ classes[c]))
                others = [c for c in order if c not in numbers]
                best = min(order.index(c) for c in numbers)
                hits.append(sum(order.index(c) < best for c in others) < k)
        assert figures[f"zero_shot_accuracy_at_{k}"] == pytest.approx(sum(hits) / len(hits))
        assert 0 < sum(hits) < len(hits)
    assert figures["zero_shot_images"] == 48


def test_a_collapsed_encoder_classifies_nothing():
    images, classes = torch.ones(6, 4) / 2, torch.ones(8, 4) / 2
    assert zero_shot_accuracy(images, classes, [{i} for i in range(6)])["zero_shot_accuracy_at_1"] == 0


def test_labels_are_whole_words_of_any_caption_of_the_image():
    captions = ["Heart filled", "arrow up", "arrowhead", "love", "heart arrow", "alarm clock"]
    classes = classes_in_captions(["heart", "arrow", "alarm clock"], captions, [0, 1, 2, 3, 3, 4])
    assert classes == [{0}, {1}, set(), {0, 1}, {2}]
    with pytest.raises(ValueError, match="none of the 1 labels is a word of any caption; name a --label_column"):
        classes_in_captions(["zebra"], captions, range(6))


def test_a_column_of_classes_holds_names_or_line_numbers():
    labels = ["Square", "triangle"]
    assert right_classes(labels, ["square", "TRIANGLE"]) == [{0}, {1}]
    assert right_classes(labels, [1, 0]) == [{1}, {0}]
    with pytest.raises(ValueError, match="the labels of 2 classes in the data are no line of --labels: circle, line"):
        right_classes(labels, ["circle", "square", "line"])
    with pytest.raises(ValueError, match="no line of --labels: 2"):
        right_classes(labels, [2])


def test_lines_are_read_without_the_empty_ones(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("one\n\n two \n")
    assert read_lines(path, "class") == ["one", "two"]
    path.write_text("one\none\n")
    with pytest.raises(ValueError, match="expected one class a line, each once; found 2, 1 different"):
        read_lines(path, "class")


def test_a_template_has_a_place_for_the_label():
    check_templates(["a {}", "{}"])
    with pytest.raises(ValueError, match="template 'a photo': expected a {} where the label goes"):
        check_templates(["{}", "a photo"])
