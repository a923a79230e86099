"""The benchmark that replays searches from a table of all subsets."""

import json
from itertools import combinations

import numpy as np

from benchmarks import default_search
from data import load_pairs
from measures import KINDS
from models import load_clip
from search_strategy.coarse import SCORES
from search_strategy.fine import FineSearch
from search_strategy.verify import climb

SUBSETS = list(combinations(range(1, 5), 2))


def test_a_replay_makes_the_layer_calls_of_the_fine_search(tiny_clip, tiny_pairs):
    pairs = load_pairs(str(tiny_pairs), "validation")
    fine = FineSearch.from_pairs(load_clip(str(tiny_clip), "cpu"), pairs, loss_batch_size=20)
    replay = default_search.Replay(dict(zip(SUBSETS, fine.objectives(SUBSETS), strict=True)), 4)
    own = fine.without_memory()
    assert climb(replay.objectives, SUBSETS[:1], 4, 9) == climb(own.objectives, SUBSETS[:1], 4, 9)
    assert len(replay.known) == len(own.evaluated)
    assert (replay.layer_calls, replay.layer_calls_unshared) == (own.layer_calls, own.layer_calls_unshared)


def test_every_measure_score_and_way_has_a_row(tiny_clip, tiny_pairs, tmp_path, monkeypatch):
    def random_walks(clip, captions, seed, record):
        rng = np.random.default_rng(seed)
        return {name: np.corrcoef(rng.normal(size=(5, 30)).cumsum(axis=0)) for name in KINDS}

    # 60 captions are too few for the default settings
    monkeypatch.setattr(default_search, "matrices_of", random_walks)
    out = tmp_path / "default.json"
    common = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path), "--device", "cpu"]
    default_search.main([*common, "--num_clip_layers", "1", "2", "--num_seeds", "3", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    for k, subsets in ((1, 4), (2, 6)):
        greedy, *searches = [row for row in rows if row["num_clip_layers"] == k]
        assert greedy["search"] == "greedy by task loss"
        names = {(row["search"], row["way"]) for row in searches}
        ways = ("coarse and fine", "and refine")
        assert names == {(f"{name}, {score}", way) for name in KINDS for score in SCORES for way in ways}
        # with ten proposals of at most six subsets, every search knows all of them
        assert all(row["subsets"] == row["proposals_median"] == subsets for row in searches)
        assert all(row["true_best"] == row["runs"] == row["not_worse_than_greedy"] == 3 for row in searches)
        assert all(row["worst_regret"] == 0 for row in searches)
