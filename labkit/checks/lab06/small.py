"""The smallest cases of lab 6, `(call, answer, wanted, why)`: for mistakes that have no name."""

import functools
import math

import torch

from labkit.contract import CheckFailed, observe
from labkit.labs.lab06 import probes


def merges(merged_weight):
    """Of 6.1."""
    W, alpha = torch.tensor([[10.0]]), 3
    for a, b, wanted, why in [
        ([1.0], [2.0], 16.0, "10 + 3 / 1 * 2 * 1"),
        ([1.0, 3.0], [2.0, 4.0], 31.0, "10 + 3 / 2 * (2 * 1 + 4 * 3)"),
    ]:
        A, B = torch.tensor(a)[:, None], torch.tensor(b)[None]
        call = f"merged_weight(W=[[10]], A={A.tolist()}, B={B.tolist()}, alpha=3)"
        yield (
            call,
            lambda A=A, B=B: observe(probes.merged, merged_weight, W, A, B, alpha),
            wanted,
            why,
        )


def arrivals(arrives):
    """Of 6.3: store rounds to whole numbers."""
    for w, dw, wanted, why in [
        ([1.0, 2.0], [0.25, 0.25], 0.0, "both round back"),
        ([1.0, 2.0], [0.6, 0.2], 1.5, "1 arrives of 0.6: 1 * 0.6 / (0.6 * 0.6 + 0.2 * 0.2)"),
        ([0.4, 2.0], [0.2, 0.2], 2.5, "store(0.6) - store(0.4) is 1: 1 * 0.2 / (2 * 0.2 * 0.2)"),
    ]:
        W, dW = torch.tensor([w]), torch.tensor([dw])
        call = f"arrives of W={[w]}, dW={[dw]} where store rounds to whole numbers"
        yield (
            call,
            lambda W=W, dW=dW: observe(probes.arrived, arrives, W, dW, "whole"),
            wanted,
            why,
        )


def dequantized(merge_quantized):
    """Of 6.4: values are a tenth of their codes; of 66 weights the last two have a scale alone."""
    codebook, B = torch.arange(16) / 10, torch.tensor([[5.0]])
    for codes, peaks, alpha, wanted, why in [
        ([3, 0, 10], [2.0], 0, [0.6, 0.0, 2.0], "0.3 * 2, 0 * 2 and 1 * 2; alpha is 0"),
        ([3, 0, 10], [2.0], 2, [10.6, 0.0, 2.0], "as before, and 2 / 1 * 5 in the first place"),
        ([1] * 65, [2.0, 3.0], 0, [0.2] * 64 + [0.3], "0.1 * 2, and behind 64 of them 0.1 * 3"),
    ]:
        A = torch.eye(1, len(codes))
        data = torch.tensor(codes, dtype=torch.uint8), torch.tensor(peaks), codebook, A, B, alpha
        few = f"{codes}" if len(codes) < 9 else f"{len(codes)} times 1"
        call = (
            f"merge_quantized(W4={few}, absmax={peaks}, [0, 0.1, ...], A, B=[[5]], alpha={alpha})"
        )
        args = (probes.merged_quantized, merge_quantized, *data, (1, len(codes)))
        yield f"{call}, r=1, A=[[1, 0, ...]]", functools.partial(observe, *args), wanted, why


CAT = [  # weights, the product where every A and B is [[1]], why
    ([4.0], 4.0, "the product has the weight once"),
    ([-4.0], -4.0, "a weight may be negative"),
    ([4.0, 9.0], 13.0, "4 + 9"),
    ([4.0, 9.0, 1.0], 14.0, "4 + 9 + 1"),
]
LINEAR = [
    ([4.0], 4.0, "A and B carry the root, 2 each"),
    ([4.0, 9.0], 25.0, "A and B are 2 + 3 each"),
    ([4.0, 9.0, 1.0], 36.0, "A and B are 2 + 3 + 1 each"),
]


def sums(combine, name, cases):
    """Of 6.5."""

    def answer(weights):
        one = torch.ones(1, 1)
        got = observe(probes.combined, combine, [(one, one)] * len(weights), weights)
        A, B = got if isinstance(got, list) and len(got) == 2 else (None, None)
        fit = all(isinstance(X, torch.Tensor) and X.dim() == 2 for X in (A, B))
        if not fit or B.shape[1] != len(A):
            raise CheckFailed("no pair (A, B)")
        return B @ A

    for weights, wanted, why in cases:
        n, many = len(weights), "s" * (len(weights) > 1)
        call = f"B @ A of {name} of {n} adapter{many} ([[1]], [[1]]) with weights {weights}"
        yield call, functools.partial(answer, weights), wanted, why


def soups(soup):
    """Of 6.6."""

    def answer(states, weights):
        got = observe(probes.souped, soup, states, weights)
        return got.get("w") if isinstance(got, dict) else got

    for numbers, weights, wanted, why in [
        ([1.0, 3.0], None, 2.0, "(1 + 3) / 2"),
        ([1.0, 3.0, 8.0], None, 4.0, "(1 + 3 + 8) / 3"),
        ([1.0, 3.0], [0.75, 0.25], 1.5, "0.75 * 1 + 0.25 * 3"),
        ([1.0, 3.0, 8.0], [0.5, 0.25, 0.25], 3.25, "0.5 * 1 + 0.25 * 3 + 0.25 * 8"),
    ]:
        states = [{"w": torch.tensor([x])} for x in numbers]
        call = f"soup of {len(states)} states whose w is {numbers}, weights {weights}: w"

        yield call, functools.partial(answer, states, weights), wanted, why


def divergences(kl_divergence):
    """Of 6.2."""
    p, q = [0.5, 0.5], [0.25, 0.75]
    one = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    told = "0.5 * ln(0.5 / 0.25) + 0.5 * ln(0.5 / 0.75)"
    even, uneven = [1 / 8] * 8, [1 / 2] + [1 / 14] * 7
    eight = (math.log(2 / 8) + 7 * math.log(14 / 8)) / 8
    for first, second, wanted, what, why in [
        ([p], [q], one, "(0.5, 0.5) and (0.25, 0.75)", told),
        ([p, p], [q, p], one / 2, "(0.5, 0.5) and (0.25, 0.75), and a token alike", "the mean"),
        ([even], [uneven], eight, "8 times 1/8, and 1/2 with 7 times 1/14", "all 8 count"),
    ]:
        data = torch.tensor(first).log() + 1, torch.tensor(second).log() - 1
        answer = functools.partial(observe, kl_divergence, *data)
        yield f"kl_divergence where the probabilities are {what}", answer, wanted, why
