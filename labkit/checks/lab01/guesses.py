"""What misconceptions give in lab 1: a message for each, and the number it leads to."""

import itertools
import math

import torch

from labkit.checks.lab01 import pairs


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
        "only s[r] is taken out; all of s[:r] go": (1 - energy[r]).sqrt(),
        "only s[r - 1] is taken out; all of s[:r] go": (1 - energy[r - 1]).sqrt(),
        "that is the head, which is kept; the error is the tail s[r:]": head.sqrt(),
        "that is the share of the energy kept; the error is made of the tail s[r:]": head,
        "squares add up, norms do not: not 1 minus the norm kept": 1 - head.sqrt(),
        "divided by the root of how many entries W has, too": tail.sqrt() / W.numel() ** 0.5,
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
        "divided by how many entries W has; divide by |W|": s[r:].norm() / W.numel() ** 0.5,
        "what is kept is summed and not squared": (1 - (1 - all_but) ** 2).sqrt(),
        "the singular values are averaged; the norm is the root of the sum of squares": s[r:].mean()
        / s.mean(),
        "the mean of squares is no norm: sum them": s[r:].square().mean().sqrt()
        / s.square().mean().sqrt(),
    }
    alias = "it is 1 in any case: is the tail another name for s? Zeroing it zeroes s: clone it"
    known = {why: value.item() for why, value in guesses.items()} | {alias: 1.0}
    return known | pairs.errors(s, r, W.shape)


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
        "U, S and Vh are counted, or a bias of A; LoRA has A and B only": r * (d_out + d_in + 1),
        "a bias is counted too; LoRA has A and B only": r * (d_out + d_in) + d_out,
        "two biases are counted too, of r and of d_out; LoRA has A and B only": r
        * (d_out + d_in + 1)
        + d_out,
        "these are bytes; how many numbers is asked": 4 * r * (d_out + d_in),
        "this is twice as much: A and B come once, and numbers are no bytes": 2
        * r
        * (d_out + d_in),
        "the sides are squared; A and B have one side of W each": r * (d_out**2 + d_in**2),
        "it grows with r squared; A and B each grow linearly": r * r * (d_out + d_in),
        "the counts of A and B are multiplied; add them": r * d_in * d_out * r,
        "brackets: both sides come r times, r * (d_out + d_in)": r * d_out + d_in,
        "brackets: both sides come r times each, r * (d_out + d_in)": d_out + r * d_in,
        "r is missing: this is rank 1": d_out + d_in,
        "the sides are added; a matrix holds their product": d_out + r + d_in,
        "the four sides are added; a matrix holds their product": d_out + d_in + 2 * r,
        "r is cut at the shorter side; A and B hold r rows and columns all the same": (
            min(r, d_out, d_in) * (d_out + d_in)
        ),
        "that is a share of W; how many numbers is asked": r * (d_out + d_in) / (d_out * d_in),
    } | _other_shapes({"r": r, "d_out": d_out, "d_in": d_in})


def _other_shapes(sizes):
    """What A and B hold where one of them is given other sides."""
    A, B, guesses = ("r", "d_in"), ("d_out", "r"), {}
    for a, b in itertools.combinations_with_replacement(sizes, 2):
        product = sizes[a] * sizes[b]
        others = {"A": sizes["d_out"] * sizes["r"], "B": sizes["r"] * sizes["d_in"]}
        for (name, other), right in zip(others.items(), (A, B), strict=True):
            told = f"it counts {name} as ({a}, {b}); {name} is ({', '.join(right)})"
            guesses[told] = product + other
    return guesses


def energy(s, fraction):
    """The right energy rank, and the wrong ones."""
    wanted, sums = _first(s**2, fraction), (s**2).double().cumsum(0)
    undivided = "the whole energy does not divide the sums of squares: divide by it"
    nuclear = s.double().cumsum(0) / s.double().sum()
    share = sums / sums[-1]
    return wanted, {
        "the whole energy is the sum of squares, not the square of the sum": 1
        + int((sums < fraction * s.double().sum() ** 2).sum()),
        "one too many: the energy must reach the fraction, not exceed it": int(
            (share <= fraction).sum()
        )
        + 1,
        "one too many where a sum equals the fraction: that one reaches it, equal is enough": min(
            len(s), int((share <= fraction).sum()) + 1
        ),
        "the last sum within the fraction is taken; the first that reaches it is asked": int(
            (share <= fraction).sum()
        ),
        "the nearest sum is taken; the first that reaches the fraction is asked": int(
            (share - fraction).abs().argmin()
        )
        + 1,
        "one too few: the one that reaches the fraction counts, too (positions start at 0)": wanted
        - 1,
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
        "sums of squares are compared with a share of sum(s): take that of sum(s²)": int(
            (sums < fraction * s.sum()).sum()
        )
        + 1,
        f"{undivided}; s alone is summed": int((s.cumsum(0) < fraction).sum()) + 1,
    } | _counted(s, fraction, share, wanted)


def _counted(s, fraction, share, wanted):
    """Wrong ranks that weigh no energy, or count something else."""
    own = (s**2).double() / (s**2).double().sum()
    return {
        "that is a share; a rank is a number of singular values": wanted / len(s),
        "that is the energy they hold; how many they are is asked": share[wanted - 1].item(),
        "it is a share of the number of values; energy is what they weigh": int(fraction * len(s)),
        "it is a share of how many values there are; energy is what they weigh": math.ceil(
            fraction * len(s)
        ),
        "it counts the partial sums that are large enough; the first of them is asked": int(
            (share >= fraction).sum()
        ),
        "the fraction is from 0 to 1, and no percent": int((share < 100 * fraction).sum()) + 1,
        "the first value is left out of the sums, and of the whole": int(
            ((share[1:] - share[0]) / (1 - share[0]) < fraction).sum()
        )
        + 1,
        "these are the values above a quantile of them; energy adds up": int(
            (s >= s.quantile(1 - fraction)).sum()
        ),
        "the first value comes twice in the sums": int(
            (share[0] < fraction) + (share[:-1] + share[0] < fraction).sum()
        )
        + 1,
        "the first value is left out of the sums": int((share[1:] - share[0] < fraction).sum()) + 1,
        "each value is compared by itself; energy adds up, cumsum": int((own < fraction).sum()) + 1,
        "that is all of them, nothing is left out": len(s),
    } | _one_by_one(s, fraction)


def _one_by_one(s, fraction):
    """Wrong ranks that compare each value by itself, with a limit that is reached or exceeded."""
    guesses, parts = {}, {"fraction": fraction, "(1 - fraction)": 1 - fraction}
    for what, sizes in {"energy": s.square(), "value": s}.items():
        limits = {"largest": sizes[0], "whole": sizes.sum(), "mean": sizes.mean()}
        for part, whose in itertools.product(parts, limits):
            limit = parts[part] * limits[whose]
            told = f"each {what} is compared by itself, with {part} of the {whose}"
            told += "; energy adds up: compare sums (cumsum) with the whole"
            guesses |= {told: int((sizes >= limit).sum()), f" {told}": int((sizes > limit).sum())}
    return guesses


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
        "the spectral norm is squared twice, as that of W @ W.T": wanted / s[0].item() ** 2,
        "the Frobenius norm is not squared": (s.norm() / s[0] ** 2).item(),
        spectral: 1.0,
        "that is the rank; the stable rank weighs each direction by its energy": len(s),
        "upside down": 1 / wanted,
        "the largest entry of W, without its sign, is not its spectral norm": (
            s.norm() / M.max()
        ).item()
        ** 2,
        "the largest entry of W is not its spectral norm": (s.norm() / M.abs().max()).item() ** 2,
        "it is not divided by |W|_2²": wanted * s[0].item() ** 2,
        "that is the effective rank, the exponential of an entropy": _spread(energy),
        "that is the effective rank, the exponential of an entropy of s": _spread(share),
        "that is the participation ratio; |W|_F² / |W|_2² is asked": 1 / (energy @ energy).item(),
        "that is the participation ratio of s; |W|_F² / |W|_2² is asked": 1
        / (share @ share).item(),
        "the entries are summed; sum their squares": (M.double().sum() / s[0]).item() ** 2,
        "the squares are averaged; sum them": wanted / M.numel(),
        "the squares of the singular values are averaged; sum them": wanted / len(s),
        "divided by the second singular value; the largest is s[0]": (s.norm() / s[1]).item() ** 2,
        "that is the condition number; |W|_F² / |W|_2² is asked": (s[0] / s[-1]).item(),
        "divided by the smallest singular value; the largest is the spectral norm": (
            s.norm() / s[-1]
        ).item()
        ** 2,
    } | _other_norms(M.double()) | pairs.stable(s)


def _other_norms(M):
    """Stable ranks with something else of a column or row for the spectral norm."""
    taken = {}
    for dim, name in enumerate(("column", "row")):
        one_sum, norm = M.abs().sum(dim).max(), M.norm(dim=dim).max()
        taken[f"the largest sum of a {name} is not the spectral norm"] = one_sum
        taken[f"the largest norm of a {name} is not the spectral norm"] = norm
        taken[f"the norm of the first {name} is not the spectral norm"] = M.select(
            1 - dim, 0
        ).norm()
    return {message: (M.norm() / size).item() ** 2 for message, size in taken.items()}


def _spread(share):
    return (-share * share.log()).sum().exp().item()
