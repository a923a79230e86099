"""What the benchmarks share: `--out` and the common flags; encoder, pairs and fine search; the figures as JSON."""

import argparse
from pathlib import Path

from common import Record, add_common_flags, data_flags, set_up, show_progress, tower_dir, write_json
from data import ImageCaptionPairs, load_pairs
from models import load_encoder
from search_strategy.fine import FineSearch


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    add_common_flags(parser, tower=True, target_column=True)
    return parser


class Bench:
    """A benchmark that runs: its flags, its record, and what it measures with.

    Attributes:
        encoder: of `--model`.
        folder: of the model's results.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, device = args, set_up(args)
        self.record = Record(args, device)
        self.encoder = load_encoder(args.model, args.tower, device)
        self.folder = tower_dir(args.exp_dir, args.model, args.tower)
        self.record.note(model=self.encoder.identity())

    def pairs(self, split: str, **changes: object) -> ImageCaptionPairs:
        """A split of `--dataset`; `changes`: of what the data flags say."""
        return load_pairs(self.args.dataset, split, **data_flags(self.args) | changes)

    def fine_search(self, pairs: ImageCaptionPairs, **options: object) -> FineSearch:
        """By the task loss on these pairs; target embeddings from the model's cache."""
        return FineSearch.from_pairs(self.encoder, pairs, self.folder / "cache", progress=show_progress(), **options)

    def write(self, **content: object) -> None:
        """The figures and the record, where `--out` says."""
        if self.args.out:
            write_json(self.args.out, content | {"record": self.record.content()})
