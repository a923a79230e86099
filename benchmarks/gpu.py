"""A GPU against the CPU and against the plain way on the same GPU: analysis, repair, fine search and training.

    python -m benchmarks.gpu --out gpu.json                          # on a CUDA device, everything
    python -m benchmarks.gpu --device cpu --quick true               # a look at the table at tiny sizes

Models: the bundled one (`--model`), and the text towers of CLIP B/32, L/14 and H/14 in full size, made from
configuration with fresh weights and the tokenizer of `--model`. Each part is timed beside the way one writes it first,
in the same precision where it has one, on the same device (on a few pairs of layers, maps or proposals, and
extrapolated from them), and its result is compared with that of the same part on the CPU in float32. `share` is that of
the device's rate for products of large matrices in the same precision, which is measured first; it counts the products
that the part cannot do without, and is given where these are nearly all of the work. Times are the fastest of
`--repeats`.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import Tensor

from benchmarks.frame import Bench, fastest, first_pairs, make_parser
from benchmarks.plain_measures import per_layer_dc, plain_svcca
from common import format_table, script, switch, whole_number
from common.matrix_files import MatrixSettings
from measures.dc import DC
from measures.ridge import RidgeSums
from measures.svcca import SVCCA
from models import Clip
from models.feeds import hidden_states
from models.segment_maps import SegmentMaps, read_goals
from search_strategy.fine import FineSearch
from search_strategy.proposals import random_proposals
from tasks.distance import Distance
from tasks.retrieval import symmetric_cross_entropy
from training.batches import Split, TrainingData
from training.loop import Trainer, make_optimizer
from training.losses import Objective
from training.settings import Settings
from training.towers import TrainedTowers

SHAPES = {  # of the text towers: layers, width, heads
    "B/32": (12, 512, 8),
    "L/14": (12, 768, 12),
    "H/14": (24, 1024, 16),
}
VOCABULARY, POSITIONS = 49408, 77
HEADERS = ("model", "part", "precision", "seconds", "times plain", "difference to CPU", "share", "note")
QUICK = {"captions": 96, "repair_captions": 40, "pairs": 20, "steps": 2, "batch_size": 16, "dc_draws": 2, "repeats": 1}
PLAIN = 3  # pairs of layers, maps, proposals that the plain ways are timed on
SUBSETS = 924  # of 12 layers to 6: all; of deeper models a tenth as many, at random
SHORT_STEPS = 2  # of training that are done on the CPU too
THRE = 0.99


class Parts:
    """The parts for one model. `clip` is in float32 on the device."""

    def __init__(self, name: str, clip: Clip, bench: Bench, peaks: dict[str, float]):
        self.name, self.clip, self.bench, self.peaks, self.args = name, clip, bench, peaks, bench.args
        self.device, self.rows = clip.device.type, []
        self.on_cpu = Clip(copy.deepcopy(clip.model).cpu(), clip.processor, name)
        self.train, self.validation = (bench.captions(split) for split in ("train", "validation"))

    def time(self, function: Callable) -> tuple[float, object]:
        return fastest(function, self.device, self.args.repeats)

    def row(self, part: str, precision: str, seconds: float, plain: float | None, difference: float, **more) -> None:
        """`flops`: of the products; `note`."""
        share = more["flops"] / seconds / self.peaks[precision] if "flops" in more else None
        times = None if plain is None else plain / seconds
        self.rows.append((self.name, part, precision, seconds, times, difference, share, more.get("note", "")))

    def states(self, clip: Clip, captions: list[str]) -> list[Tensor]:
        tokens = clip.prepare(captions)
        return hidden_states(clip, tokens, MatrixSettings("svcca"), max(map(len, tokens)))

    # --- analysis

    def forward(self) -> None:
        captions = self.train[: self.args.captions]
        exact = self.states(self.on_cpu, captions[:PLAIN])
        tokens = sum(map(len, self.clip.prepare(captions)))
        flops = 2 * tokens * sum(p.numel() for p in self.clip.stack.layers.parameters())
        for precision, clip in self.casts():
            seconds, _ = self.time(lambda clip=clip: self.states(clip, captions))
            plain, _ = self.time(lambda clip=clip: padded_states(clip, captions))
            found = self.states(clip, captions[:PLAIN])
            self.row("hidden states", precision, seconds, plain, relative(found, exact), flops=flops)

    def casts(self) -> list[tuple[str, Clip]]:
        low = Clip(copy.deepcopy(self.clip.model).to(torch.bfloat16), self.clip.processor, self.name)
        return [("float32", self.clip), ("bfloat16", low)]

    def svcca(self) -> None:
        states = self.states(self.clip, self.train[: self.args.captions])
        seconds, matrix = self.time(lambda: summed(SVCCA(thre=THRE), [states]))
        pairs = list(combinations(range(len(states)), 2))[:PLAIN]
        plain, _ = self.time(lambda: [plain_svcca(states[i], states[j], THRE) for i, j in pairs])
        expected = summed(SVCCA(thre=THRE), [[state.cpu() for state in states]])
        samples, total = len(states[0]), sum(state.shape[1] for state in states)
        factor = comb(len(states), 2) / len(pairs)
        largest = np.abs(matrix - expected).max()
        self.row("SVCCA", "float64", seconds, plain * factor, largest, flops=samples * total**2, note=f"{samples} rows")

    def dc(self) -> None:
        draws = [state.split(32) for state in self.states(self.clip, self.train[: 32 * self.args.dc_draws])]
        draws = list(zip(*draws, strict=True))
        seconds, matrix = self.time(lambda: summed(DC(), draws))
        plain, _ = self.time(lambda: per_layer_dc(draws, torch.float64))
        expected = summed(DC(), [[state.cpu() for state in draw] for draw in draws])
        self.row("DC", "float64", seconds, plain, np.abs(matrix - expected).max(), note=f"{len(draws)} draws of 32")

    # --- repair and search

    def repair_sums(self) -> SegmentMaps:
        captions = self.train[: self.args.repair_captions]
        pairs = [(p, self.clip.num_layers) for p in range(self.clip.num_layers)]  # where not all can be held

        def fit(clip: Clip) -> SegmentMaps:
            maps = SegmentMaps(clip, captions)
            maps.prepare(pairs)
            return maps

        seconds, maps = self.time(lambda: fit(self.clip))
        plain, _ = self.time(lambda: [plain_map(self.clip, maps, *pair) for pair in pairs[-PLAIN:]])
        plain *= maps.num_fitted / PLAIN
        expected = fit(self.on_cpu)
        found = [maps.fitted_change(*pair) for pair in pairs]
        largest = relative(found, [expected.fitted_change(*pair) for pair in pairs])
        self.row("repair sums", "float64", seconds, plain, largest, note=f"{maps.num_fitted} maps")
        return maps

    def fine_search(self, maps: SegmentMaps) -> None:
        depth, captions = self.clip.num_layers, self.validation[: self.args.pairs]
        generator = np.random.default_rng(self.args.seed)
        number = PLAIN if self.args.quick else SUBSETS if depth <= 12 else SUBSETS // 10
        proposals = random_proposals(depth, depth // 2, number, generator)
        for what, chosen in (("left out", None), ("repaired", maps)):
            fine = FineSearch(self.clip, captions, Distance(self.clip.embeddings(captions)), maps=chosen)
            seconds, losses = self.time(lambda fine=fine: fine.without_memory().objectives(proposals))
            plain = largest = None
            if chosen is None:
                plain, _ = self.time(lambda: [self.clip.drop(p).embeddings(captions) for p in proposals[:PLAIN]])
                plain *= len(proposals) / PLAIN
                on_cpu = FineSearch(self.on_cpu, captions, Distance(self.on_cpu.embeddings(captions)))
                expected = on_cpu.objectives(proposals[:PLAIN])
                largest = np.abs(np.subtract(losses[:PLAIN], expected)).max()
            self.row(f"fine search, {what}", "float32", seconds, plain, largest, note=f"{len(proposals)} proposals")

    # --- training

    def training(self) -> None:
        pairs = self.bench.pairs("train", max_pairs=self.args.steps * self.args.batch_size)
        targets = torch.randn(len(pairs.images), self.clip.dim, generator=torch.Generator().manual_seed(0))
        split = Split(pairs, F.normalize(targets, dim=-1).to(self.clip.device), None)
        short = first_pairs(split, SHORT_STEPS * self.args.batch_size)
        expected = self.train_epoch(self.on_cpu, replace(short, image_embeddings=short.image_embeddings.cpu()), "fp32")
        tokens = sum(map(len, self.clip.prepare(pairs.captions)))
        flops = 6 * tokens * sum(p.numel() for p in self.clip.stack.layers.parameters())
        plain, _ = self.time(lambda: plain_epoch(self.clip.drop(()), split, self.args.batch_size))
        for name, precision in (("fp32", "float32"), ("bf16", "bfloat16")):
            seconds, _ = self.time(lambda name=name: self.train_epoch(self.clip, split, name))
            largest = abs(self.train_epoch(self.clip, short, name) - expected)
            note = f"{len(pairs) / seconds:.0f} captions a second"
            self.row("training epoch", precision, seconds, plain, largest, flops=flops, note=note)

    def train_epoch(self, clip: Clip, split: Split, precision: str) -> float:
        settings = Settings(1, self.args.batch_size, 1e-4, 0.1, 0, self.args.seed, precision=precision)
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one device and one precision in it
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(clip.drop(()), TrainingData(split, split), Objective(), settings, Path(folder))
            loss = trainer.train_epoch(0)
        AcceleratorState._reset_state(reset_partial_state=True)
        return loss


# --- the plain ways


@torch.no_grad()
def padded_states(clip: Clip, captions: list[str]) -> None:
    """As commonly written: all captions padded to the model's length, all states by `output_hidden_states`."""
    for batch in clip.batches(captions, 256, clip.max_length):
        states = clip.model.text_model(**batch.inputs, output_hidden_states=True).hidden_states
        [clip.pool(state, batch, "mean") for state in states]


def plain_map(clip: Clip, maps: SegmentMaps, p: int, b: int) -> Tensor:
    """One segment's map by a pass and sums of its own."""
    sums = RidgeSums(True)
    with torch.no_grad():
        for batch in maps.batches:
            for _, inputs, current, later in read_goals(clip, maps.places, batch, {p: [b]}):
                sums.add(inputs, later[0] - current)
    return sums.solve(maps.ridge)


def plain_epoch(clip: Clip, split: Split, batch_size: int) -> None:
    """As commonly written: captions padded to the model's length, in float32."""
    optimizer = make_optimizer(TrainedTowers(clip), 1e-4, 0.1)
    for start in range(0, len(split.pairs), batch_size):
        rows = np.arange(start, min(start + batch_size, len(split.pairs)))
        captions = [split.pairs.captions[row] for row in rows]
        batch = next(clip.batches(captions, len(captions), clip.max_length))
        text = F.normalize(clip.deployed(batch.inputs), dim=-1)
        image = split.image_embeddings[split.pairs.image_index[rows][batch.rows]]
        symmetric_cross_entropy(clip.model.logit_scale.exp() * text @ image.T).backward()
        optimizer.step()
        optimizer.zero_grad()


# --- helpers


def summed(measure: SVCCA | DC, updates: list) -> np.ndarray:
    for states in updates:
        measure.update(states)
    return measure.matrix()


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, as a share of the largest value."""
    pairs = [(a.double().cpu(), b.double()) for a, b in zip(found, expected, strict=True)]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)


def peak_rates(device: str, size: int, repeats: int) -> dict[str, float]:
    """Operations a second of the product of two square matrices, by precision."""
    rates = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        matrix = torch.randn(size, size, device=device).to(dtype)
        matrix @ matrix
        seconds, _ = fastest(lambda matrix=matrix: matrix @ matrix, device, repeats)
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds
    return rates


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("A GPU against the CPU and the plain way.")
    add = parser.add_argument
    add("--shapes", nargs="*", choices=tuple(SHAPES), default=list(SHAPES), help="beside --model (default: all)")
    add("--captions", **whole_number(9600, "for SVCCA"))
    add("--dc_draws", **whole_number(100, "draws of 32 captions for DC"))
    add("--repair_captions", **whole_number(1000, "for the maps of all segments"))
    add("--pairs", **whole_number(2000, "captions of the fine search"))
    add("--steps", **whole_number(40, "of training"))
    add("--batch_size", **whole_number(256, "pairs in a step"))
    add("--repeats", **whole_number(3, "runs; the fastest counts"))
    add("--quick", **switch(False, "tiny sizes, in place of the sizes' flags"))
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    vars(args).update(QUICK if args.quick else {})
    bench = Bench(args)
    device = bench.encoder.device.type
    peaks = peak_rates(device, 256 if args.quick else 8192, args.repeats)
    models = {"bundled": lambda: bench.encoder}
    for name in args.shapes:
        layers, width, heads = (4, 32, 2) if args.quick else SHAPES[name]
        sizes = {"num_hidden_layers": layers, "num_attention_heads": heads}
        sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS}
        models[name] = lambda width=width, sizes=sizes: bench.fresh_clip(width=width, **sizes)
    rows = []
    for name, make in models.items():
        parts = Parts(name, make(), bench, peaks)
        parts.forward()
        parts.svcca()
        parts.dc()
        parts.fine_search(parts.repair_sums())
        parts.training()
        rows += parts.rows
        bench.write(peak_operations_a_second=peaks, rows=[dict(zip(HEADERS, row, strict=True)) for row in rows])
    print(format_table(rows, HEADERS, ("", "", "", ".4g", ".1f", ".1e", ".3f", "")))


if __name__ == "__main__":
    main()
