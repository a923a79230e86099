"""Result files: their names, and what is read from them."""

import json
import os

import pytest

from common.files import DEFAULT_DATASET
from search_strategy.results import CHOICES, Asked, differences, newest_result, read_result, result_path, result_tag

ASKED = {"seed": 0, "dataset": DEFAULT_DATASET, "max_pairs": None, "repair": True, **CHOICES}


def test_names_hold_the_matrix_and_what_is_not_at_its_default(tmp_path):
    assert result_tag("dc", ["dc_mat"], **ASKED) == "dc_mat"
    assert (
        result_tag("dc", ["dc_mat"], **ASKED | {"score": "sum", "objective": "recall"})
        == "dc_mat_score_sum_objective_recall"
    )
    assert result_tag("dc", ["dc_mat"], **ASKED | {"loss_batch_size": 64}) == "dc_mat_loss_batch_size_64"
    assert result_tag("dc", ["dc_mat"], **ASKED | {"max_pairs": 9}) == "dc_mat_max9"
    assert result_tag("dc", ["dc_mat"], **ASKED | {"target_column": "text"}) == "dc_mat_target_column_text"
    assert result_tag("dc", ["dc_mat"], **ASKED, coarse_search_only=True) == "dc_mat_coarse"
    coarse = ASKED | {"refine": 0, "max_pairs": 9, "topk_num": 20}  # of these the last alone changes what it finds
    assert result_tag("dc", ["dc_mat"], **coarse, coarse_search_only=True) == "dc_mat_topk_num_20_coarse"
    assert result_tag("dc", ["dc_mat"], **ASKED | {"refine": 0, "topk_num": 20}) == "dc_mat_topk_num_20_refine_0"
    assert result_tag("dc", ["dc_mat"], **ASKED | {"repair": False}) == "dc_mat_left_out"
    assert result_tag("dc", ["dc_mat_de"], **ASKED, caption_column="de") == "dc_mat_de"  # the matrix has it
    drawn = ASKED | {"seed": 3, "dataset": "a/b", "caption_column": "de", "image_column": "scan"}
    assert result_tag("rand", [], **drawn) == "rand_seed3_a--b_de_image_column_scan"
    assert result_path(tmp_path, 12, 4, "beam", "dc_mat").name == "clip12to8_beam_dc_mat.json"


def test_names_fit_a_file_system():
    def tag(*matrix_tags):
        return result_tag("combine", matrix_tags, **ASKED)

    first, other = tag("a" * 200, "b" * 200), tag("a" * 200, "c" * 200)
    assert len(first) < 230 and first != other
    assert tag("a") == "combine_a"


def write_result(
    folder, tag: str, date: str | None = None, verified: bool = True, age: int = 0, dataset: str = "icons", **flags: str
) -> None:
    path = result_path(folder, 12, 6, "beam", tag)
    winner = {"dropped_layers": [1, 2, 3, 4, 5, 6], "objective": 2.0 if verified else None}
    record = {"flags": {"dataset": dataset, **flags}} | ({"date": date} if date else {})
    path.write_text(json.dumps({"num_layers": 12, "num_clip_layers": 6, "winner": winner, "record": record}))
    os.utime(path, (age, age))


def test_the_newest_verified_result_counts_by_the_date_in_its_record(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no search result: .*--num_clip_layers 6 .*--dataset icons --model m .*; or pass"
    ):
        newest_result(tmp_path, Asked("m", 12, 6, "icons"))
    write_result(tmp_path, "coarse", "2026-11-09T00:00:00+00:00", verified=False)
    with pytest.raises(
        FileNotFoundError, match="clip12to6_beam_coarse.json is of the coarse search alone; run: python"
    ):
        newest_result(tmp_path, Asked("m", 12, 6, "icons"))
    write_result(tmp_path, "undated", age=8)
    write_result(tmp_path, "undated_but_copied_later", age=9)
    assert newest_result(tmp_path, Asked("m", 12, 6, "icons")).path.stem == "clip12to6_beam_undated_but_copied_later"
    write_result(tmp_path, "late", "2026-11-08T10:00:00+00:00", age=1)
    write_result(tmp_path, "early", "2026-11-08T09:00:00+00:00", age=5)
    (tmp_path / "clip12to4_beam_other.json").write_text("{}")
    newest = newest_result(tmp_path, Asked("m", 12, 6, "icons"))
    assert newest.path.stem == "clip12to6_beam_late"
    assert (newest.dropped_layers, newest.flags.dataset) == ((1, 2, 3, 4, 5, 6), "icons")


def test_a_result_on_the_same_data_counts_before_a_newer_one_on_others(tmp_path):
    write_result(tmp_path, "own", "2026-11-08T10:00:00+00:00", dataset="mine.csv")
    write_result(tmp_path, "newer", "2026-11-09T10:00:00+00:00")
    stems = [
        newest_result(tmp_path, Asked("m", 12, 6, dataset)).path.stem for dataset in ("./mine.csv", "icons", "third")
    ]
    assert stems == ["clip12to6_beam_own", "clip12to6_beam_newer", "clip12to6_beam_newer"]


def test_a_result_on_the_same_columns_counts_before_a_newer_one_on_others(tmp_path):
    write_result(tmp_path, "en", "2026-11-08T10:00:00+00:00", caption_column="en")
    write_result(tmp_path, "de", "2026-11-09T10:00:00+00:00", caption_column="de")
    asked = [Asked("m", 12, 6, "icons", {"caption_column": column}) for column in ("en", "de", "fr")]
    found = [newest_result(tmp_path, one) for one in asked]
    assert [result.path.stem[-2:] for result in found] == ["en", "de", "de"]
    assert [differences(result, one) for result, one in zip(found, asked, strict=True)] == [
        [],
        [],
        ["that search had the caption_column de, this training has fr"],
    ]


def test_the_command_that_is_advised_has_the_columns_and_needs_no_image_that_is_not_there(tmp_path):
    asked = Asked("m", 12, 6, "c.txt", {"caption_column": "en", "image_column": None}, captions_alone=True)
    with pytest.raises(FileNotFoundError, match="--dataset c.txt --caption_column en --objective embedding --model m"):
        newest_result(tmp_path, asked)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "null", "7", "no json", '{"winner": {}}', '{"winner": [1]}', "[" * 100_000]
    + [
        f'{{"winner": {{"dropped_layers": {layers}}}}}'
        for layers in ('"12"', "[1.5, 2]", "[true, 2]", "[NaN, 2]", "[[1, 2]]")
    ]
    + [f'{{"winner": {{"dropped_layers": {layers}}}}}' for layers in ("{}", "null", '["1", "2"]')]
    + ['{"num_layers": 4, "num_clip_layers": 1, "winner": {"dropped_layers": [1, 2]}}']
    + ['{"winner": {"dropped_layers": [1, 2]}, "record": 3}'],
)
def test_a_file_that_is_no_result_for_these_numbers_is_named(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="result.json: expected a search result with a winner and its dropped_layers"):
        read_result(path, Asked("clip", 4, 2, "icons"))
