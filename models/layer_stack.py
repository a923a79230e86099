"""The stack of layers in a Hugging Face transformer: find it, run parts of it, drop layers from it.

CoMFLP (Liu, Peng, Lee, Interspeech 2023) sees a transformer as a chain h_0 -> layer 1 -> h_1 -> ... -> layer L -> h_L
and removes whole layers from it. Layers are counted from 1 everywhere; only in `models/` does a layer become an index
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

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.anatomy import describe_cut, find_stack

# The positional and keyword arguments of one block beside its input.
BlockArguments = tuple[tuple, dict]


class LayerStack:
    """The stack of identical blocks in a Hugging Face model, or in one tower of it.

    A stack is an `nn.ModuleList` of blocks of one class, with parameters of equal names and shapes, as long as the
    config's number of layers. What a block gets beside its input must not come out of another block. The first block of
    a ModernBERT is unlike the others: it stays, h_0 is its output, and layer 1 is the block after it.

    Args:
        model: any `PreTrainedModel`; referred to, not copied, and left in the mode, dtype and device it has.
        tower: which stack, where there are several: a part of its dotted path ("text_model", "bert.encoder"); "text"
            and "vision" stand for "text_model" and "vision_model". None: the only stack, else that of the text tower.

    Attributes:
        path: dotted path of the stack, such as "text_model.encoder.layers".
        layers: the blocks, a list apart from the model's own; layer 1 is `layers[0]`.
        tower: the module that takes the inputs: the innermost model around the stack with a forward for them.

    Raises:
        TypeError: not a Hugging Face model.
        ValueError: no stack, none that fits `tower`, or several to choose from.
    """

    def __init__(self, model: PreTrainedModel, tower: str | None = None):
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"expected a Hugging Face model (PreTrainedModel), found {type(model).__name__}")
        found = find_stack(model, tower)
        self.model, self.path, self.tower = model, found.path, found.tower
        self.layers = nn.ModuleList(found.layers)
        self._num_fixed = len(found.blocks) - len(self.layers)
        self._returns_tensor = False  # unknown before the first forward pass

    @property
    def num_layers(self) -> int:
        """L, the number of layers."""
        return len(self.layers)

    def start(self, **inputs) -> tuple[Tensor, list[BlockArguments]]:
        """The input of layer 1, and what the tower passes to every layer beside its input (masks, position embeddings).

        The tower's own forward runs once with blocks that note their arguments and hand on their input, so no layer is
        computed (but what comes before layer 1; and layer 1, the first time, or every time where blocks return tuples).
        Forward hooks on blocks see this pass. LayerDrop is off; for the rest the model is in the mode it is in.

        Args:
            inputs: what the tower takes, such as `input_ids` and `attention_mask`, or `pixel_values`.

        Returns:
            h_0, (n, T, d), what layer 1 gets; and the context that `run` needs, one entry for each layer.

        Raises:
            ValueError: a tower that is no chain of its layers: it calls others than 1..L in order, changes the state
                between two of them, or gives them other positions than those of the token ids.
        """
        # 1) One forward of the tower, without a cache: what each block was called with.
        if "use_cache" in inspect.signature(self.tower.forward).parameters:
            inputs["use_cache"] = False  # a cache would stay in the context and grow with every run
        with self._record_calls() as calls:
            self.tower(**inputs)
        # 2) Is it a chain of the layers 1..L?
        order = [i + 1 for i, _, _ in calls]
        if order != list(range(1, self.num_layers + 1)):
            raise ValueError(f"expected {self.path} to call layers 1..{self.num_layers} once, in order, found {order}")
        # 3) Every block handed on what it received, so only the tower can have changed it (DeBERTa-v2's convolution).
        h_0 = calls[0][1]
        for i, hidden, _ in calls:
            if hidden is not h_0 and not torch.equal(hidden, h_0):
                raise ValueError(
                    f"expected {self.path} to be a chain of layers, found that the tower changes the state before "
                    f"layer {i + 1}"
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
            output = self.layers[i](hidden, *args, **kwargs)
            hidden = output if isinstance(output, Tensor) else output[0]  # the rest is attentions, caches
        return hidden

    def hidden_states(self, **inputs) -> list[Tensor]:
        """The L+1 hidden states h_0 .. h_L, each (n, T, d); `inputs` and mode as in `start`.

        Equal to those of `output_hidden_states=True`, but h_L is always the output of layer L, while Hugging Face shows
        it after the final norm for many language models (Llama, GPT-2).
        """
        return list(self.walk(*self.start(**inputs)))

    def walk(self, hidden: Tensor, context: list[BlockArguments]) -> Iterator[Tensor]:
        """h_0 .. h_L one after the other, from what `start` returned."""
        yield hidden
        for layer in range(1, self.num_layers + 1):
            hidden = self.run(hidden, context, [layer])
            yield hidden

    def drop(self, dropped_layers: Iterable[int]) -> PreTrainedModel:
        """A new model without these layers: of the class of the whole model, with copies of all weights that stay (but
        queries are scaled where a block divides its attention by its place).

        The config says the new number of layers wherever it occurs, and its per-layer lists are cut, so that
        `save_pretrained` and `from_pretrained` give the same model again. Mode, dtype and device stay; `model` is left
        as it is.

        Args:
            dropped_layers: layers from 1..L in any order; none at all gives an exact copy.

        Raises:
            ValueError: a layer out of range or repeated, no layer left, or a config that cannot describe the result.
        """
        dropped, fixed = self._dropped_indices(dropped_layers), self._num_fixed
        kept = [*range(fixed), *(fixed + i for i in range(self.num_layers) if i not in dropped)]
        # deepcopy takes an entry of its memo instead of a copy: the weights of dropped layers are never copied.
        memo = {id(self.layers[i]): nn.Identity() for i in dropped}
        model = copy.deepcopy(self.model, memo)
        layers = model.get_submodule(self.path)
        for i in reversed(dropped):  # from the back, so that the numbers before stay right
            del layers[fixed + i]
        describe_cut(model, self.path, fixed + self.num_layers, kept)
        return model

    def _check_positions(self, h_0: Tensor, given: Tensor | None) -> None:
        """Raise ValueError where h_0 has not a row for each input, or a position for each token (Longformer pads)."""
        if given is None:
            return
        expected = given.shape[: 1 if given.is_floating_point() else 2]  # (n,) of pixels or samples, (n, T) of ids
        if h_0.ndim != 3 or h_0.shape[: len(expected)] != expected:
            raise ValueError(
                f"expected a state (n, T, d) for inputs of {tuple(given.shape)}, found {tuple(h_0.shape)} before layer "
                f"1 of {self.path}; where the model pads, give inputs that need no padding"
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
    def _record_calls(self) -> Iterator[list[tuple[int, Tensor, BlockArguments]]]:
        """Let blocks add their calls to the list given and return their input, as a tuple where their output is one."""
        calls: list[tuple[int, Tensor, BlockArguments]] = []
        tail: tuple = ()

        def record(i: int, forward: Callable, *args, **kwargs):
            nonlocal tail
            # the state is the first argument, given by place or, in some models, by its name
            hidden, *args = args or [kwargs.pop(next(iter(inspect.signature(forward).parameters)))]
            # what a block returns, a state or a tuple that begins with one, is seen by running the first one
            if not calls and not self._returns_tensor:
                output = forward(hidden, *args, **kwargs)
                self._returns_tensor = isinstance(output, Tensor)
                tail = () if self._returns_tensor else tuple(output[1:])
            calls.append((i, hidden, (tuple(args), kwargs)))
            return hidden if self._returns_tensor else (hidden, *tail)

        # The module that loops over the blocks drops whole layers in training mode (LayerDrop); the blocks keep theirs.
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
