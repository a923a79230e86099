"""Similarity of every two layers of a network, from their hidden states given batch by batch.

    measure = MEASURES["svcca"](thre=0.99)
    for hidden_states in batches:            # one (n, d_i) tensor a layer, samples as rows
        measure.update(hidden_states)
    measure.matrix()                         # (L+1, L+1) float64, symmetric, ones on the diagonal

Each measure has `update`, `matrix`, `merge`, `samples`, `diagnostics`, `options`, and `per_draw`: whether an update is
a draw whose result is averaged (`dc`), or a piece of one sample that can be divided in any way. What the numbers mean,
and do not mean, is in README.md of this folder.
"""

from measures.angular import Angular
from measures.baseline import Shuffled
from measures.cka import CKA
from measures.combine import combine
from measures.cosine import Cosine
from measures.covcorr import CovCorr
from measures.dc import DC
from measures.delta_mean import DeltaMean
from measures.pwcca import PWCCA
from measures.svcca import SVCCA

MEASURES = {
    "svcca": SVCCA,
    "pwcca": PWCCA,
    "dc": DC,
    "cka": CKA,
    "cosine": Cosine,
    "angular": Angular,
    "covcorr": CovCorr,
    "delta_mean": DeltaMean,
}

__all__ = [
    "CKA",
    "DC",
    "MEASURES",
    "PWCCA",
    "SVCCA",
    "Angular",
    "Cosine",
    "CovCorr",
    "DeltaMean",
    "Shuffled",
    "combine",
]
