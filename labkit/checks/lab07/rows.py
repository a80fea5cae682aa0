"""What exercise 7.3 expects of `rotary_rows`: transformers' GGUF loader turns it back."""

import contextlib
import functools
import re

import torch
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from labkit.checks.compare import ask, draw, expect_close, expect_shape, likeliest, randn
from labkit.checks.simplest import simplest, unnamed
from labkit.contract import CheckFailed, expect, observe, part
from labkit.labs.lab07 import probes

WIDE = 24  # columns of the first weight: not square, and they divide into heads and halves
WHOLE = "the halves are those of the whole matrix, not of each head: interleave within each of the "
WHOLE += "n_heads, and in a reshape the heads' axis stands before that of the halves"
SQUARE = "d_in stands where d_out belongs, and only in a square w is that right: a head has "
SQUARE += "d_out / n_heads rows, and d_out rows come back"
MIXED = "d_out and d_in change places, and only in a square w is that right: reshape(n_heads, 2, "
MIXED += "half, d_in), with d_out / n_heads / 2 in a half"
STILL = "nothing moves: halves that are stacked on their own axis, or concatenated, stand one "
STILL += "below the other as before; the axis of places comes before that of the halves, dim=2 of "
STILL += "stack, or transpose(1, 2)"
SHAPES = {
    "invalid for input of size": "a head has d_out / n_heads rows, half of them in each half: "
    "compute the sizes from w and n_heads; columns stay as they are",
    "Dimension out of range": "w has two axes: reshape splits its rows into heads and halves",
    "unexpected keyword": "the parameters are w and n_heads",
    "split_with_sizes": "torch.chunk cuts into so many parts, split into parts of such a size",
    "NumPy": "return a tensor",
    "view size is not compatible": "use reshape in the place of view after a transpose",
}


def back(d_out, n_heads):
    """The row of llama.cpp's order that transformers puts at each place, (d_out,)."""
    rows = torch.arange(d_out).numpy()
    turn = LlamaTensorProcessor({})._reverse_permute_weights
    return torch.from_numpy(turn(rows, n_heads, n_heads).copy())


def wanted_rows(w, n_heads):
    """The matrix that transformers' loader turns back into w."""
    wanted = torch.empty_like(w)
    wanted[back(len(w), n_heads)] = w
    return wanted


def expect_rows(rotary_rows, rng):
    """The rows of weights, of LoRA's B, in any dtype, for heads of any even size."""
    head = 2 * draw(4, 6, rng)
    cases = [
        ("a weight, 4 heads", (4 * head, WIDE), 4, torch.float32),
        ("LoRA's B of rank 2, 3 heads", (3 * head, 2), 3, torch.float32),
        ("a square weight, 5 heads", (5 * head, 5 * head), 5, torch.float32),
        ("a weight in bf16, 2 heads", (2 * head, 7), 2, torch.bfloat16),
        ("a weight, one head", (head, 12), 1, torch.float32),  # the last, and the only wide one
    ]
    right = []
    with part(), simplest(_small(rotary_rows)), likeliest() as case:
        for what, shape, n_heads, dtype in cases:
            call = f"rotary_rows of {what} ({shape[0]} x {shape[1]})"
            with case(), _squared(rotary_rows, call, shape, dtype):
                _expect_rows(rotary_rows, call, shape, n_heads, dtype, rng, len(right) == 4)
                right.append(shape)


def _small(rotary_rows):
    """One column of row numbers, so that the answer is the order itself."""
    why = "in each head the first of one half, the first of the other, the second of one, …"
    for n_heads, n in ((1, 8), (2, 16)):
        w = torch.arange(float(n))[:, None]
        call = f"rotary_rows of rows 0 to {n - 1}, {n_heads} head{'s' * (n_heads > 1)},"
        answer = functools.partial(observe, probes.turned, rotary_rows, w, n_heads)
        yield call, answer, wanted_rows(w, n_heads), why


@contextlib.contextmanager
def _squared(rotary_rows, call, shape, dtype):
    """Where it raises, or has another shape, and is right for a square w, that is told first."""
    try:
        yield
    except CheckFailed as failure:
        odd = re.search("(it raised|has shape)(.*)", str(failure))
        if not odd or dtype != torch.float32 or shape[0] == shape[1]:
            raise
        if not _right_when_square(rotary_rows):
            raise
        found = odd[0]
        for hint in SHAPES.values():
            found = found.removesuffix(f"; {hint}")
        raise CheckFailed(f"{call}: {SQUARE}; {found}") from None


def _right_when_square(rotary_rows):
    w = torch.arange(144.0).reshape(12, 12)
    try:
        return torch.equal(observe(probes.turned, rotary_rows, w, 3), wanted_rows(w, 3))
    except (CheckFailed, RuntimeError, TypeError):
        return False


def _expect_rows(rotary_rows, call, shape, n_heads, dtype, rng, others):
    """The rows of one case; `others` tells that all shapes with fewer columns were right."""
    w = randn(*shape, rng=rng).to(dtype)
    got = ask(call, probes.turned, rotary_rows, w, n_heads, hint=SHAPES)
    apart = torch.is_tensor(got) and got.dim() > 2 and got.numel() == w.numel()
    told = f"{call} has shape {tuple(got.shape) if apart else ''}, wanted {tuple(w.shape)}"
    expect(not apart, f"{told}: put the rows' axes together again, reshape(w.shape)")
    one = torch.is_tensor(got) and got.shape == (shape[0] // n_heads, shape[1]) != w.shape
    expect(not one, f"{call}: the rows of one head come back, of {n_heads}")
    order = torch.is_tensor(got) and torch.equal(got.sort().values, torch.arange(len(w)))
    expect(not order, f"{call}: that is the order of the rows; wanted are the rows in it, w[order]")
    expect_shape(got, w.shape, call)
    still = others and torch.equal(got, w)
    told = f"{call}: nothing moves where w has fewer rows than columns, and elsewhere rows do"
    expect(not still, f"{told}; so has a k of few heads, and no A comes here")
    with unnamed(lambda: _expect_order(call, got.to(w.dtype), w, n_heads)):
        expect_close(got, wanted_rows(w, n_heads), call, _guesses(w, n_heads), tol=1e-7)
    kind = str(dtype).removeprefix("torch.")
    expect(got.dtype == dtype, f"{call} is in {got.dtype}, wanted {kind}: rows move, numbers stay")


def _expect_order(call, got, w, n_heads):
    """Raise CheckFailed that says of a wrong answer what has become of the rows of w."""
    plain, minus = ((got[:, None] == sign * w[None]).all(-1) for sign in (1, -1))
    gone = (~(plain | minus).any(1)).nonzero().flatten().tolist()
    stay = "rows move, numbers stay"
    expect(not gone, f"{call}: row {gone[0] if gone else 0} of the answer is no row of w; {stay}")
    expect(plain.any(1).all(), f"{call}: some rows have another sign than in w; {stay}")
    order, size = plain.float().argmax(1).tolist(), len(w) // n_heads
    lost = sorted(set(range(len(w))) - set(order))
    told = f"{call}: {len(lost)} rows of w are lost, and others are there twice"
    expect(not lost, f"{told}: is w read while it is overwritten? A view is no copy")
    moved = next(((i, k) for i, k in enumerate(order) if i // size != k // size), None)
    told = f"row {moved[1]} of w lies at {moved[0]}, in another head" if moved else ""
    expect(not moved, f"{call}: {told}; rows stay within their head")
    right = wanted_rows(torch.arange(len(w))[:, None], n_heads).flatten().tolist()
    heads = [order[i : i + size] == right[i : i + size] for i in range(0, len(w), size)]
    told = f"head {heads.index(False)} is not in the right order, head {0 if heads[0] else 1} is"
    expect(not any(heads), f"{call}: {told}; each head is done alike")
    for start, name in ((0, "first"), (1, "second")):
        other = [order[i] for i in range(1 - start, size, 2)]
        if other == right[1 - start : size : 2]:
            mine = ", ".join(map(str, [order[i] for i in range(start, size, 2)]))
            told = f"rows {mine} of w come one after the other from its {name} half"
            raise CheckFailed(f"{call}: in head 0 {told}; they keep their order")


def _guesses(w, n_heads):
    """`{message: matrix}` of other orders, the likeliest first."""
    n = len(w)
    head = n // n_heads
    half = head // 2
    one = w.reshape(n_heads, 2, half, -1)
    all_first = wanted_rows(w[:head], 1).repeat(n_heads, 1)
    return {
        STILL: w,
        "this goes the other way, from neighbours to halves: llama.cpp's order has neighbours": w[
            back(n, n_heads)
        ],
        WHOLE: wanted_rows(w, 1),
        f"{WHOLE}; and the way is turned round": w[back(n, 1)],
        "the second half comes first: row 0 of each head stays at its place": wanted_rows(
            one.flip(1).reshape(w.shape), n_heads
        ),
        "the halves of each head change places; interleave them": one.flip(1).reshape(w.shape),
        "it is done twice": wanted_rows(wanted_rows(w, n_heads), n_heads),
        "n_heads is taken for the size of a head": _by_size(w, n_heads),
        "the heads themselves are interleaved; the rows of one head stay together": w.reshape(
            n_heads, head, -1
        )
        .transpose(0, 1)
        .reshape(w.shape),
        "the heads are interleaved too; the rows of one head stay together": one.permute(
            2, 1, 0, 3
        ).reshape(w.shape),
        "halves of all heads are put together: rows stay within their head": one.transpose(
            0, 1
        ).reshape(w.shape),
        "single numbers of the two halves alternate within a row, not whole rows: columns stay the "
        "last axis, (n_heads, 2, half, columns), and stack takes dim=2": (
            w.reshape(n_heads, 2, -1).transpose(1, 2).reshape(w.shape)
        ),
        "all heads are head 0: add each head's first row": all_first,
        MIXED: _by_rows(w, n_heads),
        "the columns move; of q and k the rows are a head's dimensions": _columns(w, n_heads),
        "the rows of each head are turned round": one.flip(1, 2).reshape(w.shape),
    }


def _by_size(w, n_heads):
    size = 2 * n_heads if n_heads % 2 else n_heads
    return wanted_rows(w, len(w) // size) if len(w) % size == 0 and size > 1 else w


def _by_rows(w, n_heads):
    fits = w.numel() % (2 * n_heads * len(w)) == 0
    return w.reshape(n_heads, 2, -1, len(w)).transpose(1, 2).reshape(w.shape) if fits else w


def _columns(w, n_heads):
    fits = w.shape[1] % (2 * n_heads) == 0
    return wanted_rows(w.T.contiguous(), n_heads).T if fits else w
