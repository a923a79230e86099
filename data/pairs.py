"""Pairs of an image and a caption (or of two texts) from every form that `data/README.md` lists.

`load_pairs` finds the rows (`sources`), the split among them (`splits`) and the columns (`columns`), and tells images
apart by their bytes (`images`).
"""

import hashlib
import warnings
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import datasets
import numpy as np

from common.files import reading
from data import columns, scenes
from data.images import ImageFiles, distinct_images
from data.sources import Rows, Source, read_source
from data.splits import ChosenRows, assign_splits, choose_rows, column_names, number_texts, take_from_stream

GROUP_COLUMN = "group"
MAX_SKIPPED = 0.01  # share of broken images or empty captions that is still only a warning
BENCHMARKS = {  # images and captions: splits that papers report on
    (1_000, 5_000): "Flickr30k's (and Flickr8k's) test split",
    (5_000, 25_000): "COCO's 5k test split (Karpathy), five captions an image",
    (5_000, 25_010): "COCO's 5k test split (Karpathy)",
    (5_000, 25_014): "COCO's val2017",
}


@dataclass(frozen=True)
class DataOptions:
    """How the rows of a data set are read; each is the flag of its name."""

    image_column: str | None = None  # these three are found by their usual names
    caption_column: str | None = None
    target_column: str | None = None  # of texts, in the place of images
    image_root: Path | None = None  # where relative paths of images begin
    max_pairs: int | None = None  # the first so many pairs of the split alone
    streaming: bool = False  # read no more rows than `max_pairs` needs, and no images


@dataclass(frozen=True)
class ImageCaptionPairs:
    """Captions and, for each, the number of its image, or of its target where the other side is text.

    `images` is None where only captions were asked for.
    """

    captions: list[str]
    image_index: np.ndarray  # (n,) int64: caption i belongs to images[image_index[i]], or to targets[image_index[i]]
    images: ImageFiles | None
    source: str
    split: str
    notes: dict = field(default_factory=dict)  # how the split was read, for the record
    targets: list[str] | None = None
    rows: datasets.Dataset | None = field(default=None, repr=False)  # which `images.row_numbers` counts
    groups: np.ndarray | None = None  # (n,) int64: pairs of one group are hard negatives of each other

    def __len__(self) -> int:
        return len(self.captions)

    def identity(self) -> dict:
        """What a run record says about the data."""
        digest = hashlib.sha256("\0".join(self.captions).encode()).hexdigest()
        sides = {"images": self.images, "targets": self.targets}
        return {
            "source": self.source,
            "split": self.split,
            "captions": len(self),
            **{name: len(side) for name, side in sides.items() if side is not None},
            "captions_sha256": digest,
            **self.notes,
        }

    def describe(self) -> str:
        """The same in one line, for the log."""
        other = f" of {len(self.images)} images" if self.images is not None else ""
        other = f" with {len(self.targets)} targets" if self.targets is not None else other
        return f"{self.source}, {self.split}: {len(self)} captions{other}; " + "; ".join(
            f"{name}: {value}" for name, value in self.notes.items()
        )

    def select(self, kept: np.ndarray) -> "ImageCaptionPairs":
        """The pairs where the boolean mask (n,) says so, with their images alone."""
        if kept.all():
            return self
        used, image_index = np.unique(self.image_index[kept], return_inverse=True)
        return replace(
            self,
            captions=[self.captions[i] for i in np.flatnonzero(kept)],
            image_index=image_index,
            images=self.images.select(used) if self.images is not None else None,
            targets=[self.targets[i] for i in used] if self.targets is not None else None,
            groups=self.groups[kept] if self.groups is not None else None,
        )

    def decodable(self) -> "ImageCaptionPairs":
        """The pairs whose image can be decoded; where no images were read, all."""
        return self if self.images is None else self.without_images(np.array([image is None for image in self.images]))

    def without_images(self, broken: np.ndarray) -> "ImageCaptionPairs":
        """The pairs whose image is not in `broken` (a boolean mask over the images)."""
        if not broken.any():
            return self
        of_broken = broken[self.image_index]
        why = f"cannot be decoded, the first of them {self.images.name(int(broken.argmax()))}"
        check_skipped(int(broken.sum()), len(broken), "image", why, self.source)
        if of_broken.mean() > MAX_SKIPPED:  # one image may have many captions
            check_skipped(
                int(of_broken.sum()), len(self), "caption", "have an image that cannot be decoded", self.source
            )
        kept = self.select(~of_broken)
        return replace(kept, notes=self.notes | {"broken_images": int(broken.sum())})


def load_pairs(
    dataset: str, split: str, *, images: bool = True, or_validation: bool = False, **options: object
) -> ImageCaptionPairs:
    """The pairs of one split: `train`, `validation`, `test`, or `all` for every row there is.

    `options`: the fields of `DataOptions`. With `images=False` the captions alone are asked for: no image is decoded,
    and none is read but to cut a split. With `or_validation`, validation is read for train where there is no train.
    Empty captions are skipped with one warning, and images that have no other; more than 1 % of them is an error.
    Raises FileNotFoundError where there is no such source and ValueError where it has no such column or split.
    """
    options = DataOptions(**options)
    if (dataset, split) == ("scenes", "train"):
        return _take_first(_render_scenes(images, options.max_pairs), options.max_pairs)
    images = images and options.target_column is None
    if options.streaming and (images or not options.max_pairs):
        raise ValueError("--streaming true reads captions alone, and needs --max_pairs")
    source = read_source(
        dataset, caption_column=options.caption_column, image_root=options.image_root, streaming=options.streaming
    )
    chosen = choose_rows(source.splits, split, dataset, or_validation)
    chosen = chosen._replace(rows=_without_failed(chosen.rows))
    if options.streaming:
        chosen = _stream(chosen, options, split, source, dataset)
    captions, row_of_caption = _read_captions(chosen.rows, options, source, dataset)
    groups = _read_groups(chosen.rows, row_of_caption)
    pairs = ImageCaptionPairs(captions, row_of_caption, None, dataset, split, rows=chosen.rows, groups=groups)
    if options.target_column:
        pairs = _with_targets(pairs, options.target_column)
    elif images or chosen.cut:
        pairs = _with_images(pairs, options.image_column, source, needed=images)
    pairs.notes.update(form=source.form, read=chosen.how)
    if chosen.cut:
        pairs = _cut(pairs, chosen)
    pairs = _take_first(pairs, options.max_pairs)
    return _name_benchmark(pairs if images else replace(pairs, images=None))


def _render_scenes(images: bool, max_pairs: int | None) -> ImageCaptionPairs:
    """The train split of the scenes, or more than its first pairs: drawn, not read. A group for each way in which the
    scenes of a group are said."""
    ways = scenes.WAYS
    # more than asked for, so that _take_first cuts them and notes it
    wanted = max_pairs // ways + 2 if max_pairs else None
    numbers, drawn = zip(*islice(scenes.train_scenes(), wanted), strict=True)
    captions = [caption for scene in drawn for caption in scenes.captions(scene)]
    groups = np.repeat(numbers, ways) * ways + np.tile(np.arange(ways), len(drawn))
    notes = {"form": "scenes rendered when they are asked for", "read": "the split train"}
    pictures = scenes.RenderedScenes(list(drawn)) if images else None
    index = np.repeat(np.arange(len(drawn)), ways)
    return ImageCaptionPairs(captions, index, pictures, "scenes", "train", notes, groups=groups)


def _take_first(pairs: ImageCaptionPairs, max_pairs: int | None) -> ImageCaptionPairs:
    """The first `max_pairs` pairs, or all."""
    if not max_pairs or max_pairs >= len(pairs):
        return pairs
    return replace(pairs.select(np.arange(len(pairs)) < max_pairs), notes=pairs.notes | {"max_pairs": max_pairs})


def _read_groups(rows: datasets.Dataset, row_of_caption: np.ndarray) -> np.ndarray | None:
    """The group of each caption, where there is a column of whole numbers for it."""
    groups = np.asarray(rows[GROUP_COLUMN] if GROUP_COLUMN in rows.column_names else [])
    return groups[row_of_caption] if groups.dtype.kind == "i" else None


def _without_failed(rows: Rows) -> Rows:
    """The rows of img2dataset's tables without those that it could not download."""
    if not {"url", "status"} <= set(column_names(rows)):
        return rows
    return rows.filter(_was_downloaded, input_columns=["status"])


def _was_downloaded(status: object) -> bool:
    return status not in ("failed_to_download", "failed_to_resize")


def _stream(chosen: ChosenRows, options: DataOptions, split: str, source: Source, dataset: str) -> ChosenRows:
    """The rows that hold the first `max_pairs` captions, read from a stream."""
    names = column_names(chosen.rows)
    found = columns.find_caption_columns(names, options.caption_column, dataset, source.hint)
    asked = options.target_column
    targets = [columns.find_column(names, asked, (), "target", dataset)] if asked else []
    rows = take_from_stream(chosen, split, found, targets, options.max_pairs, dataset)
    return ChosenRows(rows, f"{chosen.how}, the first rows of a stream")


def _read_captions(
    rows: datasets.Dataset, options: DataOptions, source: Source, dataset: str
) -> tuple[list[str], np.ndarray]:
    """All captions and the row of each; empty ones left out."""
    found = columns.find_caption_columns(rows.column_names, options.caption_column, dataset, source.hint)
    with reading(dataset, "its captions cannot be read"):
        captions, row_of_caption = columns.read_captions(rows, found)
    kept = [number for number, caption in enumerate(captions) if caption]
    if len(kept) < len(captions):
        check_skipped(len(captions) - len(kept), len(captions), "caption", "are empty", dataset)
    return [captions[number] for number in kept], row_of_caption[kept]


def _with_images(pairs: ImageCaptionPairs, asked: str | None, source: Source, needed: bool) -> ImageCaptionPairs:
    """The pairs with the image of each row. Where none is `needed` they are for a cut alone, and may be missing."""
    try:
        column = columns.find_column(pairs.rows.column_names, asked, columns.IMAGE_COLUMNS, "image", pairs.source)
        files = columns.as_image_files(pairs.rows, column, source.folders, pairs.source, must_exist=needed)
    except ValueError as error:
        if not needed and not asked:
            return pairs
        url = next((name for name in pairs.rows.column_names if name.lower() in columns.URL_COLUMNS), None)
        more = f"; the column {url} has addresses: download the images first, as img2dataset does" if url else ""
        raise ValueError(f"{error}{more}; {columns.CAPTIONS_ALONE}") from error
    first_row, image_of_row = distinct_images(files, column)
    used, image_index = np.unique(image_of_row[pairs.image_index], return_inverse=True)
    return replace(pairs, image_index=image_index, images=ImageFiles(files, column, first_row[used]))


def _with_targets(pairs: ImageCaptionPairs, asked: str) -> ImageCaptionPairs:
    """The pairs with the text of another column for each row; equal texts are one target."""
    column = columns.find_column(pairs.rows.column_names, asked, (), "target", pairs.source)
    texts = [" ".join(columns.captions_of(text)) for text in pairs.rows[column]]
    distinct = list(dict.fromkeys(texts))  # in the order of their numbers
    used, image_index = np.unique(number_texts(texts)[pairs.image_index], return_inverse=True)
    return replace(pairs, image_index=image_index, targets=[distinct[number] for number in used])


def _cut(pairs: ImageCaptionPairs, chosen: ChosenRows) -> ImageCaptionPairs:
    """The split's part of pairs from which the splits `chosen.cut` are cut."""
    by = "caption" if pairs.images is None and pairs.targets is None else "image and caption"
    pairs.notes["read"] = f"{chosen.how} ({len(pairs)} captions) by {by}: what shares one stays together"
    split_of = assign_splits(pairs.captions, pairs.image_index, chosen.cut)
    kept = pairs.select(split_of == pairs.split)
    if not len(kept):
        raise ValueError(
            f"{pairs.source}: no rows for the split {pairs.split}; it has the splits train, and by their hashes none "
            f"of its {len(pairs)} captions was cut from it; give more pairs, or a split {pairs.split}: a file of that name in "
            "a folder, or a column `split`"
        )
    return kept


def _name_benchmark(pairs: ImageCaptionPairs) -> ImageCaptionPairs:
    """A note where there are as many images and captions as in a split that papers report on."""
    known = pairs.images is not None and BENCHMARKS.get((len(pairs.images), len(pairs)))
    return replace(pairs, notes=pairs.notes | {"as_many_as": known}) if known else pairs


def load_labels(pairs: ImageCaptionPairs, label_column: str) -> list[str] | list[int]:
    """The label of each image of `pairs`, from another column: text, or the numbers of classes without names.

    Raises ValueError where there is no such column, or where it holds neither text nor whole numbers.
    """
    if pairs.rows is None:
        raise ValueError(f"{pairs.source}: this split is drawn, it has no columns; leave out --label_column")
    column = columns.find_column(pairs.rows.column_names, label_column, (), "label", pairs.source)
    values = list(pairs.rows[column])
    labels = [values[row] for row in pairs.images.row_numbers]
    feature = pairs.rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return [feature.int2str(label) for label in labels]
    if not (all(isinstance(label, str) for label in labels) or all(isinstance(label, int) for label in labels)):
        raise ValueError(f"{pairs.source}: the column {column} is {feature}; expected text or numbers of classes")
    return labels


def check_skipped(skipped: int, total: int, what: str, why: str, dataset: str) -> None:
    """Warn of what was skipped. Raises ValueError where it is more than 1 %."""
    if skipped > MAX_SKIPPED * total:
        raise ValueError(f"{dataset}: {skipped} of {total} {what}s {why}; at most {MAX_SKIPPED:.0%} may be skipped")
    warnings.warn(f"{dataset}: skipped {skipped} of {total} {what}s ({why})", stacklevel=2)
