"""Which rows a split gets: named, by a column, or cut so that no image and no caption is in two of them."""

import io
import itertools

import datasets
import numpy as np
import pytest
from PIL import Image

from common import SPLITS
from data import load_pairs
from data.splits import assign_splits, choose_rows, connect, hashed_split


def random_pairs(seed, num_pairs=400, num_captions=300, num_images=250):
    rng = np.random.default_rng(seed)
    captions = [f"caption {n}" for n in rng.integers(num_captions, size=num_pairs)]
    return captions, np.unique(rng.integers(num_images, size=num_pairs), return_inverse=True)[1]


@pytest.mark.parametrize("seed", range(20))
def test_no_caption_and_no_image_is_in_two_splits(seed):
    captions, image_index = random_pairs(seed, num_captions=350 - 15 * seed, num_images=500)
    split_of = assign_splits(captions, image_index, ["validation", "test"])
    assert len(split_of) == 400 and set(split_of) <= set(SPLITS)
    for side in (captions, image_index.tolist()):
        in_splits = [{key for key, split in zip(side, split_of, strict=True) if split == name} for name in SPLITS]
        assert not any(first & second for first, second in itertools.combinations(in_splits, 2))


@pytest.mark.parametrize("seed", range(5))
def test_the_cut_does_not_depend_on_the_order(seed):
    captions, image_index = random_pairs(seed, num_images=2_000)
    order = np.random.default_rng(seed).permutation(len(captions))
    shuffled = assign_splits([captions[i] for i in order], image_index[order], ["validation", "test"])
    assert (shuffled == assign_splits(captions, image_index, ["validation", "test"])[order]).all()
    assert len(set(shuffled)) == 3


def test_groups_are_what_a_plain_search_finds():
    captions, image_index = random_pairs(1, 120, 100, 100)
    caption_index = np.unique(captions, return_inverse=True)[1]
    group = connect(caption_index, image_index)
    for start in range(120):
        seen, found = set(), [start]
        while found:
            pair = found.pop()
            if pair in seen:
                continue
            seen.add(pair)
            same = (caption_index == caption_index[pair]) | (image_index == image_index[pair])
            found.extend(np.flatnonzero(same).tolist())
        assert seen == set(np.flatnonzero(group == group[start]).tolist())


def test_pairs_that_share_nothing_are_cut_by_the_hash_of_their_caption():
    captions = [f"caption {i}" for i in range(500)]
    split_of = assign_splits(captions, np.arange(500), ["validation", "test"])
    assert split_of.tolist() == [hashed_split(caption, ["validation", "test"]) for caption in captions]
    assert 0.7 < np.mean(split_of == "train") < 0.9
    assert set(assign_splits(captions, np.arange(500), ["test"])) == {"train", "test"}


def test_a_large_group_goes_to_train():
    captions = [f"{i % 100}" if i < 100 else f"one {i}" for i in range(200)]
    image_index = np.array([i if i < 100 else 100 for i in range(200)])
    split_of = assign_splits(captions, image_index, ["validation", "test"])
    assert set(split_of[100:]) == {"train"} and set(split_of[:100]) == set(SPLITS)


def test_one_row_a_caption_leaves_no_image_in_two_splits(tmp_path):
    """Flickr8k's form: five rows an image, all with the image's path."""
    lines = ["image,caption"]
    for i in range(100):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (i, 0, 0)).save(buffer, "PNG")
        for copy in range(2):  # the same picture under two names
            (tmp_path / f"{i}_{copy}.png").write_bytes(buffer.getvalue())
        lines += [f"{i}_{n % 2}.png,caption {n} of {i}" for n in range(5)]
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    captions, images = {}, {}
    for split in SPLITS:
        pairs = load_pairs(str(tmp_path / "captions.csv"), split)
        alone = load_pairs(str(tmp_path / "captions.csv"), split, images=False)
        assert alone.captions == pairs.captions and alone.images is None  # cut alike with and without images
        captions[split] = set(pairs.captions)
        images[split] = {pairs.images.encoded(i) for i in range(len(pairs.images))}
        assert len(captions[split]) == 5 * len(images[split]) > 0
        assert (
            pairs.notes["read"] == "cut from train (500 captions) by image and caption: what shares one stays together"
        )
    for of_split in (captions, images):
        assert not any(of_split[a] & of_split[b] for a, b in itertools.combinations(SPLITS, 2))
        assert sum(map(len, of_split.values())) == (500 if of_split is captions else 100)


def rows(*captions, **columns):
    return datasets.Dataset.from_dict({"caption": list(captions)} | columns)


@pytest.mark.parametrize("name", ["val", "valid", "dev", "Validation"])
def test_usual_names_of_splits_are_understood(name):
    splits = {"training": rows("a"), name: rows("b"), "testing": rows("c")}
    for split, caption in zip(SPLITS, "abc", strict=True):
        assert choose_rows(splits, split, "x").rows["caption"][:] == [caption]


def test_restval_joins_train():
    splits = {"train": rows("a"), "restval": rows("b"), "val": rows("c"), "test": rows("d")}
    chosen = choose_rows(splits, "train", "x")
    assert chosen.rows["caption"][:] == ["a", "b"] and chosen.how == "read, train and restval"


def test_a_missing_validation_is_cut_from_train_and_test_is_read():
    splits = {"train": rows(*"abcdef"), "test": rows("g")}
    assert choose_rows(splits, "test", "x")[1:] == ("read", ())
    for split in ("train", "validation"):
        assert choose_rows(splits, split, "x")[1:] == ("cut from train", ["validation"])


def test_validation_is_read_for_a_missing_train_where_that_is_wanted():
    splits = {"val": rows("a"), "test": rows("b")}
    with pytest.raises(ValueError, match="x: no split train to take train from; it has the splits val, test"):
        choose_rows(splits, "train", "x")
    with pytest.warns(UserWarning, match="x: there is no split train; validation is read in its place"):
        chosen = choose_rows(splits, "train", "x", or_validation=True)
    assert chosen.rows["caption"][:] == ["a"]


def test_a_split_column_of_other_values_does_not_count():
    splits = {"test": rows(*"abc", split=["one", "two", "one"])}
    assert choose_rows(splits, "train", "x").how == "cut from test"


def test_all_rows_are_read_uncut():
    assert choose_rows({"test": rows(*"abc")}, "all", "x").rows["caption"][:] == ["a", "b", "c"]
    assert len(choose_rows({"val": rows("a"), "test": rows("b")}, "all", "x").rows) == 2


def test_an_empty_split_is_named():
    with pytest.raises(ValueError, match="x: the split test has no rows"):
        choose_rows({"train": rows("a"), "validation": rows("b"), "test": rows()}, "test", "x")


def test_a_known_benchmark_is_recognised_by_its_counts(tmp_path):
    images = [{"bytes": b"%d" % i, "path": None} for i in range(1000)]
    made = datasets.Dataset.from_dict(
        {"image": images, "caption": [[f"{i} {n}" for n in range(5)] for i in range(1000)]}
    )
    made.to_parquet(tmp_path / "test.parquet")
    assert "Flickr30k" in load_pairs(str(tmp_path), "all").identity()["as_many_as"]
    assert "as_many_as" not in load_pairs(str(tmp_path), "test").identity()


def test_a_streamed_train_has_no_caption_of_the_cut_splits(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(f"caption {i}" for i in range(300)))
    streamed = load_pairs(str(path), "train", images=False, streaming=True, max_pairs=1000).captions
    assert streamed == load_pairs(str(path), "train", images=False).captions
