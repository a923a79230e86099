"""Plain versions of every measure for one pair of layers, and data to try them on. No code of `measures` is used."""

import numpy as np
import torch


def walk(samples=200, width=16, layers=4, seed=0, step=0.5, dtype=torch.float64):
    """Hidden states like a residual stream: a random walk over layers, features of different spread."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1, width, dtype=torch.float64)
    state = torch.randn(samples, width, generator=generator, dtype=torch.float64) * scales
    states = [state]
    for _ in range(layers):
        noise = torch.randn(samples, width, generator=generator, dtype=torch.float64) * scales
        mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width
        state = state + step * noise + torch.tanh(state @ mixing)
        states.append(state)
    return [state.to(dtype) for state in states]


def pairwise(function, states):
    """The matrix of a plain function of two (n, d) float64 arrays; ones on the diagonal."""
    arrays = [state.double().numpy() for state in states]
    matrix = np.eye(len(arrays))
    for i in range(len(arrays)):
        for j in range(i + 1, len(arrays)):
            matrix[i, j] = matrix[j, i] = function(arrays[i], arrays[j])
    return matrix


def difference(first, second):
    """The largest absolute difference of two matrices."""
    assert first.shape == second.shape
    return np.abs(first - second).max()


def plain_directions(x, thre=0.99, power=1):
    """Left singular vectors that the threshold keeps, by SVD of the centred samples, one direction after the other."""
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    rank = int((s > s[0] * np.sqrt(max(x.shape[1], 32) * np.finfo(float).eps)).sum())
    shares = np.cumsum(s[:rank] ** power) / np.sum(s[:rank] ** power)
    kept = 1
    while kept < rank and (thre == 1 or not shares[kept - 1] > thre):
        kept += 1
    return u[:, :kept]


def plain_svcca(x, y, thre=0.99, power=1):
    product = plain_directions(x, thre, power).T @ plain_directions(y, thre, power)
    return np.linalg.svd(product, compute_uv=False).mean()


def plain_pwcca(x, y, thre=0.99):
    bases = [plain_directions(x, thre), plain_directions(y, thre)]
    left, rho, right = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    means = []
    for data, basis, rotation in ((x, bases[0], left), (y, bases[1], right.T)):
        variates = basis @ rotation
        weights = np.abs(variates.T @ (basis @ basis.T @ (data - data.mean(0)))).sum(1)
        means.append(float(weights @ rho / weights.sum()))
    return sum(means) / 2


def plain_distances(x):
    return np.stack([np.sqrt(((x - row) ** 2).sum(1)) for row in x])


def plain_dc(x, y, unbiased=False):
    products = []
    centred = []
    for data in (x, y):
        norms = np.sqrt((data**2).sum(1, keepdims=True))
        centred.append(_centred(plain_distances(data / np.where(norms > 0, norms, 1)), unbiased))
    a, b = centred
    products = (a * b).sum(), (a * a).sum(), (b * b).sum()
    return products[0] / np.sqrt(products[1] * products[2])


def _centred(distances, unbiased):
    n = len(distances)
    if not unbiased:
        return distances - distances.mean(0) - distances.mean(1)[:, None] + distances.mean()
    rows, total = distances.sum(1), distances.sum()
    centred = distances - rows / (n - 2) - rows[:, None] / (n - 2) + total / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    return centred


def plain_cka(x, y):
    """With n x n Gram matrices and the centring matrix."""
    n = len(x)
    centring = np.eye(n) - 1 / n
    k, m = (centring @ data @ data.T @ centring for data in (x, y))
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def plain_debiased_cka(x, y, centred=True):
    """Song et al. 2012, equation 5, on n x n Gram matrices without their diagonals. Centring changes only rounding."""

    def hsic(k, m):
        n, ones = len(k), np.ones(len(k))
        total = ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + total - 2 / (n - 2) * ones @ k @ m @ ones) / (n * (n - 3))

    x, y = (data - data.mean(0) if centred else data for data in (x, y))
    k, m = (data @ data.T * (1 - np.eye(len(data))) for data in (x, y))
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def plain_cosine(x, y):
    return np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(x, y, strict=True)])


def plain_angular(x, y):
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(x, y, strict=True)]
    return np.mean([1 - np.arccos(cosine) / np.pi for cosine in cosines])


def plain_delta_mean(x, y):
    def norm(a):
        return np.sqrt((a**2).sum())

    return 1 - np.mean([norm(b - a) / ((norm(a) + norm(b)) / 2) for a, b in zip(x, y, strict=True)]) / 2


def plain_covcorr(x, y):
    covariances = []
    for data in (x, y):
        means = [sum(column) / len(data) for column in data.T]
        covariances.append(
            [
                sum((a - ma) * (b - mb) for a, b in zip(p, q, strict=True)) / len(data)
                for p, ma in zip(data.T, means, strict=True)
                for q, mb in zip(data.T, means, strict=True)
            ]
        )
    return np.corrcoef(covariances)[0, 1]
