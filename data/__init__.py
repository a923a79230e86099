"""Pairs of images and captions from every form that README.md lists, and those that are bundled."""

from data.pairs import DataOptions, ImageCaptionPairs, load_labels, load_pairs
from data.sources import BUNDLED
