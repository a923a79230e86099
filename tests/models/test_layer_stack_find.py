"""Finding the stack of layers in a model, and refusing what is none."""

import pytest
import torch
from layer_stack_cases import NUM_LAYERS, TOKENS, VOCAB, WIDTH, build, clip_config, every_case, outputs
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    CLIPModel,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
    XLNetConfig,
    XLNetModel,
)

from models.layer_stack import LayerStack


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@every_case
def test_finds_the_stack_and_the_tower_that_takes_the_inputs(case):
    model, stack = build(case)
    assert (stack.path, stack.num_layers) == (case.path, NUM_LAYERS)
    blocks = model.get_submodule(case.path)
    assert list(stack.layers) == list(blocks)[case.fixed :]
    assert any(module is blocks for module in stack.tower.modules())
    assert outputs(case, stack).shape[0] == 3


@pytest.mark.parametrize("tower", ["text", "text_model", "text_model.encoder", "text_model.encoder.layers"])
def test_the_text_tower_of_clip_is_the_default(tower):
    model = CLIPModel(clip_config())
    layers = list(model.text_model.encoder.layers)
    assert list(LayerStack(model, tower).layers) == list(LayerStack(model).layers) == layers


@pytest.mark.parametrize(("tower", "other"), [("text", "vision"), ("text_model", "vision_model")])
def test_a_tower_on_its_own_still_has_its_name(tower, other):
    alone = CLIPTextModel(clip_config().text_config)
    assert list(LayerStack(alone, tower).layers) == list(alone.encoder.layers)
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


def test_states_with_positions_first_are_refused():
    model = XLNetModel(XLNetConfig(d_model=16, n_layer=NUM_LAYERS, n_head=2, d_inner=24, vocab_size=VOCAB))
    with pytest.raises(ValueError, match=r"layer: the states of xlnet are \(T, n, d\), not \(n, T, d\)"):
        LayerStack(model)
