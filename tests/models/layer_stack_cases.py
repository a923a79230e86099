"""Tiny models of several kinds, built from configuration, on which the tests of `LayerStack` check every property."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedConfig,
    PreTrainedModel,
    RoFormerConfig,
    RoFormerModel,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
)

from models.layer_stack import LayerStack

NUM_LAYERS = 4
PAD, START, END, VOCAB = 1, 2, 3, 24
TOKENS = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 2}
LAYER_TYPES = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]

CAPTIONS = {
    "input_ids": torch.tensor([[2, 9, 14, 7, 11, 3], [2, 8, 3, 1, 1, 1], [2, 5, 6, 21, 3, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]),
}
IMAGES = {"pixel_values": torch.linspace(-1, 1, 3 * 3 * 64).sin().reshape(3, 3, 8, 8)}
SOUNDS = {"input_values": torch.linspace(0, 90, 600).sin().reshape(3, 200), "attention_mask": torch.ones(3, 200).long()}
SOUNDS["attention_mask"][1, 120:] = 0


def clip_config(**text) -> CLIPConfig:
    vision = {**WIDTH, "image_size": 8, "patch_size": 4, "projection_dim": 10}
    text = {**WIDTH, **TOKENS, "max_position_embeddings": 10, "projection_dim": 10, **text}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)


def wav2vec2_config(**options) -> Wav2Vec2Config:
    # as many convolutions as layers, and all alike but for the first, so that they could be mistaken for each other
    convolutions = {
        "conv_dim": (8,) * 4,
        "conv_kernel": (3,) * 4,
        "conv_stride": (2,) * 4,
        "feat_extract_norm": "layer",
    }
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return Wav2Vec2Config(**WIDTH, **convolutions, **positions, vocab_size=VOCAB, **options)


def llama_config() -> LlamaConfig:
    return LlamaConfig(**WIDTH, **TOKENS, num_key_value_heads=1)


def gemma3_config() -> Gemma3TextConfig:
    return Gemma3TextConfig(
        **WIDTH, **TOKENS, head_dim=8, num_key_value_heads=1, sliding_window=2, layer_types=LAYER_TYPES
    )


def gpt2_config() -> GPT2Config:
    return GPT2Config(n_embd=16, n_layer=NUM_LAYERS, n_head=2, n_positions=10, **TOKENS)


def modernbert_config() -> ModernBertConfig:
    depth = {"num_hidden_layers": NUM_LAYERS + 1, "layer_types": ["full_attention", *LAYER_TYPES]}
    return ModernBertConfig(**WIDTH | depth, **TOKENS, local_attention=2)


def umt5_config() -> UMT5Config:
    return UMT5Config(d_model=16, d_kv=8, d_ff=24, num_layers=NUM_LAYERS, num_decoder_layers=2, num_heads=2, **TOKENS)


def dinov3_config() -> DINOv3ViTConfig:
    return DINOv3ViTConfig(**WIDTH, image_size=8, patch_size=4, layerscale_value=0.5)


class Case(NamedTuple):
    build: Callable[[], PreTrainedModel]
    tower: str | None
    inputs: dict
    path: str
    final_norm: str | None = None  # module of the tower between h_L and last_hidden_state
    norm_in_hidden_states: bool = False  # Hugging Face shows the last hidden state after the final norm
    fixed: int = 0  # blocks before layer 1


CASES = {
    "clip": Case(lambda: CLIPModel(clip_config()), None, CAPTIONS, "text_model.encoder.layers", "final_layer_norm"),
    "clip vision": Case(lambda: CLIPModel(clip_config()), "vision", IMAGES, "vision_model.encoder.layers"),
    "clip text tower": Case(
        lambda: CLIPTextModel(clip_config().text_config), "text", CAPTIONS, "encoder.layers", "final_layer_norm"
    ),
    "clip text and projection": Case(
        lambda: CLIPTextModelWithProjection(clip_config().text_config),
        "text_model",
        CAPTIONS,
        "text_model.encoder.layers",
        "final_layer_norm",
    ),
    "clip vision tower": Case(lambda: CLIPVisionModel(clip_config().vision_config), None, IMAGES, "encoder.layers"),
    "bert": Case(lambda: BertModel(BertConfig(**WIDTH, **TOKENS)), None, CAPTIONS, "encoder.layer"),
    "bert and head": Case(
        lambda: BertForMaskedLM(BertConfig(**WIDTH, **TOKENS)), "bert.encoder", CAPTIONS, "bert.encoder.layer"
    ),
    "wav2vec2": Case(lambda: Wav2Vec2Model(wav2vec2_config()), None, SOUNDS, "encoder.layers"),
    "wav2vec2 stable and head": Case(
        lambda: Wav2Vec2ForCTC(wav2vec2_config(do_stable_layer_norm=True)),
        None,
        SOUNDS,
        "wav2vec2.encoder.layers",
        "encoder.layer_norm",
    ),
    "llama": Case(lambda: LlamaModel(llama_config()), None, CAPTIONS, "layers", "norm", True),
    "llama and head": Case(lambda: LlamaForCausalLM(llama_config()), None, CAPTIONS, "model.layers", "norm", True),
    "gemma3": Case(lambda: Gemma3ForCausalLM(gemma3_config()), None, CAPTIONS, "model.layers", "norm", True),
    "gpt2": Case(lambda: GPT2LMHeadModel(gpt2_config()), None, CAPTIONS, "transformer.h", "ln_f", True),
    # its encoder is a model of its own, but does not take images
    "dinov3": Case(lambda: DINOv3ViTModel(dinov3_config()), None, IMAGES, "model.layer", "norm"),
    # its blocks return tuples
    "roformer": Case(lambda: RoFormerModel(RoFormerConfig(**WIDTH, **TOKENS)), None, CAPTIONS, "encoder.layer"),
    # its first block is unlike the others
    "modernbert": Case(
        lambda: ModernBertModel(modernbert_config()), None, CAPTIONS, "layers", "final_norm", True, fixed=1
    ),
    # its tower keeps a config object of its own
    "umt5": Case(lambda: UMT5EncoderModel(umt5_config()), None, CAPTIONS, "encoder.block", "final_layer_norm", True),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def build(case: Case) -> tuple[PreTrainedModel, LayerStack]:
    """A model with weights large enough for every layer to matter, in eval mode, and its stack."""
    torch.manual_seed(0)
    model = case.build().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.copy_(0.4 * torch.randn_like(parameter))
        elif "norm" not in name:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, LayerStack(model, case.tower)


def last_hidden_state(case: Case, stack: LayerStack, hidden: torch.Tensor) -> torch.Tensor:
    return stack.tower.get_submodule(case.final_norm)(hidden) if case.final_norm else hidden


def outputs(case: Case, stack: LayerStack) -> torch.Tensor:
    """What the tower's own forward gives."""
    return stack.tower(**case.inputs).last_hidden_state


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_tensors(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def all_configs(model: PreTrainedModel, kind: type) -> list[PreTrainedConfig]:
    """Every config of this kind that a module of the model holds, or that is part of one."""
    held = [
        module.config for module in model.modules() if isinstance(getattr(module, "config", None), PreTrainedConfig)
    ]
    nested = [value for config in held for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config for config in held + nested if isinstance(config, kind)]
