"""open_clip models as folders or on the hub: read as a `CLIPModel`, written from one.

An open_clip model is a folder with `open_clip_config.json`, its weights and a tokenizer; on the hub it is named
`hf-hub:<organisation>/<name>`, as in open_clip. The package open_clip is not needed.
"""

import gzip
import importlib.util
import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, PreTrainedTokenizerBase

from common.files import reading, write_json
from models.checkpoint import check_finite, check_vocabulary, note_precision, read_tokenizer
from models.hf_open_clip import clip_config, from_open_clip, image_processor, open_clip_config, to_open_clip

HUB_PREFIX, LOCAL_PREFIX = "hf-hub:", "local-dir:"
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
BPE_NAME = "bpe_simple_vocab_16e6.txt.gz"  # the merges of OpenAI's CLIP, as open_clip ships them
BPE_BYTES = 1 << 24  # more than it holds unpacked
BPE_MERGES = slice(1, 49152 - 256 - 2 + 1)  # the lines of that file that CLIP uses


def find_open_clip(name: str) -> Path | None:
    """The folder of an open_clip model, downloaded for `hf-hub:<organisation>/<name>`; None for any other model."""
    if name.startswith(HUB_PREFIX):
        return _download(name.removeprefix(HUB_PREFIX))
    folder = Path(name.removeprefix(LOCAL_PREFIX))
    is_other = (folder / "config.json").is_file() or not (folder / CONFIG_NAME).is_file()
    return None if is_other and not name.startswith(LOCAL_PREFIX) else folder


def read_open_clip(folder: Path) -> tuple[CLIPConfig, CLIPProcessor]:
    """Configuration and processor of an open_clip folder, in Hugging Face form."""
    path = folder / CONFIG_NAME
    with reading(path, "not the configuration of an open_clip model"):
        settings = json.loads(path.read_text(encoding="utf-8"))
        model_cfg, preprocess_cfg = settings["model_cfg"], settings.get("preprocess_cfg", {})
        model_cfg["text_cfg"], model_cfg["vision_cfg"], model_cfg["embed_dim"]  # they must be there
    tokenizer = load_tokenizer(folder)
    with reading(path, "no CLIPModel can be made from it"):  # values of a wrong type or size reach any line
        config = clip_config(model_cfg, tokenizer)
        images = image_processor(preprocess_cfg, config.vision_config.image_size)
        with torch.device("meta"):
            CLIPModel(config)
    check_vocabulary(str(folder), tokenizer, config.text_config.vocab_size)
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
    return config, CLIPProcessor(images, tokenizer)


def load_open_clip(folder: Path, weights: bool = True) -> tuple[CLIPModel, CLIPProcessor]:
    """Model (float32) and processor of an open_clip folder; with `weights=False` the weights are fresh."""
    config, processor = read_open_clip(folder)
    model = CLIPModel(config)
    if weights:
        state = _read_weights(folder)
        with reading(folder, f"the weights do not fit {CONFIG_NAME}"):
            state = from_open_clip(state)
            note_precision(model, state["text_projection.weight"].dtype).load_state_dict(state)
        check_finite(str(folder), model)
    return model, processor


def save_open_clip(model: CLIPModel, processor: CLIPProcessor, folder: Path, tokenizer_name: str) -> None:
    """Write a folder that open_clip loads as `local-dir:<folder>`, or as `hf-hub:<tokenizer_name>` once it is there."""
    settings = open_clip_config(model.config, processor.image_processor, tokenizer_name)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(model, "saved_dtype", None) or model.dtype
    state = {name: tensor.to(dtype) for name, tensor in to_open_clip(model.state_dict()).items()}
    save_file(state, folder / WEIGHTS_NAMES[0])
    processor.tokenizer.save_pretrained(folder)
    write_json(folder / CONFIG_NAME, settings)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of an open_clip folder; else CLIP's own, from its merges there or in an installed open_clip."""
    if (folder / "tokenizer_config.json").is_file():
        return read_tokenizer(str(folder))
    if (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file():
        return read_tokenizer(str(folder), tokenizer_class=CLIPTokenizer)
    package = importlib.util.find_spec("open_clip")  # found, not imported
    places = [folder, *map(Path, (package.submodule_search_locations if package else None) or ())]
    for place in places:
        if (place / BPE_NAME).is_file():
            return bpe_tokenizer(place / BPE_NAME)
    raise FileNotFoundError(
        f"{folder}: no tokenizer; expected tokenizer.json, vocab.json with merges.txt, or {BPE_NAME} there; copy those "
        "of openai/clip-vit-base-patch32 if the model was trained with CLIP's own"
    )


def bpe_tokenizer(path: Path) -> CLIPTokenizer:
    """CLIP's tokenizer from its file of merges; bytes come first in the order that GPT-2 gave them."""
    with reading(path, "not the merges of CLIP's tokenizer"), gzip.open(path) as file:
        lines = file.read(BPE_BYTES).decode("utf-8").split("\n")
        merges = [(first, second) for first, second in map(str.split, lines[BPE_MERGES])]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = next((folder / name for name in WEIGHTS_NAMES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: no weights; looked for {', '.join(WEIGHTS_NAMES)}")
    with reading(path, "not a readable state dict", "pass safetensors"):
        is_safe = path.suffix == ".safetensors"
        state = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path}: not a readable state dict (it holds other things than tensors)")
    return state


def _download(repository: str) -> Path:
    """The hub's copy of an open_clip model: one file of weights, in the order of `WEIGHTS_NAMES`."""
    try:
        for name in WEIGHTS_NAMES:
            folder = Path(snapshot_download(repository, allow_patterns=[CONFIG_NAME, name, *TOKENIZER_NAMES]))
            if (folder / name).is_file():
                break
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"open_clip model not found: the hub did not give {repository!r} ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{repository} on the hub is no open_clip model: it has no {CONFIG_NAME}")
    return folder
