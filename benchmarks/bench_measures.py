"""The measures against plain versions of them, side by side in one run: seconds, ratios, largest differences.

    python -m benchmarks.bench_measures --threads 2                # everything; most of the time is the plain SVCCA
    python -m benchmarks.bench_measures --threads 2 --pairs 10     # the plain SVCCA on 10 pairs, its total extrapolated
    python -m benchmarks.bench_measures --quick true               # a look at the tables in seconds, no more

The hidden states are made like a residual stream: a random walk over layers, features of unequal spread in a basis of
each step's own, float32. Three parts: SVCCA of all pairs of layers, against recomputing it for every pair, and against
the matrix products that any way by sums of products needs; distance correlation of one batch; and the memory of SVCCA
over tokens. Ratios and differences are to the plain version in float64; other packages are measured where they are
installed. Nothing else should run at the same time: two busy threads on one core cost more than any algorithm.
"""

import argparse
import functools
import importlib.util
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.frame import fastest, in_own_process, peak_mib, synchronize
from benchmarks.plain_measures import anatome_svcca, dcor_dc, numpy_svcca, per_layer_dc, per_pair_dc, plain_svcca
from common import Record, bounded, format_table, positive_int, script, set_up_logging, switch, whole_number, write_json
from common.cli import Parser
from common.run import select_device
from measures.dc import DC
from measures.svcca import SVCCA

logger = logging.getLogger("comflp")

PARTS = ("svcca", "dc", "tokens")
QUICK = {"samples": 1500, "width": 64, "layers": 5, "dc_batch_sizes": [4, 32], "tokens": 8000}
SVCCA_HEADERS = ("SVCCA, all pairs", "seconds", "faster than plain", "of the products", "difference", "note")
DC_HEADERS = ("DC, one batch", "batch", "ms", "faster than per layer", "than per pair", "difference", "note")
TOKENS_HEADERS = ("SVCCA over tokens", "tokens", "seconds", "peak memory (MiB)")


# --- data


def residual_walk(samples: int, width: int, layers: int, seed: int, device: str) -> list[Tensor]:
    """A random walk over layers: (samples, width) float32 for each; spread of the directions from 1 to 1/30."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1.5, width)
    states, state = [], torch.zeros(samples, width)
    for layer in range(layers):
        rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        step = torch.randn(samples, width, generator=generator) * scales @ rotation
        state = state + (step if layer == 0 else 0.5 * step)
        states.append(state.to(device))
    return states


# --- SVCCA


def strips(stacked: Tensor, width: int) -> None:
    """The products of every layer with itself and the layers after it."""
    for start in range(0, stacked.shape[1], width):
        torch.mm(stacked[:, start : start + width].T, stacked[:, start:])


def our_svcca(states: list[Tensor], batch_size: int, thre: float) -> np.ndarray:
    measure = SVCCA(thre=thre)
    for batch in zip(*(state.split(batch_size) for state in states), strict=True):
        measure.update(batch)
    return measure.matrix()


def chosen_pairs(args: argparse.Namespace) -> tuple[list[tuple[int, int]], float, str]:
    """The pairs on which a per-pair version is timed, the factor from its time to that of all pairs, and a note."""
    pairs = list(itertools.combinations_with_replacement(range(args.layers), 2))
    if not args.pairs or args.pairs >= len(pairs):
        return pairs, 1.0, f"all {len(pairs)} pairs"
    chosen = [pairs[index] for index in np.linspace(1, len(pairs) - 2, args.pairs).round().astype(int)]
    return chosen, len(pairs) / len(chosen), f"EXTRAPOLATED from {len(chosen)} of {len(pairs)} pairs"


def by_pair(function: Callable, states: list[Tensor], args: argparse.Namespace) -> tuple[float, str, dict]:
    """Seconds for all pairs of a function of two layers, what was timed, and the values by pair."""
    pairs, factor, note = chosen_pairs(args)
    values, start = {}, time.perf_counter()
    for i, j in pairs:
        values[i, j] = function(states[i], states[j], args.thre)
        synchronize(args.device)
    return (time.perf_counter() - start) * factor, note, values


def svcca_part(args: argparse.Namespace) -> list[tuple]:
    states = residual_walk(args.samples, args.width, args.layers, args.seed, args.device)
    wide = torch.cat([(state - state.mean(0)).double() for state in states], 1)
    products, _ = fastest(lambda: strips(wide, args.width), args.device, args.repeats)
    rows = [("products alone", products, None, 1.0, None, "")]
    ours = functools.partial(our_svcca, states, args.batch_size, args.thre)
    seconds, matrix = fastest(ours, args.device, args.repeats)
    logger.info("our SVCCA: %.2f s", seconds)
    by_name: dict[str, Callable] = {"plain, per pair": plain_svcca, "plain, per pair, NumPy": numpy_svcca}
    if importlib.util.find_spec("anatome"):
        for dtype in (torch.float64, torch.float32):
            name = f"anatome, {str(dtype).removeprefix('torch.')}"
            by_name[name] = functools.partial(anatome_svcca, dtype=dtype)
    others = {name: by_pair(function, states, args) for name, function in by_name.items()}
    plain_seconds, _, expected = others["plain, per pair"]
    largest = max(abs(matrix[pair] - value) for pair, value in expected.items())
    rows.append(("ours", seconds, plain_seconds / seconds, seconds / products, largest, ""))
    for name, (seconds, note, values) in others.items():
        largest = max(abs(value - expected[pair]) for pair, value in values.items())
        rows.append((name, seconds, plain_seconds / seconds, seconds / products, largest, note))
    if len(others) == 2:
        rows.append(("anatome", None, None, None, None, "not installed"))
    return rows


# --- distance correlation


def our_dc(draws: list[list[Tensor]]) -> np.ndarray:
    measure = DC()
    for states in draws:
        measure.update(states)
    return np.triu(measure.matrix())


def dc_part(args: argparse.Namespace) -> list[tuple]:
    rows = []
    for batch_size in args.dc_batch_sizes:
        rows += in_own_process(dc_rows, batch_size, args)
        spent = {row[0]: f"{row[2]:.2f} ms" for row in rows if row[1] == batch_size and row[2]}
        logger.info("DC of a batch of %d: %s", batch_size, spent)
    return rows


def dc_rows(batch_size: int, args: argparse.Namespace) -> list[tuple]:
    torch.set_num_threads(args.threads or torch.get_num_threads())
    pairs, factor, note = chosen_pairs(args)
    count = max(1, args.dc_rows // batch_size)
    draws = [residual_walk(batch_size, args.width, args.layers, args.seed + draw, args.device) for draw in range(count)]
    per_layer, ours = functools.partial(per_layer_dc, draws), functools.partial(our_dc, draws)
    runs = {  # name: what makes the matrix, what the time counts for, note
        "plain, per layer, float64": (functools.partial(per_layer, torch.float64), 1.0, ""),
        "plain, per layer, float32": (functools.partial(per_layer, torch.float32), 1.0, ""),
        "plain, per pair, float64": (functools.partial(per_pair_dc, draws, pairs), factor, note),
        "ours": (ours, 1.0, ""),
    }
    if importlib.util.find_spec("dcor"):
        importlib.import_module("dcor")  # slow, and not to be timed
        runs["dcor"] = (functools.partial(dcor_dc, draws, pairs), factor, note)
    rows = timed_dc(runs, batch_size, count, args)
    return rows if "dcor" in runs else [*rows, ("dcor", batch_size, None, None, None, None, "not installed")]


def timed_dc(
    runs: dict[str, tuple[Callable, float, str]], batch_size: int, count: int, args: argparse.Namespace
) -> list[tuple]:
    seconds, differences, expected = {}, {}, None
    for name, (run, factor, _) in runs.items():
        repeats = 1 if "per pair" in name or name == "dcor" else args.repeats
        fastest_seconds, matrix = fastest(run, args.device, repeats, at_least_seconds=0.3 if args.repeats > 1 else 0)
        seconds[name] = factor * fastest_seconds / count  # of one batch
        expected = matrix if expected is None else expected
        differences[name] = np.nanmax(np.abs(matrix - expected))
    per_layer, per_pair = (seconds[f"plain, per {what}, float64"] for what in ("layer", "pair"))
    return [
        (name, batch_size, 1000 * spent, per_layer / spent, per_pair / spent, differences[name], runs[name][2])
        for name, spent in seconds.items()
    ]


# --- memory over tokens


def token_run(tokens: int, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds and this process' peak memory in MiB of SVCCA over so many tokens, made as they are needed."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    start, measure = time.perf_counter(), SVCCA(thre=args.thre)
    for number, first in enumerate(range(0, tokens, 1000)):
        rows = min(1000, tokens - first)
        measure.update(residual_walk(rows, args.width, args.layers, args.seed + number, args.device))
    measure.matrix()
    return time.perf_counter() - start, peak_mib()


def tokens_part(args: argparse.Namespace) -> list[tuple]:
    rows = []
    for tokens in (args.tokens // 4, args.tokens):
        seconds, mib = in_own_process(token_run, tokens, args)
        rows.append(("ours", tokens, seconds, mib))
        logger.info("SVCCA over %d tokens: peak %.0f MiB", tokens, mib)
    return rows


# --- command line


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    parser.add_argument("--samples", **whole_number(9600, "samples for SVCCA", 8))
    parser.add_argument("--width", **whole_number(512, "width of a layer", 2))
    parser.add_argument("--layers", **whole_number(13, "hidden states", 2))
    parser.add_argument("--thre", type=bounded(float, 1e-6, 1.0), default=0.99, help="of SVCCA (default: 0.99)")
    parser.add_argument("--batch_size", **whole_number(32, "rows in an SVCCA update"))
    parser.add_argument(
        "--dc_batch_sizes", type=bounded(int, 2), nargs="+", default=[4, 32, 256], help="default: 4 32 256"
    )
    parser.add_argument("--dc_rows", **whole_number(256, "rows in all, in batches of each size", 2))
    parser.add_argument(
        "--tokens", type=bounded(int, 4), default=64_000, help="tokens of the memory part, beside a quarter of it"
    )
    parser.add_argument(
        "--pairs", type=positive_int, help="time the per-pair versions on so many pairs only, extrapolate"
    )
    parser.add_argument("--repeats", **whole_number(3, "runs; the fastest counts"))
    parser.add_argument("--quick", **switch(False, "tiny sizes in place of the sizes' flags"))
    parser.add_argument("--seed", **whole_number(0, "seed of the hidden states", 0))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    set_up_logging()
    args.device = select_device(args.device)
    vars(args).update(QUICK if args.quick else {})
    torch.set_num_threads(args.threads or torch.get_num_threads())
    warnings.filterwarnings("ignore", message=".*samples are too few")
    record, rows = Record(args, args.device), {}
    parts = {"svcca": (svcca_part, SVCCA_HEADERS), "dc": (dc_part, DC_HEADERS), "tokens": (tokens_part, TOKENS_HEADERS)}
    for part in args.parts:
        rows[part] = parts[part][0](args)
    if args.out:
        named = {part: [dict(zip(parts[part][1], row, strict=True)) for row in rows[part]] for part in rows}
        write_json(args.out, {"rows": named, "record": record.content()})
    floats = {
        "svcca": ("", ".2f", ".1f", ".2f", ".0e"),
        "dc": ("", "", ".2f", ".1f", ".1f", ".0e"),
        "tokens": ("", "", ".1f", ".0f"),
    }
    print("\n\n".join(format_table(rows[part], parts[part][1], floats[part]) for part in rows))


if __name__ == "__main__":
    main()
