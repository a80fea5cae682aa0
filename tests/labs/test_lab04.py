"""Lab 4's checks: right answers written differently, and wrong ones that no row expresses."""

import functools
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from answers import solved
from bitsandbytes import functional as bnb
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig

from labkit.checks import lab04 as check
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate

# --- 4.1 -----------------------------------------------------------------------------------


def absmax_dequantize(q, scale):
    return torch.as_tensor(q).double() * scale


def quantize_upside_down(x, bits):
    """The scale multiplies in quantizing and divides afterwards; a Python float; int32."""
    peak = x.abs().max().item()
    scale = (2 ** (bits - 1) - 1) / peak if peak else 1.0
    return (x * scale).round().int(), scale


def quantize_to_views(x, bits):
    """NumPy views: backwards, and with the other byte order."""
    values = x.numpy().astype(np.float64)
    scale = max(np.abs(values).max(), 1e-30) / (2 ** (bits - 1) - 1)
    return np.rint(values / scale).astype(">i2")[::-1].copy()[::-1], np.array(scale, dtype=">f8")


def dequantize_views(q, scale):
    return torch.from_numpy(q.astype(np.float64) * float(scale))


def quantize_masked(x, bits):
    """0 / 0 stays a float, and is masked before it is rounded."""
    scale = x.abs().amax() / (2 ** (bits - 1) - 1)
    return torch.nan_to_num(x / scale).round().char(), scale.item()


# --- 4.2 -----------------------------------------------------------------------------------


def codebook_standard_library():
    inverse, offset = NormalDist().inv_cdf, (31 / 32 + 29 / 30) / 2
    above = [inverse(0.5 + (offset - 0.5) * i / 8) for i in range(1, 9)]
    below = [-inverse(0.5 + (offset - 0.5) * i / 7) for i in range(7, 0, -1)]
    return torch.tensor([*below, 0.0, *above]) / above[-1]


@functools.cache
def codebook_erfinv(offset=0.9677083, steps=100_000):
    """From -1.0 over -0.6961928, -0.5250730, -0.3949175, 0.0 and 0.4407098 to 1.0."""
    p, m = (torch.linspace(0.5, offset, n, dtype=torch.float64) for n in (9, 8))
    above, below = (math.sqrt(2) * torch.erfinv(2 * v - 1)[1:] for v in (p, m))
    return torch.cat([-below.flip(0), above.new_zeros(1), above]) / above.max()


THEIRS = bnb.get_4bit_type("nf4", device="cpu")
VALUES = [round(value, 7) for value in THEIRS.tolist()]


def codebook_compared():
    book = codebook_erfinv().float()
    if not np.allclose(book.numpy(), VALUES, atol=1e-5):
        raise ValueError("not yet")
    assert torch.allclose(book, bnb.get_4bit_type("nf4", device="cpu"), atol=1e-5)
    return book


def typed_in():
    below = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004]
    above = [0.0795803, 0.1609302, 0.24611230, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    return torch.tensor([*below, 0.0, *above])


TABLES = {"nf4": " ".join(map(str, VALUES))}


@functools.cache
def typed_elsewhere(tables=(TABLES,)):
    return torch.tensor([float(word) for word in tables[0]["nf4"].split()])


def half_taken():
    return torch.cat([getattr(bnb, "get_4bit_type")("nf4", "cpu")[:8], THEIRS[8:]])  # noqa: B009


# --- 4.3 -----------------------------------------------------------------------------------


def quantize_blockwise(w, codebook, block=64):
    """Distances to every code, int64 codes, absmax as a column, ones for blocks of zeros."""
    flat = w.reshape(-1).float()
    rows = torch.cat([flat, flat.new_zeros(-len(flat) % block)]).reshape(-1, block)
    peaks = rows.abs().max(1, keepdim=True).values
    scaled = (rows / torch.where(peaks > 0, peaks, 1.0)).flatten()[: len(flat)]
    return (scaled.unsqueeze(1) - codebook).abs().argmin(dim=1), peaks


def dequantize_blockwise(codes, absmax, codebook, shape, block=64):
    n = codes.numel()
    rows = F.pad(codebook[codes.int()].view(-1), (0, -n % block)).view(-1, block)
    return (rows * absmax.view(-1, 1)).view(-1)[:n].view(*shape)


def quantize_searchsorted(w, codebook, block=64):
    """In double precision; codes int32 in rows if every block is full, ties go up."""
    flat = w.double().flatten()
    each = torch.arange(len(flat)) // block
    peaks = torch.zeros(-(-len(flat) // block)).double()
    peaks = peaks.scatter_reduce(0, each, flat.abs(), "amax")
    scaled = torch.nan_to_num(flat / peaks[each])
    middle = (codebook[1:].double() + codebook[:-1].double()) / 2
    codes = torch.searchsorted(middle, scaled, right=True, out_int32=True)
    return codes if len(scaled) % block else codes.view(-1, block), peaks.float()


def dequantize_searchsorted(codes, absmax, codebook, shape, block=64):
    flat = torch.index_select(codebook, 0, codes.reshape(-1).int())
    return (flat * absmax.reshape(-1)[torch.arange(len(flat)) // block]).reshape(shape)


def quantize_by_scaled_edges(w, codebook, block=64):
    """A loop over the edges; a zero in a block of zeros gets code 0; NumPy inside."""
    flat = w.float().numpy().ravel()
    rows = np.pad(flat, (0, -flat.size % block)).reshape(-1, block).astype(np.float64)
    absmax = np.abs(rows).max(1)
    edges = (codebook[1:] + codebook[:-1]).numpy() / 2
    codes = sum((rows > absmax[:, None] * edge).astype(np.uint8) for edge in edges)
    codes = torch.from_numpy(codes.ravel()[: flat.size])
    return codes, torch.from_numpy(absmax.astype(np.float32))


def dequantize_as_told(codes, absmax, codebook, shape, block=64):
    """It takes what the docstring says: uint8 codes and a torch.Size."""
    assert codes.dtype == torch.uint8
    each = absmax.repeat_interleave(block)[: shape.numel()]
    return (codebook[codes.long()] * each).view(shape)


def quantize_in_a_loop(w, codebook, block=64):
    peaks = torch.stack([part.abs().max() for part in w.float().flatten().split(block)])
    return quantize_blockwise(w, codebook, block)[0], peaks


# --- 4.4 -----------------------------------------------------------------------------------


def pack_nibbles(codes):
    codes = torch.cat([codes.int(), codes.new_zeros(len(codes) % 2)])
    return (codes.view(-1, 2) @ torch.tensor([16, 1], dtype=torch.int32)).to(torch.uint8)[:, None]


def unpack_nibbles(packed):
    out = torch.empty(2 * packed.numel(), dtype=torch.long)
    out[0::2], out[1::2] = packed.long() // 16, packed.long() % 16
    return out


def pack_in_numpy(codes):
    pairs = np.append(codes.numpy(), [7] * (len(codes) % 2)).astype(np.uint8).reshape(-1, 2)
    return torch.from_numpy(np.left_shift(pairs[:, 0], 4) + pairs[:, 1])


def unpack_by_shifts(packed):
    return (packed.unsqueeze(-1) >> torch.tensor([4, 0], dtype=torch.uint8)) & 15


def pack_in_a_loop(codes):
    codes = codes.tolist() + [7] * (len(codes) % 2)
    pairs = zip(codes[::2], codes[1::2], strict=True)
    return torch.tensor([16 * high + low for high, low in pairs], dtype=torch.uint8)


# --- 4.5 and 4.7 ---------------------------------------------------------------------------


def double_quantize(absmax, group=256, guard=0.0):
    """`guard` is a lower bound of the largest distances; the division has one of its own."""
    offset = absmax.mean()
    rows = F.pad(absmax - offset, (0, -len(absmax) % group)).view(-1, group)
    scale = rows.abs().amax(1).clamp_min(guard) / 127
    q = (rows / (scale + 1e-12)[:, None]).round().to(torch.int8)
    return q.flatten()[: len(absmax)], scale, offset


def double_masked(absmax, group=256):
    """In fp64, scale as a column, a tensor of one number for the offset."""
    absmax = absmax.double()
    offset, each = absmax.mean(), torch.arange(len(absmax)) // group
    peaks = absmax.new_zeros(-(-len(absmax) // group))
    scale = peaks.scatter_reduce(0, each, (absmax - offset).abs(), "amax") / 127
    q = ((absmax - offset) / scale[each]).nan_to_num().round().char()
    return q, scale[:, None], offset.float()[None]


def bits_per_param(block=64, double_quant=False):
    n = block * 256
    scales = n // block * (8 if double_quant else 32) + (32 if double_quant else 0)
    return (4 * n + scales) / n


def training_bytes(n_params, n_trainable, method):
    bits = 16 if method.endswith("bf16") else 32
    sizes = {"optimizer": 2 * n_trainable * bits // 8, "gradients": n_trainable * bits // 8}
    base = {"lora": 16 * n_params, "qlora": round(4.127 * n_params)}.get(method, 0)
    return sizes | {"weights": (base + bits * n_trainable) // 8, "total": "all"}


def bytes_in_tensors(*data):
    sizes = training_bytes(*data)
    return {n: torch.tensor(size).double() for n, size in sizes.items() if n != "total"}


# --- 4.6 -----------------------------------------------------------------------------------


def decoded(codes, absmax, codebook, shape):
    return (codebook[codes.long()] * absmax.repeat_interleave(64)[: len(codes)]).view(shape)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, stored):
        ctx.stored = stored
        return F.linear(x, decoded(*stored))

    @staticmethod
    def backward(ctx, dY):
        return torch.einsum("...o,oi->...i", dY, decoded(*ctx.stored)), None


class ByFunction(nn.Module):
    """Tensors go through ctx as an attribute; einsum; codes are packed two per byte."""

    def __init__(self, codes, absmax, codebook, shape, A, B, alpha):
        super().__init__()
        self.register_buffer("packed", pack_in_numpy(codes))
        self.register_buffer("absmax", absmax, persistent=False)
        self.register_buffer("codebook", codebook.clone())
        self.A, self.B = nn.Parameter(A.clone()), nn.Parameter(B.clone())
        self.shape, self.alpha = shape, alpha

    def frozen(self, x):
        return Product.apply(x, self.stored())

    def stored(self):
        codes = unpack_by_shifts(self.packed).flatten()[: self.shape.numel()]
        return codes, self.absmax, self.codebook, self.shape

    def forward(self, x):
        h = torch.einsum("...i,ri->...r", x, self.A)
        update = torch.einsum("...r,or->...o", h, self.B)
        return self.frozen(x) + self.alpha / self.A.size(0) * update


class ByCheckpoint(ByFunction):
    def frozen(self, x):
        return checkpoint(lambda x: x @ decoded(*self.stored()).T, x, use_reentrant=False)


class ByHooks(ByFunction):
    """What autograd saves of the shape of W is packed to nothing, and decoded again."""

    def frozen(self, x):
        def unpack(saved):
            return decoded(*self.stored()).T if saved is None else saved

        size = self.shape.numel()
        with saved_tensors_hooks(lambda t: None if t.numel() == size else t, unpack):
            return x @ decoded(*self.stored()).T


class KeepsRows(ByFunction):
    """Row by row, which autograd keeps all the same."""

    def frozen(self, x):
        return torch.stack([x @ row for row in decoded(*self.stored())], dim=-1)


RIGHT = [
    (check.absmax, quantize_upside_down, lambda q, scale: q.float() / scale),
    (check.absmax, quantize_to_views, dequantize_views),
    (check.absmax, quantize_masked, absmax_dequantize),
    *((check.codebook, f) for f in (codebook_standard_library, codebook_erfinv, codebook_compared)),
    (check.blockwise, quantize_blockwise, dequantize_blockwise),
    (check.blockwise, quantize_searchsorted, dequantize_searchsorted),
    (check.blockwise, quantize_by_scaled_edges, dequantize_as_told),
    (check.packs, pack_nibbles, unpack_nibbles),
    (check.packs, pack_in_numpy, unpack_by_shifts),
    *((check.doubles, f, bits_per_param) for f in (double_quantize, double_masked)),
    *((check.qlora, layer) for layer in (ByFunction, ByCheckpoint, ByHooks)),
    *((check.rule, f) for f in (training_bytes, bytes_in_tensors)),
]

# --- wrong answers, besides the rows of lab04.toml --------------------------------------------


class InAClosure(ByFunction):
    def __init__(self, *data):
        super().__init__(*data)
        self._buffers.clear()
        self.stored = lambda: data[:4]


def quantize_zero_by_zero(x, bits):
    scale = np.abs(x.numpy()).max() / (2 ** (bits - 1) - 1)
    return torch.from_numpy(np.rint(x.numpy() / scale).astype(np.int8)), float(scale)


def double_with_guard(absmax, group=256):
    return double_quantize(absmax, group, 1e-9)


WRONG = [
    (check.absmax, quantize_zero_by_zero, absmax_dequantize, "0 / 0 should be avoided"),
    (check.absmax, quantize_masked, lambda q, s: (q * s).numpy(), "not a NumPy array of 5 floats"),
    (check.absmax, quantize_masked, lambda q, s: (q * s).half(), "float16 numbers"),
    *((check.codebook, f, "not taken from a table") for f in (typed_in, typed_elsewhere)),
    (check.codebook, half_taken, "not taken from a table"),
    (check.codebook, lambda: codebook_erfinv().float() + 3e-6, "the codebook is"),
    (check.blockwise, quantize_in_a_loop, dequantize_blockwise, "a Python loop over the blocks"),
    (check.packs, pack_in_a_loop, unpack_nibbles, "pack_nibbles should be vectorized"),
    (check.doubles, double_with_guard, bits_per_param, "far below"),
    (check.doubles, double_masked, lambda b=64, d=False: 4.127 if d else 4.5, "4.127 instead of"),
    (check.qlora, lambda *d: ByFunction(*d[:4], 2 * d[4], 0 * d[5], d[6]), "not new ones"),
    (check.qlora, KeepsRows, "a tensor as large as W, kept for backward"),
    (check.qlora, InAClosure, "the tensors in buffers should be codes and scales, not fewer"),
    (check.rule, lambda *a: sum(v for v in training_bytes(*a).values() if v != "all"), "a dict"),
]

# --- the course's own answers, next to simulations and bitsandbytes -----------------------


SOLVED = solved("04_qlora", "4.2", "4.3", "4.4", "4.5", "4.7")


@pytest.mark.parametrize("method", ["full", "full_bf16", "lora"])
def test_the_rule_is_what_the_simulation_counts(method):
    size = {"hidden_size": 128, "intermediate_size": 300, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500}
    kind = {"dtype": "bfloat16"} if method == "full_bf16" else {}
    settings = Settings(method=method.removesuffix("_bf16"), rank=16, seq=4, **kind)
    done = simulate(LlamaConfig(**size, **heads), settings)
    ruled = SOLVED.training_bytes(done.n_params, done.n_trainable, method)
    assert all(ruled[name] == pytest.approx(n, rel=5e-3) for name, n in done.static.items())


# bitsandbytes compiles code to decode an odd number of codes, which takes seconds
ODD = [pytest.param(shape, marks=pytest.mark.thorough) for shape in ((5, 7, 11), (1,))]


@pytest.mark.parametrize("shape", [(96, 64), (5, 7, 12), *ODD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_solutions_are_bitsandbytes(shape, dtype):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    book = SOLVED.nf4_codebook()
    assert (book - check.nf4()).abs().max() < 1e-6 > (book - THEIRS).abs().max()
    codes, absmax = SOLVED.quantize_blockwise(w, book)
    stored, state = bnb.quantize_4bit(w, quant_type="nf4")
    assert torch.equal(SOLVED.pack_nibbles(codes), stored.flatten())
    assert torch.equal(absmax, state.absmax)
    back = SOLVED.dequantize_blockwise(codes, absmax, book, w.shape)
    theirs = bnb.dequantize_4bit(stored, state)
    torch.testing.assert_close(back.to(dtype), theirs, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("double", [False, True])
def test_bits_are_what_bitsandbytes_stores(double):
    n = 64 * 256 * 8
    stored, state = bnb.quantize_4bit(torch.randn(n), compress_statistics=double, quant_type="nf4")
    scales = [state.absmax, state.state2.absmax] if double else [state.absmax]
    nbytes = sum(t.nbytes for t in [stored, *scales])
    assert SOLVED.bits_per_param(double_quant=double) == 8 * nbytes / n
