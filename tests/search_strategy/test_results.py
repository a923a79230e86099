"""Result files: their names, and what is read from them."""

import os

import pytest

from search_strategy.results import newest_result, read_winner, result_path, result_tag

ASKED = {"score": "mean", "objective": "task_loss", "seed": 0, "dataset": "icons", "max_pairs": None, "repair": True}


def test_names_hold_the_matrix_and_what_is_not_at_its_default(tmp_path):
    assert result_tag("dc", ["dc_mat"], **ASKED) == "dc_mat"
    assert result_tag("dc", ["dc_mat"], **ASKED | {"score": "sum", "objective": "recall"}) == "dc_mat_score_sum_recall"
    assert result_tag("dc", ["dc_mat"], **ASKED | {"max_pairs": 9}) == "dc_mat_max9"
    assert result_tag("dc", ["dc_mat"], **ASKED | {"repair": False}) == "dc_mat_left_out"
    assert result_tag("rand", [], **ASKED | {"seed": 3, "dataset": "a/b"}) == "rand_seed3_a--b"
    assert result_path(tmp_path, 12, 4, "beam", "dc_mat").name == "clip12to8_beam_dc_mat.json"


def test_names_fit_a_file_system():
    def tag(*matrix_tags):
        return result_tag("combine", matrix_tags, **ASKED)

    first, other = tag("a" * 200, "b" * 200), tag("a" * 200, "c" * 200)
    assert len(first) < 230 and first != other
    assert tag("a") == "combine_a"


def test_the_newest_result_of_these_numbers_is_found(tmp_path):
    for age, tag in enumerate(("old", "new")):
        path = result_path(tmp_path, 12, 6, "beam", tag)
        path.write_text("{}")
        os.utime(path, (age, age))
    result_path(tmp_path, 12, 4, "beam", "other").write_text("{}")
    assert newest_result(tmp_path, "m", 12, 6).name == "clip12to6_beam_new.json"
    with pytest.raises(FileNotFoundError, match="no search result: .*--num_clip_layers 3 .*--model m; or pass"):
        newest_result(tmp_path, "m", 12, 3)


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"winner": {}}'])
def test_a_file_without_a_winner_is_an_error(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="result.json: expected a search result with a winner"):
        read_winner(path)
