"""The recovery benchmark: its curves and its table."""

import json

from benchmarks.recovery import Curve, main


def test_steps_to_a_recall_are_those_of_the_first_look_that_has_it():
    curve = Curve([(0, 0.1), (10, 0.3), (20, 0.2), (30, 0.5)])
    assert [curve.steps_to(recall) for recall in (0.1, 0.2, 0.4, 0.9)] == [0, 10, 30, None]


def test_runs_start_from_the_same_two_models_and_look_as_often_as_asked(tiny_clip, tiny_pairs, tmp_path, capsys):
    flags = f"--model {tiny_clip} --dataset {tiny_pairs} --exp_dir {tmp_path} --device cpu --batch_size 20 --weights 4"
    main([*flags.split(), *f"--clip_layers 2-3 --num_epochs 2 --every 2 --out {tmp_path / 'out.json'}".split()])
    curves = json.loads((tmp_path / "out.json").read_text())["curves"]
    assert len(curves) == 4
    starts = [curve[0] for curve in curves.values()]  # plain, repaired; the same with distillation
    assert starts[:2] == starts[2:]
    assert [name.partition(",")[0] for name in curves] == ["plain", "repaired"] * 2
    assert all([step for step, _ in curve] == [0, 2, 5] for curve in curves.values())
    assert "full model: R@10" in capsys.readouterr().out
