"""The numbers and choices of the default search (but for `coarse.BEAM_SIZE` and `tasks.base.LOSS_BATCH_SIZE`).

Apart from the search itself so that flags can be read without torch.
"""

SEARCH_MODE = "beam"
SCORE = "both"
NUM_PROPOSALS = 10
REFINE_ROUNDS = 100
EVALUATIONS = 4  # a round: more of them share prefixes, fewer of them learn more from each other
CENTRES = 2  # so many of the best have their swaps tried: where the best is a dead end, the next often is not
SHARE = 0.5  # of the swaps of each, the more promising ones; the rest is never evaluated
OBJECTIVES = {
    "task_loss": "the loss that the model was trained with",
    "recall": "minus recall at 10, the mean of both directions",
    "embedding": "distance to the full model's embeddings, for which no image is needed",
}
