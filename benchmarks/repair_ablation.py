"""What each choice of the repair is worth: one change a row, against the repair as it is and against leaving out alone.

    python -m benchmarks.repair_ablation --num_clip_layers 6 --out build/repair_ablation.json
    python -m benchmarks.repair_ablation --clip_layers 3,5,7,8,10,12 --captions 4000 --split test

Every row repairs the same proposals (by default the last layers, every other layer, and one drawn at random) and gives
the task loss and the recall at 10, mean of both directions, in percent of the full model's. ReplaceMe (arXiv
2505.02819) is its map on the MLP's output, and `bias alone` the mean shift of Prune&Comp (2507.18212), both here with
the rest of this repair around them.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.frame import Bench, make_parser
from common import format_table, positive_int, script, show_progress
from measures.ridge import RidgeSums
from models import Encoder
from models.encoders import Batch
from models.folding import BlockMap, TableMap, apply_change, find_place
from models.repair import CAPTIONS, Cut, Repairer, draw_captions
from search_strategy.fine import FineSearch
from search_strategy.proposals import Proposal, parse_clip_layers, random_proposals, segments

NUMBERS = (100, 300, 1000, 3000, 10_000)
RIDGES = (1e-4, 1e-3, 1e-1, 1.0)


class NoGuard(Repairer):
    """Every change is folded as it comes out of the regression."""

    def fold_best(
        self, segment: tuple | None, place: BlockMap | TableMap, change: Tensor, embeddings_at: Callable
    ) -> Cut:
        place.fold(change)
        return Cut(segment, 1.0, None, None)


class AllAtOnce(Repairer):
    """Every cut is fitted on the full model's states, as from one pass."""

    def read_lacks(self, place: BlockMap | TableMap, layer: int, last: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        p = self.kept[layer - 1] if layer else 0
        of_full = find_place(self.judge.full.stack, p, self.walk.batches[0].inputs)
        for number, batch in enumerate(self.walk.batches):
            inputs, current = self.read(of_full, self.full_walk, number, p)
            lacks = of_full.wanted(self.full_walk.to(number, last)[0], current) - current
            yield batch, inputs[batch.mask], lacks[batch.mask]


class BiasAlone(Repairer):
    """The mean of what is lacking goes into the bias."""

    def fit_segment(self, place: BlockMap | TableMap, layer: int, last: int) -> Tensor:
        lacks = torch.cat([lacks.double() for _, _, lacks in self.read_lacks(place, layer, last)])
        change = torch.zeros(place.num_features + place.has_bias, lacks.shape[1], dtype=lacks.dtype)
        if place.has_bias:
            change[-1] = lacks.mean(0)
        return change


class ReplaceMe(Repairer):
    """One map T on the output of the MLP: x + (g W + c) T, which can be folded too, into W T and c T."""

    def fit_segment(self, place: BlockMap | TableMap, layer: int, last: int) -> Tensor:
        if isinstance(place, TableMap):
            return super().fit_segment(place, layer, last)
        weights = place.linear.weight.T.double()
        if place.has_bias:
            weights = torch.cat([weights, place.linear.bias[None].double()])
        sums = RidgeSums(has_bias=False)
        for _, inputs, lacks in self.read_lacks(place, layer, last):
            sums.add(apply_change(weights, inputs), lacks)
        return weights @ sums.solve(self.ridge)


class WithoutProjection(Repairer):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.projection = None


class ProjectionAlone(Repairer):
    def repair_segment(self, p: int, q: int, place: BlockMap | TableMap | None) -> Cut:
        return Cut((p + 1, q - 1), 0.0, None, None)


@dataclass(frozen=True)
class Way:
    """One row: a change of the repair."""

    name: str
    repairer: type[Repairer] = Repairer
    options: dict = field(default_factory=dict)
    captions: int | None = None  # None: as many as asked for


def ends_first(batch: Batch) -> Tensor:
    """The weights of a first trial: the start token near zero, the end token five times the others."""
    weights = torch.ones(batch.mask.shape, device=batch.mask.device)
    weights[torch.arange(len(weights)), batch.lengths - 1] = 5.0
    weights[:, 0] = 0.01
    return weights


WAYS = (
    Way("repaired"),
    Way("without guard", NoGuard),
    Way("all cuts at once", AllAtOnce),
    Way("without projection", WithoutProjection),
    Way("projection alone", ProjectionAlone),
    Way("bias alone", BiasAlone),
    Way("ReplaceMe's map", ReplaceMe),
    Way("start 0.01, end 5", options={"weigh": ends_first}),
    *(Way(f"ridge {ridge:g}", options={"ridge": ridge}) for ridge in RIDGES),
    *(Way(f"{number:,} captions", captions=number) for number in NUMBERS),
)


def usual_proposals(num_layers: int, num_dropped: int, seed: int) -> list[Proposal]:
    """The last layers, every other layer (as far as that goes, then the last), and one drawn at random."""
    last = tuple(range(num_layers - num_dropped + 1, num_layers + 1))
    order = [*range(num_layers, 0, -2), *range(num_layers - 1, 0, -2)]
    drawn = random_proposals(num_layers, num_dropped, 1, np.random.default_rng(seed))
    return list(dict.fromkeys([last, tuple(sorted(order[:num_dropped])), *drawn]))


@torch.no_grad()
def repair_by(way: Way, encoder: Encoder, proposal: Proposal, captions: list[str]) -> Encoder:
    pruned = encoder.drop(proposal)
    way.repairer(encoder, pruned, proposal, captions[: way.captions], **way.options).run()
    return pruned


def measure_figures(model: Encoder, fine: FineSearch) -> dict[str, float]:
    """Task loss, and recall at 10 as the mean of both directions."""
    figures = fine.task.score(model.embeddings(fine.samples)).figures
    return {
        "task_loss": figures["task_loss"],
        "recall_at_10": sum(figures[f"{way}_recall_at_10"] for way in ("text_to_image", "image_to_text")) / 2,
    }


def compare_ways(
    encoder: Encoder, proposals: list[Proposal], captions: list[str], most: int, fine: FineSearch
) -> list[dict]:
    """A row for each proposal and way, with the full model and leaving out. `captions`: distinct, in random order."""
    rows = [{"proposal": (), "way": "full", "seconds": 0.0, **measure_figures(encoder, fine)}]
    ways = [way for way in WAYS if way.captions is None or way.captions <= len(captions)]
    for proposal in tqdm(proposals, desc="proposals", disable=not show_progress(), leave=False):
        rows.append(
            {"proposal": proposal, "way": "left out", "seconds": 0.0, **measure_figures(encoder.drop(proposal), fine)}
        )
        for way in ways:
            start = time.perf_counter()
            model = repair_by(way, encoder, proposal, captions if way.captions else captions[:most])
            seconds = time.perf_counter() - start
            rows.append({"proposal": proposal, "way": way.name, "seconds": seconds, **measure_figures(model, fine)})
    return rows


def print_rows(rows: list[dict]) -> None:
    """For each way: loss, and recall in percent of the full model's, for every proposal."""
    full = rows[0]
    proposals = list(dict.fromkeys(row["proposal"] for row in rows[1:]))
    print(f"full model: task loss {full['task_loss']:.4f}, recall at 10 {100 * full['recall_at_10']:.1f} %")
    by_way = {}
    for row in rows[1:]:
        by_way.setdefault(row["way"], {})[row["proposal"]] = row
    table = []
    for way, found in by_way.items():
        cells = [(found[p]["task_loss"], 100 * found[p]["recall_at_10"] / full["recall_at_10"]) for p in proposals]
        seconds = sum(row["seconds"] for row in found.values()) / len(found)
        table.append((way, *(value for pair in cells for value in pair), seconds))
    headers = ["way", *(text for p in proposals for text in (f"{segments(p)} loss", "R@10 % of full")), "seconds"]
    print(format_table(table, headers, ("", *(".4f", ".1f") * len(proposals), ".1f")))


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("What each choice of the repair is worth.")
    parser.add_argument("--num_clip_layers", type=positive_int, default=6, help="layers to drop (default: %(default)s)")
    parser.add_argument(
        "--clip_layers", nargs="+", help="proposals to repair, such as 7-12 3,5,7 (default: three usual ones)"
    )
    parser.add_argument("--captions", type=positive_int, default=CAPTIONS, help="of train (default: %(default)s)")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="default: validation")
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    bench = Bench(args)
    encoder, pairs = bench.encoder, bench.pairs(args.split)
    train = bench.pairs("train", images=False, max_pairs=None)
    captions = draw_captions(train.captions, args.seed, max(args.captions, *NUMBERS))
    fine = bench.fine_search(pairs)
    bench.record.note_data(data=pairs)
    proposals = usual_proposals(encoder.num_layers, args.num_clip_layers, args.seed)
    if args.clip_layers:
        proposals = [parse_clip_layers(text) for text in args.clip_layers]
    rows = compare_ways(encoder, proposals, captions, args.captions, fine)
    bench.write(rows=rows)
    print_rows(rows)


if __name__ == "__main__":
    main()
