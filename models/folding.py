"""Where a tower can take a linear map without a new module: the last one of a block, or the embedding tables.

A state is made as `inputs W + c` plus something that these weights do not touch, perhaps with a layer norm on the sum.
Which module that is, is found by trying: the map is called, its output is moved, and the state has to move with it. No
family is named.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from models.layer_stack import BlockArguments, LayerStack

TRIED = 2  # samples
TOLERANCE = 1e-3  # of the move that is tried, which is as large as the state


class BlockMap:
    """The last linear map of a block, whose output is added to the residual stream; `norm` follows the sum where there
    is one.

    h = x + g W + c, or h = LN(x + g W + c) in a post-norm block; g are the inputs (..., F), the sum is (..., D).
    """

    def __init__(self, linear: nn.Linear, norm: nn.LayerNorm | None):
        self.linear, self.norm, self.has_bias = linear, norm, linear.bias is not None
        self.num_features = linear.in_features

    def read(
        self, stack: LayerStack, hidden: Tensor, context: list[BlockArguments], layer: int
    ) -> tuple[Tensor, Tensor]:
        """The map's inputs g and the sum, when the layer is run on `hidden`."""
        seen = {}
        with ExitStack() as hooks:
            hooks.enter_context(hooked(self.linear, lambda _, args, __: seen.update(inputs=args[0])))
            if self.norm is not None:
                hooks.enter_context(hooked(self.norm, lambda _, args, __: seen.update(sum=args[0])))
            state = stack.run(hidden, context, [layer])
        return seen["inputs"], seen.get("sum", state)

    def wanted(self, state: Tensor, current: Tensor) -> Tensor:
        """The sum that would give `state`: in a post-norm block with the scale and mean that the sum has now."""
        if self.norm is None:
            return state
        # LN(s) = (s - m) / sqrt(v + eps) * gamma + beta, solved for s with the m and v of the present sum
        variance, mean = torch.var_mean(current, -1, keepdim=True, correction=0)
        return (state - _or(self.norm.bias, 0)) / _or(self.norm.weight, 1) * (variance + self.norm.eps).sqrt() + mean

    def state(self, current: Tensor) -> Tensor:
        """The output of the block from the sum."""
        return current if self.norm is None else self.norm(current)

    def fold(self, change: Tensor) -> None:
        """Add to the weights: `change` is (F, D), or (F + 1, D) with the bias last."""
        self.linear.weight.data += change[: self.num_features].T.to(self.linear.weight)
        if self.has_bias:
            self.linear.bias.data += change[self.num_features].to(self.linear.bias)


class TableMap:
    """Embedding tables whose sum is h_0. A map of h_0 goes into each of them, its constant into the last: exact.

    The last is the one with the fewest rows: the position table, of which every token takes one row.
    """

    has_bias = True

    def __init__(self, tables: list[nn.Embedding]):
        self.tables = sorted(tables, key=lambda table: -table.num_embeddings)
        self.num_features = tables[0].embedding_dim

    def read(
        self, stack: LayerStack, hidden: Tensor, context: list[BlockArguments], layer: int
    ) -> tuple[Tensor, Tensor]:
        """h_0, twice: it is what the map takes and what it changes."""
        return hidden, hidden

    def wanted(self, state: Tensor, current: Tensor) -> Tensor:
        return state

    def state(self, current: Tensor) -> Tensor:
        return current

    def fold(self, change: Tensor) -> None:
        for table in self.tables:
            table.weight.data += (table.weight.double() @ change[:-1].to(table.weight.device, torch.float64)).to(
                table.weight
            )
        self.tables[-1].weight.data += change[-1].to(self.tables[-1].weight)


Place = BlockMap | TableMap  # where a map goes


def find_places(stack: LayerStack, layers: Sequence[int], inputs: dict[str, Tensor]) -> list[Place | None]:
    """Where the map of each h_layer goes; None for layer 0 where its embeddings are no sum of tables.

    `inputs`: some that the tower takes; the first of them are tried.
    """
    inputs = {name: tensor[:TRIED] for name, tensor in inputs.items()}
    start = stack.start(**inputs)
    return [find_block_map(stack, *start, layer) if layer else find_table_map(stack, **inputs) for layer in layers]


def find_block_map(stack: LayerStack, hidden: Tensor, context: list[BlockArguments], layer: int) -> BlockMap:
    """The last linear map of a block, found by running the layer on some hidden state (n, T, D).

    Raises ValueError, naming the block, where its output does not move with that of the last linear map that it calls.
    """
    block, called = stack.layers[layer - 1], []
    with ExitStack() as hooks:
        for module in block.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                hooks.enter_context(hooked(module, lambda module, _, output: called.append((module, output.shape))))
        state = stack.run(hidden, context, [layer])
    # The last linear map of the block's own shape, with a norm behind it in a post-norm block, without in a pre-norm.
    maps = [module for module, shape in called if isinstance(module, nn.Linear) and shape == state.shape]
    norms = [module for module, _ in called if isinstance(module, nn.LayerNorm)]
    if maps:
        # random and as large as the state: a norm cannot undo it, as it would a constant or a factor
        move = torch.randn(state.shape, generator=torch.Generator().manual_seed(0)).to(state) * state.std()
        for norm in (None, *norms[-1:]):
            found = BlockMap(maps[-1], norm)
            before = found.read(stack, hidden, context, layer)[1]  # (n, T, D): the sum; it has to move with the map
            with hooked(maps[-1], lambda _, __, output: output + move):
                after = found.read(stack, hidden, context, layer)[1]
            if _close(after - before, move) and (norm is None or _close(norm(before), state)):
                return found
    name = f"block {layer} of {stack.path} ({type(block).__name__})"
    raise ValueError(
        f"{name}: expected its output to be the sum of a residual and its last nn.Linear, with or without an "
        "nn.LayerNorm on the sum, found neither; such a model can be pruned, but not repaired (--repair false)"
    )


def find_table_map(stack: LayerStack, **inputs) -> TableMap | None:
    """The embedding tables whose sum is h_0; None where h_0 is something else (normed, or made of patches)."""
    called: list[tuple[nn.Embedding, Tensor]] = []
    with ExitStack() as hooks:
        for module in stack.tower.modules():
            if isinstance(module, nn.Embedding):
                hooks.enter_context(hooked(module, lambda module, _, output: called.append((module, output))))
        hidden, _ = stack.start(**inputs)
    # other tables (relative positions, narrower embeddings) are no part of the sum
    called = [(table, output) for table, output in called if output.shape[-1] == hidden.shape[-1]]
    tables, outputs = [table for table, _ in called], [output for _, output in called]
    is_sum = len(outputs) > 0 and _close(sum(outputs[1:], outputs[0]), hidden)
    return TableMap(tables) if is_sum and len(set(tables)) == len(tables) else None


def apply_change(change: Tensor, inputs: Tensor) -> Tensor:
    """(..., D): what the change, (F, D) or (F + 1, D), adds to the sum for `inputs` (..., F)."""
    features = inputs.shape[-1]
    change = change.to(inputs)
    return inputs @ change[:features] + (change[features] if len(change) > features else 0)


@contextmanager
def hooked(module: nn.Module, hook) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _close(found: Tensor, expected: Tensor) -> bool:
    tolerance = max(TOLERANCE, 4 * torch.finfo(expected.dtype).eps)  # bfloat16 has two digits
    return found.shape == expected.shape and bool((found - expected).norm() <= tolerance * expected.norm())


def _or(value: Tensor | None, default: float) -> Tensor | float:
    return default if value is None else value
