"""Random inputs for checks."""

import torch

from labkit.contract import generator


def randn(*shape, rng=None):
    """A standard normal tensor of `shape`, from `rng` or else a new generator of the session."""
    return torch.randn(*shape, generator=rng or generator())


def draw(low, high, rng):
    """A random int from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))
