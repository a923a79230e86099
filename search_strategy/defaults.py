"""The numbers and choices of the default search (but for `coarse.BEAM_SIZE` and `tasks.base.LOSS_BATCH_SIZE`).

Apart from the search itself so that flags can be read without torch.
"""

SEARCH_MODE = "beam"
SCORE = "both"
NUM_PROPOSALS = 10
REFINE_ROUNDS = 100
EVALUATIONS = 4  # a round: more of them share prefixes, fewer of them learn more from each other
# Of the swaps of the best proposal so far, and of those of the second best, the more promising share is tried, the rest
# never: where the best is a dead end, the next often is not. Half of both missed the best of all on one model of four.
SHARES = (0.75, 0.25)
OBJECTIVES = {
    "task_loss": "the loss that the model was trained with",
    "recall": "minus recall at 10, the mean of both directions",
    "embedding": "distance to the full model's embeddings, for which no image is needed",
}
