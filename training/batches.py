"""What is trained on: pairs with what training and evaluation need of them, computed once; and their batches."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from data import ImageCaptionPairs, load_pairs
from data.splits import number_texts
from models import Encoder
from models.embedding_cache import cached_embeddings
from tasks.distance import Distance
from tasks.image_retrieval import retrieval_task
from training.augment import Augmentation


@dataclass(frozen=True)
class Split:
    """Pairs; the embeddings of their images by a frozen tower, (m, d); the teacher's embeddings of their captions, (n,
    d).

    Where the image tower is trained `image_embeddings` is None, or those of the teacher. Where no images are used,
    `pairs.images` is None.
    """

    pairs: ImageCaptionPairs
    image_embeddings: Tensor | None
    teacher_text: Tensor | None

    @property
    def captions_alone(self) -> bool:
        """Whether there is no other side of the pairs."""
        return self.pairs.images is None and self.pairs.targets is None

    def figures(self, encoder: Encoder, frozen_vision: bool = True) -> dict[str, float]:
        """Task loss and recall; without images the mean distance 1 - cos to the teacher's text embeddings."""
        if self.captions_alone:
            distance = Distance(self.teacher_text.to(encoder.device))
            scores = distance.score(encoder.embeddings(encoder.samples(self.pairs)))
            return {"distance": scores.values.mean().item()}
        images = self.image_embeddings
        if images is None or not frozen_vision:
            images = encoder.image_embeddings(self.pairs.images)
        task = retrieval_task(encoder, images.to(encoder.device), self.pairs.image_index)
        return task.score(encoder.embeddings(encoder.samples(self.pairs))).figures


@dataclass(frozen=True)
class TrainingData:
    """The splits of a training. `full`: the model that gave the embeddings, the teacher; None if all is fresh."""

    train: Split
    validation: Split
    full: Encoder | None = None
    test: Split | None = None  # of the report

    def identity(self) -> dict:
        """What must be equal in a run that goes on."""
        pairs = self.train.pairs
        return {"images": not self.train.captions_alone, "captions": pairs.identity()["captions_sha256"]}


def selection_score(figures: dict[str, float]) -> float:
    """What the best epoch is chosen by, the greater the better: mean recall, or minus the distance to the teacher."""
    return figures["mean_recall"] if "mean_recall" in figures else -figures["distance"]


def load_split(
    encoder: Encoder,
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
    """A split with the embeddings asked for, all of them by `encoder`, the full model. `options`: of `load_pairs`.

    Pairs with broken images are left out with a warning; more than 1 % of them is an error.
    """
    pairs = load_pairs(dataset, split, images=images, **options)
    embeddings = None
    if images and image_embeddings:
        pairs, embeddings = encoder.embed_pairs(pairs, cache_dir, progress)
    else:
        pairs = pairs.decodable()
    content = pairs.images.content_hash if encoder.tower == "vision" else None
    samples = encoder.samples(pairs)
    return Split(pairs, embeddings, cached_embeddings(encoder, samples, cache_dir, content) if teacher_text else None)


class PairBatches(Dataset):
    """Batches of pairs by row numbers, assembled by indexing tensors.

    A batch has `inputs` and `mask`, as in `models.encoders.Batch`, cut to its longest sample; `image_rows` and
    `caption_numbers` (n,), equal where the image or the caption is the same; and where they are there
    `image_embeddings` (n, d), the targets, `pixel_values` (n, 3, H, W), `teacher_text` (n, d).

    The samples of a text tower are captions, and its targets images; those of an image tower the other way round.

    Args:
        encoder: it says how its samples are batched; its image processor is used for pixels.
        split: the pairs and what is known of them.
        pixels: whether a batch has the images themselves, decoded when the batch is made.
        augmentation: changes the captions, and the images where they are decoded.
    """

    def __init__(self, encoder: Encoder, split: Split, pixels: bool = False, augmentation: Augmentation | None = None):
        pairs = split.pairs
        self.augmentation, self._captions = augmentation, pairs.captions
        self._encoder, self._of_images = encoder, encoder.tower == "vision"
        self._prepared = encoder.prepare(encoder.samples(pairs))
        # tokens of all captions as one tensor, of which a batch takes rows; images are read when a batch needs them
        self._all = None if self._of_images else encoder.batch(self._prepared, range(len(pairs))).to("cpu")
        self._image_rows = torch.from_numpy(pairs.image_index)
        self._image_embeddings = None if split.image_embeddings is None else split.image_embeddings.cpu()
        self._teacher_text = None if split.teacher_text is None else split.teacher_text.cpu()
        self._images = pairs.images if pixels else None
        # equal captions have equal numbers: no negatives of each other
        self._caption_numbers = torch.from_numpy(number_texts(pairs.captions))
        self.groups = pairs.groups

    def __len__(self) -> int:
        return len(self._image_rows)

    # a DataLoader asks a data set that has this method for the rows of a whole batch at once
    def __getitems__(self, rows: list[int]) -> dict[str, Tensor | dict[str, Tensor]]:
        rows = torch.as_tensor(rows)
        image_rows = self._image_rows[rows]
        sample_rows, target_rows = (image_rows, rows) if self._of_images else (rows, image_rows)
        if self._of_images:
            samples = self._encoder.batch(self._prepared, sample_rows.tolist()).to("cpu")
        elif self.augmentation:
            # by the row among all pairs: the same change in whatever batch and process it comes
            changed = [self.augmentation.caption(self._captions[row], row) for row in rows.tolist()]
            samples = self._encoder.batch(self._encoder.prepare(changed), range(len(rows))).to("cpu")
        else:
            samples = self._all.select(rows)
        batch = {"inputs": samples.inputs, "mask": samples.mask, "image_rows": image_rows}
        batch["caption_numbers"] = self._caption_numbers[rows]
        if self._image_embeddings is not None:
            batch["image_embeddings"] = self._image_embeddings[target_rows]
        if self._teacher_text is not None:
            batch["teacher_text"] = self._teacher_text[sample_rows]
        if self._images is not None:
            images = [self._images[row] for row in image_rows.tolist()]
            if self.augmentation:
                pairs = zip(images, rows.tolist(), strict=True)
                images = [self.augmentation.image(image, self._captions[row], row) for image, row in pairs]
            batch["pixel_values"] = self._encoder.preprocess(images)
        return batch


class EpochBatches(BatchSampler):
    """Full batches in an order that depends on the seed and the epoch alone, so that a resumed run sees the same ones.

    Pairs of one group (n,) stay together, in one batch or in two that follow each other: hard negatives of each other
    teach something only where they meet (NegCLIP, Yuksekgonul et al. 2023).
    """

    drop_last = True  # read by accelerate, as `batch_size` is, to share out the batches: all of them are full

    def __init__(self, num_pairs: int, batch_size: int, seed: int, groups: np.ndarray | None = None):
        self.num_pairs, self.batch_size, self.seed, self.epoch = num_pairs, min(batch_size, num_pairs), seed, 0
        self._groups = None if groups is None else np.unique(groups, return_inverse=True)[1]

    def __len__(self) -> int:
        return self.num_pairs // self.batch_size

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_pairs)
        if self._groups is not None:  # a group's place is that of the first of its pairs
            _, first = np.unique(self._groups[order], return_index=True)
            order = order[np.argsort(first[self._groups[order]], kind="stable")]
        for i in range(len(self)):  # the last pairs, fewer than a batch, come in another epoch
            yield order[i * self.batch_size : (i + 1) * self.batch_size].tolist()


def make_loader(batches: PairBatches, sampler: EpochBatches, num_workers: int) -> DataLoader:
    """A loader of whole batches; `num_workers` processes decode images ahead, 0: none."""
    return DataLoader(
        batches,
        batch_sampler=sampler,
        collate_fn=_as_it_is,  # the batch is whole already: torch's own way would stack it again
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),  # copied to the GPU while it computes
    )


def _as_it_is(batch: dict) -> dict:
    return batch
