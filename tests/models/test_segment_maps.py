"""The maps of all segments come from one pass, and are those that the repair of a single segment finds."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from measures.ridge import RidgeSums
from models import Encoder, segment_maps
from models.encoders import Batch
from models.folding import find_places
from models.segment_maps import SegmentMaps
from search_strategy.proposals import kept_layers


@pytest.fixture(scope="module")
def maps(clip: Encoder, captions: list[str]) -> SegmentMaps:
    return SegmentMaps(clip, captions, ridge=0.1, batch_size=7)


def read_all(clip: Encoder, maps: SegmentMaps, captions: list[str], p: int, b: int) -> list[np.ndarray]:
    """Inputs of layer p's map, its sum, and h_b, over the real tokens of all captions but those that judge."""
    fitted = [caption for row, caption in enumerate(captions) if row % 10 != 9]
    parts = []
    with torch.no_grad():
        for batch in clip.batches(fitted, 100):
            hidden, context = clip.stack.start(**batch.inputs)
            states = clip.stack.hidden_states(**batch.inputs)
            inputs, current = maps.places[p].read(clip.stack, states[max(0, p - 1)], context, p)
            parts.append([t[batch.mask].double().numpy() for t in (inputs, current, states[b])])
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


@pytest.mark.parametrize(("p", "b"), [(0, 2), (1, 2), (2, 4), (3, 4)])
def test_one_pass_gives_the_ridge_regression(
    clip: Encoder, captions: list[str], maps: SegmentMaps, p: int, b: int
) -> None:
    inputs, current, wanted = read_all(clip, maps, captions, p, b)
    sums = RidgeSums(True)
    sums.add(torch.from_numpy(inputs), torch.from_numpy(wanted - current))
    expected = sums.solve(0.1)
    np.testing.assert_allclose(maps.fitted_change(p, b).numpy(), expected.numpy(), atol=1e-5)


def test_a_map_that_does_not_help_is_left_out(clip: Encoder, captions: list[str], monkeypatch) -> None:
    solve = RidgeSums.solve
    monkeypatch.setattr(RidgeSums, "solve", lambda sums, ridge: -5 * solve(sums, ridge))
    assert SegmentMaps(clip, captions).change(2, 3) is None


def test_a_map_is_judged_once(maps: SegmentMaps, monkeypatch) -> None:
    first = maps.change(2, 4)
    monkeypatch.setattr(maps.judge, "loss", lambda *_: pytest.fail("judged again"))
    assert first is not None
    torch.testing.assert_close(maps.change(2, 4), first, atol=0, rtol=0)


def test_maps_that_are_fitted_when_asked_for_are_those_of_one_pass(
    clip: Encoder, captions: list[str], maps: SegmentMaps, monkeypatch
) -> None:
    monkeypatch.setattr(segment_maps, "MAP_BYTES", 60_000)  # the sums of one layer, and little more
    few = SegmentMaps(clip, captions, ridge=0.1, batch_size=7)
    assert few.num_fitted == 0
    few.prepare([(1, 3), (0, 1), (2, 4)])
    with monkeypatch.context() as patch:
        patch.setattr(few, "_fit", lambda wanted: pytest.fail(f"fitted again: {wanted}"))
        for p, b in [(0, 1), (1, 3), (2, 4)]:
            torch.testing.assert_close(few.fitted_change(p, b), maps.fitted_change(p, b), atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(few.change(p, b), maps.change(p, b), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(few.fitted_change(0, 3), maps.fitted_change(0, 3), atol=1e-6, rtol=1e-6)


def test_too_few_captions_are_refused(clip: Encoder, captions: list[str]) -> None:
    with pytest.raises(ValueError, match="expected at least 20 different captions to repair with, found 19"):
        SegmentMaps(clip, captions[:19])


def folded(clip: Encoder, maps: SegmentMaps, dropped: tuple[int, ...], batch: Batch) -> Encoder:
    """The pruned model with the map of every segment in its weights."""
    pruned = clip.drop(dropped)
    for place, (p, q) in enumerate(pairwise((0, *kept_layers(dropped, 4), 5))):
        if q > p + 1 and maps.change(p, q - 1) is not None:
            find_places(pruned.stack, [place], batch.inputs)[0].fold(maps.change(p, q - 1))
    return pruned


@pytest.mark.parametrize("dropped", [(), (2,), (1, 3), (3, 4)])
def test_running_with_maps_equals_the_folded_model(
    clip: Encoder, captions: list[str], maps: SegmentMaps, dropped: tuple[int, ...]
) -> None:
    kept, batch = kept_layers(dropped, 4), next(clip.batches(captions, 60))
    with torch.no_grad():
        hidden, context = clip.stack.start(**batch.inputs)
        left = maps.run(hidden, context, 0)
        for p, q in pairwise((0, *kept)):
            left = maps.run(maps.state(left, p, q), context, q)
        found = maps.state(left, kept[-1], 5)
        expected = folded(clip, maps, dropped, batch).stack.hidden_states(**batch.inputs)[-1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("most_bytes", [0, 1 << 28])
def test_maps_help_where_the_folded_model_loses_less_and_is_nearer_by_a_margin(
    clip: Encoder, maps: SegmentMaps, most_bytes: int, monkeypatch
) -> None:
    monkeypatch.setattr(segment_maps, "PATH_BYTES", most_bytes)
    monkeypatch.setattr(maps, "_helped", {})
    judge, loses_less = maps.judge, {}
    for dropped in (subset for size in range(4) for subset in combinations(range(1, 5), size)):
        encoders = folded(clip, maps, dropped, judge.batches[0]), clip.drop(dropped)
        mended, left_out = map(judge.embeddings, encoders)
        loses_less[dropped] = judge.loss(mended) < judge.loss(left_out)
        nearer = judge.distance(mended) < segment_maps.NEAR_ENOUGH * judge.distance(left_out)
        assert maps.help(kept_layers(dropped, 4)) == (loses_less[dropped] and nearer)
    monkeypatch.setattr(maps, "_helped", {})
    monkeypatch.setattr(segment_maps, "NEAR_ENOUGH", -1.0)  # no distance is
    assert any(loses_less.values())
    assert not any(maps.help(kept_layers(dropped, 4)) for dropped in loses_less)
