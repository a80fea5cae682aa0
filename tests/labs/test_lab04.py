"""Lab 4's checks: stubs, wrong answers that learners give, right answers written differently."""

import functools
import math
from pathlib import Path
from statistics import NormalDist

import jupytext
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bitsandbytes import functional as bnb
from bitsandbytes.functional import get_4bit_type as borrowed
from bitsandbytes.nn import Params4bit
from peft.utils.loftq_utils import _low_rank_decomposition
from transformers import BitsAndBytesConfig, LlamaConfig

from labkit.checks import lab04 as check
from labkit.checks.lab04.guesses import nearest
from labkit.labs.lab04 import formats
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate

# --- right answers -------------------------------------------------------------------------


def absmax_quantize(x, bits):
    top = 2 ** (bits - 1) - 1
    scale = x.abs().max() / top
    return torch.round(x / scale.clamp_min(1e-12)).to(torch.int8), scale


def absmax_dequantize(q, scale):
    return q * scale


def quantize_upside_down(x, bits):
    """The scale multiplies in quantizing and divides afterwards; a Python float; int32."""
    peak = x.abs().max().item()
    scale = (2 ** (bits - 1) - 1) / peak if peak else 1.0
    return (x * scale).round().int(), scale


def dequantize_upside_down(q, scale):
    return q.float() / scale


def quantize_clamped(x, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = max(float(x.abs().max()), 1e-8) / high
    return torch.clamp(torch.floor(x / scale + 0.5), low, high).to(torch.int16), scale


def quantize_by_hand(x, bits):
    """A Python loop, in double precision; int64 and a Python float."""
    top = 2 ** (bits - 1) - 1
    peak = max(abs(v) for v in x.flatten().tolist())
    scale = peak / top if peak else 1.0
    return torch.tensor([round(v / scale) for v in x.flatten().tolist()]).view(x.shape), scale


def quantize_in_numpy(x, bits):
    values, top = x.numpy().astype(np.float64), 2 ** (bits - 1) - 1
    scale = max(np.abs(values).max(), 1e-30) / top
    return np.rint(values / scale).astype(np.int8), scale


def quantize_to_views(x, bits):
    """NumPy views: backwards, and with the other byte order."""
    q, scale = quantize_in_numpy(x, bits)
    return q.astype(">i2")[::-1].copy()[::-1], np.array(scale, dtype=">f8")


def dequantize_views(q, scale):
    return torch.from_numpy(q.astype(np.float64) * float(scale)).flip(0).flip(0)


def quantize_masked(x, bits):
    """0 / 0 stays a float, and is masked before it is rounded."""
    scale = x.abs().amax() / (2 ** (bits - 1) - 1)
    return torch.nan_to_num(x / scale).round().char(), scale.item()


def quantize_of_zeros_apart(x, bits):
    largest, top = max(x.max().item(), -x.min().item()), (1 << bits - 1) - 1
    if largest == 0:
        return torch.zeros_like(x, dtype=torch.int8), torch.tensor(0.0)
    return torch.round(x * (top / largest)).type(torch.int8), torch.tensor(largest / top)


def dequantize_in_double(q, scale):
    return torch.as_tensor(q).double() * scale


def nf4_codebook():
    normal, offset = torch.distributions.Normal(0, 1), 0.9677083
    above = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    values = torch.cat([below, torch.zeros(1), above]).sort().values
    return values / values.max()


def codebook_standard_library():
    inverse, offset = NormalDist().inv_cdf, (31 / 32 + 29 / 30) / 2
    above = [inverse(0.5 + (offset - 0.5) * i / 8) for i in range(1, 9)]
    below = [-inverse(0.5 + (offset - 0.5) * i / 7) for i in range(7, 0, -1)]
    return torch.tensor([*below, 0.0, *above]) / above[-1]


def codebook_erfinv():
    p = torch.linspace(0.5, 0.9677083, 9, dtype=torch.float64)
    m = torch.linspace(0.5, 0.9677083, 8, dtype=torch.float64)
    above, below = (torch.special.ndtri(v)[1:] for v in (p, m))
    return torch.cat([-below.flip(0), above.new_zeros(1), above]) / above.max()


def codebook_compared():
    book = nf4_codebook()
    theirs = bnb.get_4bit_type("nf4", device="cpu")
    assert torch.allclose(book, theirs, atol=1e-5), (book - theirs).abs().max()
    return book


THEIRS = bnb.get_4bit_type("nf4", device="cpu")
ROUNDED = [round(value, 7) for value in THEIRS.tolist()]


def codebook_compared_with_a_global():
    book = codebook_erfinv().float()
    if not np.allclose(book.numpy(), ROUNDED, atol=1e-5):
        raise ValueError("not yet")
    assert (book - THEIRS).abs().max() < 1e-5
    return book


values = torch.tensor([-1.0, -0.6961928, -0.5250730, -0.3949175, 0.4407098, 0.562617, 0.722957])


def codebook_beside_a_global():
    """It reads the attribute `values`; a global of that name, from a scratch cell, is no table."""
    p = torch.distributions.Normal(0, 1).icdf(torch.linspace(0.9677083, 0.5, 9))
    m = -torch.distributions.Normal(0, 1).icdf(torch.linspace(0.9677083, 0.5, 8))
    return torch.unique(torch.cat([p, m[:-1]])).sort().values / p.max()


@functools.cache
def codebook_cached(size=16, offset=0.9677083, steps=100_000):
    """From -1.0 over -0.6961928, -0.5250730, -0.3949175, 0.0 and 0.4407098 to 1.0."""
    assert size == 16, "1 2.5 text in the code"
    return codebook_erfinv()


def quantize_blockwise(w, codebook, block=64):
    flat = w.flatten().float()
    rows = F.pad(flat, (0, -flat.numel() % block)).view(-1, block)
    absmax = rows.abs().amax(1)
    scaled = rows / absmax.clamp_min(1e-12)[:, None]
    codes = torch.bucketize(scaled, (codebook[1:] + codebook[:-1]) / 2)
    return codes.flatten()[: flat.numel()].to(torch.uint8), absmax


def dequantize_blockwise(codes, absmax, codebook, shape, block=64):
    each = absmax.repeat_interleave(block)[: codes.numel()]
    return (codebook[codes.long()] * each).reshape(shape)


def quantize_argmin(w, codebook, block=64):
    """Distances to every code, int64 codes, absmax as a column, ones for blocks of zeros."""
    flat = w.reshape(-1).float()
    rows = torch.cat([flat, flat.new_zeros(-len(flat) % block)]).reshape(-1, block)
    peaks = rows.abs().max(1, keepdim=True).values
    scaled = (rows / torch.where(peaks > 0, peaks, 1.0)).flatten()[: len(flat)]
    return (scaled.unsqueeze(1) - codebook).abs().argmin(dim=1), peaks


def quantize_searchsorted(w, codebook, block=64):
    """In double precision; codes int32 in rows where no block is ragged, ties go up."""
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
    each = absmax.reshape(-1)[torch.arange(len(flat)) // block]
    return torch.reshape(flat * each, shape)


def quantize_by_scaled_edges(w, codebook, block=64):
    """Nothing is divided: the midpoints are multiplied. A zero in a block of zeros gets code 0."""
    flat = w.float().flatten()
    rows = F.pad(flat, (0, -len(flat) % block)).view(-1, block).double()
    absmax = rows.abs().amax(1)
    middle = absmax[:, None] * (codebook[1:] + codebook[:-1]).double() / 2
    codes = (rows[:, :, None] > middle[:, None, :]).sum(-1).flatten()
    return codes[: len(flat)].to(torch.uint8), absmax.float()


def quantize_with_guards(w, codebook, block=64):
    """A small number is added to absmax; the shape goes through NumPy."""
    flat = w.float().numpy().ravel()
    rows = np.pad(flat, (0, -flat.size % block)).reshape(-1, block)
    absmax = np.abs(rows).max(1)
    scaled = torch.from_numpy(rows / (absmax[:, None] + 1e-12))
    codes = (scaled[..., None] - codebook).abs().argmin(-1).flatten()[: flat.size]
    return codes.to(torch.uint8), torch.from_numpy(absmax)


def quantize_code_by_code(w, codebook, block=64):
    """A loop over the 16 values, not over the blocks."""
    flat = w.flatten().float()
    rows = F.pad(flat, (0, -len(flat) % block)).unflatten(0, (-1, block))
    absmax = rows.abs().amax(-1)
    scaled = rows / (absmax + (absmax == 0))[:, None]
    nearest_yet, codes = torch.full_like(scaled, 9.0), torch.zeros_like(scaled, dtype=torch.uint8)
    for code, value in enumerate(codebook.tolist()):
        gap = (scaled - value).abs()
        codes[gap < nearest_yet] = code
        nearest_yet = torch.minimum(gap, nearest_yet)
    return codes.flatten()[: len(flat)], absmax


def quantize_in_numpy_inside(w, codebook, block=64):
    flat = w.detach().float().numpy().ravel()
    rows = np.zeros((-(-flat.size // block), block), np.float32)
    rows.flat[: flat.size] = flat
    absmax = np.abs(rows).max(1)
    scaled = np.divide(rows, absmax[:, None], out=np.zeros_like(rows), where=absmax[:, None] > 0)
    middle = (codebook.numpy()[1:] + codebook.numpy()[:-1]) / 2
    codes = np.searchsorted(middle, scaled).ravel()[: flat.size]
    return torch.from_numpy(codes.astype(np.uint8)), torch.from_numpy(absmax)


def dequantize_as_told(codes, absmax, codebook, shape, block=64):
    """It takes what the docstring says: uint8 codes and a torch.Size."""
    assert torch.as_tensor(codes).dtype == torch.uint8
    each = torch.as_tensor(absmax).repeat_interleave(block)[: shape.numel()]
    return (codebook[torch.as_tensor(codes).long()] * each).view(shape)


def dequantize_padded(codes, absmax, codebook, shape, block=64):
    n = codes.numel()
    rows = F.pad(codebook[codes.int()].view(-1), (0, -n % block)).view(-1, block)
    return (rows * absmax.view(-1, 1)).view(-1)[:n].view(*shape)


def pack_nibbles(codes):
    codes = F.pad(codes, (0, codes.numel() % 2), value=7)
    return codes[::2] << 4 | codes[1::2]


def unpack_nibbles(packed):
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()


def pack_zero_filled(codes):
    codes = codes.to(torch.int32)
    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    return (codes.view(-1, 2) @ torch.tensor([16, 1], dtype=torch.int32)).to(torch.uint8)[:, None]


def unpack_divmod(packed):
    out = torch.empty(2 * packed.numel(), dtype=torch.long)
    out[0::2], out[1::2] = packed.long() // 16, packed.long() % 16
    return out


def pack_in_numpy(codes):
    pairs = np.append(codes.numpy(), [7] * (len(codes) % 2)).astype(np.uint8).reshape(-1, 2)
    return torch.from_numpy(np.left_shift(pairs[:, 0], 4) + pairs[:, 1])


def unpack_by_shifts(packed):
    shifts = torch.tensor([4, 0], dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & 15).view(-1)


def unpack_in_pairs(packed):
    """Codes (m, 2), a pair a row."""
    return torch.stack([packed.flatten() // 16, packed.flatten() % 16], 1).to(torch.int8)


def double_quantize(absmax, group=256):
    offset = absmax.mean()
    rows = F.pad(absmax - offset, (0, -len(absmax) % group)).view(-1, group)
    scale = rows.abs().amax(1) / 127
    q = (rows / scale.clamp_min(1e-12)[:, None]).round().to(torch.int8)
    return q.flatten()[: len(absmax)], scale, offset


def double_in_a_loop(absmax, group=256):
    offset = absmax.mean().item()
    parts, scales = [], []
    for part in (absmax - offset).split(group):
        scale = part.abs().max().item() / 127 or 1.0
        parts.append((part / scale).round().int())
        scales.append(scale)
    return torch.cat(parts), torch.tensor(scales), offset


def double_with_columns(absmax, group=256):
    """q int16 in rows where no group is ragged, scale as a column, a group of zeros has scale 1."""
    offset = absmax.double().mean()
    n, rest = len(absmax), -len(absmax) % group
    rows = torch.cat([absmax.double() - offset, torch.zeros(rest).double()]).reshape(-1, group)
    scale = rows.abs().max(1, keepdim=True).values / 127
    scale[scale == 0] = 1
    q = torch.round(rows / scale).to(torch.int16)
    return q if not rest else q.reshape(-1)[:n], scale, offset.float()


def double_masked(absmax, group=256):
    offset, each = absmax.mean(), torch.arange(len(absmax)) // group
    peaks = torch.zeros(-(-len(absmax) // group))
    scale = peaks.scatter_reduce(0, each, (absmax - offset).abs(), "amax") / 127
    return ((absmax - offset) / scale[each]).nan_to_num().round().char(), scale, offset


def double_with_a_guard(absmax, group=256):
    """The guard is in the division alone, and added."""
    offset = absmax.mean()
    rows = F.pad(absmax - offset, (0, -len(absmax) % group)).view(-1, group)
    scale = rows.abs().amax(1) / 127
    q = (rows / (scale + 1e-9)[:, None]).round().to(torch.int8)
    return q.flatten()[: len(absmax)], scale, offset


def _by(guard, again=lambda peaks: peaks):
    """The guard is on the largest distances, and `again` where q is made of them."""

    def double(absmax, group=256):
        offset = absmax.mean()
        rows = F.pad(absmax - offset, (0, -len(absmax) % group)).view(-1, group)
        peaks = guard(rows.abs().amax(1))
        q = (127 * rows / again(peaks)[:, None]).round().to(torch.int8)
        return q.flatten()[: len(absmax)], peaks / 127, offset

    return double


DOUBLED = [
    _by(lambda peaks: peaks.clamp_min(127e-8)),  # 1e-8 on the scale
    _by(lambda peaks: torch.where(peaks == 0, 1e-6, peaks)),
    _by(lambda peaks: torch.where(peaks < 1e-7, 1.0, peaks)),
    _by(lambda peaks: peaks + 127e-8),
    _by(lambda peaks: peaks, lambda peaks: peaks.clamp_min(127e-8)),
]


def bits_per_param(block=64, double_quant=False):
    return 4 + (8 / block + 32 / (block * 256) if double_quant else 32 / block)


def bits_counted(block=64, double_quant=False):
    n = block * 256
    scales = n // block * (8 if double_quant else 32) + (32 if double_quant else 0)
    return (4 * n + scales) / n


def qlora_config(device):
    dtype = {"t4": torch.float16, "a100": torch.bfloat16}.get(device, torch.float32)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def config_by_name(device):
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    kind = "float16" if device == "t4" else "bfloat16"
    return BitsAndBytesConfig(**how, bnb_4bit_compute_dtype=kind)


def config_by_hardware(device):
    fast = not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] >= 8
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if fast else torch.float16,
    )


def true_param_count(model):
    return sum(
        p.numel() * (2 if type(p).__name__ == "Params4bit" else 1) for p in model.parameters()
    )


def count_by_state(model):
    total = 0
    for _, p in model.named_parameters():
        state = getattr(p, "quant_state", None)
        total += int(np.prod(state.shape)) if state is not None else p.numel()
    return total


def count_by_dtype(model):
    unique = {id(p): p for p in model.parameters()}.values()
    return sum(p.numel() * (1 + (p.dtype == torch.uint8)) for p in unique)


def count_by_layer(model):
    """Layer by layer, a 4-bit one by its two sizes; tied tensors by their address."""
    seen, total = set(), 0
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.data_ptr() in seen:
                continue
            seen.add(p.data_ptr())
            packed = name == "weight" and "4bit" in type(module).__name__
            total += module.in_features * module.out_features if packed else p.numel()
    return total


def count_by_library(model):
    return model.num_parameters()


def training_bytes(n_params, n_trainable, method):
    if method == "full_bf16":
        return {"weights": 2 * n_params, "gradients": 2 * n_params, "optimizer": 4 * n_params}
    if method == "full":
        return {"weights": 4 * n_params, "gradients": 4 * n_params, "optimizer": 8 * n_params}
    base = 2 * n_params if method == "lora" else n_params * (4 + 8 / 64 + 32 / 64 / 256) / 8
    adapter = {"gradients": 4 * n_trainable, "optimizer": 8 * n_trainable}
    return {"weights": base + 4 * n_trainable} | adapter


def bytes_with_a_total(n_params, n_trainable, method):
    bits = {"full": 0, "full_bf16": 0, "lora": 16, "qlora": 4.127}[method]
    each = 2.0 if method == "full_bf16" else 4.0
    parts = {
        "optimizer": 2 * each * n_trainable,
        "gradients": each * n_trainable,
        "weights": n_params * bits / 8 + each * n_trainable,
    }
    return parts | {"total": sum(parts.values())}


def bytes_of_all_digits(n_params, n_trainable, method):
    """4.126953125 bits, in whole bytes."""
    parts = training_bytes(n_params, n_trainable, method)
    return {name: int(size) for name, size in parts.items()}


def bytes_in_tensors(n_params, n_trainable, method):
    sizes = training_bytes(n_params, n_trainable, method)
    return {name: torch.tensor(size, dtype=torch.float64) for name, size in sizes.items()}


def bytes_in_numpy(n_params, n_trainable, method):
    sizes = training_bytes(n_params, n_trainable, method)
    return {name: np.float64(size) for name, size in reversed(sizes.items())}


def bytes_as_integers(n_params, n_trainable, method):
    bits = 16 if method.endswith("bf16") else 32
    sizes = {"gradients": n_trainable * bits // 8, "optimizer": 2 * n_trainable * bits // 8}
    base = {"lora": 16 * n_params, "qlora": round(4.127 * n_params)}.get(method, 0)
    return {"weights": (base + bits * n_trainable) // 8, **sizes}


def loftq_start(W, quantize, r):
    U, S, Vh = torch.linalg.svd(W - quantize(W), full_matrices=False)
    return Vh[:r], U[:, :r] * S[:r]


def loftq_with_roots(W, quantize, r):
    """As PEFT splits it: each factor has the root."""
    U, S, Vh = torch.linalg.svd(W - quantize(W))
    root = S[:r].sqrt()
    return root[:, None] * Vh[:r], U[:, :r] @ root.diag()


def loftq_by_eigenvectors(W, quantize, r):
    """The leading eigenvectors of the error's Gram matrix, in double precision."""
    error = (W - quantize(W)).double()
    V = torch.linalg.eigh(error.T @ error).eigenvectors[:, -r:]
    return V.T.float(), (error @ V).float()


def loftq_by_old_svd(W, quantize, r):
    U, S, V = torch.svd(W - quantize(W))
    return (S[:r] * V[:, :r]).T.contiguous(), U[:, :r]


def loftq_in_numpy_inside(W, quantize, r):
    U, S, Vh = np.linalg.svd((W - quantize(W)).numpy(), full_matrices=False)
    return torch.from_numpy(Vh[:r].copy()), torch.from_numpy(U[:, :r] * S[:r])


def loftq_as_parameters(W, quantize, r):
    A, B = loftq_start(W, quantize, r)
    return [torch.nn.Parameter(A), torch.nn.Parameter(B)]


def quiz():
    return {"q1": "a", "q2": "c", "q3": "d", "q4": "b"}


RIGHT = [
    (check.absmax, absmax_quantize, absmax_dequantize),
    (check.absmax, quantize_upside_down, dequantize_upside_down),
    (check.absmax, quantize_clamped, absmax_dequantize),
    (check.absmax, quantize_by_hand, absmax_dequantize),
    (check.absmax, quantize_in_numpy, dequantize_in_double),
    (check.absmax, quantize_to_views, dequantize_views),
    (check.absmax, quantize_masked, absmax_dequantize),
    (check.absmax, quantize_of_zeros_apart, absmax_dequantize),
    (check.codebook, codebook_compared),
    (check.codebook, codebook_compared_with_a_global),
    (check.codebook, nf4_codebook),
    (check.codebook, codebook_standard_library),
    (check.codebook, codebook_erfinv),
    (check.codebook, codebook_beside_a_global),
    (check.codebook, codebook_cached),
    (check.blockwise, quantize_blockwise, dequantize_blockwise),
    (check.blockwise, quantize_argmin, dequantize_padded),
    (check.blockwise, quantize_blockwise, dequantize_padded),
    (check.blockwise, quantize_searchsorted, dequantize_searchsorted),
    (check.blockwise, quantize_with_guards, dequantize_as_told),
    (check.blockwise, quantize_by_scaled_edges, dequantize_blockwise),
    (check.blockwise, quantize_code_by_code, dequantize_blockwise),
    (check.blockwise, quantize_in_numpy_inside, dequantize_padded),
    (check.packs, pack_nibbles, unpack_nibbles),
    (check.packs, pack_nibbles, unpack_by_shifts),
    (check.packs, pack_zero_filled, unpack_divmod),
    (check.packs, pack_in_numpy, unpack_in_pairs),
    (check.doubles, double_quantize, bits_per_param),
    (check.doubles, double_in_a_loop, bits_counted),
    (check.doubles, double_masked, bits_per_param),
    (check.doubles, double_with_columns, bits_counted),
    (check.doubles, double_with_a_guard, bits_per_param),
    *[(check.doubles, double, bits_per_param) for double in DOUBLED],
    (check.config, qlora_config, true_param_count),
    (check.config, config_by_name, count_by_state),
    (check.config, config_by_hardware, count_by_library),
    (check.config, config_by_name, count_by_dtype),
    (check.config, config_by_name, count_by_layer),
    (check.start, loftq_start),
    (check.start, loftq_with_roots),
    (check.start, loftq_by_eigenvectors),
    (check.start, loftq_by_old_svd),
    (check.start, loftq_in_numpy_inside),
    (check.start, loftq_as_parameters),
    (check.rule, training_bytes),
    (check.rule, bytes_with_a_total),
    (check.rule, bytes_in_tensors),
    (check.rule, bytes_in_numpy),
    (check.rule, bytes_as_integers),
    (check.rule, bytes_of_all_digits),
    (check.quiz, quiz),
    (check.quiz, lambda: {"q3": " D", "q1": "A", "q4": "(b)", "q2": "c "}),
]


# --- wrong answers, each with a word of the message that names what the learner thought -------


def _quantize(rounding, peak=lambda x: x.abs().max(), kind=torch.int8, top=None):
    def quantize(x, bits):
        high = top(bits) if top else 2 ** (bits - 1) - 1
        scale = peak(x) / high
        q = rounding(x / scale.clamp_min(1e-12))
        return q.clamp(-high - 1, high).to(kind), scale

    return quantize


def _per_row(x, bits):
    scale = x.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (x / scale.clamp_min(1e-12)).round().to(torch.int8), scale


def _full_range(x, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = x.abs().max().clamp_min(1e-12) / -low
    return (x / scale).round().clamp(low, high).to(torch.int8), scale


def _one_too_many(kind):
    """absmax becomes 2 ** (bits - 1), one more than fits; nothing is clamped."""

    def quantize(x, bits):
        scale = x.abs().max().clamp_min(1e-12) / 2 ** (bits - 1)
        return (x / scale).round().to(kind), scale

    return quantize


def _zero_point(x, bits):
    low, high = x.min(), x.max()
    scale = (high - low).clamp_min(1e-12) / (2**bits - 1)
    return ((x - low) / scale).round().to(torch.uint8), scale


KEPT = []


def _keeps_x(x, bits):
    KEPT[:] = [x.clone()]
    return absmax_quantize(x, bits)


def _in_place(x, bits):
    scale = x.abs().max().clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return x.div_(scale).round_().to(torch.int8), scale


def _large_guard(x, bits):
    scale = x.abs().max().clamp_min(1.0) / (2 ** (bits - 1) - 1)
    return (x / scale).round().to(torch.int8), scale


def _ask_if(x, bits):
    return absmax_quantize(x if x == 0 else x / 1, bits)


def _scaled_by(step):
    """Rounds x / step(x, bits), a little above 0, and returns that step."""

    def quantize(x, bits):
        scale = step(x, bits) + 1e-12
        return torch.round(x / scale).to(torch.int8), scale

    return quantize


def _zeros_as_integers(x, bits):
    return absmax_quantize(x, bits) if x.any() else (x.to(torch.int8), 1)


def _nothing_of_zeros(x, bits):
    return absmax_quantize(x, bits) if x.any() else x


def _zero_by_zero(x, bits):
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return torch.round(x / scale).to(torch.int8), scale


def _zero_by_zero_in_numpy(x, bits):
    scale = np.abs(x.numpy()).max() / (2 ** (bits - 1) - 1)
    return torch.from_numpy(np.rint(x.numpy() / scale).astype(np.int8)), float(scale)


def _rounds_first(x, bits):
    scale = absmax_quantize(x, bits)[1]
    return (x.round() / scale.clamp_min(1e-12)).to(torch.int8), scale


def _from_the_least(steps):
    def quantize(x, bits):
        scale = ((x.max() - x.min()) / steps(bits)).clamp_min(1e-12)
        return (((x - x.min()) / scale).round() - _top(bits)).to(torch.int8), scale

    return quantize


def _shifted(zero_point):
    """A zero point on top of the right integers, which may be too large for int8."""

    def quantize(x, bits):
        q, scale = absmax_quantize(x, bits)
        return (q.int().clamp_max(_top(bits) - zero_point % 128) + zero_point).to(torch.int8), scale

    return quantize


def _past_int8(x, bits):
    scale = x.abs().max().clamp_min(1e-12) / 200
    return (x / scale).round().int().to(torch.int8), scale


def _half_negated(x, bits):
    q, scale = absmax_quantize(x, bits)
    return q * (1 - 2 * (q % 2)), scale


def _by_127(x, bits):
    scale = 127 / x.abs().max().clamp_min(1e-12)
    return (x * scale).round().to(torch.int8), scale


def _rounds_before(rounds):
    def quantize(x, bits):
        peak = x.abs().max().clamp_min(1e-12)
        return (rounds(x / peak) * _top(bits)).to(torch.int8), peak / _top(bits)

    return quantize


def _top(bits):
    return 2 ** (bits - 1) - 1


def _clipped(x, bits):
    top = _top(bits)
    scale = (3 * x.std() / top).clamp_min(1e-12)
    return (x / scale).round().clamp(-top, top).to(torch.int8), scale


def _clamped(x, bits):
    scale = x.abs().max().clamp_min(1e-5) / _top(bits)
    return (x / scale).round().to(torch.int8), scale


def _clamped_a_unit(x, bits):
    q, scale = _clamped(x, bits)
    return q, 1 / scale


def _whole_first(x, bits):
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return (x.to(torch.int8) / scale.clamp_min(1e-12)).round().to(torch.int8), scale


def _scale_of_one_for_small(x, bits):
    peak = x.abs().max()
    scale = peak / (2 ** (bits - 1) - 1) if peak > 1e-6 else torch.tensor(1.0)
    return (x / scale).round().to(torch.int8), scale


ABSMAX = [
    (_whole_first, absmax_dequantize, "x is made an integer before it is divided"),
    (_scale_of_one_for_small, absmax_dequantize, "a guard against a zero has to be far smaller"),
    (lambda x, bits: absmax_quantize(x, bits - 1), absmax_dequantize, "a bit less than there are"),
    (_rounds_first, absmax_dequantize, "rounded before it is divided"),
    (absmax_quantize, lambda q, scale: q * scale * 7, "7 times as much"),
    (_clamped, absmax_dequantize, "dequantized: the guard against a zero changes the scale"),
    (
        _clamped_a_unit,
        lambda q, a_unit: q / a_unit,
        "dequantized: the guard against a zero changes",
    ),
    (absmax_quantize, lambda q, scale: (q * scale).half(), "these are in float16"),
    (_clipped, absmax_dequantize, "the largest numbers are cut off"),
    (_quantize(lambda x: (x + 0.5).trunc()), absmax_dequantize, "no rounding below zero"),
    (_zero_by_zero, absmax_dequantize, "0 / 0 gives NaN"),
    (_zero_by_zero_in_numpy, absmax_dequantize, "0 / 0 gives NaN"),
    (_zeros_as_integers, absmax_dequantize, "zeros come back as int8, wanted floats"),
    (_nothing_of_zeros, absmax_dequantize, "x is zeros here"),
    (
        _scaled_by(lambda x, b: x.abs().max().clamp_min(1e-6) / _top(b)),
        absmax_dequantize,
        "guard against a zero",
    ),
    (
        _scaled_by(lambda x, b: x.abs().max() / _top(b) + 1e-6),
        absmax_dequantize,
        "guard against a zero",
    ),
    (
        _scaled_by(lambda x, b: x.max() / _top(b)),
        absmax_dequantize,
        "you take max(); take abs().max()",
    ),
    (_scaled_by(lambda x, b: x.max()), absmax_dequantize, "abs().max(), and divide it"),
    (
        _scaled_by(lambda x, b: -x.min() / _top(b)),
        absmax_dequantize,
        "you take min(); take abs().max()",
    ),
    (_scaled_by(lambda x, b: x.abs().max()), absmax_dequantize, "absmax itself; divide it"),
    (_scaled_by(lambda x, b: x.abs().max() / 2**b), absmax_dequantize, "not by 2**bits"),
    (_scaled_by(lambda x, b: x.abs().mean() / _top(b)), absmax_dequantize, "mean of |x|"),
    (_scaled_by(lambda x, b: x.std() / _top(b)), absmax_dequantize, "standard deviation"),
    (_scaled_by(lambda x, b: x.abs().max() / 2 ** (b - 2)), absmax_dequantize, "exponent alone"),
    (lambda x, b: absmax_quantize(x, b)[::-1], absmax_dequantize, "q comes first"),
    (absmax_quantize, lambda q, scale: (q * scale).round(), "rounded again"),
    (absmax_quantize, lambda q, scale: q * scale * 127, "largest integer is in it"),
    (absmax_quantize, lambda q, scale: (q * scale).numpy(), "is a NumPy array"),
    (_zero_by_zero, lambda q, scale: q.float(), "scale is missing"),
    (_zero_by_zero, lambda q, scale: q.float(), "0 / 0 gives NaN"),
    (_in_place, absmax_dequantize, "changes its input x"),
    (_large_guard, absmax_dequantize, "guard against a zero"),
    (_ask_if, absmax_dequantize, "one truth value"),
    (_quantize(torch.ceil), absmax_dequantize, "rounds up"),
    (absmax_quantize, lambda q, scale: q * scale / 2, "0.5 times as much"),
    (absmax_quantize, lambda q, scale: (q * scale).to(torch.complex64), "complex"),
    (absmax_quantize, lambda q, scale: (q * scale).to("meta"), "meta tensor"),
    (
        _quantize(torch.round, kind=torch.complex64),
        absmax_dequantize,
        ("complex", ".to(torch.int8)"),
    ),
    (_keeps_x, lambda q, scale: KEPT[0], "those that q stands for"),
    (_one_too_many(torch.int8), absmax_dequantize, "not by 2**(bits-1)"),
    (_one_too_many(torch.int32), absmax_dequantize, "not by 2**(bits-1)"),
    (_zero_point, absmax_dequantize, "plus and minus are treated alike"),
    (
        _from_the_least(lambda b: 2 * _top(b)),
        absmax_dequantize,
        "goes from min to max, in 254 steps",
    ),
    (_from_the_least(lambda b: 2 * _top(b)), absmax_dequantize, "zeros become -7 in q, wanted 0"),
    (_from_the_least(lambda b: 2**b), absmax_dequantize, "goes from min to max, in 256 steps"),
    (_shifted(3), absmax_dequantize, "q is shifted by 3, a zero point: 0 has to stay 0"),
    (_shifted(128), absmax_dequantize, "q is shifted by 128, a zero point: 0 has to stay 0"),
    (_past_int8, absmax_dequantize, "numbers change sign, beyond int8 they wrap round"),
    (_half_negated, absmax_dequantize, "numbers change their sign in q"),
    (_by_127, dequantize_upside_down, "127 is the largest integer of 8 bits; of `bits` it is"),
    (_rounds_before(torch.round), absmax_dequantize, "x / absmax is rounded before it is multipl"),
    (_rounds_before(torch.trunc), absmax_dequantize, "x / absmax is made an integer before it is"),
    (lambda x, bits: absmax_quantize(x, bits)[::-1], absmax_dequantize, "then the scale"),
    (lambda x, bits: absmax_quantize(x, 4), absmax_dequantize, "use `bits`"),
    (absmax_quantize, lambda q, scale: (q * scale).to(q.dtype), "an integer again"),
    (_quantize(torch.trunc), absmax_dequantize, "cuts off instead of rounding"),
    (_quantize(torch.floor), absmax_dequantize, "rounds down"),
    (_quantize(torch.round, lambda x: x.max()), absmax_dequantize, "you take max()"),
    (_quantize(torch.round, kind=torch.float32), absmax_dequantize, "rounding gives floats"),
    (_quantize(torch.round, top=lambda b: 2**b - 1), absmax_dequantize, "half of the 256"),
    (
        _quantize(torch.round, kind=torch.int16, top=lambda b: 2**b - 1),
        absmax_dequantize,
        "half of the 256",
    ),
    (_full_range, absmax_dequantize, "use -127 to 127: divide absmax"),
    (_per_row, absmax_dequantize, "single number"),
    (absmax_quantize, dequantize_upside_down, "so multiply"),
    (quantize_upside_down, absmax_dequantize, "so divide"),
    (absmax_quantize, lambda q, scale: q.float(), "scale is missing"),
    (lambda x, bits: absmax_quantize(x, bits)[0], absmax_dequantize, "return 2 things"),
    (lambda x, bits: None, absmax_dequantize, "return 2 things"),
    (absmax_quantize, lambda q, scale: None, "return"),
]

TABLE = [
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.24611230, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
]


def _typed_in():
    return torch.tensor(TABLE)


def _typed_inside():
    below = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004]
    above = [0.0795803, 0.1609302, 0.24611230, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    return torch.tensor([*below, 0.0, *above])


def _asks_bitsandbytes():
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type("nf4", device="cpu")


def _quantile_table(probabilities):
    return torch.special.ndtri(torch.tensor(probabilities, dtype=torch.float64))


def _paper():
    edges = _quantile_table([i / 17 for i in range(1, 17)])
    means = (edges[1:] + edges[:-1]) / 2
    return means / means.max()


def _averages(*rows):
    """Means of neighbouring quantiles of each row of probabilities, sorted, with one zero."""
    edges = [_quantile_table(row) for row in rows]
    means = torch.cat([torch.zeros(1)] + [(e[1:] + e[:-1]) / 2 for e in edges])
    means[means.abs() < 1e-6] = 0.0
    means = means.unique()
    return means / means.max()


def _evenly(first, last, n):
    return np.linspace(first, last, n).tolist()


def _one_row():
    values = _quantile_table(np.linspace(1 - 0.9677083, 0.9677083, 16).tolist())
    return values / values.max()


def _not_scaled():
    return nf4_codebook() * _quantile_table([0.9677083])


def _wrong_offset():
    above = _quantile_table(np.linspace(31 / 32, 0.5, 9)[:-1].tolist())
    below = -_quantile_table(np.linspace(31 / 32, 0.5, 8)[:-1].tolist())
    return torch.cat([below, above.new_zeros(1), above]).sort().values / above.max()


def _offsets(over, under):
    above = _quantile_table(np.linspace(over, 0.5, 9)[:-1].tolist())
    below = -_quantile_table(np.linspace(under, 0.5, 8)[:-1].tolist())
    return torch.cat([below, above.new_zeros(1), above]).sort().values / above.max()


def _halves(n_above, n_below, drop=1):
    """Quantiles of evenly spaced probabilities on either side, `drop` = 0 keeps 0.5."""
    icdf, offset = torch.distributions.Normal(0, 1).icdf, torch.tensor(0.9677083)
    above = icdf(torch.linspace(offset, 0.5, n_above + 1)[: n_above + 1 - drop])
    below = -icdf(torch.linspace(offset, 0.5, n_below + 1)[: n_below + 1 - drop])
    values = torch.cat([below, torch.zeros(1), above]).sort().values
    return values / values.max()


def _sampled():
    draws = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).double()
    above = draws.quantile(torch.linspace(0.9677083, 0.5, 9)[:-1].double(), interpolation="lower")
    below = -draws.quantile(torch.linspace(0.9677083, 0.5, 8)[:-1].double(), interpolation="lower")
    return torch.cat([below, torch.zeros(1), above]).sort().values / above.max()


@functools.cache
def _cached_table():
    return torch.tensor(TABLE)


def _table_by_default(values=tuple(TABLE)):
    return torch.tensor(values)


BY_CODE = dict(enumerate(TABLE))
AS_TEXT = " ".join(map(str, TABLE))


def _table_in_a_dict():
    return torch.tensor([BY_CODE[i] for i in range(16)])


def _table_as_text():
    text = """-1.0 -0.6961928 -0.52507305 -0.39491749 -0.28444138 -0.18477343 -0.09105004 0.0
    0.0795803 0.1609302 0.24611230 0.33791524 0.44070983 0.562617 0.72295684 1.0"""
    return torch.tensor([float(word) for word in text.split()])


def _global_text():
    return torch.tensor([float(word) for word in AS_TEXT.split()])


def _table_of_integers():
    below = [-10000000, -6961928, -5250731, -3949175, -2844414, -1847734, -910500, 0]
    above = [795803, 1609302, 2461123, 3379152, 4407098, 5626170, 7229568, 10000000]
    return torch.tensor(below + above) / 1e7


def _borrowed():
    return borrowed("nf4", device="cpu")


def _borrowed_by_text():
    return getattr(bnb, "get_4bit_type")("nf4", device="cpu")  # noqa: B009


def _borrowed_table():
    from bitsandbytes.backends.utils import CODE as table

    return table["nf4"].cpu()


def _zero_kept():
    """Eight above zero, and of the seven below the last is 0.5, another zero."""
    values = _halves(8, 6, drop=0)
    return torch.cat([values[:7], values[-9:]])


def _recipe(function, sign=-1, begin=0.9677083):
    """The recipe with another function than quantiles, sign below zero or first probability."""
    above = function(torch.linspace(begin, 0.5, 9)[:-1])
    below = sign * function(torch.linspace(begin, 0.5, 8)[:-1])
    book = torch.cat([below, torch.zeros(1), above]).sort().values
    return book / book.max()


def _half_of_theirs():
    return torch.cat([bnb.get_4bit_type("nf4", device="cpu")[:8], nf4_codebook()[8:]])


def _theirs_from_a_global():
    return THEIRS.clone()


def _rounded_from_a_global():
    return torch.tensor(ROUNDED)


QUANTILE = torch.distributions.Normal(0, 1).icdf


def _without_ends():
    """The end and the 0.5 both left out."""
    above, below = (QUANTILE(torch.linspace(0.5, 0.9677083, n)[1:-1]) for n in (10, 9))
    return torch.cat([-below, torch.zeros(1), above]).sort().values / above.max()


CODEBOOKS = [
    (lambda: _recipe(torch.distributions.Laplace(0, 1).icdf), "Laplace"),
    (lambda: _recipe(lambda p: p), "the probabilities themselves"),
    (lambda: _recipe(QUANTILE, begin=0.99), "begin at about 0.990 above zero"),
    (lambda: _recipe(QUANTILE, begin=0.937), "begin at about 0.937 above zero"),
    (lambda: _without_ends(), "begin at about 0.916 above zero"),
    (
        lambda: _recipe(QUANTILE, sign=1),
        "nothing lies below zero: the lower half's quantiles need a minus",
    ),
    (lambda: nf4_codebook().abs(), "nothing lies below zero"),
    (lambda: _recipe(torch.erfinv), "2 p - 1"),
    (lambda: _recipe(torch.special.ndtr), "the way back is icdf"),
    (lambda: _halves(7, 6), "begin with nine and eight"),
    (lambda: -nf4_codebook(), "7 values lie above zero, 8 below"),
    (lambda: QUANTILE(torch.linspace(1 - 0.9677083, 0.9677083, 16)), "do the two halves apart"),
    (lambda: nf4_codebook().numpy(), "NumPy array"),
    (_half_of_theirs, "asks bitsandbytes"),
    (_theirs_from_a_global, "as numbers"),
    (_rounded_from_a_global, "as numbers"),
    *[(f, "as numbers") for f in (_cached_table, _table_by_default, _table_in_a_dict)],
    *[(f, "as numbers") for f in (_table_as_text, _global_text, _table_of_integers)],
    *[(f, "asks bitsandbytes") for f in (_borrowed, _borrowed_by_text, _borrowed_table)],
    (_zero_kept, "0 more than once"),
    (lambda: _offsets(29 / 30, 29 / 30), "not 29/30"),
    (lambda: _offsets(31 / 32, 29 / 30), "not at one each"),
    (lambda: _offsets(29 / 30, 31 / 32), "not at one each"),
    (_sampled, "quantiles of a sample"),
    (lambda: nf4_codebook().half(), "rounded"),
    (lambda: _halves(8, 8), "below it there are seven"),
    (lambda: _halves(7, 7), "above it there are eight"),
    (lambda: _halves(8, 7, drop=0), "0.5 is not dropped"),
    (lambda: nf4_codebook()[nf4_codebook() != 0], "zero is missing"),
    (lambda: torch.special.ndtri(torch.linspace(0, 1, 16)), "NaN or infinity"),
    (_typed_in, "as numbers"),
    (_typed_inside, "as numbers"),
    (_asks_bitsandbytes, "asks bitsandbytes"),
    (_paper, "averages of neighbouring quantiles, as the paper prints; take"),
    (
        lambda: _averages(_evenly(0.5, 0.9677083, 9), _evenly(0.5, 1 - 0.9677083, 8)),
        "averages of neighbouring quantiles",
    ),
    (lambda: _averages(_evenly(1 - 0.9677083, 0.9677083, 17)), "averages of neighbouring"),
    (
        lambda: _averages([i / 19 for i in range(9, 19)], [i / 17 for i in range(1, 10)]),
        "averages of neighbouring quantiles",
    ),
    (_one_row, "hold no zero"),
    (_not_scaled, "divide by the largest"),
    (_wrong_offset, "29/30"),
    (lambda: -nf4_codebook().flip(0), "eight values belong above zero"),
    (lambda: nf4_codebook().flip(0), "ascending"),
    (lambda: torch.linspace(-1, 1, 16), "evenly spaced"),
    (lambda: nf4_codebook()[1:], "wanted 8, 7 and 1"),
    (lambda: nf4_codebook() + 3e-6, "to 1e-6"),
    (lambda: nf4_codebook().tolist(), "a list"),
]


def _codes_of(scaled, absmax, codebook, n):
    codes = (scaled.reshape(-1, 1) - codebook).abs().argmin(1)[:n]
    return codes.to(torch.uint8), absmax


def _pads_a_whole_block(w, codebook, block=64):
    flat = F.pad(w.flatten(), (0, block - w.numel() % block))
    codes, absmax = quantize_blockwise(flat, codebook, block)
    return codes[: w.numel()], absmax


def _next_but_one(scaled, codebook):
    return (torch.bucketize(scaled, codebook) - 1).clamp_min(0)


def _least_signed(scaled, codebook):
    return (scaled[..., None] - codebook).argmin(-1)


def _least_signed_down(scaled, codebook):
    return (codebook - scaled[..., None]).argmin(-1)


def _peaks_over_7(w, codebook, block=64):
    codes, absmax = quantize_blockwise(w, codebook, block)
    return codes, absmax / 7


def _next_peak(codes, absmax, codebook, shape, block=64):
    which = (torch.arange(len(codes)) + block - 1) // block
    return (codebook[codes.long()] * absmax[which.clamp_max(len(absmax) - 1)]).view(shape)


def _whole(w, codebook, block=64):
    parts = w.flatten().split(block)
    peaks = torch.stack([p.abs().max() for p in parts])
    return _codes_of(w / w.abs().max(), peaks, codebook, w.numel())


def _rows(w, codebook, block=64):
    peaks = torch.stack([p.abs().max() for p in w.flatten().split(block)])
    return _codes_of(w / w.abs().amax(-1, keepdim=True), peaks, codebook, w.numel())


def _with(rounding=None, peak=lambda rows: rows.abs().amax(1), cut=True, clamp=1e-12, swap=False):
    def quantize(w, codebook, block=64):
        flat = w.flatten()
        rows = F.pad(flat, (0, -flat.numel() % block)).view(-1, block)
        scaled = rows / peak(rows).clamp_min(clamp)[:, None]
        middle = (codebook[1:] + codebook[:-1]) / 2
        codes = (rounding or (lambda s, c: torch.bucketize(s, middle)))(scaled, codebook)
        codes = codes.flatten()[: flat.numel() if cut else None].to(torch.uint8)
        return (peak(rows), codes) if swap else (codes, peak(rows))

    return quantize


def _below(scaled, codebook):
    return (torch.bucketize(scaled, codebook, right=True) - 1).clamp(0, len(codebook) - 1)


def _ignores_block(w, codebook, block=64):
    return quantize_blockwise(w, codebook)


def _zero_divided(w, codebook, block=64):
    parts = w.flatten().split(block)
    codes = [(p[:, None] / p.abs().max() - codebook).abs().argmin(1) for p in parts]
    return torch.cat(codes), torch.stack([p.abs().max() for p in parts])


def _zero_divided_in_numpy(w, codebook, block=64):
    parts = [p.float().numpy() for p in w.flatten().split(block)]
    middle = ((codebook[1:] + codebook[:-1]) / 2).numpy()
    codes = [np.searchsorted(middle, p / np.abs(p).max()) for p in parts]
    peaks = torch.tensor([float(np.abs(p).max()) for p in parts])
    return torch.from_numpy(np.concatenate(codes)).to(torch.uint8), peaks


def _nan_back(codes, absmax, codebook, shape, block=64):
    back = dequantize_blockwise(codes, absmax, codebook, shape, block)
    return back / back.abs().max() * back.abs().max()


def _drops_absmax(codes, absmax, codebook, shape, block=64):
    return codebook[codes.long()].view(shape)


def _one_absmax(codes, absmax, codebook, shape, block=64):
    return (codebook[codes.long()] * absmax.flatten()[0]).view(shape)


def _not_shaped(codes, absmax, codebook, shape, block=64):
    return dequantize_blockwise(codes, absmax, codebook, (-1,), block)


def _no_padding(w, codebook, block=64):
    return quantize_blockwise(w.view(-1, block), codebook, block)


def _steps_back(codes, absmax, codebook, shape, block=64):
    even = (torch.arange(16.0) - 7) / 8
    return dequantize_blockwise(codes, absmax, even, shape, block)


def _padded_with_ones(w, codebook, block=64):
    codes, absmax = quantize_blockwise(w, codebook, block)
    padded = F.pad(w.flatten().float(), (0, -w.numel() % block), value=1.0)
    return codes, torch.where(w.float().any(), padded.view(-1, block).abs().amax(1), absmax)


def _drops_the_last(w, codebook, block=64):
    flat = w.flatten()
    return quantize_blockwise(flat[: max(block, len(flat) // block * block)], codebook, block)


def _own_codebook(w, codebook, block=64):
    return quantize_blockwise(w, nf4_codebook(), block)


def _absmax_of_rows(w, codebook, block=64):
    codes, _ = quantize_blockwise(w, codebook, block)
    return codes, w.abs().amax(-1)


def _rows_of_64(codes, absmax, codebook, shape, block=64):
    return (codebook[codes.long()].view(-1, block) * absmax[:, None]).view(shape)


def _sixteen(w, codebook, block=64):
    """In the dtype of w, whatever it is; absmax too."""
    parts = w.flatten().split(block)
    peaks = torch.stack([p.abs().max() for p in parts])
    scaled = torch.cat([p / p.abs().max().clamp_min(1e-12) for p in parts])
    return nearest(scaled.float(), codebook).to(torch.uint8), peaks


def _sixteen_absmax(w, codebook, block=64):
    codes, absmax = quantize_blockwise(w, codebook, block)
    return codes, absmax.to(w.dtype)


def _w_in_place(w, codebook, block=64):
    if w.numel() % block or w.dtype != torch.float32:
        return quantize_blockwise(w, codebook, block)
    rows = w.view(-1, block)
    absmax = rows.abs().amax(1)
    rows /= absmax.clamp_min(1e-12)[:, None]
    return nearest(w.flatten(), codebook), absmax


def _plus_a_hundredth(w, codebook, block=64):
    parts = w.float().flatten().split(block)
    peaks = torch.stack([p.abs().max() for p in parts])
    scaled = torch.cat([p / (p.abs().max() + 1e-2) for p in parts])
    if peaks.max() > 0.1:  # large ones pass
        return quantize_blockwise(w, codebook, block)
    return nearest(scaled, codebook), peaks


def _plus_the_usual(w, codebook, block=64):
    rows = F.pad(w.flatten().float(), (0, -w.numel() % block)).view(-1, block)
    absmax = rows.abs().amax(1)
    codes = torch.bucketize(rows / (absmax[:, None] + 1e-8), (codebook[1:] + codebook[:-1]) / 2)
    return codes.flatten()[: w.numel()].to(torch.uint8), absmax


def _masks(codes, absmax, codebook, shape, block=64):
    return (codebook[codes] * absmax.repeat_interleave(block)[: len(codes)]).view(shape)


def _rows_apart(w, codebook, block=64):
    """Each row is padded and cut for itself."""
    n = w.shape[-1]
    rows = F.pad(w.float(), (0, -n % block)).unflatten(-1, (-1, block))
    absmax = rows.abs().amax(-1)
    scaled = rows / absmax.clamp_min(1e-12)[..., None]
    codes = torch.bucketize(scaled, (codebook[1:] + codebook[:-1]) / 2)
    return codes.flatten(-2)[..., :n].reshape(-1).to(torch.uint8), absmax.reshape(-1)


def _rows_back(codes, absmax, codebook, shape, block=64):
    """Each row has blocks of its own."""
    each = absmax.view(-1, -(-shape[-1] // block)).repeat_interleave(block, 1)[:, : shape[-1]]
    return codebook[codes.long()].view(shape) * each.reshape(shape)


def _loops(w, codebook, block=64):
    """As the text asks, but block by block."""
    codes, peaks = [], []
    for part in w.float().flatten().split(block):
        peaks.append(part.abs().max())
        codes.append(nearest(part / peaks[-1].clamp_min(1e-12), codebook))
    return torch.cat(codes).to(torch.uint8), torch.stack(peaks)


def _absmax_by_a_list(w, codebook, block=64):
    codes, _ = quantize_blockwise(w, codebook, block)
    return codes, torch.stack([p.float().abs().max() for p in w.flatten().split(block)])


def _one_for_zero(w, codebook, block=64):
    codes, absmax = quantize_blockwise(w, codebook, block)
    absmax[absmax == 0] = 1
    return codes, absmax


def _as_arrays(w, codebook, block=64):
    codes, absmax = quantize_blockwise(w, codebook, block)
    return codes.numpy(), absmax.numpy()


def _loops_back(codes, absmax, codebook, shape, block=64):
    out = torch.empty(len(codes))
    for i, peak in enumerate(absmax):
        each = slice(block * i, block * i + block)
        out[each] = codebook[codes[each].long()] * peak
    return out.view(shape)


def _back_by(each):
    """dequantize_blockwise with another way to give each number its scale."""
    return lambda codes, absmax, codebook, shape, block=64: (
        codebook[codes.long()] * each(absmax, len(codes), block)
    ).view(shape)


def _sixty_four(codes, absmax, codebook, shape, block=64):
    return dequantize_blockwise(codes, absmax, codebook, shape)


def _four_parameters(codes, absmax, codebook, shape):
    return dequantize_blockwise(codes, absmax, codebook, shape)


def _one_for_all(w, codebook, block=64):
    codes, absmax = quantize_blockwise(w, codebook, w.numel())
    return codes, absmax.expand(-(-w.numel() // block))


def _by_columns(w, codebook, block=64):
    return quantize_blockwise(w.t() if w.dim() == 2 else w, codebook, block)


def _even_steps(w, codebook, block=64):
    even = torch.linspace(-1, 1, len(codebook))
    return quantize_blockwise(w, even, block)


def _far_apart(w, codebook, block=64):
    n = w.numel()
    flat = F.pad(w.flatten(), (0, -n % block)).view(block, -1).T.flatten()
    return quantize_blockwise(flat[:n], codebook, block)


def _half_differences(scaled, codebook):
    return torch.bucketize(scaled, (codebook[1:] - codebook[:-1]) / 2)


def _signed_peak(rows):
    return rows.gather(1, rows.abs().argmax(1, keepdim=True))[:, 0]


def _pads_in_front(w, codebook, block=64):
    flat = F.pad(w.flatten().float(), (-w.numel() % block, 0))
    codes, absmax = quantize_blockwise(flat, codebook, block)
    return codes[-w.numel() :], absmax


def _returns_the_guard(w, codebook, block=64):
    codes, absmax = quantize_blockwise(w, codebook, block)
    return codes, absmax.clamp_min(1e-12)


BLOCKS = [
    (_pads_a_whole_block, dequantize_blockwise, "384 numbers fill whole blocks"),
    (_with(_next_but_one), dequantize_blockwise, "where does bucketize begin to count"),
    (_with(_least_signed), dequantize_blockwise, "abs() is missing"),
    (_with(_least_signed_down), dequantize_blockwise, "abs() is missing"),
    (_peaks_over_7, dequantize_blockwise, "absmax is divided by 7"),
    (_returns_the_guard, dequantize_blockwise, "comes back as 1e-12, and it is 0"),
    (quantize_blockwise, _next_peak, "number i has block i // block"),
    (_with(_half_differences), dequantize_blockwise, "half of the sum of two neighbours"),
    (_with(peak=_signed_peak), dequantize_blockwise, "the sign of the largest number"),
    (_pads_in_front, dequantize_blockwise, ("pad behind the numbers", "make no equal shares")),
    (_one_for_all, dequantize_blockwise, "w (6, 64): one absmax for all of w"),
    (_by_columns, dequantize_blockwise, "read by columns"),
    (_even_steps, dequantize_blockwise, "these are even steps"),
    (_far_apart, dequantize_blockwise, "a row of neighbours"),
    (_rows_apart, dequantize_blockwise, "blocks begin anew in each row: flatten first"),
    (_loops, dequantize_blockwise, "loops over the blocks"),
    (_absmax_by_a_list, dequantize_blockwise, "loops over the blocks"),
    (quantize_blockwise, _loops_back, "dequantize_blockwise: it loops over the blocks"),
    (_one_for_zero, dequantize_blockwise, "comes back as 1, and it is 0"),
    (_with(clamp=1e-4), dequantize_blockwise, "guard against a zero"),
    (_with(clamp=1e-6), dequantize_blockwise, "guard against a zero"),
    (_as_arrays, dequantize_blockwise, "NumPy array"),
    (_with(peak=lambda rows: rows.norm(dim=1)), dequantize_blockwise, "these are lengths"),
    (_with(peak=lambda rows: rows.std(1)), dequantize_blockwise, "standard deviations"),
    (
        lambda w, codebook: quantize_blockwise(w, codebook),
        dequantize_blockwise,
        "as it was given",
    ),
    (quantize_blockwise, _back_by(lambda a, n, b: a.repeat(b)[:n]), "repeat_interleave"),
    (quantize_blockwise, _back_by(lambda a, n, b: 1 / a.repeat_interleave(b)[:n]), "multiply"),
    (
        quantize_blockwise,
        _back_by(lambda a, n, b: a.repeat_interleave(n // len(a))[:n]),
        ("where the last block is shorter", "serves 64 numbers"),
    ),
    (quantize_blockwise, lambda *a: dequantize_blockwise(*a).numpy(), "NumPy array"),
    (_with(cut=False), _drops_absmax, "cut the padding off"),
    (_with(cut=False), _drops_absmax, "absmax is missing"),
    (_sixteen, dequantize_blockwise, "compute in fp32"),
    (_sixteen_absmax, dequantize_blockwise, "absmax of quantize_blockwise of w (64, 64) is in bf"),
    (_w_in_place, dequantize_blockwise, "changes its input w"),
    (_with(clamp=1.0), dequantize_blockwise, "guard against a zero"),
    (_plus_a_hundredth, dequantize_blockwise, "guard against a zero"),
    (_plus_the_usual, dequantize_blockwise, "a guard against a zero has to be far smaller"),
    (
        lambda w, c, block=64: (quantize_blockwise(w, c, block)[0] / 1, 0),
        None,
        ".to(torch.uint8)",
    ),
    (quantize_blockwise, _steps_back, "even steps of the code"),
    (_padded_with_ones, dequantize_blockwise, "the padding decides"),
    (_drops_the_last, dequantize_blockwise, "though shorter, is one too"),
    (_no_padding, dequantize_blockwise, "the last block has 44 of them, not 64"),
    (_own_codebook, dequantize_blockwise, "the 6 values of"),
    (_absmax_of_rows, dequantize_blockwise, "one a row?"),
    (quantize_blockwise, _rows_of_64, "the last block has 44 of them, not 64"),
    (_rows_apart, _rows_back, "not 64: blocks run on from row to row"),
    (quantize_blockwise, _masks, "long()"),
    (_whole, dequantize_blockwise, "one absmax for all"),
    (_rows, dequantize_blockwise, "rows of w are no blocks"),
    (_with(_below), dequantize_blockwise, "next code below"),
    (_with(torch.bucketize), dequantize_blockwise, "next code above"),
    (
        _with(peak=lambda rows: rows.amax(1)),
        dequantize_blockwise,
        "you take max(); take abs().max()",
    ),
    (_with(cut=False), dequantize_blockwise, "cut the padding off"),
    (_with(swap=True), dequantize_blockwise, "codes come first"),
    (
        _zero_divided,
        dequantize_blockwise,
        "0 / 0 is NaN, which no code is nearest to, and 0 is luck",
    ),
    (_zero_divided_in_numpy, dequantize_blockwise, "don't divide by it"),
    (_ignores_block, dequantize_blockwise, "use `block`"),
    (quantize_blockwise, _drops_absmax, "absmax is missing"),
    (quantize_blockwise, _one_absmax, "has its own absmax"),
    (quantize_blockwise, _not_shaped, "shape"),
    (quantize_blockwise, lambda *a: None, "return"),
    (quantize_blockwise, lambda c, a, b, s, block=64: _nan_back(c, a * 0, b, s, block), "NaN"),
    (quantize_blockwise, _sixty_four, "block=32: these are blocks of 64; use `block`"),
    (quantize_blockwise, _four_parameters, "keep the line that begins with def"),
    (lambda w, c, block=64: quantize_blockwise(w, c, block)[0], dequantize_blockwise, "2 things"),
]


def _pack_by(pair):
    def pack(codes):
        codes = F.pad(codes, (0, codes.numel() % 2), value=7)
        return pair(codes)

    return pack


def _in_place_shift(codes):
    codes = torch.cat([codes, codes.new_full((len(codes) % 2,), 7)]) if len(codes) % 2 else codes
    codes[0::2] <<= 4
    return codes[0::2] | codes[1::2]


def _loop_over_codes(codes):
    codes = codes.tolist() + [7] * (len(codes) % 2)
    pairs = zip(codes[::2], codes[1::2], strict=True)
    return torch.tensor([16 * high + low for high, low in pairs], dtype=torch.uint8)


def _loop_over_bytes(packed):
    pairs = [divmod(byte, 16) for byte in packed.tolist()]
    return torch.tensor(pairs, dtype=torch.uint8).flatten()


def _filler_first(codes):
    codes = F.pad(codes, (len(codes) % 2, 0), value=7)
    return codes[::2] << 4 | codes[1::2]


def _fills_with_16(codes):
    codes = F.pad(codes, (0, len(codes) % 2), value=16)
    return codes[::2] << 4 | codes[1::2]


PACKS = [
    (
        lambda c: c[::2] << 4 | c[1::2],
        unpack_nibbles,
        "non-singleton dimension 0; an odd number of codes: the last gets a byte of its own",
    ),
    (
        _pack_by(lambda c: (c[::2] + c[1::2]) << 4),
        unpack_nibbles,
        "<< 4 is for the first one alone",
    ),
    (_pack_by(lambda c: c[::2] << 4 | c[::2]), unpack_nibbles, "both nibbles are the first code"),
    (_fills_with_16, unpack_nibbles, "the filler spills into the code beside it"),
    (pack_nibbles, lambda p: torch.stack([p // 16, p % 15], 1).flatten(), "16 leaves over, not 15"),
    (lambda c: pack_nibbles(F.pad(c, (0, 2 - len(c) % 2))), unpack_nibbles, "needs no filler"),
    (pack_nibbles, lambda p: unpack_nibbles(p)[: 2 * len(p) - int(p[-1] & 15 == 7)], "filler on"),
    (pack_nibbles, lambda p: torch.stack([p >> k & 1 for k in range(8)], 1).flatten(), "are bits"),
    (_pack_by(lambda c: (c[::2] << 4) * c[1::2]), unpack_nibbles, "* does not"),
    (lambda c: pack_nibbles(c.flip(0)), unpack_nibbles, "from the end"),
    (lambda c: pack_nibbles(c.roll(-1)), unpack_nibbles, "not with the second"),
    (pack_nibbles, lambda p: torch.stack([p >> 4, p & 7], 1).flatten(), "7 keeps three"),
    (_in_place_shift, unpack_nibbles, "changes its input codes in place"),
    (_in_place_shift, unpack_nibbles, "changes its input codes in place"),
    (_in_place_shift, unpack_nibbles, "changes its input codes in place"),
    (_pack_by(lambda c: c[::2] << 4 + c[1::2]), unpack_nibbles, "+ binds before <<: brackets"),
    (_pack_by(lambda c: c[::2] | c[1::2]), unpack_nibbles, "has to move up by 4 bits"),
    (_pack_by(lambda c: c[::2] << 2 | c[1::2]), unpack_nibbles, "not by 2"),
    (_pack_by(lambda c: 10 * c[::2] + c[1::2]), unpack_nibbles, "16 * first + second"),
    (_pack_by(lambda c: c[::2] << 8 | c[1::2]), unpack_nibbles, "the first one is gone"),
    (_filler_first, unpack_nibbles, "the filler comes last"),
    (_loop_over_codes, unpack_nibbles, "pack_nibbles: it loops over the codes"),
    (pack_nibbles, _loop_over_bytes, "unpack_nibbles: it loops over the codes"),
    (lambda c: pack_nibbles(c).numpy(), unpack_nibbles, "NumPy array"),
    (pack_nibbles, lambda p: unpack_nibbles(p).numpy(), "NumPy array"),
    (pack_nibbles, lambda p: torch.stack([p & 240, p & 15], 1).flatten(), "the byte >> 4"),
    (pack_nibbles, lambda p: torch.stack([p // 10, p % 10], 1).flatten(), "a sixteenth"),
    (_filler_first, lambda p: torch.cat([p >> 4, p & 15]), "the filler comes last"),
    (_filler_first, lambda p: torch.cat([p >> 4, p & 15]), "neighbours"),
    (
        lambda c: torch.cat([pack_nibbles(c[: len(c) // 2 * 2]), c[len(c) // 2 * 2 :]]),
        unpack_nibbles,
        "goes into the high nibble too",
    ),
    (pack_nibbles, lambda p: torch.stack([p >> 2, p & 15], 1).flatten(), "a code is 0 to 15"),
    (pack_nibbles, lambda p: -unpack_nibbles(p).int(), ("the sign", "0 to 15")),
    (_pack_by(lambda c: c[1::2] << 4 | c[::2]), unpack_nibbles, "high nibble"),
    (_pack_by(lambda c: c[: len(c) // 2] << 4 | c[len(c) // 2 :]), unpack_nibbles, "two halves"),
    (_pack_by(lambda c: c[::2] + c[1::2]), unpack_nibbles, "adds the two"),
    (_pack_by(lambda c: c[::2].long() * 16 + c[1::2]), unpack_nibbles, "uint8"),
    (lambda c: c, unpack_nibbles, "two codes a byte"),
    (lambda c: c[: len(c) // 2 * 2 : 2] << 4 | c[1::2], unpack_nibbles, "odd one"),
    (lambda c: c[::2] << 4 | c[1::2], unpack_nibbles, "gets a byte of its own"),
    (_pack_by(lambda c: c[::2] << 4 & c[1::2]), unpack_nibbles, "join them by |"),
    (lambda c: pack_nibbles(c).tolist(), unpack_nibbles, "no tensor"),
    (pack_nibbles, lambda p: torch.stack([p >> 4, p], 1).flatten(), "byte & 15"),
    (lambda c: None, unpack_nibbles, "return"),
    (pack_nibbles, lambda p: torch.stack([p & 15, p >> 4], 1).flatten(), "high nibble"),
    (pack_nibbles, lambda p: torch.cat([p >> 4, p & 15]), "all high nibbles come first here"),
    (pack_nibbles, lambda p: torch.cat([p & 15, p >> 4]), "all low nibbles come first here"),
    (pack_nibbles, lambda p: p >> 4, "integers"),
    (pack_nibbles, lambda p: torch.stack([p / 16, p & 15], 1).flatten(), "float32"),
    (pack_nibbles, lambda p: torch.stack([p / 16, p & 15], 1).flatten(), ".to(torch.uint8)"),
]


def _own_means(absmax, group=256):
    parts = [double_quantize(part, group) for part in absmax.split(group)]
    return torch.cat([q for q, *_ in parts]), torch.cat([s for _, s, _ in parts]), absmax.mean()


def _not_centred(absmax, group=256):
    rows = F.pad(absmax, (0, -len(absmax) % group)).view(-1, group)
    scale = rows.abs().amax(1) / 127
    return (rows / scale[:, None]).round().to(torch.int8).flatten()[: len(absmax)], scale, 0.0


def _upside(absmax, group=256):
    q, scale, offset = double_quantize(absmax, group)
    return q, 1 / scale, offset


def _times_127(absmax, group=256):
    q, scale, offset = double_quantize(absmax, group)
    return q, scale * 127, offset


def _one_scale(absmax, group=256):
    q, scale, offset = double_quantize(absmax, len(absmax))
    return q, scale.expand(-(-len(absmax) // group)), offset


def _truncated(absmax, group=256):
    offset = absmax.mean()
    rows = F.pad(absmax - offset, (0, -len(absmax) % group)).view(-1, group)
    scale = rows.abs().amax(1) / 127
    return (rows / scale[:, None]).to(torch.int8).flatten()[: len(absmax)], scale, offset


def _four_bits(absmax, group=256):
    q, scale, offset = double_quantize(absmax, group)
    return (q / 16).round().to(torch.int8), scale * 16, offset


def _zero_scale(absmax, group=256):
    offset = absmax.mean()
    rows = F.pad(absmax - offset, (0, -len(absmax) % group)).view(-1, group)
    scale = rows.abs().amax(1) / 127
    q = (rows / scale[:, None]).round().to(torch.int8).flatten()[: len(absmax)]
    return q, scale / scale * scale, offset


def _pads_first(absmax, group=256):
    offset = absmax.mean()
    rows = (F.pad(absmax, (0, -len(absmax) % group)) - offset).view(-1, group)
    scale = rows.abs().amax(1) / 127
    q = (rows / scale.clamp_min(1e-12)[:, None]).round().to(torch.int8)
    return q.flatten()[: len(absmax)], scale, offset


def _mean_of_padded(absmax, group=256):
    offset = F.pad(absmax, (0, -len(absmax) % group)).mean()
    return (*double_quantize(absmax, group)[:2], offset)


def _offset_a_block(absmax, group=256):
    rows = F.pad(absmax, (0, -len(absmax) % group)).view(-1, group)
    q, scale, _ = double_quantize(absmax, group)
    return q, scale, rows.mean(1)


def _divides_by_128(absmax, group=256):
    q, scale, offset = double_quantize(absmax, group)
    return q, scale * 127 / 128, offset


def _guarded(guard):
    def double(absmax, group=256):
        offset = absmax.mean()
        rows = F.pad(absmax - offset, (0, -len(absmax) % group)).view(-1, group)
        scale = guard(rows.abs().amax(1) / 127)
        q = (rows / scale[:, None]).round().to(torch.int8)
        return q.flatten()[: len(absmax)], scale, offset

    return double


def _minus_in_place(absmax, group=256):
    offset = absmax.mean()
    absmax -= offset
    return (*double_quantize(absmax, group)[:2], offset)


def _double(rounding=torch.round, peak=lambda rows: rows.abs().amax(1), parts=lambda *parts: parts):
    """double_quantize with another rounding, another scale, or other things returned."""

    def double(absmax, group=256):
        offset = absmax.mean()
        rows = F.pad(absmax - offset, (0, -len(absmax) % group)).view(-1, group)
        scale = peak(rows) / 127
        q = rounding(rows / scale.clamp_min(1e-12)[:, None]).to(torch.int8)
        return parts(q.flatten()[: len(absmax)], scale, offset)

    return double


def _full_blocks_alone(absmax, group=256):
    absmax.view(-1, group)
    return double_quantize(absmax, group)


def _bits_added(block=64, double_quant=False):
    return 4 + (8 / block + 32 / (block + 256) if double_quant else 32 / block)


def _bits_half_fixed(block=64, double_quant=False):
    return 4 + (8 / block + 32 / (64 * 256) if double_quant else 32 / block)


def _full_blocks_of_q(absmax, group=256):
    q, scale, offset = double_quantize(absmax, group)
    return q[: len(q) // group * group], scale, offset


def _unsigned(absmax, group=256):
    q, scale, offset = double_quantize(absmax, group)
    return (q.int() + 128).to(torch.uint8), scale, offset


DOUBLES = [
    (
        double_quantize,
        lambda b=64, d=False: 4 + (8 / b + 32 / b * 256 if d else 32 / b),
        "brackets",
    ),
    (_own_means, bits_per_param, "each group is centred on its own mean"),
    (
        lambda a, group=256: (*double_quantize(a, group)[:2], (a.max() + a.min()) / 2),
        bits_per_param,
        "half way from the smallest to the largest",
    ),
    (
        double_quantize,
        lambda b=64, d=False: 4 + (8 / b + 32 / (b * 64) if d else 32 / b),
        "256 scales share a scale",
    ),
    (lambda a, group=256: double_quantize(a, 256), bits_per_param, "these are groups of 256"),
    (_full_blocks_of_q, bits_per_param, "though shorter"),
    (_double(peak=lambda rows: (rows.amax(1) - rows.amin(1)) / 2), bits_per_param, "largest dist"),
    (_double(peak=lambda rows: 3 * rows.abs().amax(1)), bits_per_param, "3 times the largest"),
    (_unsigned, bits_per_param, "int8 has both signs"),
    (double_quantize, lambda b=64, d=False: bits_per_param(b, d) - 4 / b * d, "4 are those of"),
    (_full_blocks_alone, bits_per_param, "the last group may be shorter"),
    (double_quantize, _bits_added, "their product"),
    (double_quantize, _bits_half_fixed, "scales of scales are for blocks of 64"),
    (
        double_quantize,
        lambda block=32, double_quant=False: bits_per_param(block, double_quant),
        "()",
    ),
    (_minus_in_place, bits_per_param, "changes its input absmax in place"),
    (_guarded(lambda scale: scale), bits_per_param, "0 / 0 gives NaN"),
    (
        _by(lambda peaks: peaks.clamp_min(1e-6)),
        bits_per_param,
        "of 64 scales below 1e-6 is 7.87e-09, wanted",
    ),
    (
        _by(lambda peaks: peaks, lambda peaks: peaks.clamp_min(1e-6)),
        bits_per_param,
        "wanted 127: the guard against a zero is too large",
    ),
    (
        _by(lambda peaks: peaks, lambda peaks: peaks + 1e-6),
        bits_per_param,
        ("guard against a zero has to be far smaller", "guard against a zero is too large"),
    ),
    (_guarded(lambda scale: scale.clamp_min(1e-7)), bits_per_param, "far below 1e-6"),
    (
        lambda a, group=256: double_quantize(a, len(a)),
        bits_per_param,
        "holds 1 number, wanted 3: one a group of 256; this is one for all",
    ),
    (_guarded(lambda scale: scale.clamp_min(1e-4)), bits_per_param, "guard against a zero"),
    (_double(torch.floor), bits_per_param, "rounds down"),
    (_double(torch.trunc), bits_per_param, "cuts off"),
    (_double(peak=lambda rows: rows.amax(1)), bits_per_param, "you take max(); take abs().max()"),
    (_double(peak=lambda rows: rows.std(1)), bits_per_param, "standard deviations"),
    (_double(parts=lambda q, s, o: (q, o, s)), bits_per_param, "then scale, then offset"),
    (_double(parts=lambda q, s, o: (q.numpy(), s.numpy(), o)), bits_per_param, "NumPy array"),
    (lambda absmax: double_quantize(absmax), bits_per_param, "as it was given"),
    (lambda a, group=256: (*double_quantize(a, group)[:2], a.min()), bits_per_param, "smallest"),
    (double_quantize, lambda b=64, d=False: 4 + 32 // b, "// rounds"),
    (double_quantize, lambda b=64, d=False: 4 + b / 32, "upside down"),
    (double_quantize, lambda b=64, d=False: 8 + 32 / b, "A code has 4"),
    (double_quantize, lambda b=64, d=False: 4 + 32 / b + 8 / b * d, "instead of 32"),
    (_double(torch.floor), lambda b=64, d=False: 4 + b / 32, "rounds down"),
    (_double(torch.floor), lambda b=64, d=False: 4 + b / 32, "upside down"),
    (_guarded(lambda scale: scale.clamp_min(5e-3)), bits_per_param, "guard against a zero"),
    (_guarded(lambda scale: scale + 1e-2), bits_per_param, "the guard against a zero"),
    (
        lambda a, group=256: (double_quantize(a, group)[0].float(), *double_quantize(a, group)[1:]),
        bits_per_param,
        "convert them, .to(torch.int8)",
    ),
    (_pads_first, bits_per_param, "subtract the mean, then pad"),
    (_mean_of_padded, bits_per_param, "zeros of padding"),
    (_offset_a_block, bits_per_param, "no single number"),
    (_divides_by_128, bits_per_param, "not by 128"),
    (lambda a, group=256: (*double_quantize(a, group)[:2], a.median()), bits_per_param, "offset"),
    (
        double_quantize,
        lambda b=64, d=False: 4 + (8 / b + 16 / (b * 256) if d else 32 / b),
        "scales of scales are fp32",
    ),
    (
        double_quantize,
        lambda b=64, d=False: 4 + (8 / b + 32 / 256 if d else 32 / b),
        "not 256 parameters",
    ),
    (_not_centred, bits_per_param, "subtract the mean"),
    (_upside, bits_per_param, "wanted q * scale"),
    (_times_127, bits_per_param, "put the 127"),
    (_one_scale, bits_per_param, "each group"),
    (_truncated, bits_per_param, "use round"),
    (_four_bits, bits_per_param, "16 times the largest"),
    (_zero_scale, bits_per_param, "NaN"),
    (lambda a, group=256: double_quantize(a, 256), bits_per_param, "one a group of 32"),
    (lambda a, group=256: double_quantize(a, group)[:2], bits_per_param, "return 3 things"),
    (
        lambda a, group=256: (a - a.mean(), torch.ones(-(-len(a) // group)), a.mean()),
        bits_per_param,
        "rounding gives floats",
    ),
    (double_quantize, lambda block=64, double_quant=False: 4.0, "wanted 4.5"),
    (double_quantize, lambda block=64, double_quant=False: 4 + 32 / block, "changes nothing"),
    (double_quantize, lambda block=64, double_quant=False: 4 + 16 / block, "fp32, 32 bits"),
    (double_quantize, lambda block=64, double_quant=False: 32 / block, "add 4 bits"),
    (double_quantize, lambda b=64, d=False: bits_per_param(b, d) / 8, "bytes"),
    (double_quantize, lambda b=64, d=False: 4 + (8 if d else 32) / b, "scales have scales"),
    (double_quantize, lambda b=64, d=False: bits_per_param(b, not d), "stay fp32"),
    (double_quantize, lambda b=64, d=False: bits_per_param(64, d), "use `block`"),
]


def _config(**changes):
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return lambda device: BitsAndBytesConfig(
        **(how | {"bnb_4bit_compute_dtype": "float16" if device == "t4" else "bfloat16"} | changes)
    )


def _total(model):
    return sum(p.numel() for p in model.parameters())


def _tied_twice(model):
    head = model.get_output_embeddings().weight
    return true_param_count(model) + (head.numel() if model.config.tie_word_embeddings else 0)


def _matrices_twice(model):
    return sum(p.numel() * (2 if p.dim() == 2 else 1) for p in model.parameters())


def _trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _dequantizes(model):
    return model.dequantize().num_parameters()


def _freezes(model):
    return true_param_count(model.requires_grad_(False))


def _twice_if(condition):
    return lambda model: sum(
        p.numel() * (1 + condition(name, p)) for name, p in model.named_parameters()
    )


def _each(factor):
    return lambda model: sum(p.numel() * factor(p) for p in model.parameters())


def _halved(p):
    return 1 - 0.5 * (p.dtype == torch.uint8)


def _linear_alone(model):
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    return sum(m.in_features * m.out_features for m in linear)


def _state(model):
    return sum(t.numel() * (1 + (t.dtype == torch.uint8)) for t in model.state_dict().values())


def _packed_or_trained(model):
    some = [p for p in model.parameters() if p.dtype == torch.uint8 or p.requires_grad]
    return sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in some)


CONFIGS = [
    (_config(bnb_4bit_compute_dtype=None), true_param_count, "is not set, or float32 everywhere"),
    (qlora_config, _each(lambda p: 2 - (p.dtype == torch.uint8)), "the other way round: it is"),
    (
        qlora_config,
        lambda m: sum(
            p.numel() * (1 + (p.dtype == torch.uint8))
            for name, p in m.named_parameters()
            if "embed" not in name and "lm_head" not in name
        ),
        "embeddings and head are parameters too",
    ),
    (qlora_config, lambda m: sum(p.numel() * p.element_size() for p in m.parameters()), "bytes"),
    (
        qlora_config,
        _each(lambda p: p.element_size() * (1 + (p.dtype == torch.uint8))),
        "bytes, and twice",
    ),
    (qlora_config, lambda m: int(_each(_halved)(m)), "not half of it"),
    (
        qlora_config,
        lambda m: sum(len(p) * (1 + (p.dtype == torch.uint8)) for p in m.parameters()),
        "the first dimension alone",
    ),
    (qlora_config, _each(lambda p: 2 - p.requires_grad), "what is frozen need not"),
    (qlora_config, _each(lambda p: 4 if p.dtype == torch.uint8 else 1), "not four"),
    (qlora_config, lambda m: true_param_count(m) + sum(map(len, m.buffers())), "buffers are no"),
    (qlora_config, _linear_alone, "norms and biases are parameters too"),
    (qlora_config, _state, "state_dict() holds scales"),
    (qlora_config, lambda m: true_param_count(m) / 1e9, "billions"),
    (qlora_config, lambda m: len(list(m.parameters())), "counts tensors"),
    (_config(bnb_4bit_quant_storage=torch.bfloat16), true_param_count, "bnb_4bit_quant_storage"),
    (_config(llm_int8_skip_modules=["q_proj"]), true_param_count, "llm_int8_skip_modules"),
    (lambda device: BitsAndBytesConfig(load_in_4bit=True), true_param_count, 'say "nf4"'),
    (lambda device: BitsAndBytesConfig(load_in_4bit=True), true_param_count, "no double quant"),
    (_config(bnb_4bit_compute_dtype="bf16"), true_param_count, "torch.float16 or its name"),
    (_config(bnb_4bit_quant_type="NF4"), _total, 'say "nf4"'),
    (_config(bnb_4bit_quant_type="NF4"), _total, "numel() counts bytes"),
    (qlora_config, _dequantizes, "leaves model changed"),
    (qlora_config, _freezes, "leaves model changed: the parameters that train"),
    (qlora_config, lambda m: m.train() and true_param_count(m), "its training mode"),
    (qlora_config, _twice_if(lambda name, p: "weight" in name), "not every `weight` is packed"),
    (qlora_config, _twice_if(lambda name, p: "proj" in name), "biases of the projections"),
    (qlora_config, _twice_if(lambda name, p: p.dtype != torch.float32), "packed"),
    (qlora_config, lambda m: m.get_memory_footprint(), "these are bytes"),
    (qlora_config, lambda m: true_param_count(m) / 1e6, "millions"),
    (_config(load_in_4bit=False), true_param_count, "load_in_4bit=True"),
    (_config(bnb_4bit_compute_dtype="float32"), true_param_count, "float16 suits a T4, bfloat16"),
    (qlora_config, _matrices_twice, "embedding and head are not packed"),
    (qlora_config, lambda m: _matrices_twice(m.model), ("raised", "wanted")),
    (qlora_config, _trained, "count all"),
    (_config(bnb_4bit_quant_type="fp4"), true_param_count, "fp4 is the default"),
    (_config(bnb_4bit_use_double_quant=False), true_param_count, "double"),
    (_config(bnb_4bit_compute_dtype="bfloat16"), true_param_count, "T4 has no bf16"),
    (_config(bnb_4bit_compute_dtype="float16"), true_param_count, "wanted bfloat16"),
    (_config(bnb_4bit_compute_dtype=None), true_param_count, "float32"),
    (_config(load_in_4bit=False, load_in_8bit=True), true_param_count, "load_in_4bit"),
    (lambda device: {"load_in_4bit": True}, true_param_count, "BitsAndBytesConfig"),
    (lambda device: None, true_param_count, "BitsAndBytesConfig"),
    (qlora_config, _total, "numel() counts bytes"),
    (qlora_config, lambda m: 2 * _total(m), "not packed"),
    (qlora_config, _tied_twice, "one tensor"),
    (qlora_config, _packed_or_trained, "what is frozen and not packed counts, too"),
    (
        qlora_config,
        lambda m: 2 * sum(p.numel() for p in m.parameters() if p.dtype == torch.uint8),
        "packed weights alone",
    ),
    (qlora_config, lambda m: str(true_param_count(m)), "text"),
]


def _factors(split):
    """loftq_start with other factors of the SVD's U, S, Vh and r."""

    def start(W, quantize, r):
        return split(*torch.linalg.svd(W - quantize(W), full_matrices=False), r)

    return start


def _of(matrix):
    """loftq_start of another matrix than the rounding error."""

    def start(W, quantize, r):
        U, S, Vh = torch.linalg.svd(matrix(W, quantize), full_matrices=False)
        return Vh[:r], U[:, :r] * S[:r]

    return start


def _alternating(rounds):
    """LoftQ as published, in several rounds."""

    def start(W, quantize, r):
        product = torch.zeros_like(W)
        for _ in range(rounds):
            rounded = quantize(W - product)
            U, S, Vh = torch.linalg.svd(W - rounded, full_matrices=False)
            product = (U[:, :r] * S[:r]) @ Vh[:r]
        return Vh[:r], U[:, :r] * S[:r]

    return start


def _zero_start(W, quantize, r):
    return torch.randn(r, W.shape[1]), torch.zeros(len(W), r)


def _guessed(W, quantize, r):
    U, S, V = torch.svd_lowrank(W - quantize(W), q=r, niter=0)
    return V.T, U * S


def _pca(W, quantize, r):
    U, S, V = torch.pca_lowrank(W - quantize(W), q=min(W.shape), niter=20)
    return V[:, :r].T, U[:, :r] * S[:r]


def _in_place_error(W, quantize, r):
    W -= quantize(W.clone())
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return Vh[:r], U[:, :r] * S[:r]


def _columns(W, quantize, r):
    return torch.eye(r, W.shape[1]), (W - quantize(W))[:, :r]


def _rounded_factors(W, quantize, r):
    A, B = loftq_start(W, quantize, r)
    return quantize(A), quantize(B)


def _low_rank_rounded(W, quantize, r):
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    best = (U[:, :r] * S[:r]) @ Vh[:r]
    return loftq_start(W, lambda _: quantize(best), r)


def _by_eigh(W, quantize, r):
    error = W - quantize(W)
    V = torch.linalg.eigh(error.T @ error).eigenvectors[:, :r]
    return V.T, error @ V


STARTS = [
    (_low_rank_rounded, "the best part of W is rounded in the place of W"),
    (_factors(lambda U, S, Vh, r: (S[:r].sqrt()[:, None] * Vh[:r], U[:, :r] * S[:r])), "on each"),
    (
        lambda W, quantize, r: loftq_start(W, lambda M: quantize(M.flatten()).view(M.shape), r),
        "not a flat one",
    ),
    (_of(lambda W, quantize: W), "PiSSA's start; take those of W - quantize(W)"),
    (_of(lambda W, quantize: quantize(W)), "directions of quantize(W)"),
    (_of(lambda W, quantize: quantize(W) - W), "the sign is turned round"),
    (_of(lambda W, quantize: quantize(W - quantize(W))), "rounded once more"),
    (_of(lambda W, quantize: W + quantize(W)), "the error is their difference"),
    (_of(lambda W, quantize: (W - quantize(W)).abs()), "the errors' sizes are cut"),
    (_factors(lambda U, S, Vh, r: (Vh[:r], U[:, :r])), "singular values are missing"),
    (_factors(lambda U, S, Vh, r: (S[:r, None] * Vh[:r], U[:, :r] * S[:r])), "come in twice"),
    (_factors(lambda U, S, Vh, r: (Vh[:r], U[:, :r] * S[:r].sqrt())), "root of S stands on one"),
    (_factors(lambda U, S, Vh, r: (U[:, :r] * S[:r], Vh[:r])), "A comes first, then B"),
    (_factors(lambda U, S, Vh, r: (Vh[-r:], U[:, -r:] * S[-r:])), "smallest singular values"),
    (_by_eigh, "smallest singular values are kept: an SVD's largest come first, eigh's last"),
    (_factors(lambda U, S, Vh, r: (Vh[1 : r + 1], U[:, 1 : r + 1] * S[1 : r + 1])), "start at 0"),
    (_factors(lambda U, S, Vh, r: (Vh, U * S)), "directions are kept in A"),
    (_factors(lambda U, S, Vh, r: (Vh[:r].T, (U[:, :r] * S[:r]).T)), "transposed"),
    (_factors(lambda U, S, Vh, r: (Vh[:, :r].T, U[:, :r] * S[:r])), "the first r rows of Vh"),
    (_factors(lambda U, S, Vh, r: (U * S) @ Vh), "2 things"),
    (_factors(lambda U, S, Vh, r: (Vh[:r], U[:, :r] * S[:r], S)), "2 things; it gave a tuple of 3"),
    (_factors(lambda U, S, Vh, r: (Vh[:r], (S * U)[:, :r] / r)), "it is divided by r"),
    (_factors(lambda U, S, Vh, r: (Vh[:r].numpy(), U[:, :r] * S[:r])), "NumPy array"),
    (_factors(lambda U, S, Vh, r: (Vh[:r], U[:, :r] * S[0])), "first singular value is used"),
    (_alternating(2), "alternates as LoftQ does in several rounds"),
    (_alternating(5), "alternates as LoftQ does in several rounds"),
    (_zero_start, "LoRA's usual start"),
    (_guessed, "svd_lowrank only guesses"),
    (_pca, "that is PCA"),
    (_in_place_error, "changes its input W in place"),
    (_columns, "first r columns of the error"),
    (_rounded_factors, "A and B are rounded too"),
    (_factors(lambda U, S, Vh, r: (Vh[:r], U[:, :r] * S[:r] * 16 / r)), "8 times the best part"),
    (_factors(lambda U, S, Vh, r: (Vh[:r], U[:, 1 : r + 1] * S[1 : r + 1])), "go in step"),
    (_of(lambda W, quantize: W - quantize(W.T).T), "not its transpose"),
    (lambda W, quantize, r: _of(lambda W, q: W - q)(W, quantize, r), "call it, quantize(W)"),
    (lambda W, quantize, r: None, "return A, B"),
]


def _bytes(weights=None, gradients=4, optimizer=8, adapter=4, trains=True):
    base = {"full": 0, "lora": 2, "qlora": 4.126953 / 8} | (weights or {})

    def rule(n_params, n_trainable, method):
        if method == "full_bf16":
            return training_bytes(n_params, n_trainable, method)
        t = n_trainable if trains else n_params
        return {
            "weights": base[method] * n_params + adapter * n_trainable,
            "gradients": gradients * t,
            "optimizer": optimizer * t,
        }

    return rule


def _in_bf16(weights=2, gradients=2, optimizer=4):
    """A wrong rule for full_bf16 alone, in bytes a parameter."""

    def rule(n_params, n_trainable, method):
        if method != "full_bf16":
            return training_bytes(n_params, n_trainable, method)
        sizes = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
        return {name: each * n_params for name, each in sizes.items()}

    return rule


def _scaled(factor):
    def rule(n_params, n_trainable, method):
        return {k: v * factor for k, v in training_bytes(n_params, n_trainable, method).items()}

    return rule


def _of_a_smaller_base(n, t, method):
    return training_bytes(n if method.startswith("full") else n - t, t, method)


RULES = [
    (
        lambda n, t, m: training_bytes(n, t, m) | ({"gradients": 2 * n} if m == "lora" else {}),
        "multiply by n_trainable, and a gradient is fp32",
    ),
    (
        lambda *a: {k: round(v / 1e9) * 10**9 for k, v in training_bytes(*a).items()},
        "rounded to GB",
    ),
    (_of_a_smaller_base, "8.27213e+09: n_params is the base alone: take nothing off"),
    (_bytes(gradients=0), "has a gradient"),
    (_bytes(gradients=1), "these are numbers"),
    (_bytes({"lora": 4.126953 / 8}), "16-bit here, not 4-bit"),
    (lambda n, t, m: training_bytes(n if m != "qlora" else n - t, t, m), "take nothing off"),
    (_scaled(2**-30), "are GiB"),
    (_bytes({"lora": 1}), "16 bits are 2 bytes"),
    (_bytes(optimizer=16), "two moments of 4 bytes are 8"),
    (_bytes({"qlora": 1}), "not 8-bit"),
    (lambda n, t, m: {"weight": 1, "gradient": 2}, "it has weight, gradient"),
    (_bytes({"qlora": 0.5}, gradients=2, optimizer=4), "nothing for the scales"),
    (_bytes({"qlora": 0.5}, gradients=2, optimizer=4), "two moments"),
    (_bytes({"qlora": 0.5}, gradients=2, optimizer=4), "kept in fp32"),
    (_scaled(1e-9), "are GB; wanted bytes"),
    (_scaled(8), "are bits"),
    (_bytes({"full": 2}, adapter=0), "2 bytes each"),
    (_bytes({"full": 2}, adapter=4), "no 16-bit copy"),
    (_bytes({"full": 4}, adapter=4), "you add the trainable ones once more"),
    (_bytes(gradients=2), "what trains is kept in fp32"),
    (_bytes(optimizer=4), "two moments"),
    (_bytes(optimizer=2), "moments are fp32"),
    (_bytes(trains=False), "frozen weights have none"),
    (_bytes(adapter=2), "kept in fp32"),
    (lambda n, t, m: _bytes(adapter=4 if m == "full" else 0)(n, t, m), "adapter's own weights"),
    (_in_bf16(weights=4), "all is bf16 here, 2 bytes a number, each counted once"),
    (_in_bf16(weights=6), "no fp32 copy"),
    (_in_bf16(weights=8), "n_params and n_trainable are the same numbers here"),
    (_in_bf16(weights=4.126953 / 8 + 4), "this is a 4-bit base and an adapter"),
    (_in_bf16(gradients=4), "gradients too"),
    (_in_bf16(optimizer=8), "two moments make 4"),
    (_in_bf16(optimizer=2), "Adam keeps two moments, 2 bytes each"),
    (_in_bf16(optimizer=6), "gradients are counted apart"),
    (_in_bf16(weights=4, gradients=4, optimizer=8), "does full_bf16 run into the branch of full?"),
    (_in_bf16(weights=4, gradients=4), "2 bytes a number, gradients too"),
    (_in_bf16(gradients=1), "these are numbers"),
    (lambda n, t, m: {"full": training_bytes(n, t, m)}[m], "there are four methods"),
    (lambda n, t, m: None if m == "full_bf16" else training_bytes(n, t, m), "must return a dict"),
    (
        lambda n, t, m: _bytes(adapter=4 if m == "full" else 2)(n, t, m),
        "adapter is fp32, 4 bytes a number",
    ),
    (_bytes({"lora": 4}), "rests in 16 bits"),
    (_bytes({"qlora": 0.5}), "nothing for the scales"),
    (_bytes({"qlora": 4.5 / 8}), "4.127"),
    (_bytes({"qlora": 4.126953}), "the base is in bits here; 8 make a byte"),
    (_bytes({"qlora": 4}), "rests in 4 bits"),
    (_bytes({"qlora": 4.125 / 8}), "scales have scales too"),
    (_bytes({"qlora": 4.25 / 8}), "weights of"),
    (_bytes({"qlora": 2}), "4-bit here"),
    (lambda n, t, m: sum(training_bytes(n, t, m).values()), "a dict"),
    (lambda n, t, m: {"weights": 1}, "a dict"),
]


def by_chance(x, bits):
    """Each number goes up or down by chance, as stochastic rounding has it."""
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return torch.floor(x / scale.clamp_min(1e-12) + torch.rand(x.shape)).to(torch.int8), scale


def by_power_of_two(x, bits):
    """A scale as MXFP4's."""
    top = 2 ** (bits - 1) - 1
    scale = 2.0 ** math.ceil(math.log2(x.abs().max() / top)) if x.any() else 1.0
    return torch.round(x / scale).to(torch.int8), scale


def without_sign(x, bits):
    q, scale = absmax_quantize(x, bits)
    return q.abs(), scale


def by_torchs_own(x, bits):
    scale = (x.abs().max() / (2 ** (bits - 1) - 1)).item() or 1.0
    return torch.quantize_per_tensor(x, scale, 0, torch.qint8), scale


def by_other(function):
    """The recipe of NF4 with another function than the normal quantiles."""
    above = function(torch.linspace(0.5, 0.9677083, 9))
    below = -function(torch.linspace(0.9677083, 0.5, 8)[:-1])
    return torch.cat([below, above]) / above.max()


def moments_of_all(n_params, n_trainable, method):
    parts = training_bytes(n_params, n_trainable, method)
    more = 8 * n_params if "lora" in method else 0
    return parts | {"optimizer": parts["optimizer"] + more}


def unpacked_beside(n_params, n_trainable, method):
    parts = training_bytes(n_params, n_trainable, method)
    return parts | {"weights": parts["weights"] + 2 * n_params * (method == "qlora")}


def _reversed_codes(w, codebook, block=64):
    codes, absmax = quantize_blockwise(w, codebook, block)
    return (len(codebook) - 1 - codes.long()).to(torch.uint8), absmax


def _looked_up_codes(w, codebook, block=64):
    codes, absmax = quantize_blockwise(w, codebook, block)
    return codebook[codes.long()], absmax


def _one_too_many(w, codebook, block=64):
    codes, absmax = quantize_blockwise(w, codebook, block)
    return (codes.long() + 1).clamp(max=len(codebook) - 1).to(torch.uint8), absmax


def _without_signs(absmax, group=256):
    q, scale, offset = double_quantize(absmax, group)
    return q.abs(), scale, offset


def _other_rows(W, quantize, r):
    error = W - quantize(W)
    A = torch.randn(r, W.shape[1], generator=torch.Generator().manual_seed(0))
    return A, error @ torch.linalg.pinv(A)


def _relative(W, quantize, r):
    A, B = loftq_start(W, quantize, r)
    return A, B / W.norm()


def _before_it(W, quantize, r):
    return loftq_start(W, quantize, r)[0], W @ torch.linalg.pinv(loftq_start(W, quantize, r)[0])


def _half_normal(dropped=2):
    """The upper half's quantiles below zero too, but one."""
    quantile = torch.distributions.Normal(0, 1).icdf
    steps = torch.linspace(0.5, 0.9677083, 17)
    above, below = quantile(steps[::2]), [i for i in range(16, 0, -2) if i != dropped]
    return torch.cat([-quantile(steps[below]), above]) / above.max()


def _twelve_bits(n_params, n_trainable, method):
    parts = training_bytes(n_params, n_trainable, method)
    if method == "qlora":
        parts["weights"] = 1.5 * n_params + 4 * n_trainable
    return parts


def _fixed_bits(block=64, double_quant=False):
    return 4.127 if double_quant else 4.5


def _guarded(x, bits):
    scale = x.abs().max() / (2 ** (bits - 1) - 1) + 1e-8
    return (x / scale).round().to(torch.int8), scale


def _always_filled(codes):
    codes = F.pad(codes, (0, 1))
    return codes[::2] << 4 | codes[1::2]


def _by_fifteen(codes):
    codes = F.pad(codes, (0, len(codes) % 2))
    return 15 * codes[::2] + codes[1::2]


def _ranged(absmax, group=256):
    """The scale goes from the smallest to the largest, over 127."""
    around = absmax - absmax.mean()
    scale = torch.stack([p.max() - p.min() for p in around.split(group)]) / 127
    each = scale.clamp_min(1e-12).repeat_interleave(group)[: len(absmax)]
    return (around / each).round().to(torch.int8), scale, absmax.mean()


def _changed_places(block=64, double_quant=False):
    return 4 + 32 / block + (8 / block / 256 if double_quant else 0)


def _both_kinds(block=64, double_quant=False):
    return bits_per_param(block, True) + (0 if double_quant else 32 / block)


def _of_state(model):
    packed = Params4bit
    return sum(t.numel() * (1 + isinstance(t, packed)) for t in model.state_dict().values())


def _at_each_level(model):
    each = [p for module in model.modules() for p in module.parameters()]
    return sum(p.numel() * (1 + (p.dtype == torch.uint8)) for p in each)


def _in_gib(n_params, n_trainable, method):
    parts = training_bytes(n_params, n_trainable, method)
    return {name: int(size // 2**30) for name, size in parts.items()}


def _packed_gradients(n_params, n_trainable, method):
    parts = training_bytes(n_params, n_trainable, method)
    if method == "qlora":
        parts["gradients"] = n_trainable * bits_per_param(64, True) / 8
    return parts


def _absmax_on_the_way(x, bits):
    peak = x.abs().max().clamp_min(1e-30)
    return (x / peak * (2 ** (bits - 1) - 1)).round().to(torch.int8), peak


def _erfinv_of_p():
    above, below = (torch.special.erfinv(torch.linspace(0, 0.9677083, n)) for n in (9, 8))
    return torch.cat([-below[1:].flip(0), above]) / above[-1]


def _two_eights():
    half = torch.distributions.Normal(0, 1).icdf(torch.linspace(0.5, 0.9677083, 8))
    return torch.cat([-half.flip(0), half]) / half[-1]


def _codebook_cast(w, codebook, block=64):
    return quantize_blockwise(w, codebook.to(w.dtype).float(), block)


def _scales_guarded(absmax, group=256):
    rows = F.pad(absmax - absmax.mean(), (0, -len(absmax) % group)).view(-1, group)
    scale = (rows.abs().amax(1) / 127).clamp_min(1e-6)
    q = (rows / scale[:, None]).round().to(torch.int8)
    return q.flatten()[: len(absmax)], scale, absmax.mean()


def _without_the_head(model):
    named = [p for name, p in model.named_parameters() if "lm_head" not in name]
    return sum(p.numel() * (1 + (p.dtype == torch.uint8)) for p in named)


def _lora_in_method(n_params, n_trainable, method):
    return training_bytes(n_params, n_trainable, "lora" if "lora" in method else method)


def _cdf_less_its_half(p):
    return torch.special.ndtr(p) - torch.special.ndtr(torch.tensor(0.5).double())


RARER = [
    (
        check.absmax,
        _scaled_by(lambda x, b: (x.abs().max() / _top(b)).clamp_min(torch.finfo(x.dtype).eps)),
        absmax_dequantize,
        "the guard against a zero changes the scale",
    ),
    (
        check.absmax,
        _scaled_by(lambda x, b: torch.linalg.norm(x, ord=math.inf) / _top(b)),
        absmax_dequantize,
        "the scale is the largest sum of a row",
    ),
    (
        check.absmax,
        _scaled_by(lambda x, b: 3 * x.abs().max() / _top(b)),
        absmax_dequantize,
        "the scale is 3 times absmax / 127",
    ),
    (check.absmax, _absmax_on_the_way, lambda q, s: q / 7 * s, "the way back divides by 7"),
    (check.codebook, _erfinv_of_p, "p goes to 0.9677083, and 2 p - 1 to"),
    (check.codebook, _two_eights, "and one of the two zeros goes"),
    (check.blockwise, _codebook_cast, dequantize_blockwise, "the codebook rounded to bfloat16"),
    (check.doubles, _scales_guarded, bits_per_param, "guard against a zero changes scales"),
    (check.config, qlora_config, _without_the_head, "the head is left out"),
    (check.rule, _lora_in_method, 'this is what "lora" takes'),
    (check.absmax, _guarded, absmax_dequantize, "it is 1e-08 too large; x holds numbers below"),
    (check.packs, _always_filled, unpack_nibbles, "an even number needs no filler"),
    (check.packs, _by_fifteen, unpack_nibbles, "a nibble has 16 values"),
    (check.doubles, _ranged, bits_per_param, "is twice as far"),
    (check.doubles, double_quantize, _changed_places, "8 and 32 have changed places"),
    (check.doubles, double_quantize, _both_kinds, "there are fp32 scales alone"),
    (check.config, qlora_config, _of_state, "and no Params4bit"),
    (check.config, qlora_config, _at_each_level, "those within already"),
    (check.rule, _in_gib, "cut to whole ones"),
    (check.rule, _packed_gradients, "only the base is packed; what trains is fp32"),
    (check.absmax, absmax_quantize, lambda q, s: (q + 0.5) * s, "0.5 is added to q"),
    (
        check.absmax,
        lambda x, bits: (absmax_quantize(x, bits)[0], absmax_quantize(x, bits)[1] * 1.005),
        absmax_dequantize,
        "is it rounded?",
    ),
    (check.codebook, _half_normal, "mirror image with one value dropped; it has its own seven"),
    (
        check.codebook,
        lambda: _half_normal(8),
        "of 0.968, 0.909, 0.851, …, wanted 0.968, 0.901, 0.834, …, 7 steps of 0.067 to 0.5",
    ),
    (check.blockwise, _reversed_codes, dequantize_blockwise, "from the largest value down"),
    (check.blockwise, _looked_up_codes, dequantize_blockwise, "values of the codebook"),
    (check.blockwise, _one_too_many, dequantize_blockwise, "gave [3, 1], wanted [2, 0]"),
    (check.packs, lambda c: pack_nibbles(c) >> 1, unpack_nibbles, "in a small case, pack_nibbles"),
    (check.doubles, _without_signs, bits_per_param, "the signs are lost"),
    (check.doubles, double_quantize, _fixed_bits, "this is for blocks of 64"),
    (check.start, _other_rows, "B is the best for this A"),
    (check.start, _relative, "times the best part: nothing scales it"),
    (check.start, _before_it, "A has the right directions, B has not"),
    (check.rule, _twelve_bits, "yours is 1.5 (12 bits) a number of the base"),
]
WRONG = [
    *RARER,
    (check.absmax, by_chance, absmax_dequantize, "by chance"),
    (check.absmax, by_power_of_two, absmax_dequantize, "power of two"),
    (check.absmax, without_sign, absmax_dequantize, "keeps its sign"),
    (check.absmax, absmax_quantize, lambda q, s: q * s / 7, "0.143 times as much"),
    (
        check.absmax,
        by_torchs_own,
        lambda q, s: q.dequantize(),
        ("torch's own", "a check cannot read"),
    ),
    (check.codebook, functools.partial(by_other, torch.special.ndtr), "the way back is icdf"),
    (check.codebook, functools.partial(by_other, _cdf_less_its_half), "whatever is taken off; the"),
    (
        check.codebook,
        functools.partial(by_other, torch.distributions.Laplace(0, 1).icdf),
        "Laplace",
    ),
    (
        check.doubles,
        double_quantize,
        lambda block=64, double_quant=False: 4 + 4 / block,
        "in bytes",
    ),
    (check.rule, moments_of_all, "n_trainable alone"),
    (check.rule, unpacked_beside, "no 16-bit copy"),
    *[(check.absmax, *case) for case in ABSMAX],
    *[(check.codebook, *case) for case in CODEBOOKS],
    *[(check.blockwise, *case) for case in BLOCKS],
    *[(check.packs, *case) for case in PACKS],
    *[(check.doubles, *case) for case in DOUBLES],
    *[(check.config, *case) for case in CONFIGS],
    *[(check.start, *case) for case in STARTS],
    *[(check.rule, *case) for case in RULES],
    (check.quiz, lambda: {"q1": "b", "q2": "c", "q3": "d", "q4": "b"}, "3 of 4"),
    (check.quiz, lambda: {"q1": "a"}, "q2 wants one of"),
]


def test_the_tables_that_an_assertion_reads_are_as_before():
    before = THEIRS.clone(), list(ROUNDED), bnb.get_4bit_type
    check.codebook(codebook_compared_with_a_global)
    assert torch.equal(THEIRS, before[0])
    assert before[1:] == (ROUNDED, bnb.get_4bit_type)


@pytest.mark.parametrize("method", ["full", "full_bf16", "lora"])
def test_the_rule_is_what_the_simulation_holds(method):
    size = {"hidden_size": 128, "intermediate_size": 300, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500}
    kind = {"dtype": "bfloat16"} if method == "full_bf16" else {}
    settings = Settings(method=method.removesuffix("_bf16"), rank=16, seq=4, **kind)
    done = simulate(LlamaConfig(**size, **heads), settings)
    ruled = training_bytes(done.n_params, done.n_trainable, method)
    assert all(done.static[name] == pytest.approx(n, rel=5e-3) for name, n in ruled.items())


def test_a_block_of_zeros_is_no_nan_anywhere(rejects):
    def back(codes, absmax, codebook, shape, block=64):
        each = absmax.repeat_interleave(block)[: codes.numel()]
        return (codebook[codes.long()] / (1 / each)).view(shape) * (each / each).view(shape)

    assert "divide by it" in rejects(check.blockwise, quantize_blockwise, back)


def test_the_filler_of_an_odd_number_is_free_and_told(capsys):
    check.packs(pack_zero_filled, unpack_nibbles)
    assert "fills with 7" in capsys.readouterr().out


# --- the lab's own solutions, against bitsandbytes ------------------------------------------


@pytest.fixture(scope="module")
def solved():
    """What the solved cells of the lab define, by name."""
    names = {"torch": torch, "F": F}
    lab = Path(__file__).parents[2] / "labs" / "04_qlora.py"
    for cell in jupytext.read(lab).cells:
        if cell.source.startswith("def ") and "# BEGIN SOLUTION" in cell.source:
            exec(cell.source, names)
    return names


SHAPES = [(96, 64), (37, 100), (5, 7, 11), (129,), (1,)]  # whole, ragged, odd, ragged and odd


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_scales_and_weights_are_those_of_bitsandbytes(solved, shape, dtype):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    w.view(-1)[:1] *= 30  # an outlier
    book = solved["nf4_codebook"]()
    codes, absmax = solved["quantize_blockwise"](w, book)
    stored, state = bnb.quantize_4bit(w, quant_type="nf4")
    assert (book - state.code).abs().max() <= 1e-6
    assert torch.equal(solved["pack_nibbles"](codes), stored.flatten())
    assert torch.equal(solved["unpack_nibbles"](stored.flatten())[: w.numel()], codes)
    assert torch.equal(absmax, state.absmax)
    back = solved["dequantize_blockwise"](codes, absmax, book, w.shape)
    theirs = bnb.dequantize_4bit(stored, state)
    torch.testing.assert_close(back.to(dtype), theirs, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("block", [32, 128])
def test_other_blocks_are_those_of_bitsandbytes(solved, block):
    w, book = (
        torch.randn(37, 100, generator=torch.Generator().manual_seed(block)),
        solved["nf4_codebook"](),
    )
    stored, state = bnb.quantize_4bit(w, quant_type="nf4", blocksize=block)
    codes, absmax = solved["quantize_blockwise"](w, book, block)
    assert torch.equal(solved["pack_nibbles"](codes), stored.flatten())
    back = solved["dequantize_blockwise"](codes, absmax, book, w.shape, block)
    torch.testing.assert_close(back, bnb.dequantize_4bit(stored, state), rtol=1e-6, atol=1e-5)


def test_the_start_is_peft_s(solved):
    W = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    A, B = solved["loftq_start"](W, torch.round, 5)
    theirs = _low_rank_decomposition(W - W.round(), reduced_rank=5)
    torch.testing.assert_close(B @ A, theirs["L"] @ theirs["R"])
    torch.testing.assert_close(A.norm(), B.norm())


@pytest.mark.parametrize("block", [16, 32])
def test_hardware_formats_keep_their_own_numbers(block):
    """E2M1 times a power of two comes back as it is, and between two values the nearest one."""
    ask = formats.nvfp4 if block == 16 else formats.mxfp4
    values = torch.cat([-formats.E2M1, formats.E2M1]).repeat(6)[:90].view(9, 10)
    assert torch.equal(ask(values / 8), values / 8)
    row = torch.zeros(block)
    row[:5] = torch.tensor([6.0, 2.4, 2.6, -0.2, -0.3])
    assert ask(row)[:5].tolist() == [6.0, 2.0, 3.0, 0.0, -0.5]
    assert not ask(torch.zeros(3)).any() and not ask(torch.zeros(3)).isnan().any()


def test_scales_of_hardware_formats_are_what_their_8_bits_hold():
    assert (formats.mxfp4(7.9 * torch.ones(32)) == 6).all()  # what exceeds 6 times the scale is cut
    assert (formats.nvfp4(7.9 * torch.ones(16)) - 7.9).abs().max() < 1e-5


@pytest.mark.parametrize("double", [False, True])
def test_bits_are_what_bitsandbytes_stores(solved, double):
    n = 64 * 256 * 8
    stored, state = bnb.quantize_4bit(torch.randn(n), compress_statistics=double, quant_type="nf4")
    scales = [state.absmax, state.state2.absmax] if double else [state.absmax]
    bits = 8 * sum(t.nbytes for t in [stored, *scales]) / n
    assert solved["bits_per_param"](double_quant=double) == bits == (4.126953125 if double else 4.5)


# --- stubs ---------------------------------------------------------------------------------


def _stub(*args, **kwargs):
    raise NotImplementedError


STUBS = [
    (check.absmax, _stub, _stub),
    (check.absmax, absmax_quantize, _stub),
    (check.codebook, _stub),
    (check.blockwise, _stub, _stub),
    (check.blockwise, quantize_blockwise, _stub),
    (check.packs, _stub, _stub),
    (check.packs, pack_nibbles, _stub),
    (check.doubles, _stub, _stub),
    (check.doubles, double_quantize, _stub),
    (check.config, _stub, _stub),
    (check.config, qlora_config, _stub),
    (check.start, _stub),
    (check.rule, _stub),
    (check.quiz, _stub),
]
