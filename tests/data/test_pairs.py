"""Image-caption pairs from every kind of source, their splits, and what is wrong with bad ones."""

import io
import json
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image

from data import BUNDLED, load_pairs
from data.pairs import ImageFiles

RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(colour=RED):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, rows, image_column="image"):
    features = {name: datasets.Value("string") for name in rows[0]} | {image_column: datasets.Image()}
    if isinstance(rows[0].get("caption"), list):
        features["caption"] = datasets.List(datasets.Value("string"))
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(path)


def image_row(caption, content=None):
    """A row with an image of its own for each caption."""
    colour = tuple(zlib.crc32(str(caption).encode()).to_bytes(4)[:3])
    return {"image": {"bytes": png(colour) if content is None else content, "path": None}, "caption": caption}


@pytest.fixture
def folder_of_images(tmp_path):
    """Three images with a metadata file, as `imagefolder` reads them."""
    for name, colour in (("a.png", RED), ("b.png", BLUE), ("c.png", BLUE)):
        (tmp_path / name).write_bytes(png(colour))
    lines = [{"file_name": name, "text": f"picture {name[0]}"} for name in ("a.png", "b.png", "c.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_a_folder_with_splits_gives_each_split(tiny_pairs):
    splits = {name: load_pairs(str(tiny_pairs), name) for name in ("train", "validation", "test")}
    assert [len(pairs) for pairs in splits.values()] == [60, 60, 60]
    captions = [caption for pairs in splits.values() for caption in pairs.captions]
    assert len(set(captions)) == 180
    assert splits["test"].images[0].mode == "RGB" and splits["test"].images[0].size == (32, 32)


def test_an_imagefolder_is_read_with_its_metadata(folder_of_images):
    pairs = load_pairs(str(folder_of_images), "train")
    assert pairs.captions == ["picture a", "picture b", "picture c"]  # by their hashes none of them is held out
    assert [pairs.images[image].getpixel((0, 0)) for image in pairs.image_index] == [RED, BLUE, BLUE]
    with pytest.raises(ValueError, match="no rows for the split validation; .* none of its 3 captions was cut"):
        load_pairs(str(folder_of_images), "validation")


def test_a_csv_with_paths_shares_the_image_among_its_captions(tmp_path):
    (tmp_path / "a.png").write_bytes(png(RED))
    (tmp_path / "b.png").write_bytes(png(BLUE))
    lines = [f"{name}.png,caption {i} of {name}" for i in range(30) for name in "ab"]
    (tmp_path / "pairs.csv").write_text("image_path,caption\n" + "\n".join(lines))
    pairs = load_pairs(str(tmp_path / "pairs.csv"), "train")
    assert len(pairs.images) == 2
    for caption, image in zip(pairs.captions, pairs.image_index, strict=True):
        assert pairs.images[int(image)].getpixel((0, 0)) == (RED if caption.endswith("a") else BLUE)


def test_several_captions_an_image_become_several_pairs(tmp_path):
    rows = [image_row([f"first {i}", f"second {i}"]) for i in range(4)]
    write_parquet(tmp_path / "train.parquet", rows)
    write_parquet(tmp_path / "validation.parquet", rows[:1])
    write_parquet(tmp_path / "test.parquet", rows[:2])
    pairs = load_pairs(str(tmp_path), "test")
    assert pairs.captions == ["first 0", "second 0", "first 1", "second 1"]
    assert pairs.image_index.tolist() == [0, 0, 1, 1]
    assert len(pairs.images) == 2


def test_splits_that_are_missing_are_cut_from_train_disjoint_by_caption(tmp_path):
    rows = [image_row(f"caption {i % 150}") for i in range(300)]
    write_parquet(tmp_path / "pairs.parquet", rows)
    splits = [
        set(load_pairs(str(tmp_path / "pairs.parquet"), name).captions) for name in ("train", "validation", "test")
    ]
    assert set.union(*splits) == {f"caption {i}" for i in range(150)}
    assert sum(map(len, splits)) == 150
    assert len(splits[0]) > 5 * len(splits[1]) > 0 and splits[2]


@pytest.mark.parametrize("only", ["train", "validation", "test"])
def test_the_only_split_is_cut_into_three_whatever_its_name(tmp_path, only):
    write_parquet(tmp_path / f"{only}.parquet", [image_row(f"caption {i}") for i in range(100)])
    splits = [set(load_pairs(str(tmp_path), name).captions) for name in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 100
    assert len(splits[0]) > 60


def test_without_train_there_is_nothing_to_cut_train_from(tmp_path):
    for name in ("validation", "test"):
        write_parquet(tmp_path / f"{name}.parquet", [image_row(f"{name} {i}") for i in range(4)])
    assert len(load_pairs(str(tmp_path), "test")) == 4
    with pytest.raises(ValueError, match="no split train to take train from; it has the splits validation, test"):
        load_pairs(str(tmp_path), "train")


def test_captions_that_differ_in_outer_spaces_fall_into_one_split(tmp_path):
    write_parquet(tmp_path / "pairs.parquet", [image_row(f"caption {i // 2}" + " " * (i % 2)) for i in range(200)])
    splits = [
        set(load_pairs(str(tmp_path / "pairs.parquet"), name).captions) for name in ("train", "validation", "test")
    ]
    assert sum(map(len, splits)) == 100


def test_rows_share_an_image_by_its_bytes_whatever_its_name(tmp_path):
    rows = [image_row(f"caption {i}", png(colour)) for i, colour in enumerate((RED, RED, RED, BLUE, BLUE))]
    for row, name in zip(rows, ("a.png", "b.png", None, "a.png", None), strict=True):
        row["image"]["path"] = name
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{split}.parquet", rows)
    assert load_pairs(str(tmp_path), "test").image_index.tolist() == [0, 0, 0, 1, 1]


def test_rows_without_an_image_share_none(tmp_path):
    rows = [image_row(f"caption {i}", b"") for i in range(3)]
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{split}.parquet", rows)
    assert len(load_pairs(str(tmp_path), "test").images) == 3


def test_captions_that_are_no_text_are_an_error(tmp_path):
    lines = [f"{i}.png,{i}" for i in range(20)]
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "\n".join(lines))
    with pytest.raises(ValueError, match="expected captions to be text or lists of text; found .*--caption_column"):
        load_pairs(str(tmp_path / "pairs.csv"), "train")


def test_columns_can_be_named(tmp_path):
    rows = [{"photo": {"bytes": png(), "path": None}, "title": f"t{i}", "name": f"n{i}"} for i in range(50)]
    write_parquet(tmp_path / "train.parquet", rows, image_column="photo")
    pairs = load_pairs(str(tmp_path / "train.parquet"), "train", image_column="photo", caption_column="name")
    assert all(caption.startswith("n") for caption in pairs.captions)
    with pytest.raises(ValueError, match="no image column; looked for image, .*; the columns are photo, title, name"):
        load_pairs(str(tmp_path / "train.parquet"), "train")
    with pytest.raises(ValueError, match="no caption column; looked for story; .* --caption_column"):
        load_pairs(str(tmp_path / "train.parquet"), "train", image_column="photo", caption_column="story")


@pytest.mark.parametrize(("groups", "read"), [([7, 7, 8, 8], [7, 7, 7, 7, 8, 8, 8, 8]), (["a", "a", "b", "b"], None)])
def test_a_column_of_numbers_groups_the_captions(tmp_path, groups, read):
    captions = [[f"{i} {n}" for n in range(2)] for i in range(4)]
    datasets.Dataset.from_dict({"caption": captions, "group": groups}).to_json(tmp_path / "pairs.jsonl")
    pairs = load_pairs(str(tmp_path / "pairs.jsonl"), "all", images=False)
    assert (pairs.groups if read is None else pairs.groups.tolist()) == read


def test_a_data_set_saved_to_disk_is_read(tiny_pairs, tmp_path):
    datasets.load_dataset(str(tiny_pairs)).save_to_disk(tmp_path / "saved")
    assert load_pairs(str(tmp_path / "saved"), "test").captions == load_pairs(str(tiny_pairs), "test").captions


def test_captions_alone_open_no_image(tiny_pairs, monkeypatch):
    monkeypatch.setattr(ImageFiles, "encoded", lambda *_: pytest.fail("an image was read"))
    pairs = load_pairs(str(tiny_pairs), "train", images=False)
    assert len(pairs) == 60 and pairs.images is None


def test_a_few_empty_captions_are_skipped_with_a_counted_warning(tmp_path):
    rows = [image_row("" if i == 7 else f"caption {i}") for i in range(200)]
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{split}.parquet", rows)
    with pytest.warns(UserWarning, match="skipped 1 of 200 captions"):
        pairs = load_pairs(str(tmp_path), "train")
    assert len(pairs) == len(pairs.images) == 199
    assert 7 not in pairs.images.row_numbers  # nobody could find it by words


def test_many_empty_captions_are_an_error(tmp_path):
    rows = [image_row("" if i < 3 else f"caption {i}") for i in range(200)]
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{split}.parquet", rows)
    with pytest.raises(ValueError, match="3 of 200 captions are empty; at most 1% may be skipped"):
        load_pairs(str(tmp_path), "train")


def test_broken_images_are_none_and_can_be_left_out(tmp_path):
    rows = [image_row(f"caption {i}", b"not an image" if i == 150 else None) for i in range(200)]
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{split}.parquet", rows)
    pairs = load_pairs(str(tmp_path), "test")
    broken = np.array([image is None for image in pairs.images])
    assert np.flatnonzero(broken).tolist() == [150]
    with pytest.warns(UserWarning, match="skipped 1 of 200 images"):
        kept = pairs.without_images(broken)
    assert len(kept) == 199 and "caption 150" not in kept.captions
    assert kept.image_index.tolist() == list(range(199)) and kept.images[150] is not None
    with pytest.raises(
        ValueError, match="100 of 200 images cannot be decoded, the first of them that of row 1; at most"
    ):
        pairs.without_images(np.arange(200) < 100)


def test_a_missing_image_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "pairs.csv").write_text("filepath,title,split\n0.png,a,test\n1.png,b,test\n", encoding="utf-8")
    pairs = load_pairs(str(tmp_path / "pairs.csv"), "test")
    with pytest.raises(
        ValueError, match=r"1 of 2 images cannot be decoded, the first of them .*1\.png, which is not there;"
    ):
        pairs.without_images(np.array([image is None for image in pairs.images]))


def test_a_broken_image_counts_with_all_its_captions(tmp_path):
    rows = [image_row([f"{i} {n}" for n in range(30 if i == 7 else 1)]) for i in range(200)]
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{split}.parquet", rows)
    pairs = load_pairs(str(tmp_path), "test")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="30 of 229 captions have an image that cannot"):
        pairs.without_images(np.arange(200) == 7)


def test_the_content_hash_changes_with_one_image_and_with_their_order(tmp_path):
    def content_hash(colours):
        write_parquet(tmp_path / "train.parquet", [image_row(f"{c} {i}", png(c)) for i, c in enumerate(colours)])
        rows = datasets.Dataset.from_parquet(
            str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / f"{hash(colours)}")
        )
        rows = rows.cast_column("image", datasets.Image(decode=False))
        return ImageFiles(rows, "image", np.arange(len(colours))).content_hash()

    hashes = [content_hash(colours) for colours in ((RED, BLUE), (BLUE, RED), (RED, RED))]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere.parquet", FileNotFoundError, "looked for the file .*nowhere.parquet"),
        ("no/such/data", FileNotFoundError, r"'no/such/data' is not a bundled name \(icons, scenes\)"),
    ],
)
def test_missing_sources_say_what_was_looked_for(name, error, message):
    with pytest.raises(error, match=message):
        load_pairs(name, "train")


def test_sources_of_another_kind_say_what_is_expected(tmp_path):
    (tmp_path / "notes.docx").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a folder, or files of one kind: .parquet"):
        load_pairs(str(tmp_path / "notes.docx"), "train")
    with pytest.raises(ValueError, match="expected parquet, .* or images .* found nothing"):
        load_pairs(str(tmp_path / "empty"), "train")
    write_parquet(tmp_path / "numbers.parquet", [image_row(f"c{i}") | {"number": str(i)} for i in range(40)])
    (tmp_path / "n.csv").write_text("image,caption\n" + "\n".join(f"{i},c{i}" for i in range(40)))
    with pytest.raises(ValueError, match="expected images or paths of images"):
        load_pairs(str(tmp_path / "n.csv"), "train")


@pytest.fixture(scope="module")
def icons():
    return {name: load_pairs("icons", name) for name in ("train", "validation", "test")}


def test_the_bundled_splits_have_their_sizes_and_share_no_caption(icons):
    assert {name: len(pairs) for name, pairs in icons.items()} == {"train": 56_000, "validation": 2_000, "test": 2_000}
    captions = {name: set(pairs.captions) for name, pairs in icons.items()}
    assert len(captions["validation"]) == len(captions["test"]) == 2_000
    assert not captions["train"] & captions["validation"]
    assert not (captions["train"] | captions["validation"]) & captions["test"]


def test_the_bundled_images_are_small_grey_and_not_blank(icons):
    images = [np.asarray(icons["test"].images[i]) for i in range(0, 1800, 36)]
    assert {image.shape for image in images} == {(32, 32, 3)}
    assert all((image[:, :, 0] == image[:, :, 1]).all() for image in images)
    assert all(image.min() < 128 < image.max() for image in images)
    assert sum(file.stat().st_size for file in BUNDLED["icons"].iterdir()) < 16_000_000


@pytest.mark.parametrize(
    ("name", "content"),
    [("bad.parquet", "PAR0" * 9), ("bad.csv", 'caption\n"a,b\n1,2,3\n'), ("bad.json", '{"caption": [1, 2')],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}: cannot be read"):
        load_pairs(str(tmp_path / name), "train", images=False)
