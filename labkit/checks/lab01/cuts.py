"""Matrices cut to rank r: the best one, what misconceptions give, and what else is told of one."""

import re

import torch

from labkit.checks.svds import WAYS
from labkit.contract import CheckFailed, expect, observe

SHAPES = (
    "with full_matrices=False U is (d_out, k), S a vector (k,) that scales its columns, U * S, "
    "and Vh (k, d_in)"
)
BEYOND = "r may exceed min(W.shape), W itself is best there; s[:r] of a shorter s is all of s"
PLAIN = re.compile("rounding|x the wanted|sign is turned")  # what says enough by itself


def advice(shape, other):
    """What to say of an exception, `{piece of its text: advice}`, for a matrix of `shape`."""
    out, into = shape  # of all of U, and of S where the matrix is tall; else of S, and of all of Vh
    signs = [f"({out}x{out} and {into}x{into})", f"({out},{out}) ({into},)"]
    signs.append(f"tensor a ({out}) must match the size of tensor b ({into})")
    signs.append(f"(size {into} is different from {out})")
    told = "is full_matrices=False missing? Without it U or Vh has"
    told = f"{told} {max(shape)} directions, and S {min(shape)} values"
    return dict.fromkeys(signs, told) | {"shapes cannot be multiplied": SHAPES, "": other}


def best(W, r):
    """Eckart-Young without an SVD: W projected on the r leading eigenvectors of W^T W; fp64."""
    W = W.double()
    V = torch.linalg.eigh(W.T @ W).eigenvectors.flip(1)[:, :r]
    return W @ V @ V.T


def leading(W, k):
    """The k leading left singular vectors of W, (d_out, k), without an SVD; fp64."""
    W = W.double()
    return torch.linalg.eigh(W @ W.T).eigenvectors.flip(1)[:, :k]


def _longest(sizes, r):
    """Which of `sizes`, (n,), are among the r largest, (n,)."""
    return sizes >= sizes.topk(min(r, len(sizes))).values[-1]


def _entries(W, r):
    """W with some of its entries kept and the others zero, as nothing of the SVD is."""
    rows, columns = (torch.arange(n) < r for n in W.shape)
    long_rows, long_columns = (_longest(W.norm(dim=dim), r) for dim in (1, 0))
    other = "the SVD's directions are others"
    return {
        f"these are the first r columns of W; {other}": W * columns,
        f"these are the first r rows of W; {other}": W * rows[:, None],
        f"the r longest columns of W are kept; {other}": W * long_columns,
        f"the r longest rows of W are kept; {other}": W * long_rows[:, None],
        "that is the corner of W, its first r rows and columns; take r terms of the SVD": W
        * rows[:, None]
        * columns,
        "the r largest entries of W are kept; the SVD keeps r terms, not entries": W
        * _longest(W.abs().flatten(), r).view_as(W),
    }


def _miscounted(W, r):
    """Sums of other terms of the SVD than the first r."""
    return {
        "it keeps the first term alone; the best matrix is the sum of the first r": best(W, 1),
        "the last r terms are cut; keep the first r, and cut all others": best(
            W, max(0, min(W.shape) - r)
        ),
        "it keeps r - 1 directions, one too few": best(W, r - 1),
        "it keeps r + 1 directions, one too many": best(W, r + 1),
        "it keeps term r alone; the best matrix is the sum of the first r": best(W, r + 1)
        - best(W, r),
        "it keeps the last of the r terms alone; add them up": best(W, r) - best(W, r - 1),
    }


def cuts(W, r):
    """Wrong versions of the best matrix of rank r."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)  # signs as the learner's, in fp32
    head = torch.arange(len(S)) < r
    mean, (Q, R) = W.double().mean(0), torch.linalg.qr(W)
    guesses = _entries(W, r) | _miscounted(W, r)
    guesses |= {
        "that is QR, whose columns come in the order of W's; the SVD's come by size": Q[:, :r]
        @ R[:r],
        "it is zero: no term is kept at all": 0 * W,
        "the r terms are averaged; they are added": best(W, r) / r,
        "the first of the r terms is left out; indices start at 0": best(W, r) - best(W, 1),
        "its r terms are those from index 1 on; indices start at 0": best(W, r + 1) - best(W, 1),
        "it keeps the smallest singular values; the largest come first": (U * S * head.flip(0))
        @ Vh,
        "the singular values S are missing: U * S scales the columns": (U * head) @ Vh,
        "it takes the last r rows of Vh; the first r are asked": (U[:, :r] * S[:r]) @ Vh[-r:],
        "S is added to U; it scales the columns, U * S": ((U + S) * head) @ Vh,
        "the singular values come in twice": (U * S.square() * head) @ Vh,
        "that is sqrt(S); split over two factors it comes in both": (U * S.sqrt() * head) @ Vh,
        "this is what the cut leaves out, W minus the answer": W - best(W, r),
        "it is W itself, nothing is cut": W,
        "the mean is taken off first: that is PCA; the SVD of W itself is asked": mean
        + best(W - mean, r),
        "the mean is taken off and lost: that is PCA; cut W itself": best(W - mean, r),
        "it is scaled up to the norm of W; the best matrix has a smaller one": best(W, r)
        * (W.norm() / best(W, r).norm()),
        "the first singular value is used for all r terms": (U * S[0] * head) @ Vh,
        "divided by the singular values: that is the pseudoinverse's way": (U / S * head) @ Vh,
    }
    for name, size in {"sum": S.sum(), "norm": S.norm(), "largest": S[0]}.items():
        told = f"the singular values are divided by their {name}; take them as they are"
        guesses[told] = (U * S / size * head) @ Vh
    if len(W) != len(W.T):
        return guesses
    for way, svd in WAYS.items():
        guesses |= {way + told: M for told, M in _turned(W, r, *svd(W)).items()}
    return guesses


def _turned(W, r, U, S, Vh):
    """Wrong versions that only a square W lets through."""
    head = torch.arange(len(S)) < r
    vh = "Vh is V transposed already: use its first r rows (torch.svd gives V: its columns)"
    return {
        "that is the projection V V.T alone: W @ V @ V.T": (Vh.T * head) @ Vh,
        "that is the projection U U.T alone: U @ U.T @ W": (U * head) @ U.T,
        "U stands on both sides; the rows come from Vh": (U * S * head) @ U.T,
        "Vh stands on both sides; the columns come from U": (Vh.T * S * head) @ Vh,
        vh: (U * S * head) @ Vh.T,
        "it takes rows of U; the directions are its columns": (U.T * S * head) @ Vh,
        "it takes columns of Vh; the directions are its rows": (U * S) @ (Vh * head),
        "S scales the rows of U; it belongs to the columns: U * S": (S[:, None] * U * head) @ Vh,
        "the answer is transposed": best(W, r).T,
    }


def updates(W0, W1, r):
    """W0 plus the best rank-r part of the update, and wrong versions."""
    cut, theirs, mine = best(W1 - W0, r), leading(W0, r), leading(W1, r)
    other = "those of the update itself say what its best part is"
    return W0 + cut, {
        "W0 is added twice": 2 * W0 + cut,
        f"the update is projected on directions of W0; {other}": W0
        + theirs @ (theirs.T @ (W1 - W0).double()),
        f"the update is projected on directions of W1; {other}": W0
        + mine @ (mine.T @ (W1 - W0).double()),
        "it cuts W1; cut the difference W1 - W0, then add W0": best(W1, r),
        "it cuts W1 and adds W0; cut the difference W1 - W0": W0 + best(W1, r),
        "it cuts W0, which stays whole; cut the difference": best(W0, r) + W1 - W0,
        "it cuts W0 and adds that to W0; cut the difference W1 - W0": W0 + best(W0, r),
        "it cuts W0 too; cut the difference alone": best(W0, r) + cut,
        "it cuts W1 and W0 one by one; cut their difference": W0 + best(W1, r) - best(W0, r),
        "it cuts the whole sum; W0 stays whole, and the difference is cut": best(W0 + cut, r),
        "it cuts W0 + W1; cut the difference W1 - W0": W0 + best(W0 + W1, r),
        "it cuts W0 + W1; cut the difference, then add W0": best(W0 + W1, r),
        "W1 and W0 are cut one by one, and W0 is not added": best(W1, r) - best(W0, r),
        "this is the update alone: add it to W0": cut,
        "W0 is taken away once more: add it to the part of the update": cut - W0,
        "the update points backwards: it is W1 - W0": W0 - cut,
        "it is added to W1, which holds the whole update already": W1 + cut,
        "this is W0 plus the rest, all but the best part (W1 less that); add the best part": W1
        - cut,
        "this is the rest of the update, all but its best part, and W0 is not added": W1 - W0 - cut,
        "this is W1, nothing is cut": W1,
        "this is W0, the update is lost": W0,
        "this is the update, uncut, without W0": W1 - W0,
        "it keeps the first direction of the update alone": W0 + best(W1 - W0, 1),
        "it keeps r - 1 directions of the update, one too few": W0 + best(W1 - W0, r - 1),
        "it keeps r + 1 directions of the update, one too many": W0 + best(W1 - W0, r + 1),
    }


def _sizes_told(mine, S):
    """What the sizes of the right directions are, beside the singular values S, (r,)."""
    told, wanted = (", ".join(f"{v:.3g}" for v in s) for s in (mine, S))
    found = f"its directions are right, with sizes {told}; the singular values are {wanted}"
    gaps = S - mine
    if (gaps - gaps.mean()).abs().max() < 1e-3 * S[0] and len(S) > 1:
        return f"{found}: each is less by {gaps.mean():.3g}; the terms are kept as they are"
    for power in (3, 1.5, -1, -2, 2, 0.5, 0) if len(S) > 1 else ():
        ratio = mine / S**power
        if (ratio - ratio.mean()).abs().max() < 1e-3 * ratio.mean().abs():
            times = "" if abs(ratio.mean() - 1) < 1e-3 else f"{ratio.mean():.3g} * "
            return f"{found}: yours are {times}S ** {power}; a square or a division too many?"
    return found


def kept(got: torch.Tensor, W: torch.Tensor) -> list | None:
    """Which terms of the SVD of W, from 1 on, `got` is the sum of; None where it is no such sum."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    if not isinstance(got, torch.Tensor) or got.shape != W.shape or got.is_complex():
        return None
    share = (U.T @ got.double() @ Vh.T).diag() / S
    terms = share.round().clamp(0, 1)
    same = (got.double() - (U * S * terms) @ Vh).norm() < 1e-3 * W.norm()
    return (terms.nonzero()[:, 0] + 1).tolist() if same else None


def expect_no_limit(best_rank_r, W):
    """r counts the terms, whether they are alike in size or fall off quickly."""
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    terms = []
    for s in (torch.linspace(6, 5, 6), 6 * 0.4 ** torch.arange(6)):
        matrix = (U * s) @ Vh
        try:
            terms.append(kept(observe(best_rank_r, matrix, 3), matrix))
        except CheckFailed:  # that is told of the other matrices
            return
    if None not in terms and len(terms[0]) != len(terms[1]):
        alike, steep = map(len, terms)
        told = f"best_rank_r(W, 3) keeps {alike} terms where all are alike, {steep} where they fall"
        raise CheckFailed(f"{told} off: it sets a limit on S or its energy; r counts the terms")


def expect_tied(best_rank_r):
    """Where singular values are equal many matrices are the nearest: rank and error tell."""
    call, W = "best_rank_r(torch.eye(6), 2)", torch.eye(6)
    got = observe(best_rank_r, W, 2).double()
    rank, left = int(torch.linalg.matrix_rank(got, rtol=1e-4)), (W - got).norm()
    told = f"{call} has rank {rank}: equal singular values are a term each; the first r are kept"
    expect(rank == 2, f"{told}, by their index")
    expect(left < 2.01, f"{call}: its error is {left:.3f}, and 2 can be, though its rank is right")


def how_far(got: torch.Tensor, W: torch.Tensor, r: int, name: str = "W") -> str:
    """What `got`, (d_out, d_in), is like beside the best part of `W`, which is called `name`."""
    got, W = got.double(), W.double()
    terms = kept(got, W)
    if terms and terms[-1] != len(terms):
        listed = ", ".join(map(str, terms))
        return f"it is the sum of the terms {listed} (1 is the largest); the first {r} are asked"
    rank = int(torch.linalg.matrix_rank(got, rtol=1e-4))
    if rank > r:
        return f"its rank is {rank}, more than r"
    mine, least = ((W - M).norm() / W.norm() for M in (got, best(W, r)))
    if rank < min(r, *W.shape) and mine > least + 0.01:
        return f"its rank is {rank} only"
    U, S, Vh = torch.linalg.svd(W)
    r = min(r, len(S))
    core = U.T @ got @ Vh.T  # a best part is the diagonal of s_1 to s_r, and zeros
    columns, rows = (M.norm() < 1e-3 * got.norm() for M in (core[r:], core[:, r:]))
    if columns and rows:
        core = core[:r, :r]
        if (core - core.diag().diag()).norm() > 1e-3 * core.norm():
            return "it pairs u_i with v_j of another term: U, S, Vh go in step"
        return _sizes_told(core.diag(), S[:r])
    if columns:
        return f"its u_i are right, the v_i are not: they are the rows of Vh, of {name}"
    if rows:
        return f"its v_i are right, the u_i are not: they are the columns of U, of {name}"
    told = f"its rank is right, its directions are not those of the SVD of {name}"
    about = "approximate: svd_lowrank only guesses them, as do too few iterations"
    return f"{told} ({about}): the error is {mine:.6f} of |{name}|, {least:.6f} can be"
