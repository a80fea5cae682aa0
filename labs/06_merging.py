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
# # Lab 6 · Merge and combine
#
# You have trained an adapter with QLoRA. How do you get a single plain model? You can merge the
# adapter into the 16-bit original, or into the dequantized weights that it was trained on. You will
# try both and measure which one reproduces the model you trained. Then you will combine two
# adapters into one.
#
# {{ time }}

# %%
import labkit

lab, check = labkit.start("06_merging")

# %%
import math

import torch
from bitsandbytes import functional as bnb
from gguf import GGMLQuantizationType, quants
from IPython.display import display
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig

from labkit import live, measured, tasks
from labkit.figures import lab06 as figures
from labkit.plots import compare_answers
from labkit.training import generation, loop, models
from labkit.training.scoring import said

# %% [markdown]
# ## Two adapters
#
# Train two adapters on the 4-bit base model from lab 4. The `home` adapter turns spoken commands
# into JSON. The `tickets` adapter sorts customer tickets into fifteen categories.


# %%
OPTIONS = {"home": {}, "tickets": {"groups": ("delivery", "orders", "returns")}}


def in_4_bits():
    """The base model with its linear layers in NF4."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=lab.dtype
    )
    return models.load(quantization_config=config, device_map={"": lab.device})[0]


def train(task, steps, learning_rate=5e-3):
    """Train rank-8 LoRA on all linear layers of the 4-bit base; return the PeftModel."""
    torch.manual_seed(lab.seed + 100 * list(OPTIONS).index(task))  # each task gets its own A
    model = get_peft_model(in_4_bits(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    rows = tasks.load(task, "train", **OPTIONS[task])
    batches = loop.batches(rows, tokenizer, 16, steps)
    losses = loop.train(model, batches, steps, learning_rate)
    for _ in live.progress(losses, f"QLoRA on {task}", steps):
        pass
    return model.eval()


def factors(model):
    """{layer name: (A, B)} of a PeftModel, in fp32. B includes the scaling alpha / r."""
    found = {}
    for name, layer in model.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            A, B = (part["default"].weight.data.cpu() for part in (layer.lora_A, layer.lora_B))
            found[name] = A.float(), layer.scaling["default"] * B.float()
    return found


# %% tags=["experiment"]
if lab.experiment("QLoRA learns two tasks", 95):
    base, tokenizer = models.load()
    trained = train("home", steps=50)
    pairs = {"home": factors(trained), "tickets": factors(train("tickets", steps=20))}
    commands = tasks.draw("home", "test", 60)
    answers = {
        "base model": generation.answers(base, tokenizer, commands["messages"][:3]),
        "QLoRA": generation.answers(trained, tokenizer, commands["messages"][:3]),
    }
    display(compare_answers(commands["text"], commands["answer"], answers, rows=3))

# %% [markdown]
# ## Merge
#
# An unmerged adapter adds two small matrix products to every layer. If you never need to remove the
# adapter, add its update to the weights, as you did in lab 2. When you save the merged weights, the
# dtype matters.

# %% [markdown]
# ### Exercise 6.1 · `merged_weight`
#
# ●○○ · 4 min · 1 point
#
# Return $W + \frac{\alpha}{r} B A$ as a new tensor. `W` is often in bf16, while `A` and `B` are in
# fp32. Compute the sum in fp32 and convert it only once, to the dtype of `W`. Don't change the
# inputs.


# %%
def merged_weight(W, A, B, alpha):
    """W (d_out, d_in), A (r, d_in), B (d_out, r) -> merged weight (d_out, d_in), dtype of W."""
    # BEGIN SOLUTION
    update = (alpha / A.shape[0]) * B.float() @ A.float()
    return (W.float() + update).to(W.dtype)
    # END SOLUTION


# %%
check.merges(merged_weight)

# %% [markdown]
# "Merging doesn't change the model." In theory, that's true. In practice, an update is small
# compared with the weights, and rounding the sum to 16 bits or fewer loses part of the update. To
# see how much that matters, measure how much merging changes the predictions.

# %% [markdown]
# ### Exercise 6.2 · `kl_divergence`
#
# ●●○ · 8 min · 2 points
#
# Use the Kullback-Leibler (KL) divergence to compare two models' predictions, $p$ and $q$. For one
# token, it is
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_v p_v \,(\log p_v - \log q_v),$$
#
# summed over the vocabulary, in nats. If the next token is drawn from $p$, the divergence is how
# much higher $q$'s average loss is than $p$'s. Return the mean over all tokens as a Python float.
# The logits are in fp32 and can have any leading dimensions. Your result must be right even for
# large logits.
#
# <details><summary>Hint</summary>
#
# If a probability underflows to zero, its logarithm is infinite. PyTorch has a function that
# computes log-probabilities directly from logits.
# </details>


# %%
def kl_divergence(logits_p, logits_q):
    """logits_p, logits_q (..., vocab) -> mean KL(p||q) per token in nats, a float."""
    # BEGIN SOLUTION
    log_p, log_q = logits_p.float().log_softmax(-1), logits_q.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    # END SOLUTION


# %%
check.divergence(kl_divergence)

# %% [markdown]
# ## What survives rounding

# %% [markdown]
# ### Exercise 6.3 · `arrives`
#
# ●●○ · 10 min · 2 points
#
# A file format can store only certain values, its *grid*. The function `store` rounds a matrix to
# the grid and returns what you would read back from the file, in fp32 or in 16 bits. To measure how
# much of an update survives, project the change in the stored weights onto the update:
#
# $$\frac{\langle\, \mathrm{store}(W + \Delta W) - \mathrm{store}(W),\ \Delta W \,\rangle}
# {\|\Delta W\|^2}$$
#
# $\langle X, Y \rangle$ is the sum of all $X_{ij} Y_{ij}$, and $\|\cdot\|$ is the Frobenius norm.
# The result is 1 if the whole update survives, 0 if no weight moves, and above 1 if weights move
# too far. `W` and `dW` may be in 16 bits, so compute in fp32 throughout. Return a Python float.
#
# <details><summary>Hint</summary>
#
# In bf16, 1 + 0.001 rounds to 1, so convert `W` and `dW` to fp32 before you add them. Also convert
# the results of `store` before you subtract them.
# </details>


# %%
def arrives(W, dW, store):
    """W, dW (d_out, d_in), store (matrix -> matrix on a grid) -> share of dW that survives."""
    # BEGIN SOLUTION
    W, dW = W.float(), dW.float()
    moved = store(W + dW).float() - store(W).float()
    return ((moved * dW).sum() / dW.square().sum()).item()
    # END SOLUTION


# %%
check.survives(arrives)

# %% [markdown]
# Values on the bf16 grid have 8 significant bits at any magnitude. `Q8_0`, a llama.cpp format, has
# 255 evenly spaced values per block of 32 weights. NF4 has the sixteen values from lab 4.


# %%
def nf4(W):
    """The matrix after a round trip through NF4."""
    return bnb.dequantize_4bit(*bnb.quantize_4bit(W, blocksize=64, quant_type="nf4"))


def q8_0(W):
    """The matrix after a round trip through GGUF's Q8_0."""
    kind = GGMLQuantizationType.Q8_0
    packed = quants.quantize(W.float().cpu().numpy(), kind)
    return torch.from_numpy(quants.dequantize(packed, kind))


grids = {"bf16": lambda W: W.bfloat16(), "Q8_0": q8_0, "NF4": nf4}

# %% [markdown]
# Look at one weight and its update on each grid.


# %%
def one_weight(W, dW):
    """(row, column) of a weight near 0.7 times W's RMS whose update is near dW's RMS."""
    distance = (W.abs() / W.square().mean().sqrt() - 0.7).abs()
    distance += (dW / dW.square().mean().sqrt() - 1).abs()
    return divmod(distance.argmin().item(), W.shape[1])


def values_near(store, W, i, j, reach):
    """The values within `reach` of W[i, j] that `store` can return."""
    rows = W[i].repeat(4001, 1)
    rows[:, j] += torch.linspace(-reach, reach, 4001)
    return store(rows)[:, j].float().unique()


# %% tags=["experiment"]
if lab.experiment("One weight, one update, three grids", 1, needs=["6.3"]):
    name = "model.layers.10.mlp.down_proj"
    W, (A, B) = base.get_submodule(name).weight.detach().cpu().float(), pairs["home"][name]
    dW, on_grids = B @ A, {}
    i, j = one_weight(W, dW)
    for grid, store in grids.items():
        start = store(W).float()
        values = values_near(store, start, i, j, reach=40 * dW[i, j].abs().item())
        landed = values[(values - start[i, j] - dW[i, j]).abs().argmin()]
        on_grids[grid] = values.tolist(), start[i, j].item(), landed.item()
    display(figures.number_line(on_grids, dW[i, j].item()))

# %% [markdown]
# The gray ticks are the grid's values. A sum that lands in the *dead zone* is rounded back to the
# old weight. On the bf16 grid, the update is larger than a step, so it survives. On the NF4 grid,
# it is a small fraction of a step, so the weight doesn't move.
#
# **Try it: the size of the update.** The next cell rounds a whole layer to each grid, then adds
# updates of several sizes. The dashed line is for the original weights, which don't lie on the NF4
# grid. The dotted line marks the size of the `home` update. Guess first, then add your own sizes.

# %%
guess_arrives = lab.predict("If |dW| is 0.1% of |W|, what percentage of dW survives in bf16?", None)

# %% tags=["experiment"]
sizes = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]  # |dW| / |W|
if lab.experiment("How much arrives, by the size of the update", 1, needs=["6.3"]):
    unit, shares = W.norm() / dW.norm() * dW, {}
    for grid, store in live.progress(grids.items(), "grids", len(grids)):
        there = store(W).float()  # on the grid
        shares[grid] = [100 * arrives(there, size * unit, store) for size in sizes]
    shares["NF4, weights between values"] = [100 * arrives(W, size * unit, nf4) for size in sizes]
    home = (dW.norm() / W.norm()).item(), 100 * arrives(nf4(W), dW, nf4)
    display(figures.arrivals(sizes, shares, home, guess_arrives))
    print(f"NF4's rounding error is {(nf4(W) - W).norm() / dW.norm():.1f} times as large as dW")
    guess_arrives.compare(100 * arrives(W.bfloat16().float(), 1e-3 * unit, grids["bf16"]))

# %% [markdown]
# If the weights already lie on a grid, updates that are small compared with *that grid's* steps are
# lost. In this layer, half of an update is lost when $\|\Delta W\| / \|W\|$ is about 6% in NF4,
# 0.45% in `Q8_0` and 0.08% in bf16. (At the left, NF4's line levels off near 1/64: the largest of
# each block's 64 weights is stored exactly, as `absmax`.)
#
# The dashed line's weights lie *between* the NF4 values. The update pushes a few of them across a
# rounding boundary, and each of those jumps by a whole step. Their sum is roughly the update, plus
# noise. The same happens when you convert a merged 16-bit model to `Q8_0`.
#
# Print $\|\Delta W\| / \|W\|$ before you merge into bf16. At 2%, as in this layer, nearly the whole
# update survives. At 0.1%, about 40% is lost, so store the sum in fp32 and load it in fp32, or keep
# the adapter separate.
#
# ## Merge a QLoRA adapter

# %% [markdown]
# ### Exercise 6.4 · `merge_quantized`
#
# ●●○ · 8 min · 2 points
#
# Merge a QLoRA adapter into exactly the 4-bit weights that it was trained on. Decode the weights,
# add $\frac{\alpha}{r} BA$, and return an fp32 matrix of shape `shape`.
#
# `W4` contains one unpacked uint8 code per weight, flattened row by row. Each block of 64
# consecutive codes shares one entry of `absmax`. The last block may be shorter. To decode a weight,
# look up its code in `codebook` and multiply by its block's `absmax`. Don't change the inputs.
#
# <details><summary>Hint</summary>
#
# Convert the codes to `torch.long` before you index `codebook` with them. `repeat_interleave` gives
# each weight a copy of its `absmax`. Slice off any extra copies.
# </details>


# %%
def merge_quantized(W4, absmax, codebook, A, B, alpha, shape):
    """W4 (n,) uint8, absmax (ceil(n / 64),), codebook (16,) -> merged fp32 weight of `shape`."""
    # BEGIN SOLUTION
    scales = absmax.repeat_interleave(64)[: W4.numel()]
    W = (codebook[W4.long()] * scales).reshape(shape)
    return W.float() + (alpha / A.shape[0]) * B.float() @ A.float()
    # END SOLUTION


# %%
check.merges_quantized(merge_quantized)

# %% [markdown]
# Merge the `home` adapter in four ways, and compare each result with the model you trained, on 60
# new commands:
#
# - into the *dequantized* base (the weights that the adapter was trained on), with the sum stored
#   in 16 bits;
# - into the *original* weights, not rounded to NF4 (our copy isn't pristine: it was once rounded to
#   another 4-bit format);
# - into the dequantized base, with the sum *rounded to NF4* again, as PEFT's `merge_and_unload`
#   does on a 4-bit model;
# - into the original weights, with the sum rounded to NF4.


# %%
def dequantized(W, A, B):
    """Round W to NF4 and add the update in fp32, with your `merge_quantized`."""
    packed, state = bnb.quantize_4bit(W, blocksize=64, quant_type="nf4")
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()[: W.numel()]
    alpha = len(A)  # alpha = r, because B already includes the scaling
    return merge_quantized(codes, state.absmax, state.code, A, B, alpha, W.shape)


def original(W, A, B):
    """Add the update to the 16-bit weight, with your `merged_weight`."""
    return merged_weight(W, A, B, alpha=len(A))


def changed(change, pairs):
    """A plain model whose weight W is change(W, A, B) in each layer of `pairs`."""
    model = models.load()[0]
    for name, (A, B) in pairs.items():
        weight = model.get_submodule(name).weight
        weight.data = change(weight.data.cpu().float(), A, B).to(weight)
    return model


# %%
guess_merge = lab.predict(
    "After merging into the original, how many of 60 answers are right?", None
)

# %% tags=["experiment", "cover"]
if lab.experiment("One adapter, four merges", 25, needs=["6.1", "6.2", "6.4"]):
    hits, _, wanted = said(trained, tokenizer, commands)
    right, kls = {"as trained": sum(hits)}, {}
    ways = {
        "dequantized, 16 bits": dequantized,
        "original, 16 bits": original,
        "dequantized, then NF4": lambda *data: nf4(dequantized(*data)),
        "original, then NF4": lambda *data: nf4(original(*data)),
        "no adapter": lambda W, A, B: dequantized(W, A, 0 * B),
    }
    for way, change in live.progress(ways.items(), "merges", len(ways)):
        hits, _, logits = said(changed(change, pairs["home"]), tokenizer, commands)
        right[way], kls[way] = sum(hits), kl_divergence(wanted, logits)
    display(figures.merges(kls, right, measured.by_run("merging").loc["lab"], guess_merge))
    guess_merge.compare(right["original, 16 bits"])

# %% [markdown]
# Merging into the dequantized base gives you the model you trained, apart from rounding to 16 bits.
# With three other seeds, merging into the original costs 7 to 18 right answers out of 60
# ([evidence](../docs/evidence/06_merging.md#the-merges)). The adapter was trained with NF4's
# rounding error (lab 4), and the original weights don't have it. In the layer you looked at, this
# error is about five times as large as the update, but it does less: unlike the update, it wasn't
# trained to change answers.
#
# If you round the dequantized merge to NF4 again, most sums land in dead zones. Part of the update
# survives (compare the KL with "no adapter"), but no answer is right. The surprise is the merge
# into the *original*: with every seed, rounding it to NF4 brings the model *closer* to the one you
# trained. Because the original weights lie between the grid's values, rounding doesn't erase the
# update. After rounding, most weights again have the rounding error that they had while the adapter
# was trained.
#
# > **To get the model you trained, merge a QLoRA adapter into the dequantized base, and store the
# > sum in 16 bits.** If the file must be NF4, keep the adapter separate.
#
# How much a second rounding costs depends on the ratio of the update to NF4's rounding error (a
# fifth here). In longer runs with another recipe, the ratio reached 0.7, and rounding again hardly
# changed the number of right answers. In those runs, the choice of base hardly mattered either
# ([evidence](../docs/evidence/06_merging.md#from-short-to-long-training)). Unsloth considers the
# original the better base for most models, but uses the dequantized base for Falcon-H1, where
# merging into the original gave a broken model ([pull request
# 810](https://github.com/unslothai/unsloth-zoo/pull/810)). So compare your merges on held-out data
# before you ship.
#
# ## Combine

# %% [markdown]
# ### Exercise 6.5 · `combine_linear`, `combine_cat`
#
# ●●● · 12 min · 3 points
#
# Can you combine two adapters into one? The natural choice is the weighted sum of their updates,
# $w_1 B_1 A_1 + w_2 B_2 A_2$. You need this sum as a single pair of matrices.
#
# `adapters` is a list of pairs `(A, B)`. Each pair's update is $BA$: the scaling $\alpha / r$ is
# already included. Return one pair `(A, B)` of new tensors, and don't change the inputs. A weight
# may be 0.
#
# - `combine_cat` concatenates the factors, so that the product is exactly $\sum_i w_i B_i A_i$.
#   Ranks may differ; the result's rank is their sum. Weights may be negative.
# - `combine_linear` adds the factors: $A = \sum_i \sqrt{w_i} A_i$ and $B = \sum_i \sqrt{w_i} B_i$,
#   for equal ranks and $w_i \ge 0$. The rank stays the same. PEFT's `combination_type="linear"`
#   does this if all adapters have the same $\alpha / r$.
#
# <details><summary>Hint</summary>
#
# Multiply the block row $(B_1 \; B_2)$ by the block column of $A_1$ and $A_2$. Where should you put
# the weights so that each product gets its weight exactly once?
# </details>


# %%
def combine_linear(adapters, weights):
    """[(A (r, d_in), B (d_out, r)), ...], [w, ...] -> (A (r, d_in), B (d_out, r))."""
    # BEGIN SOLUTION
    roots = [math.sqrt(w) for w in weights]
    A = sum(root * A for root, (A, _) in zip(roots, adapters, strict=True))
    return A, sum(root * B for root, (_, B) in zip(roots, adapters, strict=True))
    # END SOLUTION


def combine_cat(adapters, weights):
    """[(A (r_i, d_in), B (d_out, r_i)), ...], [w, ...] -> (A (R, d_in), B (d_out, R))."""
    # BEGIN SOLUTION
    A = torch.cat([w * A for w, (A, _) in zip(weights, adapters, strict=True)])
    return A, torch.cat([B for _, B in adapters], dim=1)
    # END SOLUTION


# %%
check.combines(combine_linear, combine_cat)

# %% [markdown]
# Expand the product from `combine_linear`: $BA = \sum_{ij} \sqrt{w_i w_j}\, B_i A_j$. The terms
# with $i = j$ are the sum you want. The other terms, $B_1 A_2$ and $B_2 A_1$, are *cross terms*
# that nobody trained.

# %% tags=["experiment"]
if lab.experiment("How large are the cross terms?", 1, needs=["6.5"]):
    for way, combine in {"cat": combine_cat, "linear": combine_linear}.items():
        rest = total = 0.0
        for name, home in pairs["home"].items():
            both = [home, pairs["tickets"][name]]
            A, B = combine(both, [1.0, 1.0])
            wanted_sum = sum(B @ A for A, B in both)
            rest += (B @ A - wanted_sum).square().sum().item()
            total += wanted_sum.square().sum().item()
        print(f"{way}: the cross terms' norm is {math.sqrt(rest / total):.0%} of the sum's norm")

# %% [markdown]
# With `linear`, the cross terms are not much smaller than the sum itself. Worse, they depend on how
# an adapter is factored. For any orthogonal $Q$, $(QA, BQ^\top)$ is the same adapter. If you
# rewrite one of the two adapters like this, the cross terms change. `cat` is exact, but its rank is
# higher.

# %% [markdown]
# ### Exercise 6.6 · `recompress`
#
# ●●● · 12 min · 3 points
#
# Concatenating adapters adds up their ranks. Compress a pair of factors of rank $R$ to rank `r`.
# You may assume that `r` is no larger than $R$ or either dimension of `B @ A`. Return the factors
# `(A, B)` of the best rank-`r` approximation of `B @ A`, as in lab 1. Split the singular values
# between the factors as you like.
#
# Never compute `B @ A`, which is as large as the weight. Two thin QR decompositions and the SVD of
# one $R \times R$ matrix are enough. If you compute an SVD of `A` or `B` instead, pass
# `full_matrices=False`. The check measures the largest tensor you create.
#
# <details><summary>Hint</summary>
#
# `torch.linalg.qr(B)` returns $B = Q_B R_B$, where $Q_B$ has orthonormal columns. Do the same for
# $A^\top = Q_A R_A$. Then $BA = Q_B\, (R_B R_A^\top)\, Q_A^\top$, and the matrix in the middle is
# small. Its SVD gives you the SVD of $BA$.
# </details>


# %%
def recompress(A, B, r):
    """A (R, d_in), B (d_out, R) -> best rank-r factors of B @ A: (A (r, d_in), B (d_out, r))."""
    # BEGIN SOLUTION
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T)
    return Vh[:r] @ Q_A.T, Q_B @ (U[:, :r] * S[:r])
    # END SOLUTION


# %%
check.recompresses(recompress)

# %% [markdown]
# ### Exercise 6.7 · `ties`
#
# ●●● · 12 min · 3 points
#
# TIES ([Yadav et al. 2023](https://arxiv.org/abs/2306.01708)) reduces how much updates cancel each
# other out. `updates` is a list of matrices $\Delta W_i$ of the same shape. Merge them in three
# steps:
#
# 1. *Trim.* In each update of `n` entries, keep the `int(density * n)` entries with the largest
#    magnitude and set the rest to zero. (Assume that at least one entry is kept and that no
#    magnitudes tie at the cutoff.)
# 2. *Elect a sign* for each entry: the sign of the sum of the trimmed updates. If the sum is 0,
#    elect +.
# 3. *Merge.* For each entry, average the nonzero trimmed values with the elected sign. If no value
#    has the elected sign, the result is 0.
#
# Return one matrix, and don't change the inputs. The check compares your result with PEFT's
# function for full update matrices, with all weights 1. (To get an adapter,
# `combination_type="ties_svd"` then cuts the rank.)
#
# <details><summary>Hint</summary>
#
# Stack the trimmed updates. Build a mask of the values with the elected sign. Divide the sum of
# these values by their count, and make sure that the count is never 0.
# </details>


# %%
def ties(updates, density):
    """[(d_out, d_in), ...], 0 < density <= 1 -> one merged update (d_out, d_in)."""
    # BEGIN SOLUTION
    trimmed = torch.stack([torch.zeros_like(update) for update in updates])
    for kept, update in zip(trimmed, updates, strict=True):
        largest = update.abs().flatten().topk(int(density * update.numel())).indices
        kept.view(-1)[largest] = update.flatten()[largest]
    elected = torch.where(trimmed.sum(0) >= 0, 1, -1)
    agrees = trimmed.sign() == elected
    return (trimmed * agrees).sum(0) / agrees.sum(0).clamp_min(1)
    # END SOLUTION


# %%
check.merges_by_sign(ties)

# %% [markdown]
# **Try it: the mixture.** Mix the two adapters. Give `home` a weight of 1 and `tickets` a weight
# from 0.25 to 1. Can one model do both jobs at any of these weights? Run the cell, then rerun it
# with `mixes = [("cat, cut to r=8", (1, 0.5)), ("TIES 0.2", (1, 1))]`, or with other weights and
# TIES densities. Earlier points stay in the figure.


# %%
def product(pair):
    """(A, B) -> B @ A."""
    A, B = pair
    return B @ A


def mixture(way, weights):
    """A function that maps the pairs (A, B) of home and tickets to their combined update."""

    def mix(*both):
        if way.startswith("TIES"):  # with its density
            updates = [w * product(pair) for w, pair in zip(weights, both, strict=True)]
            return ties(updates, float(way.removeprefix("TIES")))
        A, B = (combine_linear if way == "linear" else combine_cat)(both, weights)
        return product(recompress(A, B, 8) if way == "cat, cut to r=8" else (A, B))

    return mix


def mixed(way, weights):
    """The dequantized model plus a mixture of the two adapters in each layer."""
    mix = mixture(way, weights)
    both = {name: (home, pairs["tickets"][name]) for name, home in pairs["home"].items()}
    return changed(lambda W, home, tickets: nf4(W) + mix(home, tickets), both)


def losses(way, weights):
    """A mixture's held-out losses (home, tickets) in nats per token, on 40 rows of each task."""
    model = mixed(way, weights)
    rows = (tasks.draw(task, "test", 40, **more) for task, more in OPTIONS.items())
    return tuple(loop.held_out_loss(model, tokenizer, each) for each in rows)


found = {}  # your mixtures so far: {(way, weights): (loss on home, loss on tickets)}

# %% tags=["experiment"]
mixes = [(way, (1, w)) for way in ("cat", "linear") for w in (0.25, 0.5, 1)]
mixes += [("TIES 0.5", (1, 1))]
if lab.experiment("Two adapters in one", 45, needs=["6.5", "6.6", "6.7"]):
    alone = losses("cat", (1, 0))[0], losses("cat", (0, 1))[1]
    for mix in live.progress(mixes, "mixtures"):
        found[mix] = losses(*mix)
    display(figures.mixtures(found, alone))

# %% [markdown]
# Mixing trades one job for the other: as the weight of `tickets` grows, the `tickets` loss falls
# and the `home` loss rises. Three other seeds show the same. At 1 : 0.5, `cat` gets 38 of 80 `home`
# answers and 7 of 80 `tickets` answers right on average; alone, the adapters get 46 and 18
# ([evidence](../docs/evidence/06_merging.md#the-mixtures)).
#
# The cross terms of `linear` cost little: at 1 : 1, its `tickets` loss is slightly higher than
# `cat`'s with every seed, but it gets about as many answers right. The cut to rank 8 acts like a
# smaller weight on `tickets`, probably because the SVD keeps the strongest directions, which are
# `home`'s. At 1 : 1, `cat` adds the updates and TIES averages them, so TIES disturbs `home` less:
# with the three seeds, it gets 26, 3 and 28 of 80 `home` answers right, but `cat` gets only 8, 0
# and 3.
#
# Averaging models trained on the *same* task is different: such *model soups* ([Wortsman et al.
# 2022](https://arxiv.org/abs/2203.05482)) can beat every model in the average. For two jobs like
# these, keep two adapters and switch between them. In lab 7, you will serve several adapters at
# once.
#
# ## Take it with you
#
# This script merges a QLoRA adapter as recommended above. It loads the base in 4 bits, dequantizes
# it, merges the adapter, and saves the result in 16 bits.
#
# ```python
# import torch
# from peft import LoraConfig, PeftModel, get_peft_model
# from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
#
# MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
#
# def base():
#     how = {"quantization_config": NF4, "dtype": torch.bfloat16}
#     return AutoModelForCausalLM.from_pretrained(MODEL, **how)
#
# # a random adapter; replace it with one you trained on base()
# lora = LoraConfig(target_modules="all-linear", init_lora_weights=False)
# get_peft_model(base(), lora).save_pretrained("my-lora")
#
# merged = PeftModel.from_pretrained(base().dequantize(), "my-lora").merge_and_unload()
# merged.save_pretrained("merged")  # a plain model in 16 bits
# AutoTokenizer.from_pretrained(MODEL).save_pretrained("merged")
# plain = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
# print(type(plain).__name__, plain.dtype)
# ```

# %% [markdown]
# ### Exercise 6.8 · Quiz
#
# ●○○ · 4 min · 3 points
#
# Only your first answer to each question counts. Then read the explanation.
#
# **q1. You want the model you trained with QLoRA as a single file. How do you merge?**
#
# - (a) Add the update to the dequantized base, and store the sum in 16 bits.
# - (b) Add the update to the 16-bit original, because its weights are exact.
# - (c) Add the update to the dequantized base, and round the sum to NF4 again.
# - (d) It doesn't matter: the update is the same either way.
#
# **q2. You want to merge an update into a bf16 model, and $|\Delta W|$ is 0.03% of $|W|$. What do
# you do?**
#
# - (a) Merge as usual: rounding goes up as often as down, so the update survives on average.
# - (b) Merge twice, so that the update becomes large enough.
# - (c) Convert the update to bf16 first, so that both are on the same grid.
# - (d) Store the sum on a finer grid, or don't merge: bf16 would lose most of the update.
#
# **q3. You average the A matrices and the B matrices of two adapters. What is the product of these
# means?**
#
# - (a) Exactly the mean of the two updates, because the rank is unchanged.
# - (b) The mean of the two updates, if they have the same alpha and r.
# - (c) A quarter of each update, plus a quarter of each cross term.
# - (d) Half of each update, plus half of each cross term.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "a", "q2": "d", "q3": "c"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - To get the model you trained, merge a QLoRA adapter into the dequantized base, and store the sum
#   in 16 bits.
# - If the weights are on a format's grid, rounding removes a small update. If they lie between the
#   grid's values, the update survives on average.
# - Concatenation adds updates exactly, and `recompress` cuts the rank. Adding the `A` and `B`
#   matrices separately creates cross terms.
# - Merge when you have one job. For several jobs, keep the adapters separate: no mixture here did
#   both well.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["6.1", "6.2", "6.4"]):
    lab.headline(
        f"a QLoRA adapter: {right['as trained']} of 60 answers right as trained, "
        f"{right['dequantized, 16 bits']} merged into the dequantized base, "
        f"{right['original, 16 bits']} into the original, "
        f"{right['dequantized, then NF4']} rounded to NF4 again"
    )
