"""What the measures give for layers that have nothing in common: a Markdown table, as in `measures/README.md`.

    python -m benchmarks.independence_floor --threads 1

Thirteen independent Gaussian layers make 78 pairs a draw; printed are the mean over pairs and draws, the standard
deviation, and, where there is one, what theory expects. The number of samples decides, not the data: compare a real
matrix with that of `Shuffled` layers, which have the real spectra too.
"""

import argparse
import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tabulate import tabulate

from common import positive_int, script, set_up_logging, whole_number
from common.cli import Parser
from measures import MEASURES

LAYERS = 13
HEADERS = ("measure", "width", "samples", "mean", "standard deviation", "expected")
SVCCA_CASES = ((512, 320), (512, 2000), (512, 9600), (707, 9600))  # width, samples; about 700 directions of 707
DC_SAMPLES = (4, 32, 256, 1024)


def gaussian_layers(samples: int, width: int, layers: int, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(samples, width, generator=generator) for _ in range(layers)]


def entries(name: str, options: dict, shape: tuple[int, int], draws: int, generator: torch.Generator) -> np.ndarray:
    """The entries above the diagonal of the matrices of so many draws, each of `shape` (samples, width)."""
    layers = 3 if name in ("svcca", "pwcca") else LAYERS
    values = []
    for _ in range(draws):
        measure = MEASURES[name](**options)
        measure.update(gaussian_layers(*shape, layers, generator))
        values.append(measure.matrix()[np.triu_indices(layers, 1)])
    return np.concatenate(values)


def mean_canonical_correlation(directions: int, samples: int) -> float:
    """Expected for two independent subspaces of dimension k among n - 1: Wachter's law with both ratios k / (n - 1).

    The squares have the density sqrt(x (4 r (1 - r) - x)) / (2 pi r x (1 - x)) on [0, 4 r (1 - r)], r = k / (n - 1) at
    most 1/2, and the mean r; beyond 1/2 the subspaces share 2 k - (n - 1) directions, with correlation 1.
    """
    ratio = directions / (samples - 1)
    shared = max(0.0, 2 - 1 / ratio)
    ratio = min(ratio, 1 - ratio)
    angle = (np.arange(20_000) + 0.5) * math.pi / 20_000
    edge = 4 * ratio * (1 - ratio)
    x = edge * np.sin(angle / 2) ** 2
    # dx = edge sin(angle) / 2 d angle, and sqrt(x (edge - x)) = edge sin(angle) / 2
    weight = (edge * np.sin(angle) / 2) ** 2 / (2 * math.pi * ratio * x * (1 - x)) * math.pi / 20_000
    return shared + (1 - shared) * float((np.sqrt(x) * weight).sum())


def svcca_rows(generator: torch.Generator) -> Iterator[tuple]:
    for width, samples in SVCCA_CASES:
        measure = MEASURES["svcca"]()
        measure.update(gaussian_layers(samples, width, 2, generator))
        directions = measure.diagnostics()["effective_dims"][0]
        values = entries("svcca", {}, (samples, width), 1, generator)
        expected = mean_canonical_correlation(directions, samples)
        yield f"svcca, {directions} directions", width, samples, values.mean(), values.std(), f"{expected:.3f}"


def dc_rows(width: int, draws: int, generator: torch.Generator) -> Iterator[tuple]:
    for estimator in ("biased", "unbiased"):
        for samples in DC_SAMPLES:
            times = max(1, min(draws, draws * 1024 // samples**2))  # large draws scatter little, and cost more
            values = entries("dc", {"estimator": estimator}, (samples, width), times, generator)
            expected = "0" if estimator == "unbiased" else ""
            yield f"dc, {estimator}", width, samples, values.mean(), values.std(), expected


def other_rows(width: int, generator: torch.Generator) -> Iterator[tuple]:
    """The rest at 2,000 samples; what is expected for large widths."""
    samples = 2000
    share = width / (samples + width)
    others = {
        "pwcca": ({}, ""),
        "cka": ({}, f"{share:.3f}"),
        "cka debiased": ({"debiased": True}, "0"),
        "cosine": ({}, "0"),
        "angular": ({}, "0.5"),
        "covcorr": ({}, f"{1 - share:.3f}"),
        "delta_mean": ({}, f"{1 - math.sqrt(0.5):.3f}"),
    }
    for name, (options, expected) in others.items():
        values = entries(name.split()[0], options, (samples, width), 1, generator)
        yield name, width, samples, values.mean(), values.std(), expected


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--width", **whole_number(512, "width of a layer", 2))
    parser.add_argument("--draws", **whole_number(64, "draws of the smallest DC"))
    parser.add_argument("--seed", **whole_number(0, "seed of the layers", 0))
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's choice)")
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    set_up_logging()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    warnings.filterwarnings("ignore", message=".*samples are too few")
    generator = torch.Generator().manual_seed(args.seed)
    rows = [*svcca_rows(generator), *dc_rows(args.width, args.draws, generator), *other_rows(args.width, generator)]
    print(tabulate(rows, HEADERS, tablefmt="pipe", floatfmt=("", "", "", ".3f", ".3f", ""), disable_numparse=[5]))


if __name__ == "__main__":
    main()
