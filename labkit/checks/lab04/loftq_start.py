"""What exercise 4.7 expects of loftq_start: the best rank-r part of the rounding error."""

import re

import torch

from labkit.checks.compare import ask, close, draw, expect_related, expect_shape, likeliest, randn
from labkit.checks.lab04 import small
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, expect
from labkit.labs.lab04 import probes

SHAPES = ((12, 7, 2), (7, 12, 3), (9, 9, 2), (10, 40, 4))
PLAIN = re.compile("right but for rounding|sign is turned")  # what says enough by itself
RAISED = {
    "shapes cannot be multiplied": "B (d_out, r) has r columns of U, A (r, d_in) r rows of Vh",
    "has to return": "return A, B",
    "must match the size": "S is a vector (k,) that scales the columns of U, U * S, or rows of Vh",
    "quantize() takes": "quantize has one argument, W, and gives it back rounded",
    "'Tensor' and 'function'": "quantize is a function: call it, quantize(W)",
    "Dimension out of range": "quantize takes the matrix W as it is, not a flat one",
    "non-finite": "the error is 0 where quantize loses nothing: don't divide by it",
}
SPLIT = "A is (r, d_in), the first r rows of Vh; B is (d_out, r), the first r columns of U"


def expect_start(loftq_start, rng):
    """B A is the best part of W - quantize(W), whatever the shape and the way of rounding."""
    with simplest(small.starts(loftq_start)), likeliest() as case:
        for d_out, d_in, r in SHAPES:
            W = randn(d_out, d_in, rng=rng) / draw(2, 9, rng)
            for kind in probes.ROUNDINGS:
                with case():
                    _expect_start(loftq_start, W, kind, r)


def _expect_start(loftq_start, W, kind, r):
    call = f"loftq_start(W, quantize, {r}) for W {tuple(W.shape)}"
    A, B = ask(call, probes.started, loftq_start, W, kind, r, hint=RAISED)
    _expect_shapes(A, B, W, r, call)
    rounded = probes.ROUNDINGS[kind](W)
    error = W - rounded
    product = B.double() @ A.double()
    expect(torch.isfinite(product).all(), f"{call}: B @ A holds NaN or infinity")
    if kind == "exact":
        told = f"{call}, where quantize loses nothing: B @ A is not 0, and there is nothing to mend"
        if product.abs().max() > 1e-4 * W.abs().max():
            raise CheckFailed(told, bare=True)
        return
    try:
        expect_related(product, best(error, r), f"{call}: B @ A", guesses(W, kind, r), tol=2e-3)
    except CheckFailed as failure:
        if not failure.bare or PLAIN.search(str(failure)):
            raise
        again = [probes.ROUNDINGS[kind](M) for M in (A, B)]
        if all(close(M, M4, 1e-3) for M, M4 in zip((A, B), again, strict=True)):
            told = f"{call}: A and B are rounded too; they stay as they are"
            raise CheckFailed(told, bare=kind != "to 4 bits") from None
        told, named = _how_near(product, error, r)
        side = "" if named else _which_side(A, B, error, r)
        told, named = side or told, named or bool(side)
        raise CheckFailed(f"{call}: {told}", bare=not named) from None


def _expect_shapes(A, B, W, r, call):
    """The two factors in their order, with r directions each."""
    d_out, d_in = W.shape
    for name, got in (("A", A), ("B", B)):
        expect(isinstance(got, torch.Tensor), f"{name} of {call} is no tensor; {SPLIT}")
    shapes = tuple(A.shape), tuple(B.shape)
    expect(shapes != ((d_out, r), (r, d_in)), f"{call}: A comes first, then B")
    whole = A.shape[-1:] == (d_in,) and B.shape[:1] == (d_out,) and len(A) != r
    kept = f"{len(A)} directions are kept in A, wanted {r}: the first r of each" if whole else ""
    expect(not whole or A.dim() != 2, f"{call}: {kept}")
    for name, got, shape in (("A", A, (r, d_in)), ("B", B, (d_out, r))):
        try:
            expect_shape(got, torch.Size(shape), f"{name} of {call}")
        except CheckFailed as failure:
            raise CheckFailed(f"{failure}; {SPLIT}") from None


def _which_side(A, B, error, r):
    """Which of the two factors has the right directions, if one has; "" if none does."""
    right, error, A, B = best(error, r), error.double(), A.double(), B.double()
    rows, columns = torch.linalg.pinv(A), torch.linalg.pinv(B)
    in_A, in_B = close(right @ rows @ A, right, 1e-3), close(B @ (columns @ right), right, 1e-3)
    if in_A and in_B:
        sizes = (torch.linalg.svdvals(M)[:r].tolist() for M in (B @ A, right))
        mine, wanted = (", ".join(f"{x:.3g}" for x in values) for values in sizes)
        return f"the directions are right, their sizes are not: {mine}, wanted {wanted}"
    if in_A or in_B:
        good, bad, where = ("A", "B", "columns of U") if in_A else ("B", "A", "rows of Vh")
        told = f"{good} has the right directions, {bad} has not: the first r {where}"
        return f"{told}, of the error W - quantize(W)"
    if close(error @ rows @ A, B @ A, 1e-3):
        told = "B is the best for this A, but A's rows are not the first r of Vh"
        return f"{told} (svd_lowrank only guesses them)"
    return ""


def _how_near(product, error, r):
    """What a start without a name leaves of the rounding error, and whether that names it."""
    size = error.double().norm()
    mine, least = (((error - M).norm() / size).item() for M in (product, best(error, r)))
    told = f"{mine:.3f} of the rounding error is left, {least:.3f} can be"
    right = best(error, r)
    factor = ((product * right).sum() / right.square().sum()).item()
    if close(product, factor * right, 1e-3):
        told = f"it is {factor:.3g} times the best part: nothing scales it, no alpha, r or norm"
        return told, True
    rank = int(torch.linalg.matrix_rank(product, rtol=1e-4))
    if mine > 1.001:
        return f"{told}, and a start at zero leaves 1: it makes things worse", False
    if rank < min(r, *error.shape):
        return f"{told}; B @ A has rank {rank}, and {r} is allowed", True
    guessed = "the largest directions are those of the SVD (svd_lowrank only guesses them)"
    return f"{told}; {guessed}", False


def best(W, r):
    """The nearest matrix of rank r by eigenvectors, without an SVD; fp64."""
    W = W.double()
    V = torch.linalg.eigh(W.T @ W).eigenvectors.flip(1)[:, :r]
    return W @ V @ V.T


def guesses(W, kind, r):
    """Wrong products B A, by what was thought."""
    quantize = probes.ROUNDINGS[kind]
    rounded = quantize(W)
    error = W - rounded
    right, mean = best(error, r), error.mean(0)
    wrong = {
        "these are the largest directions of W, PiSSA's start; take those of W - quantize(W)": (
            best(W, r)
        ),
        "these are directions of quantize(W); take those of what it lost, W - quantize(W)": (
            best(rounded, r)
        ),
        "the sign is turned round: what has to be added is W - quantize(W)": -right,
        "W and quantize(W) are added; the error is their difference": best(W + rounded, r),
        "the first direction is left out; indices start at 0": best(error, r + 1) - best(error, 1),
        "quantize gets W itself, not its transpose: the blocks run along rows": (
            best(W - quantize(W.T).T, r)
        ),
        "W less its own best part is rounded, as PiSSA does; LoftQ rounds W itself": (
            best(W - quantize((W - best(W, r)).float()), r)
        ),
        "W less its own best part is rounded, and that is taken from it; LoftQ rounds W itself": (
            best(W - best(W, r) - quantize((W - best(W, r)).float()), r)
        ),
        "the best part of W is rounded in the place of W: the error is W - quantize(W)": (
            best(W - quantize(best(W, r).float()), r)
        ),
        "the error is rounded once more; A and B stay as they are": best(quantize(error), r),
        "the mean is taken off first: that is PCA; the SVD of the error itself is asked": (
            best(error - mean, r)
        ),
        "B @ A is rounded too; A and B stay as they are": quantize(right.float()),
        "it is divided by r: B @ A is the part itself, no alpha / r here": right / r,
        **_other_factors(error, r),
        **_of_others(W, rounded, r),
    }
    if kind == "to 4 bits":  # elsewhere a product is soon rounded to 0
        told = "it is 0, LoRA's usual start; LoftQ begins with part of the rounding error"
        wrong[told] = 0 * right
    for rounds in (2, 3, 4, 5):
        told = "it alternates as LoftQ does in several rounds; one is asked: quantize(W) stays"
        wrong[f"{told}{' ' * (rounds - 2)}"] = _alternated(W, quantize, r, rounds)
    return {told: value.double() for told, value in wrong.items()}


def _of_others(W, rounded, r):
    """Parts of another matrix than the error."""
    apart = best(W, r) - best(rounded, r)
    one_by_one = "W and quantize(W) are cut one by one; take the difference first"
    return {
        "the errors' sizes are cut; W - quantize(W) has signs": best((W - rounded).abs(), r),
        one_by_one: apart,
        f"{one_by_one}, and cut once": best(apart, r),
    }


def _other_factors(error, r):
    """Wrong products of the SVD of the right matrix."""
    U, S, Vh = torch.linalg.svd(error, full_matrices=False)
    Q, R = torch.linalg.qr(error)
    head = torch.arange(len(S)) < r
    in_step = "U and Vh go in step: u_i, s_i and v_i belong together"
    wrong = {
        "the singular values are missing: scale U's columns or Vh's rows": (U * head) @ Vh,
        "the singular values come in twice: give them to A or to B, or to each their root": (
            (U * S.square() * head) @ Vh
        ),
        "the root of S stands on one side alone; the other side needs it too": (
            (U * S.sqrt() * head) @ Vh
        ),
        "one side has the singular values, the other their root: a root on each": (
            (U * S**1.5 * head) @ Vh
        ),
        "the singular values come in four times, S² on either side: their root": (
            (U * S**4 * head) @ Vh
        ),
        "the smallest singular values are kept: an SVD's largest come first, eigh's last": (
            (U * S * head.flip(0)) @ Vh
        ),
        "the first singular value is used for all": (U * S[0] * head) @ Vh,
        "divided by the singular values: multiply": (U / S.clamp_min(1e-9) * head) @ Vh,
        in_step: _out_of_step(U, S, Vh, r),
        f"{in_step} ": _out_of_step(U, S, Vh, r, 1),
        "that is QR, whose columns come in the order of the error's; the SVD's come by size": (
            Q[:, :r] @ R[:r]
        ),
        "these are the first r columns of the error; the SVD's directions are others": (
            error * (torch.arange(error.shape[1]) < r)
        ),
        "these are the first r rows of the error; the SVD's directions are others": (
            error * (torch.arange(len(error)) < r)[:, None]
        ),
    }
    if len(error) == error.shape[1]:
        wrong |= {
            "Vh is V transposed already: its first r rows": (U * S * head) @ Vh.T,
            "U stands on both sides; the rows come from Vh": (U * S * head) @ U.T,
            "B takes rows of U; the directions are its columns": (U.T * S * head) @ Vh,
        }
    return wrong


def _out_of_step(U, S, Vh, r, turn=0):
    """The first r directions of one side beside the next of the other; `turn` says which."""
    sides = slice(1, r + 1), slice(0, r)
    left, right = sides[turn], sides[1 - turn]
    n = min(U[:, left].shape[1], len(Vh[right]))
    return (U[:, left] * S[left])[:, :n] @ Vh[right][:n]


def _alternated(W, quantize, r, rounds):
    """B A after so many rounds of rounding what B A leaves, and cutting what that leaves."""
    product = torch.zeros_like(W)
    for _ in range(rounds):
        product = best(W - quantize(W - product), r).float()
    return product
