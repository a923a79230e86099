"""The figures of one model, or of several side by side: retrieval, zero-shot classification, size and speed.

    python evaluate_clip.py --model exp/iconclip exp/clip12to6_exp1
    python evaluate_clip.py --model exp/iconclip exp/clip12to6_exp1 --labels examples/icon_labels.txt \
        --templates examples/icon_templates.txt

The first model is the reference. Writes evaluation_<split>*.json and .png to its folder under exp/. Zero-shot
classification needs `--labels`, and the right answer from `--label_column`; without one, a label is right for an image
where a caption of the image has it as a word, and images without any are left out. That is how the icons are used:
"heart" for "heart filled".
"""

import argparse
from pathlib import Path

from common import SPLITS, add_common_flags, script, switch
from common.cli import Parser, plain_text


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test", help="all: every row (default: test)")
    what = "false: captions alone, by the distance of their embeddings to the first model's"
    parser.add_argument("--images", **switch(True, what))
    zero_shot = parser.add_argument_group("zero-shot classification")
    zero_shot.add_argument("--labels", type=Path, help="file with the name of one class a line (default: none)")
    template = zero_shot.add_mutually_exclusive_group()
    template.add_argument("--templates", type=Path, help="file with one template a line; a class is their mean")
    template.add_argument("--template", type=plain_text, help="one template (default: 'a photo of a {}')")
    zero_shot.add_argument(
        "--label_column", help="column of the classes, as names or line numbers from 0 (default: words of the captions)"
    )
    add_common_flags(parser, several_models=True, target_column=True)
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from commands.evaluate import run

    run(args)


if __name__ == "__main__":
    main()
