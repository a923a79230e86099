"""The numbers and choices of the default search (but for `coarse.BEAM_SIZE` and `tasks.base.LOSS_BATCH_SIZE`).

Apart from the search itself so that flags can be read without torch.
"""

SEARCH_MODE = "beam"
SCORE = "both"
OBJECTIVE = "task_loss"
NUM_PROPOSALS = 10
REFINE_ROUNDS = 200
BEST_SHOWN = 10  # proposals of a table; they are evaluated without repair too
REFIT = 1  # proposals repaired cut by cut at the end: 2 to 30 s each at 12 layers, a minute or more at B/32's size
EVALUATIONS = 2  # a round: more of them share prefixes, fewer of them learn more from each other
CENTRES = 5  # the best proposals, then the most promising, whose swaps are looked at: some lead out of a dead end
CHANCE = 0.007  # of a proposal to be better than the best: the search ends where none has as much
OBJECTIVES = {
    "task_loss": "the loss that the model was trained with",
    "recall": "minus recall at 10, the mean of both directions",
    "embedding": "distance to the full model's embeddings, for which no image is needed",
}
