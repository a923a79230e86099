"""The sum of the singular values of each of many matrices: the costly step of SVCCA."""

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

SMALLEST = 1e-9  # singular values below it are counted as less than they are by the iteration, which is its error
ROOM = 1e-6  # singular values may exceed 1 by less than this
LARGE = 512  # rows or columns; the decomposition of such a matrix keeps all threads busy by itself


def nuclear_norms(matrices: Tensor) -> Tensor:
    """(b,): the sums of the singular values, none of them above 1 but for rounding, of float64 (b, k, k').

    The rule: LAPACK's singular values on a CPU. A GPU decomposes large matrices one after the other, and is fast at
    products, so there it is the polar iteration, the same to `SMALLEST` a singular value.
    """
    return by_products(matrices) if matrices.device.type == "cuda" else by_decomposition(matrices)


def by_decomposition(matrices: Tensor) -> Tensor:
    """A part of the matrices for each thread, as LAPACK takes them one by one and has no use for more in small ones."""
    threads = torch.get_num_threads() if max(matrices.shape[1:]) < LARGE else 1
    with ThreadPoolExecutor(threads) as pool:
        values = torch.cat(list(pool.map(torch.linalg.svdvals, matrices.chunk(threads))))
    return values.clamp_max_(1).sum(-1)


def by_products(matrices: Tensor) -> Tensor:
    """The same by matrix products alone: <P, Q>, where Q = U V' is the polar factor of P = U S V'.

    Newton-Schulz with the scaling of Chen and Chow (2014): q(x) = a x (3 - a^2 x^2) / 2 takes all singular values of
    [l, 1] into [q(l), 1], with the a for which q(1) = q(l). It starts at l = `SMALLEST` and is done when q(l) is 1 to
    rounding. A singular value s < l is not lost but is counted as less than s, never as less than 0.
    """
    tall = matrices if matrices.shape[-2] >= matrices.shape[-1] else matrices.mT
    factor, low = tall * (1 - ROOM), SMALLEST
    while low < 1 - 1e-14:
        scale = math.sqrt(3 / (1 + low + low * low))
        factor = torch.baddbmm(factor, factor, factor.mT @ factor, beta=1.5 * scale, alpha=-0.5 * scale**3)
        low = scale * low * (3 - (scale * low) ** 2) / 2
    return (tall * factor).sum((-2, -1))
