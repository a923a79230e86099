"""Step 1 by the effect itself: how much the text embedding changes when consecutive layers are skipped.

    python ablation_analysis.py
    python ablation_analysis.py --batch_size 32 --iter_num 10

Entry [i, j] is the mean cosine between a caption's text embedding and the one it gets without the layers i+1 .. j;
symmetric, ones on the diagonal. The other measures compare hidden states; this one also knows what the rest of the model
makes of the difference. It needs no image and no label. The skipped segments are run as a tree of prefixes: about L^3 / 6
calls of a layer a caption. Search it with `--select_measure ablation --score sum`: small changes of an embedding add up.

Writes exp/<model>/ablation_mat_<captions>U.npy, its picture (.png) and its run record (.json).
"""

import argparse
from collections.abc import Sequence

from common import analysis, script
from search_strategy.ablation import ablations


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Effect of skipping consecutive layers on the text embedding of CLIP.")
    parser.set_defaults(measure="ablation", mode="U")
    analysis.add_draw_flags(parser, "ablation")
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    analysis.run(build_parser().parse_args(argv), ablations)


if __name__ == "__main__":
    main()
