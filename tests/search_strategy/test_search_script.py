"""The search script: its files, its table, and what it says to wrong input."""

import json
from itertools import combinations

import numpy as np
import pytest

from commands.search import print_refitted
from common import model_dir, write_json
from common.matrix_files import MatrixSettings
from data import load_pairs
from measures.combine import combine
from search_strategy import search_prune_then_verify_mix as script
from search_strategy.coarse import SEARCH_MODES, coarse_search


@pytest.fixture
def run(tiny_clip, tiny_pairs, tmp_path):
    """Run the script on the tiny model with a random matrix in place; returns the result's content."""
    folder = tmp_path / model_dir(tmp_path, str(tiny_clip)).name
    folder.mkdir()
    walk = np.cumsum(np.random.default_rng(0).normal(size=(5, 30)), axis=0)
    matrix = (np.corrcoef(walk) + np.corrcoef(walk).T) / 2
    for measure in ("dc", "svcca", "cka"):
        np.save(MatrixSettings(measure, dataset=str(tiny_pairs)).path(folder), matrix)

    def run(*flags, num_clip_layers=2):
        counts = ["--num_layers", "4", "--num_clip_layers", str(num_clip_layers)]
        places = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path)]
        script.main([*counts, *places, "--loss_batch_size", "20", *flags])
        newest = max(folder.glob("clip*.json"), key=lambda path: path.stat().st_mtime_ns)
        return json.loads(newest.read_text())

    run.folder, run.matrix = folder, matrix
    return run


@pytest.fixture
def fails(run, capsys):
    """Run with wrong input: exit status 2, one line on stderr, no new file; returns the line."""

    def fails(*flags, **counts):
        before = sorted(run.folder.rglob("*"))
        with pytest.raises(SystemExit) as error:
            run(*flags, **counts)
        assert error.value.code == 2
        assert sorted(run.folder.rglob("*")) == before
        return capsys.readouterr().err.strip().splitlines()[-1]

    return fails


@pytest.mark.parametrize("mode", SEARCH_MODES)
def test_coarse_search_alone_writes_the_best_proposals(run, mode, capsys):
    result = run("--search_mode", mode, "--coarse_search_only", "true", "--topk_num", "3")
    expected = coarse_search(run.matrix, 2, mode=mode, num_proposals=3)
    assert [(tuple(p["dropped_layers"]), p["coarse_score"]) for p in result["proposals"]] == expected
    assert result["winner"] == result["proposals"][0]
    assert all(p["task_loss"] is None and p["recall"] is None for p in result["proposals"])
    assert (result["num_layers"], result["num_clip_layers"], result["search_mode"]) == (4, 2, mode)
    assert result["record"]["flags"]["topk_num"] == 3
    assert "coarse score" in capsys.readouterr().out


def test_fine_search_ranks_by_task_loss_and_keeps_the_record(run, capsys):
    result = run("--topk_num", "4", "--refine", "0", "--score", "mean")
    losses = [p["task_loss"] for p in result["proposals"]]
    assert len(losses) == 4 and losses == sorted(losses)
    assert result["winner"]["task_loss"] == losses[0]
    assert [p["rank"] for p in result["proposals"]] == [1, 2, 3, 4]
    for proposal in result["proposals"]:
        assert sorted(proposal["dropped_layers"] + proposal["kept_layers"]) == [1, 2, 3, 4]
        assert set(proposal["recall"]) == set(result["full_model"]["recall"])
    assert result["record"]["layer_calls"] < result["record"]["layer_calls_unshared"] == 8
    assert result["matrix"].startswith("dc_mat_mean_bs4_iter10")
    assert {path.suffix for path in run.folder.glob("clip4to2_beam_*")} == {".json", ".log", ".png"}
    out = capsys.readouterr().out
    assert "full" in out and "winner: drop" in out


def test_proposals_are_ranked_repaired_and_the_winner_is_refitted(run, capsys):
    result = run("--topk_num", "4")
    winner = result["winner"]
    assert result["repair"] is True
    for proposal in result["proposals"]:
        assert {"objective", "task_loss", "recall"} == set(proposal["left_out"])
    assert winner["objective"] == min(proposal["objective"] for proposal in result["proposals"])
    cuts = winner["refitted"]["repair"]["cuts"]
    assert [cut["segment"] for cut in cuts] == [*winner["segments"], None]
    figures = [found["objective"] for found in (winner["left_out"], winner, winner["refitted"])]
    out = capsys.readouterr().out
    assert "left out {:.4f}, repaired by one pass {:.4f}, repaired cut by cut {:.4f}".format(*figures) in out
    log = next(run.folder.glob("clip4to2_beam_*.log")).read_text()
    assert "repair of projection" in log


def test_the_best_of_the_refitted_proposals_wins(run, capsys):
    result = run("--topk_num", "4", "--refit", "3")
    first, *others = result["proposals"]
    refitted = [proposal["refitted"]["objective"] for proposal in (first, *others[:2])]
    assert not any("refitted" in proposal for proposal in others[2:])
    assert result["winner"]["refitted"]["objective"] == min(refitted)
    assert result["winner"] in result["proposals"]
    assert next(run.folder.glob("clip4to2_beam_*.json")).stem.endswith("_refit_3")
    assert "task_loss of rank 3: left out" in capsys.readouterr().out


@pytest.mark.parametrize(("left_out", "warned"), [(1.0, True), (3.0, False)])
def test_a_repair_that_makes_a_proposal_worse_is_warned_of(left_out, warned, capsys, caplog):
    row = {"rank": 1, "objective": 1.5, "refitted": {"objective": 2.0}, "left_out": {"objective": left_out}}
    print_refitted(row, "task_loss")
    assert ("rank 1 is worse for its repair" in caplog.text) == warned
    assert "repaired cut by cut 2.0000" in capsys.readouterr().out


def test_few_pairs_are_warned_of(run, capsys):
    run("--topk_num", "1", "--refine", "0", "--repair", "false")
    assert "warning: 60 pairs of validation are few" in capsys.readouterr().err


def test_without_repair_the_search_is_as_published(run):
    repaired, plain = run("--topk_num", "4"), run("--topk_num", "4", "--repair", "false", "--refine", "0")
    assert plain["repair"] is False
    assert not any({"left_out", "refitted"} & set(proposal) for proposal in plain["proposals"])
    left_out = {str(p["segments"]): p["left_out"]["task_loss"] for p in repaired["proposals"]}
    for proposal in plain["proposals"]:
        assert proposal["task_loss"] == pytest.approx(left_out[str(proposal["segments"])], abs=1e-9)
    assert len(list(run.folder.glob("clip4to2_beam_*_left_out_*.json"))) == 1


def test_refinement_is_never_worse_and_finds_the_best_of_few(run):
    every = run("--search_mode", "exhaustive", "--topk_num", "99", "--refine", "0")
    assert len(every["proposals"]) == 6
    losses = {tuple(p["dropped_layers"]): p["task_loss"] for p in every["proposals"]}
    refined = run("--topk_num", "1")
    start = next(tuple(p["dropped_layers"]) for p in refined["proposals"] if p["found_by"] == "coarse")
    assert refined["winner"]["task_loss"] == min(losses.values()) <= losses[start]
    assert refined["winner"]["dropped_layers"] == every["winner"]["dropped_layers"]


def test_random_proposals_are_seeded_and_need_no_matrix(run):
    flags = ("--select_measure", "rand", "--topk_num", "3", "--coarse_search_only", "true")
    first, again, other = run(*flags), run(*flags), run(*flags, "--seed", "5")
    drawn = [[tuple(p["dropped_layers"]) for p in result["proposals"]] for result in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) <= set(combinations(range(1, 5), 2))
    assert first["matrix"] is None and first["proposals"][0]["coarse_score"] is None


def test_combined_measures_search_the_mean_of_their_ranks(run):
    result = run("--select_measure", "combine", "--combine", "dc", "svcca", "--coarse_search_only", "true")
    expected = coarse_search(combine([run.matrix, run.matrix]), 2, mode="beam", num_proposals=10)
    assert [tuple(p["dropped_layers"]) for p in result["proposals"]] == [proposal for proposal, _ in expected]
    assert len(result["matrix"]) == 2


def test_race_and_embedding_objective_run_without_images(run, monkeypatch):
    opened = []
    monkeypatch.setattr("data.pairs.ImageFiles.encoded", lambda *_: opened.append(1))
    result = run("--objective", "embedding", "--race", "true", "--search_mode", "exhaustive", "--topk_num", "6")
    assert not opened
    assert result["winner"]["task_loss"] is None
    assert result["winner"]["objective"] == min(p["objective"] for p in result["proposals"])


def test_a_matrix_of_other_weights_is_searched_with_a_warning(run, tiny_pairs):
    path = MatrixSettings("dc", dataset=str(tiny_pairs)).path(run.folder)
    write_json(path.with_suffix(".json"), {"model": {"name": "other", "weights_sha256": "0" * 64}})
    (warning,) = run("--topk_num", "2", "--refine", "0")["record"]["warnings"]
    assert warning.startswith(f"{path}: made of other weights (other, 000000000000)")


def test_a_matrix_of_data_that_changed_since_is_searched_with_a_warning(run, tiny_pairs):
    path = MatrixSettings("dc", dataset=str(tiny_pairs)).path(run.folder).with_suffix(".json")
    train = load_pairs(str(tiny_pairs), "train", images=False).identity()
    for data, warned in (
        (train, False),
        (train | {"captions_sha256": "0" * 64, "max_pairs": 7}, False),  # of a part nothing is known
        (train | {"captions_sha256": "0" * 64}, True),
    ):
        write_json(path, {"data": data})
        found = run("--topk_num", "2", "--refine", "0", "--repair", "true")["record"]["warnings"]
        assert any("made of other captions than" in text for text in found) == warned
    path.unlink()


def test_sum_score_is_searched_and_named(run):
    result = run("--score", "sum", "--search_mode", "exact", "--coarse_search_only", "true")
    assert (
        result["winner"]["coarse_score"]
        == coarse_search(run.matrix, 2, mode="exact", num_proposals=1, score="sum")[0][1]
    )
    assert list(run.folder.glob("clip4to2_exact_*_score_sum_coarse.json"))


def test_wrong_numbers_of_layers_are_errors_with_both_numbers(fails, run):
    assert "num_clip_layers is 4; with num_layers 4 it must be in 1..3" in fails(num_clip_layers=4)
    assert "num_clip_layers is 0" in fails(num_clip_layers=0)
    assert "--num_layers is 5, but the text tower" in fails("--num_layers", "5")


def test_missing_matrix_names_the_file_those_there_and_the_command(fails):
    message = fails("--bs", "8", "--iter", "3")
    assert "dc_mat_mean_bs8_iter3" in message
    assert "there are" in message and "cca_mat_9600U" in message
    assert "dc_analysis.py --batch_size 8 --iter_num 3 --mode mean" in message


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(7), r"found shape (7, 7), expected (5, 5) for 4 layers"),
        (np.triu(np.ones((5, 5))), "not symmetric, by up to 1"),
        (np.where(np.eye(5), 1, np.nan), "found 20 entries that are NaN or infinite"),
    ],
)
def test_unusable_matrix_says_what_is_wrong_and_how_to_make_it_again(fails, run, tiny_pairs, matrix, message):
    np.save(MatrixSettings("dc", dataset=str(tiny_pairs)).path(run.folder), matrix)
    line = fails()
    assert message in line and "dc_analysis.py" in line


def test_flags_that_contradict_each_other_are_errors(fails):
    assert "--select_measure combine and --combine" in fails("--combine", "dc")
    assert "--mode U: dc has the modes mean, seq" in fails("--mode", "U")
    assert "expected true or false, got 'yes'" in fails("--race", "yes")
    assert "invalid choice: 'random'" in fails("--search_mode", "random")


def test_missing_model_and_data_are_errors(fails):
    assert "model not found: 'nowhere'" in fails("--model", "nowhere")
    assert "data set not found" in fails("--dataset", "nowhere.parquet", "--select_measure", "rand")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--select_measure", "combine", "--combine", "dc", "cka", "--bs", "8"),
            "combine takes no --bs: the matrices of",
        ),
        (("--select_measure", "cka", "--estimator", "unbiased"), "cka takes no --estimator: leave out"),
        (("--repair", "false", "--refit", "3"), "--refit repairs: leave out --repair false"),
        (("--select_measure", "dc", "--svcca_mode", "U"), "dc takes no --svcca_mode"),
        (("--select_measure", "rand", "--iter", "3", "--pool", "eos"), "rand takes no --iter, --pool"),
        (("--select_measure", "dc", "--mode", "seq", "--pool", "eos"), "--pool eos: --mode seq pools nothing"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(fails, flags, message):
    assert message in fails(*flags)


def test_another_batch_of_the_loss_replaces_no_result(run):
    run("--topk_num", "2", "--refine", "0")
    run("--topk_num", "2", "--refine", "0", "--loss_batch_size", "30")
    assert len(list(run.folder.glob("clip4to2_beam_dc_*.json"))) == 2


def test_a_first_try_on_few_pairs_has_a_name_of_its_own(run):
    result = run("--topk_num", "2", "--refine", "0", "--max_pairs", "25")
    assert result["record"]["data"]["captions"] == result["record"]["data"]["images"] == 25
    assert list(run.folder.glob("clip4to2_beam_dc_*_max25_*.json"))


def test_captions_of_a_stream_are_read_as_far_as_the_repair_needs(run, monkeypatch):
    monkeypatch.setattr("commands.search.REPAIR_CAPTIONS", 25)
    flags = ["--select_measure", "rand", "--topk_num", "2", "--refine", "0"]
    assert run(*flags)["record"]["train"]["captions"] == 60
    assert run(*flags, "--streaming", "true")["record"]["train"]["captions"] == 25
