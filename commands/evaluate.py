"""The figures of models side by side: `evaluate_clip.py` after its flags."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from matplotlib.figure import Figure

from common import Record, data_flags, files, format_table, plots, set_up, show_progress
from data import ImageCaptionPairs, load_labels, load_pairs
from models import Encoder, load_encoder
from models.open_clip_folder import find_open_clip
from models.speed import measure_milliseconds
from tasks.base import Task
from tasks.distance import Distance
from tasks.image_retrieval import retrieval_task
from tasks.retrieval import RECALL_AT
from tasks.zero_shot import (
    ACCURACY_AT,
    check_templates,
    class_embeddings,
    classes_in_captions,
    right_classes,
    zero_shot_accuracy,
)

TEMPLATE = "a photo of a {}"
TIMED_CAPTIONS = {1: 64, 64: 256}  # batch size: captions
DIRECTIONS = {"text_to_image": "text > image", "image_to_text": "image > text"}
RECALLS = {f"{way}_recall_at_{k}": f"{label} R@{k}" for way, label in DIRECTIONS.items() for k in RECALL_AT}
ACCURACIES = {f"zero_shot_accuracy_at_{k}": f"zero-shot accuracy@{k}" for k in ACCURACY_AT}
MILLISECONDS = {
    f"milliseconds_batch_{size}_{length}": f"ms a caption, batch {size}, {text}"
    for size in TIMED_CAPTIONS
    for length, text in (("full_length", "model's length"), ("cut", "cut to the longest"))
}
DISTANCE = "distance_to_the_first"
SIZES = {"text_layers": "text layers", "text_parameters": "text parameters", "weights_bytes": "weights on disk, MB"}
RULE = (
    "Recall: a caption finds its own image; an image finds any of its captions. Ties count against. Milliseconds: "
    "token ids to embedding."
)


def run(args: argparse.Namespace) -> None:
    """From the flags to the files in the first model's folder under exp/, and a printed table."""
    check_flags(args)
    labels, templates = read_labels(args)
    device = set_up(args)
    record = Record(args, device)
    cache = files.model_dir(args.exp_dir, args.model[0]) / "cache"
    encoders = [load_encoder(model, device=device) for model in args.model]
    if args.target_column or not args.images:
        check_widths(encoders)
    pairs = load_pairs(args.dataset, args.split, images=args.images, **data_flags(args))
    find_classes(args, labels, pairs)  # wrong labels are found before the work
    record.note_data(data=pairs)
    figures, kept = [], pairs
    full = None if args.images else Distance(encoders[0].embeddings(pairs.captions))
    for encoder in encoders:
        if full:
            figures.append(evaluate(encoder, pairs.captions, full))
            continue
        # of texts the reference makes the index, which stays; images may have been trained with
        embedder = encoders[0] if args.target_column else encoder
        kept, targets = embedder.embed_pairs(pairs, cache, show_progress())
        figures.append(evaluate(encoder, kept.captions, retrieval_task(encoder, targets, kept.image_index)))
        if labels:
            right = find_classes(args, labels, kept)
            classes = class_embeddings(encoder.embeddings, labels, templates)
            figures[-1] |= zero_shot_accuracy(targets, classes, right)
    names = short_names(args.model)
    path = result_path(args, names)
    models = [
        {"name": name, **encoder.identity(), **of_model}
        for name, encoder, of_model in zip(names, encoders, figures, strict=True)
    ]
    files.write_json(path, {"models": models, "data": kept.identity(), "rule": RULE, "record": record.content()})
    draw(names, figures, path.with_suffix(".png"), f"{args.dataset}, {args.split}: {len(kept):,} captions")
    print_table(names, figures)
    print(f"written to {path} and .png")


def check_flags(args: argparse.Namespace) -> None:
    """Rules between flags."""
    if args.labels and (args.target_column or not args.images):
        raise ValueError("--labels classifies images: leave out --target_column and --images false")
    if args.target_column and not args.images:
        raise ValueError("--images false takes captions alone: leave out --target_column")
    if args.labels is None and (args.templates or args.label_column or args.template):
        raise ValueError("--templates, --template and --label_column need --labels, a file with one class a line")


def read_labels(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Labels and templates; none where `--labels` is not given."""
    if args.labels is None:
        return [], []
    labels = files.read_lines(args.labels, "class")
    templates = files.read_lines(args.templates, "template") if args.templates else [args.template or TEMPLATE]
    check_templates(templates)
    return labels, templates


def check_widths(encoders: Sequence[Encoder]) -> None:
    """Raise ValueError where what the first model embeds cannot be compared with what another one does."""
    reference = encoders[0]
    for encoder in encoders:
        if encoder.dim != reference.dim:
            raise ValueError(
                f"{encoder.name} has embeddings of width {encoder.dim}, {reference.name} of {reference.dim}: their "
                "distance means nothing; leave out one of them"
            )


def find_classes(args: argparse.Namespace, labels: list[str], pairs: ImageCaptionPairs) -> list[set[int]]:
    """The right classes of each image; none where there are no labels."""
    if not labels:
        return []
    if args.label_column:
        return right_classes(labels, load_labels(pairs, args.label_column))
    return classes_in_captions(labels, pairs.captions, pairs.image_index)


def evaluate(encoder: Encoder, captions: Sequence[str], task: Task) -> dict:
    """All figures of a model but those of zero-shot classification, flat."""
    figures = {"text_layers": encoder.num_layers, "text_parameters": encoder.num_parameters()}
    scores = task.score(encoder.embeddings(captions))
    figures |= {"weights_bytes": weights_bytes(encoder.name), **scores.figures}
    if isinstance(task, Distance):
        figures[DISTANCE] = scores.values.mean().item()
    for size, number in TIMED_CAPTIONS.items():
        for length in ("full_length", "cut"):
            figures[f"milliseconds_batch_{size}_{length}"] = measure_milliseconds(
                encoder, captions[:number], size, full_length=length == "full_length"
            )
    return figures


def weights_bytes(model: str) -> int:
    """Bytes of the files of weights of a model, both towers."""
    folder = find_open_clip(model) or Path(model)
    if not folder.is_dir():
        folder = Path(snapshot_download(model, local_files_only=True))
    weights = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    return sum(path.stat().st_size for path in weights)


def short_names(models: Sequence[str]) -> list[str]:
    """The last part of each model's path, two for a `best` or `last`; the whole names where two would be equal."""
    paths = [Path(model) for model in models]
    names = ["/".join(path.parts[-2:]) if path.name in ("best", "last") else path.name for path in paths]
    return names if len(set(names)) == len(names) else list(models)


def result_path(args: argparse.Namespace, names: Sequence[str]) -> Path:
    """`evaluation_<split>[_<data set>][_<flags of the data>][_vs_<other models>].json`, in the first model's folder."""
    parts = ["evaluation", args.split, files.dataset_tag(args.dataset)]
    parts += [f"max{args.max_pairs}"] if args.max_pairs else []
    columns = ("caption_column", "image_column", "target_column", "label_column")
    parts += [f"{name}_{files.safe_name(getattr(args, name))}" for name in columns if getattr(args, name)]
    parts += [f"labels_{files.safe_name(args.labels.name)}"] if args.labels else []
    parts += [] if args.images else ["captions"]
    parts += ["vs", *map(files.safe_name, names[1:])] if len(names) > 1 else []
    return files.model_dir(args.exp_dir, args.model[0]) / f"{files.shorten('_'.join(filter(None, parts)))}.json"


def print_table(names: Sequence[str], figures: Sequence[dict]) -> None:
    """A row a figure, a column a model, and for every other model its share of the reference."""
    percent = dict.fromkeys((*RECALLS, *ACCURACIES), 100) | {"weights_bytes": 1e-6}
    rows = []
    losses = {"task_loss": "task loss", DISTANCE: f"distance to {names[0]}"}
    for key, label in (SIZES | losses | RECALLS | ACCURACIES | MILLISECONDS).items():
        if key in figures[0]:
            values = [of_model[key] * percent.get(key, 1) for of_model in figures]
            shares = [f"{value / values[0]:.1%}" if values[0] else None for value in values[1:]]
            digits = 3 if key in MILLISECONDS else 4 if key in losses else 1
            rows.append((label, *(f"{v:,}" if isinstance(v, int) else f"{v:.{digits}f}" for v in values), *shares))
    headers = ("figure (recall and accuracy in %)", *names, *(f"{name} / {names[0]}" for name in names[1:]))
    print(format_table(rows, headers, disable_numparse=True, colalign=("left", *["right"] * (len(headers) - 1))))
    if any(key in figures[0] for key in RECALLS):
        print(RULE)


def draw(names: Sequence[str], figures: Sequence[dict], path: Path, title: str) -> None:
    """Bars of recall (and accuracy) and of milliseconds, one colour a model."""
    quality = {key: label for key, label in (RECALLS | ACCURACIES).items() if key in figures[0]}
    panels = [(quality, 100, "%.1f", "%")] if quality else []
    panels.append((MILLISECONDS, 1, "%.2f", "milliseconds a caption"))
    figure = Figure(figsize=(13, 4.6), dpi=150, layout="constrained")
    axes_of_all = figure.subplots(
        1, len(panels), width_ratios=[len(labels) + 1 for labels, *_ in panels], squeeze=False
    )[0]
    width = 0.8 / len(names)
    for number, (name, of_model) in enumerate(zip(names, figures, strict=True)):
        legend = f"{name}: {of_model['text_layers']} layers, {of_model['text_parameters'] / 1e6:.1f} M parameters"
        for axes, (labels, scale, form, _) in zip(axes_of_all, panels, strict=True):
            bars = axes.bar(
                np.arange(len(labels)) + (number - (len(names) - 1) / 2) * width,
                [scale * of_model[key] for key in labels],
                width * 0.94,
                label=legend,
                color=f"C{number}",
            )
            axes.bar_label(bars, fmt=form, fontsize=7, padding=1)
    for axes, (labels, _, _, what) in zip(axes_of_all, panels, strict=True):
        texts = [
            label.replace("ms a caption, ", "").replace(", ", "\n").replace(" R@", "\nR@") for label in labels.values()
        ]
        axes.set_xticks(
            np.arange(len(labels)), [text.replace("zero-shot ", "zero-shot\n") for text in texts], fontsize=8
        )
        axes.set_ylabel(what)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.legend(
        *axes_of_all[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(names),
        fontsize=8,
        frameon=False,
    )
    plots.save(figure, path)
