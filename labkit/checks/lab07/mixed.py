"""What rows of a mixed batch get, for exercise 7.6: from their own adapters, and by mistakes."""

import torch

D_IN, D_OUT, R, K = 64, 56, 3, 4
NONE = "index -1 is the last adapter for torch: rows with -1 get zeros"


def alone(x, A, B, scaling, index):
    """Each row by its own adapter, in fp64; zeros without one."""
    y = torch.zeros(len(x), B.shape[1], dtype=torch.float64)
    for i, k in enumerate(index.tolist()):
        if k >= 0:
            update = scaling[k].double() * B[k].double() @ A[k].double()
            y[i] = update @ x[i].double()
    return y.float()


def _of_scaling(x, A, B, scaling, index):
    """`{message: y}` of what else is done with the scalings."""
    ones, wrapped = torch.ones_like(scaling), index % K
    return {
        "the scaling is missing": alone(x, A, B, ones, index),
        f"the scaling is missing, and {NONE}": alone(x, A, B, ones, wrapped),
        "all rows have the first adapter's scaling: scaling[index]": alone(
            x, A, B, scaling[0].expand(K), index
        ),
        "the scaling divides; multiply by it": alone(x, A, B, 1 / scaling, index),
        "divided by sqrt(d_in): the scaling alone scales": (
            alone(x, A, B, scaling, index) / D_IN**0.5
        ),
        "the scaling is added; multiply by it": (
            alone(x, A, B, ones, index) + scaling[wrapped][:, None]
        ),
        "the scaling is squared: it stands once, not on A and B both": alone(
            x, A, B, scaling**2, index
        ),
        "that is the root of the scaling": alone(x, A, B, scaling.sqrt(), index),
        "times the rank: the scaling is alpha / r already": alone(x, A, B, scaling * R, index),
        "divided by the rank: the scaling is alpha / r already": alone(x, A, B, scaling / R, index),
        "all rows have the mean of the scalings: each row has its own, scaling[index]": alone(
            x, A, B, scaling.mean().expand(K), index
        ),
        "all the scalings are added: each row has its own, scaling[index]": alone(
            x, A, B, scaling.sum().expand(K), index
        ),
    }


def guesses(x, A, B, scaling, index):
    kept = (index >= 0).float()[:, None]
    wrapped = index % K
    last = alone(x, A, B, scaling, wrapped)
    first = alone(x, A, B, scaling, index.clamp_min(0))
    flat = torch.zeros_like(index)
    share = kept * alone(x, A, B, scaling[wrapped.flip(0)[0]].expand(K), index)
    known = {
        NONE: last,
        "rows with index -1 get the first adapter; they get zeros: ask which they are before "
        "index is clamped": first,
        **_of_scaling(x, A, B, scaling, index),
        "all rows have the first adapter: each has its own, by index": alone(
            x, A, B, scaling, flat
        ),
        "all rows have the first row's adapter: each has its own, by index": kept
        * alone(x, A, B, scaling, flat + wrapped[0]),
        "adapter 0 is one as well: none is -1, index >= 0": alone(
            x, A, B, scaling, torch.where(index == 0, -1, index)
        ),
        "negative numbers are cut off": alone(x, A, B, scaling, index).relu(),
        "adapters are counted from the last one": (
            alone(x, A.flip(0), B.flip(0), scaling.flip(0), index)
        ),
        "index is in another order than the rows": alone(x, A, B, scaling, index.flip(0)),
        "index is sorted here, and the rows are not": alone(x, A, B, scaling, index.sort().values),
        "the scalings are in another order than the rows": share,
        **_reshaped(x, A, B, scaling, index),
        "A is chosen by index and B is the first one": _crossed(x, A, B, scaling, index, flat),
        "B is chosen by index and A is the first one": _crossed(x, A, B, scaling, flat, index),
        "the updates of all adapters are added: each row has one": sum(
            alone(x, A, B, scaling, torch.full_like(index, k)) for k in range(K)
        ),
        "A and B are summed over all adapters: A[index] and B[index] pick one for each row": (
            (scaling[wrapped] * (index >= 0))[:, None] * (x @ A.sum(0).T @ B.sum(0).T)
        ),
        "rows come back in the order of their adapters: put them back": _sorted(
            x, A, B, scaling, index
        ),
    }
    if bool((index < 0).any()):
        known["rows with index -1 get x itself; they get zeros: it is the update alone"] = (
            _passed_on(x, A, B, scaling, index)
        )
    return known


def _reshaped(x, A, B, scaling, index):
    return {
        "A is reshaped where it has to be transposed: A[index].mT": alone(
            x, A.reshape(K, D_IN, R).mT, B, scaling, index
        ),
        "B is reshaped where it has to be transposed: B[index].mT": alone(
            x, A, B.reshape(K, R, D_OUT).mT, scaling, index
        ),
    }


def _crossed(x, A, B, scaling, of_a, of_b):
    either = torch.maximum(of_a, of_b) if (of_a >= 0).all() and (of_b >= 0).all() else of_a
    y = torch.zeros(len(x), B.shape[1])
    for i in range(len(x)):
        a, b = int(of_a[i]), int(of_b[i])
        if a >= 0 and b >= 0:
            y[i] = scaling[int(either[i])] * B[b] @ (A[a] @ x[i])
    return y


def _sorted(x, A, B, scaling, index):
    return alone(x, A, B, scaling, index)[index.argsort(stable=True)]


def _passed_on(x, A, B, scaling, index):
    y = alone(x, A, B, scaling, index)
    n = min(x.shape[1], y.shape[1])
    y[index < 0, :n] = x[index < 0, :n]
    return y
