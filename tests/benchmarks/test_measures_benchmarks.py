"""The two benchmark scripts at tiny sizes: they run, and what they print is right."""

import json
import os

import pytest
import torch

from benchmarks import bench_measures, independence_floor
from benchmarks.frame import in_own_process
from measures.svcca import SVCCA

TINY = ["--samples", "300", "--width", "12", "--layers", "4", "--dc_batch_sizes", "5", "--repeats", "1"]


def run(tmp_path, *flags):
    bench_measures.main([*TINY, "--out", str(tmp_path / "rows.json"), "--parts", *flags])
    return json.loads((tmp_path / "rows.json").read_text())["rows"]


def test_ours_agrees_with_the_plain_versions(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_measures, "in_own_process", lambda function, *args: function(*args))
    rows = run(tmp_path, "svcca", "dc")
    svcca = {row["SVCCA, all pairs"]: row for row in rows["svcca"]}
    dc = {row["DC, one batch"]: row for row in rows["dc"]}
    assert svcca["ours"]["difference"] < 1e-12
    assert dc["ours"]["difference"] < 1e-12
    assert svcca["plain, per pair"]["note"] == "all 10 pairs"
    assert svcca["plain, per pair, NumPy"]["difference"] < 1e-12
    assert "plain, per pair, NumPy" in capsys.readouterr().out


def test_a_process_of_its_own_is_another():
    assert in_own_process(os.getpid) != os.getpid()


def test_what_is_extrapolated_says_so(tmp_path):
    rows = run(tmp_path, "svcca", "--pairs", "3")
    (note,) = {row["note"] for row in rows["svcca"] if row["SVCCA, all pairs"].startswith("plain")}
    assert note == "EXTRAPOLATED from 3 of 10 pairs"


def test_the_floor_of_svcca_is_as_expected():
    generator = torch.Generator().manual_seed(0)
    for samples, directions in ((400, 40), (400, 300)):
        measure = SVCCA(thre=1.0)
        measure.update(independence_floor.gaussian_layers(samples, directions, 2, generator))
        if samples < 2 * directions:
            with pytest.warns(UserWarning, match="too few"):
                found = measure.matrix()[0, 1]
        else:
            found = measure.matrix()[0, 1]
        assert found == pytest.approx(independence_floor.mean_canonical_correlation(directions, samples), abs=5e-3)
