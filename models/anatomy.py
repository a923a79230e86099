"""Where a Hugging Face model has a stack of layers, and what in its modules and configurations says how long that is.

`LayerStack` finds its layers with `find_stack`, and after a cut lets `describe_cut` put the rest of the model right.
"""

import inspect
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# Config entries with one value a layer, by name: other lists (convolutions of Wav2Vec2) may be as long as the stack.
PER_LAYER_LISTS = (
    *("layer_types", "mlp_layer_types", "layers_block_type", "attention_layers"),
    *("no_rope_layers", "layer_rope_theta", "sliding_windows", "attention_window"),
)
# Where the modules of a block keep the block's place in the stack, from 0 (caches need it).
LAYER_INDEX_NAMES = ("layer_idx", "layer_id")
# With this in its config a block divides its attention by its place, from 1 (GPT-2, ImageGPT).
SCALE_BY_PLACE = "scale_attn_by_inverse_layer_idx"
TIME_FIRST = ("xlnet",)  # model types whose states are (T, n, d)
FIRST_DIFFERS = ("modernbert",)  # model types whose first block has other parameters: no norm before its attention


class Found(NamedTuple):
    """A stack of blocks: its dotted path, the model around it that takes the inputs, and the blocks."""

    path: str
    tower: PreTrainedModel
    blocks: nn.ModuleList

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks that can be dropped."""
        return list(self.blocks)[count_fixed(self.tower.config) :]

    def answers_to(self, name: str) -> bool:
        """Whether `name`, or `<name>_model`, is a part of the path or the kind of the tower."""
        kind = self.tower.config.base_config_key.removesuffix("_config")  # "text" for a CLIPTextConfig
        in_path = any(f".{part}." in f".{self.path}." for part in (name, f"{name}_model"))
        return in_path or name.removesuffix("_model") == kind != ""


def find_stack(model: PreTrainedModel, tower: str | None) -> Found:
    """The stack that `tower` names, or the only one. ValueError where there is none, or several to choose from."""
    stacks: list[Found] = []
    refused: dict[str, str] = {}
    for path, blocks in model.named_modules():
        # lists inside a block, such as the experts of a mixture, are no stacks of their own
        if isinstance(blocks, nn.ModuleList) and not _is_inside(path, [stack.path for stack in stacks]):
            found = Found(path, _tower_around(model, path), blocks)
            reason = _explain_refusal(found)
            if reason is None:
                stacks.append(found)
            elif not _is_inside(path, refused):
                refused[path] = reason
    if not stacks:
        raise ValueError(
            "expected an nn.ModuleList of identical blocks, as many as the config's number of layers, in "
            f"{type(model).__name__}, found: {'; '.join(f'{p}: {r}' for p, r in refused.items()) or 'no nn.ModuleList'}"
        )
    fitting = [stack for stack in stacks if tower is None or stack.answers_to(tower)]
    if tower is None and len(fitting) > 1:
        fitting = [stack for stack in stacks if stack.answers_to("text")]
    if len(fitting) != 1:
        expected = "one stack of layers" if tower is None else f"one stack of layers that fits tower={tower!r}"
        paths = ", ".join(stack.path for stack in fitting or stacks)
        raise ValueError(f"expected {expected}, found {paths}: name a part of one path with tower=")
    return fitting[0]


def count_fixed(config: PreTrainedConfig) -> int:
    """How many blocks, from the first, are no layers that can be dropped, but a part of what makes h_0."""
    return int(config.model_type in FIRST_DIFFERS)


def _is_inside(path: str, outer_paths: Iterable[str]) -> bool:
    return any(path.startswith(f"{outer}.") for outer in outer_paths)


def _tower_around(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The innermost model around `path` whose forward takes the main input (token ids, pixels, samples)."""
    for outer in reversed(_models_around(model, path)):
        if outer.main_input_name in inspect.signature(outer.forward).parameters:
            return outer
    return model


def _models_around(model: PreTrainedModel, path: str) -> list[PreTrainedModel]:
    """The Hugging Face models on the way from the root to `path`, outermost first."""
    names = path.split(".")
    modules = [model.get_submodule(".".join(names[:depth])) for depth in range(len(names))]
    return [module for module in modules if isinstance(module, PreTrainedModel)]


def _explain_refusal(found: Found) -> str | None:
    """Why these blocks are no stack of layers; None where they are one."""
    blocks, config = found.layers, found.tower.config
    first = len(found.blocks) - len(blocks) + 1
    shapes = [{name: tuple(p.shape) for name, p in block.named_parameters()} for block in blocks]
    if not any(shapes) or not any(True for _ in blocks[0].children()):
        return "no blocks made of modules with parameters"
    for layer, (block, shape) in enumerate(zip(blocks, shapes, strict=True), start=first):
        if type(block) is not type(blocks[0]):
            return f"block {first} is a {type(blocks[0]).__name__}, block {layer} a {type(block).__name__}"
        if shape != shapes[0]:
            name = next(n for n in {**shapes[0], **shape} if shape.get(n) != shapes[0].get(n))
            return f"{name} is {shapes[0].get(name)} in block {first}, {shape.get(name)} in block {layer}"
    if config.model_type in TIME_FIRST:
        return f"the states of {config.model_type} are (T, n, d), not (n, T, d)"
    key = _depth_key(config, found.path)
    if key is not None and getattr(config, key) != len(found.blocks):
        return f"{len(found.blocks)} blocks, config.{key} is {getattr(config, key)}"
    return None


def _depth_key(config: PreTrainedConfig, path: str) -> str | None:
    """Which attribute of the config holds the length of the stack; None if it has none."""
    decoder_keys = ("decoder_layers", "num_decoder_layers") if "decoder" in path.split(".") else ()
    return next((key for key in (*decoder_keys, "num_hidden_layers") if getattr(config, key, None) is not None), None)


# --- after a cut


def describe_cut(model: PreTrainedModel, path: str, depth: int, kept: list[int]) -> None:
    """Make what a model says about its stack true after all but the `kept` of `depth` blocks (from 0) were deleted.

    Raises ValueError where its configuration cannot say it.
    """
    for new, old in enumerate(kept):
        _renumber(model.get_submodule(path)[new], old, new)
    for config in _tower_configs(model, path, depth):
        _cut_config(config, path, depth, kept)
    if len(kept) < depth:
        _check_config_describes(model, path)


def _renumber(block: nn.Module, old: int, new: int) -> None:
    for module in block.modules():
        if getattr(module, SCALE_BY_PLACE, False):
            _scale_queries(module, (new + 1) / (old + 1))
        for name in LAYER_INDEX_NAMES:
            if getattr(module, name, None) == old:
                setattr(module, name, new)


@torch.no_grad()
def _scale_queries(attention: nn.Module, factor: float) -> None:
    """Let an attention that is divided by its place give the same at another: what that changes is in its queries."""
    queries = getattr(attention, "q_attn", attention.c_attn)  # where they have no layer of their own, they come first
    for parameter in queries.parameters():  # (d, outputs) and (outputs,)
        parameter[..., : attention.split_size] *= factor
    if hasattr(attention, "scaling"):  # it holds the quotient, in some versions
        attention.scaling /= factor


def _tower_configs(model: PreTrainedModel, path: str, depth: int) -> list[PreTrainedConfig]:
    """Every config object that describes the stack: those in the tower, and copies of them in the models around it."""
    tower = _tower_around(model, path)
    own, key = tower.config, _depth_key(tower.config, path)
    found = [module.config for module in tower.modules() if isinstance(getattr(module, "config", None), type(own))]
    for outer in _models_around(model, path):
        configs = _with_sub_configs(outer.config)
        # One that shares the tower's object needs no copy; what else it has of this kind belongs to other towers.
        if key is not None and not any(config is own for config in configs):
            found += [c for c in configs if isinstance(c, type(own)) and getattr(c, key) == depth]
    return list({id(config): config for config in found}.values())


def _with_sub_configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    nested = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config] + [inner for value in nested for inner in _with_sub_configs(value)]


def _cut_config(config: PreTrainedConfig, path: str, depth: int, kept: list[int]) -> None:
    key = _depth_key(config, path)
    if key is not None:
        setattr(config, key, len(kept))
    for name in PER_LAYER_LISTS:
        values = vars(config).get(name)
        if isinstance(values, list | tuple) and len(values) == depth:
            setattr(config, name, type(values)(values[i] for i in kept))
    # Image models that can be backbones name their hidden states ("stem", "stage1", ...); by default the last is given.
    stage_names = vars(config).get("stage_names")
    if stage_names is not None and len(stage_names) == depth + 1 and config.out_indices == [depth]:
        config.stage_names = stage_names[: len(kept) + 1]
        config.set_output_features_output_indices(out_features=None, out_indices=None)


def _check_config_describes(model: PreTrainedModel, path: str) -> None:
    """Raise ValueError where the model, built from its config as it would be saved, differs in what no weight says.

    That is the lengths of its lists of modules, and the numbers that its blocks make for themselves.
    """
    name = type(model).__name__
    try:
        with torch.device("meta"):
            rebuilt = type(model)(type(model.config).from_dict(model.config.to_dict()))
    except Exception as error:  # whatever a model raises at a config that it cannot use
        raise ValueError(f"the config of {name} cannot describe what is left of the model: {error}") from error
    expected, found = (
        {list_path: len(module) for list_path, module in m.named_modules() if isinstance(module, nn.ModuleList)}
        for m in (model, rebuilt)
    )
    for list_path in expected:
        if found.get(list_path) != expected[list_path]:
            raise ValueError(
                f"expected {list_path} of length {expected[list_path]} from the config of {name}, "
                f"found {found.get(list_path)}"
            )
    expected, found = (_numbers_by_place(m.get_submodule(path)) for m in (model, rebuilt))
    for attribute, number in expected.items():
        if not math.isclose(found.get(attribute, math.nan), number):
            raise ValueError(
                f"the config of {name} cannot describe what is left of the model: {path}.{attribute} depends on the "
                "layer's place"
            )


def _numbers_by_place(blocks: nn.ModuleList) -> dict[str, float]:
    """Fractions that modules hold beside their weights, such as scales of attention (DiffLlama: `lambda_init`)."""
    return {
        f"{path}.{name}": value
        for path, module in blocks.named_modules()
        if not isinstance(module, nn.Dropout)
        for name, value in vars(module).items()
        # the rate of a drop path may depend on the place; it is for training alone
        if isinstance(value, float) and "drop" not in name
    }
