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
# In LoRA training, the frozen weights usually take the most memory. QLoRA ([Dettmers et al.
# 2023](https://arxiv.org/abs/2305.14314)) stores each weight of the linear layers in four bits. You
# will implement NF4, QLoRA's 4-bit format, and match the bitsandbytes library byte for byte. Then
# you will write a layer that trains an adapter on 4-bit weights, and measure what rounding to four
# bits costs. Finally, you will try to fit a simulated training step of a 70B model onto one 48 GB
# GPU.
#
# {{ time }}

# %%
import labkit

lab, check = labkit.start("04_qlora")

# %%
import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from IPython.display import display
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn
from transformers import BitsAndBytesConfig

from labkit import live, tasks
from labkit.figures import lab04 as figures
from labkit.memory import configs
from labkit.memory import plots as memory_plots
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate
from labkit.plots import compare_answers
from labkit.training import generation, hardware, loop, models, packing

# %% [markdown]
# ## Store in 4 bits, compute in 16
#
# Four bits can represent an integer from 0 to 15. In QLoRA, a 4-bit weight is a *code*: an index
# into a table of sixteen values, the *codebook*. The layer looks up its codes, multiplies the
# values by a scale, computes with the resulting 16-bit weights, and discards them. The codes never
# change; only the adapter trains.
#
# Two choices define a 4-bit format: which sixteen values to use, and how to scale them.

# %% [markdown]
# ### Exercise 4.1 · `absmax_quantize`, `absmax_dequantize`
#
# ●○○ · 5 min · 2 points
#
# Start with the simplest format: evenly spaced integers and one scale for the whole tensor. Use the
# integers from $-(2^{b-1}-1)$ to $2^{b-1}-1$, where $b$ is `bits`. For 4 bits, this range is
# $-7 \dots 7$. Scale `x` so that its largest absolute value becomes the largest integer, then round
# to the nearest integer.
#
# A tensor of zeros must come back as zeros. Avoid 0/0: it gives NaN, which int8 can't store. If you
# clamp the scale, use 1e-12 or less, so that tensors of tiny numbers are also quantized correctly.
# Don't change `x`.


# %%
def absmax_quantize(x, bits):
    """x (any shape) -> q (int8, same shape) and scale (one number)."""
    # BEGIN SOLUTION
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return torch.round(x / scale.clamp_min(1e-12)).to(torch.int8), scale
    # END SOLUTION


def absmax_dequantize(q, scale):
    """The numbers that q represents, as a float tensor of the same shape."""
    # BEGIN SOLUTION
    return q * scale
    # END SOLUTION


# %%
check.absmax(absmax_quantize, absmax_dequantize)

# %% [markdown]
# The rounding error is at most half a step, and a step is the largest absolute value divided by 7.
# How does one large weight affect the other weights?

# %% tags=["experiment"]
outlier = 20.0
if lab.experiment("One outlier among 4,096 numbers", 1, needs=["4.1"]):
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    clean = absmax_dequantize(*absmax_quantize(x, 4))
    spoiled = absmax_dequantize(*absmax_quantize(torch.cat([x, torch.tensor([outlier])]), 4))
    display(figures.outlier(clean, spoiled[:-1], outlier))

# %% [markdown]
# A single outlier makes most of the 4,096 numbers round to 0. To fix this, use one scale per small
# *block* of weights: an outlier then affects only its own block.
#
# ## Which sixteen values?
#
# Evenly spaced values suit uniformly distributed numbers. The weights of a layer roughly follow a
# bell curve, so most of the sixteen values should lie near zero. NF4's authors aimed for values
# that each represent an equal share of the weights. The *quantile* at probability $p$ is the number
# below which a share $p$ of the bell curve lies. Try the quantiles at sixteen evenly spaced
# probabilities.

# %%
normal = torch.distributions.Normal(0, 1)
print(normal.icdf(torch.linspace(0, 1, 16)))  # icdf: from a probability to its quantile

# %% [markdown]
# What is wrong with the first and last values? Change the endpoints of `linspace` in the cell above
# so that all values are finite.
#
# <details><summary>Why</summary>
#
# The bell curve extends to infinity on both sides, so the quantile is $-\infty$ at probability 0
# and $\infty$ at probability 1. All quantiles in between are finite.
# </details>
#
# Which endpoints should you use? With 16 equal shares, the middle of the last share is at
# probability 31/32; with 15 shares, it is at 29/30. NF4 has eight values on one side of zero and
# seven on the other (see below). It therefore uses the mean of the two probabilities, 0.9677083, as
# the upper endpoint and mirrors it for the lower one.

# %%
offset = 0.9677083
print(normal.icdf(torch.linspace(1 - offset, offset, 16)))

# %% [markdown]
# Now all sixteen values are finite and cluster in the middle. One problem remains: which value
# represents an exact zero?
#
# <details><summary>Answer</summary>
#
# No value does: eight are below zero and eight are above. But padding and pruned weights are zeros
# and must stay zeros. One side has to give up a value.
# </details>

# %% [markdown]
# ### Exercise 4.2 · `nf4_codebook`
#
# ●●○ · 10 min · 3 points
#
# Build the NF4 codebook: sixteen values, including zero. Give each half its own evenly spaced
# probabilities, from 0.9677083 at its outer end to 0.5, where the quantile is 0. Negate the
# quantiles in the lower half. The two halves share the zero. Of the other fifteen values, eight are
# positive and seven are negative. Divide all values by the largest, and return them in ascending
# order as a float tensor. Compute the values instead of copying a table.
#
# <details><summary>Hint</summary>
#
# The upper half needs nine probabilities, for eight values and the zero. The lower half needs
# eight. Drop one of the two zeros.
# </details>


# %%
def nf4_codebook():
    """The 16 values of NF4 in ascending order, from -1 to 1: (16,)."""
    # BEGIN SOLUTION
    quantile, outermost = torch.distributions.Normal(0, 1).icdf, 0.9677083
    above = quantile(torch.linspace(0.5, outermost, 9))  # it begins with the zero
    below = -quantile(torch.linspace(outermost, 0.5, 8)[:-1])
    return torch.cat([below, above]) / above.max()
    # END SOLUTION


# %%
check.codebook(nf4_codebook)

# %% [markdown]
# You have computed the table that ships with bitsandbytes. Compare NF4 with 15 evenly spaced values
# (INT4) and with FP4, bitsandbytes' floating-point format and the default for
# `bnb_4bit_quant_type`. (Don't confuse it with NVFP4 or MXFP4.)

# %% tags=["experiment"]
if lab.experiment("Three codebooks", 1, needs=["4.2"]):
    books = {
        "NF4": nf4_codebook().float(),
        "FP4": bnb.functional.get_4bit_type("fp4", device="cpu").sort().values,
        "INT4": torch.linspace(-1, 1, 15),
    }
    blocks = models.load()[0].model.layers[15].mlp.up_proj.weight.detach().float().view(-1, 64)
    display(figures.codebooks(books, blocks / blocks.abs().amax(1, keepdim=True)))

# %% [markdown]
# ### Exercise 4.3 · `quantize_blockwise`, `dequantize_blockwise`
#
# ●●● · 13 min · 3 points
#
# Give every block of weights its own scale. Flatten `w` and split it into blocks of `block`
# numbers; the last block may be shorter. Divide each block by its largest absolute value, its
# *absmax*. Then replace each number with the index of the *nearest* codebook value. The codebook is
# sorted from -1 to 1. Like bitsandbytes, compute in fp32, whatever the dtype of `w`. Don't change
# `w`.
#
# The absmax of a block of zeros is 0: return this 0, but avoid NaN when dividing. Blocks of tiny
# numbers must also be quantized correctly, so clamp the divisor at 1e-12 or less.
#
# `dequantize_blockwise` reverses `quantize_blockwise`: look up the codes, multiply each value by
# the absmax of its block, and restore the shape. Don't loop over blocks in Python: SmolLM2 has 1.7
# million blocks.
#
# <details><summary>Hint</summary>
#
# Pad `w` with zeros until every block is full. A view of shape `(n_blocks, block)` puts one block
# in each row. Remove the padding from the codes. In a sorted codebook, the nearest value changes at
# the midpoints between neighbors; `torch.bucketize` finds each number's interval.
# `repeat_interleave` gives every number its block's scale.
# </details>


# %%
def quantize_blockwise(w, codebook, block=64):
    """w (any shape, n numbers) -> codes (n,) uint8, absmax (n_blocks,)."""
    # BEGIN SOLUTION
    flat = w.flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks / absmax.clamp_min(1e-12)[:, None]
    codes = torch.bucketize(scaled, (codebook[1:] + codebook[:-1]) / 2)
    return codes.flatten()[: len(flat)].to(torch.uint8), absmax
    # END SOLUTION


def dequantize_blockwise(codes, absmax, codebook, shape, block=64):
    """codes (n,), absmax (n_blocks,) -> the weights, of shape `shape`."""
    # BEGIN SOLUTION
    each = absmax.repeat_interleave(block)[: len(codes)]
    return (codebook[codes.long()] * each).view(shape)
    # END SOLUTION


# %%
check.blockwise(quantize_blockwise, dequantize_blockwise)

# %% [markdown]
# ## What does rounding cost the model?
#
# Round every linear layer in SmolLM2, except the output head, to four bits. Then compare the loss
# on 120 short conversations before and after rounding. (The weights in our copy of the model have
# already been rounded once, to evenly spaced values in blocks of 32, so the formats may rank
# differently on other models.)

# %%
model, tokenizer = models.load()
linear = [m for name, m in model.named_modules() if type(m) is nn.Linear and name != "lm_head"]
kept = [m.weight.data for m in linear]
chat = tasks.load("chat")["messages"][: hardware.rehearsed("rows", 120)]
texts = tokenizer(["\n".join(m["content"] for m in row) for row in chat])["input_ids"]
n_tokens = torch.tensor([len(ids) - 1 for ids in texts])  # the first token is not predicted


@torch.no_grad()
def text_losses(model):
    """The loss of each text, in nats, summed over its tokens: (120,)."""
    losses = []
    for i in live.progress(range(0, len(texts), 12), "texts"):
        some = texts[i : i + 12]
        rows = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in some]
        logits, targets = loop.answer_logits(model, packing.pack(rows))
        each = F.cross_entropy(logits.float(), targets, reduction="none")
        losses += [text.sum() for text in each.split([len(ids) - 1 for ids in some])]
    return torch.stack(losses).cpu()


# %%
def added(after, before, tokens):
    """Nats per token that `after` adds to `before`, and a 95% bootstrap interval."""
    extra, n = after - before, len(after)
    drawn = torch.randint(n, (2000, n), generator=torch.Generator().manual_seed(0))
    means = extra[drawn].sum(1) / tokens[drawn].sum(1)
    ends = means.quantile(torch.tensor([0.025, 0.975]))
    return (extra.sum() / tokens.sum()).item(), *ends.tolist()


def round_trip(w, codebook, block):
    """Quantize w to 4 bits and dequantize it."""
    codes, absmax = quantize_blockwise(w, codebook, block)
    return dequantize_blockwise(codes, absmax, codebook, w.shape, block)


format_losses = {}  # what you have measured so far: {format: loss of each text}
unrounded = text_losses(model)
print(f"Before rounding: {unrounded.sum() / n_tokens.sum():.2f} nats per token")

# %%
guess_nats = lab.predict("How many nats per token does NF4 add to this model's loss?", None)

# %% [markdown]
# **Try it: codebook and block size.** First compare three codebooks in blocks of 64. Then try
# larger and smaller blocks, such as `[("NF4", 1024), ("NF4", 16)]`.

# %% tags=["experiment"]
formats = [("INT4", 64), ("FP4", 64), ("NF4", 64)]
if lab.experiment("Loss with rounded weights", 15, needs=["4.2", "4.3"]):
    for book, block in formats:
        errors = []
        for m, w in live.progress(list(zip(linear, kept, strict=True)), f"{book}, {block}"):
            m.weight.data = round_trip(w.cpu(), books[book], block).to(w)
            errors.append(((m.weight.data - w).norm() / w.norm()).item())
        name = book if block == 64 else f"{book}, blocks of {block}"
        print(f"{name}: relative error of the weights {sum(errors) / len(errors):.1%}")
        format_losses[name] = text_losses(model)
    for m, w in zip(linear, kept, strict=True):
        m.weight.data = w
    extra = {name: added(loss, unrounded, n_tokens) for name, loss in format_losses.items()}
    display(figures.added_loss(extra, guess_nats))
    guess_nats.compare(extra.get("NF4", [float("nan")])[0])

# %% [markdown]
# NF4 changes the weights least, and FP4 changes them most. Yet we found no clear difference in
# added loss between FP4 and NF4, and INT4 adds about one and a half times as much. The weight error
# alone doesn't predict the loss. In the QLoRA paper, NF4 beats two other 4-bit floats, E2M1 and
# E3M0. Block size matters, too: compared with blocks of 64, blocks of 1,024 add about two thirds
# more loss, and blocks of 16 add about 40% less
# ([evidence](../docs/evidence/04_qlora.md#what-a-format-costs)).
#
# The QLoRA paper calls NF4 information-theoretically optimal: every code should be used equally
# often. In practice, dividing by absmax makes the outer codes up to five times as rare as the
# middle ones ([evidence](../docs/evidence/04_qlora.md#how-often-each-code-is-used)).
#
# ## Down to the bytes

# %% [markdown]
# ### Exercise 4.4 · `pack_nibbles`, `unpack_nibbles`
#
# ●●○ · 7 min · 2 points
#
# Each of your codes still takes a whole byte. A computer can't address half a byte, so you pack two
# codes into each byte. bitsandbytes puts the *first* code of each pair into the high *nibble* (four
# bits) and the second code into the low nibble. If the number of codes is odd, the last low nibble
# is filler and may have any value; bitsandbytes uses 7, the code for zero in NF4.
#
# `unpack_nibbles` returns two codes per byte, including any filler, which the caller removes. Don't
# change the inputs, and don't loop over the codes in Python.


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
if lab.experiment("Compare your bytes with bitsandbytes", 3, needs=["4.2", "4.3", "4.4"]):
    equal = total = 0
    for w in live.progress(kept, "layers"):
        codes, _ = quantize_blockwise(w.cpu(), books["NF4"])
        mine = pack_nibbles(codes.flatten().to(torch.uint8)).flatten()
        theirs = bnb.functional.quantize_4bit(w.cpu(), quant_type="nf4")[0].flatten()
        equal += int((mine == theirs).sum())
        total += len(theirs)
    print(f"{equal:,} of {total:,} bytes are the same")

# %% [markdown]
# ### Exercise 4.5 · `double_quantize`, `bits_per_param`
#
# ●●○ · 10 min · 3 points
#
# A 32-bit scale for every 64 weights costs half a bit per weight, so QLoRA quantizes the scales,
# too. The scales are never negative, so first subtract their mean. Then apply 8-bit absmax
# quantization to the differences, in groups of `group` scales; the last group may be shorter.
# Return `(q, scale, offset)`:
#
# - `q` `(n,)`: int8 from -127 to 127;
# - `scale` `(n_groups,)`: the largest distance from the mean in each group, divided by 127;
# - `offset`: the mean of `absmax`, one number.
#
# Then `absmax[i]` is approximately `q[i] * scale[i // group] + offset`. If all scales are equal,
# the differences are zero, so clamp the divisor to a minimum of 1e-12 or less to avoid NaN. Don't
# change `absmax`. (bitsandbytes does the same with a table of 256 values concentrated near zero.)
#
# `bits_per_param` returns the bits per weight: 4 bits for the code plus the weight's share of the
# scales. Without double quantization, `block` weights share one fp32 scale. With double
# quantization, each block's scale takes 8 bits, and 256 of these scales share one fp32 scale.


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
    """Storage bits per weight, a float: its code and its share of the scales."""
    # BEGIN SOLUTION
    return 4 + (8 / block + 32 / (block * 256) if double_quant else 32 / block)
    # END SOLUTION


# %%
check.doubles(double_quantize, bits_per_param)

# %% [markdown]
# **Try it: the block size.** Smaller blocks cost more bits but reduce the error. How do the bits
# and the error change with double quantization? Try other block sizes.


# %%
def eight_bit(absmax):
    """absmax (n,) after double quantization."""
    q, scale, offset = double_quantize(absmax)
    return q.flatten() * scale.flatten().repeat_interleave(256)[: len(absmax)] + offset


# %% tags=["experiment"]
blocks = [32, 64, 128, 256, 512]
if lab.experiment("Bits against error", 1, needs=["4.2", "4.3", "4.5"]):
    w, nf4 = kept[3].cpu().float().flatten(), books["NF4"]
    points = {"fp32 scales": [], "8-bit scales": []}
    for block in blocks:
        codes, absmax = quantize_blockwise(w, nf4, block)
        scales = {"fp32 scales": absmax, "8-bit scales": eight_bit(absmax.flatten())}
        for name, peaks in scales.items():
            back = dequantize_blockwise(codes, peaks, nf4, w.shape, block)
            bits = bits_per_param(block, double_quant=name == "8-bit scales")
            points[name].append((block, bits, ((back - w).norm() / w.norm()).item()))
    display(figures.block_sizes(points))

# %% [markdown]
# Double quantization saves bits and hardly changes the error. With blocks of 64, it saves 0.37 bits
# per weight, or 3 GB for a 70B model. Blocks of 32 with 8-bit scales are better than blocks of 64
# with fp32 scales in both respects.
#
# ## The layer that trains

# %% [markdown]
# ### Exercise 4.6 · `QLoRALinear`
#
# ●●● · 15 min · 4 points
#
# Write a linear layer for QLoRA. The layer stores $W$ as codes and decodes them when needed. Follow
# three rules:
#
# 1. Store the factors as `nn.Parameter`s named `A` and `B`. Nothing else trains, so register the
#   other tensors as buffers.
# 2. `forward(x)` returns $W x + \frac{\alpha}{r} B A x$, with $W$ decoded by `dequantize_blockwise`
#   in blocks of 64. `x`, `A` and `B` are in fp32, and `x` can have any leading dimensions. The
#   gradients of `x`, `A` and `B` must equal those of the dense layer.
# 3. After `forward`, the codes are the only thing as large as $W$ that stays in memory: `backward`
#    decodes $W$ again.
#
# Rule 3 is the hardest. If you write `x @ W.T` with the decoded $W$, autograd keeps $W$ until
# `backward`, because it needs $W$ for the gradient of $x$, $dY\, W$. If every layer does that, the
# whole decoded model is back in memory. A `torch.autograd.Function` lets you choose what to keep:
# here, the codes, at one byte per weight. Fill in `DecodedProduct`, or satisfy rule 3 in another
# way.
#
# <details><summary>Hint</summary>
#
# `ctx.save_for_backward(…)` stores tensors, and `ctx.saved_tensors` returns them. You can store
# other values as attributes of `ctx`. `backward` returns one value per argument of `forward`: the
# argument's gradient, or `None` if it has none. Call the function as `self.DecodedProduct.apply(x,
# …)`. Outside the function, write the adapter as usual.
# </details>


# %%
class QLoRALinear(nn.Module):
    """A frozen matrix of 4-bit codes plus the trainable update (alpha / r) B A."""

    class DecodedProduct(torch.autograd.Function):
        """x @ W.T, where W is decoded in forward and again in backward."""

        @staticmethod
        def forward(ctx, x, codes, absmax, codebook, shape):
            """x (..., d_in); codes, absmax, codebook and shape of W -> (..., d_out)."""
            # BEGIN SOLUTION
            ctx.save_for_backward(codes, absmax, codebook)
            ctx.shape = shape
            return x @ dequantize_blockwise(codes, absmax, codebook, shape).T
            # END SOLUTION

        @staticmethod
        def backward(ctx, dY):
            """dY (..., d_out) -> the gradient of x, and None for the other four arguments."""
            # BEGIN SOLUTION
            W = dequantize_blockwise(*ctx.saved_tensors, ctx.shape)
            return dY @ W, None, None, None, None
            # END SOLUTION

    def __init__(self, codes, absmax, codebook, shape, A, B, alpha):
        """shape (d_out, d_in), A (r, d_in), B (d_out, r)."""
        super().__init__()
        # BEGIN SOLUTION
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.register_buffer("codebook", codebook)
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.shape, self.scaling = shape, alpha / A.shape[0]
        # END SOLUTION

    def forward(self, x):
        """x (..., d_in) -> (..., d_out)."""
        # BEGIN SOLUTION
        y = self.DecodedProduct.apply(x, self.codes, self.absmax, self.codebook, self.shape)
        return y + self.scaling * (x @ self.A.T) @ self.B.T
        # END SOLUTION


# %%
check.qlora(QLoRALinear)

# %% [markdown]
# Compare your layer with bitsandbytes' `Linear4bit`, and count the bytes that autograd keeps for
# `backward`.


# %%
def kept_bytes(product, x, own):
    """Bytes that autograd keeps for backward after product(x), besides x and `own`."""
    known, found = {t.data_ptr() for t in [x, *own]}, {}

    def note(tensor):
        if tensor.data_ptr() not in known:
            found[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        product(x)
    return sum(found.values())


# %% tags=["experiment"]
if lab.experiment("Compare your layer with bitsandbytes", 1, needs=["4.2", "4.3", "4.6"]):
    W = model.model.layers[0].mlp.down_proj.weight.detach().cpu().float()
    codes, absmax = quantize_blockwise(W, books["NF4"])
    A, B = torch.randn(8, W.shape[1]), torch.zeros(W.shape[0], 8)
    mine = QLoRALinear(codes, absmax, books["NF4"], W.shape, A, B, alpha=16)
    theirs = bnb.nn.Linear4bit(*W.shape[::-1], bias=False, quant_type="nf4")
    how = {"quant_type": "nf4", "compress_statistics": False, "requires_grad": False}
    theirs.weight = bnb.nn.Params4bit(W, **how).to("cpu")
    x = torch.randn(64, W.shape[1], requires_grad=True)
    outputs = [layer(x) for layer in (mine, theirs)]
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]
    for name, (a, b) in {"output": outputs, "gradient of x": gradients}.items():
        print(f"{name}: yours and theirs differ by {(a - b).norm() / b.norm():.1e}")
    decoded = dequantize_blockwise(codes, absmax, books["NF4"], W.shape)
    plain = kept_bytes(lambda x: x @ decoded.T, x, [])
    yours = kept_bytes(mine, x, [*mine.parameters(), *mine.buffers()])
    print(f"kept for backward: {plain:,} bytes by a plain product, {yours:,} by your layer")

# %% [markdown]
# Besides `x` and its own tensors, your layer keeps only $A x$, eight numbers per token. Decoding
# the weights twice costs time. On our two-core VM, forward and backward take 8% longer with
# bitsandbytes' QLoRA than with LoRA at 16 commands per step, and 34% longer at one. In published
# runs on an A100, a QLoRA step takes 51% to 62% longer
# ([evidence](../docs/evidence/04_qlora.md#time)).
#
# ## Train on 4 bits
#
# transformers can quantize a model while loading it. Four arguments turn on 4-bit loading, select
# NF4 (the default is FP4), turn on double quantization, and set the compute dtype. PEFT then adds
# the adapter.


# %%
in_4_bits = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=lab.dtype,
)


def load_base(packed):
    """Load SmolLM2, with its linear layers in NF4 if `packed` is true."""
    how = {"quantization_config": in_4_bits, "device_map": {"": lab.device}}
    return models.load(**how if packed else {})[0]


def adapted(packed):
    """The model with rank-8 LoRA on all linear layers, ready to train."""
    torch.manual_seed(lab.seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(load_base(packed), config).train()


# %% [markdown]
# Now train the same initial adapter on the same batches of `home`, once on the 16-bit base (*LoRA*)
# and once on the 4-bit base (*QLoRA*).


# %%
home, unseen = tasks.load("home"), tasks.draw("home", "test", 60)


def train(model, title, steps=20, make=torch.optim.AdamW, words=None):
    """Train the adapter on `home` in place; return its curve. words: another tokenizer."""
    curve = live.Curve(title, steps)
    batches = loop.batches(home, words or tokenizer, 16, steps)
    for loss in loop.train(model, batches, steps, 2e-3, make):
        curve.add(loss)
    return curve


# %% tags=["experiment"]
if lab.experiment("LoRA and QLoRA learn `home`", 55, needs=["4.6"]):
    curves, adapters, said = {}, {}, {}
    for name, packed in {"LoRA": False, "QLoRA": True}.items():
        tuned = adapted(packed)
        size = sum(t.nbytes for t in [*tuned.parameters(), *tuned.buffers()]) / 1e6
        print(f"{name}: {size:.0f} MB of weights, not counting scales")
        curves[name] = train(tuned, f"{name} on home").losses
        adapters[name] = get_peft_model_state_dict(tuned)
        said[name] = generation.answers(tuned.eval(), tokenizer, unseen["messages"][:3])
    display(figures.losses(curves))
    said = {"base model": generation.answers(model, tokenizer, unseen["messages"][:3])} | said
    display(compare_answers(unseen["text"], unseen["answer"], said, rows=3))

# %% [markdown]
# Why isn't the packed model a quarter of the size of the 16-bit model? The embedding, which is also
# the output head, is not packed, and it has 28 million of the 135 million parameters. In
# Llama-2-7B, the embedding and the head make up 4% of the parameters.
#
# QLoRA's loss starts higher because of the rounding but soon comes close to LoRA's. Does the gap
# close because the adapters learn the task, or because QLoRA's adapter adjusts to the rounded base?
# To find out, move each adapter to the other base.

# %%
guess_moved = lab.predict(
    "QLoRA's adapter has a held-out loss of about 0.35 on NF4. What is it on the 16-bit base?", None
)

# %% tags=["experiment", "cover"]
if lab.experiment("Each adapter on each base", 10, needs=["4.6"]):
    crossed = {}
    for trained, adapter in adapters.items():
        for base, packed in {"16 bits": False, "NF4": True}.items():
            here = adapted(packed)
            set_peft_model_state_dict(here, adapter)
            crossed[trained, base] = loop.held_out_loss(here, tokenizer, unseen)
    display(figures.crossed(crossed))
    guess_moved.compare(crossed["QLoRA", "16 bits"])

# %% [markdown]
# Each adapter is best on the base it was trained on. The same is true with three other seeds
# ([evidence](../docs/evidence/04_qlora.md#each-adapter-on-each-base)). So both explanations hold.
# In those runs, rounding costs 0.36 nats per token without an adapter. With LoRA's adapter, which
# has learned the task but never saw NF4, it costs half as much (0.16 to 0.19). With QLoRA's
# adapter, which has also adjusted to the rounded base, the loss ends only 0.01 to 0.04 above
# LoRA's. Larger models lose even less: in the [QLoRA paper](https://arxiv.org/abs/2305.14314),
# LLaMA models of 7 to 65 billion parameters scored about the same on MMLU after LoRA and after
# QLoRA.
#
# Merging a QLoRA adapter into the original 16-bit weights also moves it to another base. Lab 6
# measures the cost.
#
# ## Will it fit?

# %% [markdown]
# ### Exercise 4.7 · `training_bytes`
#
# ●●○ · 7 min · 2 points
#
# Estimate memory needs before you rent a GPU. This rule of thumb gives the bytes for weights,
# gradients and Adam's states, which don't depend on batch size or sequence length:
#
# | `method` | weights | gradients | Adam's two moments |
# |---|---|---|---|
# | `"full"` | fp32 | fp32 | fp32 |
# | `"full_bf16"` | bf16 | bf16 | bf16 |
# | `"lora"` | base in bf16, adapter in fp32 | adapter only, fp32 | adapter only, fp32 |
# | `"qlora"` | base in NF4, adapter in fp32 | as for LoRA | as for LoRA |
#
# A number takes 4 bytes in fp32 and 2 bytes in bf16. For NF4 with double quantization, use the bits
# per weight from exercise 4.5, and treat the whole base as packed. `n_params` is the number of
# parameters in the base, and `n_trainable` is the number in the adapter. Full fine-tuning has no
# adapter: all parameters train, so `n_trainable` equals `n_params`.


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
# Now simulate a training step of Llama-2-7B with one sequence of 512 tokens and rank 16 on all
# linear layers. PEFT and bitsandbytes build the real model with fake tensors, which have shapes but
# no data. A laptop can therefore simulate a model of any size. (Here, full fine-tuning peaks during
# the optimizer step, when the activations have already been freed.)

# %% tags=["experiment"]
if lab.experiment("A step of Llama-2-7B", 2, needs=["4.7"]):
    usual = Settings(rank=16, targets="all-linear", batch=1, seq=512)
    ways = {
        "full, bf16": usual.but(method="full", dtype="bfloat16"),
        "LoRA": usual.but(method="lora"),
        "QLoRA": usual.but(method="qlora"),
    }
    keys = dict(zip(ways, ["full_bf16", "lora", "qlora"], strict=True))
    steps = {name: simulate(configs.find("llama-2-7b"), how) for name, how in ways.items()}
    for name, step in steps.items():
        sizes = training_bytes(step.n_params, step.n_trainable, keys[name])
        rule = sum(sizes[part] for part in ("weights", "gradients", "optimizer"))
        peak = f"simulated peak {step.peak / 1e9:.1f} GB"
        print(f"{name}: your rule {float(rule) / 1e9:.1f} GB, {peak}")
    display(figures.step_memory({name: step.by_category for name, step in steps.items()}))

# %% [markdown]
# QLoRA shrinks only the weights that it packs, by a factor of 16 / 4.127 = 3.9. Gradients and
# Adam's states were already small, thanks to LoRA. Activations don't shrink, because the same
# tokens pass through the same layers in 16 bits. To shrink activations, use *gradient
# checkpointing*, which drops most activations and recomputes them in the backward pass.
#
# The simulation leaves out the CUDA context and memory fragmentation. Published QLoRA peaks are up
# to 27% higher than simulated peaks. They come from runs with a bitsandbytes bug that has since
# been fixed; if the simulation includes it, the difference is 11% ([memory](../docs/memory.md)).
#
# ### 70 billion parameters on one card
#
# **Try it: make 70B fit.** Edit the list `tries` until the settings you want fit into 48 GB. Try
# other values of `seq`, `batch` and `rank`, and `optim="paged_adamw_8bit"`, which stores Adam's
# states in 8 bits and moves them to the CPU when the GPU is full.

# %% tags=["experiment"]
tries = [dict(), dict(checkpointing=True), dict(checkpointing=True, batch=8)]
if lab.experiment("QLoRA of Llama-2-70B", 3, needs=["4.7"]):
    peaks = {}
    for changes in live.progress(tries, "settings"):
        name = "\n".join(f"{key}={value}" for key, value in changes.items()) or "QLoRA alone"
        how = usual.but(method="qlora", **changes)
        peaks[name] = simulate(configs.find("llama-2-70b"), how).by_category
    display(figures.fits(peaks, card=48))

# %% [markdown]
# In the simulation, "QLoRA trains a 70B model on one 48 GB card" is true with checkpointing and few
# tokens per step: 512 tokens leave a margin of 20% (dotted), while 4,096 tokens don't. (In GPU
# specs, GB means GiB, 2^30 bytes.)
#
# ## With a GPU
#
# The next two cells need a CUDA GPU. The first cell uses a paged optimizer to train the largest
# SmolLM2 that fits on your GPU.

# %% tags=["experiment"]
known = (
    "On a GPU, this cell trains a SmolLM2 of up to 1.7 billion parameters and prints time, loss "
    "and peak memory. With up to 1,304 tokens on an A100, litgpt's authors measured 13.84 GB for "
    "Llama-2-7B in NF4 with double quantization and 21.30 GB in bf16."
)
if lab.gpu("QLoRA with paged AdamW", known, needs=["4.6"]):
    large = models.default()
    how = {"quantization_config": in_4_bits, "device_map": {"": lab.device}}
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    found, words = models.load(large, **how)
    tuned = get_peft_model(found, config).train()
    torch.cuda.reset_peak_memory_stats()
    paged = train(tuned, f"QLoRA of {large}", make=bnb.optim.PagedAdamW32bit, words=words)
    peak = torch.cuda.max_memory_allocated() / 1e9
    print(f"{paged.seconds[-1]:.1f} s, loss {paged.losses[-1]:.3f}, peak {peak:.2f} GB")

# %% [markdown]
# The second cell builds Llama-2-7B on the GPU with random weights, which take as much memory as
# trained weights. It trains for two steps and compares the peak memory with the simulation.

# %% tags=["experiment"]
known = (
    "On a GPU, this cell compares the simulated peak of Llama-2-7B with the allocator's. Published "
    "peaks of QLoRA are up to 27% above the simulation, 11% if it includes an old bug "
    "(docs/memory.md)."
)
if lab.gpu("Predict 7 billion, then measure", known, needs=["4.7"]):
    from labkit.memory import real

    tuned = paged = None  # free the GPU memory of earlier cells
    dtype = str(lab.dtype).removeprefix("torch.")
    settings = usual.but(method="qlora", checkpointing=True, dtype=dtype)
    step = simulate(configs.find("llama-2-7b"), settings)
    held = torch.cuda.memory_allocated()
    peak = real.peak_of_steps(configs.find("llama-2-7b"), settings, "cuda")
    allocated = peak.allocated_bytes - held
    title = f"Simulated {step.peak / 1e9:.2f} GB, allocated {allocated / 1e9:.2f} GB"
    rows = {"simulated": step.by_category, "on the card": peak.by_category}
    display(memory_plots.bars(rows, title))

# %% [markdown]
# ## Other formats you will meet
#
# **8 bits.** `BitsAndBytesConfig(load_in_8bit=True)` stores weights in int8 with one scale per row
# and keeps outlier activations in 16 bits ([LLM.int8](https://arxiv.org/abs/2208.07339)). The int8
# weights take twice the memory of NF4 weights but lose less precision.
#
# **GPTQ** ([2022](https://arxiv.org/abs/2210.17323)) rounds a weight matrix column by column and
# adjusts the remaining columns so that the layer's *output* changes little on calibration text.
# GPTQ is mostly used for serving. To use it with transformers, install `gptqmodel` and `optimum`,
# and pass `quantization_config=GPTQConfig(bits=4, dataset="c4", tokenizer=tokenizer)`.
#
# **AWQ** ([2023](https://arxiv.org/abs/2306.00978)) scales up the weight columns that multiply
# large activations, so that rounding costs these columns less precision. The `AWQModifier` in
# llm-compressor quantizes a model with AWQ.
#
# ## Take it with you
#
# This script runs QLoRA with the usual libraries. TRL turns on gradient checkpointing by default,
# so `SFTTrainer` makes the frozen model's inputs require gradients (lab 3). It also converts the
# adapter to bf16. Save the script as `train_qlora.py` and insert your own model and rows.
#
# ```python
# import torch
# from datasets import Dataset
# from peft import LoraConfig
# from transformers import AutoModelForCausalLM, BitsAndBytesConfig
# from trl import SFTConfig, SFTTrainer
#
# MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# ROWS = [("Turn off the kitchen lights", '{"intent": "HassTurnOff", "area": "kitchen"}')] * 64
#
# def message(role, text):
#     return [{"role": role, "content": text}]
#
# rows = [{"prompt": message("user", q), "completion": message("assistant", a)} for q, a in ROWS]
# nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
# nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **nf4)
# model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=nf4)
# lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
# settings = SFTConfig("my-lora", learning_rate=1e-3, per_device_train_batch_size=8, bf16=False)
# trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), peft_config=lora)
# trainer.train()
# trainer.save_model()  # saves only the adapter
# ```

# %% [markdown]
# ### Exercise 4.8 · Quiz
#
# ●○○ · 4 min · 3 points
#
# Only your first answer to each question counts. Then read the explanation.
#
# **q1. How does a layer with NF4 weights compute its output?**
#
# - (a) It looks up its codes, multiplies the values by their scales, and then computes the usual
#   product in 16 bits.
# - (b) It multiplies its codes by the codes of the activations and adds up the products in 16 bits.
# - (c) It unpacks its weights to 16 bits when training begins and packs them again at the end.
# - (d) It trains its 4-bit codes along with a 16-bit adapter.
#
# **q2. You switch from LoRA to QLoRA and change nothing else. What gets smaller?**
#
# - (a) The base weights and the activations: both shrink to about a quarter of their size.
# - (b) The gradients and optimizer states, because they are quantized like the weights.
# - (c) The packed weights. Activations, gradients and optimizer states stay the same.
# - (d) The time per step, because only a quarter of the bytes must be read.
#
# **q3. One table says that full fine-tuning of 7 billion parameters takes 56 GB; another table says
# 112 GB. Which table is right?**
#
# - (a) The first: gradients are freed during backward, so they don't count.
# - (b) Both: training takes 8 bytes per parameter if everything is in bf16, and 16 with fp32
#   weights or an fp32 copy of bf16 weights.
# - (c) The second: bf16 isn't precise enough for training, so nobody trains with 8 bytes per
#   parameter.
# - (d) Neither: the memory for weights, gradients and states depends on batch size and sequence
#   length.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "a", "q2": "c", "q3": "b"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - A 4-bit weight is a code plus a share of a scale: 4.127 bits in total with double quantization.
# - NF4 places its values where weights are dense. Small blocks limit the damage from an outlier.
# - A QLoRA layer decodes its weights in the forward pass and again in the backward pass. Otherwise,
#   autograd would keep the decoded weights and undo the savings.
# - QLoRA shrinks only the weights that it packs, not the embeddings, head or activations.
# - An adapter fits the base weights that it was trained on, rounded or not. On the other base, its
#   loss was higher.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["4.2", "4.3", "4.4", "4.6"]):
    lab.headline(
        f"your NF4: {equal / total:.2%} of packed bytes match bitsandbytes; held-out loss "
        f"{crossed['LoRA', '16 bits']:.2f} with LoRA, {crossed['QLoRA', 'NF4']:.2f} with QLoRA; "
        f"QLoRA's adapter on the 16-bit base: {crossed['QLoRA', '16 bits']:.2f}"
    )
