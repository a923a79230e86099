"""Fine search: right losses, each layer called as seldom as possible, nothing changed."""

import weakref
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data import load_pairs
from models.encoders import state_hash
from models.folding import find_places
from models.segment_maps import SegmentMaps
from search_strategy import fine as fine_module
from search_strategy.fine import FineSearch, depth_first, distinct_prefixes
from search_strategy.proposals import kept_layers
from tasks.retrieval import Retrieval

ALL_PAIRS = list(combinations(range(1, 5), 2))  # every way to drop two of four layers


@pytest.fixture(scope="module")
def pairs(tiny_pairs):
    return load_pairs(str(tiny_pairs), "validation")


@pytest.fixture
def make(clip, pairs, images):
    def make(**options):
        objective, batch_size = options.get("objective", "task_loss"), options.get("batch_size", 16)
        task = Retrieval(images, pairs.image_index, clip.logit_scale, objective=objective, batch_size=20)
        return FineSearch(clip, pairs.captions, task, maps=options.get("maps"), batch_size=batch_size)

    return make


@pytest.fixture(scope="module")
def maps(clip, tiny_pairs):
    return SegmentMaps(clip, load_pairs(str(tiny_pairs), "train", images=False).captions)


def fold_maps(clip, maps, dropped):
    """The pruned model with the map of each cut in its weights."""
    pruned, kept = clip.drop(dropped), kept_layers(dropped, 4)
    inputs = next(clip.batches(["red square"], 1)).inputs
    for place, (p, q) in enumerate(pairwise((0, *kept, 5))):
        if q > p + 1 and maps.change(p, q - 1) is not None:
            find_places(pruned.stack, [place], inputs)[0].fold(maps.change(p, q - 1))
    return pruned


def plain_text_embeddings(clip, captions, dropped):
    """The pruned model rebuilt, every caption padded to the model's length, with the tokenizer's mask."""
    model = clip.stack.drop(dropped)
    length = model.config.text_config.max_position_embeddings
    inputs = clip.processor.tokenizer(captions, padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        return F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)


def plain_task_loss(text, image, logit_scale, batch_size):
    """Cross entropy by hand, pair by pair."""
    losses = []
    for start in range(0, len(text), batch_size):
        logits = (logit_scale * text[start : start + batch_size] @ image[start : start + batch_size].T).double().numpy()
        for i in range(len(logits)):
            row, column = np.log(np.exp(logits[i]).sum()), np.log(np.exp(logits[:, i]).sum())
            losses.append((row + column) / 2 - logits[i, i])
    return np.mean(losses)


@pytest.mark.parametrize("dropped", [(), (1, 2), (2, 4), (1, 2, 3)])
def test_task_loss_and_recall_are_those_of_the_rebuilt_model(make, clip, pairs, images, dropped):
    evaluation = make().evaluate([dropped])[0]
    text = plain_text_embeddings(clip, pairs.captions, dropped)
    assert evaluation.objective == pytest.approx(plain_task_loss(text, images, clip.logit_scale, 20), abs=1e-4)
    similarity = (text @ images.T).numpy()
    ranks = [(row >= row[i]).sum() - 1 for i, row in enumerate(similarity)]
    assert evaluation.figures["text_to_image_recall_at_5"] == pytest.approx(np.mean(np.array(ranks) < 5), abs=1 / 60)


def test_sharing_prefixes_changes_no_bit(make):
    together = make().evaluate(ALL_PAIRS)
    alone = [make().evaluate([proposal])[0] for proposal in ALL_PAIRS]
    assert [e.objective for e in together] == [e.objective for e in alone]
    assert all(np.array_equal(a.values, b.values) for a, b in zip(together, alone, strict=True))


def test_running_in_parts_changes_no_bit(make, monkeypatch):
    whole = [e.objective for e in make().evaluate(ALL_PAIRS)]
    monkeypatch.setattr(fine_module, "EMBEDDING_BYTES", 2 * 4 * 60 * 16)  # two proposals at a time
    assert [e.objective for e in make().evaluate(ALL_PAIRS)] == whole


def test_the_embeddings_of_a_part_are_gone_before_the_next_are_made(make, monkeypatch):
    monkeypatch.setattr(fine_module, "EMBEDDING_BYTES", 2 * 4 * 60 * 16)
    search, alive = make(), []
    embed = search._embed

    def watched(*args):
        assert not any(of_part() is not None for of_part in alive)
        array = embed(*args).numpy().copy()  # which lives as long as any view of the tensor
        alive.append(weakref.ref(array))
        return torch.from_numpy(array)

    monkeypatch.setattr(search, "_embed", watched)
    search.evaluate(ALL_PAIRS)
    assert len(alive) == 3


def test_a_layer_is_called_once_a_prefix_and_batch(make, clip, monkeypatch):
    calls = []
    run = clip.stack.run
    monkeypatch.setattr(clip.stack, "run", lambda h, context, layers: calls.extend(layers) or run(h, context, layers))
    search = make()
    search.evaluate(ALL_PAIRS)
    prefixes = {kept_layers(p, 4)[:depth] for p in ALL_PAIRS for depth in (1, 2)}
    batches = -(-60 // 16)
    assert len(calls) == len(prefixes) * batches
    assert (search.layer_calls, search.layer_calls_unshared) == (len(prefixes), 12)


def test_losses_are_at_the_scale_fitted_for_the_full_model_or_at_the_one_given(clip, pairs, images):
    fitted = FineSearch.from_pairs(clip, pairs, loss_batch_size=20)
    calls = fitted.layer_calls
    task = Retrieval(images, pairs.image_index, clip.logit_scale, batch_size=20).fit_scale(
        clip.embeddings(pairs.captions)
    )
    assert fitted.task.logit_scale == pytest.approx(task.logit_scale, rel=1e-3)
    assert fitted.full_model().objective == pytest.approx(task.score(clip.embeddings(pairs.captions)).values.mean())
    assert fitted.layer_calls == calls == 4  # the full model is run once
    given = FineSearch.from_pairs(clip, pairs, loss_batch_size=20, logit_scale=7.0)
    assert given.task.logit_scale == 7.0 and given.layer_calls == 0


def test_states_of_an_earlier_call_serve_a_later_one_and_change_no_bit(make):
    search = make()
    search.evaluate([(3, 4)])
    later = search.evaluate([(2, 4), (2, 3)])  # keeps layers 1 and 3, 1 and 4; that of layer 1 is there
    assert search.layer_calls == 2 + 2
    assert [e.objective for e in later] == [e.objective for e in make().evaluate([(2, 4), (2, 3)])]


def test_states_beyond_the_limit_are_run_again_and_change_no_bit(make, monkeypatch):
    monkeypatch.setattr(fine_module, "STATE_BYTES", 0)
    search = make()
    search.evaluate([(3, 4)])
    later = search.evaluate([(2, 4), (2, 3)])
    assert search.layer_calls == 2 + 3
    assert [e.objective for e in later] == [e.objective for e in make().evaluate([(2, 4), (2, 3)])]


def test_the_least_recently_used_state_is_given_up_first():
    states = fine_module.RecentStates(most_bytes=8)
    one, two, three = (torch.zeros(1) for _ in range(3))
    states.put("one", one)
    states.put("two", two)
    assert states.get("one") is one
    states.put("three", three)
    assert states.get("two") is None and states.get("one") is one and states.get("three") is three


def test_nothing_is_evaluated_twice(make):
    search = make()
    first = search.evaluate([(1, 2), (1, 3)])
    calls = search.layer_calls
    again = search.evaluate([(1, 3), (1, 2), (1, 3)])
    assert search.layer_calls == calls
    assert again == [first[1], first[0], first[1]]


def test_the_model_is_left_as_it_was(make, clip):
    before = state_hash(clip.model)
    make().evaluate(ALL_PAIRS)
    assert state_hash(clip.model) == before
    assert clip.num_layers == 4


def test_order_of_the_captions_in_a_forward_pass_does_not_matter(make):
    small, large = make(batch_size=7), make(batch_size=60)
    for a, b in zip(small.evaluate(ALL_PAIRS), large.evaluate(ALL_PAIRS), strict=True):
        assert a.objective == pytest.approx(b.objective, abs=1e-5)


def test_recall_objective_is_minus_recall_at_10_of_both_directions(make):
    evaluation = make(objective="recall").evaluate([(2, 3)])[0]
    recall = evaluation.figures
    expected = -(recall["text_to_image_recall_at_10"] + recall["image_to_text_recall_at_10"]) / 2
    assert evaluation.objective == pytest.approx(expected)
    assert evaluation.objective < 0


def test_embedding_objective_needs_no_image_and_is_the_distance_to_the_full_model(clip, pairs, tiny_pairs):
    search = FineSearch.from_pairs(clip, load_pairs(str(tiny_pairs), "validation", images=False), objective="embedding")
    full, pruned = search.evaluate([(), (2, 3)])
    texts = [plain_text_embeddings(clip, pairs.captions, dropped) for dropped in ((), (2, 3))]
    assert full.objective == pytest.approx(0, abs=1e-6)
    assert pruned.objective == pytest.approx((1 - (texts[0] * texts[1]).sum(1)).mean().item(), abs=1e-5)
    assert pruned.figures == {}


def test_objective_on_some_pairs_is_that_of_a_search_on_them_alone(make, clip, pairs, images):
    rows = np.array([3, 50, 7, 21, 22, 40])
    task = Retrieval(images, pairs.image_index[rows], clip.logit_scale, batch_size=20)
    alone = FineSearch(clip, [pairs.captions[r] for r in rows], task)
    assert make().objectives_on(ALL_PAIRS, rows) == pytest.approx(alone.objectives(ALL_PAIRS), abs=1e-6)


def test_an_unknown_objective_is_an_error(clip, pairs):
    with pytest.raises(ValueError, match="objective is 'speed'; expected one of task_loss, recall, embedding"):
        FineSearch.from_pairs(clip, pairs, objective="speed")


# --- the tree of kept layers: what is run, how often, in which order


def run_steps(kept):
    """Follow the steps with tuples instead of hidden states; returns what ends where, and the longest path held."""
    path, ended, longest = [()], {}, 0
    for prefix, ending in depth_first(kept):
        del path[len(prefix) :]
        path.append((*path[-1], prefix[-1]))
        assert path[-1] == prefix
        longest = max(longest, len(path))
        if ending is not None:
            ended[ending] = path[-1]
    return ended, longest


@pytest.mark.parametrize(
    "kept",
    [
        [(1, 2, 3)],
        [(1, 2), (1, 3), (2, 3)],
        [(2, 3), (1, 2, 3), (1, 2), (1,)],
        list(combinations(range(1, 8), 4)),
        [c for size in (1, 3, 5) for c in combinations(range(1, 7), size)],
    ],
)
def test_every_tuple_is_reached_through_its_own_layers(kept):
    ended, longest = run_steps(kept)
    assert ended == dict(enumerate(kept))
    assert longest == 1 + max(map(len, kept))


def test_each_distinct_prefix_is_run_once():
    kept = list(combinations(range(1, 13), 6))
    prefixes = {k[:depth] for k in kept for depth in range(1, 7)}
    assert len(list(depth_first(kept))) == distinct_prefixes(kept) == len(prefixes) == 1715
    assert sum(map(len, kept)) == 5544


def test_order_of_the_tuples_does_not_change_the_work():
    kept = [(1, 4), (1, 2), (3, 4), (1, 3)]
    assert distinct_prefixes(kept) == distinct_prefixes(kept[::-1]) == 6


@pytest.mark.parametrize("dropped", [(1, 2), (1, 3), (2, 4), (3, 4)])
def test_repaired_proposals_are_scored_as_the_models_with_folded_maps(make, clip, pairs, maps, dropped):
    fine = make(maps=maps)
    found = fine.evaluate([dropped])[0]
    expected = fine.task.score(fold_maps(clip, maps, dropped).embeddings(pairs.captions))
    assert found.objective == pytest.approx(expected.values.mean().item(), abs=1e-5)
    assert found.objective != fine.without_maps().evaluate([dropped])[0].objective


def test_sharing_prefixes_changes_no_bit_of_repaired_proposals(make, maps):
    together = make(maps=maps).evaluate(ALL_PAIRS)
    alone = [make(maps=maps).evaluate([proposal])[0] for proposal in ALL_PAIRS]
    assert [e.objective for e in together] == [e.objective for e in alone]


def test_states_kept_from_call_to_call_change_no_bit_of_repaired_proposals(make, maps):
    fine = make(maps=maps)
    one_by_one = [fine.evaluate([proposal])[0].objective for proposal in ALL_PAIRS]
    assert one_by_one == make(maps=maps).objectives(ALL_PAIRS)
    assert fine.layer_calls == distinct_prefixes(kept_layers(proposal, 4) for proposal in ALL_PAIRS)


def test_the_full_model_needs_no_repair(make, maps):
    assert make(maps=maps).full_model().objective == make().full_model().objective
