"""The icon search: the images a plain sort gives, both models in the picture, and where the pruned model comes from."""

import json

import pytest
import torch
from PIL import Image

from common import model_dir
from examples import icon_search

pytestmark = pytest.mark.usefixtures("pictures_drawn")


@pytest.fixture(scope="module", autouse=True)
def few_runs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(icon_search, "RUNS", 2)
        yield


def run(tmp_path, model, pairs, *flags):
    common = ["--model", str(model), "--dataset", str(pairs), "--exp_dir", str(tmp_path / "exp")]
    icon_search.main([*common, "--output", str(tmp_path / "icons.png"), *map(str, flags)])


def test_the_icons_are_the_most_similar_in_order(clip, pairs):
    images = clip.image_embeddings(pairs.images)
    found = icon_search.search(clip, "red square", images, top=5)
    similarity = (images @ clip.embeddings(["red square"])[0]).tolist()
    assert found.images == sorted(range(60), key=lambda i: -similarity[i])[:5]


def test_both_models_are_shown_for_every_query(tmp_path, tiny_clip, tiny_pairs, clip, pairs, capsys):
    run(tmp_path, tiny_clip, tiny_pairs, "red square", "blue triangle", "--clip_layers", "2-3", "--top", 6)
    out = capsys.readouterr().out
    assert "full: 4 layers" in out and "pruned: 2 layers" in out
    for query in ("red square", "blue triangle"):
        for kept in (None, [1, 4]):
            similarity = clip.image_embeddings(pairs.images) @ clip.embeddings([query], kept)[0]
            assert pairs.captions[similarity.argmax()] in out.split(repr(query))[1]
    with Image.open(tmp_path / "icons.png") as one_row:
        height = one_row.height
    run(tmp_path, tiny_clip, tiny_pairs, "red square", "--clip_layers", "2-3", "--top", 6)
    with Image.open(tmp_path / "icons.png") as picture:
        assert picture.height < height


def test_the_pruned_model_is_the_searchs_winner_where_none_is_named(tmp_path, tiny_clip, tiny_pairs, clip, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, tiny_clip, tiny_pairs, "red square")
    error = capsys.readouterr().err
    assert "no search result: looked for" in error and "clip4to2_" in error
    folder = model_dir(tmp_path / "exp", str(tiny_clip))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clip4to2_beam_dc.json").write_text(json.dumps({"winner": {"dropped_layers": [1, 3], "objective": 2.0}}))
    args = icon_search.build_parser().parse_args(["x", "--model", str(tiny_clip), "--exp_dir", str(tmp_path / "exp")])
    pruned, what = icon_search.load_pruned(args, clip, "cpu")
    assert what == "without layers 1, 3, not fine-tuned"
    expected = clip.embeddings(["red square"], [2, 4])
    assert torch.allclose(pruned.embeddings(["red square"]), expected, atol=1e-6)


def test_a_pruned_folder_is_taken_as_it_is(tmp_path, tiny_clip, tiny_pairs, clip, capsys):
    clip.stack.drop([2]).save_pretrained(tmp_path / "three")
    clip.processor.save_pretrained(tmp_path / "three")
    run(tmp_path, tiny_clip, tiny_pairs, "red square", "--pruned", tmp_path / "three", "--top", 2)
    assert "pruned: 3 layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pruned", "a", "--clip_layers", "2"], "--pruned and --clip_layers exclude each other"),
        (["--clip_layers", "5"], "layer 5 cannot be dropped: the model has layers 1 to 4"),
        (["--top", "0"], "expected a number of at least 1"),
    ],
)
def test_wrong_input_is_refused(tmp_path, tiny_clip, tiny_pairs, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, tiny_clip, tiny_pairs, "red square", *flags)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "icons.png").exists()


def test_an_image_is_named_by_its_first_caption(pairs):
    class Two:
        image_index = pairs.image_index[:3].copy()
        captions = ["first", "second", "third"]

    Two.image_index[:] = [0, 0, 1]
    assert icon_search.caption_of_image(Two) == {0: "first", 1: "third"}
