"""Hidden states, and running some of the layers, against the models' own forward."""

import copy

import pytest
import torch
from layer_stack_cases import (
    CAPTIONS,
    CASES,
    NUM_LAYERS,
    PAD,
    SOUNDS,
    TOKENS,
    WIDTH,
    build,
    every_case,
    last_hidden_state,
    outputs,
    wav2vec2_config,
)
from torch import nn
from transformers import DebertaV2Config, DebertaV2Model, LongformerConfig, LongformerModel, Wav2Vec2Model
from transformers.modeling_outputs import BaseModelOutput

from models.layer_stack import LayerStack


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@every_case
def test_hidden_states_are_those_that_the_model_gives_itself(case):
    _, stack = build(case)
    states = stack.hidden_states(**case.inputs)  # before the model's own hooks for hidden states are there
    expected = list(stack.tower(**case.inputs, output_hidden_states=True).hidden_states)[case.fixed :]
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
    own_forward = lambda hidden, *args, **kwargs: type(layer).forward(layer, hidden, *args, **kwargs) + 1
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


def test_a_tower_that_changes_the_state_between_layers_is_refused():
    """DeBERTa-v2 can add a convolution of h_0 after layer 1: its layers are no chain."""
    model = DebertaV2Model(DebertaV2Config(**WIDTH, **TOKENS, conv_kernel_size=3, conv_act="gelu")).eval()
    with pytest.raises(
        ValueError, match="encoder.layer to be a chain of layers, found that .* changes the state before layer 2"
    ):
        LayerStack(model).hidden_states(**CAPTIONS)


def longformer() -> LongformerModel:
    torch.manual_seed(0)
    return LongformerModel(LongformerConfig(**WIDTH, **TOKENS, attention_window=[4, 8, 4, 8])).eval()


def test_states_with_other_positions_than_the_tokens_are_refused():
    with pytest.raises(ValueError, match=r"for inputs of \(3, 6\), found \(3, 8, 16\) before layer 1 of encoder.layer"):
        LayerStack(longformer()).hidden_states(**CAPTIONS)


def test_inputs_that_the_model_need_not_pad_are_understood(tmp_path):
    padded = {name: nn.functional.pad(t, (0, 2), value=PAD * (name == "input_ids")) for name, t in CAPTIONS.items()}
    stack = LayerStack(longformer())
    states = stack.hidden_states(**padded)
    expected = stack.tower(**padded, output_hidden_states=True).hidden_states
    assert all(map(torch.equal, states, expected))
    pruned = stack.drop([1, 4])
    assert pruned.config.attention_window == [8, 4]
    skipped = stack.run(*stack.start(**padded), [2, 3])
    assert torch.equal(pruned(**padded).last_hidden_state, skipped)
