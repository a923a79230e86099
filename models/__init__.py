"""The stack of layers in a transformer, and CLIP on top of it."""

from models.layer_stack import LayerStack

__all__ = ["LayerStack"]
