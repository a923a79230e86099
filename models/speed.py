"""How long an encoder takes for a sample, as the model's own forward pass; what bfloat16 costs on a device."""

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


def bfloat16_slowdown(device: str) -> float:
    """Seconds of a matrix product in bfloat16, as a multiple of those in float32: 50 and more on processors that have
    to emulate it, below 1 on others."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype, device=device)
        seconds[dtype] = min(_product_seconds(matrix) for _ in range(10))  # the first ones set things up
    return seconds[torch.bfloat16] / seconds[torch.float32]


def _product_seconds(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    (matrix @ matrix).sum().item()  # which waits for a GPU
    return time.perf_counter() - start
