"""Probes for lab 1."""

import contextlib
from unittest import mock

import numpy as np
import torch

from labkit.probes import watch


def tensor(got):
    """The result and its type, since arrays become tensors on the way to a check."""
    kind = "a NumPy array" if isinstance(got, np.ndarray) else "a tensor"
    return {"the result": got, "the type of the result": kind}


def vector(got):
    """As `tensor`, and the dtype, which is float32 in the inputs."""
    dtype = str(getattr(got, "dtype", None)).removeprefix("torch.")
    dtype = dtype.replace("float32", "that of the inputs (float32)")
    return tensor(got) | {"the dtype of the result": dtype}


def matrix(best_rank_r, W, r):
    """The result of `best_rank_r`."""
    return tensor(best_rank_r(W, r))


def rank_and_distance(best_rank_r, W, r):
    """The rank of `best_rank_r`'s result, and its distance from W."""
    got = best_rank_r(W.clone(), r).double()
    rank, distance = torch.linalg.matrix_rank(got, rtol=1e-4), (W - got).norm()
    return {"the rank of the result": int(rank), "the distance from W": round(distance.item(), 2)}


def error(relative_error, pairs):
    """The first error over pairs `(W, r)` that exceeds rounding; 0.0 if none does."""
    for W, r in pairs:
        got = relative_error(W, r)
        if not isinstance(got, int | float | np.floating) or not abs(got) <= 2e-3:
            return {"the result": float(got) if type(got) is int else got}
    return {"the result": 0.0}


class _Makes(watch.Watch):
    """Store every new matrix of a given shape, transposed if necessary."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.made = shape, []

    def seen(self, function, args, kwargs, out):
        for tensor in watch.tensors(out):
            if tensor.is_floating_point():
                self.store(tensor.detach())

    def store(self, matrix):
        """Store a matrix if it has the given shape."""
        matrix = matrix.squeeze()
        matrix = matrix.T if matrix.shape == self.shape[::-1] else matrix
        if matrix.shape == self.shape:
            self.made.append(matrix.double())


BORN = []  # arrays that come from a watched array


class _Array(np.ndarray):
    """An array that registers itself and arrays computed from it in BORN."""

    def __array_finalize__(self, parent):
        BORN.append(self)


@contextlib.contextmanager
def _watched_arrays():
    """Make conversions from tensors return watched arrays."""
    BORN.clear()

    def watched(make):
        def made(thing, *args, **kwargs):
            out = make(thing, *args, **kwargs)
            return out.view(_Array) if isinstance(thing, torch.Tensor) else out

        return made

    ways = [(torch.Tensor, "numpy"), (np, "array"), (np, "asarray"), (np, "asanyarray")]
    with contextlib.ExitStack() as stack:
        for owner, name in ways:
            stack.enter_context(mock.patch.object(owner, name, watched(getattr(owner, name))))
        yield


def matrices_made(relative_error, W, r):
    """The matrices with W's (non-square) shape that are made in torch or NumPy."""
    with _Makes(W.shape) as makes, _watched_arrays():
        relative_error(W, r)
    for array in BORN:
        if array.dtype.kind == "f" and array.size == W.numel():
            makes.store(torch.from_numpy(np.array(array, dtype=float).reshape(array.shape)))
    return makes.made


def largest_of_all(break_even_rank, most):
    """The results of `break_even_rank` for all sides up to `most`."""
    sides = range(1, most + 1)
    return {f"break_even_rank({a}, {b})": break_even_rank(a, b) for a in sides for b in sides}


def truncated(truncate_update, W0, W1, r):
    """The result of `truncate_update`."""
    return tensor(truncate_update(W0, W1, r))


def share(energy_within, dW, reference, k):
    """The result of `energy_within`; 0 and 1 may be ints."""
    got = energy_within(dW, reference, k)
    return {"the result": float(got) if type(got) is int else got}


def point(subspace_point, theta0, P, z):
    """The result of `subspace_point`."""
    return vector(subspace_point(theta0, P, z))


def gradient(project_gradient, P, grad_theta):
    """The result of `project_gradient`."""
    return vector(project_gradient(P, grad_theta))
