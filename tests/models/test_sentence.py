"""Sentence encoders against transformers' own forward pass, and against sentence-transformers where it is installed."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from family_models import CHAIN, LENGTH, MODELS, write_json, write_modules, write_sentence_encoder
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import clip_finetune_train
from data import load_pairs
from models import check_num_layers, load_encoder
from models.sentence_form import identity_map, is_identity
from training.towers import TrainedTowers

TEXTS = ["red square", "", "small blue triangle outline on the left", "a word that is unknown", "red " * 40]


@pytest.fixture(scope="module")
def pairs(tiny_pairs):
    return load_pairs(str(tiny_pairs), "test", images=False)


@pytest.fixture(scope="module")
def words(pairs) -> set[str]:
    return {word for caption in pairs.captions for word in caption.split()}


@pytest.fixture
def folder(tmp_path, words) -> Path:
    return write_sentence_encoder(tmp_path / "sentence", words)


def plain_embeddings(folder: Path, texts: list[str], pooling: str = "mean") -> torch.Tensor:
    """The model's own forward pass, every text on its own, pooled over its tokens."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt")
            hidden = model(input_ids=inputs["input_ids"]).last_hidden_state[0]
            rows.append({"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[pooling])
    return F.normalize(torch.stack(rows), dim=-1)


# ---- embeddings


@pytest.mark.parametrize("kind", MODELS)
def test_embeddings_are_the_models_own_whatever_the_batch(tmp_path, words, kind):
    folder = write_sentence_encoder(tmp_path, words, kind)
    encoder = load_encoder(str(folder))
    assert (encoder.num_layers, encoder.width, encoder.dim, encoder.max_length) == (4, 16, 16, LENGTH)
    expected = plain_embeddings(folder, TEXTS)
    for batch_size in (1, 2, 5):
        assert torch.allclose(encoder.embeddings(TEXTS, batch_size=batch_size), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("new_form", [False, True])
def test_texts_are_pooled_as_the_folder_says(folder, pooling, new_form):
    key = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}.get(pooling, "pooling_mode_lasttoken")
    settings = {"pooling_mode": pooling, "embedding_dimension": 16} if new_form else {key: True}
    write_json(folder / "1_Pooling/config.json", settings)
    encoder = load_encoder(str(folder))
    assert torch.allclose(encoder.embeddings(TEXTS), plain_embeddings(folder, TEXTS, pooling), atol=1e-6)


def test_a_transformer_without_the_form_is_pooled_by_its_mean(folder, tmp_path):
    for path in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        (folder / path).unlink()
    encoder = load_encoder(str(folder))
    assert torch.allclose(encoder.embeddings(TEXTS), plain_embeddings(folder, TEXTS), atol=1e-6)
    encoder.save(tmp_path / "saved")
    assert torch.equal(load_encoder(str(tmp_path / "saved")).embeddings(TEXTS), encoder.embeddings(TEXTS))


def test_the_deployed_forward_pass_gives_the_embeddings(folder):
    encoder = load_encoder(str(folder))
    batch = next(encoder.batches(TEXTS, 5))
    with torch.no_grad():
        deployed = F.normalize(encoder.deployed(batch.inputs), dim=-1)
    assert torch.allclose(deployed, encoder.embeddings(TEXTS)[batch.rows], atol=1e-6)


def test_length_case_and_prompt_of_the_folder_count(folder):
    plain = load_encoder(str(folder)).embeddings(["query: red square"])
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 4, "do_lower_case": True})
    write_json(
        folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    )
    encoder = load_encoder(str(folder))
    assert encoder.max_length == 4
    assert encoder.prepare(["red"]) == encoder.prepare(["RED"])
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 100})
    assert torch.equal(load_encoder(str(folder)).embeddings(["red square"]), plain)


# ---- pruned, saved and loaded


def test_keeping_some_layers_is_the_pruned_model_saved_and_loaded(folder, tmp_path, pairs):
    encoder = load_encoder(str(folder))
    skipped = encoder.embeddings(pairs.captions, kept_layers=[1, 4])
    pruned = encoder.drop([2, 3])
    pruned.save(tmp_path / "pruned")
    loaded = load_encoder(str(tmp_path / "pruned"))
    assert loaded.num_layers == 2
    for smaller in (pruned, loaded):
        assert torch.equal(smaller.embeddings(pairs.captions), skipped)
    assert not torch.allclose(skipped, encoder.embeddings(pairs.captions), atol=1e-3)


def test_the_form_of_the_folder_stays(folder, tmp_path):
    load_encoder(str(folder)).drop([2]).save(tmp_path / "pruned")
    for path in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert json.loads((tmp_path / "pruned" / path).read_text()) == json.loads((folder / path).read_text())


def test_a_changed_projection_is_saved_as_a_dense_module_and_read_again(folder, tmp_path):
    encoder = load_encoder(str(folder)).drop([2])
    before = encoder.embeddings(TEXTS)
    with torch.no_grad():
        encoder.projection.weight += 0.3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    expected = encoder.embeddings(TEXTS)
    assert not torch.allclose(before, expected, atol=1e-2)
    for name in ("once", "twice"):
        encoder.save(tmp_path / name)
        encoder = load_encoder(str(tmp_path / name))
        assert torch.equal(encoder.embeddings(TEXTS), expected)
    modules = json.loads((tmp_path / "twice/modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert [(module["idx"], module["name"]) for module in modules] == [(i, str(i)) for i in range(4)]
    assert json.loads((tmp_path / "twice/2_Dense/config.json").read_text())["activation_function"].endswith("Identity")
    # the transformer alone has no part of it
    assert not [name for name in load_file(tmp_path / "twice/model.safetensors") if "projection" in name]


def test_a_dense_module_may_change_the_width_and_come_as_a_pickle(folder):
    write_modules(folder, [*CHAIN[:2], ("Dense", "2_Dense")])
    identity = "torch.nn.modules.linear.Identity"
    write_json(folder / "2_Dense/config.json", {"in_features": 16, "out_features": 5, "activation_function": identity})
    state = {"linear.weight": torch.randn(5, 16), "linear.bias": torch.randn(5)}
    torch.save(state, folder / "2_Dense/pytorch_model.bin")
    encoder = load_encoder(str(folder))
    batch = next(encoder.batches(TEXTS, 5))
    hidden = encoder.model(**batch.inputs).last_hidden_state
    expected = F.normalize(F.linear(encoder.pool(hidden, batch, "mean"), *state.values()), dim=-1)
    assert encoder.dim == 5
    assert torch.allclose(encoder.embeddings(TEXTS)[batch.rows], expected, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_fresh_weights_of_a_dense_module_have_its_shape(folder, bias):
    write_modules(folder, [*CHAIN[:2], ("Dense", "2_Dense")])
    write_json(folder / "2_Dense/config.json", {"activation_function": "torch.nn.modules.linear.Identity"})
    state = {"linear.weight": torch.randn(5, 16)} | ({"linear.bias": torch.randn(5)} if bias else {})
    torch.save(state, folder / "2_Dense/pytorch_model.bin")
    fresh = load_encoder(str(folder), weights=False)
    assert fresh.dim == 5
    assert (fresh.projection.bias is not None) == bias
    assert not any(torch.isclose(fresh.projection.weight, state["linear.weight"]).flatten().tolist())


def test_only_the_identity_is_one():
    assert is_identity(identity_map(3))
    assert not is_identity(torch.nn.Linear(3, 3))
    assert not is_identity(torch.nn.Linear(3, 2, bias=False))


def test_fresh_weights_are_not_the_saved_ones(folder):
    fresh = load_encoder(str(folder), weights=False)
    assert fresh.num_layers == 4
    assert not torch.allclose(fresh.embeddings(TEXTS), load_encoder(str(folder)).embeddings(TEXTS), atol=1e-2)


def test_the_first_layer_of_modernbert_is_not_counted(words, tmp_path):
    folder = write_sentence_encoder(tmp_path / "full", words, "modernbert")
    with pytest.raises(ValueError, match="has 4 layers behind its first, which stays"):
        check_num_layers(5, str(folder))
    pruned = load_encoder(str(folder)).drop([1, 2])
    pruned.save(tmp_path / "pruned")
    check_num_layers(2, str(tmp_path / "pruned"))


@pytest.mark.parametrize("kind", ["mpnet", "modernbert"])
def test_sentence_transformers_gives_the_same_embeddings(words, tmp_path, kind):
    package = pytest.importorskip("sentence_transformers")
    folder = write_sentence_encoder(tmp_path / "full", words, kind)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": LENGTH})
    encoder = load_encoder(str(folder)).drop([2])
    with torch.no_grad():
        encoder.projection.weight[0] += 1
    encoder.save(tmp_path / "pruned")
    found = package.SentenceTransformer(str(tmp_path / "pruned"), device="cpu").encode(TEXTS)
    assert torch.allclose(torch.from_numpy(found), encoder.embeddings(TEXTS), atol=1e-6)


# ---- pairs of texts


def test_targets_are_embedded_by_the_full_model_and_cached(folder, tmp_path, pairs):
    rows = [{"query": caption, "text": f"{caption} outline", "split": "test"} for caption in pairs.captions]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = load_pairs(str(tmp_path / "pairs.jsonl"), "all", caption_column="query", target_column="text")
    encoder = load_encoder(str(folder))
    same, targets = encoder.embed_pairs(texts, tmp_path / "cache")
    assert encoder.samples(same) == pairs.captions
    assert torch.equal(targets, encoder.embeddings(texts.targets))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    encoder.embeddings = None  # a second computation would fail
    assert torch.equal(encoder.embed_pairs(texts, tmp_path / "cache")[1], targets)


def test_images_are_no_targets(folder, tiny_pairs):
    with pytest.raises(ValueError, match="embeds texts alone: name the column of the other text with --target_column"):
        load_encoder(str(folder)).embed_pairs(load_pairs(str(tiny_pairs), "test"))


# ---- refusals


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([("Transformer", ""), ("Normalize", "")], "expected Transformer, Pooling, .*; found Transformer, Normalize"),
        ([*CHAIN, ("Dense", "3_Dense")], "found Transformer, Pooling, Normalize, Dense"),
        ([("Transformer", ""), ("CNN", "1"), ("Pooling", "1_Pooling")], "found Transformer, CNN, Pooling"),
        ([("Transformer", "0_T"), ("Pooling", "1_Pooling")], "expected the transformer in the folder itself"),
    ],
)
def test_other_chains_of_modules_are_refused_by_name(folder, chain, message):
    write_modules(folder, chain)
    with pytest.raises(ValueError, match=message):
        load_encoder(str(folder))


@pytest.mark.parametrize("content", [{}, [], [3], [{"type": "x"}], "text"])
def test_a_file_of_modules_of_a_wrong_kind_is_one_line(folder, content):
    write_json(folder / "modules.json", content)
    with pytest.raises(ValueError, match="modules.json: (not a list of modules|expected Transformer)"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, "none"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls, mean"),
        ({"pooling_mode": ["mean", "max"]}, "mean, max"),
    ],
)
def test_other_poolings_are_refused_by_name(folder, settings, found):
    write_json(folder / "1_Pooling/config.json", settings)
    with pytest.raises(ValueError, match=f"expected one pooling of cls, mean, lasttoken; found {found}"):
        load_encoder(str(folder))


def test_a_dense_module_with_an_activation_is_refused(folder):
    write_modules(folder, [*CHAIN[:2], ("Dense", "2_Dense")])
    write_json(folder / "2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(ValueError, match=r"expected a Dense module without activation \(Identity\), found Tanh"):
        load_encoder(str(folder))


def test_a_dense_module_without_weights_or_with_damaged_ones_is_named(folder):
    write_modules(folder, [*CHAIN[:2], ("Dense", "2_Dense")])
    write_json(folder / "2_Dense/config.json", {"activation_function": "torch.nn.modules.linear.Identity"})
    with pytest.raises(FileNotFoundError, match="2_Dense: no weights; looked for model.safetensors"):
        load_encoder(str(folder))
    (folder / "2_Dense/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="2_Dense/model.safetensors: the weights cannot be read"):
        load_encoder(str(folder))


def test_a_damaged_file_of_the_form_is_named(folder):
    (folder / "sentence_bert_config.json").write_text("{")
    with pytest.raises(ValueError, match="sentence/sentence_bert_config.json: damaged"):
        load_encoder(str(folder))


def test_the_form_of_old_versions_is_refused_with_what_to_do(folder):
    (folder / "0_Transformer").mkdir()
    (folder / "config.json").rename(folder / "0_Transformer/config.json")
    with pytest.raises(FileNotFoundError, match=r"write it anew with SentenceTransformer\(folder\).save\(new_folder\)"):
        load_encoder(str(folder))


@pytest.mark.parametrize("kind", MODELS)
def test_all_that_is_trained_has_a_gradient(tmp_path, words, kind):
    """Else several processes wait for each other: the pooler of the language model is read by nothing."""
    encoder = load_encoder(str(write_sentence_encoder(tmp_path / kind, words, kind=kind)))
    towers, batch = TrainedTowers(encoder), next(encoder.batches(sorted(words)[:4]))
    towers({"inputs": batch.inputs, "mask": batch.mask}, [True] * 4).text.square().sum(0)[0].backward()
    assert [name for name, p in towers.named_parameters() if p.requires_grad and p.grad is None] == []


def test_it_is_fine_tuned_on_captions_alone_and_written_in_its_form(folder, tiny_pairs, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    flags = (
        "--output_dir out --num_layers 4 --num_clip_layers 2 --clip_layers 2-3 --images false --max_epoch 3 --lr 1e-2"
    )
    places = f"--model {folder} --dataset {tiny_pairs} --exp_dir {tmp_path / 'exp'} --device cpu --batch_size 20"
    clip_finetune_train.main([*flags.split(), *places.split()])
    out = tmp_path / "exp" / "out"
    test = json.loads((out / "report.json").read_text())["test"]
    assert test["fine-tuned"]["distance"] < 0.8 * test["pruned"]["distance"]
    assert load_encoder(str(out)).num_layers == 2
    assert (out / "modules.json").exists() and (out / "1_Pooling/config.json").exists()
