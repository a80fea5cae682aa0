"""What runs beside the learner's code in lab 1, and brings plain data back to its checks."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Makes(TorchDispatchMode):
    """Keeps a copy of every new matrix of the given shape, turned where it is transposed."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.made = shape, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                matrix = value.detach().squeeze()
                if matrix.shape == self.shape:
                    self.made.append(matrix.double())
                elif matrix.shape == self.shape[::-1]:
                    self.made.append(matrix.T.double())
        return out


def each(f, cases):
    """`f(*case)` for each of the cases."""
    return [f(*case) for case in cases]


def matrices_made(f, W, r):
    """The matrices of the shape of W, which is not square, that `f(W, r)` makes; torch's alone."""
    with _Makes(W.shape) as watch:
        f(W, r)
    return watch.made


def inputs_after(f, *data):
    """The arguments of `f(*data)` as they are after the call."""
    f(*data)
    return list(data)
