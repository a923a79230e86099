import numpy as np
import pytest

from data import load_labels, load_pairs, scenes
from data.scenes import PLACES, Scene, Thing, captions, draw_group, render


@pytest.mark.parametrize("number", range(12))
def test_a_group_has_the_same_words_in_different_bindings(number):
    group = draw_group("train", number, 8)
    words = {tuple(sorted(" ".join(map(str, scene.things)).split())) for scene in group}
    assert len(words) == 1 and len({scene.things for scene in group}) == len(group) > 1
    for way in range(2):
        said = [captions(scene)[way] for scene in group]
        assert len(set(said)) == len(said)
        assert len({tuple(sorted(text.replace("an ", "a ").replace(",", "").split())) for text in said}) == 1


def test_a_group_depends_on_the_split_and_its_number_alone():
    assert draw_group("test", 5, 4) == draw_group("test", 5, 4)
    assert draw_group("test", 5, 4) != draw_group("validation", 5, 4)
    assert draw_group("test", 5, 4) != draw_group("test", 6, 4)


def test_things_stand_where_the_layout_says():
    red, blue = Thing("heart", 0, "red", "large"), Thing("star", 0, "blue", "large")
    for seed in range(8):
        picture = np.asarray(render(Scene("beside", (red, blue), "", seed))).astype(int)
        redness = (picture[:, :, 0] - picture[:, :, 2]).sum(0)  # of each column of pixels
        assert redness[:32].sum() > 0 > redness[32:].sum()
        picture = np.asarray(render(Scene("stacked", (red, blue), "", seed))).astype(int)
        redness = (picture[:, :, 0] - picture[:, :, 2]).sum(1)
        assert redness[:32].sum() > 0 > redness[32:].sum()


def test_captions_say_where_things_stand():
    red, blue, green = Thing("heart", 0, "red", ""), Thing("star", 0, "blue", ""), Thing("key", 0, "green", "small")
    left = captions(Scene("beside", (red, blue), "", 0), 50)
    assert "a red heart left of a blue star" in left and "a blue star to the right of a red heart" in left
    assert "a star right of a heart, the star blue and the heart red" in left
    assert not any("a blue star left" in text or "a red heart right" in text for text in left)
    below = captions(Scene("pair above one", (red, blue, green), "", 0), 50)
    assert "a red heart left of a blue star, both above a small green key" in below
    assert "a small green key below a blue star right of a red heart" in below


def test_every_place_is_a_quarter_of_the_picture():
    for places in PLACES.values():
        assert all(len(set(quarters)) == len(quarters) and set(quarters) <= {0, 1, 2, 3} for quarters in places)


def test_bundled_scenes_are_what_the_build_draws_and_no_caption_is_in_two_splits():
    train = load_pairs("scenes", "train", images=False)
    assert len(train) == 2 * len(set(train.image_index)) and len(train) <= 120_000
    seen = set(train.captions)
    for split in ("validation", "test"):
        pairs = load_pairs("scenes", split)
        assert len(pairs) == len(pairs.images) == len(set(pairs.captions)) == 2_000
        assert not seen & set(pairs.captions)
        seen |= set(pairs.captions)
        assert pairs.groups.tolist() == sorted(pairs.groups)
        first = draw_group(split, int(pairs.groups[0]), 20)[0]
        assert captions(first, 1) == pairs.captions[:1]
        assert np.array_equal(np.asarray(pairs.images[0]), np.asarray(render(first)))


def test_rendered_scenes_are_images_like_others():
    pairs = load_pairs("scenes", "train", max_pairs=6)
    assert len(pairs.images) == 3 and pairs.image_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert pairs.images[0].size == (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE)
    assert pairs.images.select(np.array([2])).content_hash() != pairs.images.select(np.array([1])).content_hash()


def test_drawn_scenes_have_no_labels():
    with pytest.raises(ValueError, match="scenes: this split is drawn, it has no columns; leave out --label_column"):
        load_labels(load_pairs("scenes", "train", max_pairs=6), "label")
