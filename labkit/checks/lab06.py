"""Checks of lab 6. The reference is PEFT, the dense formula in fp64, or least squares."""

import math
import warnings

import torch
from peft.utils import merge_utils

from labkit.checks.engine import expect_right
from labkit.checks.inputs import draw, randn
from labkit.checks.quiz import quiz_of
from labkit.contract import exercise, generator, part
from labkit.probes import lab06 as probes

BLOCK = 64


def factors(rng, d_out, d_in, r):
    """A and B of rank r."""
    return randn(r, d_in, rng=rng), randn(d_out, r, rng=rng)


@exercise("6.1", points=1)
def merges(merged_weight):
    """W + (alpha / r) B A, added in fp32 and rounded once to the dtype of W"""
    rng = generator()
    by_hand = torch.tensor([[10.0]]), torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0, 4.0]])
    cases = {"for W = [[10]], A = [[1], [3]], B = [[2, 4]], alpha = 3": (*by_hand, 3)}
    for alpha in (23, 3, 0):
        data = randn(24, 40, rng=rng), *factors(rng, 24, 40, 5)
        cases[f"for W in fp32, r = 5, alpha = {alpha}"] = (*data, alpha)
    expect_right(merged_weight, cases, _merged, probes.merged)
    cases = {}
    for alpha in (11, 3):
        W = _whole(99, rng, 7, 5) / 8
        A, B = _whole(511, rng, 4, 5) / 256, _whole(511, rng, 7, 4) / 256
        cases[f"for W in bf16, r = 4, alpha = {alpha}"] = W.bfloat16(), A, B, alpha
    expect_right(merged_weight, cases, _merged, probes.merged)


def _whole(most, rng, *shape):
    """Whole numbers from -most to most: with few digits, the sum is the same in any order."""
    return torch.randint(-most, most + 1, shape, generator=rng).float()


def _merged(W, A, B, alpha):
    merged = W.double() + alpha / len(A) * B.double() @ A.double()
    return {"the merged weight": "a new tensor"} | probes.matrix(merged.float().to(W.dtype))


@exercise("6.2", points=2)
def divergence(kl_divergence):
    """mean KL(p||q) per token in nats, for any leading shape and for logits of any size"""
    rng = generator()
    p, q = torch.tensor([[0.5, 0.5]]).log() + 1, torch.tensor([[0.25, 0.75]]).log() - 1
    cases = {"for one token with p = (0.5, 0.5) and q = (0.25, 0.75)": (p, q)}
    large = "for logits near {:g} (log_softmax needs no clamp and no epsilon)"
    for scale, what in ((2, "for logits of shape (9, 13)"), (300, large), (1e4, large)):
        pair = randn(9, 13, rng=rng) * scale, randn(9, 13, rng=rng) * scale
        cases[what.format(scale)] = pair
    expect_right(kl_divergence, cases, _divergence, tol=1e-3)
    p = randn(64, 101, rng=rng) * 3
    cases = {"for p and q that hardly differ": (p, p + 2e-2 * randn(64, 101, rng=rng))}
    for shape in ((2, 5, 31), (3, 2, 4, 13)):
        pair = randn(*shape, rng=rng) * 2, randn(*shape, rng=rng) * 2
        cases[f"for logits of shape {shape}"] = pair
    expect_right(kl_divergence, cases, _divergence, tol=5e-3)


def _divergence(logits_p, logits_q):
    p, q = (x.double() - x.double().logsumexp(-1, keepdim=True) for x in (logits_p, logits_q))
    return ((p.exp() * (p - q)).sum() / p[..., 0].numel()).item()


SHAPE = (24, 40)


@exercise("6.3", points=2)
def survives(arrives):
    """the share of dW that survives, in fp32: 1 if all of it does, 0 if no weight moves"""
    rng = generator()
    W, dW = randn(*SHAPE, rng=rng), 0.1 * randn(*SHAPE, rng=rng) + 0.02
    even = (4 * W).round() / 4
    steps = dW.sign() * (0.13 + 0.05 * torch.rand(SHAPE, generator=rng))
    by_hand = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    where = "for W = [[1, 2], [3, 4]], dW = [[0.75, 0.25], [0.25, 0.75]], a store of whole numbers"
    sign = randn(*SHAPE, rng=rng).sign()
    cases = {
        where: (*by_hand, 1.0),
        "for a store that keeps every number": (W, dW, "exact"),
        "for a grid that W is on, where dW moves each weight by one step": (even, steps, 0.25),
        "for a grid that W is on": (even, 0.7 * dW, 0.25),
        "for a grid that W is not on": (W, dW, 0.25),
        "for a store that scales each block": (W, dW, "blocks"),
        "for a store that returns bf16": (W, 0.03 * dW, "bf16"),
        "where dW is too short to move anything": (even, dW.clamp(-0.12, 0.12), 0.25),
        "for a store that returns bf16, where W is tiny": (sign / 512, sign - sign / 512, "bf16"),
    }
    expect_right(arrives, cases, _arrived, probes.arrived, tol=1e-3)
    against = "for a store that scales each block, where W moves against dW"
    cases = {against: (*_against(rng), "blocks")}
    halfway = 0.9998 * (1 + 2**-8)  # a norm of dW that bf16 rounds by half a step
    for dtype, norm in ((torch.bfloat16, 0.03), (torch.float16, 3e-3), (torch.bfloat16, halfway)):
        W, dW = randn(*SHAPE, rng=rng), randn(*SHAPE, rng=rng)
        dW = dW / dW.norm() * norm
        for store, what in (("exact", "an exact store"), (2**-12, "a fine grid")):
            where = f"for W and dW in {str(dtype)[6:]} (convert both to fp32, and add no epsilon)"
            cases[f"{where}, with |dW| = {norm:.3g} and {what}"] = W.to(dtype), dW.to(dtype), store
    expect_right(arrives, cases, _arrived, probes.arrived, tol=3e-3)


def _against(rng):
    """W and dW whose share is below 0: each block's largest weight grows, and so do the steps.

    The other weights are just above a boundary, and drop by a step although dW raises them a bit.
    """
    sign = randn(*SHAPE, rng=rng).sign()
    W = (torch.randint(2, 6, SHAPE, generator=rng) + 0.5) / 7 + 1e-4
    dW = torch.full(SHAPE, 1e-3)
    W[:, ::8], dW[:, ::8] = 1.0, 1e-2
    return sign * W, sign * dW


def _arrived(W, dW, name):
    W, dW = W.float(), dW.float()
    after, before = (probes.stored(x, name).double() for x in (W + dW, W))
    columns = (x.double().reshape(-1, 1) for x in (dW, after - before))
    share = torch.linalg.lstsq(*columns).solution.item()
    return {"the sum W + dW": "a new tensor", "the result": 0.0 if abs(share) < 1e-9 else share}


@exercise("6.4", points=2)
def merges_quantized(merge_quantized):
    """decodes block by block and adds in fp32, so a small update survives"""
    rng = generator()
    codes, B = torch.tensor([3, 0, 10, 7], dtype=torch.uint8), torch.tensor([[0.25], [0.0]])
    by_hand = codes, torch.tensor([4.0]), torch.arange(16) / 2, torch.eye(1, 2), B
    where = "for W4 = [3, 0, 10, 7], absmax = [4], codebook = [0, 1/2, 1, ...], "
    cases = {f"{where}A = [[1, 0]], B = [[1/4], [0]], alpha = 3": (*by_hand, 3, (2, 2))}
    expect_right(merge_quantized, cases, _merged_quantized, probes.merged_quantized)
    where = "for 150 codes of value 1, absmax = [2, 1, 3] (one entry per 64 codes of the flat W4)"
    absmax = torch.tensor([2.0, 1.0, 3.0])
    blocks = torch.zeros(150).byte(), absmax, torch.ones(16), torch.zeros(1, 75)
    cases = {f"{where} and shape (2, 75)": (*blocks, torch.zeros(2, 1), 1, (2, 75))}
    for shape, alpha in (((24, 40), 29), ((7, 50), 3)):
        A, B = factors(rng, *shape, 5)  # times 2e-4: the update is far shorter than a step
        data = *_quantized(rng, math.prod(shape)), A, B * 2e-4, alpha, shape
        cases[f"for shape {shape}, r = 5, alpha = {alpha}"] = data
    expect_right(merge_quantized, cases, _merged_quantized, probes.merged_quantized, tol=2e-6)


def _quantized(rng, n):
    """n codes, absmax and a codebook of 16 values."""
    inner = torch.rand(14, generator=rng) * 1.8 - 0.9
    absmax = 0.1 + 0.4 * torch.rand(math.ceil(n / BLOCK), generator=rng)
    codebook = torch.cat([torch.tensor([-1.0, 1.0]), inner]).sort().values
    return torch.randint(16, (n,), generator=rng).byte(), absmax, codebook


def _merged_quantized(W4, absmax, codebook, A, B, alpha, shape):
    numbers = [codebook[code] * absmax[i // BLOCK] for i, code in enumerate(W4.tolist())]
    W = torch.stack(numbers).double().reshape(shape)
    return probes.matrix((W + alpha / len(A) * B.double() @ A.double()).float())


ONES = [(torch.ones(1, 3), torch.ones(1, 1))] * 2


@exercise("6.5", points=3)
def combines(combine_linear, combine_cat):
    """cat sums the weighted updates; linear sums the As and the Bs with square roots of weights"""
    rng = generator()
    linear = [([3, 3], [0.6, 0.7]), ([4, 4, 4], [0.9, 0.0, 0.4]), ([3, 3], [0.0, 0.0])]
    cat = [([3, 3], [0.6, 0.7]), ([2, 4, 3], [1.5, -0.5, 0.7]), ([2, 3], [0.0, 1.2])]
    with part():
        cases = _mixes("combine_linear", linear, rng)
        expect_right(combine_linear, cases, _added, probes.combined)
    cases = _mixes("combine_cat", cat, rng)
    expect_right(combine_cat, cases, _stacked, probes.combined, tol=1e-5)


def _mixes(name, mixes, rng):
    """Adapters and weights: two adapters of ones, those in `mixes`, and one with weight 1."""
    ones = "and two adapters A = [[1, 1, 1]], B = [[1]]"
    cases = {f"for {name} with weights [4, 9] {ones}": (ONES, [4.0, 9.0])}
    for ranks, weights in [*mixes, ([3], [1.0])]:
        adapters = [factors(rng, 24, 40, r) for r in ranks]
        hint = " (scale only A or only B: -0.5 has no real root)" if -0.5 in weights else ""
        cases[f"for {name} with ranks {ranks} and weights {weights}{hint}"] = adapters, weights
    return cases


NEW = {"the list of adapters": "left as it was", "each factor": "a new tensor"}


def _pair(r, product):
    """The facts about a pair of factors."""
    d_out, d_in = product.shape
    types = {"the return value": "a pair (A, B)"} | {f"the type of {M}": "a tensor" for M in "AB"}
    shapes = {"the shape of A": str((r, d_in)), "the shape of B": str((d_out, r))}
    return types | shapes | {"the numbers in A and B": probes.SOUND, "B @ A": product}


def _added(adapters, weights):
    """The sum over all pairs of adapters, cross terms included."""
    terms = [
        math.sqrt(v * w) * B.double() @ A.double()
        for (A, _), v in zip(adapters, weights, strict=True)
        for (_, B), w in zip(adapters, weights, strict=True)
    ]
    return NEW | _pair(len(adapters[0][0]), sum(terms))


def _stacked(adapters, weights):
    pairs = zip(adapters, weights, strict=True)
    update = sum(w * B.double() @ A.double() for (A, B), w in pairs)
    return NEW | _pair(sum(len(A) for A, _ in adapters), update)


@exercise("6.6", points=3)
def recompresses(recompress):
    """the best rank-r approximation of B @ A, which is never formed"""
    rng = generator()
    by_hand = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), 1
    cases = {"for A = [[1, 0], [0, 3]], B = [[2, 0], [0, 2]], r = 1": by_hand}
    for d_out, d_in, R, r in ((9, 7, 4, 2), (6, 15, 5, 1), (14, 5, 4, 3), (8, 9, 3, 3)):
        A, B = _distinct(rng, d_out, d_in, R, r)
        cases[f"for A {(R, d_in)}, B {(d_out, R)}, r = {r}"] = A, B, r
    expect_right(recompress, cases, _recompressed, probes.recompressed, tol=1e-3)
    A, B = factors(rng, 9, 8, 4)
    M = randn(4, 2, rng=rng) @ randn(2, 4, rng=rng)
    cases = {"for A (4, 8), B (9, 4) of rank 2, r = 2": (A, B @ M, 2)}
    cases["for A (4, 8) of rank 2, B (9, 4), r = 3"] = M @ A, B, 3
    A, B = _distinct(rng, 4, 9, 6, 3)
    cases["for A (6, 9), B (4, 6), r = 3"] = A, B, 3
    A, B = _distinct(rng, 128, 128, 4, 2)
    cases["for A (4, 128), B (128, 4), r = 2"] = A, B, 2
    expect_right(recompress, cases, _recompressed, probes.recompressed, tol=1e-3)


def _distinct(rng, d_out, d_in, R, r):
    """A and B where singular values r and r + 1 of B @ A differ, so one approximation is best."""
    while True:
        A, B = factors(rng, d_out, d_in, R)
        s = torch.cat([torch.linalg.svdvals(B @ A), torch.zeros(1)])
        if s[r] < 0.9 * s[r - 1]:
            return A, B


def _recompressed(A, B, r):
    U, S, Vh = torch.linalg.svd(B.double() @ A.double())
    facts = _pair(r, U[:, :r] @ S[:r].diag() @ Vh[:r])
    return facts | {"the largest tensor you create": "smaller than B @ A"}


@exercise("6.7", points=3)
def merges_by_sign(ties):
    """equals PEFT's ties_svd: trims each update, takes the sum's sign, averages agreeing values"""
    rng = generator()
    by_hand = [*torch.tensor([[[2.0, -3, 1, 4]], [[-2, 4, 3, 1]], [[-1, -3, -4, 2]]])]
    cases = {
        "for one update [[2, -3, 1, 4]] (so only trimming matters), density 0.75": (
            by_hand[:1],
            0.75,
        )
    }
    where = "for updates [[2, -3, 1, 4]], [[-2, 4, 3, 1]] and [[-1, -3, -4, 2]], density 0.75"
    expect_right(ties, cases | {where: (by_hand, 0.75)}, _ties, probes.merged_by_sign)
    updates = [_with_zeros(rng) for _ in range(draw(3, 4, rng))]
    cases = {"for updates with many zeros, density 1": (updates, 1.0)}
    for n, shape, density in (
        *((2, (5, 7), 0.5), (3, (5, 7), 0.5), (3, (4, 3), 0.3), (3, (5, 7), 1.0)),
        *((2, (7, 5), 1.0), (4, (9, 6), 0.3)),
    ):
        updates = [randn(*shape, rng=rng) * (i + 1) for i in range(n)]
        cases[f"for {n} updates of shape {shape}, density {density:g}"] = updates, density
    expect_right(ties, cases, _ties, probes.merged_by_sign)


def _with_zeros(rng):
    """Whole numbers from -2 to 2, so that some sums are exactly 0."""
    return torch.randint(-2, 3, (6, 8), generator=rng).float()


def _ties(updates, density):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that density 1 trims nothing
        merged = merge_utils.ties(updates, torch.ones(len(updates)), density, "total")
    return {"the return value": "a tensor", "its numbers": probes.SOUND, "the result": merged}


quiz = quiz_of("6.8", points=3)
