"""Fetch text pairs of a real kind: the English package descriptions of Debian, the short one against the long one.

    python -m tools.fetch_debian_pairs --output_dir debian_pairs
    python -m tools.fetch_debian_pairs --output_dir debian_300 --held_out 300     # for a first look

Needs `apt-get` (Debian, Ubuntu); it reads the sources of this machine into a folder of its own, so neither root nor the
machine's lists are touched. Writes train, validation and test as parquet with the columns `query` and `text`, some
59,000 pairs for Debian 12. No query and no text is there twice, apart from numbers, and descriptions that begin with
the same paragraph (the parts of one piece of software) are in one split.
"""

import argparse
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import datasets

from common import positive_int, script
from common.cli import Parser

FIELD = "Description-en:"
PARTS = 25  # of which one is validation and one is test
NUMBERS = re.compile(r"[\d.]+")
SPLITS = {0: "validation", 1: "test"}


class Pair(NamedTuple):
    query: str
    text: str
    topic: str  # the first paragraph of the text


def download(folder: Path) -> str:
    """All lists of English descriptions of this machine's package sources."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    options = {
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",  # plain text on disk
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "",  # apt's own user may not enter a temporary folder
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", *flags, "--quiet", "update"], check=True)
    lists = sorted((folder / "lists").glob("*Translation-en"))
    if not lists:
        raise FileNotFoundError("apt-get update gave no list Translation-en; expected one for every source of packages")
    return "\n\n".join(path.read_text(encoding="utf-8") for path in lists)


def read_descriptions(translations: str) -> Iterator[Pair]:
    """The descriptions of a Translation-en list: a first line, then lines after a space, ` .` between paragraphs."""
    for entry in translations.split("\n\n"):
        _, found, description = f"\n{entry}".partition(f"\n{FIELD}")
        first, *rest = description.split("\n")
        lines = []
        for line in rest:
            if not line.startswith(" "):
                break
            lines.append("\n" if line.strip() == "." else line)
        paragraphs = [" ".join(paragraph.split()) for paragraph in " ".join(lines).split("\n")]
        paragraphs = [paragraph for paragraph in paragraphs if paragraph]
        if found and first.strip() and paragraphs:
            yield Pair(" ".join(first.split()), " ".join(paragraphs), paragraphs[0])


def without_repeats(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs whose query and whose text were in none before, apart from case and numbers (of versions)."""
    kept, queries, texts = [], set(), set()
    for pair in pairs:
        query, text = (NUMBERS.sub("0", part.casefold()) for part in (pair.query, pair.text))
        if query not in queries and text not in texts:
            kept.append(pair)
        queries.add(query)
        texts.add(text)
    return kept


def split_of(topic: str) -> str:
    """The split of all descriptions that begin with this paragraph, by its hash: the same on every machine."""
    digest = hashlib.sha256(topic.casefold().encode()).digest()
    return SPLITS.get(int.from_bytes(digest[:8]) % PARTS, "train")


def split_pairs(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """The pairs by split, in the order of the hash of their query, so that neighbours are not of one kind."""
    splits = {"train": [], "validation": [], "test": []}
    for pair in sorted(pairs, key=lambda pair: hashlib.sha256(pair.query.encode()).digest()):
        splits[split_of(pair.topic)].append(pair)
    return splits


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="new folder for the parquet files")
    what = "at most so many pairs of validation and of test (default: all)"
    parser.add_argument("--held_out", type=positive_int, help=what)
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    args.output_dir.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        pairs = without_repeats(read_descriptions(download(Path(temporary))))
    for name, rows in split_pairs(pairs).items():
        rows = rows if name == "train" else rows[: args.held_out]
        columns = {"query": [pair.query for pair in rows], "text": [pair.text for pair in rows]}
        datasets.Dataset.from_dict(columns).to_parquet(args.output_dir / f"{name}.parquet")
        print(f"{args.output_dir / name}.parquet: {len(rows):,} pairs")


if __name__ == "__main__":
    main()
