"""Random inputs for checks."""

import torch

from labkit.contract import generator


def randn(*shape, rng=None):
    """Standard normal numbers of `shape` from `rng`, else from a new generator of the session."""
    return torch.randn(*shape, generator=rng or generator())


def draw(low, high, rng):
    """An int from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))
