"""The descriptions of a made-up list."""

import datasets
import pytest

from tools import fetch_debian_pairs as script
from tools.fetch_debian_pairs import Pair, read_descriptions, split_of, split_pairs, without_repeats

LIST = """Package: foo
Description-md5: 0123
Description-en: tool for  foo
 Foo does
 one thing.
 .
 This package contains
  * the tool.

Package: empty
Description-md5: 4567
Description-en: nothing more than this

Package: bar
Description-en: bar
 Bar is bar.
Tag: a::b
 of the tag

Package: none
Description-md5: 89ab
"""
FOO = Pair("tool for foo", "Foo does one thing. This package contains * the tool.", "Foo does one thing.")
BAR = Pair("bar", "Bar is bar.", "Bar is bar.")


def pair(query: str, text: str) -> Pair:
    return Pair(query, text, text)


def test_short_and_long_descriptions_are_read_and_entries_without_one_are_left_out():
    assert list(read_descriptions(LIST)) == [FOO, BAR]


def test_a_repeat_is_what_has_the_query_or_the_text_of_an_earlier_pair():
    first, other = pair("kernel 6.1", "Linux 6.1 for x"), pair("kernel for y", "Linux for y")
    repeats = [pair("Kernel 5.10.2", "another"), pair("another", "linux 5 for X"), first]
    assert without_repeats([first, *repeats, other]) == [first, other]


def test_descriptions_that_begin_alike_are_in_one_split():
    pairs = [Pair(f"part {i} of {i % 40}", f"topic {i % 40}. {i}", f"topic {i % 40}.") for i in range(400)]
    splits = split_pairs(pairs)
    topics = [{pair.topic for pair in rows} for rows in splits.values()]
    assert sum(map(len, topics)) == 40
    assert sorted(sum(splits.values(), [])) == sorted(pairs)


def test_one_part_of_25_is_validation_and_one_is_test():
    found = [split_of(f"topic {i}") for i in range(5_000)]
    assert 150 < found.count("validation") < 250
    assert 150 < found.count("test") < 250


def test_the_order_of_the_list_does_not_matter():
    pairs = [pair(f"query {i}", f"text {i}") for i in range(50)]
    assert split_pairs(pairs) == split_pairs(reversed(pairs))


def test_the_script_writes_three_files(tmp_path, monkeypatch, capsys):
    entries = [
        f"Package: p{i}\nDescription-en: name {'abcdefghij'[i % 10] * (i + 1)}\n Text {'x' * i}.\n" for i in range(99)
    ]
    monkeypatch.setattr(script, "download", lambda folder: "\n".join(entries))
    script.main(["--output_dir", str(tmp_path / "pairs")])
    files = {path.stem: str(path) for path in (tmp_path / "pairs").iterdir()}
    found = {name: datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path)) for name, path in files.items()}
    assert {name: rows.column_names for name, rows in found.items()} == dict.fromkeys(
        ("train", "validation", "test"), ["query", "text"]
    )
    assert sum(map(len, found.values())) == 99
    assert "train.parquet" in capsys.readouterr().out
    script.main(["--output_dir", str(tmp_path / "few"), "--held_out", "1"])
    few = {
        path.stem: datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path))
        for path in (tmp_path / "few").iterdir()
    }
    assert few["train"].to_list() == found["train"].to_list()
    assert all(few[name].to_list() == found[name].to_list()[:1] for name in ("validation", "test"))


def test_a_folder_that_is_there_is_refused_in_a_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main(["--output_dir", str(tmp_path)])
    assert capsys.readouterr().err.startswith("fetch_debian_pairs.py: error: ")


def test_an_update_without_descriptions_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(script.subprocess, "run", lambda command, check: None)
    with pytest.raises(FileNotFoundError, match="expected one for every source"):
        script.download(tmp_path)
