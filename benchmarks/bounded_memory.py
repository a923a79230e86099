"""The peak memory of a fine search of many proposals over many captions.

    python -m benchmarks.bounded_memory
    python -m benchmarks.bounded_memory --retrieval true --most 3

An encoder that computes next to nothing (a token a caption, a norm a layer), so that the size can be that of a large
model and a large data set: what is held is the same. `--retrieval` scores by loss and recall among as many images,
which takes a minute a proposal; else by the distance to the full model.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from benchmarks.frame import peak_mib
from common import Record, positive_int, script, set_up_logging, switch, whole_number, write_json
from common.cli import Parser
from models.encoders import Batch, Encoder
from models.layer_stack import LayerStack
from search_strategy.fine import FineSearch
from search_strategy.rivals import all_subsets
from tasks.distance import Distance
from tasks.retrieval import Retrieval


class NormsModel(PreTrainedModel):
    """A table, and blocks of a norm each, added to the state."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.captions, config.hidden_size)
        self.layers = nn.ModuleList(Block(config.hidden_size) for _ in range(config.num_hidden_layers))

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.norm.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.norm(hidden)


class NormsEncoder(Encoder):
    """A caption is its number."""

    tower, name, logit_scale, projection, max_length = "text", "norms", 10.0, None, 1

    def __init__(self, model: NormsModel):
        self.model, self.stack = model, LayerStack(model)

    def prepare(self, samples: list[int]) -> list[list[int]]:
        return [[sample] for sample in samples]

    def batch(self, prepared: list[list[int]], rows: np.ndarray, length: int | None = None) -> Batch:
        ids = torch.tensor([prepared[row] for row in rows])
        return Batch(np.asarray(rows), {"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool))

    def features(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden[:, 0]


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--captions", **whole_number(25_000, "captions, and images"))
    parser.add_argument("--width", **whole_number(1024, "of a state"))
    parser.add_argument("--num_layers", **whole_number(12, "layers, of which half are dropped"))
    parser.add_argument("--most", type=positive_int, help="proposals (default: all)")
    parser.add_argument("--retrieval", **switch(False, "score by loss and recall"))
    parser.add_argument("--threads", **whole_number(1, "CPU threads"))
    parser.add_argument("--seed", **whole_number(0, "of the weights", 0))
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    return parser


@script
@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    set_up_logging()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    record = Record(args, "cpu")
    sizes = {"captions": args.captions, "hidden_size": args.width, "num_hidden_layers": args.num_layers}
    encoder = NormsEncoder(NormsModel(PreTrainedConfig(**sizes)).eval())
    samples = list(range(args.captions))
    full = encoder.embeddings(samples)
    task = Retrieval(full, np.arange(args.captions), encoder.logit_scale) if args.retrieval else Distance(full)
    proposals = all_subsets(args.num_layers, args.num_layers // 2)[: args.most]
    before, start = peak_mib(), time.perf_counter()
    found = FineSearch(encoder, samples, task).objectives(proposals)
    figures = {"proposals": len(found), "mib_before": before, "mib": peak_mib(), "seconds": time.perf_counter() - start}
    for name, value in figures.items():
        print(f"{name}: {value:,.0f}")
    if args.out:
        write_json(args.out, figures | {"record": record.content()})


if __name__ == "__main__":
    main()
