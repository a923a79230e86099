"""Icon scenes: pictures of two to four coloured icons, and captions whose meaning is in how the words are bound.

A scene is a layout (a row, a column, a pair above or left of a third, two pairs) with an icon, a colour and a size in
each of its places. Scenes come in groups of *hard negatives*: the same layout and the same words, given to other places
(colours exchanged, left for right), so whoever reads a caption as a bag of words cannot tell the scenes of a group
apart.

A group is drawn from a seed and its number alone. The scenes of train are drawn and rendered when they are asked for;
those of validation and test are stored as PNGs, made by `python -m tools.build_scenes`.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CONCEPTS = Path(__file__).resolve().parent / "scenes" / "concepts.png"  # a row a concept, a column a design, grey
NAMES = CONCEPTS.with_suffix(".json")  # the concept of each row
IMAGE_SIZE, ICON_SIZE = 64, 32
PIXELS = {"small": 14, "": 20, "large": 26}  # an icon of this size, in its quarter of the picture
GROUNDS = {"": (255, 255, 255), "grey": (200, 200, 205), "beige": (240, 225, 185), "cyan": (175, 235, 240)}
COLOURS = {
    "red": (225, 20, 30),
    "green": (20, 150, 45),
    "blue": (30, 60, 230),
    "orange": (250, 130, 0),
    "purple": (130, 20, 160),
    "brown": (120, 70, 30),
    "pink": (250, 80, 170),
    "black": (15, 15, 15),
}
TRAIN_GROUPS, TRAIN_GROUP_SIZE = 15_000, 4
WAYS = 2  # in which each scene of train is said
SEEDS = {"train": 1, "validation": 2, "test": 3}

# Which quarters of the picture (0 1 above 2 3) the things of a layout stand in: one of these, drawn with the scene.
PLACES = {
    "beside": ((0, 1), (2, 3)),
    "stacked": ((0, 2), (1, 3)),
    "pair above one": ((0, 1, 2), (0, 1, 3)),
    "one above pair": ((0, 2, 3), (1, 2, 3)),
    "stack left of one": ((0, 2, 1), (0, 2, 3)),
    "one left of stack": ((0, 1, 3), (2, 1, 3)),
    "pair above pair": ((0, 1, 2, 3),),
}
CHANCES = (0.1, 0.1, 0.15, 0.15, 0.15, 0.15, 0.2)


@dataclass(frozen=True)
class Thing:
    """One icon of a scene: what it shows (a row and a column of the sheet of concepts), its colour, its size."""

    concept: str
    design: int
    colour: str
    size: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.concept}".strip()


@dataclass(frozen=True)
class Scene:
    """Things in the places of a layout, on a ground; `seed` chooses the quarters left open, and moves them a little."""

    layout: str
    things: tuple[Thing, ...]
    ground: str
    seed: int


@functools.cache
def concepts() -> dict[str, np.ndarray]:
    """(designs, 32, 32) float32 in 0..1 of each concept: how much of every pixel is ink."""
    sheet = 1 - np.asarray(Image.open(CONCEPTS), dtype=np.float32) / 255
    names = json.loads(NAMES.read_text(encoding="utf-8"))
    rows = sheet.reshape(len(names), ICON_SIZE, -1, ICON_SIZE).transpose(0, 2, 1, 3)
    return dict(zip(names, rows, strict=True))


# --- drawing scenes from numbers


def draw_group(split: str, number: int, size: int) -> list[Scene]:
    """The scenes of one group: the same words in `size` different bindings, or as many as there are."""
    generator = np.random.default_rng((SEEDS[split], number))
    layout = tuple(PLACES)[generator.choice(len(PLACES), p=CHANCES)]
    num_things = len(PLACES[layout][0])
    names = generator.choice(tuple(concepts()), num_things, replace=False).tolist()
    designs = [int(generator.integers(len(concepts()[name]))) for name in names]
    colours = generator.choice(tuple(COLOURS), num_things, replace=False).tolist()
    sizes = generator.choice(tuple(PIXELS), num_things, p=(0.15, 0.7, 0.15)).tolist()
    ground = str(generator.choice(tuple(GROUNDS), p=(0.55, 0.15, 0.15, 0.15)))
    seed = int(generator.integers(2**31))
    bindings: dict[tuple, None] = {}  # in the order of drawing
    for _ in range(20 * size):  # a scene of two things may have fewer bindings than asked for: stop trying
        order, paint, scale = (generator.permutation(num_things).tolist() for _ in range(3))
        bindings.setdefault(tuple((i, colours[j], sizes[k]) for i, j, k in zip(order, paint, scale, strict=True)))
        if len(bindings) == size:
            break
    scenes = []
    for number_in_group, binding in enumerate(bindings):
        things = tuple(Thing(names[i], designs[i], colour, extent) for i, colour, extent in binding)
        scenes.append(Scene(layout, things, ground, seed + number_in_group))
    return scenes


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB picture; its things stand a pixel off their places at most."""
    generator = np.random.default_rng(scene.seed)
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    canvas[:] = GROUNDS[scene.ground]
    places = PLACES[scene.layout][generator.integers(len(PLACES[scene.layout]))]
    for thing, place in zip(scene.things, places, strict=True):
        side = PIXELS[thing.size]
        ink = _resize(thing.concept, thing.design, side)[:, :, None]
        corners = (ICON_SIZE * (place % 2), ICON_SIZE * (place // 2))
        x, y = (corner + (ICON_SIZE - side) // 2 + int(generator.integers(-1, 2)) for corner in corners)
        area = canvas[y : y + side, x : x + side]
        area += ink * (np.asarray(COLOURS[thing.colour], dtype=np.float32) - area)
    return Image.fromarray(canvas.round().astype(np.uint8))


@functools.cache
def _resize(concept: str, design: int, side: int) -> np.ndarray:
    """(side, side) ink of an icon in the size in which it stands in a scene."""
    icon = Image.fromarray(concepts()[concept][design])
    return np.asarray(icon.resize((side, side), Image.Resampling.BOX)).clip(0, 1)


# --- captions

BESIDE = (
    ("{} left of {}", 0, 1),
    ("{} right of {}", 1, 0),
    ("{} to the left of {}", 0, 1),
    ("{} to the right of {}", 1, 0),
)
STACKED = (("{} above {}", 0, 1), ("{} below {}", 1, 0), ("{} over {}", 0, 1), ("{} under {}", 1, 0))
# How a pair and what is above, below, left or right of it are said.
WHOLES = {
    "above": ("{pair}, both above {one}", "{one} below {pair}", "{pair}, and under them {one}"),
    "below": ("{pair}, both below {one}", "{one} above {pair}", "{pair}, and over them {one}"),
    "left": ("{pair}, both left of {one}", "{one} right of {pair}", "{pair}, and to their right {one}"),
    "right": ("{pair}, both right of {one}", "{one} left of {pair}", "{pair}, and to their left {one}"),
}


@dataclass(frozen=True)
class Words:
    """The choices of words that all scenes of a group are said with.

    `colours_after`: the order in which colours come after the things, which are referred to by name, or None;
    `relations`: a number in `BESIDE` or `STACKED` for each pair; `whole`: one in `WHOLES`, or whether of two pairs the
    lower one comes first.
    """

    colours_after: tuple[int, ...] | None
    relations: tuple[int, ...]
    whole: int


def captions(scene: Scene, number: int = WAYS) -> list[str]:
    """`number` ways to say what is in the scene; every scene of a group is said in the same ways."""
    seed = _words_seed(scene)
    return [_caption(scene, _choose_words(seed, way, scene.layout)) for way in range(number)]


def _words_seed(scene: Scene) -> int:
    """A number that all scenes of a group share: of their words, whatever they are bound to."""
    words = sorted(word for thing in scene.things for word in (thing.concept, thing.colour, thing.size))
    return int.from_bytes(hashlib.sha256(" ".join((scene.layout, scene.ground, *words)).encode()).digest()[:4], "big")


@functools.lru_cache(maxsize=16)  # for the scenes of one group, which come one after the other
def _choose_words(seed: int, way: int, layout: str) -> Words:
    generator, num_things = np.random.default_rng((seed, way)), len(PLACES[layout][0])
    colours_after = None
    if generator.random() < 0.35 and num_things < 4:
        colours_after = tuple(generator.permutation(num_things).tolist())
    relations = tuple(int(generator.integers(len(BESIDE))) for _ in range(num_things // 2))
    whole = 0
    if num_things == 3:
        whole = int(generator.integers(3))
    elif num_things == 4:
        whole = int(generator.random() >= 0.5)
    return Words(colours_after, relations, whole)


def _caption(scene: Scene, words: Words) -> str:
    texts, afterwards = list(map(str, scene.things)), ""
    if words.colours_after:
        texts = [f"{thing.size} {thing.concept}".strip() for thing in scene.things]
        things = (scene.things[i] for i in words.colours_after)
        afterwards = ", " + " and ".join(f"the {thing.concept} {thing.colour}" for thing in things)
    texts = [f"{'an' if text[0] in 'aeiou' else 'a'} {text}" for text in texts]
    return _relate(scene.layout, texts, words) + afterwards


def _relate(layout: str, texts: list[str], words: Words) -> str:
    """The things by name and where they stand to each other."""

    def pair(forms: tuple, first: str, second: str, number: int = 0) -> str:
        form, i, j = forms[words.relations[number]]
        return form.format((first, second)[i], (first, second)[j])

    def whole(side: str, pair_text: str, one: str) -> str:
        return WHOLES[side][words.whole].format(pair=pair_text, one=one)

    match layout:
        case "beside":
            return pair(BESIDE, *texts)
        case "stacked":
            return pair(STACKED, *texts)
        case "pair above one":
            return whole("above", pair(BESIDE, *texts[:2]), texts[2])
        case "one above pair":
            return whole("below", pair(BESIDE, *texts[1:]), texts[0])
        case "stack left of one":
            return whole("left", pair(STACKED, *texts[:2]), texts[2])
        case "one left of stack":
            return whole("right", pair(STACKED, *texts[1:]), texts[0])
        case _:
            top, bottom = pair(BESIDE, *texts[:2]), pair(BESIDE, *texts[2:], number=1)
            return f"{bottom}, above them {top}" if words.whole else f"{top}, below them {bottom}"


# --- the train split


class RenderedScenes(Sequence):
    """The pictures of the train scenes, drawn when they are asked for. Stands in for `data.images.ImageFiles`."""

    def __init__(self, scenes: list[Scene]):
        self._scenes = scenes

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Image.Image:
        return render(self._scenes[index])

    def select(self, kept: np.ndarray) -> "RenderedScenes":
        return RenderedScenes([self._scenes[i] for i in kept])

    def content_hash(self) -> str:
        """sha256 of what the pictures are drawn from."""
        digest = hashlib.sha256(CONCEPTS.read_bytes())
        digest.update(repr(self._scenes).encode())
        return digest.hexdigest()


def train_scenes() -> Iterator[tuple[int, Scene]]:
    """The scenes of train, with the number of their group."""
    for number in range(TRAIN_GROUPS):
        for scene in draw_group("train", number, TRAIN_GROUP_SIZE):
            yield number, scene
