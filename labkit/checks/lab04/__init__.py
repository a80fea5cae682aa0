"""Checks of lab 4. The reference is bitsandbytes, labkit.memory, or a formula of its own."""

import functools

import torch

from labkit.checks.compare import ask, draw, expect_numbers_or_first
from labkit.checks.lab04.blocks import expect_blockwise
from labkit.checks.lab04.codebook import expect_codebook
from labkit.checks.lab04.loftq_start import expect_start
from labkit.checks.lab04.nibbles import expect_nibbles
from labkit.checks.lab04.scales import expect_bits, expect_doubled_scales
from labkit.checks.lab04.symmetric import expect_absmax
from labkit.checks.lab04.training_bytes import expect_rule
from labkit.checks.quiz import judge
from labkit.contract import exercise, expect, generator, observe, part
from labkit.labs.lab04 import probes


@exercise("4.1", points=2)
def absmax(absmax_quantize, absmax_dequantize):
    """off by half a step at most, as far for -x as for x, and zeros stay zeros"""
    expect_absmax(absmax_quantize, absmax_dequantize, generator())


@exercise("4.2", points=3)
def codebook(nf4_codebook):
    """the 16 values of bitsandbytes to 1e-6, from quantiles"""
    expect_codebook(nf4_codebook)


@exercise("4.3", points=3)
def blockwise(quantize_blockwise, dequantize_blockwise):
    """the nearest code everywhere, the codes of bitsandbytes, a ragged last block, zeros"""
    expect_blockwise(quantize_blockwise, dequantize_blockwise, generator())


@exercise("4.4", points=2)
def packs(pack_nibbles, unpack_nibbles):
    """the very bytes that bitsandbytes stores, odd lengths too, and the codes come back"""
    return expect_nibbles(pack_nibbles, unpack_nibbles, generator())


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
    calls = {device: f'qlora_config("{device}")' for device in DTYPES}
    fields = {}
    for device, call in calls.items():
        got = ask(call, probes.config_fields, qlora_config, device, hint=NAMES)
        expect("is" not in got, f"{call} gave a {got.get('is')}, wanted a BitsAndBytesConfig")
        fields[device] = got
    unset = {got["bnb_4bit_compute_dtype"] for got in fields.values()} == {"torch.float32"}
    with part():
        told = "bnb_4bit_compute_dtype is not set, or float32 everywhere, which is its default"
        expect(not unset, f"{told}: float16 suits a T4, bfloat16 an A100")
    for device, got in fields.items():
        dtypes = (*DTYPES[device], *["float32"] * unset)  # told already
        _expect_fields(got, dtypes, device, calls[device])
    rng = generator()
    size = (draw(40, 70, rng), 8 * draw(9, 15, rng))
    with part():
        cases = []
        for name, *kind in COUNTED:
            got = observe(probes.counted, true_param_count, *kind, *size)
            wanted, wrong = _count_and_guesses(*kind, *size)
            cases.append((f"true_param_count of {name}", got, wanted, wrong))
        expect_numbers_or_first(cases)


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
        names = "by this name: others are dropped without a word, and fp4 is the default"
        expect(kind == "nf4", f'{told}: say "nf4" {names}')
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
    model = probes.tiny_llama(packed, tied, adapted, *size)
    stored = list(model.parameters())
    plain = probes.tiny_llama(False, tied, adapted, *size)
    wanted = sum(p.numel() for p in plain.parameters())
    naive = sum(p.numel() for p in stored)
    table = plain.get_input_embeddings().weight.numel()
    return wanted, {
        "packed weights hold two numbers a byte, and numel() counts bytes": naive,
        "only packed weights count twice; embeddings and norms are not packed": 2 * naive,
        "the tied embedding and head are one tensor" if tied else "embeddings are not packed": (
            wanted + table
        ),
        "the head is left out; only where it is tied is it the embedding's tensor": (
            wanted - (0 if tied else table)
        ),
        "embedding and head are not packed": wanted + 2 * table,
        "embeddings and head are parameters too": wanted - (1 if tied else 2) * table,
        "this counts what trains; count all": sum(p.numel() for p in stored if p.requires_grad),
        "this leaves out what trains; count all": sum(
            p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in stored if not p.requires_grad
        ),
        "what is frozen and not packed counts, too: embeddings and norms": sum(
            2 * p.numel() if p.dtype == torch.uint8 else p.numel() * p.requires_grad for p in stored
        ),
        "parameters of one shape are counted once; only a shared tensor is": sum(
            p.numel() * (2 if p.dtype == torch.uint8 else 1)
            for p in {tuple(p.shape): p for p in stored}.values()
        ),
        "this counts packed weights alone": (
            2 * sum(p.numel() for p in stored if p.dtype == torch.uint8)
        ),
        **_counts_by_name(model, wanted),
        **_counts_by_size(stored),
        **_counts_elsewhere(model),
    }


def _counts_by_size(stored):
    """What it gives to leave small ones out, and to take a byte for more or fewer numbers."""

    def each(packed, least=1):
        sizes = [(p.numel(), p.dtype == torch.uint8) for p in stored if p.dim() >= least]
        return int(sum(n * (packed if small else 1) for n, small in sizes))

    return {
        "a byte is 8 bits, and holds two numbers of 4": each(8),
        "norms and biases, of one dimension, are parameters too": each(2, least=2),
        "a byte holds two codes; their scales stand elsewhere, and count as nothing": each(
            8 / 4.127
        ),
    }


def _counts_elsewhere(model):
    """What it gives to look for parameters elsewhere than in `model.parameters()`."""

    def each(tensors):
        return sum(t.numel() * (1 + (t.dtype == torch.uint8)) for t in tensors)

    state, modules = model.state_dict().values(), list(model.modules())
    return {
        "state_dict() holds scales and tables of bitsandbytes too": each(state),
        "state_dict() holds scales and tables too, and no Params4bit: go through parameters()": (
            sum(t.numel() for t in state)
        ),
        "parameters() of a module has those within already; ask the model once": (
            sum(each(m.parameters()) for m in modules)
        ),
        "parameters(recurse=False) are those of the outermost module": 0,
    }


def _is_linear(module):
    return isinstance(module, torch.nn.Linear)


def _counts_by_name(model, wanted):
    """What it gives to tell packed weights by something else, and to count something else."""

    def each(times):
        return sum(p.numel() * times(n, p) for n, p in model.named_parameters())

    def two(p):
        return 1 + (p.dtype == torch.uint8)

    params = list(model.parameters())
    return {
        "not every `weight` is packed: ask for Params4bit": each(lambda n, p: 1 + ("weight" in n)),
        "biases of the projections are not packed: ask for Params4bit": each(
            lambda n, p: 1 + ("proj" in n)
        ),
        "the other way round: it is packed weights that hold two numbers a byte": each(
            lambda n, p: 3 - two(p)
        ),
        "these are bytes": model.get_memory_footprint(),
        "these are bytes of parameters": each(lambda n, p: p.element_size()),
        "these are bytes, and twice those of packed weights": each(
            lambda n, p: p.element_size() * two(p)
        ),
        "what is frozen need not be packed: ask for Params4bit": each(
            lambda n, p: 2 - p.requires_grad
        ),
        "a byte holds two numbers of 4 bits, not four": each(lambda n, p: 3 * two(p) - 2),
        "biases are parameters too": each(lambda n, p: two(p) * ("bias" not in n)),
        "a byte holds two numbers: twice numel(), not half of it": int(
            each(lambda n, p: 1 / two(p))
        ),
        "len() is the first dimension alone: numel()": sum(len(p) * two(p) for p in params),
        "these are billions": wanted / 1e9,
        "this counts tensors, not the numbers in them": len(params),
        "buffers are no parameters": wanted + sum(b.numel() for b in model.buffers()),
        "linear layers are not all: embeddings, norms and biases are parameters too": (
            sum(m.in_features * m.out_features for m in model.modules() if _is_linear(m))
        ),
        "what is no fp32 need not be packed, and may be bf16: ask for Params4bit": each(
            lambda n, p: 1 + (p.dtype != torch.float32)
        ),
    }


@exercise("4.7", points=3)
def start(loftq_start):
    """B A is the best rank-r part of what rounding lost, for four shapes and four roundings"""
    expect_start(loftq_start, generator())


@exercise("4.8", points=2)
def rule(training_bytes):
    """16 bytes a number that trains, 8 where all is bf16; a frozen base of 2 or 0.516 bytes"""
    expect_rule(training_bytes, generator())


@exercise("4.9", points=4)
def quiz(quiz):
    """four questions"""
    return judge(quiz, "04")
