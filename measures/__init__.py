"""Similarity of every two layers of a network, from their hidden states given batch by batch.

    measure = MEASURES["svcca"](thre=0.99)
    for hidden_states in batches:            # one (n, d_i) tensor a layer, samples as rows
        measure.update(hidden_states)
    measure.matrix()                         # (L+1, L+1) float64, symmetric, ones on the diagonal

What each measure has is `Measure` in base.py; what the scripts know of it is a row of `KINDS` in table.py. What the
numbers mean, and do not mean, is in README.md of this folder.
"""

from measures.ablation import Ablation
from measures.angular import Angular
from measures.base import Measure
from measures.baseline import Shuffled
from measures.cka import CKA
from measures.combine import combine
from measures.cosine import Cosine
from measures.covcorr import CovCorr
from measures.dc import DC
from measures.delta_mean import DeltaMean
from measures.pwcca import PWCCA
from measures.repair import Repair
from measures.svcca import SVCCA
from measures.table import KINDS, MEASURES
