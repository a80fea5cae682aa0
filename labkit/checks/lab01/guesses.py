"""What misconceptions give in lab 1: a message for each, and the tensor or number it leads to."""

import math

import torch


def best(W, r):
    """Eckart-Young without an SVD: W projected on the r leading eigenvectors of W^T W; fp64."""
    W = W.double()
    V = torch.linalg.eigh(W.T @ W).eigenvectors.flip(1)[:, :r]
    return W @ V @ V.T


def cuts(W, r):
    """Wrong versions of the best matrix of rank r."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)  # signs as the learner's, in fp32
    head = torch.arange(len(S)) < r
    columns, rows, mean = W.clone(), W.clone(), W.double().mean(0)
    Q, R = torch.linalg.qr(W)
    columns[:, r:], rows[r:] = 0, 0
    guesses = {
        "these are the first r columns of W; the SVD's directions are others": columns,
        "these are the first r rows of W; the SVD's directions are others": rows,
        "that is QR, whose columns come in the order of W's; the SVD's come by size": Q[:, :r]
        @ R[:r],
        "the first of the r terms is left out; indices start at 0": best(W, r) - best(W, 1),
        "its r terms are those from index 1 on; indices start at 0": best(W, r + 1) - best(W, 1),
        "it keeps the smallest singular values; the largest come first": (U * S * head.flip(0))
        @ Vh,
        "the singular values S are missing: U * S scales the columns": (U * head) @ Vh,
        "the singular values come in twice": (U * S.square() * head) @ Vh,
        "that is sqrt(S); split over two factors it comes in both": (U * S.sqrt() * head) @ Vh,
        "this is what the cut leaves out, W minus the answer": W - best(W, r),
        "it is W itself, nothing is cut": W,
        "it keeps r - 1 directions, one too few": best(W, r - 1),
        "it keeps r + 1 directions, one too many": best(W, r + 1),
        "it keeps term r alone; the best matrix is the sum of the first r": best(W, r + 1)
        - best(W, r),
        "it keeps the last of the r terms alone; add them up": best(W, r) - best(W, r - 1),
        "the mean is taken off first: that is PCA; the SVD of W itself is asked": mean
        + best(W - mean, r),
        "the mean is taken off and lost: that is PCA; cut W itself": best(W - mean, r),
        "the first singular value is used for all r terms": (U * S[0] * head) @ Vh,
        "divided by the singular values: that is the pseudoinverse's way": (U / S * head) @ Vh,
    }
    if len(U) == len(Vh.T):  # only a square W lets these through
        vh = "Vh is V transposed already: use its first r rows (torch.svd gives V: its columns)"
        guesses[vh] = (U * S * head) @ Vh.T
        guesses["it takes rows of U; the directions are its columns"] = (U.T * S * head) @ Vh
        guesses["it takes columns of Vh; the directions are its rows"] = (U * S) @ (Vh * head)
        guesses["S scales the rows of U; it belongs to the columns: U * S"] = (
            S[:, None] * U * head
        ) @ Vh
        guesses["the answer is transposed"] = best(W, r).T
    return guesses


def errors(W, r):
    """Wrong relative errors."""
    s = torch.linalg.svdvals(W.double())
    energy = s.square() / s.square().sum()
    head, tail, all_but = energy[:r].sum(), energy[r:].sum(), s[r:].sum() / s.sum()
    guesses = {
        "the singular values are not squared; |W|² is the sum of squares": all_but,
        "the singular values are not squared under the root": all_but.sqrt(),
        "the square root is missing: this is the error squared": tail,
        "that is the spectral norm; the Frobenius norm counts all of s[r:]": s[r] / s[0],
        "only one singular value is counted; the error has all of s[r:]": energy[r].sqrt(),
        "that is the head, which is kept; the error is the tail s[r:]": head.sqrt(),
        "that is the share of the energy kept; the error is made of the tail s[r:]": head,
        "squares add up, norms do not: not 1 minus the norm kept": 1 - head.sqrt(),
        "this is the error itself: divide by |W|": s[r:].norm(),
        "this is the error squared, and not divided by |W|": s[r:].square().sum(),
        "the tail starts one too late: indices start at 0": energy[r + 1 :].sum().sqrt(),
        "the tail starts one too early: it comes after the r kept": energy[r - 1 :].sum().sqrt(),
        "divided by the part that is kept, not by |W|": (tail / head).sqrt(),
        "divided by |W| squared: divide before or after the root, not both ways": s[r:].norm()
        / s.square().sum(),
        "divided by the largest singular value, which is the spectral norm of W": s[r:].norm()
        / s[0],
        "the last r are taken for the tail; it is all of s[r:]": energy[-r:].sum().sqrt(),
        "that is a share of the entries, not of the norm": torch.tensor(1 - r / len(s)),
        "it is a share of singular values, summed and not squared, that is kept": 1 - all_but,
        "the singular values left out are summed, not squared": s[r:].sum() / s.norm(),
        "squared twice: W @ W.T has the squares of the singular values": energy[r:].norm()
        / energy.norm(),
        "the mean of squares is no norm: sum them": s[r:].square().mean().sqrt()
        / s.square().mean().sqrt(),
    }
    return {why: value.item() for why, value in guesses.items()}


def parameters(d_out, d_in, r):
    """Wrong counts of what A and B hold."""
    return {
        "it multiplies the sides; two thin matrices add, r d_in + d_out r": r * d_out * d_in,
        "this is W; LoRA stores A and B": d_out * d_in,
        "this is W with A and B; LoRA stores A and B alone": d_out * d_in + r * (d_out + d_in),
        "this is what LoRA saves; what A and B hold is asked": d_out * d_in - r * (d_out + d_in),
        "this is A alone; B has d_out r more": r * d_in,
        "this is B alone; A has r d_in more": r * d_out,
        "it takes W for square, d_out x d_out": 2 * r * d_out,
        "it takes W for square, with its longer side": 2 * r * max(d_out, d_in),
        "it takes W for square, with its shorter side": 2 * r * min(d_out, d_in),
        "it takes W for square, d_in x d_in": 2 * r * d_in,
        "an r x r matrix is counted too; LoRA has A and B only": r * (d_out + d_in + r),
        "U, S and Vh are counted; LoRA has A and B only": r * (d_out + d_in + 1),
        "a bias is counted too; LoRA has A and B only": r * (d_out + d_in) + d_out,
        "these are bytes; how many numbers is asked": 4 * r * (d_out + d_in),
        "these are bytes of 16 bits; how many numbers is asked": 2 * r * (d_out + d_in),
        "it grows with r squared; A and B each grow linearly": r * r * (d_out + d_in),
        "brackets: both sides come r times, r * (d_out + d_in)": r * d_out + d_in,
        "brackets: both sides come r times each, r * (d_out + d_in)": d_out + r * d_in,
        "r is missing: this is rank 1": d_out + d_in,
        "r is cut at the shorter side; A and B hold r rows and columns all the same": (
            min(r, d_out, d_in) * (d_out + d_in)
        ),
        "that is a share of W; how many numbers is asked": r * (d_out + d_in) / (d_out * d_in),
    }


def break_even(d_out, d_in):
    """Wrong largest ranks; the right one is first, as `(rank, guesses)`."""
    wanted = (d_out * d_in - 1) // (d_out + d_in)
    return wanted, {
        "where A and B store as many as W nothing is saved, and strictly fewer is asked": (
            d_out * d_in // (d_out + d_in)
        ),
        "one too many: at that rank A and B store more than W, or as many": wanted + 1,
        "one too many: at that rank A and B store more than W": d_out * d_in // (d_out + d_in) + 1,
        "one too few: at the next rank A and B still store fewer than W": wanted - 1,
        "never below 1: where no rank saves it is 0": max(1, wanted),
        "it is rounded to the nearest: round down": round(d_out * d_in / (d_out + d_in)),
        "that is the full rank, where A and B store more than W": min(d_out, d_in),
        "one below the full rank, where A and B store more than W": min(d_out, d_in) - 1,
        "that is half of it: r counts for A and for B at once": d_out
        * d_in
        // (2 * (d_out + d_in)),
        "the root of d_out d_in is a side for a square W only": math.isqrt(d_out * d_in) // 2,
    } | _halves(d_out, d_in)


def _halves(d_out, d_in):
    """Half of something that is the side of a square W."""
    sides = {"d_in": d_in, "d_out": d_out, "the mean side": (d_out + d_in) // 2}
    sides |= {"the shorter side": min(d_out, d_in), "the longer side": max(d_out, d_in)}
    guesses = {}
    for name, side in sides.items():
        guesses[f"half of {name} is right for a square W only"] = side // 2
        guesses[f"half of {name}, less one, is right for a square W only"] = side // 2 - 1
        guesses[f"that takes W for square, half of {name}"] = (side - 1) // 2
    return guesses


def energy(s, fraction):
    """The right energy rank, and the wrong ones."""
    wanted, sums = _first(s**2, fraction), (s**2).double().cumsum(0)
    undivided = "the sum of squares is compared as it is: divide by the whole energy"
    nuclear = s.double().cumsum(0) / s.double().sum()
    share = sums / sums[-1]
    return wanted, {
        "one too many: the energy must reach the fraction, not exceed it": int(
            (share <= fraction).sum()
        )
        + 1,
        "one too few: a position counts from 0, a rank from 1": wanted - 1,
        "one too many: nothing comes after the one that reaches the fraction": wanted + 1,
        "energy is the squared singular value; these are not squared": _first(s, fraction),
        "not squared, and a position counts from 0": int((nuclear < fraction).sum()),
        "s is squared twice": _first(s**4, fraction),
        "square first, then add up: these are sums, squared": int((nuclear**2 < fraction).sum())
        + 1,
        "the root is taken: a share of the norm, not of the energy": _first(s**2, fraction**2),
        "that much may be left out; `fraction` is to be kept": max(1, _first(s**2, 1 - fraction)),
        "it starts at the smallest values; the largest come first": _first(
            s.flip(0) ** 2, fraction
        ),
        "these are the values left out; how many are kept is asked": len(s) - wanted,
        f"{undivided}, sum(s²)": int((sums < fraction).sum()) + 1,
        f"{undivided}, sum(s²), a position counts from 0": int((sums < fraction).sum()),
        f"{undivided}; s alone is summed": int((s.cumsum(0) < fraction).sum()) + 1,
    } | _counted(s, fraction, share, wanted)


def _counted(s, fraction, share, wanted):
    """Wrong ranks that weigh no energy, or count something else."""
    return {
        "that is a share; a rank is a number of singular values": wanted / len(s),
        "it is a share of the number of values; energy is what they weigh": int(fraction * len(s)),
        "it is a share of how many values there are; energy is what they weigh": math.ceil(
            fraction * len(s)
        ),
        "it counts the partial sums that are large enough; the first of them is asked": int(
            (share >= fraction).sum()
        ),
        "it counts values above a share of the largest; energy adds up": int(
            (s >= fraction * s[0]).sum()
        ),
        "it counts values above a share of the largest: energy adds up": int(
            (s >= (1 - fraction) * s[0]).sum()
        ),
        "each value is compared by itself; energy adds up, cumsum": int(
            ((s**2) / (s**2).double().sum() < fraction).sum()
        )
        + 1,
        "that is all of them, nothing is left out": len(s),
    }


def _first(parts, fraction):
    """How many of the leading `parts` have `fraction` of their sum."""
    whole = fraction * parts.double().sum()
    return min(r for r in range(len(parts) + 1) if parts[:r].double().sum() >= whole)


def stable(M):
    """The stable rank, and wrong ones."""
    s = torch.linalg.svdvals(M.double())
    spectral = "a norm over itself: torch.norm(W, 2) is Frobenius, matrix_norm(W, 2) is spectral"
    wanted = (M.double().square().sum() / s[0] ** 2).item()
    energy, share = s.square() / s.square().sum(), s / s.sum()
    return wanted, {
        "the norms are not squared: |W|_F² / |W|_2²": wanted**0.5,
        "the singular values are not squared": (s.sum() / s[0]).item(),
        "squared twice: W @ W.T has the squares of the singular values": (
            (s**4).sum() / s[0] ** 4
        ).item(),
        "the nuclear norm, the plain sum, stands for the Frobenius norm": (
            (s.sum() / s[0]).item() ** 2
        ),
        "the spectral norm is not squared": wanted * s[0].item(),
        "the Frobenius norm is not squared": (s.norm() / s[0] ** 2).item(),
        spectral: 1.0,
        "that is the rank; the stable rank weighs each direction by its energy": len(s),
        "upside down": 1 / wanted,
        "the largest entry of W is not its spectral norm": (s.norm() / M.abs().max()).item() ** 2,
        "it is not divided by |W|_2²": wanted * s[0].item() ** 2,
        "that is the effective rank, the exponential of an entropy": _spread(energy),
        "that is the effective rank, the exponential of an entropy of s": _spread(share),
        "that is the participation ratio; |W|_F² / |W|_2² is asked": 1 / (energy @ energy).item(),
        "that is the participation ratio of s; |W|_F² / |W|_2² is asked": 1
        / (share @ share).item(),
        "the entries are summed; sum their squares": (M.double().sum() / s[0]).item() ** 2,
        "the squares are averaged; sum them": wanted / M.numel(),
        "that is the condition number; |W|_F² / |W|_2² is asked": (s[0] / s[-1]).item(),
        "divided by the smallest singular value; the largest is the spectral norm": (
            s.norm() / s[-1]
        ).item()
        ** 2,
    } | _other_norms(M.double())


def _other_norms(M):
    """Stable ranks with something else of a column or row for the spectral norm."""
    taken = {}
    for dim, name in enumerate(("column", "row")):
        one_sum, norm = M.abs().sum(dim).max(), M.norm(dim=dim).max()
        taken[f"the largest sum of a {name} is not the spectral norm"] = one_sum
        taken[f"the largest norm of a {name} is not the spectral norm"] = norm
    return {message: (M.norm() / size).item() ** 2 for message, size in taken.items()}


def _spread(share):
    return (-share * share.log()).sum().exp().item()


def updates(W0, W1, r):
    """W0 plus the best rank-r part of the update, and wrong versions."""
    cut = best(W1 - W0, r)
    return W0 + cut, {
        "it cuts W1; cut the difference W1 - W0, then add W0": best(W1, r),
        "it cuts W1 and adds W0; cut the difference W1 - W0": W0 + best(W1, r),
        "it cuts W0, which stays whole; cut the difference": best(W0, r) + W1 - W0,
        "it cuts W0 too; cut the difference alone": best(W0, r) + cut,
        "it cuts W1 and W0 one by one; cut their difference": W0 + best(W1, r) - best(W0, r),
        "it cuts the whole sum; W0 stays whole, and the difference is cut": best(W0 + cut, r),
        "it cuts W0 + W1; cut the difference W1 - W0": W0 + best(W0 + W1, r),
        "it cuts W0 + W1; cut the difference, then add W0": best(W0 + W1, r),
        "W1 and W0 are cut one by one, and W0 is not added": best(W1, r) - best(W0, r),
        "this is the update alone: add it to W0": cut,
        "the update points backwards: it is W1 - W0": W0 - cut,
        "it is added to W1, which holds the whole update already": W1 + cut,
        "this is W0 plus the rest, all but the best part (W1 less that); add the best part": W1
        - cut,
        "this is the rest of the update, all but its best part, and W0 is not added": W1 - W0 - cut,
        "this is W1, nothing is cut": W1,
        "this is W0, the update is lost": W0,
        "this is the update, uncut, without W0": W1 - W0,
        "it keeps r - 1 directions of the update, one too few": W0 + best(W1 - W0, r - 1),
        "it keeps r + 1 directions of the update, one too many": W0 + best(W1 - W0, r + 1),
    }
