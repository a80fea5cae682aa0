"""What misconceptions give in lab 2, most of them about the factor alpha / r."""

import itertools
import math

import torch

MISSING = "the update is missing"
SWAPPED = "the two are swapped: return (trainable, total) in this order"


def factors(alpha, r, d_out=None, d_in=None):
    """What is taken for alpha / r: a message for each, and the number it leads to."""
    sizes = {"d_in; r is A.shape[0]": d_in, "d_out; r is B.shape[1]": d_out}
    return (
        {
            "it is cut off at 1; a factor below 1 is one, too": max(1.0, alpha / r),
            "alpha is not divided by r": alpha,
            "alpha // r drops the fraction: divide with /": alpha // r,
            "alpha / r is rounded to a whole number: leave the fraction": round(alpha / r),
            "the scaling alpha / r is missing": 1.0,
            "it is divided by r alone; alpha is missing": 1 / r,
            "that is half of it; 2 belongs nowhere, and A and B share one r": alpha / (2 * r),
            "alpha is divided by sqrt(r): that is rank-stabilised LoRA": alpha / math.sqrt(r),
            "the scaling is r / alpha, upside down": r / alpha,
            "the scaling alpha / r comes twice": (alpha / r) ** 2,
            "alpha is divided by r twice": alpha / r**2,
            "1 is added to r, which is the rank itself": alpha / (r + 1),
            "alpha is multiplied by r: divide": alpha * r,
        }
        | {f"alpha is divided by {name}": alpha / d for name, d in sizes.items() if d}
        | {f"alpha is divided by {k}, whatever r is": alpha / k for k in (8, 16, 32) if k != r}
    )


def powers(alpha, r, asked):
    """Numbers alpha ** a * r ** b, told as these; `asked` is the right formula."""
    of_r = (-2, -1.5, -1, -0.75, -0.5, -0.25, 0, 0.5, 1, 2)
    exponents = itertools.product((0, 0.5, 1, 1.5, 2), of_r)
    right = (1, -1 if asked == "alpha / r" else -0.5)
    return {
        f"that is alpha ** {a} * r ** {b}; {asked} is asked": alpha**a * r**b
        for a, b in exponents
        if (a, b) != right
    }


def forward(x, layer):
    """Wrong outputs of a LoRA layer, its bias apart."""
    W, A, B, s = layer.W, layer.A, layer.B, layer.scaling
    known = factors(layer.alpha, layer.r, *W.shape)

    def dense(W, scale):
        return x @ (W + scale * B @ A).T

    return (
        {message: dense(W, factor) for message, factor in known.items()}
        | {
            "this is the frozen layer alone; the update is missing": dense(W, 0.0),
            "this is the update alone; the frozen x @ W.T is missing": dense(W * 0, s),
            "the scaling falls on the frozen part too": dense(W * s, s),
            "the update is taken away: add it": dense(W, -s),
            "the frozen part comes twice": dense(2 * W, s),
            "the update comes twice": dense(W, 2 * s),
        }
        | (_turned(x, W, A, B, s) if W.shape == A.shape == B.shape else {})
    )


def _turned(x, W, A, B, s):
    """Wrong outputs that only square matrices let through."""
    frozen, update = x @ W.T, s * x @ A.T @ B.T
    return {
        "W comes without .T: a linear layer computes x @ W.T": x @ W + update,
        "A and B come without .T: a linear layer computes x @ W.T": frozen + s * x @ A @ B,
        "x goes through B first; it is A that reads x": frozen + s * x @ B @ A,
        "x goes through B first; it is A that reads it": frozen + s * x @ B.T @ A.T,
        "A is given what W has made; it reads x, as W does": frozen + s * frozen @ A.T @ B.T,
        "B is given what W has made; A reads x, then B": frozen + s * frozen @ B @ A,
        "A stands in B's place, too": frozen + s * x @ A.T @ A,
        "A stands in B's place, too, and comes without .T": frozen + s * x @ A.T @ A.T,
        "B stands in A's place, too": frozen + s * x @ B @ B.T,
        "x itself is added to the update; the frozen part is x @ W.T": x + update,
        "x itself is added, too: that is the block's work, not the layer's": x + frozen + update,
    }


def gradient(right, layer, dY):
    """Wrong gradients of A or B; `right` is autograd's."""
    unscaled, known = right / layer.scaling, factors(layer.alpha, layer.r, *layer.W.shape)
    return {message: unscaled * factor for message, factor in known.items()} | {
        "averaged over the batch; a gradient sums over it": right / len(dY),
        "averaged over all numbers of dY; a gradient sums over them": right / dY.numel(),
        "it is zero for every A and B: dA is zero only while B is": right * 0,
        "the sign is turned round: the gradient itself is asked, no step downhill": -right,
    }


def gradient_by_other_ways(name, x, layer, dY, both):
    """A gradient of A or B with rows put together first, or with the other's gradient in it.

    `both` are the right ones.
    """
    (dA, dB), s = both, layer.scaling

    def made(A, B, dW):
        return s * B.T @ dW if name == "dA" else s * dW @ A.T

    rows = "before the products; each row has a product of its own, and these are summed"
    known = {
        f"rows are averaged {rows}": made(layer.A, layer.B, torch.outer(dY.mean(0), x.mean(0))),
        f"rows are summed {rows}": made(layer.A, layer.B, torch.outer(dY.sum(0), x.sum(0))),
    }
    mine, right, other = (layer.A, dA, "B") if name == "dA" else (layer.B, dB, "A")
    for sign, way in ((-1, ""), (1, " uphill")):
        stepped = made(layer.A + sign * dA, layer.B + sign * dB, dY.T @ x)
        known |= {
            f"{other} has made a step{way} before {name} is computed; take both as given": stepped,
            f"this is {name[1]} after a step{way}; its gradient is asked": mine + sign * right,
        }
    return known | {
        f"{name} is made with d{other}; {other} itself belongs there": made(dA, dB, dY.T @ x)
    }


def merged(W, update, alpha, r):
    """Wrong versions of `W + update`, where `update` is the right one, (alpha / r) B A."""
    known, product = factors(alpha, r, *W.shape), update / (alpha / r)
    return {message: W + factor * product for message, factor in known.items()} | {
        MISSING: W,
        "this is the update alone: add it to W": update,
        "the update is taken away: a merge adds it": W - update,
        "it is added twice": W + 2 * update,
        "W is scaled too: the factor belongs to the update alone": alpha / r * (W + product),
    }


def stabilised(alpha, r):
    """What is taken for alpha / sqrt(r)."""
    return {
        "it is cut off at 1; a factor below 1 is one, too": max(1.0, alpha / math.sqrt(r)),
        "that is 2 r under the root; A and B share one r": alpha / math.sqrt(2 * r),
        "1 is added to the root: alpha / sqrt(r) alone": alpha / (1 + math.sqrt(r)),
        "2 belongs nowhere: alpha / sqrt(r) alone": alpha / math.sqrt(r) / 2,
        "rank_stabilized changes nothing": alpha / r,
        "the root is over r alone: alpha / sqrt(r)": math.sqrt(alpha / r),
        "the root belongs to r, not to alpha": math.sqrt(alpha) / r,
        "r comes twice: alpha / sqrt(r) alone": alpha / r / math.sqrt(r),
        "alpha is multiplied by the root: divide": alpha * math.sqrt(r),
        "the root is taken twice": alpha / r**0.25,
        "** 1/2 halves: the root is ** 0.5": alpha / r / 2,
        "half of r is not its root: math.sqrt(r)": 2 * alpha / r,
        "the root belongs to r; alpha is divided by its own": math.sqrt(alpha),
        "// drops the fraction: divide with /": alpha // math.sqrt(r),
        "alpha is missing": 1 / math.sqrt(r),
        "alpha is not divided": alpha,
        "that is r squared; the root of r is asked": alpha / r**2,
        "the root is cut to a whole number: math.sqrt(r)": alpha / math.isqrt(r),
        "upside down: alpha / sqrt(r)": math.sqrt(r) / alpha,
        "r and its root are added; the root alone divides": alpha / (r + math.sqrt(r)),
        "that is the cube root; the square root is asked": alpha / r ** (1 / 3),
        "that is the logarithm of r; its root is asked": alpha / math.log(r),
        "that is the logarithm of r to base 2; its root is asked": alpha / math.log2(r),
    } | powers(alpha, r, "alpha / sqrt(r)")


def replaced(names, targets, r, modules):
    """Wrong counts of the layers of 8 by 8 that are replaced; `names` are those that should be."""
    return {
        "these are the numbers that train; count the layers you replace": len(names) * r * 16,
        "these are A and B of each; count the layers you replace": len(names) * 2,
        "only those at the root are counted": sum("." not in name for name in names),
        "these are all modules; count those you replace": modules,
        "these are all nn.Linear; count those you replace": 13,
        "these are the targets; count the layers you replace": len(targets),
    }


def counted(trainable, total, tied, model=None):
    """`[(the right number, {message: wrong one})]` for what trains and for all there is."""
    first = {
        "this is the total; what of it trains is told by requires_grad": total,
        "the tied tensor is counted twice": trainable + tied,
        "this is what is frozen; count what requires grad": total - trainable,
        "none is counted: what trains is told by requires_grad, not by a name, a .grad or in MB": 0,
        "these are bytes; how many numbers is asked": 4 * trainable,
        "that is the share that trains; how many train is asked": trainable / total,
        "the tied tensor, embedding and head, counts once, not never": trainable - tied,
        SWAPPED: total,
    }
    second = {
        "the tied tensor, embedding and head, is counted twice": total + tied,
        "the tied tensor, embedding and head, counts once, not never": total - tied,
        "frozen parameters belong to the total": trainable,
        "what trains is in the total already; it counts once": total + trainable,
        "a generator, such as parameters(), can be gone through once: make a list of it": 0,
        "what trains belongs to the total too": total - trainable,
        "these are bytes; how many numbers is asked": 4 * total,
        "these are bytes of 16 bits; how many numbers is asked": 2 * total,
        "that is the share that trains; how many there are is asked": trainable / total,
        SWAPPED: trainable,
    }
    if model:
        first |= _counts({n: p for n, p in model.named_parameters() if p.requires_grad})
        shapes = {p.shape: p for p in model.parameters()}.values()
        once = "tensors of equal size are counted once; only a shared one should be"
        first[once] = sum(p.numel() for p in shapes if p.requires_grad)
        second[once] = sum(p.numel() for p in shapes)
        values = {(p.shape, *p.flatten().tolist()): p for p in model.parameters()}.values()
        equal = "tensors of equal values count once; only one and the same tensor is shared: id(p)"
        first[equal] = sum(p.numel() for p in values if p.requires_grad)
        second[equal] = sum(p.numel() for p in values)
        first |= _by_kind(model, trains=True)
        second |= _counts(dict(model.named_parameters()))
        second |= _by_kind(model)
        nested = [p for module in model.modules() for p in module.parameters()]
        again = "modules() and parameters() both go all the way down; one of them is enough"
        first[again] = sum(p.numel() for p in nested if p.requires_grad)
        second[again] = sum(p.numel() for p in nested)
        second |= _with_buffers(total, tied, sum(b.numel() for b in model.buffers()))
    else:
        second |= _with_buffers(total, tied, 64)  # of the rotary part
    return [(trainable, first), (total, second)]


def _with_buffers(total, tied, size):
    """Counts that take in buffers."""
    return {
        "buffers are counted; they are no parameters": total + size,
        "state_dict() has the tied tensor twice, and buffers, which are no parameters: "
        "go through parameters()": total + tied + size,
    }


def _by_kind(model, trains=False):
    """Counts of one kind of module alone, or of all but one kind; `trains`: of what trains."""
    kinds, whole, guesses = {}, set(), {}
    for module in model.modules():
        own = {p for p in module.parameters(recurse=False) if p.requires_grad or not trains}
        kinds.setdefault(type(module).__name__, set()).update(own)
        whole |= own
    for kind, params in ((kind, params) for kind, params in kinds.items() if params):
        guesses[f"only {kind} is counted"] = sum(p.numel() for p in params)
        guesses[f"{kind} is left out"] = sum(p.numel() for p in whole - params)
    return guesses


def _counts(named):
    params = list(named.values())
    return {
        "this counts tensors, not their numbers: use numel()": len(params),
        "this sums first dimensions: use numel()": sum(map(len, params)),
        "a vector has its length alone; use numel()": sum(p.shape[0] * p.shape[-1] for p in params),
        "one tensor of each number of dimensions is counted": sum(
            p.numel() for p in {p.ndim: p for p in reversed(params)}.values()
        ),
        "the sides of each are added; a tensor has their product": sum(
            sum(p.shape) for p in params
        ),
        "vectors, as biases and norms, are left out": sum(p.numel() for p in params if p.ndim > 1),
        "biases are left out": sum(p.numel() for n, p in named.items() if "bias" not in n),
        "tensors of equal size count once; only a shared one should": sum(
            {p.numel() for p in params}
        ),
    }
