"""Write a CLIP whose text transformer has every layer several times: a deeper model to search, where none is at hand.

    python -m tools.deepen_clip --model exp/iconclip --output_dir exp/iconclip24

Depth up-scaling by repetition ("stacking", Gong et al. 2019). What a layer adds to its input is divided by the number
of its copies, so the deeper model begins near the old one; tune it (`clip_finetune_train.py --num_clip_layers 0`)
before use.
"""

import argparse
import copy
from pathlib import Path

import torch

from common import atomic_folder, script, whole_number
from common.files import DEFAULT_MODEL, check_new_folder
from models import Clip, load_clip

MOST_LAYERS = 1000


def deepen(clip: Clip, copies: int) -> None:
    """Replace each text layer by `copies` of it, one after the other, each with 1 / `copies` of its two branches."""
    layers = clip.stack.layers
    for layer in layers:
        for output in (layer.self_attn.out_proj, layer.mlp.fc2):
            with torch.no_grad():
                output.weight /= copies
                output.bias /= copies
    deeper = [layer if number == 0 else copy.deepcopy(layer) for layer in layers for number in range(copies)]
    # in place: model and stack hold this very list
    layers.extend(deeper)
    del layers[: len(layers) - len(deeper)]
    clip.model.config.text_config.num_hidden_layers = len(layers)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write a CLIP with every text layer several times.")
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="CLIP: local folder or hub name (default: bundled)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--copies", **whole_number(2, "of each layer"))
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check_new_folder(args.output_dir)
    clip = load_clip(args.model, "cpu")
    if clip.num_layers * args.copies > MOST_LAYERS:
        raise ValueError(f"--copies {args.copies} makes {clip.num_layers * args.copies} layers; at most {MOST_LAYERS}")
    deepen(clip, args.copies)
    with atomic_folder(args.output_dir) as folder:
        clip.model.save_pretrained(folder)
        clip.processor.save_pretrained(folder)
    print(f"wrote {args.output_dir}: {clip.num_layers} text layers")


if __name__ == "__main__":
    main()
