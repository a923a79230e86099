"""How long an encoder takes for a sample, as the model's own forward pass."""

import time
from collections.abc import Sequence

import torch

from models.encoders import Batch, Encoder


@torch.no_grad()
def measure_milliseconds(
    encoder: Encoder, samples: Sequence, batch_size: int, repeats: int = 5, full_length: bool = False
) -> float:
    """Milliseconds a sample from what the tower takes (token ids) to the embedding.

    Batches are cut to their longest sample, or with `full_length` padded to as many positions as the model takes. The
    fastest of `repeats` passes over the samples after one that is not counted: what else the machine does can only add
    time. Tokenising is not counted.
    """
    batches = list(encoder.batches(samples, batch_size, encoder.max_length if full_length else None))
    passes = [_pass_seconds(encoder, batches) for _ in range(repeats + 1)]
    return min(passes[1:]) / len(samples) * 1000


def _pass_seconds(encoder: Encoder, batches: Sequence[Batch]) -> float:
    start = time.perf_counter()
    for batch in batches:
        encoder.deployed(batch.inputs)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
