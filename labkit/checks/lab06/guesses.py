"""What misconceptions give in lab 6: a message for each, and the tensor or number it leads to."""

import itertools
import math

import torch

from labkit.checks.compare import close

POWERS = {"nothing": 0, "sqrt(w)": 0.5, "w": 1, "w²": 2, "the 4th root of w": 0.25}
MISSING = "the update is missing"
SOFTMAX = "the weights go through softmax; take them as they are"
MINUS = "the product has |w| in the place of w, so a minus is lost (is it in neither factor, or in "
MINUS += "both?): the whole w on one of A and B"
SAY_IT_ALL = "divided by the number of adapters: each counts by its weight alone"


def rounded(W, A, B, alpha):
    """Merges that are rounded once too often, in the dtype of W."""
    r, kind = len(A), W.dtype
    low = B.to(kind) @ A.to(kind)
    lows = [alpha / r * low, B.to(kind) @ (alpha / r * A.to(kind))]
    lows.append((alpha / r * B.to(kind)) @ A.to(kind))
    short = "the factors are cast first, so their product is in 16 bits: keep A and B in fp32"
    return {
        "the update is cast before the sum: cast the sum alone": W + (alpha / r * B @ A).to(kind),
        short: (W.float() + alpha / r * low.float()).to(kind),
        **{f"{short}{' ' * k}": (W.float() + x.float()).to(kind) for k, x in enumerate(lows, 1)},
        **{f"{short}, and the sum too{' ' * k}": W + x for k, x in enumerate(lows)},
    }


def summed(adapters, weights):
    """The weighted sum of the updates, in fp64: what `cat` must give."""
    return sum(w * B.double() @ A.double() for (A, B), w in zip(adapters, weights, strict=True))


def crossed(adapters, weights_A, weights_B):
    """The product of weighted sums of the factors, cross terms included."""
    A = sum(w * A for (A, _), w in zip(adapters, weights_A, strict=True))
    B = sum(w * B for (_, B), w in zip(adapters, weights_B, strict=True))
    return B @ A


def of_some(A, B, adapters, weights):
    """Whether BA is the weighted sum of some of the updates, not of all."""
    n, all_of_it = len(weights), summed(adapters, weights)
    if len(A) != B.shape[1] or (len(B), A.shape[1]) != all_of_it.shape:
        return False
    chosen = [[some >> k & 1 for k in range(n)] for some in range(1, 2**n - 1)]
    sums = [summed(adapters, [w * c for w, c in zip(weights, row, strict=True)]) for row in chosen]
    return any(close(B @ A, guess, 1e-4) for guess in sums)


def concatenated(adapters, weights):
    """Wrong products of `combine_cat`."""
    n, total = len(weights), sum(weights)
    wrong = {
        "both factors carry the weight, so the product has its square": [w * w for w in weights],
        "the weights are not used": [1.0] * n,
        "that is the plain mean: the weights are not used": [1 / n] * n,
        "the first weight is used for all": [weights[0]] * n,
        "the last weight is used for all": [weights[-1]] * n,
        SOFTMAX: torch.tensor(weights).softmax(0).tolist(),
        "a negative weight is taken for 0": [max(w, 0.0) for w in weights],
        SAY_IT_ALL: [w / n for w in weights],
        "the weights are normalised; take them as they are": [w / total for w in weights],
        MINUS: [abs(w) for w in weights],
        "the weights are in another order than the adapters": weights[::-1],
        "a weight of 0 is taken for 1": [w or 1.0 for w in weights],
        "the first weight is not used": [1.0, *weights[1:]],
    }
    for name, power in POWERS.items():
        if power not in (0, 1):
            told = f"the product has {name} in the place of w: the whole w on one of A and B"
            wrong[told] = [math.copysign(abs(w) ** power, w) for w in weights]
    if min(weights) >= 0:
        wrong["one factor carries sqrt(w) and the other nothing: the whole w on one of them"] = [
            math.sqrt(w) for w in weights
        ]
    if 0.0 not in weights:
        wrong["the weights divide; multiply by them"] = [1 / w for w in weights]
    products = {message: summed(adapters, parts) for message, parts in wrong.items()}
    A, B = torch.cat([A for A, _ in adapters]), torch.cat([B for _, B in adapters], dim=1)
    turns = torch.tensor(weights, dtype=torch.double).repeat(len(A))[: len(A)]
    told = "the weights come in turns, w1, w2, w1, …; each belongs to all rows of its adapter: "
    products[f"{told}repeat_interleave, not repeat"] = B.double() * turns @ A.double()
    if len({len(A) for A, _ in adapters}) == 1:
        for factor, parts in (("B", weights[::-1]), ("A", weights)):
            turned = zip(adapters, reversed(adapters), parts, strict=True)
            told = f"the B's are in another order than the A's (w on {factor})"
            products[told] = sum(w * B.double() @ A.double() for (A, _), (_, B), w in turned)
    return products


def added(adapters, weights):
    """Wrong products of `combine_linear`."""
    ones, n = [1.0] * len(weights), len(weights)
    pairs = {
        "each factor carries w, so a term has w squared: give each sqrt(w)": (weights, weights),
        "A alone is weighted: give each factor sqrt(w)": (weights, ones),
        "B alone is weighted: give each factor sqrt(w)": (ones, weights),
        "the weights are not used: each factor wants sqrt(w)": (ones, ones),
        "that is the mean of A and of B: the weights are not used": ([1 / n] * n, [1 / n] * n),
        "the root of the mean weight on all: each has its own": (
            [math.sqrt(1 / n)] * n,
            [math.sqrt(1 / n)] * n,
        ),
    }
    roots = [math.sqrt(w) for w in weights]
    for (a, on_a), (b, on_b) in itertools.product(POWERS.items(), repeat=2):
        told = f"A carries {a} and B {b}: each wants sqrt(w)"
        pairs[told] = [w**on_a for w in weights], [w**on_b for w in weights]
    pairs["the root of the sum of the weights is on all: each has its own"] = (
        [math.sqrt(sum(weights))] * n,
    ) * 2
    pairs["a weight of 0 is taken for 1"] = ([x or 1.0 for x in roots],) * 2
    pairs["A of the first adapter alone is taken: each A has its sqrt(w)"] = (
        [1.0] + [0.0] * (n - 1),
        weights,
    )
    pairs["B carries sqrt(w) and A nothing: give it to each factor"] = (ones, roots)
    pairs["A carries sqrt(w) and B nothing: give it to each factor"] = (roots, ones)
    for message, parts in {
        "only the first two adapters are added": [*roots[:2], *[0.0] * (n - 2)],
        SAY_IT_ALL: [x / n for x in roots],
        "the weights are normalised; take them as they are": [
            x / math.sqrt(sum(weights)) for x in roots
        ],
        "the weights are in another order than the adapters": roots[::-1],
        SOFTMAX: torch.tensor(weights).softmax(0).sqrt().tolist(),
    }.items():
        pairs[message] = (parts, parts)
    return {message: crossed(adapters, *parts) for message, parts in pairs.items()} | _not_added(
        adapters, weights
    )


def _not_added(adapters, weights):
    """Products of other pairs than weighted sums of the factors."""
    A, B = (sum(w * pair[k] for pair, w in zip(adapters, weights, strict=True)) for k in (0, 1))
    whole = "the root is drawn from the sums: each term has its own sqrt(w)"
    r = len(adapters[0][0])
    U, S, Vh = torch.linalg.svd(summed(adapters, weights), full_matrices=False)
    exact = "that is the best rank-r part of the sum of updates; linear adds A to A and B to B"
    return {
        exact: (U[:, :r] * S[:r]) @ Vh[:r],
        whole: (B.abs().sqrt() * B.sign()) @ (A.abs().sqrt() * A.sign()),
        f"{whole}, and every sign": B.abs().sqrt() @ A.abs().sqrt(),
    }


def souped(states, name, parts):
    """Wrong means of the tensors `name` of all states."""
    n, keys = len(states), len(states[0])

    def mixed(factors):
        return sum(f * s[name] for f, s in zip(factors, states, strict=True))

    def mixed_by(change, factors):
        return sum(f * change(s[name]) for f, s in zip(factors, states, strict=True))

    return {
        "this is the sum; divide it by the number of states": mixed([1.0] * n),
        "divided by the number of states; the weights sum to 1 already": mixed(
            [w / n for w in parts]
        ),
        "divided by n - 1; the mean of n divides by n": mixed([1 / (n - 1)] * n),
        "the weights are made of length 1; they sum to 1 already": mixed(
            [w / math.hypot(*parts) for w in parts]
        ),
        "that is a geometric mean; the mean is a sum": (
            mixed_by(lambda s: s.abs().clamp_min(1e-12).log(), parts).exp() * states[0][name].sign()
        ),
        "the weights are not used": mixed([1 / n] * n),
        "1 / n is rounded to two digits; take it as it is": mixed([round(1 / n, 2)] * n),
        "divided by the number of keys, not of states": mixed([1 / keys] * n),
        "each state counts half; of n states each counts 1 / n": mixed([0.5] * n),
        "the weights are in another order than the states": mixed(parts[::-1]),
        "halved with each new state: the mean of n divides once, by n": mixed(
            [0.5 ** min(n - 1, n - k) for k in range(n)]
        ),
        **_of_two(states, name, parts),
        "only the first two states are mixed": mixed([*parts[:2], *[0.0] * (n - 2)]),
        "that is the weights' square roots; take them as they are": mixed(
            [math.sqrt(w) for w in parts]
        ),
        "the weights go through softmax; they sum to 1 already": mixed(
            torch.tensor(parts).softmax(0).tolist()
        ),
        "that is the median of the states, not their mean": torch.stack(
            [s[name] for s in states]
        ).median(0)[0],
        "this is the first state alone": states[0][name],
        "this is the last state alone": states[-1][name],
    }


def _of_two(states, name, parts):
    """Means as if there were two states, and the largest."""
    (first, second), every = (s[name] for s in states[:2]), torch.stack([s[name] for s in states])
    return {
        "the second of two counts 1 - w, and of more states the others nothing": (
            parts[0] * first + (1 - parts[0]) * second
        ),
        "the first two count half each, and the others nothing": 0.5 * first + 0.5 * second,
        "that is the largest of the states, not their mean": every.amax(0),
        "that is the largest of the states in size, not their mean": (
            every.gather(0, every.abs().argmax(0, keepdim=True))[0]
        ),
    }


def without(made, states, name, weights):
    """How a soup `made` of states of which one lacks the tensor `name` came about; "" if unseen."""
    if not isinstance(made, dict):
        return ""
    if name not in made:
        dropped = f"{name} is dropped from the result: raise an error that names it"
        first = "the keys of the first state alone are looked at: compare those of all"
        return dropped if name in states[0] else first
    parts = weights or [1 / len(states)] * len(states)
    held = [(w, s[name]) for w, s in zip(parts, states, strict=True) if name in s]
    total, counted = sum(w * tensor for w, tensor in held), sum(w for w, _ in held)
    known = [
        ("the missing tensor counts as 0", total),
        ("it is the mean of the states that have it", total / counted),
        *(("another state's takes its place", total + (1 - counted) * t) for _, t in held),
    ]
    alike = [t for t, M in known if made[name].shape == M.shape and close(made[name], M, 1e-4)]
    return f"{alike[0]}: raise an error that names the key" if alike else ""


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
