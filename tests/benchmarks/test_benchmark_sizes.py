"""The benchmark of real sizes: what is counted of a process, the model it makes, the parts of a record."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import bounded_memory, sizes
from models import load_encoder

MEASURE = """
import json
from benchmarks.sizes import run_step
print(json.dumps([run_step(["-c", f"x = b'x' * {size}"]) for size in (1, 200_000_000)]))
"""


def test_memory_and_seconds_of_a_process_are_counted():
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=sizes.ROOT, capture_output=True, text=True, check=True)
    small, large = json.loads(done.stdout)
    assert large["peak_bytes"] - small["peak_bytes"] > 100e6
    assert large["cpu_seconds"] > 0 and large["wall_seconds"] > 0


def test_paths_with_spaces_reach_a_step_whole(tmp_path, monkeypatch):
    given = {}

    def run_step(words: list[str]) -> dict:
        given.update(zip(words[1::2], words[2::2], strict=True))
        matrix = Path(given["--exp_dir"], "model", "dc_mat_0.json")
        matrix.parent.mkdir(parents=True)
        matrix.write_text("{}")
        return {}

    monkeypatch.setattr(sizes, "ProcessPoolExecutor", lambda number, _: ThreadPoolExecutor(number))
    monkeypatch.setattr(sizes, "write_model", lambda *_: None)
    monkeypatch.setattr(sizes, "run_step", run_step)
    args = sizes.build_parser().parse_args(["--steps", "dc", "--dataset", "my 'own' pairs"])
    assert sizes.measure_steps(args, tmp_path / "a folder").keys() == {"dc"}
    assert given["--dataset"] == "my 'own' pairs"
    assert given["--model"] == str(tmp_path / "a folder" / "model")


def test_a_step_that_fails_is_named():
    with pytest.raises(ValueError, match=r"-c 'raise SystemExit\(3\)': ended with status 3"):
        sizes.run_step(["-c", "raise SystemExit(3)"])


def test_the_model_has_the_shape_of_its_size(tmp_path, monkeypatch):
    monkeypatch.setitem(sizes.SIZES, "tiny", (3, 32, 2, "gelu"))
    sizes.write_model("tiny", tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert (encoder.num_layers, encoder.width, encoder.dim) == (3, 32, 32)
    assert encoder.model.config.text_config.vocab_size == sizes.VOCABULARY


def test_parts_come_from_records_of_all_three_kinds(tmp_path):
    seconds = {"seconds_forward": 2.0, "seconds": 3.0, "other": 1}
    for name, text in (
        ("matrix.json", json.dumps(seconds)),
        ("search.json", json.dumps({"record": seconds})),
        ("metrics.jsonl", f"{json.dumps({'seconds': 9})}\n{json.dumps(seconds)}\n"),
    ):
        (tmp_path / name).write_text(text)
        assert sizes.read_parts(tmp_path / name) == {"forward": 2.0, "seconds": 3.0}


def test_a_search_without_a_matrix_is_refused(capsys):
    with pytest.raises(SystemExit):
        sizes.main(["--steps", "svcca", "coarse"])
    assert "--steps coarse and fine search the matrix of dc" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--retrieval", "true", "--most", "3"]])
def test_the_memory_of_a_fine_search(flags, tmp_path, capsys):
    out = tmp_path / "memory.json"
    bounded_memory.main(["--captions", "50", "--width", "8", "--num_layers", "4", "--out", str(out), *flags])
    found = json.loads(out.read_text())
    assert found["proposals"] == (3 if flags else 6) and found["mib"] >= found["mib_before"] > 0
    assert "proposals: " in capsys.readouterr().out
    assert found["record"]["command"].startswith("python -m benchmarks.bounded_memory --captions 50")
