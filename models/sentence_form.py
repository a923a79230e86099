"""The form in which sentence-transformers writes a model: `modules.json` and what it leads to, read and written again.

Beside the transformer a folder has the chain of modules that make an embedding: Pooling, perhaps Dense, perhaps
Normalize (Reimers and Gurevych 2019, arXiv 1908.10084). The package is not needed.
"""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

from common.files import reading, write_json
from common.forms import parse
from models import checkpoint

POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
SUPPORTED_POOLINGS = ("cls", "mean", "lasttoken")
MODULES, TRANSFORMER, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
NO_SETTINGS = "not settings of sentence-transformers"


@dataclass(frozen=True)
class Form:
    """What a folder says beside its transformer: `files`, by path, are JSON and are written again as they are."""

    files: dict[str, object]
    pooling: str = "mean"
    dense: str = ""  # folder of the Dense module; "" where there is none
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""  # before every text


@dataclass(frozen=True)
class Settings:
    """What is read of `sentence_bert_config.json`."""

    max_seq_length: int | None = None
    do_lower_case: bool = False


@dataclass(frozen=True)
class Prompts:
    """What is read of `config_sentence_transformers.json`."""

    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None


@dataclass(frozen=True)
class Module:
    """An entry of `modules.json`."""

    type: str
    path: str


@dataclass(frozen=True)
class Dense:
    """What is read of the configuration of a Dense module."""

    activation_function: str = ""


def read_form(name: str, width: int) -> Form:
    """What `modules.json` and the files that it leads to say.

    Without it, as in sentence-transformers, the mean over the tokens of states of this width. Raises ValueError at
    another chain of modules than Transformer, Pooling, perhaps Dense, perhaps Normalize, and at a pooling or activation
    not known here.
    """
    modules = read_json(name, MODULES)
    files = {path: read_json(name, path) for path in (TRANSFORMER, PROMPTS)}
    if modules is None:
        modules = [
            module_entry(0, "Transformer", ""),
            module_entry(1, "Pooling", "1_Pooling"),
            module_entry(2, "Normalize", "2_Normalize"),
        ]
        pooling = {"word_embedding_dimension": width, POOLINGS["mean"]: True}
    else:
        check_modules(name, modules)
        pooling = read_json(name, f"{folder_of(modules, 'Pooling')}/config.json")
    files |= {MODULES: modules, f"{folder_of(modules, 'Pooling')}/config.json": pooling}
    dense = folder_of(modules, "Dense")
    if dense:
        files[f"{dense}/config.json"] = check_dense(name, read_json(name, f"{dense}/config.json"))
    with reading(f"{name}/{TRANSFORMER}", NO_SETTINGS):
        settings = parse(Settings, files[TRANSFORMER] or {})
    with reading(f"{name}/{PROMPTS}", NO_SETTINGS):
        prompts = parse(Prompts, files[PROMPTS] or {})
    return Form(
        {path: content for path, content in files.items() if content is not None},
        read_pooling(name, pooling),
        dense,
        settings.max_seq_length,
        settings.do_lower_case,
        (prompts.prompts or {}).get(prompts.default_prompt_name, ""),
    )


def module_entry(number: int, kind: str, path: str) -> dict:
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}


def kind_of(module: dict) -> str:
    return module["type"].rpartition(".")[2]


def folder_of(modules: list[dict], kind: str) -> str:
    """The folder of the first module of a kind; "" where there is none."""
    return next((module["path"] for module in modules if kind_of(module) == kind), "")


def check_modules(name: str, modules: object) -> None:
    """Raise ValueError where `modules.json` is no chain of Transformer, Pooling, and perhaps Dense and Normalize."""
    with reading(f"{name}/{MODULES}", "not a list of modules"):
        parse(list[Module], modules)
    kinds, folders = [kind_of(module) for module in modules], [module["path"] for module in modules]
    chain = [kind for kind in kinds if kind != "Dropout"]
    if chain not in (
        ["Transformer", "Pooling", *dense, *norm] for dense in ([], ["Dense"]) for norm in ([], ["Normalize"])
    ):
        raise ValueError(
            f"{name}/{MODULES}: expected Transformer, Pooling, and perhaps one Dense and Normalize; found "
            f"{', '.join(kinds)}"
        )
    if folders[0]:
        raise ValueError(f"{name}/{MODULES}: expected the transformer in the folder itself, found it in {folders[0]}")


def read_pooling(name: str, settings: dict | None) -> str:
    """The one pooling that a configuration names, in its old or its new form."""
    with reading(name, "its pooling cannot be read"):
        settings = parse(dict, settings or {})
    given = settings.get("pooling_mode") or [kind for kind, key in POOLINGS.items() if settings.get(key)]
    given = [given] if isinstance(given, str) else given
    if len(given) != 1 or given[0] not in SUPPORTED_POOLINGS:
        raise ValueError(
            f"{name}: expected one pooling of {', '.join(SUPPORTED_POOLINGS)}; found "
            f"{', '.join(map(str, given)) or 'none'}"
        )
    return given[0]


def read_json(name: str, path: str) -> object:
    """A JSON file of a model, in a folder or on the hub; None where there is none. ValueError where it is damaged."""
    found = cached_file(
        name, path, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    if found is None:
        return None
    with reading(f"{name}/{path}", "damaged"):
        return json.loads(Path(found).read_text(encoding="utf-8"))


# --- the linear map after the pooling


def identity_map(width: int) -> nn.Linear:
    projection = nn.Linear(width, width, bias=False)
    nn.init.eye_(projection.weight)
    return projection


def is_identity(projection: nn.Linear) -> bool:
    weight = projection.weight
    return (
        projection.bias is None
        and weight.shape[0] == weight.shape[1]
        and bool((weight == torch.eye(len(weight)).to(weight)).all())
    )


def with_dense(form: Form) -> Form:
    """The form with a Dense module after the pooling."""
    modules = copy.deepcopy(form.files[MODULES])
    place = [kind_of(module) for module in modules].index("Pooling") + 1
    modules.insert(place, module_entry(place, "Dense", f"{place}_Dense"))
    for number, module in enumerate(modules):
        module |= {"idx": number, "name": str(number)}
    return replace(form, files=form.files | {MODULES: modules}, dense=f"{place}_Dense")


def check_dense(name: str, settings: dict) -> dict:
    with reading(name, "its Dense module cannot be read"):
        activation = parse(Dense, settings or {}).activation_function.rpartition(".")[2]
    if activation != "Identity":
        raise ValueError(
            f"{name}: expected a Dense module without activation (Identity), found {activation or 'no configuration'}"
        )
    return settings


def read_dense(name: str, folder: str) -> nn.Linear:
    path = cached_file(name, f"{folder}/model.safetensors", _raise_exceptions_for_missing_entries=False)
    other = path or cached_file(name, f"{folder}/pytorch_model.bin", _raise_exceptions_for_missing_entries=False)
    if other is None:
        raise FileNotFoundError(f"{name}/{folder}: no weights; looked for model.safetensors and pytorch_model.bin")
    with reading(other, checkpoint.NO_WEIGHTS):
        state = load_file(path) if path else torch.load(other, map_location="cpu", weights_only=True)
        weight, bias = state["linear.weight"].float(), state.get("linear.bias")
        projection = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        projection.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias.float()}))
    checkpoint.check_finite(f"{name}/{folder}", projection)
    return projection


def save_dense(projection: nn.Linear, folder: Path) -> None:
    settings = {
        "in_features": projection.in_features,
        "out_features": projection.out_features,
        "bias": projection.bias is not None,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_json(folder / "config.json", settings)
    state = {f"linear.{name}": tensor.detach().cpu().contiguous() for name, tensor in projection.state_dict().items()}
    save_file(state, folder / "model.safetensors")
