"""Dropping layers, against skipping them and against the model saved and loaded."""

import copy
import json

import pytest
import torch
from layer_stack_cases import (
    CAPTIONS,
    CASES,
    END,
    IMAGES,
    NUM_LAYERS,
    TOKENS,
    VOCAB,
    WIDTH,
    all_configs,
    assert_same_tensors,
    build,
    clip_config,
    every_case,
    gemma3_config,
    gpt2_config,
    last_hidden_state,
    llama_config,
    outputs,
    tensors,
    wav2vec2_config,
)
from transformers import (
    BeitConfig,
    BeitModel,
    BertConfig,
    BertModel,
    CLIPModel,
    CLIPTextModelWithProjection,
    DiffLlamaConfig,
    DiffLlamaModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Gemma3ForCausalLM,
    GPT2LMHeadModel,
    ImageGPTConfig,
    ImageGPTModel,
    LlamaForCausalLM,
    Wav2Vec2Model,
)

from models.layer_stack import LayerStack


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


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
        assert len(states) == case.fixed + len(kept) + 1


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
    assert {config.num_hidden_layers for config in all_configs(model, kind)} == {case.fixed + NUM_LAYERS}
    pruned = stack.drop([2])
    pruned.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for smaller in (pruned, loaded):
        assert {config.num_hidden_layers for config in all_configs(smaller, kind)} == {case.fixed + NUM_LAYERS - 1}


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
    """With `eos_token_id = 2` CLIP pools at the highest id, as the first checkpoints need it; there 2 is usual."""
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


def inverse_gpt2() -> GPT2LMHeadModel:
    config = gpt2_config()
    config.scale_attn_by_inverse_layer_idx = True
    return GPT2LMHeadModel(config).eval()


def inverse_image_gpt() -> ImageGPTModel:
    sizes = {"n_embd": 16, "n_layer": NUM_LAYERS, "n_head": 2, "n_positions": 10, "vocab_size": VOCAB}
    return ImageGPTModel(ImageGPTConfig(**sizes, scale_attn_by_inverse_layer_idx=True)).eval()


@pytest.mark.parametrize("build_model", [inverse_gpt2, inverse_image_gpt])
@pytest.mark.parametrize("dropped", [[1], [2], [2, 3], [4]])
def test_a_scale_by_the_place_survives_drop_save_and_reload(build_model, dropped: list[int], tmp_path):
    model = build_model()
    stack = LayerStack(model)
    for block in stack.layers:  # sharp enough for the scale to matter
        with torch.no_grad():
            block.attn.c_attn.weight *= 30
            block.attn.c_attn.bias.normal_()
    inputs = {"input_ids": CAPTIONS["input_ids"]}
    kept = [layer for layer in range(1, NUM_LAYERS + 1) if layer not in dropped]
    expected = stack.run(*stack.start(**inputs), kept)
    pruned = stack.drop(dropped)
    pruned.save_pretrained(tmp_path)
    for found in pruned, type(model).from_pretrained(tmp_path):
        torch.testing.assert_close(LayerStack(found).hidden_states(**inputs)[-1], expected)
    assert torch.equal(LayerStack(model).run(*stack.start(**inputs), kept), expected)  # the model itself is as it was


def test_a_number_that_a_block_made_from_its_place_is_an_error():
    model = DiffLlamaModel(DiffLlamaConfig(**WIDTH, **TOKENS, num_key_value_heads=2))
    with pytest.raises(ValueError, match="layers.1.self_attn.lambda_init depends on the layer's place"):
        LayerStack(model).drop([2])
    assert len(LayerStack(model).drop([4]).layers) == 3


def test_the_rate_of_a_drop_path_may_depend_on_the_place():
    model = BeitModel(BeitConfig(**WIDTH, image_size=8, patch_size=4, drop_path_rate=0.1)).eval()
    stack = LayerStack(model)
    skipped = stack.run(*stack.start(**IMAGES), [1, 3, 4])
    pruned = LayerStack(stack.drop([2]))
    assert torch.equal(pruned.hidden_states(**IMAGES)[-1], skipped)


class AssertingConfig(BertConfig):
    """A config that asserts, as some models do."""

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        assert self.num_hidden_layers == NUM_LAYERS, "four layers"


def test_whatever_a_model_raises_at_the_new_config_is_one_error():
    stack = LayerStack(BertModel(AssertingConfig(**WIDTH, **TOKENS)))
    with pytest.raises(
        ValueError, match="the config of BertModel cannot describe what is left of the model: four layers"
    ):
        stack.drop([2])
