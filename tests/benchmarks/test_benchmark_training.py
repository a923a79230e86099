"""The training benchmark: all its loops train the same model in the same way."""

import json

import datasets
import pytest

from benchmarks.bench_training import LOOPS, main


@pytest.mark.parametrize("grouped", [False, True])
def test_all_loops_have_the_same_losses(tiny_clip, tiny_pairs, tmp_path, capsys, grouped):
    dataset = tiny_pairs
    if grouped:  # the groups of other pairs than the first, and captions that pairs share
        dataset = tmp_path / "grouped"
        for split in ("train", "validation", "test"):
            rows = datasets.Dataset.from_parquet(str(tiny_pairs / f"{split}.parquet"), cache_dir=str(tmp_path))
            groups = [number // 4 for number in reversed(range(len(rows)))]
            captions = [rows["caption"][number - number % 2] for number in range(len(rows))]  # each of two pairs
            rows = rows.remove_columns("caption").add_column("caption", captions).add_column("group", groups)
            rows.to_parquet(dataset / f"{split}.parquet")
    flags = f"--model {tiny_clip} --dataset {dataset} --exp_dir {tmp_path} --device cpu --batch_size 20"
    flags += f" --steps {2 if grouped else 3} --repeats 1"
    main([*flags.split(), "--out", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [name for name, *_ in rows] == list(LOOPS)
    losses = [loss for _, loss, *_ in rows]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)
    assert "captions/s" in capsys.readouterr().out
