"""CLIP (and MetaCLIP 2) as an encoder: the text tower; image embeddings, computed once and cached, are the targets.

CLIP's text attention is causal and its embedding is read at the first end token (Radford et al. 2021), so nothing after
that token can change the result: captions are cut there, batches are cut to their longest caption, and no mask is
needed.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    MetaClip2Model,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from common.files import cached_array
from data import ImageCaptionPairs
from models import checkpoint
from models.encoders import Batch, Encoder, pad_tokens, state_hash
from models.families import read_config
from models.layer_stack import LayerStack
from models.open_clip_folder import find_open_clip, load_open_clip

CACHED_IMAGES = 2048  # in a file: two minutes of a ViT-B/32 on two cores
MODEL_CLASSES = {"clip": CLIPModel, "metaclip_2": MetaClip2Model}
LEGACY_EOS_TOKEN_ID = 2  # old configs: the end token is the largest id in the caption, whatever this says

logger = logging.getLogger("comflp")


class Clip(Encoder):
    """CLIP's text tower, with the tokenizer and image processor of its model; the image tower gives the targets."""

    tower = "text"
    pipeline_tag = "zero-shot-image-classification"

    def __init__(self, model: CLIPModel, processor: CLIPProcessor, name: str):
        self.model, self.processor, self.name = model, processor, name
        self.stack = LayerStack(model, self.tower)

    # --- captions

    def prepare(self, samples: Sequence[str]) -> list[list[int]]:
        """Token ids of each caption from its start to its first end token, cut to the model's length."""
        tokens = self.processor.tokenizer(list(samples), truncation=True, max_length=self.max_length)["input_ids"]
        return [ids[: _end_position(ids, self.model.config) + 1] for ids in tokens]

    @property
    def max_length(self) -> int:
        return min(self.processor.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)

    def batch(self, prepared: Sequence[list[int]], rows: Iterable[int], length: int | None = None) -> Batch:
        # What stands after the end token is never read: causal attention, pooled at the end token. So no mask is
        # needed.
        input_ids, mask = pad_tokens(
            [prepared[row] for row in rows], self.processor.tokenizer.pad_token_id or 0, length
        )
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

    # --- images

    def preprocess(self, images: Sequence) -> Tensor:
        """`pixel_values` (n, 3, H, W) of PIL images, by the model's own processor, on the CPU."""
        return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """L2-normalised image embeddings (n, d)."""
        return F.normalize(self.model.get_image_features(pixel_values=pixel_values).pooler_output, dim=-1)

    @torch.no_grad()
    def image_embeddings(
        self, images: Sequence, cache_dir: Path | None = None, batch_size: int = 128, progress: bool = False
    ) -> Tensor:
        """L2-normalised embeddings (m, d) of a sequence of images; NaN rows where an image cannot be decoded.

        Kept in `cache_dir` in parts of `CACHED_IMAGES` as they are made, each under a name made from its images'
        content, the image encoder's weights and the processor's settings: a run that is killed loses one part, and the
        first images of a data set are not embedded again for all of it. `images`: as `data.ImageFiles`, with `select`
        and `content_hash`.
        """
        if cache_dir is None:
            embeddings = self._embed_decoded(images, batch_size, progress)
            return torch.from_numpy(embeddings).to(self.device)
        encoder, parts = self._image_encoder_key(), []
        for start in range(0, max(len(images), 1), CACHED_IMAGES):
            part = images.select(np.arange(start, min(start + CACHED_IMAGES, len(images))))
            embed = partial(self._embed_decoded, part, batch_size, progress)
            parts.append(cached_array(cache_dir, "image_embeddings", f"{part.content_hash()}\0{encoder}", embed))
            if len(images) > CACHED_IMAGES:
                logger.info("image embeddings: %d of %d", start + len(part), len(images))
        return torch.from_numpy(np.concatenate(parts)).to(self.device)

    def _embed_decoded(self, images: Sequence, batch_size: int, progress: bool) -> np.ndarray:
        embeddings = torch.full((len(images), self.dim), torch.nan, device=self.device)
        starts = range(0, len(images), batch_size)
        for start in tqdm(starts, desc="image embeddings", disable=not progress, leave=False):
            decoded = [(i, images[i]) for i in range(start, min(start + batch_size, len(images)))]
            rows = [i for i, image in decoded if image is not None]
            if rows:
                pixels = self.preprocess([image for _, image in decoded if image is not None])
                embeddings[rows] = self.embed_images(pixels.to(self.device)).float()
        return embeddings.cpu().numpy()

    def embed_pairs(
        self, pairs: ImageCaptionPairs, cache_dir: Path | None = None, progress: bool = False
    ) -> tuple[ImageCaptionPairs, Tensor]:
        """The pairs whose image can be decoded, and the embeddings (m, d) of their images, cached as above.

        The others are left out with a warning; more than 1 % of them is a ValueError.
        """
        embeddings = self.image_embeddings(pairs.images, cache_dir, progress=progress)
        broken = torch.isnan(embeddings).any(1)
        return pairs.without_images(broken.cpu().numpy()), embeddings[~broken]

    def _image_encoder_key(self) -> str:
        parts = (
            *map(state_hash, self.target_parts().values()),
            json.dumps(self.processor.image_processor.to_dict(), sort_keys=True, default=str),
        )
        return "\0".join(parts)


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
        processor = CLIPProcessor(checkpoint.read_image_processor(CLIPImageProcessorPil, name), tokenizer)
        model = checkpoint.read_model(model_class, name, config) if weights else model_class(config)
    _check_end_token(name, processor.tokenizer, model.config)
    return Clip(model.eval().to(device), processor, name)


def _check_end_token(name: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise ValueError where the configuration has embeddings read at another token than the tokenizer's last one."""
    ids, end = tokenizer("a")["input_ids"], config.text_config.eos_token_id
    if _end_position(ids, config) != len(ids) - 1 or len(ids) < 2:
        where = "the largest id" if _is_legacy(config) else f"token {end}"
        raise ValueError(
            f"{name}: by its config.json captions are read at {where} (eos_token_id {end}), but the tokenizer writes {ids} for 'a'; "
            "put the tokenizer there that the model was trained with, or correct eos_token_id"
        )


def _end_position(ids: list[int], config: PreTrainedConfig) -> int:
    """Where the embedding is read: the first end token, or the first largest id in a legacy checkpoint."""
    if _is_legacy(config):
        return int(np.argmax(ids))
    end = config.text_config.eos_token_id
    return ids.index(end) if end in ids else 0


def _is_legacy(config: PreTrainedConfig) -> bool:
    return config.model_type == "clip" and config.text_config.eos_token_id == LEGACY_EOS_TOKEN_ID
