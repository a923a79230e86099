"""Every situation of the table: one line says what is wrong, nothing is written, nothing that was there is damaged."""

import importlib
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState
from ground import DEAD, Ground
from situations import SCRIPTS, SITUATIONS, Situation

import clip_finetune_train

LONGEST_SECONDS = 60  # of a situation, which takes a fraction of one on a free core
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ ")


@pytest.fixture(scope="session")
def trained(tiny_clip, tiny_pairs, tmp_path_factory) -> Iterator[Path]:
    """The folder of a run of two epochs; its states are beside it."""
    exp = tmp_path_factory.mktemp("trained")
    module, flags = SCRIPTS["resume"]
    places = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(exp), "--device", "cpu"]
    AcceleratorState._reset_state(reset_partial_state=True)
    clip_finetune_train.main([*flags.split(), *places, "--max_epoch", "3", "--resume_epoch", "0"])
    shutil.rmtree(exp / "out.states/0003")
    yield exp / "out"
    PartialState(cpu=True)  # what leaves it at exit needs one


@pytest.fixture
def ground(tiny_clip, tiny_pairs, trained, tmp_path, monkeypatch) -> Ground:
    shutil.copytree(tiny_clip, tmp_path / "model")
    (tmp_path / "exp").mkdir()
    monkeypatch.setattr("examples.icon_search.RUNS", 2)  # this and what follows saves time
    monkeypatch.setattr("commands.evaluate.measure_milliseconds", lambda *_, **__: 1.0)
    return Ground(tmp_path, tmp_path / "model", str(tiny_pairs), monkeypatch, trained)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(situation: Situation, ground: Ground) -> object:
    """The exit status of the script."""
    module, flags = SCRIPTS[situation.script]
    script = importlib.import_module(module)
    flags = flags.format(exp=ground.exp).split()
    if situation.script == "icons":
        flags.insert(0, ground.query)
    places = {"model": ground.model, "dataset": ground.data, "exp_dir": ground.exp}
    known = {action.dest for action in script.build_parser()._actions}
    words = [word for name, place in places.items() if name in known for word in (f"--{name}", str(place))]
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        script.main([*flags, *words, *ground.flags])
    except SystemExit as error:
        return error.code
    finally:
        ground.undo()
    return 0


@pytest.fixture
def in_time():
    """Whatever waits for something that never comes is an error."""
    signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST_SECONDS)
    yield
    signal.alarm(0)


def late(*_: object) -> None:
    raise RuntimeError("it takes too long")


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_situation(situation: Situation, ground: Ground, in_time, capfd):
    situation.make(ground)
    before = contents(ground.root)
    capfd.readouterr()
    status = run(situation, ground)
    ground.patch.undo()
    out, err = capfd.readouterr()
    after = contents(ground.root)
    lines = err.strip().splitlines()
    assert status == situation.status, err
    assert "Traceback" not in err
    if status == 0:
        assert re.search(situation.says, out + err), out + err
        assert not [line for line in lines if not LOG_LINE.match(line)], err
    else:
        assert re.search(situation.says, lines[-1]), err
        others = [line for line in lines[:-1] if not LOG_LINE.match(line)]
        assert not others or others[0].startswith("usage: "), err
        new = [name for name in after if name not in before and not re.search(f"/cache/|{situation.leaves}", name)]
        assert not new
    assert not [name for name, content in before.items() if status and after.get(name) != content]
    assert not ground.canary.exists()
    assert not [name for name in after if DEAD in name]
