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

from common.cli import Parser, add_common_flags, choice, script, switch, whole_number

KINDS = {
    "onnx": "the text encoder for ONNX Runtime",
    "open_clip": "both towers for open_clip",
    "text": "the text encoder for transformers",
}
ID_TYPES = {"int64": "as transformers' tokenizers give them", "int32": "as some runtimes want them"}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--to", required=True, **choice(KINDS, None))
    parser.add_argument("--output_dir", help="folder under exp/ (default: <model>/<to>)")
    parser.add_argument("--ids", **choice(ID_TYPES, None, "type of the ids, for onnx, default int64"))
    parser.add_argument("--normalize", **switch(None, "L2-normalised embeddings, for onnx (default: true)"))
    what = "owner/name where the folder will be uploaded: open_clip looks there for the tokenizer (default: none)"
    parser.add_argument("--hub_name", help=what)
    parser.add_argument("--num_captions", **whole_number(256, "to compare on"))
    add_common_flags(parser, max_pairs=False)
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from commands.export import run

    run(args)


if __name__ == "__main__":
    main()
