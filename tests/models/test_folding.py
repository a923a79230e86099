"""Where maps go is found by trying: in pre- and post-norm blocks, with and without bias, in embedding tables."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaModel,
    MPNetConfig,
    MPNetModel,
    SiglipTextConfig,
    SiglipTextModel,
)

from models.folding import apply_change, find_block_map, find_table_map
from models.layer_stack import LayerStack

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 40}
IDS = torch.randint(3, 40, (5, 7), generator=torch.Generator().manual_seed(1))
# model -> the last linear map of a block, and whether a norm follows the sum
MODELS = {
    "clip": (lambda: CLIPTextModel(CLIPTextConfig(**SIZES, max_position_embeddings=12)), "mlp.fc2", False),
    "siglip": (lambda: SiglipTextModel(SiglipTextConfig(**SIZES, max_position_embeddings=12)), "mlp.fc2", False),
    "llama": (lambda: LlamaModel(LlamaConfig(**SIZES)), "mlp.down_proj", False),
    "bert": (lambda: BertModel(BertConfig(**SIZES)), "output.dense", True),
    "mpnet": (lambda: MPNetModel(MPNetConfig(**SIZES)), "output.dense", True),
}


def make_stack(name: str) -> LayerStack:
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    with torch.no_grad():  # norms that are not yet trained are nearly the identity; these are not
        for key, parameter in model.named_parameters():
            if "norm" in key.lower():
                parameter.add_(torch.rand_like(parameter))
    return LayerStack(model)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_last_linear_map_is_found(name: str) -> None:
    _, path, has_norm = MODELS[name]
    stack = make_stack(name)
    found = find_block_map(stack, *stack.start(input_ids=IDS), 2)
    assert found.linear is stack.layers[1].get_submodule(path)
    assert (found.norm is not None, found.has_bias) == (has_norm, name != "llama")


@pytest.mark.parametrize("name", ["clip", "bert"])
@torch.no_grad()
def test_it_is_found_in_bfloat16(name: str) -> None:
    stack = make_stack(name)
    stack.tower.to(torch.bfloat16)
    found = find_block_map(stack, *stack.start(input_ids=IDS), 2)
    assert found.linear is stack.layers[1].get_submodule(MODELS[name][1])


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_fold_equals_the_map_applied_by_hand(name: str) -> None:
    stack = make_stack(name)
    hidden, context = stack.start(input_ids=IDS)
    place = find_block_map(stack, hidden, context, 2)
    inputs, current = place.read(stack, hidden, context, 2)
    change = torch.randn(place.num_features + place.has_bias, 16, dtype=torch.float64)
    by_hand = place.state(current + apply_change(change, inputs))
    place.fold(change)
    torch.testing.assert_close(stack.run(hidden, context, [2]), by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_sum_wanted_for_the_present_state_is_the_present_sum(name: str) -> None:
    stack = make_stack(name)
    hidden, context = stack.start(input_ids=IDS)
    place = find_block_map(stack, hidden, context, 1)
    _, current = place.read(stack, hidden, context, 1)
    state = stack.run(hidden, context, [1])
    torch.testing.assert_close(place.state(current), state)
    torch.testing.assert_close(place.wanted(state, current), current, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_block_with_a_scale_after_its_last_map_is_refused_by_name() -> None:
    model = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)).eval()
    stack = LayerStack(model)
    model.encoder.layer[1].layer_scale2.lambda1.data.fill_(0.5)
    with pytest.raises(
        ValueError, match=r"block 2 of encoder\.layer \(Dinov2Layer\): expected its output to be the sum"
    ):
        find_block_map(stack, *stack.start(pixel_values=torch.randn(2, 3, 28, 28)), 2)


@torch.no_grad()
def test_a_map_of_the_embeddings_goes_into_the_tables() -> None:
    stack = make_stack("clip")
    hidden, _ = stack.start(input_ids=IDS)
    change = torch.randn(17, 16, dtype=torch.float64)
    find_table_map(stack, input_ids=IDS).fold(change)
    torch.testing.assert_close(
        stack.start(input_ids=IDS)[0], hidden + apply_change(change, hidden), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_normed_embeddings_have_no_tables_to_fold_into() -> None:
    assert find_table_map(make_stack("bert"), input_ids=IDS) is None
