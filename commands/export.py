"""An export written, read again and compared: `export_clip.py` after its flags."""

import argparse
import importlib
import logging
from pathlib import Path

import torch

from common import Record, atomic_folder, data_flags, files, format_table, model_dir, set_up, write_json
from data import load_pairs
from models import load_encoder
from models.exports import EXPORTS, Options, check_kind, largest_difference, original

RUNTIMES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "open_clip": ("open_clip",), "text": ()}
OWNERS = {"ids": "onnx", "normalize": "onnx", "hub_name": "open_clip"}  # the kind that a flag is for
RECORD_NAME = "export.json"
TOLERANCE = 1e-4  # of the length of the original's embedding
NUM_IMAGES = 32


def run(args: argparse.Namespace) -> None:
    """From the flags to a folder, and a printed table of differences."""
    options = read_options(args)
    check_runtimes(args.to)
    default_dir = model_dir(args.exp_dir, args.model) / args.to
    output_dir = files.run_dir(args.exp_dir, args.output_dir) if args.output_dir else default_dir
    check_export_folder(output_dir)
    set_up(args)
    record = Record(args, "cpu")
    logging.getLogger().setLevel(logging.ERROR)  # the exporters tell at length what they do
    encoder = load_encoder(args.model)
    check_kind(encoder, args.to)
    captions, images = real_pairs(args)
    write, read = EXPORTS[args.to]
    with atomic_folder(output_dir) as folder, torch.no_grad():
        write(encoder, folder, options)
        exported = read(folder, captions, images)
        normalized = args.to == "onnx" and options.normalize
        expected = original(encoder, captions, images, normalized)
        differences = {what: largest_difference(exported[what], expected[what]) for what in exported}
        check_differences(differences, args.to)
        record.note(model=encoder.identity(), normalized=normalized, largest_difference=differences)
        record.note(captions=len(captions), images=len(images))
        write_json(folder / RECORD_NAME, record.content())
    rows = [(what, len(exported[what]), f"{difference:.1e}") for what, difference in differences.items()]
    print(format_table(rows, ("compared on", "number", "largest difference"), disable_numparse=True))
    print(f"written to {output_dir}")


def read_options(args: argparse.Namespace) -> Options:
    given = {name: value for name in OWNERS if (value := getattr(args, name)) is not None}
    for name in given:
        if args.to != OWNERS[name]:
            raise ValueError(f"--{name} is for --to {OWNERS[name]} only, not for --to {args.to}")
    return Options(**given)


def check_runtimes(to: str) -> None:
    for module in RUNTIMES[to]:
        try:
            importlib.import_module(module)
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
            raise ValueError(
                f"--to {to} needs {module}, which cannot be imported ({error}); pip install -r requirements-export.txt"
            ) from error


def check_differences(differences: dict[str, float], to: str) -> None:
    for what, difference in differences.items():
        if difference > TOLERANCE:
            raise ValueError(
                f"the export --to {to} differs from the model by {difference:.2g} on {what}, more than {TOLERANCE:g}; "
                "nothing was written"
            )


def check_export_folder(path: Path) -> None:
    """Raise ValueError where something else than an earlier export would be replaced."""
    if path.is_dir() and any(path.iterdir()) and not (path / RECORD_NAME).is_file():
        raise ValueError(f"{path} holds something else than an export; pass another --output_dir")


def real_pairs(args: argparse.Namespace) -> tuple[list[str], list]:
    """Captions of the validation split, and for open_clip a few of its images."""
    pairs = load_pairs(args.dataset, "validation", images=args.to == "open_clip", **data_flags(args))
    images = [] if pairs.images is None else [pairs.images[i] for i in range(min(NUM_IMAGES, len(pairs.images)))]
    return pairs.captions[: args.num_captions], [image for image in images if image is not None]
