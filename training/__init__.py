"""Contrastive training of a CLIP text tower against cached or live image embeddings."""
