"""What exercise 7.6 expects of `batched_lora`: what each row's adapter gives alone."""

import torch

from labkit.checks.compare import (
    ask,
    close,
    expect_close,
    expect_linear,
    expect_shape,
    likeliest,
    randn,
)
from labkit.checks.simplest import unnamed
from labkit.contract import CheckFailed, expect, part, sound
from labkit.labs.lab07 import probes

D_IN, D_OUT, R, K = 64, 56, 3, 4
NONE = "index -1 is the last adapter for torch: rows with -1 get zeros"
ALONE = "x has d_in numbers a row and the result d_out: it is the update alone"
SQUEEZED = "squeeze() without an axis takes that of the rows with it, if there is one: squeeze(-1)"
LONE = dict.fromkeys(("must be a 3D", "same number of dimensions", "out of range"), SQUEEZED)
BATCH = {
    f"tensor a ({D_IN}) must match the size of tensor b ({D_OUT})": ALONE,
    f"tensor a ({D_OUT}) must match the size of tensor b ({D_IN})": ALONE,
    "must match the size of tensor": "scaling has one number an adapter: scaling[index][:, None]",
    "Expected size for first two": "x passes through A first, (n, r, d_in), and then through B",
    "expected scalar type Long": "index is of ints: use it as an index, or index.long()",
    "must be a 3D": "bmm takes (n, 1, d_in) and (n, d_in, r): x[:, None]",
    "same number of dimensions": "bmm takes (n, 1, d_in) and (n, d_in, r): x[:, None]",
}


def factors(rng):
    A, B = randn(K, R, D_IN, rng=rng), randn(K, D_OUT, R, rng=rng)
    scaling = torch.rand(K, generator=rng) + torch.arange(1, K + 1) * 0.7
    return A, B, scaling


def alone(x, A, B, scaling, index):
    """Each row by its own adapter, in fp64; zeros without one."""
    y = torch.zeros(len(x), B.shape[1], dtype=torch.float64)
    for i, k in enumerate(index.tolist()):
        if k >= 0:
            update = scaling[k].double() * B[k].double() @ A[k].double()
            y[i] = update @ x[i].double()
    return y.float()


def expect_together(batched_lora, rng):
    """Mixed rows, rows without an adapter, one adapter alone; no row by row, no dense update."""
    A, B, scaling = factors(rng)
    mixed = torch.cat([torch.arange(K), torch.randint(K, (5,), generator=rng)])
    mixed = mixed[torch.randperm(len(mixed), generator=rng)]
    while torch.equal(mixed, mixed.sort().values):
        mixed = mixed[torch.randperm(len(mixed), generator=rng)]
    some = mixed.clone()
    some[::3] = -1
    cases = {
        "mixed rows": mixed,
        "rows of which some have no adapter": some,
        "rows of one adapter": torch.full((6,), 2),
        "rows without any adapter": torch.full((4,), -1),
        "one row": torch.tensor([1]),
    }
    with part(), likeliest() as case:
        for what, index in cases.items():
            with case():
                _expect(batched_lora, what, A, B, scaling, index, rng)
    if sound():
        _expect_work(batched_lora, A, B, scaling, rng)


def _expect(batched_lora, what, A, B, scaling, index, rng):
    call = f"batched_lora of {what}"
    x = randn(len(index), D_IN, rng=rng)
    hints = BATCH | (LONE if what == "one row" else {})
    got = ask(call, probes.batched, batched_lora, x, A, B, scaling, index, hint=hints)["y"]
    without = index < 0
    left_out = torch.is_tensor(got) and got.dim() and len(got) == (~without).sum() != len(index)
    expect(not left_out, f"{call}: rows with index -1 are left out; they get zeros")
    narrow = torch.is_tensor(got) and got.shape == (len(index), R)
    told = f"{call} has shape {(len(index), R)}, wanted {(len(index), D_OUT)}"
    expect(not narrow, f"{told}: that is A x, and B follows")
    expect_shape(got, torch.Size([len(index), D_OUT]), call)
    wanted = alone(x, A, B, scaling, index)
    lost = without.any() and got[without].isnan().all()
    expect(not lost, f"{call}: rows with index -1 are NaN; they get zeros")
    known = _guesses(x, A, B, scaling, index)
    if without.any() and not without.all():
        some = torch.where(without[:, None], got.to(wanted.dtype), wanted)
        known["the rows with index -1 are not zeros, and only they are wrong"] = some
    with unnamed(lambda: _expect_simple(batched_lora, call, got, (x, A, B, scaling, index))):
        expect_close(got, wanted, call, known)
    expect(got.dtype == x.dtype, f"{call} is in {got.dtype}, wanted the dtype of x")


def _expect_simple(batched_lora, call, got, given):
    """Raise CheckFailed where a row is made of other adapters' updates, rows depend on each other,
    or it is not linear: of a wrong answer.
    """
    x, A, B, scaling, index = given
    _expect_own(call, got, *given, others=True)

    def run(x, A, B):
        some = index[-len(x) :]
        return ask("", probes.batched, batched_lora, x, A, B, scaling, some)["y"]

    told = f"{call}: its last row alone gives another result; each row stands for itself"
    expect(close(run(x[-1:], A, B), got[-1:], 1e-3), told)
    expect_linear(call, run, {"x": x, "A": A, "B": B})
    _expect_own(call, got, *given, others=False)


def _expect_own(call, got, x, A, B, scaling, index, others):
    """Raise CheckFailed with the first wrong row that is a sum of what the adapters give for it.

    With `others` adapters that are not its own have a part in it; else it is its own alone.
    """
    for i, k in enumerate(index.tolist()):
        each = torch.stack([(B[j] @ (A[j] @ x[i])).double() for j in range(K)])
        shares = torch.linalg.lstsq(each.T, got[i].double()[:, None]).solution[:, 0]
        right = [scaling[k].item() if j == k else 0.0 for j in range(K)]
        off = max(abs(share - wanted) for share, wanted in zip(shares.tolist(), right, strict=True))
        if off < 1e-3:
            continue
        if not close(shares @ each, got[i].double(), 1e-3):
            return
        if others != any(abs(share) > 1e-3 for j, share in enumerate(shares.tolist()) if j != k):
            continue
        some = [(j, share) for j, share in enumerate(shares.tolist()) if abs(share) > 1e-3]
        made = [f"{share:.3g} times that of adapter {j}" for j, share in some]
        wanted = f"{right[k]:.3g} times that of adapter {k}" if k >= 0 else "zeros"
        told = f"row {i}, whose index is {k}, is {' plus '.join(made) or 'zeros'}"
        raise CheckFailed(f"{call}: of the updates B A x, {told}; wanted {wanted}")


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


def _guesses(x, A, B, scaling, index):
    kept = (index >= 0).float()[:, None]
    wrapped = index % K
    last = alone(x, A, B, scaling, wrapped)
    first = alone(x, A, B, scaling, index.clamp_min(0))
    flat = torch.zeros_like(index)
    share = kept * alone(x, A, B, scaling[wrapped.flip(0)[0]].expand(K), index)
    known = {
        NONE: last,
        "rows with index -1 get the first adapter; they get zeros": first,
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


def _expect_work(batched_lora, A, B, scaling, rng):
    """As many operations for 40 rows as for 8, and no tensor of d_out x d_in numbers."""
    index = torch.arange(-1, K).repeat(8)
    few, many = (
        ask(
            "batched_lora",
            probes.batched,
            batched_lora,
            randn(n, D_IN, rng=rng),
            A,
            B,
            scaling,
            index[:n],
        )
        for n in (2 * K + 2, 8 * (K + 1))
    )
    with part():
        told = f"batched_lora takes {few['calls']} operations for {2 * K + 2} rows"
        told = f"{told} and {many['calls']} for {8 * (K + 1)}"
        hint = "no loop over rows: A[index] is one adapter a row, and bmm multiplies them all"
        expect(many["calls"] <= few["calls"] + 2, f"{told}; {hint}")
    with part():
        large = [shape for shape in few["large"] if not _gathered(shape)]
        shape = " x ".join(map(str, large[0])) if large else ""
        hint = "x passes through A first, and then through B: never B @ A"
        expect(not large, f"batched_lora makes a tensor of {shape}; {hint}")


def _gathered(shape):
    """Whether a shape is that of rows' own A or B, and not of a dense update."""
    return not (D_IN in shape and D_OUT in shape)
