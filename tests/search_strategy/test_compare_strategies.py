"""The panel of rivals: its ranks against the truth, its figures, its files."""

import json
from itertools import combinations

import numpy as np
import pytest

from common import model_dir
from common.matrix_files import MatrixSettings
from data import load_pairs
from measures import KINDS
from models import load_clip
from models.repair import draw_captions
from models.segment_maps import SegmentMaps
from search_strategy import compare_strategies as script
from search_strategy.fine import FineSearch
from search_strategy.proposals import segments
from search_strategy.results import describe_figures
from search_strategy.rivals import compare_pairs

SUBSETS = list(combinations(range(1, 5), 2))


@pytest.fixture(scope="module")
def losses(tiny_clip, tiny_pairs):
    """The task loss of every way to drop two of the four layers, on validation."""
    fine = FineSearch.from_pairs(
        load_clip(str(tiny_clip), "cpu"), load_pairs(str(tiny_pairs), "validation"), loss_batch_size=20
    )
    return dict(zip(SUBSETS, fine.objectives(SUBSETS), strict=True))


@pytest.fixture(scope="module")
def folder(tiny_clip, tmp_path_factory):
    """Where the matrices are looked for and the comparison is written."""
    folder = model_dir(tmp_path_factory.mktemp("exp"), str(tiny_clip))
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def flags(tiny_clip, tiny_pairs, folder):
    places = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(folder.parent)]
    return ["--num_layers", "4", "--num_clip_layers", "2", "--loss_batch_size", "20", "--num_random", "5", *places]


@pytest.fixture(scope="module")
def matrices(folder, tiny_pairs):
    """A matrix of every measure, from a random walk of its own."""
    made = {}
    for seed, name in enumerate(KINDS):
        walk = np.cumsum(np.random.default_rng(seed).normal(size=(5, 30)), axis=0)
        made[name] = np.corrcoef(walk)
        np.save(MatrixSettings(name, dataset=str(tiny_pairs)).path(folder), made[name])
    return made


def written(folder, sizes, end):
    """The file of a comparison on `tiny_pairs`: the sizes in its name, and what comes after the data set."""
    return next(folder.glob(f"compare_clip4{sizes}_*tiny_pairs0{end}"))


@pytest.fixture(scope="module")
def comparison(folder, flags, matrices):
    """The files of one run with every number of layers."""
    script.main([*flags, "--all_k", "true", "--repair", "false"])
    return [json.loads(written(folder, tag, "_left_out.json").read_text()) for tag in ("to2", "_all_k")]


def test_missing_matrices_are_made_of_every_draw(tiny_clip, tiny_pairs, tmp_path, capsys):
    own = model_dir(tmp_path, str(tiny_clip))
    places = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path)]
    flags = ["--num_layers", "4", "--num_clip_layers", "2", "--repair", "false", "--draws", "2", *places]
    script.main(flags)
    # 60 captions are too few for the default settings
    assert "train has 60 captions: matrices of fewer than usual, and draws overlap" in capsys.readouterr().err
    settings = [
        MatrixSettings(name, dataset=str(tiny_pairs), seed=seed).within(60) for name in KINDS for seed in (0, 1)
    ]
    made = {path: path.stat().st_mtime_ns for path in own.glob("*.npy")}
    assert made.keys() == {one.path(own) for one in settings}
    script.main(flags)  # reads what is there
    assert made == {path: path.stat().st_mtime_ns for path in own.glob("*.npy")}
    record = json.loads(settings[-1].path(own).with_suffix(".json").read_text())
    assert record["model"]["weights_sha256"]
    content = json.loads(written(own, "to2", "_left_out.json").read_text())
    assert {len(row["spearman"]) for row in content["coarse_scores"]} == {1, 2}  # 1: of the rules without a matrix
    assert all(len(row["rank"]) == 2 for row in content["default_search"])
    assert content["all_subsets"].keys() == {"1,2", "1,3", "1,4", "2,3", "2,4", "3,4"}
    assert min(content["all_subsets"].values()) == min(r["task_loss"] for r in content["strategies"] if r["rank"] == 1)


def test_every_row_has_the_loss_of_its_layers_and_its_rank_among_all(comparison, losses):
    rows = comparison[0]["strategies"]
    for row in rows:
        proposal = tuple(layer for first, last in row["segments"] for layer in range(first, last + 1))
        assert row["task_loss"] == pytest.approx(losses[proposal], abs=1e-6)
        assert row["rank"] == 1 + sum(loss < losses[proposal] for loss in losses.values())
        assert row["regret"] == pytest.approx(losses[proposal] - min(losses.values()), abs=1e-6)
    assert [row["task_loss"] for row in rows] == sorted(row["task_loss"] for row in rows)


def test_with_repair_rows_have_the_losses_of_both_ways(flags, folder, matrices, losses, tiny_clip, tiny_pairs, capsys):
    script.main(flags)
    clip, train = load_clip(str(tiny_clip)), load_pairs(str(tiny_pairs), "train", images=False)
    maps = SegmentMaps(clip, draw_captions(train.captions, 0))
    pairs = load_pairs(str(tiny_pairs), "validation")
    fine = FineSearch.from_pairs(clip, pairs, loss_batch_size=20, maps=maps)
    repaired = dict(zip(SUBSETS, fine.objectives(SUBSETS), strict=True))
    for row in json.loads(written(folder, "to2", ".json").read_text())["strategies"]:
        proposal = tuple(layer for first, last in row["segments"] for layer in range(first, last + 1))
        assert row["task_loss"] == pytest.approx(repaired[proposal], abs=1e-6)
        assert row["rank"] == 1 + sum(loss < repaired[proposal] for loss in repaired.values())
        assert row["left_out"]["task_loss"] == pytest.approx(losses[proposal], abs=1e-6)
    assert "left out: task loss" in capsys.readouterr().out


def test_every_strategy_is_there_with_what_it_cost(comparison):
    rows = {row["strategy"]: row for row in comparison[0]["strategies"]}
    first = rows["keep layer 1, then the first layers"]
    assert first["segments"] == [[3, 4]] and first["proposals_evaluated"] == first["layer_calls"] == 0
    assert rows["every other layer, from 1"]["segments"] == [[1, 1], [3, 3]]
    assert rows["greedy by task loss"]["proposals_evaluated"] == 4 + 3
    assert rows["random, best of 5"]["task_loss"] <= rows["random, median of 5"]["task_loss"]
    for measure in ("dc", "svcca"):
        assert rows[f"CoMFLP as published ({measure})"]["rank"] == 1  # ten proposals are all there are
        assert rows[f"ours ({measure})"]["layer_calls"] <= 4 + 3 * 2 + 2 * 2
    climbs = rows["climb from a random proposal, mean of 5"]["runs"]
    assert climbs["rank"][0] >= 1 and climbs["layer_calls"][0] > 0 and climbs["task_loss"][1] >= 0


def test_the_figures_of_test_are_those_of_the_test_split(comparison, tiny_clip, tiny_pairs):
    clip = load_clip(str(tiny_clip), "cpu")
    validation, test = (load_pairs(str(tiny_pairs), split) for split in ("validation", "test"))
    scale = FineSearch.from_pairs(clip, validation, loss_batch_size=20).task.logit_scale
    test = FineSearch.from_pairs(clip, test, loss_batch_size=20, logit_scale=scale, objective="recall")
    rows = {row["strategy"]: row for row in comparison[0]["strategies"]}
    row, ours = rows["keep layer 1, then the first layers"], rows["ours (dc)"]
    best = tuple(layer for first, last in ours["segments"] for layer in range(first, last + 1))
    evaluation, reference = test.evaluate([(3, 4), best])
    assert row["test_task_loss"] == pytest.approx(evaluation.figures["task_loss"], abs=1e-6)
    assert row["test_recall"] == describe_figures(evaluation)["recall"]
    assert row["test_recall_at_10"] == pytest.approx(-evaluation.objective)
    assert row["to_ours"] == pytest.approx(compare_pairs(-evaluation.values, -reference.values))


def test_models_from_scratch_stand_beside_them(flags, folder, matrices, losses, tiny_clip, tiny_pairs, capsys):
    small = folder.parent / "small"
    load_clip(str(tiny_clip), "cpu").drop((1, 2)).save(small)
    script.main([*flags, "--repair", "false", "--scratch", str(small)])
    rows = {r["strategy"]: r for r in json.loads(written(folder, "to2", "_left_out.json").read_text())["strategies"]}
    row = rows["from scratch, 2 layers (small)"]
    fine = FineSearch.from_pairs(
        load_clip(str(small), "cpu"), load_pairs(str(tiny_pairs), "validation"), loss_batch_size=20
    )
    assert row["task_loss"] == pytest.approx(fine.full_model().objective, abs=1e-6)  # at its own best scale
    assert row["rank"] == 1 + sum(loss < row["task_loss"] for loss in losses.values())
    assert row["segments"] is None and row["layer_calls"] == 0 and "interval" in row["to_ours"]
    assert "from scratch, 2 layers (small)" in capsys.readouterr().out


@pytest.fixture
def earlier(comparison, tmp_path):
    """The comparison as a file whose best is another."""
    content = json.loads(json.dumps(comparison[0]))
    content["all_subsets"]["1,4"] = -1.0
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(content))
    return path


def test_losses_of_all_subsets_are_taken_from_an_earlier_file(flags, folder, earlier):
    script.main([*flags, "--losses", str(earlier), "--repair", "false", "--seed", "0", "--refine", "9"])
    content = json.loads(written(folder, "to2", "_left_out.json").read_text())
    assert content["all_subsets"] == json.loads(earlier.read_text())["all_subsets"]
    rows = {row["strategy"]: row for row in content["strategies"]}
    assert rows["ours (dc)"]["segments"] == [[1, 1], [4, 4]] and rows["ours (dc)"]["rank"] == 1
    assert rows["climb from a random proposal, mean of 5"]["runs"]["task_loss"] == [-1.0, 0.0]
    assert content["record"]["losses_of"]["date"] == json.loads(earlier.read_text())["record"]["date"]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("model", "weights_sha256", "0"),
        ("validation", "captions_sha256", "0"),
        ("validation", "images", 3),
        ("flags", "repair", True),
        ("flags", "loss_batch_size", 21),
        ("flags", "num_clip_layers", 1),
        ("all_subsets", "1,4", None),
    ],
)
def test_losses_of_another_comparison_are_refused(part, name, value, flags, earlier, folder, capsys):
    content = json.loads(earlier.read_text())
    if part == "all_subsets":
        del content[part][name]
    else:
        content["record"][part][name] = value
    earlier.write_text(json.dumps(content))
    log = written(folder, "to2", "_left_out.log")
    before = log.read_text()
    with pytest.raises(SystemExit):
        script.main([*flags, "--repair", "false", "--losses", str(earlier)])
    error = capsys.readouterr().err
    assert "earlier.json: expected a file of compare_strategies.py" in error
    assert ("found 5 subsets" if part == "all_subsets" else f"found {name} {value}, not") in error
    assert log.read_text() == before


def test_every_number_of_layers_has_its_best_proposal(comparison, losses):
    sizes = comparison[1]["sizes"]
    assert [row["layers_kept"] for row in sizes] == [4, 3, 2, 1]
    assert all(row["all_known"] for row in sizes)
    assert sizes[2]["segments"] == [list(segment) for segment in segments(min(losses, key=losses.get))]
    assert sizes[2]["task_loss"] == pytest.approx(min(losses.values()), abs=1e-6)
    for before, row in zip(sizes, sizes[1:], strict=False):
        assert row["nested"] == (set(before["dropped_layers"]) <= set(row["dropped_layers"]))


def test_tables_and_pictures_are_written(comparison, folder):
    for tag in ("to2", "_all_k"):
        assert written(folder, tag, "_left_out.png").read_bytes().startswith(b"\x89PNG")
    assert "ours (dc)" in written(folder, "to2", "_left_out.log").read_text()


def test_without_the_truth_there_are_no_ranks(folder, flags, matrices, comparison):
    script.main([*flags, "--max_subsets", "5", "--all_k", "true"])
    content = json.loads(written(folder, "to2", ".json").read_text())
    assert content["coarse_scores"] == content["default_search"] == []
    assert all(row["rank"] is None for row in content["strategies"])
    sizes = json.loads(written(folder, "_all_k", ".json").read_text())["sizes"]
    assert [row["all_known"] for row in sizes] == [True, True, False, True]
