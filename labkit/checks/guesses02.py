"""What misconceptions give in lab 2, most of them about the factor alpha / r."""

import math

NOTHING = "nothing was added: the update is missing"


def factors(alpha, r, d_out=None, d_in=None):
    """What is taken for alpha / r: a message for each, and the number it leads to."""
    sizes = {"d_in; r is A.shape[0]": d_in, "d_out; r is B.shape[1]": d_out}
    return {
        "alpha is not divided by r": alpha,
        "alpha // r drops the fraction: divide with /": alpha // r,
        "the scaling alpha / r is missing": 1.0,
        "alpha is divided by sqrt(r): that is rank-stabilised LoRA": alpha / math.sqrt(r),
        "the scaling is r / alpha, upside down": r / alpha,
        "the scaling alpha / r comes twice": (alpha / r) ** 2,
    } | {f"alpha is divided by {name}": alpha / d for name, d in sizes.items() if d}


def dense(x, W, A, B, scale):
    """The dense layer's output (..., d_out) for `x` (..., d_in): x (W + scale B A)ᵀ."""
    return x @ (W + scale * B @ A).T


def forward(x, W, A, B, alpha):
    """Wrong outputs of a LoRA layer."""
    r, s = len(A), alpha / len(A)
    known = factors(alpha, r, *W.shape)
    return {message: dense(x, W, A, B, factor) for message, factor in known.items()} | {
        "this is the frozen layer alone; the update is missing": dense(x, W, A, B, 0.0),
        "this is the update alone; the frozen x @ W.T is missing": dense(x, W * 0, A, B, s),
        "the scaling falls on the frozen part too": dense(x, W * s, A, B, s),
    }


def gradient(right, alpha, r, tokens):
    """Wrong gradients of A or B; `right` is autograd's."""
    unscaled = right / (alpha / r)
    return {message: unscaled * factor for message, factor in factors(alpha, r).items()} | {
        "averaged over the batch; a gradient sums over it": right / tokens
    }


def merged(W, update, alpha, r):
    """Wrong versions of `W + update`, where `update` is the right one, (alpha / r) B A."""
    known, product = factors(alpha, r, *W.shape), update / (alpha / r)
    return {message: W + factor * product for message, factor in known.items()} | {
        NOTHING: W,
        "this is the update alone: add it to W": update,
        "the update is taken away: a merge adds it": W - update,
    }
