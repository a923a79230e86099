"""Training batches: captions cut to the longest in the batch, with image embeddings or pixels."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from data import ImageCaptionPairs
from models import Clip


class PairBatches(Dataset):
    """Batches of pairs by row numbers: `input_ids` (n, T), `lengths` (n,) and either `image_embeddings` (n, d) or `pixel_values`."""

    def __init__(self, clip: Clip, pairs: ImageCaptionPairs, image_embeddings: Tensor | None):
        self._clip, self._pairs = clip, pairs
        self._tokens = clip.tokenize(pairs.captions)
        self._image_embeddings = None if image_embeddings is None else image_embeddings.cpu()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        image_rows = self._pairs.image_index[rows]
        input_ids, lengths = self._clip.pad(self._tokens, rows)
        batch = {"input_ids": input_ids, "lengths": lengths}
        if self._image_embeddings is not None:
            return batch | {"image_embeddings": self._image_embeddings[image_rows]}
        images = [self._pairs.images[row] for row in image_rows]
        return batch | {"pixel_values": self._clip.preprocess(images)}


class EpochBatches(BatchSampler):
    """Full batches in an order that depends on the seed and the epoch alone, so that a resumed run sees the same ones."""

    def __init__(self, num_pairs: int, batch_size: int, seed: int):
        self.num_pairs, self.batch_size, self.seed, self.epoch = num_pairs, min(batch_size, num_pairs), seed, 0

    def __len__(self) -> int:
        return self.num_pairs // self.batch_size

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_pairs)
        for i in range(len(self)):
            yield order[i * self.batch_size : (i + 1) * self.batch_size].tolist()


def make_loader(dataset: PairBatches, sampler: EpochBatches, num_workers: int) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=lambda batch: batch,
        num_workers=num_workers,
        persistent_workers=False,
        pin_memory=torch.cuda.is_available(),
    )
