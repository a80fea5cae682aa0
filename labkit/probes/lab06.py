"""Probes for lab 6."""

import torch

from labkit.contract import kind
from labkit.probes import watch

SOUND = "real and finite"
LARGE = 128 * 128  # B @ A with this many numbers must not be made


def matrix(got):
    """Facts about a tensor; its numbers come last because the dtype affects them, too."""
    facts = {"the return value": kind(got)}
    if isinstance(got, torch.Tensor):
        facts |= {"its dtype": str(got.dtype).removeprefix("torch."), "its numbers": _sound(got)}
    return facts | ({"the result": got} if facts.get("its numbers") == SOUND else {})


def _sound(*tensors):
    if any(tensor.is_complex() for tensor in tensors):
        return "complex"
    return SOUND if all(torch.isfinite(t).all() for t in tensors) else "NaN or infinite"


def merged(merged_weight, W, A, B, alpha):
    """The result of `merged_weight`, and whether it is a new tensor."""
    got = merged_weight(given := W.clone(), A, B, alpha)
    cure = "write W.float() + update, not += (in fp32, W.float() is W itself)"
    return matrix(got) | {"the merged weight": _origin([W], [given], [got], cure)}


def _origin(before, given, got, cure):
    """Whether a result is new: none of the tensors given was returned or changed."""
    places = {M.untyped_storage().data_ptr() for M in given}
    places &= {M.untyped_storage().data_ptr() for M in got if isinstance(M, torch.Tensor)}
    new = not places and all(map(torch.equal, before, given))
    return "a new tensor" if new else f"an input: {cure}"


def merged_quantized(merge_quantized, W4, absmax, codebook, A, B, alpha, shape):
    """The result of `merge_quantized`; `shape` is `W.shape`."""
    return matrix(merge_quantized(W4, absmax, codebook, A, B, alpha, torch.Size(shape)))


def merged_by_sign(ties, updates, density):
    """The result of `ties`."""
    return matrix(ties(updates, density))


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
    got = arrives(given := W.clone(), dW, lambda x: stored(x, name))
    cure = "write W + dW, not += (in fp32, W.float() is W itself)"
    facts = {"the sum W + dW": _origin([W], [given], [], cure)}
    return facts | {"the result": 0.0 if isinstance(got, int | float) and abs(got) < 1e-9 else got}


def _pair(got, shape):
    """Facts about factors; their product, if it has this shape, is in fp64 as dtypes may differ."""
    if not isinstance(got, list | tuple) or len(got) != 2:
        many = f"a list or tuple of {len(got)}" if isinstance(got, list | tuple) else kind(got)
        return {"the return value": many}
    facts = {"the return value": "a pair (A, B)"}
    facts |= {f"the type of {name}": kind(M) for name, M in zip("AB", got, strict=True)}
    if any(not isinstance(M, torch.Tensor) for M in got):
        return facts
    facts |= {
        f"the shape of {name}": str(tuple(M.shape)) for name, M in zip("AB", got, strict=True)
    }
    facts["the numbers in A and B"] = _sound(*got)
    A, B = got
    fit = A.dim() == B.dim() == 2 and B.shape[1] == len(A) and (len(B), A.shape[1]) == shape
    fit = fit and facts["the numbers in A and B"] == SOUND
    return facts | ({"B @ A": B.double() @ A.double()} if fit else {})


def combined(combine, adapters, weights):
    """The pair that `combine_linear` or `combine_cat` returns; whether the inputs are unchanged."""
    before = [M.clone() for pair in adapters for M in pair]
    given = [(A.clone(), B.clone()) for A, B in adapters]
    mine = [M for pair in given for M in pair]
    got = combine(pairs := [*given], weights)
    same = list(map(id, pairs)) == list(map(id, given))
    facts = {"the list of adapters": "left as it was" if same else "changed"}
    cure = "w * A is new, but A, A *= w and A.mul_(w) are not"
    facts |= _pair(got, (len(given[0][1]), given[0][0].shape[1]))
    return facts | {"each factor": _origin(before, mine, got if "B @ A" in facts else [], cure)}


def recompressed(recompress, A, B, r):
    """The result of `recompress`, and the size of its temporaries if B @ A is large."""
    size = B.shape[0] * A.shape[1]
    with watch.Work(max(size, LARGE), A, B) as work:
        got = recompress(A, B, r)
    large = size >= LARGE and watch.allocated(recompress, A, B, r) >= 4 * size
    cure = "don't compute B @ A, and keep Q and Vh thin, as with full_matrices=False"
    words = f"as large: {cure}" if work.large or large else "smaller than B @ A"
    return _pair(got, (len(B), A.shape[1])) | {"the largest tensor you create": words}
