"""The numbers and choices of the default search (but for `coarse.BEAM_SIZE` and `tasks.base.LOSS_BATCH_SIZE`).

Apart from the search itself so that flags can be read without torch.
"""

SEARCH_MODE = "beam"
SCORE = "both"
NUM_PROPOSALS = 10
REFINE_ROUNDS = 20
SAMPLES_AT_ONCE = 512  # in a forward pass
OBJECTIVES = {
    "task_loss": "the loss that the model was trained with",
    "recall": "minus recall at 10, the mean of both directions",
    "embedding": "distance to the full model's embeddings, for which no image is needed",
}
