"""The tokenizer of a new CLIP: CLIP's conventions, and the same every time."""

import copy

import pytest
import torch
from transformers import CLIPModel

from tools.build_clip import END, START, train_tokenizer, write_weights

CAPTIONS = [f"{first}{second} {third}" for first in "abcd" for second in "efgh" for third in ("Arrow", "up", "Down")]


def test_captions_are_lower_case_between_a_start_and_an_end():
    tokenizer = train_tokenizer(CAPTIONS, num_merges=20, max_length=16)
    ids = tokenizer("Arrow UP").input_ids
    assert tokenizer.decode(ids[1:-1]).strip() == "arrow up"
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == [START, END]
    assert (ids[0], ids[-1]) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert len(tokenizer) == 256 + 256 + 20 + 2


def test_merges_of_equal_count_are_taken_in_the_same_order_every_time():
    vocabularies = [train_tokenizer(CAPTIONS, num_merges=20, max_length=16).get_vocab() for _ in range(10)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_a_new_clip_can_have_the_image_tower_of_another(tiny_clip, tmp_path):
    config, trained = CLIPModel.from_pretrained(tiny_clip).config, CLIPModel.from_pretrained(tiny_clip).state_dict()
    write_weights(config, str(tiny_clip), tmp_path)
    written = CLIPModel.from_pretrained(tmp_path).state_dict()
    for name, tensor in trained.items():
        if name.startswith(("vision_model", "visual_projection")):
            assert torch.equal(written[name], tensor)
    texts = [name for name in trained if name.startswith("text_model") and name.endswith("mlp.fc1.weight")]
    assert texts and not any(torch.equal(written[name], trained[name]) for name in texts)


@pytest.mark.parametrize(("name", "size"), [("num_hidden_layers", 3), ("hidden_size", 32), ("projection_dim", 8)])
def test_an_image_tower_of_other_sizes_is_refused_in_a_line(tiny_clip, tmp_path, name, size):
    config = copy.deepcopy(CLIPModel.from_pretrained(tiny_clip).config)
    setattr(config if name == "projection_dim" else config.vision_config, name, size)
    with pytest.raises(ValueError, match="its image tower does not have the sizes of the flags"):
        write_weights(config, str(tiny_clip), tmp_path)
