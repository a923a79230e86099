"""How the bundled data is named and split."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from data import BUNDLED, load_pairs
from tools import build_icons, icon_sets
from tools.build_icons import concept, near_any, pictures, split
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


def png(seed: int) -> bytes:
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("caption", "expected"), [("bell outline", "bell"), ("off bell sharp", "bell off"), ("outline", "outline")]
)
def test_a_concept_is_the_words_without_style_in_any_order(caption, expected):
    assert concept(caption) == expected


def test_split_is_disjoint_by_concept_and_picture_and_does_not_depend_on_the_order(monkeypatch):
    monkeypatch.setattr(build_icons, "SPLIT_SIZES", {"validation": 20, "test": 20, "train": 500})
    styles = ("", " outline", " sharp filled")
    rows = [{"caption": f"thing{i % 200}{styles[i // 200]}", "icon_set": "set", "png": png(i)} for i in range(600)]
    for twin in range(0, 600, 7):  # the same picture under another concept
        rows.append({"caption": f"twin{twin}", "icon_set": "set", "png": png(twin)})
    splits = split(rows)
    assert splits == split(rows[::-1])
    assert [len(splits[name]) for name in ("validation", "test")] == [20, 20] and len(splits["train"]) > 400
    for one, other in (("validation", "test"), ("validation", "train"), ("test", "train")):
        assert not {concept(row["caption"]) for row in splits[one]} & {concept(row["caption"]) for row in splits[other]}
        assert not {row["png"] for row in splits[one]} & {row["png"] for row in splits[other]}


def test_near_pictures_are_those_of_the_plain_definition():
    generator = np.random.default_rng(0)
    some = generator.random((40, 1024), dtype=np.float32)
    noise = generator.standard_normal((20, 1024)).astype(np.float32)
    others = np.concatenate([some[:10] + 0.09 * noise[:10], some[10:20] + 0.11 * noise[10:]])
    plain = [any(np.sqrt(np.mean((a - b) ** 2)) < build_icons.NEAR for b in others) for a in some]
    assert near_any(some, others, chunk=16).tolist() == plain
    assert 0 < sum(plain) < 20


def test_no_concept_and_no_near_picture_of_the_bundled_icons_is_in_two_splits():
    splits = {name: load_pairs("icons", name) for name in build_icons.SPLIT_SIZES}
    concepts = {name: set(map(concept, pairs.captions)) for name, pairs in splits.items()}
    images = {
        name: pictures([pairs.images.encoded(i) for i in range(len(pairs.images))]) for name, pairs in splits.items()
    }
    for one, other in (("validation", "test"), ("validation", "train"), ("test", "train")):
        assert not concepts[one] & concepts[other]
        assert not near_any(images[other], images[one]).any()


def test_sets_under_another_licence_are_refused(tmp_path):
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
