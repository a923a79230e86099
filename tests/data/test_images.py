"""Images: decoding of what real data sets hold, and telling them apart by their bytes."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from data.images import MAX_ASPECT, decode, distinct_images, read_bytes


def encode(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_its_copy_in_8(kind):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wide = decode(encode(Image.fromarray(ramp.astype(np.uint16) * 257), kind))
    assert (np.asarray(wide) == np.asarray(decode(encode(Image.fromarray(ramp))))).all()


@pytest.mark.parametrize("size", [(1, MAX_ASPECT + 1), (400_000, 1)])
def test_an_image_of_an_extreme_shape_is_broken(size):
    assert decode(encode(Image.new("L", size))) is None
    assert decode(encode(Image.new("L", (1, MAX_ASPECT)))).mode == "RGB"


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, KeyError, OSError])
def test_a_codec_that_throws_is_a_broken_image(monkeypatch, error):
    def fail(*_):
        raise error("no such codec")

    content = encode(Image.new("L", (4, 4)))
    monkeypatch.setattr(Image.Image, "convert", fail)
    assert decode(content) is None


@pytest.mark.parametrize("content", [b"", b"not an image", encode(Image.effect_noise((32, 32), 9))[:-200]])
def test_what_is_no_image_is_none(content):
    assert decode(content) is None


def test_files_are_told_apart_by_bytes_however_late_they_differ(tmp_path):
    long = bytes(10_000)
    contents = [b"aa", b"ab", b"aa", b"abc", long + b"x", long + b"y", long + b"x", b"", b""]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    paths = [*map(str, range(len(contents))), "3", "missing", "missing", "gone"]
    stored = [{"path": str(tmp_path / path), "bytes": None} for path in paths] + [None, None]
    rows = datasets.Dataset.from_dict({"image": stored}, datasets.Features({"image": datasets.Image(decode=False)}))
    first, image_of_row = distinct_images(rows, "image")
    assert image_of_row.tolist() == [0, 1, 0, 2, 3, 4, 3, 5, 6, 2, 7, 7, 8, 9, 10]
    assert first.tolist() == [0, 1, 3, 4, 5, 7, 8, 10, 12, 13, 14]


def test_a_part_of_a_file_is_read_alone(tmp_path):
    (tmp_path / "shard").write_bytes(b"0123456789")
    stored = {"path": str(tmp_path / "shard"), "offset": 3, "size": 4}
    assert read_bytes(stored) == b"3456" and read_bytes(stored, 2) == b"34"
    assert read_bytes({"path": str(tmp_path / "shard"), "bytes": None}) == b"0123456789"
    assert read_bytes({"bytes": b"abc"}, 2) == b"ab" and read_bytes(None) == b""
