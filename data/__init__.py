"""Image-caption pairs from any source that `datasets` reads, and the bundled icons."""

from data.pairs import BUNDLED, ImageCaptionPairs, load_labels, load_pairs

__all__ = ["BUNDLED", "ImageCaptionPairs", "load_labels", "load_pairs"]
