"""What each choice of the repair is worth: one change a row, beside the repair as it is and leaving out alone.

    python -m benchmarks.repair_ablation --max_pairs 1000 --out build/repair_ablation.json
    python -m benchmarks.repair_ablation --clip_layers 3,5,7,8,10,12 --captions 300 --ways repaired "ridge 0.1"

Every row repairs the same proposals (by default the last layers, and every other layer), from `--captions` captions or
as many as it says, and gives the task loss and the recall at 10, mean of both directions, in percent of the full
model's; seconds are of the processor, but those of the full model's states, which all ways share. ReplaceMe (arXiv
2505.02819) is its map on the MLP's output, and `bias alone` the mean shift of Prune&Comp (2507.18212), both here with
the rest of this repair around them.
"""

import argparse
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.frame import Bench, make_parser
from common import format_table, script, whole_number
from measures.ridge import RidgeSums
from models import Encoder
from models.encoders import Batch
from models.folding import Place, TableMap, apply_change, find_places
from models.repair import Cut, Repairer, draw_captions, hold_out
from search_strategy.fine import FineSearch
from search_strategy.proposals import Proposal, parse_clip_layers, segments
from search_strategy.rivals import every_other, last_layers

logger = logging.getLogger("comflp")

NUMBERS = (100, 300, 4000, 10_000)
RIDGES = (0.003, 0.01, 0.1, 0.3)


class NoGuard(Repairer):
    """Every change is folded as it comes out of the regression."""

    def fold_best(self, segment: tuple | None, place: Place, change: Tensor, loss_at: Callable) -> Cut:
        place.fold(change)
        return Cut(segment, 1.0, None, None)


class AllAtOnce(Repairer):
    """Every cut is fitted on the full model's states, as from one pass."""

    def read_lacks(self, place: Place, layer: int, last: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        p = self.kept[layer - 1] if layer else 0
        of_full = find_places(self.judge.full.stack, [p], self.walk.batches[0].inputs)[0]
        for number, batch in enumerate(self.walk.batches):
            hidden, context = self.full_walk.to(number, max(0, p - 1))
            inputs, current = of_full.read(self.judge.full.stack, hidden, context, p)
            lacks = of_full.wanted(self.full_walk.to(number, last)[0], current) - current
            yield batch, inputs[batch.mask], lacks[batch.mask]


class BiasAlone(Repairer):
    """The mean of what is lacking goes into the bias."""

    def fit_segment(self, place: Place, layer: int, last: int) -> Tensor:
        lacks = torch.cat([lacks.double() for _, _, lacks in self.read_lacks(place, layer, last)])
        change = torch.zeros(place.num_features + place.has_bias, lacks.shape[1], dtype=lacks.dtype)
        if place.has_bias:
            change[-1] = lacks.mean(0)
        return change


class ReplaceMe(Repairer):
    """One map T on the output of the MLP: x + (g W + c) T, which can be folded too, into W T and c T."""

    def fit_segment(self, place: Place, layer: int, last: int) -> Tensor:
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
    def repair_segment(self, p: int, q: int, place: Place | None) -> Cut:
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


class FullStates:
    """The full model's states of some captions, run once for all ways and held, in the place of a `Walk`."""

    @torch.no_grad()
    def __init__(self, encoder: Encoder, captions: list[str]):
        batches = encoder.batches(hold_out(captions)[0])  # as the repair makes them
        self.encoder, self._starts = encoder, [encoder.stack.start(**batch.inputs) for batch in batches]
        self._states = [[hidden] for hidden, _ in self._starts]

    def to(self, number: int, layer: int) -> tuple[Tensor, list]:
        states, context = self._states[number], self._starts[number][1]
        for missing in range(len(states), layer + 1):
            states.append(self.encoder.stack.run(states[-1], context, [missing]))
        return states[layer], context

    def end(self, number: int) -> Tensor:
        return self.to(number, self.encoder.num_layers)[0]


@torch.no_grad()
def repair_by(
    way: Way, encoder: Encoder, proposal: Proposal, captions: list[str], states: FullStates | None = None
) -> Encoder:
    """The proposal repaired one way. `states`: of the full model, where other ways have run these captions."""
    pruned = encoder.drop(proposal)
    repairer = way.repairer(encoder, pruned, proposal, captions, **way.options)
    repairer.full_walk = states or repairer.full_walk
    repairer.run()
    return pruned


def measure_figures(model: Encoder, fine: FineSearch) -> dict[str, float]:
    """Task loss, and recall at 10 as the mean of both directions."""
    figures = fine.task.score(model.embeddings(fine.samples)).figures
    return {
        "task_loss": figures["task_loss"],
        "recall_at_10": sum(figures[f"{way}_recall_at_10"] for way in ("text_to_image", "image_to_text")) / 2,
    }


def compare_ways(
    encoder: Encoder, proposals: list[Proposal], captions: list[str], most: int, fine: FineSearch, ways: list[Way]
) -> Iterator[dict]:
    """A row for each proposal and way, with the full model and leaving out. `captions`: distinct, in random order."""

    def row(proposal: Proposal, way: str, model: Encoder, seconds: float = 0.0) -> dict:
        return {"proposal": proposal, "way": way, "seconds": seconds, **measure_figures(model, fine)}

    yield row((), "full", encoder)
    states = FullStates(encoder, captions[:most])
    ways = [way for way in ways if way.captions is None or way.captions <= len(captions)]
    for proposal in proposals:
        yield row(proposal, "left out", encoder.drop(proposal))
        for way in ways:
            start = time.process_time()
            shared = None if way.captions else states
            model = repair_by(way, encoder, proposal, captions[: way.captions or most], shared)
            yield row(proposal, way.name, model, time.process_time() - start)


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
    parser.add_argument("--num_clip_layers", **whole_number(6, "layers to drop"))
    parser.add_argument(
        "--clip_layers", nargs="+", help="proposals to repair, such as 7-12 3,5,7 (default: the last, every other)"
    )
    parser.add_argument("--captions", **whole_number(1000, "of train"))
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="default: validation")
    parser.add_argument(
        "--ways", nargs="+", choices=[way.name for way in WAYS], metavar="ROW", help="default: all rows"
    )
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
    sizes = encoder.num_layers, args.num_clip_layers
    proposals = list(dict.fromkeys([last_layers(*sizes), every_other(*sizes, phase=0)]))
    if args.clip_layers:
        proposals = [parse_clip_layers(text) for text in args.clip_layers]
    ways = [way for way in WAYS if not args.ways or way.name in args.ways]
    rows = []
    for row in compare_ways(encoder, proposals, captions, args.captions, fine, ways):
        rows.append(row)
        bench.write(rows=rows)  # as it grows: a run that is stopped has what it has made
        figures = row["task_loss"], 100 * row["recall_at_10"] / rows[0]["recall_at_10"]
        logger.info(
            "%s %s: task loss %.4f, recall at 10 %.1f %% of the full", segments(row["proposal"]), row["way"], *figures
        )
    print_rows(rows)


if __name__ == "__main__":
    main()
