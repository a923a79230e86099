"""Export a CLIP for other runtimes, load the export there, and compare it with the original on real captions.

    python export_clip.py --model exp/clip12to6_exp1 --to onnx
    python export_clip.py --model exp/clip12to6_exp1 --to open_clip
    python export_clip.py --model exp/clip12to6_exp1 --to text

onnx: the text encoder alone, text_encoder.onnx, from `input_ids` (batch, length), both free, to `text_embeds` (batch,
d), L2-normalised unless `--normalize false`. Ids after the first end token are never read, so padding needs no mask.
open_clip: both towers, for `open_clip.create_model_from_pretrained("local-dir:<folder>")`.
text: the text encoder alone, for `CLIPTextModelWithProjection.from_pretrained("<folder>")`.

Each goes to a folder with the tokenizer and an export.json. A difference above 1e-4 of an embedding's length is an
error, and no folder is left. Everything runs on the CPU. The runtimes of onnx and open_clip are in
requirements-export.txt.
"""

import argparse
import importlib
import logging
from pathlib import Path

import torch

from common import (
    Record,
    add_common_flags,
    atomic_folder,
    boolean,
    data_flags,
    format_table,
    model_dir,
    positive_int,
    script,
    set_up,
    write_json,
)
from data import load_pairs
from models import load_clip
from models.exports import EXPORTS, OnnxOptions, largest_difference, original

RUNTIMES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "open_clip": ("open_clip",), "text": ()}
RECORD_NAME = "export.json"
TOLERANCE = 1e-4  # of the length of the original's embedding
NUM_IMAGES = 32


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Export a CLIP for other runtimes and check the export.")
    parser.add_argument("--to", choices=tuple(EXPORTS), required=True, help="kind of export")
    parser.add_argument("--output_dir", help="folder under exp/ (default: <model>/<to>)")
    parser.add_argument("--ids", choices=("int64", "int32"), help="type of the ids, for onnx (default: int64)")
    parser.add_argument("--normalize", type=boolean, help="L2-normalised embeddings, for onnx (default: true)")
    parser.add_argument("--num_captions", type=positive_int, default=256, help="to compare on (default: 256)")
    add_common_flags(parser, max_pairs=False)
    return parser


def onnx_options(args: argparse.Namespace) -> OnnxOptions:
    given = {name: value for name in ("ids", "normalize") if (value := getattr(args, name)) is not None}
    if given and args.to != "onnx":
        raise ValueError(f"--{next(iter(given))} is for --to onnx only, not for --to {args.to}")
    return OnnxOptions(**given)


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


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    options = onnx_options(args)
    check_runtimes(args.to)
    set_up(args)
    record = Record(args, "cpu")
    logging.getLogger().setLevel(logging.ERROR)  # the exporters tell at length what they do
    clip = load_clip(args.model)
    captions, images = real_pairs(args)
    default_dir = model_dir(args.exp_dir, args.model) / args.to
    output_dir = args.exp_dir / args.output_dir if args.output_dir else default_dir
    write, read = EXPORTS[args.to]
    check_export_folder(output_dir)
    with atomic_folder(output_dir) as folder, torch.no_grad():
        write(clip, folder, options)
        exported = read(folder, captions, images)
        normalized = args.to == "onnx" and options.normalize
        expected = original(clip, captions, images, normalized)
        differences = {what: largest_difference(exported[what], expected[what]) for what in exported}
        check_differences(differences, args.to)
        record.note(model=clip.identity(), normalized=normalized, largest_difference=differences)
        record.note(captions=len(captions), images=len(images))
        write_json(folder / RECORD_NAME, record.content())
    rows = [(what, len(exported[what]), f"{difference:.1e}") for what, difference in differences.items()]
    print(format_table(rows, ("compared on", "number", "largest difference"), disable_numparse=True))
    print(f"written to {output_dir}")


if __name__ == "__main__":
    main()
