"""Numbers and words that checks ask about, drawn from a generator."""

import torch

from labkit.labs.tiny import WORDS


def draw(low, high, rng):
    """An int from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def words(rng, low, high):
    """A text of `low` to `high` words that the tiny tokenizer of the labs knows."""
    ids = torch.randint(len(WORDS), (draw(low, high, rng),), generator=rng)
    return " ".join(WORDS[i] for i in ids)
