"""Fixtures for every test: small drawn pictures with captions, and a CLIP of four text layers that can read them."""

import gc
import os
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

# Before any import of a Hugging Face library: no look-ups on the hub, and no traces in the user's cache.
os.environ["HF_HUB_OFFLINE"] = "1"
_cache = tempfile.TemporaryDirectory(prefix="comflp_tests_")  # removed when the interpreter ends
os.environ["HF_DATASETS_CACHE"] = _cache.name
os.environ["OMP_NUM_THREADS"] = "1"  # also of the processes that tests start: they are small, and several run at once
os.environ["OMP_WAIT_POLICY"] = "passive"  # two threads on busy cores wait for each other without using them up

gc.disable()  # until all tests are imported: what makes a million objects, and throws none away, is searched in vain

import numpy as np
import pytest
from PIL import Image, ImageDraw

PAIRS_A_SPLIT = 60
SIZES = {"": 10, "small": 5, "large": 14}  # half of the height, in pixels
COLOURS = ("red", "green", "blue", "orange", "purple", "black")
SHAPES = {"square": 4, "triangle": 3, "hexagon": 6}  # corners
PLACES = {"": 16, "on the left": 8, "at the far right": 24}  # middle, in pixels
STYLES = ("", "outline")


def draw(size: str, colour: str, shape: str, style: str, place: str) -> Image.Image:
    """A 32x32 picture of what the caption says."""
    image = Image.new("RGB", (32, 32), "white")
    fill = None if style == "outline" else colour
    circle = (PLACES[place], 16, SIZES[size])
    ImageDraw.Draw(image).regular_polygon(circle, SHAPES[shape], fill=fill, outline=colour)
    return image


def draw_pairs() -> list[dict]:
    """All pairs, in a seeded order."""
    words = list(product(SIZES, COLOURS, SHAPES, STYLES, PLACES))
    order = np.random.default_rng(0).permutation(len(words))
    return [{"image": draw(*words[i]), "caption": " ".join(filter(None, words[i]))} for i in order]


# modules with a test or a fixture of several seconds
LONG = {"test_accelerate.py", "test_build_icons.py", "test_processes.py", "test_readme.py", "test_reproducible.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: at the end the processes share out what is left, and then it should be short."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread a process, whatever a library has set: threads that wait for each other cost most of the time."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def pictures_not_drawn() -> Iterator[None]:
    """Pictures are drawn only where a test looks at them: `pictures_drawn`."""
    from matplotlib.figure import Figure
    from pictures import save_noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_noise)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_captions_timed() -> Iterator[None]:
    """How fast a model is, is measured by few captions: what comes out is looked at nowhere."""
    from commands import evaluate
    from training import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "TIMED_CAPTIONS", {1: 2, 64: 4})
        patch.setattr(report, "TIMED_CAPTIONS", 4)
        yield


@pytest.fixture(scope="module")
def pictures_drawn() -> Iterator[None]:
    """As users see them, for the tests of this module."""
    from matplotlib.figure import Figure
    from pictures import DRAW

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", DRAW)
        yield


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, validation and test.parquet of 60 pairs each; all captions differ."""
    from datasets import Dataset, Features, Image as ImageFeature, Value

    folder = tmp_path_factory.mktemp("tiny_pairs")
    features = Features({"image": ImageFeature(), "caption": Value("string")})
    rows = draw_pairs()
    for number, split in enumerate(("train", "validation", "test")):
        part = rows[number * PAIRS_A_SPLIT : (number + 1) * PAIRS_A_SPLIT]
        Dataset.from_list(part, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tiny_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained CLIP: 4 text layers, 2 image layers, width 16, tokenizer and image processor."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from tools import build_clip

    folder = tmp_path_factory.mktemp("tiny_clip")
    sizes = {"width": 16, "heads": 2, "text_layers": 4, "vision_layers": 2, "patch_size": 16, "num_merges": 40}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    build_clip.main(["--output_dir", str(folder), "--dataset", str(tiny_pairs), *flags])
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig.from_pretrained(folder))
    with torch.no_grad():
        for name, parameter in model.text_model.encoder.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2:
                parameter *= 3  # fresh layers hardly change their input; these do
    model.save_pretrained(folder)
    return folder


# --- the same read, once a module: tests leave them as they are


@pytest.fixture(scope="module")
def clip(tiny_clip: Path):
    """`tiny_clip` as an encoder."""
    from models import load_clip

    return load_clip(str(tiny_clip))


@pytest.fixture(scope="module")
def pairs(tiny_pairs: Path):
    """The pairs of the test split."""
    from data import load_pairs

    return load_pairs(str(tiny_pairs), "test")


@pytest.fixture(scope="module")
def captions(tiny_pairs: Path) -> list[str]:
    """Those of train."""
    from data import load_pairs

    return list(load_pairs(str(tiny_pairs), "train", images=False).captions)


@pytest.fixture(scope="module")
def images(clip, pairs):
    """The embeddings of the images of `pairs`."""
    return clip.image_embeddings(pairs.images)
