"""CLIP on top of `LayerStack`: text embeddings layer by layer, image embeddings computed once and cached.

CLIP's text attention is causal and its embedding is read at the first end token (Radford et al. 2021), so nothing after that
token can change the result: captions are cut there, batches are cut to their longest caption, and no mask is needed.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerBase,
)

from data import ImageCaptionPairs
from models import checkpoint
from models.layer_stack import LayerStack
from models.open_clip_folder import find_open_clip, load_open_clip, read_open_clip

LEGACY_EOS_TOKEN_ID = 2  # old configs: the end token is the largest id in the caption, whatever this says


@dataclass(frozen=True)
class TokenBatch:
    """Captions as tokens, cut to the longest of them."""

    rows: np.ndarray  # (n,) their numbers in the list of all captions
    input_ids: Tensor  # (n, T)
    lengths: Tensor  # (n,) tokens from start to end token, both included

    def mask(self) -> Tensor:
        """(n, T) boolean: True at the real tokens."""
        return torch.arange(self.input_ids.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def at_end(self, hidden: Tensor) -> Tensor:
        """(n, d): the hidden state (n, T, d) at each end token."""
        return hidden[torch.arange(len(hidden), device=hidden.device), self.lengths - 1]

    def mean(self, hidden: Tensor) -> Tensor:
        """(n, d): the mean of the hidden state (n, T, d) over the real tokens."""
        return hidden.masked_fill(~self.mask()[:, :, None], 0).sum(1) / self.lengths[:, None]


class Clip:
    """A CLIP model with its tokenizer and image processor."""

    def __init__(self, model: CLIPModel, processor: CLIPProcessor, name: str):
        self.model, self.processor, self.name = model, processor, name
        self.stack = LayerStack(model, "text")

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def num_layers(self) -> int:
        return self.stack.num_layers

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities."""
        return self.model.logit_scale.exp().item()

    def identity(self) -> dict:
        """What a run record says about the model."""
        return {"name": self.name, "weights_sha256": state_hash(self.model), "text_layers": self.num_layers}

    # --- text

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Token ids of each caption from its start to its first end token, cut to the model's length."""
        text_config = self.model.config.text_config
        longest = min(self.processor.tokenizer.model_max_length, text_config.max_position_embeddings)
        tokens = self.processor.tokenizer(list(captions), truncation=True, max_length=longest)["input_ids"]
        return [ids[: _end_position(ids, text_config.eos_token_id) + 1] for ids in tokens]

    def pad(self, tokens: Sequence[list[int]], rows: Iterable[int]) -> tuple[Tensor, Tensor]:
        """`input_ids` (n, T), cut to the longest, and `lengths` (n,) of the captions `rows`, on the CPU."""
        sequences = [torch.tensor(tokens[row]) for row in rows]
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        # What stands after the end token is never read: causal attention, pooled at the end token.
        padding = self.processor.tokenizer.pad_token_id or 0
        return nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=padding), lengths

    def batch(self, tokens: Sequence[list[int]], rows: Iterable[int]) -> TokenBatch:
        """The captions `rows` as one batch on the model's device."""
        input_ids, lengths = self.pad(tokens, rows)
        return TokenBatch(np.asarray(rows), input_ids.to(self.device), lengths.to(self.device))

    def batches(self, tokens: Sequence[list[int]], batch_size: int) -> Iterator[TokenBatch]:
        """All captions, sorted by length, in batches."""
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        for start in range(0, len(order), batch_size):
            yield self.batch(tokens, order[start : start + batch_size])

    def embed(self, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """L2-normalised text embeddings (n, d) from the last hidden state (n, T, width)."""
        pooled = batch.at_end(hidden)
        pooled = self.stack.tower.final_layer_norm(pooled)
        return F.normalize(self.model.text_projection(pooled), dim=-1)

    @torch.no_grad()
    def text_embeddings(
        self, captions: Sequence[str], kept_layers: Iterable[int] | None = None, batch_size: int = 256
    ) -> Tensor:
        """L2-normalised embeddings (n, d) of the captions, through all layers or only those kept (counted from 1)."""
        kept = range(1, self.num_layers + 1) if kept_layers is None else tuple(kept_layers)
        embeddings = torch.empty(len(captions), self.model.config.projection_dim, device=self.device)
        for batch in self.batches(self.tokenize(captions), batch_size):
            hidden, context = self.stack.start(input_ids=batch.input_ids)
            embeddings[batch.rows] = self.embed(self.stack.run(hidden, context, kept), batch).float()
        return embeddings

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

        Cached in `cache_dir` under a name made from the images' content, the image encoder's weights and the processor's
        settings: any change of these is another file. `images`: as `data.ImageFiles`, with `content_hash()`.
        """
        path = None if cache_dir is None else cache_dir / f"image_embeddings_{self._image_key(images)}.npy"
        if path is not None and path.exists():
            return torch.from_numpy(np.load(path, allow_pickle=False)).to(self.device)
        embeddings = torch.full((len(images), self.model.config.projection_dim), torch.nan, device=self.device)
        starts = range(0, len(images), batch_size)
        for start in tqdm(starts, desc="image embeddings", disable=not progress, leave=False):
            decoded = [(i, images[i]) for i in range(start, min(start + batch_size, len(images)))]
            rows = [i for i, image in decoded if image is not None]
            if rows:
                pixels = self.preprocess([image for _, image in decoded if image is not None])
                embeddings[rows] = self.embed_images(pixels.to(self.device)).float()
        if path is not None:
            _save_array(path, embeddings.cpu().numpy())
        return embeddings

    def embed_pairs(
        self, pairs: ImageCaptionPairs, cache_dir: Path | None = None, progress: bool = False
    ) -> tuple[ImageCaptionPairs, Tensor]:
        """The pairs whose image can be decoded, and the embeddings (m, d) of their images, cached as above.

        The others are left out with a warning; more than 1 % of them is a ValueError.
        """
        embeddings = self.image_embeddings(pairs.images, cache_dir, progress=progress)
        broken = torch.isnan(embeddings).any(1)
        return pairs.without_images(broken.cpu().numpy()), embeddings[~broken]

    def _image_key(self, images: Sequence) -> str:
        parts = (
            images.content_hash(),
            state_hash(self.model.vision_model),
            state_hash(self.model.visual_projection),
            json.dumps(self.processor.image_processor.to_dict(), sort_keys=True, default=str),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def read_config(name: str) -> CLIPConfig:
    """The configuration of a CLIP in a local folder or on the hub, in Hugging Face or open_clip form.

    An open_clip model is a folder with an `open_clip_config.json`, or `hf-hub:<organisation>/<name>`.

    Raises FileNotFoundError where there is no such model and ValueError where it is not a CLIP.
    """
    open_clip_folder = find_open_clip(name)
    if open_clip_folder is not None:
        return read_open_clip(open_clip_folder)[0]
    config = checkpoint.read_config(name)
    if config.model_type != "clip":
        raise ValueError(f"{name}: expected a CLIP model (model_type clip), found {config.model_type}")
    return config


def load_clip(name: str, device: str = "cpu", weights: bool = True) -> Clip:
    """A CLIP from a local folder or the hub, in evaluation mode, float32.

    With `weights=False` only its configuration, tokenizer and processor are read, and the weights are fresh.
    Names and exceptions as in `read_config`.
    """
    open_clip_folder = find_open_clip(name)
    if open_clip_folder is not None:
        model, processor = load_open_clip(open_clip_folder, weights)
    else:
        config = read_config(name)
        tokenizer = checkpoint.read_tokenizer(name)
        checkpoint.check_vocabulary(name, tokenizer, config.text_config.vocab_size)
        processor = CLIPProcessor(checkpoint.read_image_processor(CLIPImageProcessorPil, name), tokenizer)
        model = checkpoint.read_model(CLIPModel, name, config) if weights else CLIPModel(config)
    _check_end_token(name, processor.tokenizer, model.config.text_config.eos_token_id)
    return Clip(model.eval().to(device), processor, name)


def _check_end_token(name: str, tokenizer: PreTrainedTokenizerBase, eos_token_id: int) -> None:
    """Raise ValueError where the configuration has embeddings read at another token than the tokenizer's last one."""
    ids = tokenizer("a")["input_ids"]
    if _end_position(ids, eos_token_id) != len(ids) - 1 or len(ids) < 2:
        where = "the largest id" if eos_token_id == LEGACY_EOS_TOKEN_ID else f"token {eos_token_id}"
        raise ValueError(
            f"{name}: by its config.json captions are read at {where} (eos_token_id {eos_token_id}), but the tokenizer writes "
            f"{ids} for 'a'; put the tokenizer there that the model was trained with, or correct eos_token_id"
        )


def state_hash(module: nn.Module) -> str:
    """sha256 of a module's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _end_position(ids: list[int], eos_token_id: int) -> int:
    """Where CLIP reads the embedding: the first end token, or the first largest id in a legacy checkpoint."""
    if eos_token_id == LEGACY_EOS_TOKEN_ID:
        return int(np.argmax(ids))
    return ids.index(eos_token_id) if eos_token_id in ids else 0


def _save_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    np.save(temporary, array, allow_pickle=False)
    temporary.replace(path)
