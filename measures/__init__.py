"""Similarity of every two layers of a network, from their hidden states given batch by batch.

    measure = MEASURES["svcca"](thre=0.99)
    for hidden_states in batches:            # one (n, d_i) tensor a layer, samples as rows
        measure.update(hidden_states)
    measure.matrix()                         # (L+1, L+1) float64, symmetric, ones on the diagonal

What each measure has is `Measure` in base.py; what the scripts know of it is a row of `KINDS` in table.py. What the
numbers mean, and do not mean, is in README.md of this folder.
"""

from measures.table import KINDS, MEASURES
