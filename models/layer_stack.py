"""The stack of layers in a Hugging Face transformer: find it, run parts of it, drop layers from it.

CoMFLP (Liu, Peng, Lee, Interspeech 2023) sees a transformer as a chain h_0 -> layer 1 -> h_1 -> ... -> layer L -> h_L
and removes whole layers from it. Layers are counted from 1 everywhere; only in this file does a layer become an index
counted from 0.

    stack = LayerStack(model)                        # the text tower of a CLIP, or the only stack there is
    hidden_states = stack.hidden_states(**inputs)    # h_0 .. h_L
    h0, context = stack.start(**inputs)
    h5 = stack.run(h0, context, [1, 2, 5])           # skips layers 3 and 4; no weights are copied
    pruned = stack.drop([3, 4])                      # a new model, for save_pretrained and from_pretrained
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

# The positional and keyword arguments of one block beside its input.
BlockArguments = tuple[tuple, dict]

# Config entries with one value a layer. Named one by one: other lists (the convolutions of Wav2Vec2) may be as long as
# the stack.
PER_LAYER_LISTS = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "attention_layers",
    "no_rope_layers",
    "layer_rope_theta",
    "sliding_windows",
    "attention_window",
)
# Where the modules of a block keep the block's place in the stack, from 0 (caches need it).
LAYER_INDEX_NAMES = ("layer_idx", "layer_id")
# With this in its config a block divides its attention by its place: GPT-2 when it is made, ImageGPT in every forward
# pass.
SCALE_BY_PLACE = "scale_attn_by_inverse_layer_idx"
TIME_FIRST = ("xlnet",)  # model types whose states are (T, n, d)


class LayerStack:
    """The stack of identical blocks in a Hugging Face model, or in one tower of it.

    A stack is an `nn.ModuleList` of blocks of one class, with parameters of equal names and shapes, as long as the
    config's number of layers. What a block gets beside its input must not come out of another block.

    Args:
        model: any `PreTrainedModel`; referred to, not copied, and left in the mode, dtype and device it has.
        tower: which stack, where there are several: a part of its dotted path ("text_model", "bert.encoder"); "text"
            and "vision" stand for "text_model" and "vision_model". None: the only stack, else that of the text tower.

    Attributes:
        path: dotted path of the stack, such as "text_model.encoder.layers".
        layers: the `nn.ModuleList`; layer 1 is `layers[0]`.
        tower: the module that takes the inputs: the innermost model around the stack with a forward for them.

    Raises:
        TypeError: not a Hugging Face model.
        ValueError: no stack, none that fits `tower`, or several to choose from.
    """

    def __init__(self, model: PreTrainedModel, tower: str | None = None):
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"expected a Hugging Face model (PreTrainedModel), found {type(model).__name__}")
        found = _find_stack(model, tower)
        self.model, self.path, self.tower, self.layers = model, found.path, found.tower, found.blocks
        self._returns_tensor = False  # unknown before the first forward pass
        self._compiled: list[Callable] = []

    @property
    def num_layers(self) -> int:
        """L, the number of layers."""
        return len(self.layers)

    def start(self, **inputs) -> tuple[Tensor, list[BlockArguments]]:
        """The input of layer 1, and what the tower passes to every layer beside its input (masks, position embeddings).

        The tower's own forward runs once with blocks that note their arguments and hand on their input, so no layer is
        computed (but layer 1, the first time, or every time where blocks return tuples). Forward hooks on blocks see
        this pass. There is no cache, and LayerDrop is off; for the rest the model is in the mode it is in:
        `model.eval()` switches dropout off.

        Args:
            inputs: what the tower takes, such as `input_ids` and `attention_mask`, or `pixel_values`.

        Returns:
            h_0, (n, T, d), the output of the embeddings; and the context that `run` needs, one entry for each layer.

        Raises:
            ValueError: a tower that is no chain of its layers: it calls others than 1..L in order, changes the state
            between two
                of them, or gives them other positions than those of the token ids.
        """
        if "use_cache" in inspect.signature(self.tower.forward).parameters:
            inputs["use_cache"] = False
        with self._recording() as calls:
            self.tower(**inputs)
        order = [i + 1 for i, _, _ in calls]
        if order != list(range(1, self.num_layers + 1)):
            raise ValueError(f"expected {self.path} to call layers 1..{self.num_layers} once, in order, found {order}")
        h_0 = calls[0][1]
        for i, hidden, _ in calls:
            # every block handed on what it received, so only the tower can have changed it (a convolution of DeBERTa-v2
            # does)
            if hidden is not h_0 and not torch.equal(hidden, h_0):
                raise ValueError(
                    f"expected {self.path} to be a chain of layers, found that the tower changes the state before layer {i + 1}"
                )
        self._check_positions(h_0, inputs.get(self.tower.main_input_name))
        return h_0, [arguments for _, _, arguments in calls]

    def run(self, hidden: Tensor, context: list[BlockArguments], layers: Iterable[int]) -> Tensor:
        """Run some layers in the order given, each with the arguments that the model passes to it.

        Args:
            hidden: (n, T, d), the input of the first of them: h_0, or any later state of the same inputs.
            context: what `start` returned for these inputs.
            layers: layers from 1..L, in any order, repeats allowed; none at all gives `hidden` back.

        Returns:
            (n, T, d), the output of the last of them.

        Raises:
            ValueError: a layer out of range.
        """
        for i in self._indices(layers):
            args, kwargs = context[i]
            output = (self._compiled or self.layers)[i](hidden, *args, **kwargs)
            hidden = output if isinstance(output, Tensor) else output[0]
        return hidden

    def compile(self) -> None:
        """Let `run` use compiled layers, for inputs of any length; `start` and the model itself stay as they are."""
        self._compiled = [torch.compile(layer, dynamic=True) for layer in self.layers]

    def hidden_states(self, **inputs) -> list[Tensor]:
        """The L+1 hidden states h_0 .. h_L, each (n, T, d); `inputs` and mode as in `start`.

        Equal to those of `output_hidden_states=True`, but h_L is always the output of layer L, while Hugging Face shows
        it after the final norm for many language models (Llama, GPT-2).
        """
        hidden, context = self.start(**inputs)
        states = [hidden]
        for layer in range(1, self.num_layers + 1):
            states.append(self.run(states[-1], context, [layer]))
        return states

    def drop(self, dropped_layers: Iterable[int]) -> PreTrainedModel:
        """A new model without these layers: of the class of the whole model, with all weights that stay copied.

        The config says the new number of layers wherever it occurs, and its per-layer lists are cut, so that
        `save_pretrained` and `from_pretrained` give the same model again. Mode, dtype and device stay; `model` is left
        as it is.

        Args:
            dropped_layers: layers from 1..L in any order; none at all gives an exact copy.

        Raises:
            ValueError: a layer out of range or repeated, no layer left, or a config that cannot describe the result.
        """
        dropped = self._dropped_indices(dropped_layers)
        kept = [i for i in range(self.num_layers) if i not in dropped]
        # deepcopy takes an entry of its memo instead of a copy: the weights of dropped layers are never copied.
        memo = {id(self.layers[i]): nn.Identity() for i in dropped}
        model = copy.deepcopy(self.model, memo)
        layers = model.get_submodule(self.path)
        for i in reversed(dropped):
            del layers[i]
        for new, old in enumerate(kept):
            _renumber(layers[new], old, new)
        for config in _tower_configs(model, self.path, self.num_layers):
            _cut_config(config, self.path, self.num_layers, kept)
        if dropped:
            _check_config_describes(model, self.path)
        return model

    def _check_positions(self, h_0: Tensor, given: Tensor | None) -> None:
        """Raise ValueError where h_0 has not a row for each input, or a position for each token (Longformer pads)."""
        if given is None:
            return
        expected = given.shape[: 1 if given.is_floating_point() else 2]
        if h_0.ndim != 3 or h_0.shape[: len(expected)] != expected:
            raise ValueError(
                f"expected a state (n, T, d) for inputs of {tuple(given.shape)}, found {tuple(h_0.shape)} before layer 1 of "
                f"{self.path}; where the model pads, give inputs that need no padding"
            )

    def _indices(self, layers: Iterable[int]) -> list[int]:
        numbers = [index(layer) for layer in layers]
        for number in numbers:
            if not 1 <= number <= self.num_layers:
                raise ValueError(f"expected layers from 1..{self.num_layers}, found {number}")
        return [number - 1 for number in numbers]

    def _dropped_indices(self, dropped_layers: Iterable[int]) -> list[int]:
        dropped = self._indices(dropped_layers)
        repeated = sorted({i + 1 for i in dropped if dropped.count(i) > 1})
        if repeated:
            raise ValueError(f"expected every layer to be dropped once, found {repeated} more than once")
        if len(dropped) == self.num_layers:
            raise ValueError(f"expected at least one layer to stay, found all {self.num_layers} to be dropped")
        return sorted(dropped)

    @contextmanager
    def _recording(self) -> Iterator[list[tuple[int, Tensor, BlockArguments]]]:
        """Let blocks add their calls to the list given and return their input, as a tuple where their output is one."""
        calls: list[tuple[int, Tensor, BlockArguments]] = []
        tail: tuple = ()

        def record(i: int, forward: Callable, *args, **kwargs):
            nonlocal tail
            hidden, *args = args or [kwargs.pop(next(iter(inspect.signature(forward).parameters)))]
            if not calls and not self._returns_tensor:
                output = forward(hidden, *args, **kwargs)
                self._returns_tensor = isinstance(output, Tensor)
                tail = () if self._returns_tensor else tuple(output[1:])
            calls.append((i, hidden, (tuple(args), kwargs)))
            return hidden if self._returns_tensor else (hidden, *tail)

        # The module that loops over the blocks drops whole layers in training mode (LayerDrop); its children keep their
        # mode.
        owner = self.model.get_submodule(self.path.rpartition(".")[0])
        training = owner.training
        # A forward in the instance hides that of the class; a library that wraps models may have put one there before.
        own_forwards = [vars(block).get("forward") for block in self.layers]
        try:
            owner.training = False
            for i, block in enumerate(self.layers):
                block.forward = functools.partial(record, i, block.forward)
            yield calls
        finally:
            owner.training = training
            for block, own_forward in zip(self.layers, own_forwards, strict=True):
                vars(block).pop("forward", None)
                if own_forward is not None:
                    block.forward = own_forward


class _Found(NamedTuple):
    path: str
    tower: PreTrainedModel
    blocks: nn.ModuleList

    def answers_to(self, name: str) -> bool:
        """Whether `name`, or `<name>_model`, is a part of the path or the kind of the tower."""
        kind = self.tower.config.base_config_key.removesuffix("_config")  # "text" for a CLIPTextConfig
        in_path = any(f".{part}." in f".{self.path}." for part in (name, f"{name}_model"))
        return in_path or name.removesuffix("_model") == kind != ""


def _find_stack(model: PreTrainedModel, tower: str | None) -> _Found:
    stacks: list[_Found] = []
    refused: dict[str, str] = {}
    for path, blocks in model.named_modules():
        # lists inside a block, such as the experts of a mixture, are no stacks of their own
        if isinstance(blocks, nn.ModuleList) and not _is_inside(path, [stack.path for stack in stacks]):
            found = _Found(path, _tower_around(model, path), blocks)
            reason = _refusal(found)
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


def _refusal(found: _Found) -> str | None:
    """Why these blocks are no stack of layers; None where they are one."""
    blocks, config = found.blocks, found.tower.config
    shapes = [{name: tuple(p.shape) for name, p in block.named_parameters()} for block in blocks]
    if not any(shapes) or not any(True for _ in blocks[0].children()):
        return "no blocks made of modules with parameters"
    for layer, (block, shape) in enumerate(zip(blocks, shapes, strict=True), start=1):
        if type(block) is not type(blocks[0]):
            return f"block 1 is a {type(blocks[0]).__name__}, block {layer} a {type(block).__name__}"
        if shape != shapes[0]:
            name = next(n for n in {**shapes[0], **shape} if shape.get(n) != shapes[0].get(n))
            return f"{name} is {shapes[0].get(name)} in block 1, {shape.get(name)} in block {layer}"
    if config.model_type in TIME_FIRST:
        return f"the states of {config.model_type} are (T, n, d), not (n, T, d)"
    key = _depth_key(config, found.path)
    if key is not None and getattr(config, key) != len(blocks):
        return f"{len(blocks)} blocks, config.{key} is {getattr(config, key)}"
    return None


def _depth_key(config: PreTrainedConfig, path: str) -> str | None:
    """Which attribute of the config holds the length of the stack; None if it has none."""
    decoder_keys = ("decoder_layers", "num_decoder_layers") if "decoder" in path.split(".") else ()
    return next((key for key in (*decoder_keys, "num_hidden_layers") if getattr(config, key, None) is not None), None)


def _renumber(block: nn.Module, old: int, new: int) -> None:
    for module in block.modules():
        if old != new and getattr(module, SCALE_BY_PLACE, False):
            raise ValueError(
                f"cannot move layer {old + 1} to the place of layer {new + 1}: with {SCALE_BY_PLACE} its attention is divided by "
                "its place in the stack; drop the last layers, or prune a model without this setting"
            )
        for name in LAYER_INDEX_NAMES:
            if getattr(module, name, None) == old:
                setattr(module, name, new)


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
    # Image models that can be backbones name their hidden states ("stem", "stage1", ...) and give out the last by
    # default.
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
                f"expected {list_path} of length {expected[list_path]} from the config of {name}, found {found.get(list_path)}"
            )
    expected, found = (_numbers_by_place(m.get_submodule(path)) for m in (model, rebuilt))
    for attribute in expected:
        if found.get(attribute) != expected[attribute]:
            raise ValueError(
                f"the config of {name} cannot describe what is left of the model: {path}.{attribute} depends on the layer's place"
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
