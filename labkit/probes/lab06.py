"""Probes for lab 6, which call the learner's code and return facts, `{noun: value}`.

A check compares all facts, and the learner sees the first wrong fact.
"""

import torch

from labkit.probes import watch
from labkit.probes.adapters import kind

LARGE = 128 * 128  # B @ A with this many numbers must not be made


def _kind(value):
    is_complex = isinstance(value, torch.Tensor) and value.is_complex()
    return "a complex tensor" if is_complex else kind(value)


def _matrix(got):
    """Facts about a tensor; its numbers come last because the dtype affects them, too."""
    facts = {"the return value": _kind(got)}
    if isinstance(got, torch.Tensor):
        facts |= {"its dtype": str(got.dtype).removeprefix("torch."), "its numbers": _sound(got)}
    return facts | ({"the result": got} if facts.get("its numbers") == "finite" else {})


def _sound(*tensors):
    finite = all(torch.isfinite(tensor).all() for tensor in tensors)
    return "finite" if finite else "NaN or infinite"


def merged(merged_weight, W, A, B, alpha):
    """The result of `merged_weight`, and whether it changes W."""
    given = W.clone()
    facts = _matrix(merged_weight(given, A, B, alpha))
    return facts | {"W after the call": _changed([W], [given])}


def _changed(before, after):
    same = all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    return "unchanged" if same else "changed"


def merged_quantized(merge_quantized, W4, absmax, codebook, A, B, alpha, shape):
    """The result of `merge_quantized`; `shape` is `W.shape`."""
    return _matrix(merge_quantized(W4, absmax, codebook, A, B, alpha, torch.Size(shape)))


def merged_by_sign(ties, updates, density):
    """The result of `ties`."""
    return _matrix(ties(updates, density))


# --- 6.3 -----------------------------------------------------------------------------------


def _in_blocks(x, size=8):
    """Round each run of `size` neighbors to fifteen even steps from -absmax to absmax."""
    blocks = x.reshape(-1, size)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-12) / 7
    return ((blocks / scale).round() * scale).reshape(x.shape)


def stored(x: torch.Tensor, name: str) -> torch.Tensor:
    """A matrix after a round trip through the store `name`, a step size or a rounding method."""
    x = x.detach().float()
    if isinstance(name, float):
        return (x / name).round() * name
    return {"exact": x.clone, "bf16": x.bfloat16, "blocks": lambda: _in_blocks(x)}[name]()


def arrived(arrives, W, dW, name):
    """The result of `arrives` for the store `name`, with rounding residue set to 0."""
    got = arrives(W, dW, lambda x: stored(x, name))
    return {"the result": 0.0 if isinstance(got, int | float) and abs(got) < 1e-9 else got}


# --- a pair (A, B) -------------------------------------------------------------------------


def _pair(got):
    """Facts about a pair of factors; their product is in fp64, since dtypes may differ."""
    if not isinstance(got, list | tuple) or len(got) != 2:
        many = f"a list or tuple of {len(got)}" if isinstance(got, list | tuple) else _kind(got)
        return {"the return value": many}
    facts = {"the return value": "a pair (A, B)"}
    facts |= {f"the type of {name}": _kind(M) for name, M in zip("AB", got, strict=True)}
    if any(not isinstance(M, torch.Tensor) for M in got):
        return facts
    facts |= {
        f"the shape of {name}": str(tuple(M.shape)) for name, M in zip("AB", got, strict=True)
    }
    facts["the numbers in A and B"] = _sound(*got)
    A, B = (M.real.double() for M in got)
    fit = A.dim() == B.dim() == 2 and B.shape[1] == len(A)
    return facts | ({"B @ A": B @ A} if fit and _sound(A, B) == "finite" else {})


def _combined(combine, adapters, weights):
    """The pair that `combine` returns, and whether its tensors are new."""
    before = [M.clone() for pair in adapters for M in pair]
    given = [(A.clone(), B.clone()) for A, B in adapters]
    mine = [M for pair in given for M in pair]
    got = combine(given, weights)
    facts = _pair(got)
    if "B @ A" in facts:
        places = set(map(_place, mine))
        old = any(_place(M) in places for M in got)
        facts["A and B"] = "those of an adapter" if old else "new tensors"
    return facts | {"the adapters after the call": _changed(before, mine)}


def _place(tensor):
    return tensor.untyped_storage().data_ptr()


def added(combine_linear, combine_cat, adapters, weights):
    """Facts about the result of `combine_linear`."""
    return _combined(combine_linear, adapters, weights)


def stacked(combine_linear, combine_cat, adapters, weights):
    """Facts about the result of `combine_cat`."""
    return _combined(combine_cat, adapters, weights)


def recompressed(recompress, A, B, r):
    """The result of `recompress`, and the size of its temporaries if B @ A is large."""
    size = B.shape[0] * A.shape[1]
    with watch.Work(max(size, LARGE), A, B) as work:
        got = recompress(A, B, r)
    large = size >= LARGE and watch.allocated(recompress, A, B, r) >= 4 * size
    words = "as large as B @ A" if work.large or large else "smaller than B @ A"
    return _pair(got) | {"the largest tensor you create": words}
