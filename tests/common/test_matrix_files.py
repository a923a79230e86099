"""Names of matrices, commands that make them, and reading with checks."""

import os
import re
import shlex
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import dc_analysis
import similarity_analysis
import svcca_analysis
from common.files import DEFAULT_MODEL, EXP_DIR, ROOT, write_array, write_json
from common.matrix_files import MatrixSettings, found_matrices, pools, read_matrix, warn_of_other_weights
from common.matrix_flags import analysis_settings
from measures import KINDS

VARIED = {
    "batch_size": 7,
    "iter_num": 11,
    "pool": "eos",
    "repeats": 3,
    "seed": 5,
    "dataset": "someone/photos",
    "caption_column": "alt text",
    "streaming": True,
}
VARIED_OPTIONS = {"thre": 0.95, "thre_on": "variance", "estimator": "unbiased", "debiased": True, "ridge": 0.1}


def settings_of_every_kind():
    """For each measure: the defaults, and each setting that it has changed by itself."""
    for measure, kind in KINDS.items():
        yield MatrixSettings(measure)
        yield MatrixSettings(measure, mode=kind.modes[-1])
        for name, value in VARIED.items():
            if name != "pool" or pools(measure, kind.modes[0]):
                yield MatrixSettings(measure, **{name: value})
        for name in kind.defaults:
            yield MatrixSettings(measure, {name: VARIED_OPTIONS[name]})


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (MatrixSettings("dc"), "dc_mat_mean_bs4_iter10.npy"),
        (MatrixSettings("svcca"), "cca_mat_9600U_svthre0.99.npy"),
        (
            MatrixSettings("svcca", options={"thre": 0.9}, batch_size=16, iter_num=10, mode="T"),
            "cca_mat_160T_svthre0.9.npy",
        ),
        (MatrixSettings("dc", {"estimator": "unbiased"}, pool="eos"), "dc_mat_mean_bs4_iter10_unbiased_eos.npy"),
        (MatrixSettings("dc", {"estimator": "unbiased"}, mode="seq"), "dc_mat_seq_bs4_iter10_unbiased.npy"),
        (MatrixSettings("pwcca", {"thre_on": "variance"}), "pwcca_mat_9600U_svthre0.99_variance.npy"),
        (MatrixSettings("cka", {"debiased": True}, repeats=3, seed=2), "cka_mat_9600U_debiased_rep3_seed2.npy"),
        (MatrixSettings("cosine", dataset="a/b-c.d_e"), "cosine_mat_9600U_a--b-c.d_e.npy"),
        (MatrixSettings("cosine", dataset="a/b c"), "cosine_mat_9600U_a--b--c_0af99a60.npy"),
        (MatrixSettings("ablation"), "ablation_mat_40U.npy"),
        (MatrixSettings("cosine", caption_column="title"), "cosine_mat_9600U_title.npy"),
        (MatrixSettings("cosine", image_column="scan", tower="vision"), "cosine_mat_9600U_scan.npy"),
        (MatrixSettings("cosine", image_column="scan"), "cosine_mat_9600U.npy"),
        (MatrixSettings("dc", streaming=True), "dc_mat_mean_bs4_iter10_streaming.npy"),
    ],
)
def test_names(settings, name):
    assert settings.path(Path("folder")) == Path("folder") / name


def test_different_settings_have_different_names():
    for first, second in combinations(settings_of_every_kind(), 2):
        assert (first.tag == second.tag) == (first == second), (first, second)


def test_what_the_measure_has_not_is_refused():
    with pytest.raises(ValueError, match="--thre is an option of svcca, pwcca, not of cosine; leave it out"):
        MatrixSettings("cosine", {"thre": 0.9})
    with pytest.raises(ValueError, match="--mode T: dc has the modes mean, seq"):
        MatrixSettings("dc", mode="T")
    with pytest.raises(ValueError, match="--pool eos: --mode seq pools nothing"):
        MatrixSettings("dc", mode="seq", pool="eos")
    with pytest.raises(ValueError, match="--pool eos: ablation pools nothing"):
        MatrixSettings("ablation", pool="eos")


def test_the_table_has_every_option_of_the_measures_and_its_values():
    for kind in KINDS.values():
        assert kind().options == kind.defaults
        for option in kind.options:
            for value in option.choices:
                assert kind(**{option.name: value}).options[option.name] == value
            if option.choices:
                with pytest.raises(
                    ValueError, match=f"{option.name} must be one of {', '.join(option.choices)}; found"
                ):
                    kind(**{option.name: "another"})


def test_the_path_of_a_data_set_counts_not_its_spelling(tmp_path, monkeypatch):
    (tmp_path / "pairs").mkdir()
    monkeypatch.chdir(tmp_path)
    spellings = ("pairs", "./pairs/", str(tmp_path / "pairs"))
    assert len({MatrixSettings("dc", dataset=spelling).tag for spelling in spellings}) == 1
    assert MatrixSettings("dc", dataset="other").tag != MatrixSettings("dc", dataset="pairs").tag


def test_data_sets_whose_names_differ_in_any_character_share_no_file():
    names = ("a/b", "a--b", "a b", "a/ b", "a//b", "\u7532", "\u4e59", "a" * 300, "a" * 299 + "b")
    tags = [MatrixSettings("dc", dataset=name).tag for name in names]
    assert len(set(tags)) == len(tags)
    assert all(len(f".{tag}.1234567_baseline.npy".encode()) <= 255 for tag in tags)


# --- commands


def settings_of_command(command):
    """What the named script makes of the command: the settings, the model, and the folder of results."""
    python, script, *words = shlex.split(command)
    assert python == "python"
    assert Path(script).resolve().parent == ROOT
    parsers = {
        "svcca_analysis.py": svcca_analysis.build_parser,
        "dc_analysis.py": dc_analysis.build_parser,
        "similarity_analysis.py": similarity_analysis.build_parser,
    }
    args = parsers[Path(script).name]().parse_args(words)
    return analysis_settings(args), args.model, args.exp_dir


def test_the_command_makes_the_matrix_of_that_name():
    for settings in settings_of_every_kind():
        made, model, exp_dir = settings_of_command(settings.command("my model", Path("some where")))
        assert made.tag == settings.tag
        assert (model, exp_dir) == ("my model", Path("some where"))


def test_the_command_leaves_out_the_bundled_model_and_the_usual_folder():
    command = MatrixSettings("dc").command(str(DEFAULT_MODEL))
    assert command.endswith("dc_analysis.py --batch_size 4 --iter_num 10 --mode mean")
    assert settings_of_command(command)[1:] == (str(DEFAULT_MODEL), EXP_DIR)


def test_the_command_works_from_the_working_directory(monkeypatch):
    for folder in (".", "search_strategy"):
        monkeypatch.chdir(ROOT / folder)
        script = shlex.split(MatrixSettings("svcca").command("m"))[1]
        assert script == os.path.join("" if folder == "." else "..", "svcca_analysis.py")
        assert Path(script).is_file()


# --- reading

SYMMETRIC = np.array([[1, 0.5, 0.25], [0.5, 1, 0.75], [0.25, 0.75, 1]])


def test_reading_gives_what_was_written(tmp_path):
    settings = MatrixSettings("dc")
    write_array(settings.path(tmp_path), SYMMETRIC)
    assert np.array_equal(read_matrix(settings, tmp_path, 2, "model"), SYMMETRIC)


def changed(row, column, value, dtype=float):
    matrix = SYMMETRIC.astype(dtype)
    matrix[row, column] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(4), r"found shape \(4, 4\), expected \(3, 3\) for 2 layers; run: python .*svcca_analysis.py"),
        (np.ones((3, 2)), r"found shape \(3, 2\), expected \(3, 3\)"),
        (np.ones(9), r"found shape \(9,\), expected \(3, 3\)"),
        (changed(0, 1, 0.6), r"not symmetric, by up to 0.1; run: python .*svcca_analysis.py"),
        (
            changed(0, 1, np.nan),
            r"found 1 entries that are NaN or infinite, or beyond .*; run: python .*svcca_analysis.py",
        ),
        (changed(2, 2, np.inf), r"found 1 entries that are NaN or infinite"),
        (SYMMETRIC.astype(str), r"found entries of the kind <U\d+, expected numbers; run: python"),
    ],
)
def test_a_matrix_that_is_not_one_is_refused(tmp_path, matrix, message):
    settings = MatrixSettings("svcca")
    write_array(settings.path(tmp_path), matrix)
    with pytest.raises(ValueError, match=f"{re.escape(str(settings.path(tmp_path)))}: {message}"):
        read_matrix(settings, tmp_path, 2, "model")


def test_a_damaged_file_is_refused(tmp_path):
    settings = MatrixSettings("svcca")
    path = settings.path(tmp_path)
    write_array(path, SYMMETRIC)
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-8], b"no array at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a readable .npy file .* to make it again, run: python"):
            read_matrix(settings, tmp_path, 2, "model")


def test_pickled_objects_are_refused(tmp_path):
    settings = MatrixSettings("svcca")
    np.save(settings.path(tmp_path), np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded when allow_pickle=False"):
        read_matrix(settings, tmp_path, 2, "model")


def test_a_missing_matrix_is_named_with_those_there_and_the_command_that_makes_it(tmp_path):
    for name in ("dc_mat_seq_bs4_iter10", "dc_mat_seq_bs4_iter10_baseline", "cka_mat_9600U_std", "image_embeddings"):
        write_array(tmp_path / "m" / f"{name}.npy", SYMMETRIC)
    settings = MatrixSettings("dc", batch_size=8)
    with pytest.raises(FileNotFoundError) as caught:
        read_matrix(settings, tmp_path / "m", 2, "m")
    message = str(caught.value)
    assert f"matrix not found: {tmp_path / 'm' / 'dc_mat_mean_bs8_iter10.npy'};" in message
    assert "there are dc_mat_seq_bs4_iter10.npy (--bs and --iter choose);" in message
    made, model, exp_dir = settings_of_command(message.partition("to make it, run: ")[2])
    assert (made.tag, model, exp_dir) == (settings.tag, "m", tmp_path)


def test_a_folder_without_matrices(tmp_path):
    assert found_matrices(tmp_path) == found_matrices(tmp_path / "nowhere") == "none"


def test_a_matrix_whose_record_names_other_data_is_refused(tmp_path):
    settings = MatrixSettings("dc", dataset="someone/photos")
    path = settings.path(tmp_path)
    write_array(path, SYMMETRIC)
    write_json(path.with_suffix(".json"), {"dataset": "someone/drawings"})
    with pytest.raises(ValueError, match="made of the data set someone/drawings, expected someone/photos; run: python"):
        read_matrix(settings, tmp_path, 2, "model")
    write_json(path.with_suffix(".json"), {"dataset": "someone/photos"})
    assert np.array_equal(read_matrix(settings, tmp_path, 2, "model"), SYMMETRIC)


IDENTITY = {"name": "m", "weights_sha256": "a" * 64, "text_layers": 2}


def test_other_weights_than_those_in_the_record_are_a_warning_with_the_command(tmp_path):
    settings = MatrixSettings("dc")
    record = settings.path(tmp_path).with_suffix(".json")
    write_json(record, {"model": IDENTITY | {"weights_sha256": "b" * 64}})
    with pytest.warns(UserWarning, match=r"made of other weights \(m, b{12}\) than .* \(m, a{12}\).*run: python .*dc_"):
        warn_of_other_weights(settings, tmp_path, IDENTITY)


@pytest.mark.parametrize("content", [{"model": IDENTITY}, {"model": {}}, {}, [], "text", None])
def test_the_same_weights_and_matrices_without_a_record_are_taken_as_they_are(tmp_path, recwarn, content):
    settings = MatrixSettings("dc")
    if content is not None:
        write_json(settings.path(tmp_path).with_suffix(".json"), content)
    warn_of_other_weights(settings, tmp_path, IDENTITY)
    assert not recwarn.list
