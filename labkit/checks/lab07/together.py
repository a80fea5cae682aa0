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
from labkit.checks.lab07.mixed import D_IN, D_OUT, K, R, alone, guesses
from labkit.checks.simplest import unnamed
from labkit.contract import CheckFailed, expect, part, sound
from labkit.labs.lab07 import probes

AS_X = "what is shaped as x is (n, d_in): zeros are of the result's shape, x.new_zeros(n, d_out)"
ALONE = "x has d_in numbers a row and the result d_out: it is the update alone"
OF_X = "torch.zeros and .float() give fp32: x.new_zeros(n, d_out), or .to(x.dtype) in the end"
SCALED = "scaling is in float32 there, and promotes what it multiplies: .to(x.dtype) in the end"
SQUEEZED = "squeeze() without an axis takes that of the rows with it, if there is one: squeeze(-1)"
KINDS = {"rows in fp64": torch.float64, "rows in bf16": torch.bfloat16}
MIXED = dict.fromkeys(("dtype", "scalar type"), f"x, A and B are in bfloat16: {SCALED}")
LONE = dict.fromkeys(("must be a 3D", "same number of dimensions", "out of range"), SQUEEZED)
BATCH = {
    f"tensor a ({D_IN}) must match the size of tensor b ({D_OUT})": ALONE,
    f"tensor a ({D_OUT}) must match the size of tensor b ({D_IN})": ALONE,
    "must match the size of tensor": "scaling has one number an adapter: scaling[index][:, None]",
    "Expected size for first two": "x passes through A first, (n, r, d_in), and then through B",
    "expected scalar type Long": "index is of ints: use it as an index, or index.long()",
    "dtype": OF_X,
    "scalar type": OF_X,
    "must be a 3D": "bmm takes (n, 1, d_in) and (n, d_in, r): x[:, None]",
    "same number of dimensions": "bmm takes (n, 1, d_in) and (n, d_in, r): x[:, None]",
}


def factors(rng):
    A, B = randn(K, R, D_IN, rng=rng), randn(K, D_OUT, R, rng=rng)
    scaling = torch.rand(K, generator=rng) + torch.arange(1, K + 1) * 0.7
    return A, B, scaling


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
        "rows in fp64": some,
    }
    with part(), likeliest() as case:
        for what, index in cases.items():
            with case():
                _expect(batched_lora, what, A, B, scaling, index, rng)
    if sound():
        _expect_work(batched_lora, A, B, scaling, rng)
    if sound():
        _expect(batched_lora, "rows in bf16", A, B, scaling, some, rng)


def _expect(batched_lora, what, A, B, scaling, index, rng):
    call = f"batched_lora of {what}"
    kind = KINDS.get(what, torch.float32)
    x, A, B = (t.to(kind) for t in (randn(len(index), D_IN, rng=rng), A, B))
    low = kind == torch.bfloat16
    scaling = scaling if low else scaling.to(kind)
    hints = BATCH | (LONE if what == "one row" else {}) | (MIXED if low else {})
    try:
        got = ask(call, probes.batched, batched_lora, x, A, B, scaling, index, hint=hints)["y"]
    except CheckFailed as failure:
        if ALONE in str(failure) and _right_when_square(batched_lora):
            raise CheckFailed(str(failure).replace(ALONE, AS_X)) from None
        raise
    without = index < 0
    left_out = torch.is_tensor(got) and got.dim() and len(got) == (~without).sum() != len(index)
    expect(not left_out, f"{call}: rows with index -1 are left out; they get zeros")
    narrow = torch.is_tensor(got) and got.shape == (len(index), R)
    told = f"{call} has shape {(len(index), R)}, wanted {(len(index), D_OUT)}"
    expect(not narrow, f"{told}: that is A x, and B follows")
    told = f"{call} has shape ({D_OUT},), wanted (1, {D_OUT})"
    lost = torch.is_tensor(got) and len(index) == 1 and got.shape == (D_OUT,)
    expect(not lost, f"{told}: {SQUEEZED}")
    expect_shape(got, torch.Size([len(index), D_OUT]), call)
    wanted = alone(x, A, B, scaling, index)
    if low:  # its mistakes are told of other rows: bf16 has too few digits for them
        expect_close(got, wanted, call, tol=3e-2)
        told = f"{call} is in {got.dtype}, wanted the dtype of x; {SCALED}"
        expect(got.dtype == x.dtype, told)
        return
    lost = without.any() and got[without].isnan().all()
    expect(not lost, f"{call}: rows with index -1 are NaN; they get zeros")
    known = guesses(*(t.float() for t in (x, A, B, scaling)), index)
    if without.any() and not without.all():
        some = torch.where(without[:, None], got.to(wanted.dtype), wanted)
        known["the rows with index -1 are not zeros, and only they are wrong"] = some
    with unnamed(lambda: _expect_simple(batched_lora, call, got, (x, A, B, scaling, index))):
        expect_close(got, wanted, call, known)
    hint = OF_X if got.dtype == torch.float32 else "bring it to that in the end, .to(x.dtype)"
    expect(got.dtype == x.dtype, f"{call} is in {got.dtype}, wanted the dtype of x; {hint}")


def _right_when_square(batched_lora):
    """Whether it is right where d_out is d_in."""
    rng, index = torch.Generator().manual_seed(0), torch.tensor([1, -1, 0])
    x, A, B = (randn(*shape, rng=rng) for shape in ((3, 8), (2, R, 8), (2, 8, R)))
    given = (x, A, B, torch.tensor([0.7, 1.7]), index)
    try:
        return close(ask("", probes.batched, batched_lora, *given)["y"], alone(*given), 1e-3)
    except CheckFailed:
        return False


def _expect_simple(batched_lora, call, got, given):
    """Raise CheckFailed where a row is made of other adapters' updates, rows depend on each other,
    or it is not linear: of a wrong answer.
    """
    x, A, B, scaling, index = given
    wanted = alone(*given)
    ordered = [rows[rows[:, 0].argsort()].double() for rows in (got, wanted)]
    told = "these are the right rows in another order: undo a sorting with order.argsort()"
    expect(not close(*ordered, 1e-4), f"{call}: {told}, the inverse of order")
    _expect_own(call, got, *given, others=True)

    def run(x, A, B):
        some = index[-len(x) :]
        return ask("", probes.batched, batched_lora, x, A, B, scaling, some)["y"]

    told = f"{call}: its last row alone gives another result; each row stands for itself"
    expect(close(run(x[-1:], A, B), got[-1:], 1e-3), told)
    _expect_ranks(call, got, *given)
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


def _expect_ranks(call, got, x, A, B, scaling, index):
    """Raise CheckFailed with the first row that has a part of the ranks of several adapters."""
    for i, k in enumerate(index.tolist()):
        each = (B.mT * (A @ x[i])[:, :, None]).flatten(0, 1).double()  # (K R, d_out)
        shares = torch.linalg.lstsq(each.T, got[i].double()[:, None]).solution[:, 0]
        if not close(shares @ each, got[i].double(), 1e-3):
            return
        some = [divmod(j, R) for j, share in enumerate(shares.tolist()) if abs(share) > 1e-3]
        if len({adapter for adapter, _ in some}) > 1:
            made = ", ".join(f"rank {rank} of adapter {adapter}" for adapter, rank in some)
            hint = "repeat(1, r) tiles, repeat_interleave(r) keeps an adapter's ranks together"
            told = f"row {i}, whose index is {k}, mixes ranks of several adapters: {made}"
            raise CheckFailed(f"{call}: {told}; {hint}")


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
        hint = "x passes through A first, and then through B: never B @ A, not inside an einsum "
        hint += "of all three"
        expect(not large, f"batched_lora makes a tensor of {shape}; {hint}")


def _gathered(shape):
    """Whether a shape is that of rows' own A or B, and not of a dense update."""
    return not (D_IN in shape and D_OUT in shape)
