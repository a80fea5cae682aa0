"""What misconceptions give for the FLOPs of a step."""

import math


def guesses(shapes, n, r, count):
    """Wrong counts of a step's FLOPs on `n` tokens; `r` None: all weights train, else LoRA.

    `count(shapes)` gives the right one.
    """
    right, pairs = count(shapes), list(shapes.items())
    sizes = [sum(map(math.prod, shapes.values()))]
    sizes += [sum(pair[side] for pair in shapes.values()) for side in (0, 1)]
    known = _full(*sizes, n) if r is None else _lora(*sizes, n, r)
    for message, factor in (
        ("a multiply-add is two operations, and counts as one here", 1 / 2),
        ("a multiply-add counts as four; it is two", 2),
        ("n_tokens is forgotten: each token goes through every layer", 1 / n),
        ("n_tokens is forgotten, and a multiply-add is two operations", 1 / n / 2),
        ("n_tokens comes twice", n),
    ):
        known.setdefault(message, round(right * factor))
    first = 2 * n * math.prod(pairs[0][1])
    told = "the first layer's input gets its gradient, too: layers below train"
    known[told] = right - first
    if r:
        known[f"{told}, and it goes through A as through W"] = (
            right - first - 2 * n * r * pairs[0][1][1]
        )
    sides = {"d_in": lambda pair: pair[1], "d_out": lambda pair: pair[0]}
    sides |= {"the longer side": max, "the shorter side": min}
    for name, side in sides.items() if r else ():
        told = f"{name} is used twice for A and B; they have r (d_out + d_in) numbers"
        more = sum(2 * side(pair) - sum(pair) for pair in shapes.values())
        known[told] = right + 6 * n * r * more
    for message, some in (
        ("layers of one shape count once; each is a layer", {str(s): s for s in shapes.values()}),
        ("this counts the first matrix alone; sum over shapes", dict(pairs[:1])),
        ("this counts the last matrix alone; sum over shapes", dict(pairs[-1:])),
        ("d_out is used twice, as if matrices were square", {k: (o, o) for k, (o, _) in pairs}),
        ("d_in is used twice, as if matrices were square", {k: (i, i) for k, (_, i) in pairs}),
    ):
        known.setdefault(message, count(some))
    return known


def _full(N, d_out, d_in, n):
    """Wrong counts where all N weights train."""
    return {
        "this is the forward pass alone; backward takes two products more": 2 * n * N,
        "backward has two products, one for x and one for W; one is missing": 4 * n * N,
        "backward takes two products, not three": 8 * n * N,
        "this is the forward pass alone, and n_tokens is forgotten": 2 * N,
        "d_out + d_in is no product: each entry of W meets each token": 6 * n * (d_in + d_out),
        "this is one multiply-add a weight, and forward alone": n * N,
        "these are the weights; how many operations they take is asked": N,
        "adding up counts within the multiply-add: leave the -1 out": 6 * n * N - 3 * n * d_out,
        "adding up counts within the multiply-add: leave each -1 out": 6 * n * N
        - n * (d_out + d_in)
        - N,
        "it is the sum over shapes of d_out times d_in, not of the sums": 6 * n * d_in * d_out,
    }


def _lora(N, d_out, d_in, n, r):
    """Wrong counts where A and B train beside N frozen weights."""
    once, dense = 2 * n * r * (d_in + d_out), 4 * n * N  # `once`: the thin products of one pass
    frozen = "a frozen W needs no gradient of its own: 4 for each of its weights and tokens, not 6"
    through = "the gradient goes back to x through the frozen W, too: 4 for each weight and token"
    backward = "and A and B have a backward pass, too"
    return {
        "r changes nothing: with LoRA the gradients of the frozen weights fall away": 6 * n * N,
        frozen: 6 * n * N + 3 * once,
        f"{frozen}; {backward}": 6 * n * N + once,
        f"{frozen}; {backward}, of two products each": 6 * n * N + 2 * once,
        through: 2 * n * N + 3 * once,
        f"{through}; {backward}": 2 * n * N + once,
        "the frozen layers still compute, forward and back to x; this is A and B alone": 3 * once,
        "this is what A and B take forward alone; the frozen W computes, too": once,
        "A and B are missing: two thin products forward, four backward": dense,
        "this is the frozen W forward alone": 2 * n * N,
        "A and B train: their products come once forward and twice backward": dense + once,
        "A and B train and hand on a gradient: backward has two products each": dense + 2 * once,
        "A and B take three products each, not four": dense + 4 * once,
        "this counts A's products only; B has r and d_out": dense + 6 * n * r * d_in,
        "this counts B's products only; A has r and d_in": dense + 6 * n * r * d_out,
        "B @ A is never formed: r (d_out + d_in), not r d_out d_in": dense + 6 * n * r * N,
        "a step of LoRA forms no B @ A": dense + 3 * once + 6 * r * N,
        "a step of LoRA forms no B @ A, nor adds it to W": dense + 3 * once + 2 * r * N,
        "brackets: r times both, r * (d_out + d_in)": dense + 6 * n * (r * d_out + d_in),
        "brackets: r times both, r * (d_in + d_out)": dense + 6 * n * (r * d_in + d_out),
        "r is missing from the thin products": dense + 6 * n * (d_in + d_out),
        "the thin products meet each token: n_tokens is missing there": dense + 3 * once // n,
        "the frozen products meet each token: n_tokens is missing there": dense // n + 3 * once,
        "a multiply-add is two in the thin products, too": dense + 3 * once // 2,
        "a multiply-add is two in the frozen products, too": dense // 2 + 3 * once,
        "these are the numbers that train": r * (d_in + d_out),
    } | {
        f"r is {k} here, whatever is given": dense + 6 * n * k * (d_in + d_out)
        for k in (1, 4, 8, 16)
        if k != r
    }


def terms(d_out, d_in, n, r=None):
    """What a count of one layer's FLOPs may be a sum of: `{name: its size}`."""
    N, both = d_out * d_in, d_out + d_in
    found = {"W": n * N, "y": n * d_out, "x": n * d_in, "Adam": N, "attention": n * n * both}
    if r is None:
        return found
    found |= {"A": n * r * d_in, "B": n * r * d_out, "BA": r * N, "nBA": n * r * N}
    return found | {
        "adam": r * both,
        "rr": n * r * r,
        "r squared": n * r * r * both,
        "h": n * r,
        "n squared": n * n * r * both,
    }


MISSING = ", its products are missing"
FROZEN = {  # what the operations on a number of the frozen W tell; right are 4
    0: MISSING,
    2: ", forward alone, while the gradient goes back through it",
    3: ", as if it trained, and a multiply-add were one",
    6: ", as if it trained",
}
TRAINS = {  # the same of a matrix that trains; right are 6
    0: MISSING,
    2: ", one product of three",
    3: ", as if a multiply-add were one",
    4: ", two products of three",
    8: ", a product too many",
    12: ", twice as much",
}


def odd(made, lora):
    """What is wrong with a count `made` of such terms, how many of each; [] where nothing tells."""
    if not made:
        return []
    n, told = dict.fromkeys(terms(1, 1, 1, 1), 0) | made, []
    frozen = "2 forward and 2 for the gradient of x; it is frozen"
    trains = "2 forward, 2 for its own gradient, 2 for its input's"
    wanted = {"W": (6, trains)}
    if lora is not None:
        wanted = {"W": (4, frozen), "A": (6, trains), "B": (6, trains)}
    for names, message in (
        ("yxh", "biases, additions and scalings do not count, products alone do"),
        (("Adam", "adam"), "what no token enters, as the optimizer's work, does not count"),
        (("attention", "n squared"), "n_tokens comes squared; attention is no linear layer"),
        (("BA", "nBA"), "B @ A is never formed"),
        (("rr", "r squared"), "r comes squared; A and B have r (d_in + d_out) numbers"),
    ):
        if any(n[name] for name in names):
            told.append(message)
    for name, (right, why) in wanted.items():
        if n[name] != right:
            thought = (FROZEN if right == 4 else TRAINS).get(n[name], "")
            told.append(
                f"{name} takes {n[name]} operations a number and token here{thought}: {why}"
            )
    return told
