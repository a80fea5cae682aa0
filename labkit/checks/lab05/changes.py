"""How right answers of lab 5 follow their inputs: `(call, answer, data, changed)` for `laws`."""

import functools

import torch

from labkit.contract import observe


def updates(first_update, G, A, r, alpha, lr):
    """Of 5.1."""
    turned = torch.arange(len(A) - 1, -1, -1)
    changed = {
        "with lr twice as large": ((G, A, r, alpha, 2 * lr), 2),
        "with alpha twice as large": ((G, A, r, 2 * alpha, lr), 2),
        "with G twice as large": ((2 * G, A, r, alpha, lr), 1),
        "with -G": ((-G, A, r, alpha, lr), -1),
        "with A twice as large": ((G, 2 * A, r, alpha, lr), 2),
        "with the rows of A in another order": ((G, A[turned], r, alpha, lr), 1),
    }
    return "first_update", functools.partial(observe, first_update), (G, A, r, alpha, lr), changed


def overlaps(subspace_similarity, A1, A2, i, j):
    """Of 5.4."""
    rows, columns = torch.arange(len(A1) - 1, -1, -1), torch.arange(A1.shape[1] - 1, -1, -1)
    changed = {
        "with A1 twice as large": ((2 * A1, A2, i, j), 1),
        "with -A2": ((A1, -A2, i, j), 1),
        "with A1, i in the place of A2, j": ((A2, A1, j, i), 1),
        "with the rows of A1 in another order": ((A1[rows], A2, i, j), 1),
        "with the columns of both in another order": ((A1[:, columns], A2[:, columns], i, j), 1),
    }
    answer = functools.partial(observe, subspace_similarity)
    return "subspace_similarity", answer, (A1, A2, i, j), changed
