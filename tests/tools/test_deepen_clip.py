"""A deeper CLIP begins near the one it is made from."""

import pytest
import torch

from models import load_clip
from tools import deepen_clip

CAPTIONS = ["red square", "small blue triangle on the left", "black hexagon"]


def test_one_copy_is_the_same_model(tiny_clip, tmp_path):
    old, new = (load_clip(str(name), "cpu") for name in (tiny_clip, deepened(tiny_clip, tmp_path / "same", 1)))
    assert torch.equal(embedded(old), embedded(new))


@pytest.mark.parametrize("copies", [2, 3])
def test_layers_are_repeated_in_place_and_each_copy_adds_its_share(tiny_clip, tmp_path, copies):
    old, new = (load_clip(str(name), "cpu") for name in (tiny_clip, deepened(tiny_clip, tmp_path / "deep", copies)))
    assert new.num_layers == copies * old.num_layers
    for number, layer in enumerate(new.stack.layers):
        source = old.stack.layers[number // copies]
        torch.testing.assert_close(copies * layer.mlp.fc2.weight, source.mlp.fc2.weight)
        torch.testing.assert_close(copies * layer.self_attn.out_proj.bias, source.self_attn.out_proj.bias)
        assert torch.equal(layer.self_attn.q_proj.weight, source.self_attn.q_proj.weight)


def test_where_layers_add_little_the_deeper_model_is_near_the_old_one(tiny_clip):
    """The difference is of second order in what the layers add, so much smaller than what they change together."""
    old, new = (load_clip(str(tiny_clip), "cpu") for _ in range(2))
    with torch.no_grad():
        for layer in (*old.stack.layers, *new.stack.layers):
            for output in (layer.self_attn.out_proj, layer.mlp.fc2):
                output.weight *= 1e-5
                output.bias *= 1e-5
    deepen_clip.deepen(new, 2)
    effect = (embedded(old) - old.embeddings(CAPTIONS, kept_layers=[])).norm(dim=1)
    assert ((embedded(old) - embedded(new)).norm(dim=1) < 0.05 * effect).all()


def embedded(clip):
    return clip.embeddings(CAPTIONS)


def deepened(model, folder, copies):
    deepen_clip.main(["--model", str(model), "--output_dir", str(folder), "--copies", str(copies)])
    return folder


def test_a_folder_that_holds_something_is_left_alone(tiny_clip, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        deepened(tiny_clip, tmp_path, 2)
    assert "is not empty (notes.txt); pass another --output_dir" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
