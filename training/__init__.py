"""Training of a CLIP's text tower against image embeddings, the full model's text embeddings, or both."""
