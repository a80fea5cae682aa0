"""Checks of lab 4. The reference is bitsandbytes, labkit.memory, or a formula of its own."""

import functools
import math

import torch

from labkit.checks import bnb04 as reference
from labkit.checks import guesses04 as guesses
from labkit.checks.absmax04 import expect_absmax
from labkit.checks.blocks04 import expect_blockwise
from labkit.checks.compare import expect_close, expect_number, expect_shape, randn
from labkit.checks.draws import draw
from labkit.checks.hints import asked
from labkit.checks.quiz import judge
from labkit.checks.scales04 import expect_bits, expect_doubled_scales
from labkit.checks.whole04 import blaming, expect_integers
from labkit.grading.contract import CheckFailed, exercise, expect, generator, observe, part
from labkit.probes import lab04 as probe


@exercise("4.1", points=2)
def absmax(absmax_quantize, absmax_dequantize):
    """off by half a step at most, as far for -x as for x, and zeros stay zeros"""
    expect_absmax(absmax_quantize, absmax_dequantize, generator())


@exercise("4.2", points=3)
def codebook(nf4_codebook):
    """the 16 values of bitsandbytes to 1e-6, from quantiles"""
    got = observe(probe.codebook, nf4_codebook)
    values, call = got["values"], "nf4_codebook()"
    if isinstance(values, torch.Tensor) and not values.is_complex():
        _expect_no_other_values(values.flatten().double(), call)
    expect_shape(values, torch.Size([16]), call)
    values, wanted = values.double(), reference.codebook()
    expect((values.diff() >= 0).all(), f"{call} is not in ascending order: sort it")
    error = (values - wanted).abs()
    worst = int(error.argmax())
    told = f"value {worst} is {values[worst]:.7f}, wanted {wanted[worst]:.7f}, to 1e-6"
    near = "near, so are these the quantiles of a sample, or rounded? Take the exact ones, icdf"
    told += f"; {near}" if error.max() < 5e-3 else ""
    if error.max() > 1e-6:
        raise CheckFailed(f"{call}: {told}", bare=error.max() >= 5e-3)
    _expect_no_table(got, values, wanted.tolist(), call)


def _expect_no_other_values(values, call):
    """None of the known misconceptions, and eight values above zero, seven below, one zero."""
    for message, guess in guesses.codebook().items():
        if values.shape == guess.shape and (values - guess).abs().max() < 1e-5:
            raise CheckFailed(f"{call}: {message}")
    hint = "a quantile at 0 or 1? It has none"
    expect(torch.isfinite(values).all(), f"{call} holds NaN or infinity: {hint}")
    hint = "nothing lies below zero: step 3's quantiles need a minus"
    expect((values < -1e-5).any() or len(values) < 9, f"{call}: {hint}")
    below, above = int((values < -1e-5).sum()), int((values > 1e-5).sum())
    zeros = len(values) - below - above
    hint = "drop the 0.5, whose quantile is 0, and add one zero at the end"
    expect(zeros < 2, f"{call} holds 0 more than once, {zeros} times; {hint}")
    told = f"{above} values lie above zero, {below} below and {zeros} on it"
    expect((above, below, zeros) == (8, 7, 1), f"{call}: {told}; wanted 8, 7 and 1")


def _expect_no_table(got, values, wanted, call):
    """The values are computed; a table may be asked to compare with, not to take them from."""
    inside, outside = (
        sum(any(abs(x - w) < 1e-3 for x in got[where]) for w in wanted)
        for where in ("inside", "outside")
    )
    again, hint = got["again"], "compute it from quantiles"
    still = again is None or getattr(again, "shape", None) == values.shape
    if still and again is not None:
        still = torch.allclose(again.double(), values, atol=1e-5)
    asks = got["names"] or (got["asked"] and not still)
    expect(not asks, f"{call} asks bitsandbytes for its table: {hint}")
    typed = max(inside, 0 if still else outside)
    expect(typed < 5, f"{call} holds {typed} of the values as numbers: {hint}")


@exercise("4.3", points=3)
def blockwise(quantize_blockwise, dequantize_blockwise):
    """the nearest code everywhere, the codes of bitsandbytes, a ragged last block, zeros"""
    expect_blockwise(quantize_blockwise, dequantize_blockwise, generator())


ODD = "an odd number of codes: the last gets a byte of its own"
LOOPS = "it loops over the codes in Python; a small model has 106 million: all at once, by slices"


@exercise("4.4", points=2)
def packs(pack_nibbles, unpack_nibbles):
    """the very bytes that bitsandbytes stores, odd lengths too, and the codes come back"""
    rng, note = generator(), None
    cases = [reference.stored_codes(randn(n, rng=rng)) for n in (192, 2 * draw(3, 20, rng) + 1, 1)]
    with part():
        for codes, stored in cases:
            n = len(codes)
            with blaming(ODD if n % 2 else ""):
                got = observe(probe.packed, pack_nibbles, codes.to(torch.uint8))
            _expect_bytes(got, stored, codes, f"pack_nibbles of {n} code{'s' if n > 1 else ''}")
            if n % 2 and got.flatten()[-1] != stored[-1]:
                note = "right; after an odd number of codes bitsandbytes fills with 7, its zero"
    with part():
        for _, stored in cases:
            _expect_unpacked(observe(probe.unpacked, unpack_nibbles, stored), stored)
    work = observe(probe.work_to_pack, pack_nibbles, unpack_nibbles)
    for name, (few, many) in zip(("pack_nibbles", "unpack_nibbles"), work, strict=True):
        with part():
            expect(many - few < probe.MORE_BLOCKS, f"{name}: {LOOPS}")
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
    call = f"unpack_nibbles of {len(stored)} byte{'s' if len(stored) > 1 else ''}"
    high, low = stored >> 4, stored & 15
    wrong = {
        "the high nibble comes first": torch.stack([low, high], 1).flatten(),
        "the two codes of a byte are neighbours": torch.cat([high, low]),
        "the low nibble is the byte & 15": torch.stack([high, stored], 1).flatten(),
        "the high nibble is the byte >> 4": torch.stack([stored & 240, low], 1).flatten(),
        "both are the high nibble": torch.stack([high, high], 1).flatten(),
        "both are the low nibble": torch.stack([low, low], 1).flatten(),
    }
    got = expect_integers(got, 2 * len(stored), call, -math.inf, math.inf, kind="uint8")
    if not (got >> 4 == 0).all():
        wrong[f"a code is 0 to 15, and this holds {got[(got - 7.5).abs().argmax()]}"] = got
    expect_close(got, torch.stack([high, low], 1).flatten(), call, wrong)


@exercise("4.5", points=3)
def doubles(double_quantize, bits_per_param):
    """the scales come back to half a step of 8 bits a block; 4.5 and 4.127 bits a parameter"""
    rng = generator()
    expect_doubled_scales(double_quantize, rng)
    expect_bits(bits_per_param, rng)


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
        got = asked(f'qlora_config("{device}")', NAMES, probe.config_fields, qlora_config, device)
        call = f'qlora_config("{device}")'
        expect("is" not in got, f"{call} gave a {got.get('is')}, wanted a BitsAndBytesConfig")
        _expect_fields(got, dtypes, device, call)
    rng = generator()
    size = (draw(40, 70, rng), 8 * draw(9, 15, rng))
    with part():
        for name, *kind in COUNTED:
            got = observe(probe.counted, true_param_count, *kind, *size)
            wanted, wrong = _count_and_guesses(*kind, *size)
            expect_number(got, wanted, f"true_param_count of {name}", wrong)


NAMES = {
    "unexpected keyword": "its names: load_in_4bit, bnb_4bit_quant_type, "
    "bnb_4bit_use_double_quant, bnb_4bit_compute_dtype",
    "has no attribute": "a dtype is torch.float16 or its name",
}


def _expect_fields(got, dtypes, device, call):
    """Each field, whatever the others are."""
    with part():
        expect(got["load_in_4bit"], f"{call} does not load in 4 bits: load_in_4bit=True")
    with part():
        kind = got["bnb_4bit_quant_type"]
        told = f'{call}: bnb_4bit_quant_type is "{kind}"'
        expect(kind == "nf4", f'{told}: say "nf4", fp4 is the default')
    with part():
        hint = "bnb_4bit_use_double_quant=True"
        expect(got["bnb_4bit_use_double_quant"], f"{call}: no double quantization: {hint}")
    with part():
        dtype = got["bnb_4bit_compute_dtype"].removeprefix("torch.")
        told = f"{call}: bnb_4bit_compute_dtype is {dtype}, wanted {' or '.join(dtypes)}"
        expect(dtype in dtypes, f"{told}: {WHY[device]}")
    with part():
        others = ", ".join(f"{name}={value}" for name, value in got["others"].items())
        others = "" if got["load_in_8bit"] else others
        expect(not others, f"{call} sets {others} too: leave it out")


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
    """4 bytes a number that trains, 4 for its gradient, 8 for Adam; a base of 2 or 0.516 bytes"""
    rng = generator()
    for method, base in (("full", 0), ("lora", 2), ("qlora", 4.126953 / 8)):
        n = draw(1, 9, rng) * 10**9 + draw(1, 10**6, rng)
        trained = n if method == "full" else draw(100, 900, rng) * 10**5
        wanted = {"weights": base * n + 4.0 * trained}
        wanted |= {"gradients": 4.0 * trained, "optimizer": 8.0 * trained}
        _expect_parts(observe(training_bytes, n, trained, method), n, trained, method, wanted)


def _expect_parts(got, n, trainable, method, wanted):
    call = f'training_bytes({n:,}, {trainable:,}, "{method}")'
    good = isinstance(got, dict) and set(wanted) <= set(got)
    keys = f"; it has {', '.join(got)}" if isinstance(got, dict) else ""
    told = f'{call} must return a dict with "weights", "gradients" and "optimizer"{keys}'
    expect(good, told)
    wrong = guesses.training_parts(n, trainable, method)
    for name, size in wanted.items():
        value = got[name]
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        units = {
            "these are GB; wanted bytes": size / 1e9,
            "these are GiB; wanted bytes": size / 2**30,
            "these are MB; wanted bytes": size / 1e6,
            "these are bits; wanted bytes": 8 * size,
        }
        with part():
            value = float(value) if type(value) is int else value
            expect_number(value, size, f"{name} of {call}", wrong[name] | units, 1e-4)


@exercise("4.8", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "04")
