"""Training batches: captions cut to the longest in the batch, with what the loss needs of their images and of the teacher."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from data import ImageCaptionPairs
from models import Clip


class PairBatches(Dataset):
    """Batches of pairs by row numbers, assembled by indexing tensors.

    A batch has `input_ids` (n, T), `lengths` (n,), `image_rows` and `caption_numbers` (n,), equal where the image or the
    caption is the same, and where they are there:
    `image_embeddings` (n, d), `pixel_values` (n, 3, H, W), `teacher_text` (n, d).

    Args:
        clip: its tokenizer and image processor are used.
        pairs: the captions and the image of each; `images` may be None where no pixels are asked for.
        image_embeddings: (m, d), one row for each image.
        teacher_text: (n, d), one row for each caption.
        pixels: whether a batch has the images themselves, decoded when the batch is made.
    """

    def __init__(
        self,
        clip: Clip,
        pairs: ImageCaptionPairs,
        image_embeddings: Tensor | None = None,
        teacher_text: Tensor | None = None,
        pixels: bool = False,
    ):
        batch = clip.batch(clip.prepare(pairs.captions), range(len(pairs)))
        self._input_ids, self._lengths = batch.inputs["input_ids"].int().cpu(), batch.lengths.cpu()
        self._image_rows = torch.from_numpy(pairs.image_index)
        self.image_embeddings = None if image_embeddings is None else image_embeddings.cpu()
        self._teacher_text = None if teacher_text is None else teacher_text.cpu()
        self._images = pairs.images if pixels else None
        self.groups = pairs.groups
        distinct = np.unique(pairs.captions, return_inverse=True)[1]
        self._caption_numbers = torch.from_numpy(distinct)
        self._preprocess = clip.preprocess

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(rows)
        lengths, image_rows = self._lengths[rows], self._image_rows[rows]
        input_ids = self._input_ids[rows, : lengths.max()].long()
        batch = {"input_ids": input_ids, "lengths": lengths, "image_rows": image_rows}
        batch["caption_numbers"] = self._caption_numbers[rows]
        if self.image_embeddings is not None:
            batch["image_embeddings"] = self.image_embeddings[image_rows]
        if self._teacher_text is not None:
            batch["teacher_text"] = self._teacher_text[rows]
        if self._images is not None:
            batch["pixel_values"] = self._preprocess([self._images[row] for row in image_rows.tolist()])
        return batch


class EpochBatches(BatchSampler):
    """Full batches in an order that depends on the seed and the epoch alone, so that a resumed run sees the same ones.

    Pairs of one group (n,) stay together, in one batch or in two that follow each other: hard negatives of each other
    teach something only where they meet (NegCLIP, Yuksekgonul et al. 2023).
    """

    drop_last = True

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
        for i in range(len(self)):
            yield order[i * self.batch_size : (i + 1) * self.batch_size].tolist()


def make_loader(batches: PairBatches, sampler: EpochBatches, num_workers: int) -> DataLoader:
    """A loader of whole batches; `num_workers` processes decode images ahead, 0: none."""
    return DataLoader(
        batches,
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
