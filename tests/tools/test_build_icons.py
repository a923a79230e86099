"""How the bundled data is named and split."""

import json

import pytest

from data import BUNDLED, load_pairs
from tools import build_icons, icon_sets
from tools.build_icons import split
from tools.icon_sets import LICENSES, caption_of, svg_of


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("account-multiple-check-outline", "account multiple check outline"),
        ("add-circle-24-filled", "add circle filled"),
        ("number-9", "number 9"),
        ("16", ""),
    ],
)
def test_captions_are_names_without_sizes(name, caption):
    assert caption_of(name) == caption


def test_an_icon_that_is_not_square_is_centred_in_a_square():
    svg = svg_of({"body": '<path fill="currentColor"/>', "width": 16, "height": 24}, {})
    assert 'viewBox="-4.0 0.0 24 24"' in svg
    assert 'fill="#000"' in svg


def test_sizes_of_the_set_are_used_where_the_icon_has_none():
    assert 'viewBox="0.0 0.0 256 256"' in svg_of({"body": ""}, {"width": 256, "height": 256})


def test_split_is_disjoint_by_caption_and_does_not_depend_on_the_order(monkeypatch):
    monkeypatch.setattr(build_icons, "SPLIT_SIZES", {"validation": 20, "test": 20, "train": 500})
    rows = [{"caption": f"caption {i % 200}", "icon_set": f"set{i // 200}", "svg": ""} for i in range(600)]
    splits = split(rows)
    assert splits == split(rows[::-1])
    captions = {name: [row["caption"] for row in part] for name, part in splits.items()}
    assert len(captions["validation"]) == len(set(captions["validation"])) == 20
    assert len(captions["test"]) == len(set(captions["test"])) == 20
    assert not set(captions["train"]) & (set(captions["validation"]) | set(captions["test"]))
    assert len(captions["train"]) == 480


def test_sets_under_another_licence_are_refused(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "iconify-json-x-1.0.0.tgz", "w:gz") as tar:
        for name, content in (("icons", {"icons": {}}), ("info", {"license": {"spdx": "CC-BY-NC-4.0"}})):
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(ValueError, match="x 1.0.0 is under CC-BY-NC-4.0; expected one of MIT, Apache-2.0, ISC"):
        icon_sets.read_icon_set("x", "1.0.0", tmp_path)


def test_the_readme_beside_the_data_names_every_set_with_its_licence():
    readme = (BUNDLED["icons"] / "README.md").read_text()
    for name, version in build_icons.ICON_SETS.items():
        line = next(line for line in readme.splitlines() if line.startswith(f"| `{name}` "))
        assert version in line and any(licence in line for licence in LICENSES)


def test_the_bundled_captions_follow_the_rule():
    for caption in load_pairs("icons", "validation", images=False).captions:
        assert caption == caption_of(caption.replace(" ", "-"))
