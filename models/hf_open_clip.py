"""open_clip to Hugging Face form and back: names, shapes and settings of the two, nothing else.

Both are the CLIP of Radford et al. (2021). open_clip keeps query, key and value of an attention in one matrix and
multiplies by its projections from the right; Hugging Face has three matrices and linear layers. Towers and settings
that `CLIPModel` has not (ResNet, timm, BERT, SigLIP) are refused by name. The package open_clip is not needed.
"""

import json
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, PreTrainedTokenizerBase

# --- weights: Hugging Face name -> open_clip name

TENSORS = {
    "logit_scale": "logit_scale",
    "text_projection.weight": "text_projection",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "visual_projection.weight": "visual.proj",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
TRANSPOSED = ("text_projection.weight", "visual_projection.weight")
BLOCKS = {
    "text_model.encoder.layers": "transformer.resblocks",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
}
BLOCK_PARTS = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
NOT_WEIGHTS = ("attn_mask",)  # a buffer in checkpoints of early versions


def to_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `CLIPModel` under open_clip's names."""
    depths = [_depth(state, blocks) for blocks in BLOCKS]
    return {
        new: torch.cat([state[name] for name in old]) if len(old) > 1 else _turn(state[old[0]], old[0]).contiguous()
        for old, new in _pairs(depths)
    }


def from_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip state dict (of a `CLIP` or a `CustomTextCLIP`) under the names of `CLIPModel`.

    Raises ValueError where a tensor is missing or has no place in a `CLIPModel`.
    """
    state = {name.removeprefix("module.").removeprefix("text."): tensor for name, tensor in state.items()}
    pairs = list(_pairs([_depth(state, blocks) for blocks in BLOCKS.values()]))
    expected = {new for _, new in pairs}
    missing, foreign = sorted(expected - set(state)), sorted(set(state) - expected - set(NOT_WEIGHTS))
    if missing or foreign:
        raise ValueError(
            f"expected the weights of open_clip's CLIP with two transformers; "
            f"missing: {', '.join(missing[:5]) or 'none'}; not known: {', '.join(foreign[:5]) or 'none'}"
        )
    result = {}
    for old, new in pairs:
        parts = state[new].chunk(3) if len(old) > 1 else (_turn(state[new], old[0]),)
        result |= {name: part.contiguous() for name, part in zip(old, parts, strict=True)}
    return result | {"logit_scale": result["logit_scale"].reshape(())}


def _pairs(depths: list[int]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(Hugging Face names, open_clip name) of every tensor; three names for the joint projection of q, k and v."""
    for old, new in TENSORS.items():
        yield (old,), new
    for (old_blocks, new_blocks), depth in zip(BLOCKS.items(), depths, strict=True):
        for layer in range(depth):
            for kind in ("weight", "bias"):
                attention = tuple(f"{old_blocks}.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv")
                yield attention, f"{new_blocks}.{layer}.attn.in_proj_{kind}"
                for old, new in BLOCK_PARTS.items():
                    yield (f"{old_blocks}.{layer}.{old}.{kind}",), f"{new_blocks}.{layer}.{new}.{kind}"


def _depth(state: dict[str, Tensor], blocks: str) -> int:
    """How many blocks a state dict has under this name."""
    return len({name[len(blocks) + 1 :].split(".")[0] for name in state if name.startswith(f"{blocks}.")})


def _turn(tensor: Tensor, name: str) -> Tensor:
    return tensor.T if name in TRANSPOSED else tensor


# --- settings

TEXT_DEFAULTS = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
VISION_DEFAULTS = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "head_width": 64, "mlp_ratio": 4.0}
# Settings that may have another value than "nothing": those that CLIPModel has, and those that leave the embeddings
# alone.
FIXED = {"text_cfg": {"proj_type": "linear"}, "vision_cfg": {"pool_type": "tok", "pos_embed_type": "learnable"}}
READ_APART = ("norm_kwargs", "pool_type", "eos_id", "hf_tokenizer_name")
WITHOUT_EFFECT = ("pad_id", "patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "timm_pool")
ACTIVATIONS = {True: "quick_gelu", False: "gelu"}  # open_clip's quick_gelu
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_config(model_cfg: dict, tokenizer: PreTrainedTokenizerBase) -> CLIPConfig:
    """The `CLIPConfig` of an open_clip `model_cfg`. Raises ValueError at a setting that `CLIPModel` has not."""
    for key in ("init_logit_bias", "multimodal_cfg"):
        _refuse(model_cfg.get(key), key, "")
    text = _tower(model_cfg, "text_cfg", TEXT_DEFAULTS)
    vision = _tower(model_cfg, "vision_cfg", VISION_DEFAULTS)
    shared = {
        "hidden_act": ACTIVATIONS[bool(model_cfg.get("quick_gelu"))],
        "projection_dim": model_cfg["embed_dim"],
    }
    text_config = _common(text) | {
        "num_attention_heads": text["heads"],
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["context_length"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": _end_token(text, tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_config = _common(vision) | {
        "num_attention_heads": vision["width"] // vision["head_width"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
    }
    return CLIPConfig(
        text_config=shared | text_config, vision_config=shared | vision_config, projection_dim=model_cfg["embed_dim"]
    )


def open_clip_config(config: CLIPConfig, image_processor: CLIPImageProcessorPil, tokenizer_name: str) -> dict:
    """What `open_clip_config.json` says of a `CLIPModel`. Raises ValueError at a setting that open_clip has not."""
    text, vision = config.text_config, config.vision_config
    if text.hidden_act != vision.hidden_act or text.hidden_act not in ACTIVATIONS.values():
        raise ValueError(
            f"open_clip has one activation for both towers, {' or '.join(ACTIVATIONS.values())}; found "
            f"{text.hidden_act} for text and {vision.hidden_act} for images"
        )
    text_cfg = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "heads": text.num_attention_heads,
        "hf_tokenizer_name": tokenizer_name,
    }
    if text.eos_token_id not in (2, text.vocab_size - 1):  # else the end token is the largest id, open_clip's default
        text_cfg |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    vision_cfg = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
    }
    model_cfg = {
        "embed_dim": config.projection_dim,
        "quick_gelu": text.hidden_act == "quick_gelu",
        "vision_cfg": vision_cfg | _common_cfg(vision),
        "text_cfg": text_cfg | _common_cfg(text),
    }
    return {"model_cfg": model_cfg, "preprocess_cfg": _preprocess_cfg(image_processor, vision.image_size)}


def _tower(model_cfg: dict, key: str, defaults: dict) -> dict:
    """The settings of one tower with open_clip's defaults."""
    given = model_cfg[key]
    for name, value in given.items():
        if name not in (*defaults, *READ_APART, *WITHOUT_EFFECT) and value != FIXED[key].get(name):
            _refuse(value, name, f"{key}.")
    _refuse(key == "vision_cfg" and given.get("pool_type") not in (None, "tok"), "pool_type", f"{key}.")
    tower = defaults | given
    for name in defaults:
        _refuse(isinstance(tower[name], list), name, f"{key}.", "a list")
    return tower


def _refuse(value: object, name: str, where: str, what: str | None = None) -> None:
    if value:
        found = what or json.dumps(value)
        raise ValueError(f"open_clip model with {where}{name} {found}: CLIPModel has no counterpart; cannot convert it")


def _common(tower: dict) -> dict:
    return {
        "hidden_size": tower["width"],
        "intermediate_size": int(tower["width"] * tower["mlp_ratio"]),
        "num_hidden_layers": tower["layers"],
        "layer_norm_eps": (tower.get("norm_kwargs") or {}).get("eps", 1e-5),
    }


def _common_cfg(tower: CLIPConfig) -> dict:
    norm = {} if tower.layer_norm_eps == 1e-5 else {"norm_kwargs": {"eps": tower.layer_norm_eps}}
    return norm | {
        "width": tower.hidden_size,
        "layers": tower.num_hidden_layers,
        "mlp_ratio": tower.intermediate_size / tower.hidden_size,
    }


def _end_token(text: dict, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token at which the embedding is read."""
    pool_type = text.get("pool_type", "argmax")
    if pool_type == "eos":
        return text.get("eos_id", 2)
    if pool_type != "argmax" or tokenizer.eos_token_id != len(tokenizer) - 1:
        raise ValueError(
            f"open_clip model with text_cfg.pool_type {pool_type}: expected eos, or argmax with the end token as the "
            f"largest id; the tokenizer's end token is {tokenizer.eos_token_id} of {len(tokenizer)}"
        )
    return tokenizer.eos_token_id


# --- images


def image_processor(preprocess_cfg: dict, image_size: int) -> CLIPImageProcessorPil:
    """The image processor of an open_clip `preprocess_cfg`."""
    mode, interpolation = preprocess_cfg.get("resize_mode", "shortest"), preprocess_cfg.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or interpolation not in RESAMPLE:
        raise ValueError(
            f"open_clip preprocessing with resize_mode {mode} and interpolation {interpolation}: expected shortest or "
            f"squash, and {' or '.join(RESAMPLE)}"
        )
    square = {"height": image_size, "width": image_size}
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size} if mode == "shortest" else square,
        crop_size=square,
        do_center_crop=mode == "shortest",
        resample=RESAMPLE[interpolation],
        image_mean=list(preprocess_cfg.get("mean", MEAN)),
        image_std=list(preprocess_cfg.get("std", STD)),
    )


def _preprocess_cfg(processor: CLIPImageProcessorPil, image_size: int) -> dict:
    settings = processor.to_dict()
    size, square = dict(settings["size"]), {"height": image_size, "width": image_size}
    given = {key: value for key, value in size.items() if value is not None}
    modes = {"shortest": {"shortest_edge": image_size}, "squash": square}
    mode = next((mode for mode, of_mode in modes.items() if given == of_mode), None)
    interpolation = next((name for name, number in RESAMPLE.items() if number == settings["resample"]), None)
    if mode is None or interpolation is None:
        raise ValueError(
            f"open_clip resizes to the model's {image_size} pixels, {' or '.join(RESAMPLE)}; the image processor has "
            f"size {given} and resample {settings['resample']}"
        )
    mean, std = list(settings["image_mean"]), list(settings["image_std"])
    return {"mean": mean, "std": std, "interpolation": interpolation, "resize_mode": mode}
