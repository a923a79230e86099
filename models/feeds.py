"""What measures are fed: the hidden states of an encoder, its embeddings without layers, or what a repair fits.

A feed gives, for some captions, tensors with one row a sample; a row of `measures.KINDS` names the one that it takes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.matrix_files import PER_TOKEN_MODES, MatrixSettings
from measures.ablation import skipped_segments
from models.encoders import Encoder
from models.folding import find_places
from models.segment_maps import read_repairs


class Feed(NamedTuple):
    """`tensors(encoder, tokens, settings, longest)`: what the measure's update takes, for tokenised captions in their
    order; `longest` is at least the length of any of them. `values(encoder, settings, longest)`: how many numbers that
    is a caption."""

    tensors: Callable[[Encoder, Sequence[list[int]], MatrixSettings, int], list[Tensor]]
    values: Callable[[Encoder, MatrixSettings, int], int]


def hidden_states(
    encoder: Encoder, tokens: Sequence[list[int]], settings: MatrixSettings, longest: int
) -> list[Tensor]:
    """h_0 .. h_L, each (rows, d), on the model's device; padding never counts.

    Rows are captions, pooled (`U`, `mean`), or real tokens (`T`), or, for `seq`, the tokens of a caption side by side
    and then zeros, (captions, longest * d).
    """
    mode, lengths = settings.mode, torch.tensor([len(ids) for ids in tokens])
    numbers = torch.arange(len(tokens))
    first_row = {"T": lengths.cumsum(0) - lengths, "seq": numbers * longest}.get(mode, numbers).to(encoder.device)
    num_rows = {"T": int(lengths.sum()), "seq": len(tokens) * longest}.get(mode, len(tokens))
    # zeros: what follows the last token of a flattened caption stays so
    empty = torch.zeros(num_rows, encoder.width, dtype=encoder.dtype, device=encoder.device)
    states = [empty.clone() for _ in range(encoder.num_layers + 1)]
    with torch.inference_mode():
        for batch in encoder.prepared_batches(tokens):
            mask, rows = batch.mask, first_row[batch.rows]
            if mode in PER_TOKEN_MODES:
                rows = (rows[:, None] + torch.arange(mask.shape[1], device=rows.device))[mask]
            walk = encoder.stack.walk(*encoder.stack.start(**batch.inputs))
            for state, hidden in zip(states, walk, strict=True):
                if mode in PER_TOKEN_MODES:
                    state[rows] = hidden[mask]
                else:
                    state[rows] = encoder.pool(hidden, batch, settings.pool)
    return [state.view(len(tokens), -1) for state in states] if mode == "seq" else states


def hidden_state_values(encoder: Encoder, settings: MatrixSettings, longest: int) -> int:
    vectors = longest if settings.mode in PER_TOKEN_MODES else 1
    return (encoder.num_layers + 1) * vectors * encoder.width


def embeddings_without_segments(
    encoder: Encoder, tokens: Sequence[list[int]], _settings: MatrixSettings, longest: int
) -> list[Tensor]:
    """The embeddings (captions, d), and those without the layers i+1 .. j for each of `skipped_segments`.

    A segment is left out by going on from h_i with layer j+1: (L^3 + 5 L) / 6 calls of a layer in all.
    """
    num_layers, width = encoder.num_layers, encoder.dim
    segments = list(skipped_segments(num_layers))
    dtype = torch.promote_types(encoder.dtype, torch.float32)  # that of `embed`
    embeddings = torch.empty(1 + len(segments), len(tokens), width, dtype=dtype, device=encoder.device)
    with torch.inference_mode():
        for batch in encoder.prepared_batches(tokens):
            hidden, context = encoder.stack.start(**batch.inputs)
            states = list(encoder.stack.walk(hidden, context))
            embeddings[0, batch.rows] = encoder.embed(states[-1], batch)
            for number, (first, last) in enumerate(segments, 1):
                hidden = encoder.stack.run(states[first], context, range(last + 1, num_layers + 1))
                embeddings[number, batch.rows] = encoder.embed(hidden, batch)
    return list(embeddings)


def embedding_values(encoder: Encoder, _settings: MatrixSettings, _longest: int) -> int:
    return (1 + len(list(skipped_segments(encoder.num_layers)))) * encoder.dim


def repairs(encoder: Encoder, tokens: Sequence[list[int]], _settings: MatrixSettings, longest: int) -> list[Tensor]:
    """For each layer the inputs of its last linear map, its sum, and the sum's goal for each later state, by token."""
    batches = list(encoder.prepared_batches(tokens))
    with torch.inference_mode():
        places = find_places(encoder.stack, range(encoder.num_layers), batches[0].inputs)
        parts = [read_repairs(encoder, places, batch) for batch in batches]
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


def repair_values(encoder: Encoder, _settings: MatrixSettings, longest: int) -> int:
    num_layers, hidden_units = encoder.num_layers, 4  # as many widths as MLPs commonly have
    return longest * encoder.width * (num_layers * (hidden_units + 1) + num_layers * (num_layers + 1) // 2)


FEEDS = {
    "states": Feed(hidden_states, hidden_state_values),
    "ablation": Feed(embeddings_without_segments, embedding_values),
    "repair": Feed(repairs, repair_values),
}
