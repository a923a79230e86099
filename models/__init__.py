"""The layers of a transformer (find them, run part of them, drop some), and CLIP on top of them."""

from models.clip import Clip, TokenBatch, load_clip
from models.layer_stack import LayerStack

__all__ = ["Clip", "LayerStack", "TokenBatch", "load_clip"]
