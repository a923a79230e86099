"""The benchmark of depths: every stage of every depth."""

import json

import pytest

from benchmarks import deep

SIZES = "--depths 4 6 --width 8 --captions 32 --proposals 2 --pairs 20 --repair_captions 40 --threads 1"

pytestmark = pytest.mark.usefixtures("pictures_drawn")


def test_every_stage_of_every_depth_is_timed(tiny_clip, tiny_pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(deep, "in_own_process", lambda function, *args: function(*args))
    out = tmp_path / "deep.json"
    common = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path), "--device", "cpu"]
    deep.main([*common, *SIZES.split(), "--out", str(out)])
    content = json.loads(out.read_text())
    rows = content["rows"]
    stages = ["model", "dc", "svcca", "coarse, beam", "coarse, exact", "fine, left out", "fine, repaired"]
    stages += ["repair of the best", "all"]
    assert [(row["layers"], row["stage"]) for row in rows] == [(depth, stage) for depth in (4, 6) for stage in stages]
    assert all(row["peak MiB"] > 10 for row in rows)
    for depth in (4, 6):
        *parts, whole = [row["seconds"] for row in rows if row["layers"] == depth]
        assert abs(sum(parts) - whole) < 1e-6
    assert content["record"]["seconds"] >= sum(row["seconds"] for row in rows if row["stage"] == "all")
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "peak MiB" in capsys.readouterr().out


def test_stages_that_need_proposals_are_refused_without_them(capsys):
    with pytest.raises(SystemExit):
        deep.main(["--stages", "dc", "fine"])
    assert "--stages fine and repair take what coarse proposes" in capsys.readouterr().err
