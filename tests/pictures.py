"""Pictures that are written but not drawn, for tests that do not look at them: of a small run they take most time."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

DRAW = Figure.savefig
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8))  # about 16 kB as a PNG


def save_noise(figure: Figure, path: Path, **options: object) -> None:
    """As large a file as `Figure.savefig` would write, without the drawing."""
    NOISE.save(path, "PNG")
