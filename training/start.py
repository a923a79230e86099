"""What a training starts from: the layers to drop, the pruned model, or a model with fresh weights."""

import json
from dataclasses import dataclass
from pathlib import Path

from common import DEFAULT_MODEL, search_path
from common.files import plain
from models import Clip, load_clip
from search_strategy.proposals import Proposal, check_dropped_layers, parse_clip_layers


@dataclass(frozen=True)
class Choice:
    """Layers to drop, and where that choice comes from."""

    dropped_layers: Proposal
    origin: str


def choose_layers(
    clip_layers: str | None, search_result: Path | None, folder: Path, model: str, num_layers: int, num_clip_layers: int
) -> Choice:
    """The layers of `clip_layers`, else the winner of `search_result`, else that of the newest search in `folder`.

    None of them where `num_clip_layers` is 0. Raises ValueError where they are not a proposal for those two numbers, and
    FileNotFoundError where there is no result.
    """
    if num_clip_layers == 0 and clip_layers is None and search_result is None:
        return Choice((), "nothing is dropped")
    if clip_layers is not None:
        return Choice(
            check_dropped_layers(parse_clip_layers(clip_layers), num_layers, num_clip_layers), "--clip_layers"
        )
    path = search_result or newest_search_result(folder, model, num_layers, num_clip_layers)
    return Choice(check_dropped_layers(read_winner(path), num_layers, num_clip_layers), plain(path))


def newest_search_result(folder: Path, model: str, num_layers: int, num_clip_layers: int) -> Path:
    pattern = search_path(folder, num_layers, num_clip_layers, "*", "*")
    found = list(folder.glob(pattern.name))
    if not found:
        command = f"search_strategy/search_prune_then_verify_mix.py --num_layers {num_layers}"
        command += f" --num_clip_layers {num_clip_layers} --search_mode beam --select_measure dc"
        command += "" if Path(model).resolve() == DEFAULT_MODEL else f" --model {model}"
        raise FileNotFoundError(f"no search result: looked for {pattern}; run: python {command}; or pass --clip_layers")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def read_winner(path: Path) -> Proposal:
    """The layers dropped by the winner in a search result. Raises ValueError where the file is not one."""
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8"))["winner"]["dropped_layers"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a search result with a winner and its dropped_layers ({error!r})"
        ) from error


def fresh(name: str, device: str, num_clip_layers: int, full: Clip | None) -> Clip:
    """A CLIP with fresh weights and `num_clip_layers` text layers less than the model's configuration says.

    `full`: the model whose image tower it has, where that stays frozen; None: everything is fresh.
    """
    clip = load_clip(name, device, weights=False)
    num_layers = clip.num_layers
    if num_clip_layers:
        clip = clip.drop(range(num_layers - num_clip_layers + 1, num_layers + 1))
    if full is not None:
        clip.model.vision_model.load_state_dict(full.model.vision_model.state_dict())
        clip.model.visual_projection.load_state_dict(full.model.visual_projection.state_dict())
    return clip
