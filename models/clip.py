"""CLIP (and MetaCLIP 2) as an encoder: the text tower; image embeddings, computed once and cached, are the targets.

CLIP's text attention is causal and its embedding is read at the first end token (Radford et al. 2021), so nothing after
that token can change the result: captions are cut there, and batches to their longest caption.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, MetaClip2Model, PreTrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from models import checkpoint
from models.embedding_cache import ImageTargets
from models.encoders import Batch, Encoder, pad_tokens
from models.families import read_config
from models.layer_stack import LayerStack
from models.open_clip_folder import find_open_clip, load_open_clip

MODEL_CLASSES = {"clip": CLIPModel, "metaclip_2": MetaClip2Model}
LEGACY_EOS_TOKEN_ID = 2  # old configs: the end token is the largest id in the caption, whatever this says


class Clip(ImageTargets, Encoder):
    """CLIP's text tower, with the tokenizer and image processor of its model; the image tower gives the targets."""

    tower = "text"
    pipeline_tag = "zero-shot-image-classification"

    def __init__(self, model: CLIPModel, processor: CLIPProcessor, name: str):
        self.model, self.processor, self.name = model, processor, name
        self.stack = LayerStack(model, self.tower)

    # --- captions

    def prepare(self, samples: Sequence[str]) -> list[list[int]]:
        """Token ids of each caption from its start to its first end token, cut to the model's length."""
        tokens = self.tokenizer(list(samples), truncation=True, max_length=self.max_length)["input_ids"]
        return [ids[: _end_position(ids, self.model.config) + 1] for ids in tokens]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def max_length(self) -> int:
        return min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)

    def batch(self, prepared: Sequence[list[int]], rows: Iterable[int], length: int | None = None) -> Batch:
        # what stands after the end token is never read (causal attention, pooled there), so no mask is needed
        input_ids, mask = pad_tokens([prepared[row] for row in rows], self.tokenizer.pad_token_id or 0, length)
        return Batch(np.asarray(rows), {"input_ids": input_ids.to(self.device)}, mask.to(self.device))

    # --- readout

    def own_pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(n, width): the hidden state at each end token."""
        return hidden[torch.arange(len(hidden), device=hidden.device), batch.lengths - 1]

    def features(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self.stack.tower.final_layer_norm(self.own_pool(hidden, batch))

    @property
    def projection(self) -> nn.Linear:
        return self.model.text_projection

    def deployed(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model.get_text_features(**inputs).pooler_output

    # --- model

    def parts(self) -> dict[str, nn.Module]:
        return {"text_model": self.model.text_model, "text_projection": self.model.text_projection}

    def target_parts(self) -> dict[str, nn.Module]:
        return {"vision_model": self.model.vision_model, "visual_projection": self.model.visual_projection}

    def drop(self, dropped_layers: Iterable[int], name: str = "") -> Self:
        return type(self)(self.stack.drop(dropped_layers), self.processor, name or self.name)

    def save(self, folder: Path) -> None:
        checkpoint.save_model(self.model, folder)
        self.processor.save_pretrained(folder)

    # --- pairs

    @property
    def logit_scale(self) -> float:
        return self.model.logit_scale.exp().item()


def load_clip(name: str, device: str = "cpu", weights: bool = True) -> Clip:
    """A CLIP from a local folder or the hub, in evaluation mode, float32.

    With `weights=False` only its configuration, tokenizer and processor are read, and the weights are fresh.
    Raises FileNotFoundError where there is no such model and ValueError where it is not a CLIP.
    """
    open_clip_folder = find_open_clip(name)
    if open_clip_folder is not None:
        model, processor = load_open_clip(open_clip_folder, weights)
    else:
        config = read_config(name)
        if config.model_type not in MODEL_CLASSES:
            raise ValueError(f"{name}: expected a CLIP model (model_type clip), found {config.model_type}")
        model_class = MODEL_CLASSES[config.model_type]
        tokenizer = checkpoint.read_tokenizer(name, config.text_config.vocab_size)
        processor = CLIPProcessor(
            checkpoint.read_image_processor(CLIPImageProcessorPil, name, config.vision_config.image_size), tokenizer
        )
        model = checkpoint.read_model(model_class, name, config) if weights else model_class(config)
    _check_end_token(name, processor, model.config)
    return Clip(model.eval().to(device), processor, name).check_embeds()


def _check_end_token(name: str, processor: CLIPProcessor, config: PreTrainedConfig) -> None:
    """Raise ValueError where the configuration has embeddings read at another token than the tokenizer's last one."""
    ids, end = processor.tokenizer("a")["input_ids"], config.text_config.eos_token_id
    if _end_position(ids, config) != len(ids) - 1 or len(ids) < 2:
        where = "the largest id" if _is_legacy(config) else f"token {end}"
        raise ValueError(
            f"{name}: by its config.json captions are read at {where} (eos_token_id {end}), but the tokenizer writes "
            f"{ids} for 'a'; put the tokenizer there that the model was trained with, or correct eos_token_id"
        )


def _end_position(ids: list[int], config: PreTrainedConfig) -> int:
    """Where the embedding is read: the first end token, or the first largest id in a legacy checkpoint."""
    if _is_legacy(config):
        return int(np.argmax(ids))
    end = config.text_config.eos_token_id
    return ids.index(end) if end in ids else 0  # the argmax of nothing found, as in CLIP's own forward pass


def _is_legacy(config: PreTrainedConfig) -> bool:
    return config.model_type == "clip" and config.text_config.eos_token_id == LEGACY_EOS_TOKEN_ID
