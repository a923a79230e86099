"""What the tables of the comparison say."""

from search_strategy.comparison_tables import panel_table, scores_table, searches_table, spread


def row(name, **changes):
    figures = {"task_loss": 1.25, "rank": 3, "test_recall_at_10": 0.45, "segments": [[2, 3]], "to_ours": None}
    costs = {"proposals_evaluated": 9, "layer_calls": 40, "layer_calls_unshared": 54}
    return {"strategy": name, **figures, **costs, **changes}


def test_a_difference_within_its_interval_is_called_none():
    rows = [
        row("ours"),
        row("a tie", to_ours={"difference": -0.004, "interval": 0.006}),
        row("a loser", to_ours={"difference": -0.0123, "interval": 0.006}),
    ]
    ours, tie, loser = panel_table(rows, 0.5).splitlines()[2:]
    assert ours.endswith("-") and "90.0" in ours
    assert tie.endswith("none (± 0.6)") and loser.endswith("-1.2 ± 0.6")


def test_of_runs_the_mean_and_the_deviation_are_shown():
    runs = {"task_loss": (1.5, 0.25), "rank": (4.5, 2.0), "layer_calls": (33.0, 5.5)}
    line = panel_table([row("climbs", runs=runs)], 0.5).splitlines()[2]
    assert all(text in line for text in ("1.5000 ± 0.2500", "4.5 ± 2.0", "33.0 ± 5.5"))


def test_draws_are_shown_as_mean_and_range():
    assert spread([0.731], ".2f") == "0.73"
    assert spread([0.7, 0.8], ".2f") == "0.75 [0.70, 0.80]"
    assert spread([None, 0.8], ".2f") is None
    names = ("spearman", "spearman_layer_1_kept", "spearman_best")
    judged = {"measure": "dc", "score": "sum", **dict.fromkeys(names, [0.5, 0.7]), "regret_at_10": [0.0, 0.1]}
    assert "16 [1, 30]" in scores_table([judged | {"rank_of_best_within": {10: [1, 30]}}])


def test_the_default_search_is_summed_up_by_its_median_and_its_worst():
    found = [
        {"measure": name, "rank": rank, "regret": [0.0, 0.1], "proposals_evaluated": [40, 50], "layer_calls": calls}
        for name, rank, calls in (("dc", [1, 2], [150, 170]), ("cka", [1, 1], [110, 290]))
    ]
    dc, cka, every = searches_table(found).splitlines()[2:]
    assert "1 of 2" in dc and dc.endswith("160 [150, 170]")
    assert cka.endswith("200 [110, 290]")
    assert "3 of 4" in every and "1 [1, 2]" in every and every.endswith("160 [110, 290]")
