"""The benchmark for GPUs runs on a CPU, where it must find no difference to the CPU."""

import json

from benchmarks import gpu


def test_every_part_of_every_model_is_timed_and_agrees_with_the_cpu(tiny_clip, tiny_pairs, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    common = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path), "--device", "cpu"]
    gpu.main([*common, "--quick", "true", "--shapes", "H/14", "--captions", "60", "--out", str(out)])
    written = json.loads(out.read_text())
    assert all(rate > 0 for rate in written["peak_operations_a_second"].values())
    rows = {(row["model"], row["part"], row["precision"]): row for row in written["rows"]}
    parts = {part for _, part, _ in rows}
    assert parts >= {"hidden states", "SVCCA", "DC", "repair sums", "fine search, repaired", "training epoch"}
    assert len(rows) == 2 * 9
    for (_, part, precision), row in rows.items():
        assert row["seconds"] > 0
        if part != "fine search, repaired":
            limits = {"float64": 1e-9, "float32": 1e-5}
            assert row["difference to CPU"] <= limits.get(precision, 0.1), (part, precision)
    assert "times plain" in capsys.readouterr().out
