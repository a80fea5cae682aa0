"""The operations that torch runs meanwhile: what probes and checks of several labs watch by."""

from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Watch(TorchDispatchMode):
    """Counts operations, `calls`, and shows each of them to `seen`, which subclasses define."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    @classmethod
    def _should_skip_dynamo(cls):
        """Not: to skip its compiler torch would import it first, which takes seconds."""
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        out = function(*args, **(kwargs or {}))
        self.seen(function, args, kwargs or {}, out)
        return out


def tensors(out: object) -> Iterator[torch.Tensor]:
    """The tensors that an operation returns."""
    return (t for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor))
