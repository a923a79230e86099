"""The benchmark of a model too deep to try everything."""

import json

from benchmarks import deep_search


def test_random_search_has_so_many_times_the_proposals_of_the_largest_default_search(
    tiny_clip, tiny_pairs, tmp_path, capsys
):
    out = tmp_path / "deep.json"
    common = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path), "--device", "cpu"]
    flags = ["--num_clip_layers", "2", "--num_pairs", "40", "--num_seeds", "2", "--times", "3", "--out", str(out)]
    deep_search.main([*common, *flags])
    rows = {row["search"]: row for row in json.loads(out.read_text())["rows"]}
    defaults = [rows[f"default search, seed {seed}"] for seed in (0, 1)]
    randoms = [row for name, row in rows.items() if name.startswith("random")]
    # 4 layers have only 6 subsets of 2: all searches see all of them, and agree
    assert {row["proposals"] for row in defaults} == {6}
    assert all(row["task loss"] == defaults[0]["task loss"] for row in defaults)
    assert min(row["task loss"] for row in randoms) >= defaults[0]["task loss"]
    assert rows["greedy by task loss"]["task loss"] >= defaults[0]["task loss"]
    assert "full model: task loss" in capsys.readouterr().out
