"""The search benchmark: its plain beam against ours, and its command line."""

import json
import os
from itertools import combinations

import numpy as np
import pytest

from benchmarks import replay_search
from benchmarks.bench_search import limit_cores, main, plain_beam, walk_matrix
from search_strategy.coarse import coarse_search


@pytest.mark.parametrize("num_layers", [2, 7, 12, 24])
def test_plain_beam_finds_what_the_beam_mode_finds(num_layers):
    matrix = walk_matrix(num_layers, seed=1)
    plain = plain_beam(matrix, num_layers // 2)
    beam = coarse_search(matrix, num_layers // 2, mode="beam", num_proposals=10)
    assert [dropped for dropped, _ in plain] == [dropped for dropped, _ in beam]
    assert [score for _, score in plain] == pytest.approx([score for _, score in beam])


def test_matrix_is_a_seeded_correlation_matrix():
    matrix = walk_matrix(12, seed=0)
    assert matrix.shape == (13, 13)
    assert np.diag(matrix) == pytest.approx(np.ones(13))
    assert (matrix == walk_matrix(12, seed=0)).all()
    assert (matrix != walk_matrix(12, seed=1)).any()
    assert np.diag(matrix, 1).mean() > np.diag(matrix, 8).mean()


def test_command_line_prints_a_table_and_writes_the_rows(tmp_path, capsys):
    out = tmp_path / "benchmark.json"
    main(["--sizes", "4", "8", "--beam_up_to", "4", "--repeats", "1", "--out", str(out)])
    small, large = json.loads(out.read_text())["rows"]
    assert (small["num_layers"], small["num_clip_layers"], small["num_missed"]) == (4, 2, 0)
    assert large["num_layers"] == 8
    assert large["beam_seconds"] is large["ratio"] is large["num_missed"] is None
    assert "missed by the beam" in capsys.readouterr().out


def test_cores_cannot_be_limited_everywhere(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(ValueError, match="--threads: this system cannot limit the cores"):
        limit_cores(1)


def test_recorded_losses_are_climbed_again(tmp_path, capsys):
    weights = np.random.default_rng(0).normal(size=8)
    losses = {p: float(weights[np.array(p) - 1].sum()) for p in combinations(range(1, 9), 3)}
    record = {"all_subsets": {",".join(map(str, p)): loss for p, loss in losses.items()}}
    (tmp_path / "compare.json").write_text(json.dumps(record | {"record": {}}))
    out = tmp_path / "out.json"
    words = [str(tmp_path / "compare.json"), "--draws", "5", "--starts", "4", "--chances", "0.01", "0"]
    replay_search.main([*words, "--out", str(out)])
    usual, thorough = json.loads(out.read_text())["rows"]
    assert usual["best found, %"] == thorough["best found, %"] == 100 and thorough["largest rank"] == 1
    assert usual["layer calls"] < thorough["layer calls"] <= thorough["most"]
    assert "layer calls" in capsys.readouterr().out
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(SystemExit):
        replay_search.main(words)
    assert "compare.json: expected a file of compare_strategies.py" in capsys.readouterr().err
