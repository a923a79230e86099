"""Every property is checked on tiny models of several kinds, built from configuration, against the models' own forward."""

import copy
import json
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
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
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedConfig,
    PreTrainedModel,
    RoFormerConfig,
    RoFormerModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
)
from transformers.modeling_outputs import BaseModelOutput

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
    # its tower keeps a config object of its own
    "umt5": Case(lambda: UMT5EncoderModel(umt5_config()), None, CAPTIONS, "encoder.block", "final_layer_norm", True),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


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


# ---- finding the stack


@every_case
def test_finds_the_stack_and_the_tower_that_takes_the_inputs(case):
    model, stack = build(case)
    assert (stack.path, stack.num_layers) == (case.path, NUM_LAYERS)
    assert stack.layers is model.get_submodule(case.path)
    assert any(module is stack.layers for module in stack.tower.modules())
    assert outputs(case, stack).shape[0] == 3


@pytest.mark.parametrize("tower", ["text", "text_model", "text_model.encoder", "text_model.encoder.layers"])
def test_the_text_tower_of_clip_is_the_default(tower):
    model = CLIPModel(clip_config())
    assert LayerStack(model, tower).layers is LayerStack(model).layers is model.text_model.encoder.layers


@pytest.mark.parametrize(("tower", "other"), [("text", "vision"), ("text_model", "vision_model")])
def test_a_tower_on_its_own_still_has_its_name(tower, other):
    alone = CLIPTextModel(clip_config().text_config)
    assert LayerStack(alone, tower).layers is alone.encoder.layers
    with pytest.raises(ValueError, match=f"fits tower='{other}', found encoder.layers"):
        LayerStack(alone, other)


def test_one_layer_is_a_stack():
    assert LayerStack(BertModel(BertConfig(**WIDTH | {"num_hidden_layers": 1}, **TOKENS))).num_layers == 1


@pytest.mark.parametrize("tower", ["audio", "text_mod", "layer", ""])
def test_a_tower_that_is_not_there_is_an_error_that_lists_the_towers(tower):
    message = f"fits tower='{tower}', found text_model.encoder.layers, vision_model.encoder.layers"
    with pytest.raises(ValueError, match=message):
        LayerStack(CLIPModel(clip_config()), tower)


def bart() -> BartModel:
    sizes = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartModel(BartConfig(d_model=16, encoder_layers=4, decoder_layers=3, **sizes, **TOKENS))


def test_several_stacks_without_a_text_tower_are_an_error_that_lists_them():
    with pytest.raises(ValueError, match=r"expected one stack of layers, found encoder.layers, decoder.layers: name"):
        LayerStack(bart())


@pytest.mark.parametrize(("tower", "depths"), [("encoder", (2, 3)), ("decoder", (4, 1))])
def test_encoder_and_decoder_of_one_config_have_their_own_number_of_layers(tower, depths):
    pruned = LayerStack(bart(), tower).drop([1, 3])
    assert (pruned.config.encoder_layers, pruned.config.decoder_layers) == depths
    assert (len(pruned.encoder.layers), len(pruned.decoder.layers)) == depths


def test_blocks_with_different_parameters_are_refused():
    model = T5EncoderModel(T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=4, num_heads=2, **TOKENS))
    with pytest.raises(
        ValueError, match=r"T5EncoderModel, found: encoder.block: .*relative_attention_bias.* None in block 2$"
    ):
        LayerStack(model)


def test_blocks_of_different_classes_are_refused():
    class OtherLayer(type(BertModel(BertConfig(**WIDTH, **TOKENS)).encoder.layer[0])):
        pass

    model = BertModel(BertConfig(**WIDTH, **TOKENS))
    model.encoder.layer[2].__class__ = OtherLayer
    with pytest.raises(ValueError, match="encoder.layer: block 1 is a BertLayer, block 3 a OtherLayer"):
        LayerStack(model)


def test_blocks_of_different_shapes_are_refused():
    model = BertModel(BertConfig(**WIDTH, **TOKENS))
    model.encoder.layer[3].output.dense = nn.Linear(30, 16)
    with pytest.raises(ValueError, match=r"output.dense.weight is \(16, 24\) in block 1, \(16, 30\) in block 4"):
        LayerStack(model)


def test_lists_inside_the_blocks_are_no_stacks_of_their_own():
    model = BertModel(BertConfig(**WIDTH, **TOKENS))
    for layer in model.encoder.layer:
        layer.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 16)) for _ in range(NUM_LAYERS))
    stack = LayerStack(model)
    assert stack.path == "encoder.layer"
    assert len(stack.drop([]).encoder.layer) == NUM_LAYERS
    with pytest.raises(
        ValueError, match="expected encoder.layer.0.experts of length 4 from the config of BertModel, found None"
    ):
        stack.drop([2])


def test_a_list_of_another_length_than_the_config_says_is_refused():
    model = BertModel(BertConfig(**WIDTH, **TOKENS))
    model.config.num_hidden_layers = 3
    with pytest.raises(ValueError, match=r"found: encoder.layer: 4 blocks, config.num_hidden_layers is 3"):
        LayerStack(model)


@pytest.mark.parametrize("blocks", [[], [nn.Dropout()] * NUM_LAYERS, [nn.LayerNorm(2) for _ in range(NUM_LAYERS)]])
def test_a_list_of_plain_modules_is_refused(blocks):
    model = BertModel(BertConfig(**WIDTH, **TOKENS))
    model.encoder.layer = nn.ModuleList(blocks)
    with pytest.raises(ValueError, match="encoder.layer: no blocks made of modules with parameters"):
        LayerStack(model)


def test_a_model_without_a_list_of_modules_is_refused():
    model = BertModel(BertConfig(**WIDTH, **TOKENS))
    model.encoder = nn.Identity()
    with pytest.raises(ValueError, match="in BertModel, found: no nn.ModuleList"):
        LayerStack(model)


def test_another_thing_than_a_hugging_face_model_is_refused():
    with pytest.raises(TypeError, match=r"expected a Hugging Face model \(PreTrainedModel\), found Linear"):
        LayerStack(nn.Linear(2, 2))


# ---- hidden states and running some of the layers


@every_case
def test_hidden_states_are_those_that_the_model_gives_itself(case):
    _, stack = build(case)
    states = stack.hidden_states(**case.inputs)  # before the model's own hooks for hidden states are there
    expected = list(stack.tower(**case.inputs, output_hidden_states=True).hidden_states)
    if case.norm_in_hidden_states:
        assert not torch.equal(states[-1], expected.pop())
        assert torch.equal(last_hidden_state(case, stack, states[-1]), outputs(case, stack))
        expected.append(states[-1])
    assert len(states) == len(expected) == NUM_LAYERS + 1
    assert [i for i in range(NUM_LAYERS + 1) if not torch.equal(states[i], expected[i])] == []
    assert not any(torch.equal(states[i], states[i - 1]) for i in range(1, NUM_LAYERS + 1))


@every_case
def test_start_sends_the_input_of_the_first_layer_through_the_rest_of_the_tower(case):
    _, stack = build(case)
    seen = []
    handle = stack.tower.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    h0, _ = stack.start(**case.inputs)
    handle.remove()
    assert torch.equal(seen[0], last_hidden_state(case, stack, h0))


@every_case
def test_a_second_start_gives_the_same(case):
    _, stack = build(case)
    first, second = stack.hidden_states(**case.inputs), stack.hidden_states(**case.inputs)
    assert all(map(torch.equal, first, second))


@every_case
def test_a_shared_prefix_can_be_run_once(case):
    _, stack = build(case)
    h0, context = stack.start(**case.inputs)
    prefix = stack.run(h0, context, [1, 3])
    assert torch.equal(stack.run(prefix, context, [4]), stack.run(h0, context, [1, 3, 4]))
    assert stack.run(prefix, context, []) is prefix


@pytest.mark.parametrize("order", [[4, 3, 2, 1], [1, 2, 3, 3], [2, 2, 4, 1]])
def test_layers_run_in_the_order_given_and_may_be_repeated(order):
    case = CASES["clip"]
    model, stack = build(case)
    h0, context = stack.start(**case.inputs)
    reordered = copy.deepcopy(model.text_model)
    reordered.encoder.layers = nn.ModuleList([reordered.encoder.layers[layer - 1] for layer in order])
    found = last_hidden_state(case, stack, stack.run(h0, context, order))
    assert torch.equal(found, reordered(**case.inputs).last_hidden_state)


@pytest.mark.parametrize("layers", [[0], [1, 5], [-1]])
def test_running_a_layer_out_of_range_is_an_error(layers):
    case = CASES["bert"]
    _, stack = build(case)
    with pytest.raises(ValueError, match=rf"expected layers from 1..4, found {layers[-1]}"):
        stack.run(*stack.start(**case.inputs), layers)


@pytest.mark.parametrize("name", ["clip", "bert", "gemma3"])
def test_padding_does_not_reach_the_real_tokens(name):
    case = CASES[name]
    _, stack = build(case)
    ids, mask = case.inputs["input_ids"], case.inputs["attention_mask"]
    other_ids = torch.where(mask == 1, ids, 17)
    states = stack.hidden_states(input_ids=ids, attention_mask=mask)
    other_states = stack.hidden_states(input_ids=other_ids, attention_mask=mask)
    assert all(torch.equal(a[mask == 1], b[mask == 1]) for a, b in zip(states, other_states, strict=True))
    assert not torch.equal(states[-1][mask == 0], other_states[-1][mask == 0])


def test_without_the_mask_padding_does_reach_the_real_tokens_of_bert():
    case = CASES["bert"]
    _, stack = build(case)
    mask = case.inputs["attention_mask"] == 1
    masked, unmasked = stack.hidden_states(**case.inputs), stack.hidden_states(input_ids=case.inputs["input_ids"])
    assert torch.equal(masked[0], unmasked[0])
    assert not torch.allclose(masked[-1][mask], unmasked[-1][mask])


def test_layers_get_the_masks_of_their_own_type():
    case = CASES["gemma3"]
    _, stack = build(case)
    h0, context = stack.start(**case.inputs)
    masks = [kwargs["attention_mask"] for _, kwargs in context]
    assert torch.equal(masks[0], masks[3])
    assert torch.equal(masks[1], masks[2])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(stack.run(h0, [context[1]] * NUM_LAYERS, [1]), stack.run(h0, context, [1]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_no_cache_is_kept_even_if_asked_for(name):
    case = CASES[name]
    _, stack = build(case)
    _, context = stack.start(**case.inputs, use_cache=True)
    arguments = [value for args, kwargs in context for value in (*args, *kwargs.values())]
    assert not [type(value).__name__ for value in arguments if "Cache" in type(value).__name__]


def test_layerdrop_does_not_skip_layers_and_dropout_stays_on():
    model = Wav2Vec2Model(wav2vec2_config(layerdrop=1.0, hidden_dropout=0.5, apply_spec_augment=False)).train()
    stack = LayerStack(model)
    h0, context = stack.start(**SOUNDS)
    again, _ = stack.start(**SOUNDS)
    assert len(context) == NUM_LAYERS
    assert not torch.equal(h0, again)
    assert all(module.training for module in model.modules())


def test_gradients_reach_the_layers_that_ran():
    case = CASES["clip"]
    model, stack = build(case)
    model.train()
    model.activation_checkpointing_enable()
    with torch.enable_grad():
        stack.run(*stack.start(**case.inputs), [1, 2, 4]).sum().backward()
    assert model.text_model.embeddings.token_embedding.weight.grad.abs().sum() > 0
    assert [all(p.grad is not None for p in layer.parameters()) for layer in stack.layers] == [True, True, False, True]


def test_an_error_in_the_forward_leaves_the_blocks_as_they_were():
    case = CASES["bert"]
    model, stack = build(case)
    expected = outputs(case, stack)
    model.encoder.train()

    def fail(*_):
        raise ArithmeticError("after the blocks")

    handle = model.encoder.register_forward_hook(fail)
    with pytest.raises(ArithmeticError, match="after the blocks"):
        stack.start(**case.inputs)
    handle.remove()
    assert model.encoder.training
    assert not any("forward" in vars(layer) for layer in stack.layers)
    assert torch.equal(outputs(case, LayerStack(model.eval())), expected)


def test_a_forward_that_was_put_into_a_block_is_used_and_stays():
    case = CASES["bert"]
    _, stack = build(case)
    layer = stack.layers[1]
    own_forward = lambda hidden, *args, **kwargs: type(layer).forward(layer, hidden, *args, **kwargs) + 1  # noqa: E731
    layer.forward = own_forward
    states = stack.hidden_states(**case.inputs)
    assert vars(layer)["forward"] is own_forward
    assert torch.equal(states[-1], outputs(case, stack))


def test_a_model_that_names_the_input_of_its_blocks_is_understood():
    case = CASES["clip vision tower"]
    model, stack = build(case)
    expected = stack.hidden_states(**case.inputs)

    def forward(inputs_embeds, **_):
        for layer in model.encoder.layers:
            inputs_embeds = layer(attention_mask=None, hidden_states=inputs_embeds)
        return BaseModelOutput(last_hidden_state=inputs_embeds)

    model.encoder.forward = forward
    assert all(map(torch.equal, stack.hidden_states(**case.inputs), expected))


def test_blocks_that_return_more_than_the_hidden_state_are_understood():
    case = CASES["roformer"]
    _, stack = build(case)
    h0, context = stack.start(**case.inputs, output_attentions=True)
    assert torch.equal(stack.run(h0, context, [1, 2, 3, 4]), outputs(case, stack))


def test_a_model_that_does_not_call_every_layer_is_an_error():
    case = CASES["llama"]
    model, stack = build(case)
    model.config.num_hidden_layers = 2  # Llama runs as many layers as its config says
    with pytest.raises(ValueError, match=r"expected layers to call layers 1..4 once, in order, found \[1, 2\]"):
        stack.start(**case.inputs)


# ---- dropping layers


@every_case
def test_dropping_nothing_is_the_identity(case):
    model, stack = build(case)
    same = stack.drop([])
    assert type(same) is type(model)
    assert_same_tensors(tensors(same), tensors(model))
    assert same.config.to_dict() == model.config.to_dict()
    assert torch.equal(outputs(case, LayerStack(same, case.tower)), outputs(case, stack))
    storages = [{p.data_ptr() for p in m.parameters() if p.numel() > 0} for m in (model, same)]
    assert storages[0].isdisjoint(storages[1])


@pytest.mark.parametrize("dropped", [[1], [4, 2], [1, 2, 3]], ids=str)
@every_case
def test_skipping_layers_equals_the_pruned_model_saved_and_loaded(case, dropped, tmp_path):
    model, stack = build(case)
    kept = [layer for layer in range(1, NUM_LAYERS + 1) if layer not in dropped]
    h0, context = stack.start(**case.inputs)
    expected = last_hidden_state(case, stack, stack.run(h0, context, kept))
    assert not torch.allclose(expected, outputs(case, stack))

    pruned = stack.drop(dropped)
    pruned.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert_same_tensors(tensors(loaded), tensors(pruned))
    for smaller in (pruned, loaded):
        smaller_stack = LayerStack(smaller, case.tower)
        assert smaller_stack.num_layers == len(kept)
        assert torch.equal(outputs(case, smaller_stack), expected)
        states = smaller_stack.tower(**case.inputs, output_hidden_states=True).hidden_states
        assert len(states) == len(kept) + 1


@every_case
def test_the_original_is_left_unchanged(case):
    model, stack = build(case)
    expected, before, config = outputs(case, stack), tensors(model), model.config.to_dict()
    modules = [(name, id(module)) for name, module in model.named_modules()]
    pruned = stack.drop([2, 3])
    for parameter in pruned.parameters():
        parameter.zero_()
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert_same_tensors(tensors(model), before)
    assert model.config.to_dict() == config
    assert torch.equal(outputs(case, stack), expected)


@every_case
def test_every_config_of_the_tower_says_the_new_number(case, tmp_path):
    model, stack = build(case)
    kind = type(stack.tower.config)
    assert {config.num_hidden_layers for config in all_configs(model, kind)} == {NUM_LAYERS}
    pruned = stack.drop([2])
    pruned.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for smaller in (pruned, loaded):
        assert {config.num_hidden_layers for config in all_configs(smaller, kind)} == {NUM_LAYERS - 1}


def test_a_sub_config_that_is_a_copy_is_updated_too():
    model, _ = build(CASES["clip"])
    model.config.text_config = copy.deepcopy(model.text_model.config)
    pruned = LayerStack(model).drop([2])
    assert pruned.text_model.config.num_hidden_layers == pruned.config.text_config.num_hidden_layers == 3


def test_a_tower_with_the_same_kind_of_config_is_left_alone():
    bert = BertConfig(**WIDTH, **TOKENS)
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(bert, copy.deepcopy(bert)))
    pruned = LayerStack(model, "encoder.encoder").drop([3])
    assert (pruned.config.encoder.num_hidden_layers, pruned.config.decoder.num_hidden_layers) == (3, 4)
    assert (len(pruned.encoder.encoder.layer), len(pruned.decoder.bert.encoder.layer)) == (3, 4)


def test_the_other_tower_of_clip_is_left_alone(tmp_path):
    model, stack = build(CASES["clip"])
    pruned = stack.drop([1, 4])
    pruned.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 2
    assert CLIPModel.from_pretrained(tmp_path).config.vision_config.num_hidden_layers == NUM_LAYERS
    expected = model.get_image_features(**IMAGES).pooler_output
    assert torch.equal(CLIPModel.from_pretrained(tmp_path).get_image_features(**IMAGES).pooler_output, expected)


def test_whole_clip_and_its_text_tower_alone_prune_to_the_same():
    model, stack = build(CASES["clip"])
    alone = CLIPTextModelWithProjection(model.config.text_config).eval()
    alone.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name.startswith("text_")})
    whole, part = stack.drop([2, 3]), LayerStack(alone).drop([2, 3])
    assert torch.equal(whole.get_text_features(**CAPTIONS).pooler_output, part(**CAPTIONS).text_embeds)


def test_lists_with_one_entry_a_layer_are_cut_and_others_are_not(tmp_path):
    gemma3 = LayerStack(Gemma3ForCausalLM(gemma3_config())).drop([1, 3])
    assert gemma3.config.layer_types == ["full_attention", "sliding_attention"]
    assert [layer.self_attn.is_sliding for layer in gemma3.model.layers] == [False, True]
    gemma3.save_pretrained(tmp_path)
    assert Gemma3ForCausalLM.from_pretrained(tmp_path).config.layer_types == ["full_attention", "sliding_attention"]
    assert LayerStack(Wav2Vec2Model(wav2vec2_config())).drop([1, 3]).config.conv_dim == (8,) * 4


def test_layers_are_numbered_anew():
    llama = LayerStack(LlamaForCausalLM(llama_config())).drop([1, 3])
    assert [layer.self_attn.layer_idx for layer in llama.model.layers] == [0, 1]
    generated = llama.generate(**CAPTIONS, max_new_tokens=4, do_sample=False, use_cache=True, eos_token_id=VOCAB + 1)
    plain = llama.generate(**CAPTIONS, max_new_tokens=4, do_sample=False, use_cache=False, eos_token_id=VOCAB + 1)
    assert torch.equal(generated, plain)
    assert generated.shape == (3, 10)


def test_clip_with_the_legacy_end_token_pools_as_before(tmp_path):
    """With `eos_token_id = 2` CLIP pools at the highest token id, as the first checkpoints need it; 2 is a usual token there."""
    case = CASES["clip"]._replace(build=lambda: CLIPModel(clip_config(eos_token_id=2)))
    model, stack = build(case)
    captions = {**CAPTIONS, "input_ids": torch.where(CAPTIONS["input_ids"] == END, VOCAB - 1, CAPTIONS["input_ids"])}
    end = captions["input_ids"].argmax(dim=1)
    stack.drop([2, 4]).save_pretrained(tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path)
    assert loaded.config.text_config.eos_token_id == loaded.text_model.eos_token_id == 2
    expected = last_hidden_state(case, stack, stack.run(*stack.start(**captions), [1, 3]))
    pooled = loaded.text_model(**captions).pooler_output
    assert torch.equal(pooled, expected[torch.arange(3), end])
    assert not torch.allclose(pooled, expected[:, 0])  # where the token 2 is
    assert torch.equal(loaded.get_text_features(**captions).pooler_output, model.text_projection(pooled))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mode_dtype_and_frozen_weights_stay(training, dtype):
    model, _ = build(CASES["clip"])
    model.train(training).to(dtype).vision_model.requires_grad_(False)
    model.text_model.encoder.layers[3].train(not training)
    pruned = LayerStack(model).drop([2])
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    assert [layer.training for layer in pruned.text_model.encoder.layers] == [training, training, not training]
    assert pruned.training == training
    assert {p.requires_grad for p in pruned.vision_model.parameters()} == {False}
    assert {p.requires_grad for p in pruned.text_model.parameters()} == {True}


def test_dropped_layers_are_not_copied():
    def fail(_):
        raise MemoryError("copied")

    _, stack = build(CASES["clip"])
    stack.layers[1].__deepcopy__ = fail
    assert len(stack.drop([2]).text_model.encoder.layers) == 3
    with pytest.raises(MemoryError, match="copied"):
        stack.drop([1])


def test_the_order_of_the_dropped_layers_does_not_matter_and_the_list_stays():
    _, stack = build(CASES["bert"])
    dropped = [4, 1]
    assert_same_tensors(tensors(stack.drop(dropped)), tensors(stack.drop((1, 4))))
    assert dropped == [4, 1]


def test_dropping_twice_equals_dropping_once():
    case = CASES["gemma3"]
    _, stack = build(case)
    twice, once = LayerStack(stack.drop([2])).drop([3]), stack.drop([2, 4])
    assert twice.config.to_dict() == once.config.to_dict()
    assert torch.equal(outputs(case, LayerStack(twice)), outputs(case, LayerStack(once)))


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ([0], "expected layers from 1..4, found 0"),
        ([2, 5], "expected layers from 1..4, found 5"),
        ([2, 3, 2], r"expected every layer to be dropped once, found \[2\] more than once"),
        ([1, 2, 3, 4], "expected at least one layer to stay, found all 4 to be dropped"),
    ],
)
def test_layers_that_cannot_be_dropped_are_an_error(dropped, message):
    _, stack = build(CASES["clip"])
    with pytest.raises(ValueError, match=message):
        stack.drop(dropped)


class FixedDepthConfig(BertConfig):
    """A config that always says the same number of layers, whatever it is given."""

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.num_hidden_layers = NUM_LAYERS


class PerLayerConfig(BertConfig):
    """A config with one entry a layer, under a name that nobody knows."""

    widths: list[int] = None

    def __post_init__(self, widths=None, **kwargs):
        super().__post_init__(**kwargs)
        self.widths = widths or [16] * NUM_LAYERS
        if len(self.widths) != self.num_hidden_layers:
            raise ValueError(f"{len(self.widths)} widths for {self.num_hidden_layers} layers")


@pytest.mark.parametrize(
    ("config_class", "message"),
    [
        (FixedDepthConfig, "expected encoder.layer of length 3 from the config of BertModel, found 4"),
        (PerLayerConfig, "the config of BertModel cannot describe what is left of the model: .*4 widths for 3 layers"),
    ],
)
def test_a_config_that_cannot_describe_the_pruned_model_is_an_error(config_class, message):
    stack = LayerStack(BertModel(config_class(**WIDTH, **TOKENS)))
    assert len(stack.drop([]).encoder.layer) == NUM_LAYERS
    with pytest.raises(ValueError, match=message):
        stack.drop([2])
