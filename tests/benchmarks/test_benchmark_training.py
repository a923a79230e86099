"""The training benchmark: all its loops train the same model in the same way."""

import json

import pytest

from benchmarks.bench_training import LOOPS, main


def test_all_loops_have_the_same_losses(tiny_clip, tiny_pairs, tmp_path, capsys):
    flags = f"--model {tiny_clip} --dataset {tiny_pairs} --exp_dir {tmp_path} --device cpu --batch_size 20"
    flags += " --steps 3 --repeats 1"
    main([*flags.split(), "--out", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [name for name, *_ in rows] == list(LOOPS)
    losses = [loss for _, loss, *_ in rows]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)
    assert "captions/s" in capsys.readouterr().out
