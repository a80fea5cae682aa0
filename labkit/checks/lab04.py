"""Checks of lab 4. The reference is bitsandbytes, labkit.memory, or a formula of its own."""

import contextlib
import functools
import math

import torch

from labkit.checks import guesses04 as guesses
from labkit.checks.compare import (
    expect_close,
    expect_number,
    expect_shape,
    expect_unchanged,
    randn,
)
from labkit.checks.guesses04 import peaks_of
from labkit.checks.quiz import judge
from labkit.grading.contract import CheckFailed, exercise, expect, generator, observe
from labkit.probes import lab04 as probe


def _draw(low, high, rng):
    """An int from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def _expect_integers(got, n, call, low, high, hint="", kind="int8"):
    """`got` is an integer tensor of n numbers in low..high, `hint` if not; returned flat."""
    expect(isinstance(got, torch.Tensor), f"{call} gave no tensor of integers")
    also = f"; {hint}" * bool(hint)
    floats = f"rounding gives floats: convert them, .to(torch.{kind}){also}"
    whole = not (got.is_floating_point() or got.is_complex() or got.dtype == torch.bool)
    expect(whole, f"{call} gave {str(got.dtype).removeprefix('torch.')}; {floats}")
    expect(got.numel() == n, f"{call} gave {got.numel()} integers, wanted {n}")
    got = got.flatten().long()
    worst = got[(got - (low + high) / 2).abs().argmax()].item() if n else low
    expect(low <= worst <= high, f"{call} holds {worst}, wanted {low} to {high}{also}")
    return got


def _number(value, call):
    """A Python float of a number or of a tensor with one."""
    if isinstance(value, torch.Tensor):
        expect(value.numel() == 1, f"{call} is no single number: it holds {value.numel()}")
        value = value.item()
    expect(type(value) in (int, float), f"{call} is no single number")
    return float(value)


@contextlib.contextmanager
def _blaming(hint):
    """Where the learner's code raises inside, say what is special about this input, if anything."""
    try:
        yield
    except CheckFailed as failure:
        raise CheckFailed(f"{failure}; {hint}") if hint else failure from None


SMALL = "small here: is the guard against a zero smaller still, such as 1e-12?"


@exercise("4.1", points=2)
def absmax(absmax_quantize, absmax_dequantize):
    """off by half a step at most, as far for -x as for x, and zeros stay zeros"""
    rng = generator()
    for bits, small in ((8, False), (4, False), (3, False), (2, False), (4, True)):
        x = randn(40, 25, rng=rng) * (0.01 if small else _draw(1, 50, rng))
        x[3, 4] = -1.5 * x.abs().max()
        with _blaming(f"x is {SMALL}" * small):
            _expect_integers_of(x, bits, absmax_quantize, absmax_dequantize)
    zeros, hint = torch.zeros(5), "absmax is 0 there: don't divide by it"
    args = (absmax_quantize, absmax_dequantize, zeros, 4)
    q, _, back, _ = observe(probe.absmax_round_trip, *args)
    expect_shape(q, zeros.shape, "q of zeros")
    expect_shape(back, zeros.shape, "zeros, quantized and dequantized,")
    expect(not back.isnan().any(), f"zeros give NaN; {hint}")
    expect(not q.any() and not back.any(), f"zeros don't stay zeros; {hint}")


def _expect_integers_of(x, bits, *functions):
    """Integers in range for x and for -x, and half a step off at most on the way back."""
    top, call = 2 ** (bits - 1) - 1, f"absmax_quantize(x, {bits})"
    q, scale, back, after = observe(probe.absmax_round_trip, *functions, x, bits)
    expect_unchanged(after, x, call, "x")
    expect_shape(q, x.shape, f"q of {call}")
    scale = _number(scale, f"scale of {call}")
    half = f"half of the {2**bits} integers are below zero"
    whole = _expect_integers(q, x.numel(), f"q of {call}", -top - 1, top + 1, half)
    wrapped = (whole * x.flatten() < 0).any()
    expect(not wrapped, f"{call}: numbers change sign, beyond int8 they wrap round; {half}")
    _expect_half_a_step(back, x, q, scale, bits)
    hint = f"divide absmax by 2**(bits-1) - 1 = {top}, not by 2**(bits-1)"
    expect(whole.abs().max() <= top, f"q of {call} goes to {top + 1}; use -{top} to {top}: {hint}")
    mirrored = observe(probe.absmax_round_trip, *functions, -x, bits)[0]
    same = torch.equal(mirrored.flatten().long(), -whole)
    expect(same, f"{call}: q of -x is not -q; use -{top} to {top}")
    _expect_from_q(back, whole, x, bits)


def _expect_half_a_step(back, x, q, scale, bits):
    top, call = 2 ** (bits - 1) - 1, f"{bits} bits, quantized and dequantized:"
    expect_shape(back, x.shape, call)
    whole, back = not back.is_floating_point(), back.double()
    expect(torch.isfinite(back).all(), f"{call} NaN or infinity")
    step = (x.abs().max() / top).item()
    error = ((back - x).abs().max() / step).item()
    if error <= 0.5 + 1e-3:
        return
    wrong = guesses.absmax(x, top) | guesses.undone(q, scale, x, step)
    if whole:
        wrong["this was made an integer again; leave it a float"] = back
    for message, guess in wrong.items():
        if torch.allclose(back, guess.double(), rtol=1e-3, atol=1e-3 * step):
            raise CheckFailed(f"{call} {message}")
    wanted = f"wanted half a step at most, a step being absmax / {top}"
    raise CheckFailed(f"{call} the largest error is {error:.2f} steps; {wanted}")


def _expect_from_q(back, whole, x, bits):
    """What comes back is q times a step: made from q, not x itself, kept on the way."""
    top = 2 ** (bits - 1) - 1
    step = (x.abs().max() / top).item()
    off = (back.flatten().double() - whole * step).abs().max().item() / step
    told = f"{bits} bits, quantized and dequantized: the numbers are not those that q stands for"
    expect(off < 0.1, f"{told}, q * absmax / {top}")


@exercise("4.2", points=3)
def codebook(nf4_codebook):
    """the 16 values of bitsandbytes to 1e-6, from quantiles"""
    got = observe(probe.codebook, nf4_codebook)
    values, call = got["values"], "nf4_codebook()"
    for message, guess in guesses.codebook().items():
        same = isinstance(values, torch.Tensor) and values.shape == guess.shape
        if same and (values.double() - guess).abs().max() < 1e-5:
            raise CheckFailed(f"{call}: {message}")
    expect_shape(values, torch.Size([16]), call)
    values, wanted = values.double(), _bitsandbytes_codebook()
    expect(torch.isfinite(values).all(), f"{call} holds NaN or infinity: a quantile at 0 or 1?")
    expect((values.diff() >= 0).all(), f"{call} is not in ascending order: sort it")
    twice = values[1:][values.diff() < 1e-5].tolist()
    hint = "drop the 0.5, whose quantile is 0, and add one zero at the end"
    expect(not twice, f"{call} holds {sum(twice[:1]):.4g} more than once; {hint}")
    error = (values - wanted).abs()
    worst = int(error.argmax())
    told = f"value {worst} is {values[worst]:.7f}, wanted {wanted[worst]:.7f}, to 1e-6"
    near = "; near, so are these the quantiles of a sample, or rounded? Take the exact ones, icdf"
    expect(error.max() <= 1e-6, f"{call}: {told}" + near * bool(error.max() < 5e-3))
    typed = sum(any(abs(x - w) < 1e-3 for x in got["numbers"]) for w in wanted.tolist())
    expect(typed < 5, f"{call} holds {typed} of the values as numbers: compute them from quantiles")
    expect(not got["names"], f"{call} asks bitsandbytes for its table: compute it from quantiles")


def _bitsandbytes_codebook():
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type("nf4", device="cpu").double()


def _bitsandbytes_codes(w):
    """Codes (n,) and packed bytes as bitsandbytes stores them in NF4."""
    from bitsandbytes.functional import quantize_4bit

    stored = quantize_4bit(w, blocksize=64, quant_type="nf4")[0].flatten()
    return torch.stack([stored >> 4, stored & 15], 1).flatten()[: w.numel()].long(), stored


BLOCKWISE = [((6, 64), None), ((3, 100), None), ((7,), None), ((5, 27), 32)]


@exercise("4.3", points=3)
def blockwise(quantize_blockwise, dequantize_blockwise):
    """the nearest code everywhere, the codes of bitsandbytes, a ragged last block, zeros"""
    rng = generator()
    nf4, odd = _bitsandbytes_codebook().float(), torch.tensor([-1, -0.3, 0, 0.1, 0.45, 1])
    for shape, block in BLOCKWISE:
        w, book = randn(*shape, rng=rng), nf4 if block is None else odd
        w *= 1 + 20 * torch.rand(shape[0], *[1] * (w.dim() - 1), generator=rng)
        call = f"quantize_blockwise of w {shape}" + (f", block={block}" if block else "")
        codes, _ = _expect_blocks(quantize_blockwise, w, book, block, call)
        if block is None:
            _expect_same_codes(codes, w, book, call)
            _expect_restored(quantize_blockwise, dequantize_blockwise, w, book)
    _expect_zeros(quantize_blockwise, dequantize_blockwise, nf4)
    w, call = randn(8, 64, rng=rng) * 0.01, "quantize_blockwise of w (8, 64)"
    with _blaming(f"w is {SMALL}"):
        _expect_blocks(quantize_blockwise, w, nf4, None, call)
    with _blaming("w is in bfloat16 here; compute in fp32: w.float()"):
        peaks = _expect_blocks(quantize_blockwise, w.bfloat16(), nf4, None, call)[1]
        expect(peaks.dtype != torch.bfloat16, f"absmax of {call} is in bfloat16")


def _expect_blocks(quantize_blockwise, w, book, block, call):
    """Codes and absmax of `w`, which are right, and `w` stays."""
    with _blaming(_ragged(w, block or 64)):
        codes, peaks, after = observe(probe.quantized, quantize_blockwise, w, book, block)
    expect_unchanged(after, w, call, "w")
    codes = _expect_codes(codes, w.float(), book, block or 64, call)
    _expect_peaks(peaks, w.float(), block or 64, call)
    return codes, peaks


def _ragged(w, block):
    n, rest = w.numel(), w.numel() % block
    return f"these are {n} numbers, and the last block has {rest} of them, not {block}" * bool(rest)


def _expect_zeros(quantize_blockwise, dequantize_blockwise, nf4):
    """A block of zeros before another one keeps its zeros, and NaN is nowhere on the way."""
    w, hint = torch.cat([torch.zeros(64), torch.ones(64)]), "its absmax is 0: don't divide by it"
    codes = observe(probe.blockwise, quantize_blockwise, w, nf4, None)[0].flatten()
    wanted = (codes[:64] == 7).all()
    expect(wanted, f"a block of zeros has code {codes[0]}, wanted 7, which is 0.0; {hint}")
    args = (quantize_blockwise, dequantize_blockwise, w, nf4)
    back = observe(probe.blockwise_round_trip, *args)[:64]
    expect(not back.isnan().any(), f"a block of zeros gives NaN; {hint}")
    expect(not back.any(), "a block of zeros does not come back as zeros")


def _expect_same_codes(codes, w, book, call):
    """The codes of bitsandbytes; where two codes are equally near, either will do."""
    theirs, _ = _bitsandbytes_codes(w)
    scaled = w.flatten() / peaks_of(w, 64)[0]
    further = (scaled - book[codes]).abs() - (scaled - book[theirs]).abs() > 1e-5
    n = int((further & (codes != theirs)).sum())
    expect(n == 0, f"{n} codes of {call} differ from those of bitsandbytes")


def _expect_codes(codes, w, book, block, call):
    padded = -w.numel() % block
    more = isinstance(codes, torch.Tensor) and codes.numel() == w.numel() + padded != w.numel()
    hint = f"cut the padding off, {w.numel()} numbers have {w.numel()} codes"
    expect(not more, f"{call}: the last block is ragged; {hint}")
    hint = f"codes come first, and are indices into the {len(book)} values of `codebook`"
    told = f"codes of {call}"
    codes = _expect_integers(codes, w.numel(), told, 0, len(book) - 1, hint, "uint8")
    each, _ = peaks_of(w, block)
    scaled = w.flatten() / each
    gap = (scaled[:, None] - book).abs()
    off = gap.gather(1, codes[:, None])[:, 0] - gap.amin(1) > 1e-5  # at a midpoint both will do
    for message, guess in guesses.codes(w, book, block).items():
        if off.any() and torch.equal(codes, guess):
            raise CheckFailed(f"codes of {call}: {message}")
    expect(not off.any(), f"{int(off.sum())} of {len(off)} codes of {call} are not the nearest")
    return codes


def _expect_peaks(peaks, w, block, call):
    wanted = peaks_of(w, block)[1]
    expect(isinstance(peaks, torch.Tensor), f"absmax of {call} is no tensor")
    told = f"absmax of {call} holds {peaks.numel()} numbers, wanted {len(wanted)}: one a block"
    expect(peaks.numel() == len(wanted), told)
    inverse = {"upside down: it is 1 / absmax": 1 / wanted}
    expect_close(peaks.flatten(), wanted, f"absmax of {call}", inverse)


def _expect_restored(quantize_blockwise, dequantize_blockwise, w, book):
    codes, _ = _bitsandbytes_codes(w)
    each, peaks = peaks_of(w, 64)
    looked_up, shape = book[codes], tuple(w.shape)
    wrong = {
        "absmax is missing": looked_up,
        "each block has its own absmax, and this takes one for all": looked_up * peaks[0],
        "the codes are not looked up in the codebook": codes * each,
    }
    wrong = {message: value.view(shape) for message, value in wrong.items()}
    wanted = (looked_up * each).view(shape)
    args = (quantize_blockwise, dequantize_blockwise, w, book)
    with _blaming(_ragged(w, 64)):
        got = observe(probe.dequantized, dequantize_blockwise, codes, peaks, book, shape)
    expect_close(got, wanted, f"dequantize_blockwise to {shape}", wrong)
    back = observe(probe.blockwise_round_trip, *args)
    expect_close(back, wanted, f"w {shape} quantized and dequantized", wrong)


@exercise("4.4", points=2)
def packs(pack_nibbles, unpack_nibbles):
    """the very bytes that bitsandbytes stores, odd lengths too, and the codes come back"""
    rng, note = generator(), None
    for n in (192, 2 * _draw(3, 20, rng) + 1, 1):
        codes, stored = _bitsandbytes_codes(randn(n, rng=rng))
        with _blaming("an odd number of codes: the last gets a byte of its own" * (n % 2)):
            got = observe(pack_nibbles, codes.to(torch.uint8))
        _expect_bytes(got, stored, codes, f"pack_nibbles of {n} code{'s' * (n > 1)}")
        if n % 2 and got.flatten()[-1] != stored[-1]:
            note = "right; after an odd number of codes bitsandbytes fills with 7, its zero"
        _expect_unpacked(observe(unpack_nibbles, stored), stored)
    return note


def _expect_bytes(got, stored, codes, call):
    expect(isinstance(got, torch.Tensor), f"{call} gave no tensor (is `return` missing?)")
    kind = str(got.dtype).removeprefix("torch.")
    expect(got.dtype == torch.uint8, f"{call} gave {kind}, wanted uint8: a byte is 8 bits")
    size = f"wanted {len(stored)}: two codes a byte, an odd one gets a byte of its own"
    expect(got.numel() == len(stored), f"{call} gave {got.numel()} bytes; {size}")
    odd = len(codes) % 2
    wrong = guesses.packed(torch.cat([codes, codes.new_full((odd,), 7)]))
    if odd:  # what fills the last byte is free
        low = got.flatten()[-1] & 15
        got, stored = (torch.cat([x[:-1], x[-1:] >> 4]) for x in (got.flatten(), stored))
        wrong = {message: torch.cat([x[:-1], x[-1:] >> 4]) for message, x in wrong.items()}
        if low == codes[-1]:
            hint = "the last of an odd number goes into the high nibble too; the low one is filler"
            wrong[hint] = torch.cat([stored[:-1], got[-1:]])
    expect_close(got.flatten(), stored, call, wrong)


def _expect_unpacked(got, stored):
    call = f"unpack_nibbles of {len(stored)} byte{'s' * (len(stored) > 1)}"
    high, low = stored >> 4, stored & 15
    wrong = {
        "the high nibble comes first": torch.stack([low, high], 1).flatten(),
        "the two codes of a byte are neighbours": torch.cat([high, low]),
        "the low nibble is the byte & 15": torch.stack([high, stored], 1).flatten(),
    }
    got = _expect_integers(got, 2 * len(stored), call, -math.inf, math.inf, kind="uint8")
    if not (got >> 4 == 0).all():
        wrong[f"a code is 0 to 15, and this holds {got[(got - 7.5).abs().argmax()]}"] = got
    expect_close(got, torch.stack([high, low], 1).flatten(), call, wrong)


@exercise("4.5", points=3)
def doubles(double_quantize, bits_per_param):
    """the scales come back to half a step of 8 bits a block; 4.5 and 4.127 bits a parameter"""
    rng = generator()
    cases = ((600, None, -1, 1), (100, 32, 0, 1), (256, None, -1, 1), (300, None, 0, 0.05))
    for n, block, outlier, size in cases:
        absmax = 2.5 + randn(n, rng=rng).abs()
        absmax[outlier] = 40.0  # it may spoil its own block, no other
        absmax *= size
        call = f"double_quantize of {n} scales" + (f", block={block}" if block else "")
        with _blaming(f"these are {SMALL}" * (size < 1)):
            got = observe(probe.doubled, double_quantize, absmax, block)
            _expect_doubled(got, absmax, block, call)
    same, call = torch.full((64,), 3.0), "double_quantize of 64 equal scales"
    back = _undone(*observe(probe.doubled, double_quantize, same, None), 256, call)
    hint = "less their mean they are all 0, and so is that block's scale: don't divide by it"
    expect(not back.isnan().any(), f"{call} gives NaN; {hint}")
    expect_close(back, same, f"{call}, undone,")
    for block in (64, 32, _draw(70, 300, rng)):
        for double in (False, True):
            _expect_bits(observe(bits_per_param, block, double), block, double)
    _expect_bits(observe(bits_per_param), 64, False)


def _undone(q, scale, offset, block, call):
    """q * scale + offset, with a scale a block."""
    expect(isinstance(q, torch.Tensor), f"q of {call} is no tensor")
    q = _expect_integers(q, q.numel(), f"q of {call}", -128, 127)
    blocks = -(-len(q) // block)
    expect(isinstance(scale, torch.Tensor), f"scale of {call} is no tensor: one number a block")
    expect(not scale.is_complex(), f"scale of {call} holds complex numbers")
    told = f"scale of {call} holds {scale.numel()} numbers, wanted {blocks}: one a block of {block}"
    expect(scale.numel() == blocks, told)
    return q * _spread(scale, block, len(q)) + _number(offset, f"offset of {call}")


def _spread(scale, block, n):
    return scale.flatten().repeat_interleave(block)[:n]


def _expect_doubled(got, absmax, block, call):
    (q, scale, offset), block, mean = got, block or 256, absmax.mean().item()
    wrong = {
        "subtract the mean first: the 8 bits then cover the differences alone": 0.0,
        "zeros of padding are in this mean: take it before you pad": (
            absmax.sum().item() / (-(-len(absmax) // block) * block)
        ),
    }
    told = f"offset of {call}, the mean of absmax,"
    expect_number(_number(offset, told), mean, told, wrong)
    _expect_integers(q, len(absmax), f"q of {call}", -128, 127)
    step = peaks_of(absmax - mean, block)[0] / 127
    steps_off = (_undone(*got, block, call) - absmax).abs() / step
    if (steps_off <= 0.5 + 2e-3).all():
        return
    padding = len(absmax) % block and abs(scale.flatten()[-1] * 127 / mean - 1) < 1e-4
    expect(not padding, f"{call}: the padding decides the last scale; subtract the mean, then pad")
    q, each = q.flatten(), _spread(scale, block, len(absmax))
    for message, wrong in {
        "q / scale + offset gives the scales; wanted q * scale + offset": q / each + mean,
        "q * scale / 127 + offset gives the scales; put the 127 into scale": q * each / 127 + mean,
        "offset was not taken off before rounding": q * each,
    }.items():
        if ((wrong - absmax).abs() <= step).all():
            raise CheckFailed(f"{call}: {message}")
    hint = "is each block scaled by its own largest distance from the mean, and rounded?"
    worst = f"a scale is off by {steps_off.max():.2f} steps, wanted 0.5"
    raise CheckFailed(f"{call}: undone, {worst}; {hint}")


def _expect_bits(got, block, double):
    wanted = 4 + (8 / block + 32 / (block * 256) if double else 32 / block)
    call = f"bits_per_param({block}, double_quant={double})"
    expect_number(got, wanted, call, guesses.bits(block, double), tol=1e-5)


DTYPES = {"cpu": ("bfloat16", "float32"), "t4": ("float16",), "a100": ("bfloat16",)}
WHY = {
    "cpu": "fp16 is slow or missing on a CPU",
    "t4": "a T4 has no bf16 arithmetic, and fp32 is slow there",
    "a100": "bf16 has the range of fp32, and this GPU has it",
}
COUNTED = [  # (name, packed, tied, adapted)
    ("a 4-bit model", True, False, False),
    ("a 4-bit model with a tied head", True, True, False),
    ("a 4-bit model with LoRA on q and v", True, True, True),
    ("a model that is not quantized", False, False, False),
]


@exercise("4.6", points=3)
def config(qlora_config, true_param_count):
    """NF4 with double quantization, the right compute dtype; packed weights counted in full"""
    for device, dtypes in DTYPES.items():
        call = f'qlora_config("{device}")'
        got = observe(probe.config_fields, qlora_config, device)
        expect("is" not in got, f"{call} gave a {got.get('is')}, wanted a BitsAndBytesConfig")
        expect(got["load_in_4bit"], f"{call} does not load in 4 bits: load_in_4bit=True")
        kind = got["bnb_4bit_quant_type"]
        expect(kind == "nf4", f'{call}: bnb_4bit_quant_type is "{kind}" (fp4 is the default)')
        hint = "bnb_4bit_use_double_quant=True"
        expect(got["bnb_4bit_use_double_quant"], f"{call}: no double quantization; {hint}")
        dtype = got["bnb_4bit_compute_dtype"].removeprefix("torch.")
        told = f"{call}: bnb_4bit_compute_dtype is {dtype}, wanted {' or '.join(dtypes)}"
        expect(dtype in dtypes, f"{told}: {WHY[device]}")
    rng = generator()
    size = (_draw(40, 70, rng), 8 * _draw(9, 15, rng))
    for name, *kind in COUNTED:
        wanted, wrong = _count_and_guesses(*kind, *size)
        got = observe(probe.counted, true_param_count, *kind, *size)
        expect_number(got, wanted, f"true_param_count of {name}", wrong)


@functools.cache
def _count_and_guesses(packed, tied, adapted, *size):
    """The parameters of the same model before it was packed, and what a misconception gives."""
    stored = list(probe.tiny_llama(packed, tied, adapted, *size).parameters())
    plain = probe.tiny_llama(False, tied, adapted, *size)
    wanted = sum(p.numel() for p in plain.parameters())
    naive = sum(p.numel() for p in stored)
    table = plain.get_input_embeddings().weight.numel()
    return wanted, {
        "packed weights hold two numbers a byte, and numel() counts bytes": naive,
        "only packed weights count twice; embeddings and norms are not packed": 2 * naive,
        "the tied embedding and head are one tensor" if tied else "embeddings are not packed": (
            wanted + table
        ),
        "embedding and head are not packed": wanted + 2 * table,
        "this counts what trains; count all": sum(p.numel() for p in stored if p.requires_grad),
        "this counts packed weights alone": (
            2 * sum(p.numel() for p in stored if p.dtype == torch.uint8)
        ),
    }


@exercise("4.7", points=2)
def rule(training_bytes):
    """full and lora agree with labkit.memory, qlora with 4.127 bits a base parameter"""
    rng = generator()
    for method in ("full", "lora"):
        n, trainable, wanted = _simulated(method, rng)
        _expect_parts(observe(training_bytes, n, trainable, method), n, trainable, method, wanted)
    n, trainable = _draw(1, 9, rng) * 10**9, _draw(100, 900, rng) * 10**5
    wanted = {"weights": 4.126953 / 8 * n + 4 * trainable}
    wanted |= {"gradients": 4.0 * trainable, "optimizer": 8.0 * trainable}
    got = observe(training_bytes, n, trainable, "qlora")
    _expect_parts(got, n, trainable, "qlora", wanted, tol=1e-4)


def _simulated(method, rng):
    """`(n_params, n_trainable, bytes)` of a small random model, as labkit.memory simulates it."""
    from transformers import LlamaConfig

    from labkit.memory.settings import Settings
    from labkit.memory.simulate import simulate

    config = LlamaConfig(
        hidden_size=64 * _draw(2, 4, rng),
        intermediate_size=100 * _draw(2, 5, rng),
        num_hidden_layers=_draw(1, 3, rng),
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=_draw(300, 900, rng),
    )
    done = simulate(config, Settings(method=method, rank=8 * _draw(3, 6, rng), seq=4))
    return done.n_params, done.n_trainable, {k: float(v) for k, v in done.static.items()}


def _expect_parts(got, n, trainable, method, wanted, tol=5e-3):
    call = f'training_bytes({n:,}, {trainable:,}, "{method}")'
    good = isinstance(got, dict) and set(wanted) <= set(got)
    expect(good, f'{call} must return a dict with "weights", "gradients" and "optimizer"')
    wrong = guesses.training_parts(n, trainable, method)
    for part, size in wanted.items():
        value = float(got[part]) if type(got[part]) is int else got[part]
        units = {
            "these are GB; wanted bytes": size / 1e9,
            "these are bits; wanted bytes": 8 * size,
        }
        told = f"{part} of {call}"
        expect_number(value, size, told, wrong[part] | units, tol)


@exercise("4.8", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "04")
