"""The model card: what the hub reads of it, and nothing of this machine."""

import pytest
from huggingface_hub import ModelCard as HubCard

from models import Clip
from models.sentence import SentenceEncoder
from training.report import ModelCard, is_hub_name, without_folders

FIGURES = {"epoch": 2, "task_loss": 2.0, "text_to_image_recall_at_10": 0.75, "image_to_text_recall_at_10": 0.5}


def make_card(model: str, dataset: str = "icons", kind: type = Clip) -> ModelCard:
    command = f"python clip_finetune_train.py --model {model} --dataset={dataset} --exp_dir /home/me/exp"
    record = {"model": model, "output_dir": "/home/me/exp/half", "command": command, "flags": {"dataset": dataset}}
    record |= {"train": {"captions": 60}, "made_from": {"weights_sha256": "1f"}}
    return ModelCard(12, 6, (1, 2, 3, 4, 5, 6), "/home/me/exp/model/clip12to6.json", True, record, kind)


def test_the_hub_reads_the_card_of_a_model_made_from_one_that_it_has():
    data = HubCard(make_card("openai/clip-vit-base-patch32", "someone/pairs").text(FIGURES)).data
    assert (data.base_model, data.datasets, data.model_name) == (
        "openai/clip-vit-base-patch32",
        ["someone/pairs"],
        "half",
    )
    assert (data.library_name, data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    results = {(result.metric_name, result.dataset_split, result.metric_value) for result in data.eval_results}
    assert results == {("text to image R@10", "validation", 0.75), ("image to text R@10", "validation", 0.5)}


def test_test_figures_are_those_of_the_model_itself():
    text = make_card("a/b").text(
        FIGURES, {"full": FIGURES | {"text_to_image_recall_at_10": 0.9}, "fine-tuned": FIGURES}
    )
    assert {(r.dataset_split, r.metric_value) for r in HubCard(text).data.eval_results} == {
        ("test", 0.75),
        ("test", 0.5),
    }


def test_a_model_of_this_machine_is_no_base_model_and_its_folders_are_not_told(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
    text = make_card(str(tmp_path / "clip"), str(tmp_path / "pairs")).text(FIGURES)
    data = HubCard(text).data
    assert (data.base_model, data.datasets, data.license) == (None, None, "mit")
    assert "/home/me" not in text
    assert str(tmp_path) not in text
    assert "`clip` with 6 of its 12 text layers, without [[1, 6]] (counted from 1; from clip12to6.json)" in text


def test_a_card_without_a_licence_or_without_any_header_names_none(tmp_path):
    (tmp_path / "README.md").write_text("# A model\n")
    assert HubCard(make_card(str(tmp_path)).text(FIGURES)).data.license is None
    assert HubCard(make_card("hf-hub:a/b").text(FIGURES)).data.base_model == "a/b"


def test_a_sentence_encoder_is_loaded_by_its_own_library():
    text = make_card("a/b", kind=SentenceEncoder).text({"epoch": 1, "distance": 0.1})
    assert HubCard(text).data.library_name == "sentence-transformers"
    assert HubCard(text).data.eval_results is None
    assert "SentenceTransformer(folder)" in text


@pytest.mark.parametrize(
    ("name", "there"), [("a/b", True), ("a", True), ("/a/b", False), ("a/b/c", False), ("a b", False)]
)
def test_names_that_the_hub_can_have(name: str, there: bool):
    assert is_hub_name(name) == there


def test_folders_are_left_out_of_absolute_paths_alone():
    words = ["/a/b/c", "--model=/a/b", "--dataset=a/b", "a/b", "--lr", "/"]
    assert [without_folders(word) for word in words] == ["c", "--model=b", "--dataset=a/b", "a/b", "--lr", "/"]
