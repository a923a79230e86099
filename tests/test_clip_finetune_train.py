"""The script from its flags to its files, and what it says to wrong input."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from transformers import CLIPModel, CLIPProcessor

import clip_finetune_train
from common import model_dir
from data import load_pairs
from models import load_encoder
from models.repair import draw_captions, repaired
from training.states import EpochStates


@pytest.fixture
def run(tiny_clip, tiny_pairs, tmp_path):
    """A function that calls the script with the tiny model and data, with flags as in a shell."""

    def call(flags: str, num_clip_layers: int = 2, num_layers: int = 4) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        numbers = f"--num_layers {num_layers} --num_clip_layers {num_clip_layers} --device cpu --batch_size 20"
        common = f"--model {tiny_clip} --dataset {tiny_pairs} --exp_dir {tmp_path / 'exp'} --output_dir out --lr 1e-3"
        clip_finetune_train.main(shlex.split(f"{numbers} {common} {flags}"))
        return tmp_path / "exp" / "out"

    return call


@pytest.fixture
def search_folder(tiny_clip, tmp_path) -> Path:
    """Where the search writes for the tiny model."""
    folder = model_dir(tmp_path / "exp", str(tiny_clip))
    folder.mkdir(parents=True)
    return folder


def write_result(path: Path, dropped_layers: list[int], hour: int) -> None:
    flags, model = {"dataset": "others", "caption_column": "en"}, {"weights_sha256": "0" * 64}
    record = {"date": f"2026-11-08T{hour:02}:00:00+00:00", "flags": flags, "model": model}
    path.write_text(json.dumps({"winner": {"dropped_layers": dropped_layers, "objective": 2.0}, "record": record}))


def figures(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_winner_of_the_newest_search_is_fine_tuned_and_reported(run, search_folder, capsys):
    write_result(search_folder / "clip4to2_beam_dc_mat_mean_bs4_iter10.json", [1, 4], hour=1)
    write_result(search_folder / "clip4to2_exact_dc_mat_mean_bs4_iter10.json", [2, 3], hour=2)
    write_result(search_folder / "clip4to3_beam_dc_mat_mean_bs4_iter10.json", [1], hour=3)
    folder = run("--max_epoch 2 --average last:2 --resume_epoch 0")
    log = (folder / "train.log").read_text()
    assert "clip4to2_exact_dc_mat_mean_bs4_iter10.json" in log
    assert "warning: that search was on others, this training is on " in log
    assert "warning: that search had the caption_column en, this training has None" in log
    assert "warning: that search was of other weights than those of " in log
    assert CLIPModel.from_pretrained(folder).config.text_config.num_hidden_layers == 2
    CLIPProcessor.from_pretrained(folder)
    report = json.loads((folder / "report.json").read_text())
    assert report["segments"] == [[2, 3]]
    assert list(report["test"]) == ["full", "pruned", "repaired", "fine-tuned"]
    assert [report["test"][name]["text_layers"] for name in report["test"]] == [4, 2, 2, 2]
    assert report["test"]["full"]["text_parameters"] > report["test"]["pruned"]["text_parameters"]
    for model in report["test"].values():
        assert {"task_loss", "text_to_image_recall_at_10", "milliseconds_per_caption"} <= set(model)
    assert [row["epoch"] for row in figures(folder)] == [1, 2]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (folder / "README.md").read_text()
    assert all(part in card for part in ("[[2, 3]]", "clip_finetune_train.py", "Validation", "Test"))
    assert str(folder.parent) not in card
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    assert data.base_model is None  # the hub does not know a folder of this machine
    assert {(r.metric_name, r.metric_value, r.dataset_split) for r in data.eval_results} == {
        (f"{way.replace('_', ' ')} R@10", report["test"]["fine-tuned"][f"{way}_recall_at_10"], "test")
        for way in ("text_to_image", "image_to_text")
    }
    table = capsys.readouterr().out
    assert all(name in table for name in ("full", "pruned", "repaired", "fine-tuned", "R@10"))


def test_without_training_the_repaired_model_is_the_checkpoint(run, tiny_clip, tiny_pairs, monkeypatch):
    monkeypatch.setattr("training.loop.PairBatches", None)  # nothing is tokenized for batches that no one takes
    folder = run("--clip_layers 2-3 --max_epoch 0")
    captions = draw_captions(load_pairs(str(tiny_pairs), "train", images=False).captions, 0)
    expected = repaired(load_encoder(str(tiny_clip)), (2, 3), captions).model.state_dict()
    found = CLIPModel.from_pretrained(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in found)
    report = json.loads((folder / "report.json").read_text())
    assert list(report["test"]) == ["full", "pruned", "repaired"]
    assert report["record"]["repair"]["after"] < report["record"]["repair"]["before"]
    assert 0 < report["record"]["seconds_repair"] < report["record"]["seconds"]
    card = (folder / "README.md").read_text()
    assert "repaired by linear maps" in card
    assert "without training" in card
    log = (folder / "train.log").read_text()
    assert "repair of layers 2 to 3" in log
    assert "train: 60 captions;" in log  # and no image of them


def test_what_was_skipped_of_the_data_is_in_the_report(run, tmp_path):
    captions = ["", *(f"a square of {number} red points" for number in range(300))]
    (tmp_path / "some.csv").write_text("\n".join(["caption", *(f'"{caption}"' for caption in captions)]))
    folder = run(f"--clip_layers 2-3 --max_epoch 0 --images false --dataset {tmp_path / 'some.csv'}")
    found = json.loads((folder / "report.json").read_text())["record"]["warnings"]
    assert any("some.csv: skipped 1 of 301 captions" in warning for warning in found)


def test_without_repair_the_start_is_the_pruned_model(run, tiny_clip):
    folder = run("--clip_layers 2-3 --max_epoch 0 --repair false")
    expected = load_encoder(str(tiny_clip)).drop((2, 3)).model.state_dict()
    found = CLIPModel.from_pretrained(folder).state_dict()
    assert all(found[name].equal(expected[name]) for name in found)
    assert list(json.loads((folder / "report.json").read_text())["test"]) == ["full", "pruned"]
    assert "repaired" not in (folder / "README.md").read_text()


def test_a_file_named_is_taken_before_a_newer_one(run, search_folder, tmp_path):
    write_result(search_folder / "clip4to2_beam_dc_mat_mean_bs4_iter10.json", [1, 4], hour=1)
    write_result(tmp_path / "mine.json", [2, 4], hour=0)
    folder = run(f"--max_epoch 1 --search_result {tmp_path / 'mine.json'}")
    assert json.loads((folder / "report.json").read_text())["dropped_layers"] == [2, 4]


def test_captions_alone_end_nearer_to_the_full_model(run):
    folder = run("--clip_layers '[[2, 3]]' --images false --max_epoch 3")
    test = json.loads((folder / "report.json").read_text())["test"]
    assert test["full"]["distance"] == pytest.approx(0, abs=1e-9)
    assert test["fine-tuned"]["distance"] < test["pruned"]["distance"]


def test_from_scratch_both_towers_are_trained_without_any_weights_to_start_from(run, tiny_clip, tmp_path):
    folder = run("--clip_mode scratch --freeze_vision false --max_epoch 1", num_clip_layers=0)
    trained, before = (CLIPModel.from_pretrained(path).state_dict() for path in (folder, tiny_clip))
    assert trained.keys() == before.keys()
    assert not any(trained[name].equal(before[name]) for name in trained if name.endswith("proj.weight"))


def test_from_scratch_a_frozen_image_tower_is_the_models(run, tiny_clip):
    folder = run("--clip_mode scratch --max_epoch 1", num_clip_layers=3)
    trained, before = (CLIPModel.from_pretrained(path).state_dict() for path in (folder, tiny_clip))
    assert all(trained[name].equal(before[name]) for name in trained if name.startswith("vision"))
    assert not trained["text_projection.weight"].equal(before["text_projection.weight"])
    assert CLIPModel.from_pretrained(folder).config.text_config.num_hidden_layers == 1


def test_a_schedule_is_one_command_and_goes_on_where_it_was_stopped(run, tmp_path):
    flags = "--schedule 4,3,2 --max_epoch 1"
    folder = run(flags)
    first = tmp_path / "exp" / "out_4to3"
    layers = [CLIPModel.from_pretrained(path).config.text_config.num_hidden_layers for path in (first, folder)]
    assert layers == [3, 2]
    reports = [json.loads((path / "report.json").read_text()) for path in (first, folder)]
    assert [report["test"]["pruned"]["text_layers"] for report in reports] == [3, 2]
    assert [report["test"]["full"]["text_layers"] for report in reports] == [4, 4]
    weights = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    shutil.rmtree(EpochStates(folder).folder)
    assert (run(f"{flags} --resume_epoch 1") / "model.safetensors").read_bytes() == weights


def test_with_no_layer_to_drop_the_full_model_is_tuned(run, tiny_clip):
    folder = run("--max_epoch 1 --layerdrop 0.5", num_clip_layers=0)
    trained, before = (CLIPModel.from_pretrained(path).state_dict() for path in (folder, tiny_clip))
    assert trained.keys() == before.keys()
    assert not trained["text_projection.weight"].equal(before["text_projection.weight"])


WRONG = {
    "no search result: looked for .*clip4to2_[*]_[*].json; run: python search_strategy/.* --num_clip_layers 2 ": "",
    "--num_layers is 5, but the text tower of .* has 4 layers": ("--clip_layers 2-3", 2, 5),
    "num_clip_layers is 4; with num_layers 4 it must be in 0[.][.]3": ("", 4),
    "num_clip_layers is -1; with num_layers 4 it must be in 0[.][.]3": ("", -1),
    "layer 5 cannot be dropped: the model has layers 1 to 4": "--clip_layers 4-5",
    "'2' repeats layer 2": "--clip_layers 2,2",
    "3 layers are to be dropped, .*, but num_clip_layers is 2": "--clip_layers 1-3",
    "search result not found: nothing.json; name another with": "--search_result nothing.json",
    "pass --clip_layers or --search_result, not both": "--clip_layers 2-3 --search_result x.json",
    "no state of epoch 3 to go on from; --resume_epoch can be: none": "--clip_layers 2-3 --resume_epoch 3",
    "--images false trains by --distill_mode feature": "--clip_layers 2-3 --images false --distill_mode logit",
    "--images false needs --freeze_vision true": "--clip_layers 2-3 --images false --freeze_vision false",
    "--augment true changes what the full model": "--clip_layers 2-3 --augment true --distill_mode feature",
    "--average takes the mean of epochs: pass --max_epoch 1": "--clip_layers 2-3 --max_epoch 0 --average best:2",
    "leave out --target_column, which is for sentence encoders": "--clip_layers 2-3 --target_column caption",
    "leave out --clip_layers and --search_result": "--clip_mode scratch --clip_layers 2-3",
    "--precision fp16 needs --device cuda; on a CPU pass bf16": "--clip_layers 2-3 --precision fp16",
    "data set not found: looked for the file nothing.csv": "--clip_layers 2-3 --dataset nothing.csv",
    "argument --lr: expected a finite number of at least 0, got 'inf'": "--clip_layers 2-3 --lr inf",
    "argument --keep_epochs: expected a number of at least 1, got '0'": "--clip_layers 2-3 --keep_epochs 0",
    "--schedule goes from 3 to 2 layers; expected .* 4 to 2": "--schedule 3,2",
    "expected best:N or last:N with N of at least 2, got 'best'": "--clip_layers 2-3 --average best",
    "expected true or false, got 'yes'": "--clip_layers 2-3 --images yes",
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_one_line_and_nothing_is_written(run, tmp_path, capsys, message: str):
    arguments = WRONG[message] if isinstance(WRONG[message], tuple) else (WRONG[message],)
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert not (tmp_path / "exp" / "out").exists()


def test_a_search_result_that_is_none_is_named(run, tmp_path, capsys):
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SystemExit):
        run(f"--search_result {tmp_path / 'bad.json'}")
    assert "bad.json: expected a search result with a winner and its dropped_layers" in capsys.readouterr().err


def test_another_run_is_neither_overwritten_nor_gone_on_with(run, capsys):
    folder = run("--clip_layers 2-3 --max_epoch 1")
    before = {path: path.stat().st_mtime_ns for path in folder.parent.glob("out*/**/*")}
    for flags, message in (
        ("", "pass --resume_epoch 1 to go on"),
        ("--resume_epoch 1 --lr 3", "started with lr 0.001 (now 3.0)"),
    ):
        with pytest.raises(SystemExit):
            run(f"--clip_layers 2-3 --max_epoch 1 {flags}")
        assert message in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in folder.parent.glob("out*/**/*")} == before


def test_tensorboard_that_is_not_installed_is_named(run, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        run("--clip_layers 2-3 --report_to tensorboard")
    assert "pip install tensorboard" in capsys.readouterr().err
