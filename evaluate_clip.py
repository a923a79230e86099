"""The figures of one CLIP, or of several side by side: retrieval, zero-shot classification, size and speed.

    python evaluate_clip.py --model exp/iconclip exp/clip12to6_exp1
    python evaluate_clip.py --model exp/iconclip exp/clip12to6_exp1 --labels examples/icon_labels.txt \
        --templates examples/icon_templates.txt

The first model is the reference. Writes evaluation_<split>*.json and .png to its folder under exp/. Zero-shot
classification needs `--labels`, and the right answer from `--label_column`; without one, a label is right for an image
where a caption of the image has it as a word, and images without any are left out. That is how the icons are used:
"heart" for "heart filled".
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from matplotlib.figure import Figure

from common import (
    DEFAULT_DATASET,
    Record,
    add_common_flags,
    data_flags,
    format_table,
    model_dir,
    plots,
    read_lines,
    safe_name,
    script,
    set_up,
    shorten,
    show_progress,
    write_json,
)
from data import SPLITS, ImageCaptionPairs, load_labels, load_pairs
from models import Encoder, load_encoder
from models.open_clip_folder import find_open_clip
from models.speed import measure_milliseconds
from tasks.image_retrieval import retrieval_task
from tasks.zero_shot import check_templates, class_embeddings, classes_in_captions, right_classes, zero_shot_accuracy

TEMPLATE = "a photo of a {}"
TIMED_CAPTIONS = {1: 64, 64: 256}  # batch size: captions
DIRECTIONS = {"text_to_image": "text > image", "image_to_text": "image > text"}
RECALLS = {f"{way}_recall_at_{k}": f"{label} R@{k}" for way, label in DIRECTIONS.items() for k in (1, 5, 10)}
ACCURACIES = {f"zero_shot_accuracy_at_{k}": f"zero-shot accuracy@{k}" for k in (1, 5)}
MILLISECONDS = {
    f"milliseconds_batch_{size}_{length}": f"ms a caption, batch {size}, {text}"
    for size in TIMED_CAPTIONS
    for length, text in (("full_length", "model's length"), ("cut", "cut to the longest"))
}
SIZES = {"text_layers": "text layers", "text_parameters": "text parameters", "weights_bytes": "weights on disk, MB"}
RULE = (
    "Recall: a caption finds its own image; an image finds any of its captions. Ties count against. Milliseconds: token ids "
    "to embedding."
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Retrieval, zero-shot classification, size and speed of CLIP models.")
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test", help="all: every row (default: test)")
    zero_shot = parser.add_argument_group("zero-shot classification")
    zero_shot.add_argument("--labels", type=Path, help="file with the name of one class a line (default: none)")
    template = zero_shot.add_mutually_exclusive_group()
    template.add_argument("--templates", type=Path, help="file with one template a line; a class is their mean")
    template.add_argument("--template", default=TEMPLATE, help="one template (default: '%(default)s')")
    zero_shot.add_argument(
        "--label_column", help="column of the classes, as names or line numbers from 0 (default: words of the captions)"
    )
    add_common_flags(parser, several_models=True, target_column=True)
    return parser


def read_zero_shot(args: argparse.Namespace, pairs: ImageCaptionPairs) -> tuple[list[str], list[str], list[set[int]]]:
    """Labels, templates and the right classes of each image; no labels where `--labels` is not given."""
    if args.labels is None:
        if args.templates or args.label_column or args.template != TEMPLATE:
            raise ValueError("--templates, --template and --label_column need --labels, a file with one class a line")
        return [], [], []
    labels = read_lines(args.labels, "class")
    templates = read_lines(args.templates, "template") if args.templates else [args.template]
    check_templates(templates)
    if args.label_column:
        return labels, templates, right_classes(labels, load_labels(pairs, args.label_column))
    return labels, templates, classes_in_captions(labels, pairs.captions, pairs.image_index)


def evaluate(encoder: Encoder, pairs: ImageCaptionPairs, targets: torch.Tensor, zero_shot: tuple) -> dict:
    """All figures of a model, flat. `targets`: the embeddings of the images of `pairs`, or of their other texts."""
    labels, templates, right = zero_shot
    figures = {"text_layers": encoder.num_layers, "text_parameters": encoder.num_parameters()}
    task = retrieval_task(encoder, targets, pairs.image_index)
    figures |= {"weights_bytes": weights_bytes(encoder.name)} | task.score(encoder.embeddings(pairs.captions)).figures
    if labels:
        figures |= zero_shot_accuracy(targets, class_embeddings(encoder.embeddings, labels, templates), right)
    for size, captions in TIMED_CAPTIONS.items():
        for length in ("full_length", "cut"):
            figures[f"milliseconds_batch_{size}_{length}"] = measure_milliseconds(
                encoder, pairs.captions[:captions], size, full_length=length == "full_length"
            )
    return figures


def weights_bytes(model: str) -> int:
    """Bytes of the files of weights of a model, both towers."""
    folder = find_open_clip(model) or Path(model)
    if not folder.is_dir():
        folder = Path(snapshot_download(model, local_files_only=True))
    files = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    return sum(path.stat().st_size for path in files)


def short_names(models: Sequence[str]) -> list[str]:
    """The last part of each model's path, two for a `best` or `last`; the whole names where two would be equal."""
    paths = [Path(model) for model in models]
    names = ["/".join(path.parts[-2:]) if path.name in ("best", "last") else path.name for path in paths]
    return names if len(set(names)) == len(names) else list(models)


def result_path(args: argparse.Namespace, names: Sequence[str]) -> Path:
    """`evaluation_<split>[_<data set>][_vs_<other models>].json` in the folder of the first model."""
    parts = ["evaluation", args.split]
    parts += [safe_name(args.dataset)] if args.dataset != DEFAULT_DATASET else []
    parts += [f"max{args.max_pairs}"] if args.max_pairs else []
    parts += ["vs", *map(safe_name, names[1:])] if len(names) > 1 else []
    return model_dir(args.exp_dir, args.model[0]) / f"{shorten('_'.join(parts))}.json"


def print_table(names: Sequence[str], figures: Sequence[dict]) -> None:
    """A row a figure, a column a model, and for every other model its share of the reference."""
    percent = dict.fromkeys((*RECALLS, *ACCURACIES), 100) | {"weights_bytes": 1e-6}
    rows = []
    for key, label in (SIZES | {"task_loss": "task loss"} | RECALLS | ACCURACIES | MILLISECONDS).items():
        if key in figures[0]:
            values = [of_model[key] * percent.get(key, 1) for of_model in figures]
            shares = [f"{value / values[0]:.1%}" if values[0] else None for value in values[1:]]
            digits = 3 if key in MILLISECONDS else 4 if key == "task_loss" else 1
            rows.append((label, *(f"{v:,}" if isinstance(v, int) else f"{v:.{digits}f}" for v in values), *shares))
    headers = ("figure (recall and accuracy in %)", *names, *(f"{name} / {names[0]}" for name in names[1:]))
    print(format_table(rows, headers, disable_numparse=True, colalign=("left", *["right"] * (len(headers) - 1))))
    print(RULE)


def draw(names: Sequence[str], figures: Sequence[dict], path: Path, title: str) -> None:
    """Bars of recall (and accuracy) and of milliseconds, one colour a model."""
    quality = {key: label for key, label in (RECALLS | ACCURACIES).items() if key in figures[0]}
    figure = Figure(figsize=(13, 4.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(len(quality), len(MILLISECONDS) + 1))
    width = 0.8 / len(names)
    for number, (name, of_model) in enumerate(zip(names, figures, strict=True)):
        legend = f"{name}: {of_model['text_layers']} layers, {of_model['text_parameters'] / 1e6:.1f} M parameters"
        for axes, labels, scale, form in ((left, quality, 100, "%.1f"), (right, MILLISECONDS, 1, "%.2f")):
            bars = axes.bar(
                np.arange(len(labels)) + (number - (len(names) - 1) / 2) * width,
                [scale * of_model[key] for key in labels],
                width * 0.94,
                label=legend,
                color=f"C{number}",
            )
            axes.bar_label(bars, fmt=form, fontsize=7, padding=1)
    for axes, labels, what in ((left, quality, "%"), (right, MILLISECONDS, "milliseconds a caption")):
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
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=8, frameon=False
    )
    plots.save(figure, path)


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    device = set_up(args)
    record = Record(args, device)
    cache = model_dir(args.exp_dir, args.model[0]) / "cache"
    encoders = [load_encoder(model, device=device) for model in args.model]
    if args.labels and args.target_column:
        raise ValueError("--labels classifies images: leave out --target_column")
    pairs = load_pairs(args.dataset, args.split, **data_flags(args))
    read_zero_shot(args, pairs)  # wrong labels are found before the work
    record.note_data(data=pairs)
    figures = []
    for encoder in encoders:
        # of texts the reference makes the index, which stays; images may have been trained with
        embedder = encoders[0] if args.target_column else encoder
        kept, targets = embedder.embed_pairs(pairs, cache, show_progress())
        figures.append(evaluate(encoder, kept, targets, read_zero_shot(args, kept)))
    names = short_names(args.model)
    path = result_path(args, names)
    models = [
        {"name": name, **encoder.identity(), **of_model}
        for name, encoder, of_model in zip(names, encoders, figures, strict=True)
    ]
    write_json(path, {"models": models, "data": kept.identity(), "rule": RULE, "record": record.content()})
    draw(names, figures, path.with_suffix(".png"), f"{args.dataset}, {args.split}: {len(kept):,} captions")
    print_table(names, figures)
    print(f"written to {path} and .png")


if __name__ == "__main__":
    main()
