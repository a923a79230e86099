"""Training of an encoder's tower towards the fixed other side of its pairs, the full model's embeddings, or both."""
