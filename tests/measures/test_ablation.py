"""The ablation measure: cosines between the whole network's embedding and those without a segment."""

import pickle

import numpy as np
import pytest
import torch
from measures_oracles import difference

from measures.ablation import Ablation, skipped_segments

NUM_LAYERS = 3
SEGMENTS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def embeddings(samples=20, width=5, segments=6):
    """Of the whole network and without each segment."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    changes = torch.randn(segments, samples, width, generator=generator, dtype=torch.float64)
    return [whole, *(whole + change for change in changes)]


def measure_parts(parts):
    measure = Ablation()
    for part in parts:
        measure.update(part)
    return measure


def test_segments_are_all_runs_of_layers():
    assert list(skipped_segments(NUM_LAYERS)) == SEGMENTS


def test_entries_are_mean_cosines():
    whole, *skipped = embeddings()
    expected = np.eye(NUM_LAYERS + 1)
    for (first, last), state in zip(SEGMENTS, skipped, strict=True):
        cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in zip(whole, state, strict=True)]
        expected[first, last] = expected[last, first] = np.mean(cosines)
    assert difference(measure_parts([[whole, *skipped]]).matrix(), expected) < 1e-14
    assert np.ptp(expected[np.triu_indices(4, 1)]) > 1e-3


def test_division_merging_and_pickling_do_not_matter():
    states = embeddings()
    whole = measure_parts([states]).matrix()
    parts = [list(part) for part in zip(*(state.split(7) for state in states), strict=True)]
    assert difference(measure_parts(parts).matrix(), whole) < 1e-14
    total = Ablation()
    for part in parts:
        total.merge(pickle.loads(pickle.dumps(measure_parts([part]))))
    total.merge(Ablation())
    assert total.samples == total.diagnostics()["samples"] == 20
    assert difference(total.matrix(), whole) < 1e-14


def test_wrong_input_is_refused_and_changes_nothing():
    measure = measure_parts([embeddings()])
    before = measure.matrix()
    broken = embeddings()
    broken[3][2, 1] = torch.nan
    with pytest.raises(ValueError, match="embeddings have NaN or infinite values"):
        measure.update(broken)
    with pytest.raises(ValueError, match="expected 7 tensors of embeddings, as in the first update; found 4"):
        measure.update(embeddings(segments=3))
    with pytest.raises(ValueError, match="expected at least 2 samples; found 0"):
        Ablation().matrix()
    assert np.array_equal(measure.matrix(), before)


def test_a_number_of_tensors_that_no_network_gives_is_refused():
    with pytest.raises(ValueError, match=r"expected 1 \+ L \(L \+ 1\) / 2 tensors of embeddings .* found 6"):
        Ablation().update(embeddings(segments=5))
