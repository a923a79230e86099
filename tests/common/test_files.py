"""Names of files and folders: readable, safe, and different for what is different."""

import io

import numpy as np
import pytest

from common import ROOT, files, model_dir
from common.files import cached_array, run_dir, safe_name, shorten

ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("icons", "icons"),
        ("openai/clip-vit-base-patch32", "openai--clip-vit-base-patch32"),
        ("/data/pairs.v2/train_1", "data--pairs.v2--train_1"),
        ("a b", "a--b_c8687a08"),
    ],
)
def test_plain_names_stay_readable_and_others_get_a_hash(text, name):
    assert safe_name(text) == name


def test_names_that_differ_in_any_character_stay_different():
    names = ("a/b", "a--b", "a b", "a/ b", "a+b", "a---b", "a-/b", "\u7532", "\u4e59", "\u7532/b")
    assert len({safe_name(name) for name in names}) == len(names)


def test_long_names_are_cut_and_stay_different():
    assert shorten("a" * 200) == "a" * 200
    first, second = shorten("a" * 300 + "1"), shorten("a" * 300 + "2")
    assert first != second and len(first) == len(second) == 209


def test_results_go_to_a_folder_named_after_the_model(tmp_path):
    assert model_dir(tmp_path, "openai/clip-vit-base") == tmp_path / "openai--clip-vit-base"
    assert model_dir(tmp_path, str(ROOT / "tests" / "models")) == tmp_path / "tests--models"
    (tmp_path / "my clip").mkdir()
    elsewhere = model_dir(tmp_path / "exp", str(tmp_path / "my clip"))
    assert elsewhere == tmp_path / "exp" / safe_name(str(tmp_path / "my clip"))


def test_results_of_a_model_under_exp_go_by_its_name_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "EXP_DIR", tmp_path / "exp")
    (tmp_path / "exp" / "my clip").mkdir(parents=True)
    assert model_dir(tmp_path / "new", str(tmp_path / "exp" / "my clip")) == tmp_path / "new" / safe_name("my clip")


def test_results_of_a_model_inside_the_folder_of_results_go_to_the_model(tmp_path):
    (tmp_path / "mine").mkdir()
    assert model_dir(tmp_path, str(tmp_path / "mine")) == tmp_path / "mine"


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


DAMAGES = {
    "empty": lambda content: b"",
    "no array": lambda content: b"nothing",
    "cut header": lambda content: content[:20],
    "cut": lambda content: content[:-40],
    "one bit": lambda content: content[:130] + bytes([content[130] ^ 1]) + content[131:],
    "another type": lambda content: as_npy(ROWS.astype(np.float64)),
    "another shape": lambda content: as_npy(ROWS[:2]),
    "NaN": lambda content: as_npy(ROWS * np.float32("nan")),
    "a terabyte by its header": lambda content: as_npy(ROWS).replace(b"(3, 2)", b"(9, 9)" + b"9" * 9)[:-9],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again_with_a_warning(tmp_path, damage):
    assert np.array_equal(cached_array(tmp_path, "rows", "key", lambda: ROWS), ROWS)
    (path,) = tmp_path.iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.warns(UserWarning, match="rows_.*npy: not what was written there; it is made again"):
        assert np.array_equal(cached_array(tmp_path, "rows", "key", lambda: ROWS), ROWS)
    assert np.array_equal(cached_array(tmp_path, "rows", "key", lambda: 1 / 0), ROWS)


def test_without_a_folder_nothing_is_kept():
    assert np.array_equal(cached_array(None, "rows", "key", lambda: ROWS), ROWS)


def test_the_folder_of_all_results_is_not_named_twice(tmp_path):
    exp = tmp_path / "exp"
    for name in ("foo", "exp/foo", "./exp/foo", str(exp / "foo")):
        assert run_dir(exp, name) == exp / "foo"
    assert run_dir(exp, "exp") == exp / "exp"
    assert run_dir(exp, "a/foo") == exp / "a" / "foo"
