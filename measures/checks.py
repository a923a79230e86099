"""What every measure asks of its input, and the words in which it says no."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LARGEST = 1e70  # fourth powers of values are summed in float64, whose largest number is 1.8e308


def without_gradients(method: Callable) -> Callable:
    """For methods that keep tensors: without a graph, and outside `torch.inference_mode` also when called inside it, so
    that what is kept can be updated from anywhere."""
    return torch.inference_mode(False)(torch.no_grad()(method))


def check_option(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError when `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}; found {value!r}")


def check_threshold(thre: float) -> None:
    """Raise ValueError when `thre` is not in (0, 1]."""
    if not 0 < thre <= 1:
        raise ValueError(f"thre must be above 0 and at most 1; found {thre!r}")


def check_hidden_states(
    hidden_states: Sequence[Tensor],
    widths: Sequence[int] | None = None,
    *,
    min_rows: int = 1,
    min_columns: int = 1,
    same_width: bool = False,
) -> list[Tensor]:
    """The hidden states as a list of (n, d_i) tensors, when they are fit to be measured.

    Args:
        hidden_states: one (n, d_i) floating-point tensor a layer, at least two layers, samples as rows.
        widths: the d_i seen before, where there was an update before.
        min_rows, min_columns: the fewest rows, and columns of a layer, that are of use.
        same_width: whether all d_i must be equal.

    Raises:
        ValueError: a shape, a number of layers, of rows or of columns other than expected.
    """
    states = list(hidden_states)
    if len(states) < 2:
        raise ValueError(f"expected the hidden states of at least 2 layers; found {len(states)}")
    for layer, state in enumerate(states):
        is_matrix = isinstance(state, Tensor) and state.dim() == 2 and state.is_floating_point()
        if not is_matrix or state.shape[1] < min_columns:
            raise ValueError(
                f"expected a floating-point tensor of shape (samples, features) for each layer; "
                f"found {_describe(state)} for layer {layer}"
            )
    _check_shapes(states, widths, min_rows, same_width)
    return states


def _check_shapes(states: list[Tensor], widths: Sequence[int] | None, min_rows: int, same_width: bool) -> None:
    rows = [state.shape[0] for state in states]
    found = [state.shape[1] for state in states]
    if len(set(rows)) > 1:
        raise ValueError(f"every layer must have the same samples as rows; found {rows} rows: pass one row a sample")
    if rows[0] < min_rows:
        raise ValueError(f"expected at least {min_rows} samples (rows) in an update; found {rows[0]}")
    if same_width and len(set(found)) > 1:
        raise ValueError(
            f"this measure compares features one by one, so all layers must have the same width; found {found}: "
            f"use svcca, pwcca, dc or cka for layers of different widths"
        )
    if widths is not None and found != list(widths):
        raise ValueError(
            f"expected {len(widths)} layers of widths {list(widths)}, as in the first update; "
            f"found {len(found)} layers of widths {found}: use a new measure for another model"
        )


def _describe(state: object) -> str:
    return f"{state.dtype} {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__


def check_values(states: Sequence[Tensor]) -> None:
    """Raise ValueError, naming the layer, for NaN, infinity, or a number too large for fourth powers in float64."""
    for layer, state in enumerate(states):
        if not state.numel():
            continue
        low, high = (value.item() for value in torch.aminmax(state))
        if not (low > -LARGEST and high < LARGEST):  # NaN compares false
            what = "values above 1e70" if math.isfinite(low) and math.isfinite(high) else "NaN or infinite values"
            raise ValueError(
                f"layer {layer} (0 is the embeddings) has {what}; expected finite ones: "
                f"look at the model's output for these samples, or compute it in a wider dtype"
            )


def check_mergeable(first: object, second: object) -> None:
    """Raise ValueError when two measures are not of one kind with the same options."""
    if type(first) is not type(second):
        raise ValueError(f"expected another {type(first).__name__} to merge; found a {type(second).__name__}")
    if first.options != second.options:
        raise ValueError(f"expected the options {first.options} to merge; found {second.options}")


def check_same_layers(widths: Sequence[int], other_widths: Sequence[int]) -> None:
    """Raise ValueError when two measures have seen layers of different number or width."""
    if list(widths) != list(other_widths):
        raise ValueError(f"expected layers of widths {list(widths)} to merge; found {list(other_widths)}")


def check_samples(samples: int, needed: int = 2) -> None:
    """Raise ValueError when fewer than `needed` samples were seen."""
    if samples < needed:
        raise ValueError(f"expected at least {needed} samples; found {samples}: call update with more rows first")
