"""Reading a Hugging Face checkpoint from a folder or the hub: configuration, weights, tokenizer, image processor.

Whatever is wrong with it becomes one line that names the file or the tensor. Code that a checkpoint brings along is
never run, and nobody is asked whether it may.
"""

import copy
import json
import logging
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from huggingface_hub import errors
from PIL import Image
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from common.files import UnreadableError, describe, reading

logger = logging.getLogger("comflp")

Loaded = TypeVar("Loaded")
CONFIG_NAME = "config.json"
NO_CODE = {"trust_remote_code": False}
NO_CODE_MESSAGE = (
    "the checkpoint brings its own code (auto_map), which is never run; pass a model that transformers has itself"
)
NO_CONFIG, NO_WEIGHTS = "not the configuration of a model", "the weights cannot be read"
HALF_PRECISIONS = (torch.float16, torch.bfloat16)
# a tokenizer has at least the bytes or as many pieces; `transformers` makes an empty one where files are missing
FEWEST_TOKENS = 256
FEWEST_POSITIONS = 3  # of a text: start, one token, end
TRIED_SIZE = (48, 32)  # of an image that the processor is tried on
# Why the hub gave nothing, by the first of these in the chain of causes.
HUB_CAUSES = {
    errors.GatedRepoError: "its owner asks for an agreement: accept it on the hub and log in with `hf auth login`",
    errors.RepositoryNotFoundError: "the hub has no such model, or it is private",
    errors.HFValidationError: "this is no name of the hub either",
    errors.LocalEntryNotFoundError: "the hub cannot be reached, and there is no copy in its cache",
    errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, and there is no copy in the hub's cache",
}


# --- configuration


def read_config(name: str) -> PreTrainedConfig:
    """The configuration of a model in a local folder or on the hub.

    Raises FileNotFoundError where there is no such model and ValueError where its configuration cannot be used.
    """
    if not name:
        raise FileNotFoundError(
            "model not found: the name is empty; pass the folder of a model or a name on the hub with --model"
        )
    if Path(name).exists():
        check_config_file(Path(name))
        with reading(f"{name}/{CONFIG_NAME}", NO_CONFIG):
            return refuse_code(name, AutoConfig.from_pretrained(name, **NO_CODE))
    try:
        return refuse_code(name, AutoConfig.from_pretrained(name, **NO_CODE))
    except UnreadableError:
        raise
    except Exception as error:  # of the hub, or of what it gave
        if "custom code" in str(error):
            raise ValueError(f"{name}: {NO_CODE_MESSAGE}") from error
        raise FileNotFoundError(not_found_message(name, error)) from error


def refuse_code(name: str, loaded: Loaded) -> Loaded:
    """What was loaded. Raises ValueError where the checkpoint has code for it: without that it is something else."""
    settings = getattr(loaded, "init_kwargs", {}) | vars(loaded)
    if settings.get("auto_map"):
        raise UnreadableError(f"{name}: {NO_CODE_MESSAGE}")
    return loaded


def check_config_file(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError where a path is no folder with a configuration that transformers knows."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: expected the folder of a model, found a file; pass the folder that it is in"
        )
    path = folder / CONFIG_NAME
    pipe = next((file for file in folder.iterdir() if file.is_fifo()), None)
    if pipe:  # whoever reads it waits for a writer for ever
        raise ValueError(f"{pipe}: expected a file, found a named pipe; remove it")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: expected a {CONFIG_NAME} or an open_clip_config.json; {what_is_there(folder)}"
        )
    with reading(path, NO_CONFIG):
        settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise ValueError(f"{path}: {NO_CONFIG} (expected a JSON object with a model_type)")
    if settings["model_type"] not in CONFIG_MAPPING:
        code = NO_CODE_MESSAGE if "auto_map" in settings else "this version of transformers has none"
        raise ValueError(f"{path}: model_type {settings['model_type']!r}: {code}")


def what_is_there(folder: Path) -> str:
    """What to do with a folder that is no model."""
    inside = next(iter(sorted(folder.glob(f"*/{CONFIG_NAME}"))), None)
    if (folder / "modules.json").is_file() and inside is not None:
        if inside.parent.name.endswith("CLIPModel"):
            return f"this one is of sentence-transformers: pass {inside.parent}"
        return (
            "sentence-transformers wrote it long ago: write it anew with SentenceTransformer(folder).save(new_folder)"
        )
    weights = next(iter(sorted(folder.glob("*.pt"))), None)
    if weights is not None:
        return f"weights of an open_clip training ({weights.name}) are read when named open_clip_pytorch_model.bin, beside its config"
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    return f"found {names or 'an empty folder'}"


def not_found_message(name: str, error: Exception) -> str:
    chain: list[BaseException] = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(deeper)
    causes = (text for kind, text in HUB_CAUSES.items() if any(isinstance(link, kind) for link in chain))
    message = f"model not found: {name!r} is no folder here, and {next(causes, f'the hub did not give it ({describe(error)})')}"
    if name.startswith(("ViT-", "RN50", "RN101", "convnext", "EVA")):
        return f"{message}; models of open_clip are named as on the hub: hf-hub:<organisation>/<name>"
    return f"{message}; pass the folder of a model or a name on the hub with --model"


# --- weights


def read_model(
    model_class: type[PreTrainedModel], name: str, config: PreTrainedConfig, unused: tuple[str, ...] = ()
) -> PreTrainedModel:
    """The model in evaluation mode, its weights in float32; `save_model` writes them in the precision they came in.

    `unused`: how the names of weights begin that may be missing, because nothing reads them. Raises ValueError, with
    the tensor's name, where weights are damaged, missing, not finite, of another shape or of more layers than the
    configuration says; other weights that have no place in the model are named in a warning.
    """
    try:
        with reading(name, NO_WEIGHTS, "download or copy them again, as safetensors"):
            model, found = model_class.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                weights_only=True,
                ignore_mismatched_sizes=True,  # they are named below
                output_loading_info=True,
                **NO_CODE,
            )
    except UnreadableError:
        check_config_builds(model_class, name, config)  # the weights may not be the cause
        raise
    for key, found_shape, expected_shape in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"{name}: the weights do not fit its {CONFIG_NAME}: {key} is {tuple(found_shape)}, "
            f"expected {tuple(expected_shape)}"
        )
    check_names(name, model, found["missing_keys"], found["unexpected_keys"], unused)
    check_finite(name, model)
    return note_precision(model, config.dtype).eval()


def note_precision(model: PreTrainedModel, dtype: torch.dtype | str | None) -> PreTrainedModel:
    """Let a model, which computes in float32, and its copies be saved in this precision where it is a half one."""
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model.saved_dtype = dtype if dtype in HALF_PRECISIONS else None
    return model


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write configuration and weights, in the precision in which the checkpoint came."""
    dtype = getattr(model, "saved_dtype", None)
    if dtype is not None and dtype != model.dtype:
        model = copy.deepcopy(model).to(dtype)
    model.save_pretrained(folder)


def check_config_builds(model_class: type[PreTrainedModel], name: str, config: PreTrainedConfig) -> None:
    """Raise ValueError where no model can be made from the configuration (tried without memory for its weights)."""
    with reading(f"{name}/{CONFIG_NAME}", f"no {model_class.__name__} can be made from it"), torch.device("meta"):
        model_class(config)


def check_names(
    name: str,
    model: nn.Module,
    missing: list[str] | set[str],
    unexpected: list[str] | set[str],
    unused: tuple[str, ...] = (),
) -> None:
    """Raise ValueError where weights are missing or of layers that the model has not; warn of other unknown ones."""
    missing = sorted(key for key in missing if not key.startswith(unused))
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} weights that its {CONFIG_NAME} asks for are missing ({some_of(missing)}); "
            "download or copy them again, or correct the configuration"
        )
    for path, blocks in model.named_modules():
        if isinstance(blocks, nn.ModuleList):
            numbers = {key[len(path) + 1 :].split(".")[0] for key in unexpected if key.startswith(f"{path}.")}
            more = [int(number) for number in numbers if number.isdigit() and int(number) >= len(blocks)]
            if more:
                raise ValueError(
                    f"{name}: weights for {max(more) + 1} layers in {path}, but its {CONFIG_NAME} says {len(blocks)}; "
                    "correct it"
                )
    if unexpected:
        logger.warning(
            "%s: %d weights have no place in a %s and are left out (%s)",
            name,
            len(unexpected),
            type(model).__name__,
            some_of(sorted(unexpected)),
        )


def check_finite(name: str, model: nn.Module) -> None:
    """Raise ValueError where a weight is NaN or infinite, or becomes so as the power that the logit scale is."""
    state = {key: tensor.exp() if key == "logit_scale" else tensor for key, tensor in model.state_dict().items()}
    broken = [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(
            f"{name}: NaN or infinity in {len(broken)} weights ({some_of(broken)}); take a checkpoint from before they "
            "broke"
        )


# --- tokenizer, image processor


def read_tokenizer(
    name: str, vocab_size: int | None = None, tokenizer_class: type = AutoTokenizer
) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Raises ValueError where it is missing, damaged, or too large for the model."""
    with reading(name, "the tokenizer cannot be read"):
        tokenizer = refuse_code(name, tokenizer_class.from_pretrained(name, **NO_CODE))
        tokenizer.model_max_length = int(tokenizer.model_max_length)
    if len(tokenizer) < FEWEST_TOKENS:
        raise ValueError(
            f"{name}: no tokenizer with a vocabulary; expected tokenizer.json, or vocab.json and merges.txt, "
            "beside the model"
        )
    if tokenizer.model_max_length < FEWEST_POSITIONS:
        raise ValueError(
            f"{name}: the tokenizer cuts texts to {tokenizer.model_max_length} tokens; correct its model_max_length"
        )
    if vocab_size is not None:
        check_vocabulary(name, tokenizer, vocab_size)
    return tokenizer


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise ValueError where the tokenizer writes a token that has no embedding."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has tokens up to {largest}, the model embeddings for {vocab_size} (vocab_size); "
            "they are not of one model: put the tokenizer there that it was trained with"
        )


def read_image_processor(processor_class: type, name: str, image_size: int):
    """The image processor beside a model. Raises ValueError where it is missing, damaged, or makes other sizes."""
    with reading(name, "the image processor cannot be read"):
        processor = refuse_code(name, processor_class.from_pretrained(name))
        pixels = processor(Image.new("RGB", TRIED_SIZE), return_tensors="np")["pixel_values"]
        if pixels.shape != (1, 3, image_size, image_size) or not np.isfinite(pixels).all():
            raise ValueError(
                f"it makes {pixels.shape[2:]} pixels; the model takes {(image_size, image_size)}, all finite"
            )
    return processor


# --- messages


def some_of(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
