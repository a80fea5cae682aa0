"""What runs beside the learner's code in lab 1, and brings plain data back to its checks."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addr")


class _Builds(TorchDispatchMode):
    """Notes whether something is multiplied out to a matrix of the given shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.seen = list(shape), False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        outer = name == "mul" and not any(self._fits(arg) for arg in args)  # W * W is none
        self.seen |= (name in PRODUCTS or outer) and self._fits(out)
        return out

    def _fits(self, value):
        return isinstance(value, torch.Tensor) and [n for n in value.shape if n > 1] == self.shape


def builds_approximation(f, W, r):
    """Whether `f(W, r)` multiplies factors into a matrix of the shape of W."""
    with _Builds(W.shape) as watch:
        f(W, r)
    return watch.seen


def inputs_after(f, *data):
    """The arguments of `f(*data)` as they are after the call."""
    f(*data)
    return list(data)
