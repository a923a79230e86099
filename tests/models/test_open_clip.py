"""open_clip to Hugging Face and back: an oracle that computes open_clip's forward from its tensors; refusals."""

import gzip
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from data import load_pairs
from models import LayerStack, load_clip
from models.families import read_config
from models.hf_open_clip import clip_config, from_open_clip, image_processor, open_clip_config, to_open_clip
from models.open_clip_folder import (
    BPE_NAME,
    CONFIG_NAME,
    WEIGHTS_NAMES,
    bpe_tokenizer,
    find_open_clip,
    load_open_clip,
    load_tokenizer,
    save_open_clip,
)


@pytest.fixture(scope="module")
def clip(tiny_clip):
    """A CLIP in which no two tensors are alike: norms and biases too."""
    clip = load_clip(str(tiny_clip))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in clip.model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return clip


@pytest.fixture
def folder(clip, tmp_path):
    """The model as an open_clip folder."""
    save_open_clip(clip.model, clip.processor, tmp_path / "open_clip", "name")
    return tmp_path / "open_clip"


def edit_config(folder, part, **changes):
    path = folder / CONFIG_NAME
    settings = json.loads(path.read_text())
    target = settings["model_cfg"] if part is None else settings["model_cfg"].get(part) or settings[part]
    target.update(changes)
    path.write_text(json.dumps(settings))


# --- open_clip's forward, written down from its tensors


def transformer(state, prefix, x, heads, causal):
    layer = 0
    while f"{prefix}.{layer}.ln_1.weight" in state:
        block = {
            name[len(f"{prefix}.{layer}.") :]: t for name, t in state.items() if name.startswith(f"{prefix}.{layer}.")
        }
        attention = torch.nn.MultiheadAttention(x.shape[-1], heads, batch_first=True)
        attention.load_state_dict({name[5:]: t for name, t in block.items() if name.startswith("attn.")})
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1) if causal else None
        y = norm(block, "ln_1", x)
        x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = F.linear(norm(block, "ln_2", x), block["mlp.c_fc.weight"], block["mlp.c_fc.bias"])
        x = x + F.linear(y * torch.sigmoid(1.702 * y), block["mlp.c_proj.weight"], block["mlp.c_proj.bias"])
        layer += 1
    return x


def norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def encode_text(state, text, heads):
    x = state["token_embedding.weight"][text] + state["positional_embedding"]
    x = norm(state, "ln_final", transformer(state, "transformer.resblocks", x, heads, causal=True))
    return x[torch.arange(len(x)), text.argmax(1)] @ state["text_projection"]


def encode_image(state, pixels, heads):
    kernel = state["visual.conv1.weight"]
    x = F.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = norm(state, "visual.ln_pre", x)
    x = transformer(state, "visual.transformer.resblocks", x, heads, causal=False)
    return norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]


@torch.no_grad()
def test_the_converted_weights_give_the_same_embeddings_in_open_clips_forward(clip):
    state = to_open_clip(clip.model.state_dict())
    ids = clip.processor.tokenizer(
        ["red square", "large green hexagon outline"], padding="max_length", max_length=32, return_tensors="pt"
    )["input_ids"]
    text = clip.model.get_text_features(input_ids=ids).pooler_output
    assert torch.allclose(encode_text(state, ids, heads=2), text, atol=1e-5)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    image = clip.model.get_image_features(pixel_values=pixels).pooler_output
    assert torch.allclose(encode_image(state, pixels, heads=2), image, atol=1e-5)
    assert text.std() > 0.1 and image.std() > 0.1


def test_there_and_back_gives_every_tensor_again(clip):
    state = clip.model.state_dict()
    again = from_open_clip(to_open_clip(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("prefix", ["module.", "text."])
def test_prefixes_of_other_wrappings_are_taken_off(clip, prefix):
    state = to_open_clip(clip.model.state_dict())
    wrapped = {name if prefix == "text." and "visual" in name else prefix + name: t for name, t in state.items()}
    wrapped["attn_mask"] = torch.zeros(2, 2)
    wrapped[f"{prefix}logit_scale"] = state["logit_scale"].reshape(1)
    again = from_open_clip(wrapped)
    assert all(torch.equal(again[name], tensor) for name, tensor in clip.model.state_dict().items())


def test_a_missing_and_an_unknown_tensor_are_named(clip):
    state = to_open_clip(clip.model.state_dict())
    state["visual.attnpool.positional_embedding"] = state.pop("visual.ln_pre.weight")
    with pytest.raises(ValueError, match="missing: visual.ln_pre.weight; not known: visual.attnpool"):
        from_open_clip(state)


# --- settings


def test_there_and_back_gives_the_same_configuration(clip):
    settings = open_clip_config(clip.model.config, clip.processor.image_processor, "name")
    again = clip_config(settings["model_cfg"], clip.processor.tokenizer)
    for key in ("text_config", "vision_config"):
        old, new = getattr(clip.model.config, key).to_dict(), getattr(again, key).to_dict()
        assert {k: v for k, v in new.items() if k != "dtype"} == {k: v for k, v in old.items() if k != "dtype"}
    processor = image_processor(settings["preprocess_cfg"], 32)
    assert processor.to_dict() == {**clip.processor.image_processor.to_dict()}


def test_settings_left_out_have_open_clips_defaults(clip):
    config = clip_config({"embed_dim": 512, "vision_cfg": {"patch_size": 32}, "text_cfg": {}}, clip.processor.tokenizer)
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_attention_heads, text.num_hidden_layers, text.hidden_act) == (512, 8, 12, "gelu")
    assert (vision.hidden_size, vision.num_attention_heads, vision.patch_size) == (768, 12, 32)
    assert (text.max_position_embeddings, vision.image_size, vision.intermediate_size) == (77, 224, 3072)


def test_an_end_token_that_is_not_the_largest_is_written_down(clip):
    config = type(clip.model.config).from_dict(clip.model.config.to_dict())
    config.text_config.eos_token_id = 5
    text_cfg = open_clip_config(config, clip.processor.image_processor, "name")["model_cfg"]["text_cfg"]
    assert (text_cfg["pool_type"], text_cfg["eos_id"]) == ("eos", 5)
    config.text_config.eos_token_id = 2  # a legacy configuration: the largest id, whatever this says
    text_cfg = open_clip_config(config, clip.processor.image_processor, "name")["model_cfg"]["text_cfg"]
    assert "pool_type" not in text_cfg


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "vision_cfg.layers a list: CLIPModel has no counterpart"),
        ("vision_cfg", {"timm_model_name": "convnext_base"}, 'vision_cfg.timm_model_name "convnext_base"'),
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type"),
        ("vision_cfg", {"ls_init_value": 0.1}, "vision_cfg.ls_init_value 0.1"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, 'text_cfg.hf_model_name "roberta-base"'),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask true"),
        ("text_cfg", {"pool_type": "last"}, "pool_type last: expected eos, or argmax"),
        (None, {"init_logit_bias": -10}, "init_logit_bias -10"),
        (
            "preprocess_cfg",
            {"resize_mode": "longest"},
            "resize_mode longest and interpolation bicubic: expected shortest",
        ),
    ],
)
def test_what_clip_model_has_not_is_refused_by_name(folder, part, changes, message):
    edit_config(folder, part, **changes)
    with pytest.raises(ValueError, match=message):
        load_clip(str(folder))


def test_settings_without_effect_are_no_obstacle(clip, folder):
    edit_config(folder, "vision_cfg", patch_dropout=0.5, pool_type="tok", attentional_pool=False, output_tokens=True)
    edit_config(folder, "text_cfg", proj_type="linear", pad_id=1, norm_kwargs={"eps": 1e-6})
    config = read_config(str(folder))
    assert config.text_config.layer_norm_eps == 1e-6
    assert config.vision_config.layer_norm_eps == clip.model.config.vision_config.layer_norm_eps


def test_what_open_clip_has_not_is_refused(clip):
    config = type(clip.model.config).from_dict(clip.model.config.to_dict())
    config.vision_config.hidden_act = "gelu"
    with pytest.raises(ValueError, match="found quick_gelu for text and gelu for images"):
        open_clip_config(config, clip.processor.image_processor, "name")
    other = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    with pytest.raises(ValueError, match="open_clip resizes to the model's 32 pixels.*'shortest_edge': 40"):
        open_clip_config(clip.model.config, other, "name")


def test_squashed_images_stay_squashed(clip):
    processor = image_processor({"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3}, 32)
    assert (processor.do_center_crop, processor.resample) == (False, 2)
    again = open_clip_config(clip.model.config, processor, "name")["preprocess_cfg"]
    assert (again["resize_mode"], again["interpolation"], again["mean"]) == ("squash", "bilinear", [0.5] * 3)


# --- folders


def test_an_open_clip_folder_is_a_model_like_any_other(clip, folder, tiny_pairs):
    captions = load_pairs(str(tiny_pairs), "test").captions
    expected = clip.embeddings(captions)
    for name in (str(folder), f"local-dir:{folder}"):
        assert torch.allclose(load_clip(name).embeddings(captions), expected, atol=1e-6)
    assert read_config(str(folder)).text_config.num_hidden_layers == 4
    fresh = load_clip(str(folder), weights=False)
    assert not torch.allclose(fresh.embeddings(captions), expected, atol=1e-2)


def test_an_open_clip_model_can_be_pruned_and_saved(clip, folder, tmp_path):
    captions = ["red square", "small blue triangle"]
    loaded = load_clip(str(folder))
    LayerStack(loaded.model, "text").drop([2, 3]).save_pretrained(tmp_path / "pruned")
    loaded.processor.save_pretrained(tmp_path / "pruned")
    pruned = load_clip(str(tmp_path / "pruned"))
    assert pruned.num_layers == 2
    assert torch.allclose(pruned.embeddings(captions), clip.embeddings(captions, [1, 4]), atol=1e-6)


def test_torch_weights_are_read_too(clip, folder):
    state = to_open_clip(clip.model.state_dict())
    (folder / WEIGHTS_NAMES[0]).unlink()
    torch.save({"state_dict": state, "epoch": 3}, folder / "open_clip_pytorch_model.bin")
    model, _ = load_open_clip(folder)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in clip.model.state_dict().items())


def test_half_precision_is_computed_in_float32_and_saved_as_it_came(clip, folder, tmp_path):
    state = {name: tensor.half() for name, tensor in to_open_clip(clip.model.state_dict()).items()}
    save_file(state, folder / WEIGHTS_NAMES[0])
    loaded = load_clip(str(folder))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    save_open_clip(loaded.model, loaded.processor, tmp_path / "again", "name")
    again = load_file(tmp_path / "again" / WEIGHTS_NAMES[0])
    assert all(
        torch.equal(again[name], tensor) and again[name].dtype == torch.float16 for name, tensor in state.items()
    )


def test_a_folder_with_a_hugging_face_configuration_is_read_as_that(folder, tiny_clip):
    assert find_open_clip(str(folder)) == folder
    shutil.copy(tiny_clip / "config.json", folder)
    assert find_open_clip(str(folder)) is None
    assert find_open_clip(f"local-dir:{folder}") == folder
    assert find_open_clip(str(tiny_clip)) is None


def test_broken_folders_say_what_is_wrong(clip, folder):
    (folder / WEIGHTS_NAMES[0]).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="open_clip_model.safetensors: not a readable state dict"):
        load_clip(str(folder))
    (folder / WEIGHTS_NAMES[0]).unlink()
    with pytest.raises(FileNotFoundError, match="no weights; looked for open_clip_model.safetensors"):
        load_clip(str(folder))
    save_open_clip(clip.model, clip.processor, folder, "name")
    edit_config(folder, "text_cfg", context_length=40)
    with pytest.raises(ValueError, match="(?s)the weights do not fit open_clip_config.json ..*position_embedding"):
        load_clip(str(folder))
    (folder / CONFIG_NAME).write_text('{"model_cfg": {"embed_dim": 1}}')
    with pytest.raises(ValueError, match="not the configuration of an open_clip model .*text_cfg"):
        load_clip(str(folder))


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("text_cfg", {"width": "wide"}),
        ("vision_cfg", {"head_width": 0}),
        (None, {"embed_dim": None}),
        (None, {"text_cfg": "a text"}),
        ("preprocess_cfg", {"mean": 3}),
    ],
)
def test_values_of_a_wrong_kind_are_named(folder, part, changes):
    edit_config(folder, part, **changes)
    with pytest.raises(
        ValueError,
        match="open_clip_config.json: (not the configuration of an open_clip model|no CLIPModel can be made)",
    ):
        load_clip(str(folder))


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, {"logit_scale": "hot"}, {}])
def test_weights_of_a_wrong_kind_are_named(folder, content):
    (folder / WEIGHTS_NAMES[0]).unlink()
    torch.save(content, folder / WEIGHTS_NAMES[2])
    with pytest.raises(ValueError, match="not a readable state dict|expected the weights of open_clip's CLIP"):
        load_clip(str(folder))


def test_code_in_weights_is_never_run(folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    (folder / WEIGHTS_NAMES[0]).unlink()
    torch.save({"logit_scale": Payload()}, folder / WEIGHTS_NAMES[2])
    with pytest.raises(ValueError, match="a pickle of more than tensors, whose code is never run"):
        load_clip(str(folder))
    assert not (tmp_path / "canary").exists()


def test_weights_that_are_not_finite_are_named(clip, folder):
    state = to_open_clip(clip.model.state_dict())
    state["ln_final.bias"] = torch.full_like(state["ln_final.bias"], torch.nan)
    save_file(state, folder / WEIGHTS_NAMES[0])
    with pytest.raises(ValueError, match="NaN or infinity in 1 weights .text_model.final_layer_norm.bias"):
        load_clip(str(folder))


def test_a_model_that_the_hub_does_not_give_is_named():
    with pytest.raises(FileNotFoundError, match="the hub did not give 'nobody/nothing'"):
        load_clip("hf-hub:nobody/nothing")


def test_a_model_on_the_hub_is_downloaded_with_one_file_of_weights(clip, folder, monkeypatch):
    (folder / WEIGHTS_NAMES[0]).unlink()
    torch.save(to_open_clip(clip.model.state_dict()), folder / WEIGHTS_NAMES[2])
    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, [name for name in allow_patterns if name in WEIGHTS_NAMES]))
        return str(folder)

    monkeypatch.setattr("models.open_clip_folder.snapshot_download", download)
    loaded = load_clip("hf-hub:someone/clip")
    assert torch.allclose(loaded.embeddings(["red square"]), clip.embeddings(["red square"]), atol=1e-6)
    assert asked == [("someone/clip", [name]) for name in WEIGHTS_NAMES]
    (folder / CONFIG_NAME).unlink()
    with pytest.raises(
        FileNotFoundError, match="someone/clip on the hub is no open_clip model: it has no open_clip_config"
    ):
        load_clip("hf-hub:someone/clip")


# --- tokenizer


@pytest.fixture
def merges(tmp_path):
    """A file of merges like CLIP's, with two of them."""
    path = tmp_path / "bpe" / BPE_NAME
    path.parent.mkdir()
    path.write_bytes(gzip.compress(b"version\nh e\nhe y</w>"))
    return path


def test_the_merges_give_clips_numbers(merges):
    tokenizer = bpe_tokenizer(merges)
    assert len(tokenizer) == 2 * 256 + 2 + 2
    # "!" is the first byte; letters follow in their order; ends of words have their own, 256 later; then merges, start,
    # end
    h_end = 256 + ord("h") - ord("!")
    assert tokenizer("Hey h!")["input_ids"] == [514, 513, h_end, 256, 515]


@pytest.mark.parametrize("content", [b"a\nb c d\n", b"\xff\xff\n\xff a"])
def test_damaged_merges_are_named(merges, content):
    merges.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="not the merges of CLIP's tokenizer"):
        bpe_tokenizer(merges)
    merges.write_bytes(content)
    with pytest.raises(ValueError, match="not the merges of CLIP's tokenizer"):
        bpe_tokenizer(merges)


def test_a_folder_without_a_tokenizer_says_what_it_needs(folder, merges, monkeypatch):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        FileNotFoundError, match="no tokenizer; expected tokenizer.json, vocab.json with merges.txt, or bpe"
    ):
        load_clip(str(folder))
    shutil.copy(merges, folder)
    assert len(load_tokenizer(folder)) == 516


def test_clips_vocabulary_files_are_a_tokenizer(clip, folder):
    expected = clip.processor.tokenizer("red square")["input_ids"]
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder)("red square")["input_ids"] == expected
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    (folder / "merges.txt").write_text("#version\n" + "\n".join(" ".join(merge) for merge in content["merges"]))
    assert load_tokenizer(folder)("red square")["input_ids"] == expected


# --- the package, where it is installed


@torch.no_grad()
def test_the_package_open_clip_gives_the_same_embeddings(clip, folder, tiny_pairs):
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    pairs = load_pairs(str(tiny_pairs), "test")
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(pairs.captions)
    text = model.eval().encode_text(tokens, normalize=True)
    assert torch.allclose(text, clip.embeddings(pairs.captions), atol=1e-5)
    images = [pairs.images[i] for i in range(5)]
    image = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
    assert torch.allclose(image, clip.embed_images(clip.preprocess(images)), atol=1e-5)
