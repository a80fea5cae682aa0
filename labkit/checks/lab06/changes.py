"""How right answers of lab 6 follow their inputs: `(call, answer, data, changed)` for `laws`."""

import functools

import torch

from labkit.contract import CheckFailed, observe
from labkit.labs.lab06 import probes


def _of_the_update(W, A, B, alpha):
    turned = torch.arange(len(A) - 1, -1, -1)
    return {
        "with alpha twice as large": ((W, A, B, 2 * alpha), 2),
        "with A twice as large": ((W, 2 * A, B, alpha), 2),
        "with B twice as large": ((W, A, 2 * B, alpha), 2),
        "with A's rows and B's columns in another order": ((W, A[turned], B[:, turned], alpha), 1),
    }


def merges(merged_weight, A, B, alpha):
    """Of 6.1, where W is 0."""
    W = torch.zeros(len(B), A.shape[1])
    call = "merged_weight of a W of zeros"
    answer = functools.partial(observe, probes.merged, merged_weight)
    return call, answer, (W, A, B, alpha), _of_the_update(W, A, B, alpha)


def dequantized(merge_quantized, W4, absmax, codebook, A, B, alpha, shape):
    """Of 6.4, where A is 0, and where the codebook is."""

    def answer(absmax, codebook, A, B, alpha):
        args = (W4, absmax, codebook, A, B, alpha, shape)
        return observe(probes.merged_quantized, merge_quantized, *args)

    data, none = (absmax, codebook, 0 * A, B, alpha), 0 * codebook
    changed = {
        "with absmax twice as large": ((2 * absmax, codebook, 0 * A, B, alpha), 2),
        "with the values of codebook twice as large": ((absmax, 2 * codebook, 0 * A, B, alpha), 2),
    }
    changes = _of_the_update(none, A, B, alpha)
    other = {told: ((absmax, *rest), factor) for told, (rest, factor) in changes.items()}
    return (
        ("merge_quantized where A is 0", answer, data, changed),
        ("merge_quantized where codebook is 0", answer, (absmax, none, A, B, alpha), other),
    )


def divergences(kl_divergence, p, q):
    """Of 6.2."""
    back = torch.arange(p.shape[-1] - 1, -1, -1)
    changed = {
        "with 1 added to all logits of p": ((p + 1, q), 1),
        "with 1 added to all logits of q": ((p, q + 1), 1),
        "with the vocabulary of both in another order": ((p[..., back], q[..., back]), 1),
        "with the tokens of both in another order": ((p.flip(0), q.flip(0)), 1),
        "with each token given twice": ((torch.cat([p, p]), torch.cat([q, q])), 1),
    }
    return "kl_divergence", functools.partial(observe, kl_divergence), (p, q), changed


def arrivals(arrives, W, dW):
    """Of 6.3, for a store that keeps every number."""

    def answer(W, dW):
        return observe(probes.arrived, arrives, W, dW, "as it is")

    changed = {
        "with dW twice as large": ((W, 2 * dW), 1),
        "with -dW": ((W, -dW), 1),
        "with W twice as large": ((2 * W, dW), 1),
        "with both transposed": ((W.T.contiguous(), dW.T.contiguous()), 1),
    }
    return "arrives for a store that keeps every number", answer, (W, dW), changed


def sums(combine, name, adapters, weights):
    """Of 6.5, for the product."""

    def answer(adapters, weights):
        got = observe(probes.combined, combine, adapters, weights)
        fit = isinstance(got, list) and len(got) == 2
        if not fit or not all(isinstance(X, torch.Tensor) and X.dim() == 2 for X in got):
            raise CheckFailed("no pair (A, B)")
        A, B = got
        if B.shape[1] != len(A):
            raise CheckFailed("no pair (A, B)")
        return B.double() @ A.double()

    twice = [(2 * A, B) for A, B in adapters]
    changed = {
        "with all weights 4 times as large": ((adapters, [4 * w for w in weights]), 4),
        "with every A twice as large": ((twice, weights), 2),
        "with the adapters, and their weights, in another order": (
            (adapters[::-1], weights[::-1]),
            1,
        ),
    }
    return f"B @ A of {name}", answer, (adapters, weights), changed


def soups(soup, states):
    """Of 6.6, without weights, for one of the tensors."""
    name = next(iter(states[0]))

    def answer(states):
        got = observe(probes.souped, soup, states, None)
        return got.get(name) if isinstance(got, dict) else None

    twice = [{key: 2 * value for key, value in state.items()} for state in states]
    changed = {
        "with every state twice as large": ((twice,), 2),
        "with the states in another order": ((states[::-1],), 1),
        "with every state given twice": ((states + states,), 1),
    }
    return f"soup of {len(states)} states: {name}", answer, (states,), changed
