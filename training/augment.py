"""Changes of pairs while training: images shifted, scaled and mirrored, words of captions left out and exchanged.

augmentation = Augmentation(seed=0)
augmentation.epoch = 3
augmentation.caption("alarm clock off", row=17)        # "alarm off", the same each time it is asked for
"""

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

# mild: twice as much made a worse model (RESULTS.md, section 6)
SHIFT = 1 / 16  # of a side, at most, in both directions
SCALE = 0.1  # larger or smaller by at most that
LEAVE_OUT = 0.1  # chance of a word
EXCHANGE = 0.1  # chance of a caption that two neighbouring words change places
# a mirrored picture is another one where the caption has one of these, a single letter (but the article) or a number
SIDED = re.compile(
    "left|right|leftward|rightward|west|east|forward|backward|back|next|previous|prev|rewind|skip|clockwise|anticlockwise|"
    r"counterclockwise|undo|redo|letter|text|number|[^\Wa]|\d+"
)


@dataclass
class Augmentation:
    """What it does to a pair depends on the seed, the epoch and the pair's row alone: a resumed training, and any
    number of processes, see the same."""

    seed: int
    epoch: int = 0

    def caption(self, caption: str, row: int) -> str:
        """At least one word stays."""
        words, draw = caption.split(), self._generator(row, 0)
        kept = [word for word in words if draw.random() >= LEAVE_OUT] or words[:1]
        if len(kept) > 1 and draw.random() < EXCHANGE:
            first = draw.integers(len(kept) - 1)
            kept[first : first + 2] = kept[first + 1], kept[first]
        return " ".join(kept)

    def image(self, image: Image.Image, caption: str, row: int) -> Image.Image:
        """Of the same size; what comes in at the sides has the colour of the upper left corner. Mirrored in half of the
        cases, where the caption, and every letter and digit that it names, allows it."""
        draw = self._generator(row, 1)
        scale = 1 + draw.uniform(-SCALE, SCALE)
        if draw.random() < 0.5 and may_be_mirrored(caption):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # the affine map from places of the new image to those of the old one, around the centre
        (width, height), shifts = image.size, draw.uniform(-SHIFT, SHIFT, 2)
        x, y = (side * (1 - scale) / 2 + side * shift for side, shift in zip((width, height), shifts, strict=True))
        corner = image.getpixel((0, 0))
        values = (scale, 0, x, 0, scale, y)
        return image.transform(image.size, Image.Transform.AFFINE, values, Image.Resampling.BILINEAR, fillcolor=corner)

    def _generator(self, row: int, what: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, row, what))


def may_be_mirrored(caption: str) -> bool:
    """Whether no word tells left from right, or looks otherwise in a mirror; "a" alone is a letter."""
    words = re.findall(r"\w+", caption.lower())
    return words != ["a"] and not any(SIDED.fullmatch(word) for word in words)
