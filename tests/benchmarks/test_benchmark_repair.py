"""Benchmarks of the repair: every way has its row, and the ways are what their names say."""

import json

import numpy as np
import pytest
import torch

from benchmarks import captions_alone, foretell_deployed, repair_ablation, repair_deployed, repair_ranks
from benchmarks.frame import describe_change
from benchmarks.repair_ablation import AllAtOnce, BiasAlone, NoGuard, ProjectionAlone, ReplaceMe, Way, repair_by
from common import model_dir
from common.matrix_files import MatrixSettings
from data import load_pairs
from models.repair import draw_captions, repaired
from search_strategy.fine import Evaluation, FineSearch
from search_strategy.rivals import all_subsets


def changed(before, after) -> set[str]:
    """Names of the weights that are not equal."""
    after = after.model.state_dict()
    return {name for name, weight in before.model.state_dict().items() if not weight.equal(after[name])}


def test_each_way_changes_what_it_says(clip, captions):
    left_out, block = clip.drop((2,)), "text_model.encoder.layers.0.mlp.fc2"
    assert changed(left_out, repair_by(Way("", NoGuard), clip, (2,), captions)) == {
        f"{block}.weight",
        f"{block}.bias",
        "text_projection.weight",
    }
    assert changed(left_out, repair_by(Way("", ProjectionAlone), clip, (2,), captions)) == {"text_projection.weight"}

    class BiasWithoutGuard(NoGuard, BiasAlone):
        pass

    biased = repair_by(Way("", BiasWithoutGuard), clip, (2,), captions)
    assert changed(left_out, biased) == {f"{block}.bias", "text_projection.weight"}


def test_the_map_of_replaceme_is_of_the_mlps_output(clip, captions):
    class Unguarded(NoGuard, ReplaceMe):
        pass

    old = clip.drop((2,)).model.get_submodule("text_model.encoder.layers.0.mlp.fc2")
    new = repair_by(Way("", Unguarded), clip, (2,), captions).model.get_submodule("text_model.encoder.layers.0.mlp.fc2")
    both = [torch.cat([linear.weight.T, linear.bias[None]]).double() for linear in (old, new)]
    found = torch.linalg.lstsq(both[0], both[1]).solution
    torch.testing.assert_close(both[0] @ found, both[1], atol=1e-4, rtol=1e-4)


def test_one_cut_is_the_same_at_once_and_one_after_the_other(clip, captions):
    once, after = (repair_by(Way("", way), clip, (3,), captions) for way in (AllAtOnce, repair_ablation.Repairer))
    torch.testing.assert_close(once.embeddings(captions), after.embeddings(captions), atol=1e-6, rtol=0)


def test_the_ablation_has_a_row_for_every_way(tiny_clip, tiny_pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(repair_ablation, "NUMBERS", (30,))
    monkeypatch.setattr(repair_ablation, "WAYS", [*repair_ablation.WAYS[:9], Way("30 captions", captions=30)])
    places = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path)]
    repair_ablation.main([*places, "--num_clip_layers", "2", "--captions", "50", "--out", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [tuple(row["proposal"]) for row in rows if row["way"] == "left out"][:2] == [(3, 4), (2, 4)]
    assert {row["way"] for row in rows} == {"full", "left out", *(way.name for way in repair_ablation.WAYS)}
    out = capsys.readouterr().out
    assert "full model: task loss" in out
    assert "ReplaceMe's map" in out


def test_ranks_are_of_all_proposals_left_out_and_repaired(tiny_clip, tiny_pairs, tmp_path, capsys):
    folder = model_dir(tmp_path, str(tiny_clip))
    folder.mkdir(parents=True)
    matrix = np.eye(5) / 2  # the sum of all proposals is the same
    np.save(MatrixSettings("dc", dataset=str(tiny_pairs)).path(folder), matrix)
    other = np.corrcoef(np.cumsum(np.random.default_rng(0).normal(size=(5, 30)), axis=0))
    np.save(MatrixSettings("cka", dataset=str(tiny_pairs)).path(folder), other)
    places = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path)]
    repair_ranks.main([*places, "--num_clip_layers", "2", "--out", str(tmp_path / "out.json")])
    content = json.loads((tmp_path / "out.json").read_text())
    assert len(content["proposals"]) == 6
    assert 0 <= content["change"]["worse_beyond_noise"] <= content["change"]["worse"] <= 6
    ranks = {(row["matrix"].split("_")[0], row["score"]): row["repaired"] for row in content["ranks"]}
    assert ranks.keys() == {(name, score) for name in ("cka", "dc") for score in ("mean", "sum")}
    assert ranks["dc", "mean"] is None
    assert -1 <= ranks["cka", "sum"] <= 1
    assert "Spearman" in capsys.readouterr().out


def write_losses(path, losses):
    path.write_text(json.dumps({"all_subsets": losses, "record": {}}))
    return path


def test_the_worst_of_one_pass_come_first_then_others_at_random(tmp_path):
    subsets = all_subsets(4, 2)
    names = [",".join(map(str, proposal)) for proposal in subsets]
    left_out = write_losses(tmp_path / "left_out.json", dict.fromkeys(names, 1.0))
    mended = write_losses(tmp_path / "repaired.json", dict.fromkeys(names, 0.5) | {"2,3": 1.5, "1,4": 1.2})
    found = repair_deployed.choose_proposals(subsets, 3, 0, [left_out, mended], worst=2)
    assert found[:2] == [(2, 3), (1, 4)]
    assert len(set(found)) == 5
    assert sorted(repair_deployed.choose_proposals(subsets, 100, 0, [], worst=2)) == subsets


def test_what_is_deployed_is_scored_on_validation(tiny_clip, tiny_pairs, clip, captions, tmp_path, capsys):
    places = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path)]
    repair_deployed.main([*places, "--num_clip_layers", "2", "--draws", "2", "--out", str(tmp_path / "out.json")])
    content = json.loads((tmp_path / "out.json").read_text())
    fine = FineSearch.from_pairs(clip, load_pairs(str(tiny_pairs), "validation"))
    assert content["change"]["proposals"] == len(content["proposals"]) == 2
    for proposal, left_out, mended in content["proposals"]:
        model = repaired(clip, proposal, draw_captions(captions, seed=0))
        assert mended == pytest.approx(fine.task.score(model.embeddings(fine.samples)).values.mean().item())
        assert left_out == pytest.approx(fine.objectives([proposal])[0])
    assert "largest rise" in capsys.readouterr().out


def test_a_repair_that_hurts_is_counted():
    before = [(2.0, 2.2), (3.0, 3.2), (2.0, 2.2), (2.0, 2.2)]  # two samples each
    after = [(1.5, 1.7), (3.0, 3.2), (1.9, 2.5), (2.25, 2.45)]
    left_out, mended = (
        [Evaluation((2,), sum(pair) / 2, {}, np.array(pair)) for pair in pairs] for pairs in (before, after)
    )
    found = describe_change(left_out, mended, 1.0)
    assert (found["proposals"], found["worse"], found["worse_beyond_noise"]) == (4, 2, 1)
    assert found["largest_rise"] == pytest.approx(0.25)


def test_captions_alone_are_compared_with_the_losses_of_the_file(tiny_clip, tiny_pairs, clip, tmp_path, capsys):
    subsets = all_subsets(4, 2)
    samples = load_pairs(str(tiny_pairs), "validation", images=False).captions
    full = clip.embeddings(samples)
    distances = {p: 1 - (full * clip.drop(p).embeddings(samples)).sum(-1).mean().item() for p in subsets}
    names = {",".join(map(str, proposal)): -distance for proposal, distance in distances.items()}
    losses = write_losses(tmp_path / "losses.json", names)
    places = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path)]
    captions_alone.main([*places, "--losses", str(losses), "--repair", "false", "--out", str(tmp_path / "out.json")])
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["spearman"] == pytest.approx(-1)
    near = content["nearest"][0]
    assert near["distance"] == pytest.approx(min(distances.values()), abs=1e-6)
    assert near["rank"] == 6
    assert "rank by loss" in capsys.readouterr().out


def test_what_is_deployed_is_foretold_by_the_losses_in_their_order(tmp_path, capsys):
    subsets = all_subsets(4, 2)
    deployed = tmp_path / "deployed.json"
    deployed.write_text(json.dumps({"proposals": [(p, 9.0, float(number)) for number, p in enumerate(subsets)]}))
    losses = write_losses(tmp_path / "losses.json", {",".join(map(str, p)): -n for n, p in enumerate(subsets)})
    foretell_deployed.main([str(deployed), "--losses", str(losses)])
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row == ["losses", "-1.00", "-1.00", "-1.00", "[[3,", "4]]", "6", "5.0000"]
