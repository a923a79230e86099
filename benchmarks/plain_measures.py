"""SVCCA and distance correlation as they are commonly written, and as other packages have them."""

import contextlib
import itertools

import numpy as np
import torch
from torch import Tensor


def plain_svcca(x: Tensor, y: Tensor, thre: float) -> float:
    """As commonly written: centre, SVD of both, keep, covariances, their inverse roots, SVD."""
    kept = []
    for layer in (x.double(), y.double()):
        u, s, _ = torch.linalg.svd(layer - layer.mean(0), full_matrices=False)
        k = int((s.cumsum(0) / s.sum() <= thre).sum()) + 1
        kept.append(u[:, :k] * s[:k])
    first, second = kept
    whitened = inverse_root(first.T @ first) @ (first.T @ second) @ inverse_root(second.T @ second)
    return torch.linalg.svdvals(whitened).mean().item()


def inverse_root(product: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(product)
    return vectors / values.sqrt() @ vectors.T


def numpy_svcca(x: Tensor, y: Tensor, thre: float) -> float:
    """As in the code published with SVCCA: NumPy, (neurons, samples), one covariance of both, pseudo-inverses."""
    kept = []
    for layer in (x, y):
        neurons = layer.double().cpu().numpy().T
        _, s, vt = np.linalg.svd(neurons - neurons.mean(1, keepdims=True), full_matrices=False)
        k = int((s.cumsum() / s.sum() <= thre).sum()) + 1
        kept.append(s[:k, None] * vt[:k])
    covariance, k = np.cov(*kept), len(kept[0])
    roots = []
    for own in (covariance[:k, :k], covariance[k:, k:]):
        values, vectors = np.linalg.eigh(np.linalg.pinv(own))
        roots.append(vectors * np.sqrt(np.abs(values)) @ vectors.T)
    return float(np.linalg.svd(roots[0] @ covariance[:k, k:] @ roots[1], compute_uv=False).mean())


def anatome_svcca(x: Tensor, y: Tensor, thre: float, dtype: torch.dtype) -> float:
    from anatome.distance import svcca_distance

    with contextlib.redirect_stdout(None):  # a release of it prints sizes
        return 1 - float(svcca_distance(x.to(dtype), y.to(dtype), thre, "qr"))  # "qr" is its faster way


def centred_distances(state: Tensor, dtype: torch.dtype) -> Tensor:
    """As commonly written: by broadcast differences."""
    rows = torch.nn.functional.normalize(state.to(dtype))
    distances = (rows.unsqueeze(1) - rows.unsqueeze(0)).square().sum(-1).sqrt()
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()


def correlation(a: Tensor, b: Tensor) -> float:
    return ((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()).item()


def per_layer_dc(draws: list[list[Tensor]], dtype: torch.dtype) -> np.ndarray:
    """Distances once a layer, three sums a pair; the mean over the draws."""
    total = np.zeros((len(draws[0]), len(draws[0])))
    for states in draws:
        centred = [centred_distances(state, dtype) for state in states]
        for (i, a), (j, b) in itertools.combinations_with_replacement(enumerate(centred), 2):
            total[i, j] += correlation(a, b)
    return total / len(draws)


def per_pair_dc(draws: list[list[Tensor]], pairs: list[tuple[int, int]]) -> np.ndarray:
    """Everything for each pair; entries of other pairs are NaN."""
    total = np.full((len(draws[0]), len(draws[0])), np.nan)
    for i, j in pairs:
        both = ([centred_distances(states[layer], torch.float64) for layer in (i, j)] for states in draws)
        total[i, j] = np.mean([correlation(*centred) for centred in both])
    return total


def dcor_dc(draws: list[list[Tensor]], pairs: list[tuple[int, int]]) -> np.ndarray:
    import dcor

    matrix = np.full((len(draws[0]), len(draws[0])), np.nan)
    units = [[torch.nn.functional.normalize(state.double()).cpu().numpy() for state in states] for states in draws]
    for i, j in pairs:
        matrix[i, j] = np.mean([dcor.distance_correlation_sqr(unit[i], unit[j]) for unit in units])
    return matrix
