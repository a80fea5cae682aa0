"""Train in a learner's notebook: load a model, train it, let it answer, score it."""
