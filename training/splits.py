"""The splits of a data set with what training and evaluation need of them, computed once and cached on disk."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import write_array
from data import ImageCaptionPairs, load_pairs
from models import Clip
from models.encoders import state_hash
from tasks.evaluation import evaluate_retrieval


@dataclass(frozen=True)
class Split:
    """Pairs; the embeddings of their images by a frozen tower, (m, d); the teacher's embeddings of their captions, (n, d).

    Where the image tower is trained `image_embeddings` is None, or those of the teacher. Where no images are used,
    `pairs.images` is None.
    """

    pairs: ImageCaptionPairs
    image_embeddings: Tensor | None
    teacher_text: Tensor | None

    def figures(self, clip: Clip, frozen_vision: bool = True) -> dict[str, float]:
        """Task loss and recall of a model; without images the mean distance 2 - 2 cos to the teacher's text embeddings."""
        if self.pairs.images is None:
            text = clip.embeddings(self.pairs.captions)
            distance = (text - self.teacher_text.to(text.device)).square().sum(-1).mean()
            return {"feature_distance": distance.item()}
        images = self.image_embeddings
        if images is None or not frozen_vision:
            images = clip.image_embeddings(self.pairs.images)
        return evaluate_retrieval(clip, self.pairs, images)


def score(figures: dict[str, float]) -> float:
    """What the best epoch is chosen by, the greater the better: mean recall, or minus the distance to the teacher."""
    return figures["mean_recall"] if "mean_recall" in figures else -figures["feature_distance"]


def load_split(
    clip: Clip,
    dataset: str,
    split: str,
    *,
    options: dict,
    images: bool = True,
    image_embeddings: bool = True,
    teacher_text: bool = False,
    cache_dir: Path | None = None,
    progress: bool = False,
) -> Split:
    """A split with the embeddings asked for, all of them by `clip`, the full model. `options`: of `load_pairs`.

    Pairs with broken images are left out with a warning; more than 1 % of them is an error.
    """
    pairs = load_pairs(dataset, split, images=images, **options)
    embeddings = None
    if images and image_embeddings:
        pairs, embeddings = clip.embed_pairs(pairs, cache_dir, progress)
    elif images:
        pairs = pairs.without_images(np.array([image is None for image in pairs.images]))
    return Split(pairs, embeddings, cached_text_embeddings(clip, pairs.captions, cache_dir) if teacher_text else None)


def cached_text_embeddings(clip: Clip, captions: list[str], cache_dir: Path | None) -> Tensor:
    """Text embeddings (n, d) of the captions; equal ones are computed once.

    Cached in `cache_dir` under a name made from the captions as tokens and the weights of the text tower.
    """
    if cache_dir is None:
        return _text_embeddings(clip, captions)
    parts = (
        json.dumps(clip.prepare(captions)),
        state_hash(clip.model.text_model),
        state_hash(clip.model.text_projection),
        json.dumps(clip.model.config.text_config.to_dict(), sort_keys=True, default=str),
    )
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = cache_dir / f"text_embeddings_{key}.npy"
    if not path.exists():
        write_array(path, _text_embeddings(clip, captions).cpu().numpy())
    return torch.from_numpy(np.load(path, allow_pickle=False)).to(clip.device)


def _text_embeddings(clip: Clip, captions: list[str]) -> Tensor:
    distinct, numbers = np.unique(captions, return_inverse=True)
    return clip.embeddings(distinct.tolist())[torch.from_numpy(numbers)]
