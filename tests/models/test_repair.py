"""The repair is exact where dropped layers are linear, folds into what is there, and is kept only where it helps."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from data import load_pairs
from measures.ridge import RidgeSums
from models import judging, repair as module
from models.encoders import Batch, Encoder, state_hash
from models.families import load_encoder
from models.layer_stack import LayerStack
from models.repair import Cut, Repairer, Weigh, draw_captions, repair, repaired
from models.segment_maps import SegmentMaps
from search_strategy.fine import FineSearch
from search_strategy.proposals import kept_layers
from tasks.distance import Distance

WIDTH, WORDS = 8, 30
CAPTIONS = [" ".join(map(str, np.random.default_rng(i).integers(0, WORDS, 2 + i % 7))) for i in range(400)]


class Block(nn.Module):
    """x + fc2(relu(fc1(x))), linear in x: fc1 holds each feature twice, once with either sign."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        half, change = torch.randn(WIDTH, WIDTH), torch.randn(WIDTH, WIDTH) / 4
        self.fc1.weight.data = torch.cat([half, -half])
        self.fc1.bias.data.zero_()
        self.fc2.weight.data = torch.cat([change, -change], 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(x).relu())


class LinearModel(PreTrainedModel):
    config_class, base_model_prefix, main_input_name = PreTrainedConfig, "model", "input_ids"

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.words, self.places = nn.Embedding(WORDS + 1, WIDTH), nn.Embedding(10, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(config.num_hidden_layers))
        self.projection = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class LinearEncoder(Encoder):
    """Captions of numbers, padded at the end with WORDS, and read as the mean over the real positions."""

    name, tower, width = "linear", "text", WIDTH

    def __init__(self, model: LinearModel):
        self.model, self.stack = model, LayerStack(model)

    def prepare(self, samples: Sequence[str]) -> list[list[int]]:
        return [[int(word) for word in sample.split()] for sample in samples]

    def batch(self, prepared: Sequence[list[int]], rows: Iterable[int], length: int | None = None) -> Batch:
        sequences = [torch.tensor(prepared[row]) for row in rows]
        ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=WORDS)
        return Batch(np.asarray(rows), {"input_ids": ids}, ids != WORDS)

    def features(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self.pool(hidden, batch, "mean")

    @property
    def projection(self) -> nn.Linear:
        return self.model.projection

    def drop(self, dropped_layers: Iterable[int], name: str = "") -> "LinearEncoder":
        return LinearEncoder(self.stack.drop(dropped_layers))


@pytest.fixture
def linear() -> LinearEncoder:
    torch.manual_seed(0)
    return LinearEncoder(LinearModel(PreTrainedConfig(num_hidden_layers=5)).eval())


def weights(encoder: Encoder) -> str:
    return state_hash(encoder.model)


@pytest.mark.parametrize("dropped", [(2,), (1,), (3, 4), (5,), (1, 2, 4), (2, 3, 4, 5)])
def test_layers_that_are_linear_are_replaced_exactly(linear: LinearEncoder, dropped: tuple[int, ...]) -> None:
    full, left_out = linear.embeddings(CAPTIONS), linear.drop(dropped).embeddings(CAPTIONS)
    found = repaired(linear, dropped, CAPTIONS, ridge=1e-10).embeddings(CAPTIONS)
    torch.testing.assert_close(found, full, atol=5e-5, rtol=0)
    assert (left_out - full).abs().max() > 0.05


def test_a_repaired_checkpoint_is_an_ordinary_one(clip: Encoder, captions: list[str], tmp_path) -> None:
    fixed = repaired(clip, (2, 4), captions)
    fixed.save(tmp_path)
    torch.testing.assert_close(
        load_encoder(str(tmp_path)).embeddings(captions), fixed.embeddings(captions), atol=0, rtol=0
    )


def test_repair_of_nothing_is_the_identity(clip: Encoder, captions: list[str]) -> None:
    same, report = repair(clip, (), captions)
    assert weights(same) == weights(clip)
    assert report is None


def test_the_original_is_unchanged(clip: Encoder, captions: list[str]) -> None:
    before = weights(clip)
    fixed, report = repair(clip, (1, 3), captions)
    assert weights(clip) == before
    assert report.after < report.before
    assert weights(fixed) != weights(clip.drop((1, 3)))


def test_padding_never_counts(linear: LinearEncoder) -> None:
    """Batches of one have no padding."""
    padded, alone = repair(linear, (2, 3), CAPTIONS[:60])[0], repair(linear, (2, 3), CAPTIONS[:60], batch_size=1)[0]
    for (name, found), expected in zip(padded.model.named_parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=name)
    linear.model.words.weight.data[WORDS] = 100.0  # what stands at the padding
    other = repaired(linear, (2, 3), CAPTIONS[:60])
    torch.testing.assert_close(other.embeddings(CAPTIONS), padded.embeddings(CAPTIONS), atol=1e-5, rtol=0)


def test_states_that_are_not_kept_are_made_again(clip: Encoder, captions: list[str], monkeypatch) -> None:
    expected = repaired(clip, (2, 4), captions).embeddings(captions)
    monkeypatch.setattr(module, "STATE_BYTES", 0)
    found = repaired(clip, (2, 4), captions).embeddings(captions)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dropped", [(1,), (2,), (1, 2, 3), (2, 4)])
def test_repair_never_hurts_what_it_is_judged_by(clip: Encoder, captions: list[str], dropped: tuple[int, ...]) -> None:
    _, report = repair(clip, dropped, captions)
    assert report.after <= report.before
    assert all(cut.after <= cut.before for cut in report.cuts)


def test_the_last_cut_is_judged_by_what_the_readout_makes_of_it(clip: Encoder, captions: list[str]) -> None:
    _, report = repair(clip, (3, 4), captions)
    last, projection = report.cuts
    assert projection.step == 1
    assert last.after == pytest.approx(projection.after, rel=1e-4)
    assert projection.after < projection.before


@pytest.mark.parametrize("calls", [1, 8, 100])
def test_a_deep_model_is_judged_some_layers_on(clip: Encoder, captions: list[str], calls: int, monkeypatch) -> None:
    monkeypatch.setattr(judging, "JUDGED_CALLS", calls)  # of 4 layers: 1, 2, or all of those that follow
    judge, counted = judging.Judge(clip, captions[:9], 5), []
    states = [clip.stack.hidden_states(**batch.inputs)[1] for batch in judge.batches]
    assert judge.loss_after(1, states) == pytest.approx(0, abs=1e-6)
    run = type(clip.stack).run
    monkeypatch.setattr(
        type(clip.stack), "run", lambda own, *args: counted.append(len(list(args[2]))) or run(own, *args)
    )
    assert judge.loss_after(1, [1.5 * state for state in states]) > 1e-6
    assert counted == {1: [1, 1], 8: [2, 2], 100: [3, 3]}[calls]


def test_a_harmful_map_is_left_out(clip: Encoder, captions: list[str], monkeypatch) -> None:
    solve = RidgeSums.solve
    monkeypatch.setattr(RidgeSums, "solve", lambda sums, ridge: -5 * solve(sums, ridge))
    fixed, report = repair(clip, (2, 4), captions)
    assert weights(fixed) == weights(clip.drop((2, 4)))
    assert [(cut.segment, cut.step) for cut in report.cuts] == [((2, 2), 0.0), ((4, 4), 0.0), (None, 0.0)]
    assert report.after == report.before


def test_a_map_that_goes_too_far_is_damped(linear: LinearEncoder, monkeypatch) -> None:
    solve = RidgeSums.solve
    monkeypatch.setattr(RidgeSums, "solve", lambda sums, ridge: 2 * solve(sums, ridge))
    _, report = repair(linear, (2,), CAPTIONS, ridge=1e-10)
    assert report.cuts[0].step == 0.5


def test_repairs_that_do_not_help_together_are_all_left_out(clip: Encoder, captions: list[str], monkeypatch) -> None:
    values = iter([9.0, 0.1, *[0.3, 0.2, 0.2, 0.2, 0.2] * 2, 0.5])
    monkeypatch.setattr(judging, "loss_of_meaning", lambda *_: next(values))
    fixed, report = repair(clip, (2,), captions)
    assert weights(fixed) == weights(clip.drop((2,)))
    assert {cut.step for cut in report.cuts} == {0.0}


def test_a_repair_that_says_no_more_than_nothing_is_left_out() -> None:
    """Layer 1 of the bundled model mixes tokens: embeddings cannot, and maps fitted on its states do not help."""
    encoder = load_encoder(str(Path(__file__).parents[2] / "exp" / "iconclip"))
    captions = draw_captions(load_pairs("scenes", "test", images=False).captions, 0, 150)
    _, report = repair(encoder, (1, 2), captions)
    assert report.cuts[0].step == 0
    assert report.cuts[0].after == report.cuts[0].before
    maps = SegmentMaps(encoder, captions)
    task = Distance(encoder.embeddings(captions[:50]), 50)
    fine = FineSearch(encoder, captions[:50], task, maps=maps)
    for proposal, is_repaired in (((1, 2), False), ((1, 2, 5), False), ((5,), True)):
        mended, plain = (search.objectives([proposal])[0] for search in (fine, fine.without_maps()))
        assert maps.help(kept_layers(proposal, encoder.num_layers)) == is_repaired
        assert mended < plain if is_repaired else mended == plain


@pytest.mark.parametrize("number", [0, 1, 19])
def test_too_few_captions_repair_nothing(clip: Encoder, captions: list[str], number: int, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        fixed, report = repair(clip, (2,), captions[:number])
    assert weights(fixed) == weights(clip.drop((2,)))
    assert report is None
    assert f"{number} different captions are too few to repair with: pass at least 20" in caplog.text


def test_fewer_tokens_than_features_are_repaired_with_a_warning(clip: Encoder, captions: list[str], caplog) -> None:
    with caplog.at_level(logging.WARNING):
        fixed, report = repair(clip, (2,), captions[:20])
    assert torch.isfinite(fixed.embeddings(captions)).all()
    assert f"repair: {report.tokens} tokens for maps of 64 features; expected 640 or more" in caplog.text


def test_repeated_captions_count_once(clip: Encoder, captions: list[str]) -> None:
    assert weights(repaired(clip, (2,), captions * 2)) == weights(repaired(clip, (2,), captions))


def test_weights_of_tokens_change_the_maps(clip: Encoder, captions: list[str]) -> None:
    @torch.no_grad()
    def repair_weighed(weigh: Weigh) -> Encoder:
        pruned = clip.drop((2,))
        Repairer(clip, pruned, (2,), list(dict.fromkeys(captions)), weigh=weigh).run()
        return pruned

    same = repair_weighed(lambda batch: torch.full(batch.mask.shape, 3.0))
    plain = repaired(clip, (2,), captions)
    torch.testing.assert_close(same.embeddings(captions), plain.embeddings(captions), atol=1e-5, rtol=0)
    other = repair_weighed(lambda batch: torch.arange(batch.mask.shape[1]).expand(batch.mask.shape))
    assert (other.embeddings(captions) - plain.embeddings(captions)).abs().max() > 1e-4


def test_what_takes_long_has_a_bar_where_one_is_asked_for(clip: Encoder, captions: list[str], capsys) -> None:
    repair(clip, (2, 4), captions)
    SegmentMaps(clip, captions)
    assert capsys.readouterr().err == ""
    repair(clip, (2, 4), captions, progress=True)
    SegmentMaps(clip, captions, progress=True)
    shown = capsys.readouterr().err
    assert all(f"{what}:" in shown for what in ("repair up to layer 2", "repair up to layer 4", "maps"))


@pytest.mark.parametrize("has_bias", [False, True])
def test_sums_in_parts_give_the_least_squares_of_all(has_bias: bool) -> None:
    generator = np.random.default_rng(0)
    features, targets, counts = generator.normal(size=(50, 4)), generator.normal(size=(50, 3)), generator.random(50)
    sums = RidgeSums(has_bias)
    for rows in np.split(np.arange(50), [20, 21]):
        sums.add(*(torch.from_numpy(array[rows]) for array in (features, targets, counts)))
    full = np.c_[features, np.ones(50)] if has_bias else features
    penalty = 0.1 * np.mean((features**2).sum(1) * counts)
    root = np.sqrt(counts)[:, None]
    stacked = np.r_[full * root, np.sqrt(penalty) * np.eye(4, full.shape[1])]
    expected = np.linalg.lstsq(stacked, np.r_[targets * root, np.zeros((4, 3))], rcond=None)[0]
    np.testing.assert_allclose(sums.solve(0.1).numpy(), expected, atol=1e-12)


def test_meaning_is_lost_by_coming_together_though_the_distance_shrinks() -> None:
    generator = torch.Generator().manual_seed(0)
    meant = torch.nn.functional.normalize(torch.randn(40, 16, generator=generator), dim=-1)
    noisy = torch.nn.functional.normalize(meant + 0.5 * torch.randn(40, 16, generator=generator), dim=-1)
    together = torch.nn.functional.normalize(0.2 * noisy + meant.mean(0), dim=-1)
    assert judging.loss_of_meaning(meant, meant) == pytest.approx(0, abs=1e-12)
    assert judging.loss_of_meaning(together, meant) > judging.loss_of_meaning(noisy, meant) > 0


@pytest.mark.parametrize(
    ("cut", "text"),
    [
        (Cut((3, 5), 1.0, 0.2, 0.1), "layers 3 to 5: repaired, 0.2000 -> 0.1000"),
        (Cut((3, 3), 0.5, 0.2, 0.1), "layers 3 to 3: repaired in part, 0.5 of the way, 0.2000 -> 0.1000"),
        (Cut(None, 0.0, None, None, "why"), "projection: left out (why)"),
    ],
)
def test_a_cut_reads_as_a_line_of_the_log(cut: Cut, text: str) -> None:
    assert str(cut) == text
