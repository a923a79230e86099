"""SigLIP, MetaCLIP 2 and image towers against the models' own forward pass; pruned, saved, loaded."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from family_models import TOWER_LENGTH, write_clip, write_siglip
from PIL import Image
from transformers import SiglipModel

from commands.search import draw_repair_captions
from common import Record
from common.analysis import draw_samples, measure_captions
from common.matrix_files import MatrixSettings
from data import DataOptions, load_pairs
from models import load_encoder
from models.repair import repaired
from tasks.image_retrieval import ImageRetrieval, retrieval_task
from tasks.retrieval import Retrieval
from training.batches import TrainingData, load_split
from training.loop import Trainer
from training.losses import Objective
from training.settings import Settings

TEXTS = ["red square", "small blue triangle", "", "large green hexagon outline at the far right of it all and more"]


@pytest.fixture(scope="module")
def words(pairs) -> set[str]:
    return {word for caption in pairs.captions for word in caption.split()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, words, tiny_clip) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("towers")
    return {
        "clip": tiny_clip,
        "metaclip_2": write_clip(root / "metaclip_2", words, meta=True),
        "siglip": write_siglip(root / "siglip", words),
        "siglip with a padding token": write_siglip(root / "padded", words, pad=4),
    }


KINDS = ("clip", "metaclip_2", "siglip", "siglip with a padding token")
TOWERS = [(kind, tower) for kind in KINDS for tower in ("text", "vision")]
every_tower = pytest.mark.parametrize(("kind", "tower"), TOWERS)


def own_text_features(encoder, texts: list[str]) -> torch.Tensor:
    """The model's own forward pass, padded to its length by its processor; no mask for SigLIP, as it was trained."""
    length = min(encoder.max_length, 32)
    inputs = encoder.processor.tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    mask = {} if encoder.model.config.model_type == "siglip" else {"attention_mask": inputs["attention_mask"]}
    with torch.no_grad():
        features = encoder.model.get_text_features(input_ids=inputs["input_ids"], **mask).pooler_output
    return F.normalize(features, dim=-1)


def own_image_features(model, processor, images: list) -> torch.Tensor:
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


# ---- embeddings


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("batch_size", [1, 3, 60])
def test_texts_embed_as_in_the_models_own_forward_pass(folders, pairs, kind, batch_size):
    encoder = load_encoder(str(folders[kind]))
    for texts in (pairs.captions, TEXTS):
        expected = own_text_features(encoder, texts)
        assert torch.allclose(encoder.embeddings(texts, batch_size=batch_size), expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [7, 60])
def test_images_embed_as_in_the_models_own_forward_pass(folders, pairs, kind, batch_size):
    encoder = load_encoder(str(folders[kind]), "vision")
    images = [pairs.images[i] for i in range(60)]
    expected = own_image_features(encoder.model, encoder.processor, images)
    assert torch.allclose(encoder.embeddings(pairs.images, batch_size=batch_size), expected, atol=1e-6)
    as_targets = load_encoder(str(folders[kind])).image_embeddings(pairs.images)
    assert torch.allclose(as_targets, expected, atol=1e-6)


@every_tower
def test_the_deployed_forward_pass_gives_the_embeddings(folders, pairs, kind, tower):
    encoder = load_encoder(str(folders[kind]), tower)
    samples = encoder.samples(pairs)
    batch = next(encoder.batches(samples, 9))
    with torch.no_grad():
        deployed = F.normalize(encoder.deployed(batch.inputs), dim=-1)
    assert torch.allclose(deployed, encoder.embeddings(samples)[batch.rows], atol=1e-6)
    assert batch.mask.shape[1] <= encoder.max_length


def test_metaclip_2_reads_the_first_end_token_and_not_the_largest(folders):
    encoder = load_encoder(str(folders["metaclip_2"]))
    (ids,) = encoder.prepare(["red square"])
    assert (ids[-1], len(ids)) == (2, 3)
    assert max(ids) > 2


def test_the_mean_of_a_siglip_text_is_over_its_tokens(folders):
    for kind, num_tokens in (("siglip", 3), ("siglip with a padding token", 3)):
        encoder = load_encoder(str(folders[kind]))
        batch = encoder.batch(encoder.prepare(["red square"]), [0])
        assert batch.inputs["input_ids"].shape == (1, TOWER_LENGTH)
        assert batch.lengths.tolist() == [TOWER_LENGTH]
        hidden = torch.randn(1, TOWER_LENGTH, 16)
        assert torch.allclose(encoder.pool(hidden, batch, "mean"), hidden[:, :num_tokens].mean(1), atol=1e-6)
        assert torch.equal(encoder.pool(hidden, batch, "eos"), hidden[:, -1])


# ---- pruned, saved and loaded


@every_tower
def test_keeping_some_layers_is_the_pruned_model_saved_and_loaded(folders, pairs, tmp_path, kind, tower):
    encoder = load_encoder(str(folders[kind]), tower)
    samples, layers = encoder.samples(pairs), encoder.num_layers
    dropped = [2, 3] if layers == 4 else [2]
    skipped = encoder.embeddings(samples, [layer for layer in range(1, layers + 1) if layer not in dropped])
    assert not torch.allclose(skipped, encoder.embeddings(samples), atol=1e-4)
    pruned = encoder.drop(dropped)
    pruned.save(tmp_path / "pruned")
    loaded = load_encoder(str(tmp_path / "pruned"), tower)
    for smaller in (pruned, loaded):
        assert smaller.num_layers == layers - len(dropped)
        assert torch.equal(smaller.embeddings(samples), skipped)
    config = json.loads((tmp_path / "pruned/config.json").read_text())
    assert config[f"{tower}_config"]["num_hidden_layers"] == layers - len(dropped)


@every_tower
def test_the_other_tower_stays(folders, pairs, kind, tower):
    encoder = load_encoder(str(folders[kind]), tower)
    pruned = encoder.drop([1])
    assert torch.equal(encoder.embed_pairs(pairs)[1], pruned.embed_pairs(pairs)[1])


@pytest.mark.parametrize(("kind", "tower"), [("siglip", "text"), ("siglip", "vision"), ("clip", "vision")])
def test_towers_can_be_repaired(folders, pairs, kind, tower):
    encoder = load_encoder(str(folders[kind]), tower)
    samples = encoder.samples(pairs)
    full = encoder.embeddings(samples)
    distances = [
        (1 - (smaller.embeddings(samples) * full).sum(-1)).mean()
        for smaller in (encoder.drop([2]), repaired(encoder, [2], samples))
    ]
    assert distances[1] <= distances[0]


# ---- pairs


@pytest.mark.parametrize("kind", KINDS)
def test_targets_of_images_are_the_embeddings_of_their_captions_cached(folders, pairs, tmp_path, kind):
    encoder = load_encoder(str(folders[kind]), "vision")
    same, targets = encoder.embed_pairs(pairs, tmp_path)
    assert torch.equal(targets, load_encoder(str(folders[kind])).embeddings(pairs.captions))
    encoder.text.embeddings = None  # a second computation would fail
    assert torch.equal(encoder.embed_pairs(same, tmp_path)[1], targets)


def test_images_that_cannot_be_decoded_are_left_out(folders, pairs):
    class OneBroken:
        def __len__(self):
            return 120

        def __getitem__(self, row):
            if row >= 120:
                raise IndexError
            return None if row == 5 else pairs.images[row % 60]

        def select(self, kept):
            return [self[i] for i in kept]

        def name(self, row):
            return f"picture {row}"

    broken = type(pairs)(pairs.captions * 2, np.arange(120), OneBroken(), "doubled", "test")
    with pytest.warns(UserWarning, match="skipped 1 of 120 images"):
        usable, targets = load_encoder(str(folders["clip"]), "vision").embed_pairs(broken)
    assert len(usable) == len(targets) == len(usable.images) == 119


def test_an_image_tower_without_images_is_an_error(folders, tiny_pairs):
    texts = load_pairs(str(tiny_pairs), "test", images=False)
    with pytest.raises(ValueError, match="the image tower of .* needs images, and only texts were read"):
        load_encoder(str(folders["clip"]), "vision").embed_pairs(texts)


@every_tower
def test_both_towers_of_a_model_score_the_same(folders, pairs, kind, tower):
    encoder = load_encoder(str(folders[kind]), tower)
    pairs, targets = encoder.embed_pairs(pairs)
    task = retrieval_task(encoder, targets, pairs.image_index, batch_size=25)
    assert type(task) is (ImageRetrieval if tower == "vision" else Retrieval)
    scores = task.score(encoder.embeddings(encoder.samples(pairs)))
    assert scores.values.mean().item() == pytest.approx(scores.figures["task_loss"])  # an image has one caption here
    text = load_encoder(str(folders[kind]))
    images = text.image_embeddings(pairs.images)
    expected = retrieval_task(text, images, pairs.image_index, batch_size=25).score(text.embeddings(pairs.captions))
    assert scores.figures == pytest.approx(expected.figures, abs=1e-5)


def test_siglip_is_scored_by_its_own_loss(folders, pairs):
    encoder = load_encoder(str(folders["siglip"]))
    pairs, targets = encoder.embed_pairs(pairs)
    found = retrieval_task(encoder, targets, pairs.image_index).score(encoder.embeddings(pairs.captions))
    inputs = encoder.processor.tokenizer(pairs.captions, padding="max_length", max_length=TOWER_LENGTH, truncation=True)
    pixels = encoder.preprocess([pairs.images[i] for i in range(60)])
    with torch.no_grad():
        loss = encoder.model(torch.tensor(inputs["input_ids"]), pixel_values=pixels, return_loss=True).loss
    assert found.figures["task_loss"] == pytest.approx(loss.item(), rel=1e-5)


# ---- broken images


@pytest.fixture(scope="module")
def with_a_broken_image(tmp_path_factory, tiny_pairs) -> str:
    """A train split of 180 images, and one that cannot be decoded; the first of those that a seed of 0 draws."""
    folder = tmp_path_factory.mktemp("broken")
    splits = ("train", "validation", "test")
    rows = [row for split in splits for row in pq.read_table(tiny_pairs / f"{split}.parquet").to_pylist()]
    first = int(np.random.default_rng(0).permutation(len(rows) + 1)[0])
    rows.insert(first, {"image": {"bytes": b"no image", "path": None}, "caption": "broken"})
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    for split in splits:
        part = rows if split == "train" else rows[:first][:40]
        datasets.Dataset.from_list(part, features=features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_broken_image_is_passed_over_by_analysis_and_repair(folders, with_a_broken_image, tmp_path, kind):
    encoder = load_encoder(str(folders[kind]), "vision")
    pairs = load_pairs(with_a_broken_image, "train")
    samples = encoder.samples(pairs)
    settings = MatrixSettings("dc", batch_size=10, iter_num=15, dataset="x")
    with pytest.warns(UserWarning, match=r"x: skipped 1 of 151 images \(cannot be decoded\)"):
        (drawn,) = draw_samples(encoder, samples, settings)
    assert len({picture.row for picture in drawn}) == 150
    with pytest.warns(UserWarning, match="skipped 1 of 151 images"):
        assert np.isfinite(measure_captions(encoder, samples, settings)).all()
    flags = {"dataset": with_a_broken_image, "seed": 0, "streaming": False, "tower": "vision"}
    args = argparse.Namespace(**dict.fromkeys(vars(DataOptions())) | flags)
    record = Record(args, "cpu")
    captions = draw_repair_captions(args, encoder, record)
    assert "skipped 1 of 181 images" in record.content()["warnings"][0]
    assert len(captions) == 180
    assert repaired(encoder, [2], captions[:40]).num_layers == encoder.num_layers - 1


def test_many_broken_images_are_an_error(folders):
    encoder = load_encoder(str(folders["clip"]), "vision")
    images = [None, *[Image.new("RGB", (32, 32))] * 9]
    with pytest.raises(ValueError, match="x: 1 of 10 images cannot be decoded; at most 1% may be skipped"):
        encoder.readable(images, None, "x")


# ---- refusals


def test_siglip_without_a_head_or_a_padding_token_is_refused(words, tmp_path):
    folder = write_siglip(tmp_path / "siglip", words)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    with pytest.raises(ValueError, match="the tokenizer has no padding token"):
        load_encoder(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = SiglipModel.from_pretrained(folder)
    model.config.vision_config.vision_use_head = False
    SiglipModel(model.config).save_pretrained(folder)
    assert load_encoder(str(folder)).num_layers == 4
    with pytest.raises(ValueError, match=r"no head \(vision_use_head false\)"):
        load_encoder(str(folder), "vision")


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_towers_are_trained_towards_the_other_side_that_stays(folders, tiny_pairs, tmp_path, kind, tower):
    AcceleratorState._reset_state(reset_partial_state=True)
    full = load_encoder(str(folders[kind]), tower)
    split = load_split(full, str(tiny_pairs), "train", options={}, teacher_text=True, cache_dir=tmp_path / "cache")
    settings = Settings(max_epoch=3, batch_size=20, lr=3e-3, weight_decay=0.1, warmup_steps=0, seed=0)
    encoder = full.drop([2])
    before = split.figures(encoder)
    trainer = Trainer(encoder, TrainingData(split, split, full), Objective("feature"), settings, tmp_path / "run")
    others = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    assert trainer.train()[-1]["task_loss"] < 0.98 * before["task_loss"]
    prefix = {"text": "vision_model", "vision": "text_model"}[tower]
    assert all(torch.equal(encoder.model.state_dict()[n], t) for n, t in others.items() if n.startswith(prefix))
    assert load_encoder(str(tmp_path / "run"), tower).num_layers == encoder.num_layers
    if tower == "vision":
        with pytest.raises(ValueError, match="--freeze_vision false: .* has no other tower that could be trained"):
            Trainer(
                encoder, TrainingData(split, split), Objective(), replace(settings, freeze_vision=False), tmp_path / "r"
            )
