"""CLIP through the layer stack: the same embeddings as the model's own, cut captions, cached images."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING, BertConfig

from models import encoders, load_clip
from models.encoders import number_at_once
from models.families import FAMILIES, REFUSED, check_num_layers, load_encoder, read_config, read_tower_config
from search_strategy.fine import FineSearch

# what the configuration of a pair of models cannot do without
CONFIGS = {
    "vision-text-dual-encoder": {
        "vision_config": {"model_type": "clip_vision_model"},
        "text_config": {"model_type": "bert"},
    }
}


def own_text_features(model, tokenizer, captions, length):
    """The model's own forward: padded to `length`, with the tokenizer's mask."""
    inputs = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        return F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_cut_captions_embed_as_fully_padded_ones(clip, pairs, batch_size):
    expected = own_text_features(clip.model, clip.processor.tokenizer, pairs.captions, 32)
    assert torch.allclose(clip.embeddings(pairs.captions, batch_size=batch_size), expected, atol=1e-6)


def test_keeping_some_layers_is_the_rebuilt_model(clip, pairs):
    expected = own_text_features(clip.stack.drop([2, 3]), clip.processor.tokenizer, pairs.captions, 32)
    kept = clip.embeddings(pairs.captions, kept_layers=[1, 4])
    assert torch.allclose(kept, expected, atol=1e-6)
    assert not torch.allclose(kept, clip.embeddings(pairs.captions), atol=1e-3)


def test_a_legacy_checkpoint_is_read_at_its_largest_token(tiny_clip, pairs, tmp_path):
    shutil.copytree(tiny_clip, tmp_path / "legacy")
    config = read_config(str(tmp_path / "legacy"))
    end = config.text_config.eos_token_id
    config.text_config.eos_token_id = 2
    config.save_pretrained(tmp_path / "legacy")
    legacy = load_clip(str(tmp_path / "legacy"))
    tokens = legacy.prepare(pairs.captions)
    assert all(ids[-1] == end and end not in ids[:-1] for ids in tokens)
    expected = own_text_features(legacy.model, legacy.processor.tokenizer, pairs.captions, 32)
    assert torch.allclose(legacy.embeddings(pairs.captions), expected, atol=1e-6)


def test_long_captions_are_cut_to_the_models_length(clip):
    tokens = clip.prepare(["red square " * 40])
    assert len(tokens[0]) == 32 and tokens[0][-1] == clip.model.config.text_config.eos_token_id


def test_batches_hold_every_caption_once_sorted_by_length(clip, pairs):
    batches = list(clip.batches(pairs.captions, 16))
    rows = np.concatenate([batch.rows for batch in batches])
    lengths = np.concatenate([batch.lengths for batch in batches])
    assert sorted(rows) == list(range(60))
    assert (np.diff(lengths) >= 0).all()
    assert all(batch.inputs["input_ids"].shape[1] == batch.lengths.max() for batch in batches)


@pytest.mark.parametrize(
    ("lengths", "tokens", "number"), [([3, 4, 5], 12, 2), ([3, 4, 5], 15, 3), ([9, 9], 4, 1), ([1], 9, 1)]
)
def test_a_batch_has_as_many_positions_as_the_device_takes_best(lengths, tokens, number):
    assert number_at_once(np.array(lengths), tokens) == number


def test_by_default_batches_have_at_most_so_many_positions(clip, pairs, monkeypatch):
    monkeypatch.setattr(encoders, "CPU_TOKENS", 40)
    batches = list(clip.batches(pairs.captions))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(len(pairs.captions)))
    assert all(batch.mask.numel() <= 40 for batch in batches)
    for first, second in pairwise(batches):  # one sample more would have been too many
        assert (len(first.rows) + 1) * int(second.lengths[0]) > 40
    padded = next(clip.batches(pairs.captions, length=clip.max_length))
    assert padded.mask.shape == (max(1, 40 // clip.max_length), clip.max_length)


def test_pooling_leaves_padding_out(clip, pairs):
    batch = clip.batch(clip.prepare(pairs.captions), [0, 1, 2, 3])
    hidden = torch.randn(4, batch.inputs["input_ids"].shape[1], 5)
    for i, length in enumerate(batch.lengths):
        assert torch.allclose(clip.pool(hidden, batch, "mean")[i], hidden[i, :length].mean(0), atol=1e-6)
        assert torch.equal(clip.pool(hidden, batch, "eos")[i], hidden[i, length - 1])
    assert batch.lengths.tolist() == [len(ids) for ids in clip.prepare(pairs.captions[:4])]


def test_image_embeddings_are_the_models_own(clip, pairs):
    pixels = clip.processor.image_processor([pairs.images[i] for i in range(60)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = F.normalize(clip.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    assert torch.allclose(clip.image_embeddings(pairs.images, batch_size=13), expected, atol=1e-6)


def test_image_embeddings_are_cached_by_content(tiny_clip, pairs, tmp_path):
    clip = load_clip(str(tiny_clip))
    first = clip.image_embeddings(pairs.images, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 1
    clip.embed_images = None  # a second computation would fail
    assert torch.equal(clip.image_embeddings(pairs.images, tmp_path), first)


def test_embeddings_that_were_made_before_a_kill_are_kept(tiny_clip, pairs, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("models.embedding_cache.CACHED_IMAGES", 25)
    clip, seen = load_clip(str(tiny_clip)), []
    expected, embed = clip.image_embeddings(pairs.images), clip.embed_images

    def embed_some(pixels):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(pixels))
        return embed(pixels)

    clip.embed_images = embed_some
    with pytest.raises(KeyboardInterrupt):
        clip.image_embeddings(pairs.images, tmp_path)
    assert seen == [25, 25]
    seen.clear()
    with caplog.at_level("INFO"):
        assert torch.allclose(clip.image_embeddings(pairs.images, tmp_path), expected, atol=1e-6)
    assert seen == [10]  # the last part alone
    assert "image embeddings: 60 of 60" in caplog.text
    few = pairs.images.select(np.arange(25))  # as of --max_pairs
    assert torch.allclose(clip.image_embeddings(few, tmp_path), expected[:25], atol=1e-6) and seen == [10]


@pytest.mark.parametrize("change", ["image", "image tower", "text tower"])
def test_the_cache_knows_what_it_depends_on(tiny_clip, pairs, tmp_path, change):
    clip = load_clip(str(tiny_clip))
    clip.image_embeddings(pairs.images, tmp_path)
    images = pairs.images.select(np.arange(59)) if change == "image" else pairs.images
    with torch.no_grad():
        if change == "image tower":
            clip.model.vision_model.embeddings.class_embedding += 1
        if change == "text tower":
            clip.model.text_projection.weight += 1
    clip.image_embeddings(images, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == (1 if change == "text tower" else 2)


def test_broken_images_are_nan_rows_and_left_out_of_the_pairs(clip, pairs):
    class OneBroken:
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images) * 2  # 120 images, so that one of them is less than 1 %

        def __getitem__(self, index):
            return None if index == 5 else self.images[range(len(self))[index] % 60]

        def select(self, kept):
            return [self[i] for i in kept]

        def name(self, index):
            return f"picture {index}"

    broken = OneBroken(pairs.images)
    doubled = type(pairs)(pairs.captions * 2, np.arange(120), broken, "doubled", "test")
    assert torch.isnan(clip.image_embeddings(broken)).any(1).nonzero().tolist() == [[5]]
    with pytest.warns(UserWarning, match=r"skipped 1 of 120 images \(cannot be decoded, the first of them picture 5\)"):
        usable, embeddings = clip.embed_pairs(doubled)
    assert len(usable) == 119 and embeddings.shape[0] == 119 and not embeddings.isnan().any()
    vision = load_encoder(clip.name, "vision")
    with pytest.warns(UserWarning, match="skipped 1 of 120 images"):
        assert FineSearch.from_pairs(vision, doubled, objective="embedding").num_samples == 119


def test_missing_models_and_models_of_another_kind_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="model not found: 'no/such'"):
        load_clip("no/such")
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected a CLIP model \(model_type clip\), found bert"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "tower", "reason"),
    [
        ("altclip", "text", "a readout of its own"),
        ("blip", "text", "its text blocks also attend to the image"),
        ("chinese_clip", "text", "a readout of its own"),
        ("clap", "text", "it has sounds in the place of images"),
        ("deepseek_v3", "text", "the first are no mixtures of experts"),
        ("longformer", "text", "states have more positions than tokens"),
        ("siglip2", "text", "it takes images of any shape"),
        ("vision-text-dual-encoder", "text", "with two kinds of blocks"),
        ("xlnet", "text", "the position before the sample"),
        ("gpt2", "text", "it is none of bert, .*clip, "),
        ("bert", "vision", "bert has the tower text here"),
    ],
)
def test_models_that_cannot_be_pruned_are_refused_by_name(tmp_path, kind, tower, reason):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} | CONFIGS.get(kind, {})))
    with pytest.raises(
        ValueError, match=f"the {tower} tower of model_type {kind} cannot be pruned .*{reason}"
    ) as error:
        load_encoder(str(tmp_path), tower)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", REFUSED)
def test_every_kind_that_is_refused_is_one_that_transformers_has_and_that_no_class_reads(kind):
    assert kind in CONFIG_MAPPING and REFUSED[kind]
    assert kind not in {family for family, _ in FAMILIES}


@pytest.mark.parametrize(
    ("file", "message"),
    [("model.safetensors", "the weights cannot be read"), ("tokenizer.json", "no tokenizer with a vocabulary")],
)
def test_damaged_weights_and_a_missing_tokenizer_are_errors(tiny_clip, tmp_path, file, message):
    shutil.copytree(tiny_clip, tmp_path / "damaged")
    path = tmp_path / "damaged" / file
    if file == "tokenizer.json":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=message):
        load_clip(str(tmp_path / "damaged"))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("num_hidden_layers", 5, "16 weights that its config.json asks for are missing"),
        ("intermediate_size", 8, "do not fit"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_errors(tiny_clip, tmp_path, setting, value, message):
    shutil.copytree(tiny_clip, tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"][setting] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_clip(str(tmp_path / "other"))


def test_fresh_weights_are_not_the_saved_ones(tiny_clip, clip):
    fresh = load_clip(str(tiny_clip), weights=False)
    assert fresh.num_layers == clip.num_layers
    assert not torch.equal(fresh.model.text_projection.weight, clip.model.text_projection.weight)


def test_a_checkpoint_is_read_by_its_family_and_asked_for_its_layers(tiny_clip, clip, pairs):
    encoder = load_encoder(str(tiny_clip))
    assert torch.equal(encoder.embeddings(pairs.captions), clip.embeddings(pairs.captions))
    depths = [read_tower_config(str(tiny_clip), tower).num_hidden_layers for tower in ("text", "vision")]
    assert depths == [4, 2]
    check_num_layers(4, str(tiny_clip))
    with pytest.raises(ValueError, match="--num_layers is 12, but the text tower of .* has 4 layers"):
        check_num_layers(12, str(tiny_clip))


def test_some_of_a_batch_is_cut_to_its_longest(clip, pairs):
    batch = clip.batch(clip.prepare(pairs.captions[:9]), range(9))
    short = batch.select(batch.lengths.argsort()[:2])
    assert short.inputs["input_ids"].shape == short.mask.shape == (2, int(batch.lengths.sort().values[1]))
    assert torch.allclose(
        clip.deployed(short.inputs), clip.deployed(batch.inputs)[torch.from_numpy(short.rows)], atol=1e-6
    )
