"""Coarse and fine search for the layers to drop."""
