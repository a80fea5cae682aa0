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
# # Lab 2 · LoRA from scratch
#
# How can two thin matrices teach a language model something new? You will write LoRA in about forty
# lines of PyTorch, put it into a real model, and teach that model a job it cannot do. Then you will
# measure what people say about LoRA: what it saves, what it does not, and what a merge does to the
# weights.
#
# Before four of the pictures a cell asks for your guess. Write one down: you remember the numbers
# that surprise you. A guess costs no points.
#
# About 100 minutes if you know PyTorch well (81 for the exercises), up to 160 if you do not. The
# experiments take three to four minutes on two CPU cores with fast bf16, nine on others.

# %%
import labkit

lab, check = labkit.start("02_lora")

# %%
import copy
import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from labkit import live, tasks
from labkit.labs.lab02 import plots
from labkit.memory.measure import track
from labkit.plots import compare_answers
from labkit.training import generation, kept, loop, models

# %% [markdown]
# ## The idea
#
# A linear layer computes $y = W x$ with a big matrix $W$ of shape `(d_out, d_in)`. Fine-tuning
# changes it to $W + \Delta W$. LoRA (Hu et al. [2021](https://arxiv.org/abs/2106.09685)) keeps $W$
# frozen and writes the change as a product of two thin matrices:
#
# $$\Delta W = \frac{\alpha}{r}\, B A, \qquad A: (r, d_\text{in}), \quad B: (d_\text{out}, r).$$
#
# The *rank* $r$ is small: 4, 8, 16. Lab 1 asked how much a low-rank change can hold. Here you build
# one and train it.

# %%
display(plots.thin_matrices(d_out=576, d_in=576, r=16))

# %% [markdown]
# The picture is to scale: one square projection of the model that you will train. Blue is frozen:
# it gets no gradient, and training never changes it. Orange is all that learns, and all that a LoRA
# file contains.

# %% [markdown]
# ### Exercise 2.1 · `lora_forward`
#
# ●●○ · 8 min · 2 points
#
# Compute the layer's output with its update. `x` may have any leading shape: one vector, a batch, a
# batch of sequences. Never build $BA$ or a copy of $W$: they are as large as $W$, and the point is
# to avoid matrices of that size. The check measures the largest tensor you make.
#
# Do one case by hand first. Let $W$ be the 2 × 2 identity, $A$ the row (1, 1), $B$ the column
# (1, 0), $\alpha = 2$ and $x = (1, 2)$. Then $W x = (1, 2)$, $A x = 3$ and $B A x = (3, 0)$. With
# $r = 1$ the factor is 2, so the output is (7, 2).
#
# <details><summary>Hint</summary>
#
# Matrix products can be grouped as you like. Which grouping of `x`, `A` and `B` keeps every
# intermediate result thin? Mind which side each matrix multiplies from: `nn.Linear` computes
# `x @ W.T`.
# </details>


# %%
def lora_forward(x, W, A, B, alpha):
    """x (..., d_in), W (d_out, d_in), A (r, d_in), B (d_out, r) -> (..., d_out)."""
    # BEGIN SOLUTION
    r = A.shape[0]
    return x @ W.T + (alpha / r) * (x @ A.T) @ B.T
    # END SOLUTION


# %%
check.matches_dense(lora_forward)

# %% [markdown]
# Dividing by $r$ looks like a detail, and it is easily lost. The code of a widely used book left it
# out in two places. One was mended in 2025
# ([#821](https://github.com/rasbt/LLMs-from-scratch/issues/821)), the other a year later
# ([#1079](https://github.com/rasbt/LLMs-from-scratch/issues/1079)). Without it a step of training
# changes the layer more at a larger rank. Whoever compares two ranks at the same $\alpha$ then
# compares two step sizes as well. Is $r$ the right divisor? We come back to that near the end.

# %% [markdown]
# ### Exercise 2.2 · `LoRALinear`
#
# ●●● · 12 min · 3 points
#
# A function does not remember what it has learned; a layer does. Wrap an existing `nn.Linear` into
# a layer with the attributes `base`, `A`, `B`, `r` and `scaling` (which is $\alpha / r$).
#
# - `base` is the module you are given and not a copy, which would need the memory of the weights
#   again. It stays as it is, bias included, and is frozen: it gets no gradient.
# - `A` is drawn at random, about as small as $1/\sqrt{d_\text{in}}$, so that the entries of $A x$
#   are about as large as those of $x$. `nn.init.kaiming_uniform_(A, a=math.sqrt(5))` is what PEFT
#   does.
# - `B` starts at zero, so the new layer computes exactly what the old one did. (Why `B` and not
#   `A`? The next section asks.)
# - `A` and `B` are `nn.Parameter`s, and nothing else in the layer trains. They are on the device of
#   `base.weight`, and both have its dtype or both are fp32. (PEFT takes fp32, since small steps can
#   get lost in 16 bits.)
# - The output has the dtype of `base(x)`.
# - As in 2.1, `forward` makes no matrix as large as `base.weight`.
# - Gradients flow back to `x` on both paths: layers before this one may train.
#
# <details><summary>Hint: where to begin</summary>
#
# In `__init__`, after `super()`, a module or an `nn.Parameter` that you assign becomes part of the
# layer: an optimizer finds it, and `.to()` moves it. `torch.empty` and `torch.zeros` take a `dtype`
# and a `device`; which tensor has the right ones?
# </details>
#
# <details><summary>Hint: forward</summary>
#
# It is 2.1 again, with `base(x)` in place of `x @ W.T`. What would be missing if you multiplied by
# `base.weight` yourself?
# </details>


# %%
class LoRALinear(nn.Module):
    """A frozen nn.Linear `base` plus the trainable update (alpha / r) B A."""

    def __init__(self, base, r, alpha):
        super().__init__()
        # BEGIN SOLUTION
        self.base = base.requires_grad_(False)
        self.r, self.scaling = r, alpha / r
        like = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.A = nn.Parameter(torch.empty(r, base.in_features, **like))
        self.B = nn.Parameter(torch.zeros(base.out_features, r, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        # END SOLUTION

    def forward(self, x):
        """x (..., d_in) -> (..., d_out)."""
        # BEGIN SOLUTION
        return self.base(x) + self.scaling * (x @ self.A.T) @ self.B.T
        # END SOLUTION


# %%
check.layer(LoRALinear)

# %% [markdown]
# (PEFT's layer also has dropout on the `x` that enters `A`, off by default. Yours has none.)

# %% [markdown]
# ## Where should training start?
#
# At the base model: you chose it because it is good, and a random update would damage it before the
# first step. So $BA$ has to be zero at first. The simplest way is to let one of the two be zero.
# Which one? And what happens if both are zero? The gradients answer the last question at once.

# %% [markdown]
# ### Exercise 2.3 · `lora_gradients`
#
# ●●● · 12 min · 3 points
#
# Given `dY`, the gradient of the loss with respect to the layer's output, return the gradients of
# `A` and `B`, by hand: no `backward()` or other autograd. `x` is `(n, d_in)`, `dY` is `(n, d_out)`.
#
# <details><summary>Hint</summary>
#
# Write the update as two layers, `h = x Aᵀ` and `y = s h Bᵀ` with `s = alpha / r`. The rule for a
# linear layer `y = h Bᵀ` is: gradient of `B` is `dYᵀ h`, gradient of `h` is `dY B`. Use it twice.
# </details>


# %%
def lora_gradients(x, W, A, B, alpha, dY):
    """x (n, d_in), dY (n, d_out) -> (dA (r, d_in), dB (d_out, r))."""
    # BEGIN SOLUTION
    s = alpha / A.shape[0]
    dH = s * dY @ B  # (n, r)
    return dH.T @ x, s * dY.T @ (x @ A.T)
    # END SOLUTION


# %%
check.gradients(lora_gradients)

# %% [markdown]
# Read your own formula: $dA$ has the factor $B$. While $B$ is zero, $A$ gets no gradient. $dB$ has
# the factor $A$, which is random, so $B$ moves at the first step and $A$ follows at the second.
# With both at zero nothing ever moves.
#
# By hand, with one output: $x = (1, 2)$, $A = (1, 1)$, $B = 0$, $\alpha / r = 1$ and $dY = 1$ give
# $dB = 1 \cdot A x = 3$ and $dA = B\, x = (0, 0)$. The next cell takes twelve steps of gradient
# descent with a toy layer that starts as usual.

# %% tags=["experiment"]
if lab.experiment("Who gets a gradient, and when", 1, needs=["2.2"]):
    torch.manual_seed(0)
    layer, x, goal = LoRALinear(nn.Linear(32, 32), 4, 8), torch.randn(64, 32), torch.randn(64, 32)
    optimizer = torch.optim.SGD([layer.A, layer.B], lr=0.3)
    norms = {"A": [], "B": []}
    for _ in range(12):
        optimizer.zero_grad()
        (layer(x) - goal).square().mean().backward()
        for name in norms:
            norms[name].append(getattr(layer, name).grad.norm().item())
        optimizer.step()
    display(plots.first_gradients(norms))

# %% [markdown]
# Look at step 0: the gradient of `A` is exactly zero, since `B` is. As `B` grows, so does the
# gradient of `A`. For one step only one of the two matrices trains.
#
# Would `A` at zero and `B` at random do as well? That, too, starts at the base model, and it
# trains. But the two starts are not mirror images. Hayou et al.
# ([2024](https://arxiv.org/abs/2406.08447)) compared them, by theory for wide layers and in
# fine-tuning runs. They find that with `B` at zero training stays stable at larger learning rates,
# and ends better on average.
#
# One reason shows at the first step. Adam then moves each number that has a gradient by about the
# learning rate.
#
# - With `B` at zero, `B` moves. An entry of the output changes by a sum of $r$ terms, each of them
#   a step times an entry of $Ax$. That may be 8 terms.
# - With `A` at zero, `A` moves. An entry of $Ax$ changes by a sum of $d_\text{in}$ terms, each of
#   them a step times an entry of $x$. That may be 576 terms, and `B`, which is then random and not
#   small, passes the change on to the output.
#
# The more terms, the larger the sum may get. So at one learning rate the second start can move the
# output much further, and the rate at which training gets unstable is lower.
#
# Neither has to be zero if $W$ may change. PiSSA (Meng et al.
# [2024](https://arxiv.org/abs/2404.02948)) takes both from the largest singular directions of $W$
# and subtracts their product from the frozen weight, so that the sum is $W$ again. Lab 5 tries it.

# %% [markdown]
# ## Into the model
#
# SmolLM2-135M has 30 blocks. Each has seven linear layers: `q_proj`, `k_proj`, `v_proj` and
# `o_proj` in its attention, `gate_proj`, `up_proj` and `down_proj` in its MLP.

# %%
attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
everything = [*attention, "gate_proj", "up_proj", "down_proj"]

# %% [markdown]
# ### Exercise 2.4 · `inject`
#
# ●●● · 12 min · 3 points
#
# One layer is not enough; a model has hundreds. Replace every `nn.Linear` whose own name is in
# `targets` by a `LoRALinear`, in place. A module of another kind stays, whatever its name. Freeze
# everything but the new `A` and `B` (other modules may have parameters of these names). Return how
# many layers you replaced. What stays keeps its dtype and its training mode.
#
# A layer's own name is the last part of its dotted name: `q_proj` in
# `model.layers.0.self_attn.q_proj`. A layer of the model itself has no dot in its name.
#
# <details><summary>Hint: how to reach a layer</summary>
#
# `model.named_modules()` gives dotted names. `model.get_submodule("a.b")` gives the parent of
# `a.b.q_proj`, and `setattr` puts a new child there.
# </details>
#
# <details><summary>Hint: in which order</summary>
#
# What happens to a loop over the tree, when the loop changes the tree? And what happens to your new
# `A` and `B`, when you freeze everything after you have put them in?
# </details>


# %%
def inject(model, targets, r, alpha):
    """Put LoRA on the named projections of `model`, in place; return how many were replaced."""
    # BEGIN SOLUTION
    model.requires_grad_(False)
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = [name for name in linear if name.split(".")[-1] in targets]
    for name in found:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, LoRALinear(getattr(owner, child), r, alpha))
    return len(found)
    # END SOLUTION


# %%
check.injects(inject)

# %% [markdown]
# ### Exercise 2.5 · `count_params`
#
# ●○○ · 4 min · 1 point
#
# How many numbers train, and how many are there? Return the pair, two ints, of parameters alone:
# buffers do not count. Count a tensor once when two modules share it: SmolLM2's embedding and
# output head are one matrix of 28 million numbers.


# %%
def count_params(model):
    """(trainable, total): how many numbers, shared tensors counted once."""
    # BEGIN SOLUTION
    params = list(model.parameters())  # a shared tensor comes once
    return sum(p.numel() for p in params if p.requires_grad), sum(p.numel() for p in params)
    # END SOLUTION


# %%
check.counts(count_params)

# %% tags=["experiment"]
if lab.experiment("What trains, at three settings", 4, needs=["2.2", "2.4", "2.5"]):
    for r, targets in [(4, ["q_proj", "v_proj"]), (16, ["q_proj", "v_proj"]), (8, everything)]:
        model, tokenizer = models.load()
        n = inject(model, targets, r, alpha=2 * r)
        trainable, total = count_params(model)
        share = f"{trainable / total:.3%}"
        print(f"r={r:<3} {n:3} layers: {trainable:>9,} of {total:,} train ({share})")

# %% [markdown]
# A number often quoted for r=16 is 131,072. That is the count for one 4096 × 4096 matrix. Here,
# `q_proj` and `v_proj` of 30 blocks make 921,600. "LoRA trains under 1%" depends on what you adapt,
# too: with all seven layers of each block it is 1.8% at rank 8, in this small model.

# %% [markdown]
# ## A job to learn
#
# Does it learn? The task is `home`: a spoken command in, a JSON intent out. The test commands use
# sentence patterns that do not occur in training. Each contains a room, a device, a number or
# another value that no training row has under that key of the answer. None of the 300 wanted
# answers occurs in training. So no answer can be copied from a row; only the format and the mapping
# carry over.

# %%
home, unseen = tasks.load("home", "train"), tasks.load("home", "test")
unseen = unseen.shuffle(seed=1).select(range(60))
for row in home.select(range(0, 2000, 500)):
    print(f"{row['text']}\n    {row['answer']}")

# %% [markdown]
# Training is a plain PyTorch loop. `loop.batches` tokenizes and shuffles; it packs 16 commands into
# one long row without padding, in which none of them sees another. `loop.answer_loss` is the mean
# cross-entropy over the tokens of the answer. The learning rate falls linearly to zero. The result
# stays in the cache: after a restart `kept.bring` loads it in seconds, as long as your layer, the
# rows and the settings are the same.


# %%
def train(model, title, learning_rate, steps=45):
    """Train what requires grad, in place; return (live curve, optimizer)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, learning_rate, weight_decay=0.0, fused=True)
    model.train()
    key = kept.key(model, home, train, learning_rate, steps)
    if earlier := kept.bring(title, model, optimizer, key):
        return earlier, optimizer
    curve = live.Curve(title, steps)
    for step, batch in enumerate(loop.batches(home, tokenizer, size=16, steps=steps)):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        loss = loop.answer_loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.add(loss)
    kept.keep(title, model, curve, key)
    return curve, optimizer


# %%
def right(told):
    """How many answers are right to the letter, and how many name the right intent."""
    exact = intent = 0
    for answer, wanted in zip(told, unseen["answer"], strict=True):
        exact += answer == wanted
        intent += answer.split(",")[0] == wanted.split(",")[0]  # the first field is the intent
    return exact, intent


def report(told):
    """The same as a sentence."""
    exact, intent = right(told)
    return f"{exact} of {len(unseen)} answers right, {intent} with the right intent"


# %% tags=["experiment"]
if lab.experiment("What the base model answers", 8, needs=["2.2", "2.4"]):
    torch.manual_seed(lab.seed)
    model, tokenizer = models.load()
    base_answers = generation.answers(model, tokenizer, unseen["messages"])
    base_loss = loop.held_out_loss(model, tokenizer, unseen)
    print(f"Base model: {report(base_answers)}, loss {base_loss:.2f}")

# %% [markdown]
# Compare that loss with a number that you can work out. A model to which all 49,152 tokens are
# equally likely has a loss of $\ln 49152 = 10.8$. The base model is far below it: it knows much
# about text. But it does not know what you want of it.
#
# Now train 45 steps of 16 commands: 720 of the 2,000 training rows, each seen at most once. Your
# LoRA has 2.4 million numbers, under 2% of the model. Its learning rate is 5e-3; times $\alpha$ it
# is 0.08. In lab 5's runs on this task (24 steps of 4, rates a factor of 3 apart) the best product
# was 0.08 to 0.13.
#
# At which loss must the curve begin? `B` is zero, so near the base model's. If it begins elsewhere,
# something is wrong with the layer. The faint line is the loss of each step. The strong one is a
# running mean: 0.6 of the new loss and 0.4 of the mean before it. (To train at another rate, run
# the cell of the base model's answers first: it loads a fresh model.)

# %%
guess_right = lab.predict("After 45 steps, how many of the 60 answers are right?", None)

# %% [markdown]
# Two later sections ask what a step costs in memory and in arithmetic. The next function measures
# both while the model is there. It takes one more step after training, at a learning rate of 0 so
# that no weight moves.


# %%
def one_more_step(model, optimizer):
    """Bytes at the peak of a step by category, and the FLOPs of its products as torch counts."""
    batch = next(loop.batches(home, tokenizer, size=16, steps=1))
    optimizer.param_groups[0]["lr"] = 0.0
    with track(model, optimizer) as peak:
        loop.answer_loss(model, batch).backward()
        optimizer.step()
    optimizer.zero_grad()
    with FlopCounterMode(display=False) as counter:
        loop.answer_loss(model, batch).backward()
    optimizer.zero_grad()
    return peak.by_category, counter.get_total_flops()


# %% tags=["experiment"]
if lab.experiment("Your LoRA learns `home`", 60, needs=["2.2", "2.4"]):
    torch.manual_seed(lab.seed)
    inject(model, everything, r=8, alpha=16)
    curve, optimizer = train(model, "Your LoRA on home", learning_rate=5e-3)
    held = {"LoRA": loop.bytes_held(model, optimizer)}
    lora_peak, lora_flops = one_more_step(model, optimizer)

# %% tags=["experiment", "cover"]
if lab.experiment("Before and after", 7, needs=["2.2", "2.4"]):
    lora_answers = generation.answers(model, tokenizer, unseen["messages"])
    lora_loss = loop.held_out_loss(model, tokenizer, unseen)
    counts = {"base model": right(base_answers), "your LoRA": right(lora_answers)}
    display(plots.right_answers(counts, len(unseen), guess_right))
    guess_right.beside(right(lora_answers)[0])
    told = {"base": base_answers, "your LoRA": lora_answers}
    display(compare_answers(unseen["text"], unseen["answer"], told, rows=8))

# %% [markdown]
# Read the rows, not only the number. The base model chats. In our run the tuned one always answered
# in JSON, and all sixty intents were right. Where yours fails, look at how: a key too many, a value
# that was not in the command, a word under the wrong key. It has learned a format and a mapping
# from 720 examples.
#
# And do not read too much into the number. Sixty commands are few: a count near 40 has a standard
# error of nearly four. Another seed of training would add to that.

# %% [markdown]
# ## Against full fine-tuning
#
# What would full fine-tuning have made of the same 45 batches? The loop is the same. Three things
# differ.
#
# - Everything trains: the embedding and the norms, too, not only the linear layers.
# - The weights are kept in fp32, since in bf16 many of its steps would be lost (counted below).
#   Products are still in bf16 where your hardware is quick at that.
# - The learning rate is 3e-4. One rate for both would only show which method it suits. In lab 5's
#   runs (24 steps of 4) this was the best of 1e-4, 3e-4 and 1e-3 for full fine-tuning, with each of
#   three seeds.
#
# Before it runs: if a step of full fine-tuning takes 100, how long does a step of LoRA take?

# %%
guess_time = lab.predict("A LoRA step's time, in percent of full fine-tuning's?", None)

# %% tags=["experiment"]
if lab.experiment("Full fine-tuning on the same budget", 85, needs=["2.2", "2.4"]):
    torch.manual_seed(lab.seed)
    whole, _ = models.load(dtype=torch.float32)
    full_curve, full_optimizer = train(whole, "Full fine-tuning on home", learning_rate=3e-4)
    held["full"] = loop.bytes_held(whole, full_optimizer)
    full_peak, full_flops = one_more_step(whole, full_optimizer)
    del full_optimizer  # a gigabyte that nothing needs any more
    full_loss = loop.held_out_loss(whole, tokenizer, unseen)
    full_answers = generation.answers(whole, tokenizer, unseen["messages"])
    del whole
    print(f"Your LoRA: {report(lora_answers)}, loss {lora_loss:.3f}")
    print(f"Full fine-tuning: {report(full_answers)}, loss {full_loss:.3f}")
    hits = [a == wanted for a, wanted in zip(lora_answers, unseen["answer"], strict=True)]
    full_hits = [a == wanted for a, wanted in zip(full_answers, unseen["answer"], strict=True)]
    pairs = list(zip(hits, full_hits, strict=True))
    one_way, other_way = pairs.count((True, False)), pairs.count((False, True))
    print(f"right by LoRA alone: {one_way}, by full fine-tuning alone: {other_way}")
    display(plots.loss_by_the_clock({"LoRA": curve, "full": full_curve}))

# %% [markdown]
# Read the picture in two ways. At the same second (one vertical line) the two lie close together:
# LoRA has taken more steps by then, and each taught it less. In our runs LoRA was ahead at first,
# and then the curves crossed several times. When LoRA ended (dotted) its learning rate had fallen
# almost to zero, which lowers a loss at the end of a run. The other's had not, so that line favours
# LoRA.
#
# At equal steps full fine-tuning had the lower training loss: compare the two ends. On the unseen
# commands the two were alike in that run: a loss of 0.105 in full and 0.108 by LoRA, 33 and 40
# answers right. Only commands on which they differ can tell them apart: 12 were right by LoRA alone
# and 5 in full alone. Seventeen tosses of a coin fall as unevenly as 12 to 5, one way or the other,
# one time in seven. So it may be chance.
#
# One seed and 60 commands are too little to name a winner. Lab 5 has three seeds, in runs of 24
# steps of 4, each method at the best of its rates. The mean loss on unseen commands was:
#
# | study | full | LoRA, r=16 | difference ± standard error |
# |---|---|---|---|
# | rates a factor of 3 apart | 0.291 | 0.322 | 0.031 ± 0.015 |
# | again, with rates halfway between (LoRA two, full one) | 0.287 | 0.325 | 0.038 ± 0.001 |
#
# With these rates full fine-tuning is ahead with every seed. Do not trust the error of 0.001: three
# seeds estimate a standard error poorly, and this one is small by luck. Half of the second gap
# comes from full fine-tuning's finer rate. At 3e-4 the gap is 0.018 ± 0.012, and LoRA is ahead with
# one seed of three. There probably is a gap, then, and it is small: on this task, in runs this
# short, training less than 4% of the numbers comes close. Lab 5 looks for tasks where it does not.

# %% [markdown]
# ### Why may `A` and `B` be in bf16?
#
# Where your hardware multiplies bf16 quickly, the model was loaded in it, and your `A` and `B` took
# its dtype, unless you made them fp32. Full fine-tuning got fp32. Why? A bf16 number has eight
# binary digits. A step smaller than half of the last digit is lost: the sum is rounded back.
#
# | | an entry's rms size | a step is lost below | the first steps are |
# |---|---|---|---|
# | `A` | 0.02 | 6e-5 | 5e-3 |
# | the model's weights | 0.2 | 5e-4 | 3e-4 |
#
# LoRA's first steps are eighty times as large as what `A` loses. (`B` starts at zero, and the
# smaller a number is, the smaller are the steps that it keeps.) Those of full fine-tuning are
# smaller than what a weight of 0.2 loses.
#
# But entries differ in size, and grow, and the rate falls. Where a gradient changes its sign, Adam
# also moves an entry by less than the rate. So we counted how many entries a step leaves as they
# were.
#
# | | early | half way | late |
# |---|---|---|---|
# | `A`, in our run | 4% (11th of 45 steps) | 10% | 53% (41st) |
# | weights of block 15, if in bf16 | nearly half (steps of 3e-4) | about 70% (1.5e-4) | |
#
# For a LoRA run as short as this one bf16 will do. For a long one take fp32, as PEFT does (lab 3).
#
# <details><summary>Why not for long runs?</summary>
#
# Where `A` and `B` are in bf16, Adam's moments are, too. A step lowers a second moment by a
# thousandth at most. The nearest bf16 number below is four to eight thousandths away, so the moment
# never falls. In 45 steps that matters little: it should fall by less than 5%. Over thousands of
# steps it no longer follows the gradients.
# </details>

# %% [markdown]
# ## Where does the time go?
#
# Full fine-tuning trains fifty times as many numbers. Why is it not fifty times slower? Count what
# a step multiplies. In the forward pass a linear layer does one multiplication and one addition for
# each weight and token. The backward pass has to find two gradients, each by a product of the same
# size: that of the weights, for the optimizer, and that of the input, for the layers below.

# %% [markdown]
# ### Exercise 2.6 · `step_flops`
#
# ●●○ · 10 min · 2 points
#
# How many floating-point operations (FLOPs) do the forward and the backward pass of linear layers
# take together? `shapes` maps a name to the `(d_out, d_in)` of a weight matrix, and all layers see
# the same `n_tokens` tokens. A multiply-add counts as two.
#
# - Without `r` all weights train.
# - With `r` the weights are frozen, and each has an `A` and a `B` of rank `r` that train.
#
# Every input needs its gradient, since there are layers below that train. Biases, additions outside
# of products and the optimizer don't count. The result is an int, the same that
# `torch.utils.flop_counter` finds in real layers.
#
# <details><summary>Hint</summary>
#
# A product of an $n \times k$ and a $k \times m$ matrix takes $2\,n\,k\,m$. List the products for
# $y = x W^\top$: which one falls away when $W$ is frozen? Then list those of `h = x Aᵀ` and
# `y = h Bᵀ`: neither is frozen, and `h` needs its gradient, too.
# </details>


# %%
def step_flops(shapes, n_tokens, r=None):
    """FLOPs, an int, of forward and backward of layers {name: (d_out, d_in)}; r None: full."""
    # BEGIN SOLUTION
    weights = sum(d_out * d_in for d_out, d_in in shapes.values())
    if r is None:
        return 6 * n_tokens * weights
    thin = sum(r * (d_out + d_in) for d_out, d_in in shapes.values())
    return n_tokens * (4 * weights + 6 * thin)
    # END SOLUTION


# %%
check.arithmetic(step_flops)

# %% [markdown]
# So full fine-tuning takes six operations for each weight and token. LoRA takes four and a little,
# about two thirds. For one 576 × 576 layer, one token and r=8 that is 1,990,656 in full and
# 1,327,104 + 55,296 by LoRA: 69%. A frozen weight saves the product that would give its own
# gradient, and no other.
#
# Does the clock agree? The next picture shows your count for the 210 linear layers, torch's count
# of all products of the measured step (with attention and the output head), and the time of a step.

# %% tags=["experiment"]
if lab.experiment("A step's arithmetic, and its clock", 1, needs=["2.2", "2.4", "2.6"]):
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LoRALinear)]
    shapes = {name: tuple(layer.base.weight.shape) for name, layer in layers}
    linear = step_flops(shapes, 1, r=8) / step_flops(shapes, 1)  # n_tokens cancels
    lora_step, full_step = (np.median(np.diff(c.seconds)) for c in (curve, full_curve))
    shares = {
        "linear layers,\nyour step_flops": linear,
        "all products,\ntorch's counter": lora_flops / full_flops,
        "a step,\nby the clock": lora_step / full_step,
    }
    display(plots.step_shares(shares, guess_time))
    guess_time.beside(100 * lora_step / full_step)
    print(f"a step of LoRA: {lora_flops / 1e9:.0f} GFLOPs in {lora_step:.2f} s")
    print(f"a step of full fine-tuning: {full_flops / 1e9:.0f} GFLOPs in {full_step:.2f} s")

# %% [markdown]
# By the products it is about two thirds, head and attention included: what falls away is one
# product in three. The clock may differ, for two reasons that pull against each other.
#
# - A step is more than products. Norms, activation functions and softmax cost LoRA nearly what they
#   cost full fine-tuning. (Not quite: `loop` has quicker code for frozen norms and a frozen head.)
#   And thin products use a processor badly: they read as many activations as a wide one and do
#   about a hundredth of its arithmetic. Both raise LoRA's share.
# - Full fine-tuning has work of its own: Adam reads and writes every weight and two moments at
#   every step, and where products are bf16, fp32 weights are converted first. That lowers LoRA's
#   share.
#
# With fast bf16 we measured 63% to 77%, on one core and on two; once, beside other work, 86%.
# Expect about a third off.

# %% [markdown]
# ## Where do the bytes go?
#
# LoRA saves memory, as everybody says. But PEFT's issue tracker has reports of the contrary:
# TinyLlama on long texts took about as much with LoRA as without
# ([#1514](https://github.com/huggingface/peft/issues/1514)), and the activations of a ResNet-50
# nearly doubled ([#2196](https://github.com/huggingface/peft/issues/2196)). To see how both can be,
# look at a run at two times. *Between* steps it holds weights, optimizer states and, where several
# batches are accumulated to one step, gradients. *Within* a step it also holds activations: what
# forward keeps for backward. It needs room for the larger of the two.
#
# What is held between steps you can work out. Count the gradients, and four bytes a number in fp32.
# Full fine-tuning holds four numbers for each of 134.5 million weights: the weight, its gradient
# and Adam's two moments. That makes 2.15 GB. LoRA holds 134.5 million frozen weights, and four
# numbers for each of 2.44 million trained ones: 0.58 GB, and half of that where all of it is bf16.
# What will the activations add?

# %%
guess_peak = lab.predict("LoRA's peak memory, in percent of full fine-tuning's?", None)

# %% tags=["experiment"]
if lab.experiment("What stays between steps, and a step's peak", 1, needs=["2.2", "2.4"]):
    peaks = {"LoRA": lora_peak, "full": full_peak}
    display(plots.memory(held, peaks, guess_peak))
    guess_peak.beside(100 * sum(lora_peak.values()) / sum(full_peak.values()))

# %% [markdown]
# Read each height in percent on the left and in GB on the right. Between steps LoRA's gradients and
# Adam moments almost vanish. Its frozen weights do not: forward multiplies by them, and backward,
# too, for the gradient of the input.
#
# At the peak no bar has gradients: here the peak comes when backward begins, with all activations
# held. (Accumulated over several batches, they would be there: 0.54 GB more for full fine-tuning.)
# LoRA needs most activations, too, for two reasons. The gradient has to pass norms, activation
# functions and attention on its way down, and they need what they computed in forward. A frozen
# linear layer does not: there the gradient of `x` is `dY W`. But your `A` trains, and its gradient
# in 2.3 is `dH.T @ x`, so each adapted layer keeps its `x` after all. What is called temporary is
# there for a moment only, here for the loss.
#
# How much of the difference is precision? If LoRA's blue part is half as high as the other, its
# frozen weights are in bf16, and so are most of its activations. We measured the same step with
# other settings.
#
# | LoRA beside full fine-tuning in fp32 | peak | activations |
# |---|---|---|
# | base in bf16 | 27% | 43% |
# | all in fp32 | 52% | 86% |
# | all in fp32, PyTorch's own modules | 57% | 92% |
#
# (Our own loop keeps less where norms and head are frozen.)
#
# So LoRA saves what training keeps for each weight: its gradient and its moments. At equal
# precision it saves little of what training keeps for each token, the activations. With longer
# texts or larger batches that second part grows, and the share that LoRA saves shrinks.
#
# Both reports are of such runs. The ResNet held 1.3 of 1.6 GiB in activations before it had LoRA,
# and TinyLlama's texts were 8,192 tokens long. (That the ResNet's activations grew to 2.6 GiB needs
# a cause of its own. Dropout before `A`, for one, would keep a second `x` and a mask.) Lab 4 shows
# what helps there.

# %% [markdown]
# ## Merge
#
# Two thin products in each layer cost time at every token. After training you can remove them: add
# the update to $W$, and the layer costs what it did before.
#
# While a layer is merged its forward must not add the update again. So it needs a flag. The next
# cell copies a model and gives its LoRA layers one. (It changes a layer's class to a subclass, as
# PyTorch's `fully_shard` does.)


# %%
def lora_layers(model):
    """The LoRA layers of `model`, in order."""
    return [m for m in model.modules() if isinstance(m, LoRALinear)]


def mergeable(model):
    """A copy of `model` whose LoRA layers have a flag: while merged, only the base computes."""

    class MergeableLoRA(LoRALinear):
        merged = False  # of every layer, until merge_ sets it on one

        def forward(self, x):
            return self.base(x) if self.merged else super().forward(x)

    twin = copy.deepcopy(model)
    for layer in lora_layers(twin):
        layer.__class__ = MergeableLoRA
    return twin


# %% [markdown]
# ### Exercise 2.7 · `merge_`, `unmerge_`
#
# ●●○ · 8 min · 3 points
#
# Both take such a layer. `merge_` adds $(\alpha / r) BA$ to `layer.base.weight` in place;
# `unmerge_` takes it away. They keep `layer.merged` up to date: calling either twice is the same as
# once. After `unmerge_` the layer may train on, and the next `merge_` adds what it has learned by
# then. The output stays the same, to rounding. `base.weight` stays the same Parameter, with its
# dtype; `A`, `B` and the training mode stay as they are. (Some libraries merge inside `train()` or
# `eval()`. In this lab nothing merges but these two calls.)
#
# <details><summary>Hint</summary>
#
# The update requires grad, since `A` and `B` do. What becomes of a frozen Parameter when you add
# that to it in place, and what prevents it? `layer.merged` tells a second call that there is
# nothing to do. Which of `+=` and `= … + …` keeps the Parameter itself?
# </details>


# %%
def merge_(layer):
    """Add the update of `layer` to its base weight, in place, once."""
    # BEGIN SOLUTION
    if not layer.merged:
        with torch.no_grad():
            layer.base.weight += layer.scaling * layer.B @ layer.A
        layer.merged = True
    # END SOLUTION


def unmerge_(layer):
    """Take the update of `layer` away again, in place, if it was merged."""
    # BEGIN SOLUTION
    if layer.merged:
        with torch.no_grad():
            layer.base.weight -= layer.scaling * layer.B @ layer.A
        layer.merged = False
    # END SOLUTION


# %%
check.merges(merge_, unmerge_, LoRALinear)


# %%
def some_commands(model):
    """Eight test prompts as the model reads them: ids and attention mask, on its device."""
    prompts = [messages[:-1] for messages in unseen["messages"][:8]]
    form = {"padding": True, "return_dict": True, "return_tensors": "pt"}
    ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, **form)
    return ids.to(model.device)


def logits_of(model, dtype, merged):
    """Logits (k, vocab), in fp32, of a copy of `model` in `dtype`, at the k real tokens."""
    ids = some_commands(model)
    twin = mergeable(model).to(dtype).eval()
    for layer in lora_layers(twin) if merged else []:
        merge_(layer)
    with torch.no_grad():
        return twin(**ids).logits[ids["attention_mask"].bool()].float().cpu()


# %% tags=["experiment"]
if lab.experiment("Is a merged model the same model?", 4, needs=["2.2", "2.4", "2.7"]):
    exact = logits_of(model, torch.float32, merged=False)
    gaps = {
        "fp32, merged": logits_of(model, torch.float32, merged=True) - exact,
        "bf16, unmerged": logits_of(model, torch.bfloat16, merged=False) - exact,
        "bf16, merged": logits_of(model, torch.bfloat16, merged=True) - exact,
    }
    display(plots.merge_rounding(gaps))

# %% [markdown]
# Each histogram shows how far the logits are from those of the unmerged model in fp32, at all
# tokens of eight prompts. In fp32 merging costs nothing that matters. In bf16 there are two kinds
# of error. Computing in bf16 moves the logits, merged or not. Merging also rounds $W + \Delta W$ to
# eight binary digits, but saves the rounding of two thin products. So compare the two colours of
# bf16. Where they cover each other, the merged model is no further off than the unmerged one.
#
# The small bumps at their right ends are the logits at the first token of each prompt. They are off
# by roughly one, merged or not. No answer depends on what is predicted there.
#
# So "merging gives exactly the same model" is true in exact arithmetic. In a file it is true up to
# rounding. Lab 6 asks whether the answers change, and what happens to updates much smaller than
# this one.
#
# Can anybody tell that it was LoRA? Nothing in the merged file says so. But whoever has the base
# model can subtract it and take the SVD of lab 1. (Here in fp32; rounding to bf16 would add noise.)

# %% tags=["experiment"]
if lab.experiment("Can one tell that it was LoRA?", 2, needs=["2.2", "2.4", "2.7"]):
    layer = lora_layers(mergeable(model).float())[0]
    W0 = layer.base.weight.clone()
    merge_(layer)
    sizes = torch.linalg.svdvals(layer.base.weight - W0)
    print(f"singular values of W' - W0: the 1st {sizes[0]:.1e}, the 8th {sizes[7]:.1e}, then")
    print(f"the 9th {sizes[8]:.1e}: {sizes[7] / sizes[8]:,.0f} times less. Its rank was 8.")

# %% [markdown]
# Eight singular values stand far above the rest, and the rest is rounding. So the change has rank
# 8.

# %% [markdown]
# ### Unmerge
#
# A server could merge an adapter, answer, take it away and merge the next, so that no request pays
# for thin products. In exact arithmetic $W + \Delta W - \Delta W$ is $W$. In bf16 a weight has
# eight binary digits, and both the sum and the difference are rounded.
#
# Try it with three decimal digits. 5.23 + 0.054 is 5.284, kept as 5.28; minus 0.054 it is 5.226,
# kept as 5.23 again. But 9.97 + 0.054 is 10.024, kept as 10.0; minus 0.054 it is 9.946, kept as
# 9.95. How often will that happen?

# %%
guess_left = lab.predict("In bf16, what percent of the weights come back wrong?", None)


# %%
def undone(model, dtype):
    """After merge_ and unmerge_: share of weights that changed, |error| / |W|, |update| / |W|."""
    changed = count = error = size = update = 0
    for layer in lora_layers(mergeable(model).to(dtype)):
        before = layer.base.weight.clone().float()
        merge_(layer)
        unmerge_(layer)
        gap = layer.base.weight.float() - before
        changed += (gap != 0).sum().item()
        count += gap.numel()
        error += gap.square().sum().item()
        size += before.square().sum().item()
        update += (layer.scaling * layer.B.float() @ layer.A.float()).square().sum().item()
    return changed / count, math.sqrt(error / size), math.sqrt(update / size)


# %% tags=["experiment"]
if lab.experiment("A merge undone", 4, needs=["2.2", "2.4", "2.7"]):
    left = {"bf16": undone(model, torch.bfloat16), "fp32": undone(model, torch.float32)}
    display(plots.undone(left, guess_left))
    guess_left.beside(100 * left["bf16"][0])
    for name, (_, error, update) in left.items():
        print(f"{name}: |error| is {error:.1e} of |W|, the update was {update:.1e} of it")

# %% [markdown]
# The bars count weights of the adapted layers that differ afterwards, by however little. Below each
# bar stands how large the error is: its root mean square over all these weights, against that of
# the update.
#
# In bf16 most weights come back exactly. The sum is off by less than half of the last digit of $W$,
# and the subtraction lands on $W$ again. Two cases went wrong in our run. Together they made nearly
# all of the 3.7%.
#
# - The sum needs a larger exponent, as in 9.97 + 0.054. Then the last digit of $W$ can get lost.
#   (2.1% of the weights)
# - The sum lies exactly between two numbers that bf16 has, and rounding chooses the even one, both
#   times. In decimals, 5.23 + 0.055 is 5.285, kept as 5.28; minus 0.055 it is 5.225, kept as 5.22.
#   (1.6%)
#
# The error is about 2% of the update in bf16, and a hundred thousand times smaller in fp32. That is
# what fp32 buys: a smaller error, and not fewer wrong weights in general. (Here they are fewer,
# since model, `A` and `B` come from bf16: most digits of an fp32 number are empty, and many sums
# are exact.)
#
# In bf16 the error grows with every adapter that comes and goes. In a simulation (random matrices
# in bf16, updates of 2.7% of $|W|$, another one each time) a hundred merges, each undone, left
# nearly eight times the error of one. A random walk would give ten. So do not rely on `unmerge_` in
# 16 bits. Keep the base, and merge into a fresh copy of it.

# %% [markdown]
# ## Save and load
#
# What has training added to the model? An `A` and a `B` in each adapted layer, and nothing else,
# since everything else is frozen. So that is all you have to keep, or to send to somebody who has
# the base.

# %% [markdown]
# ### Exercise 2.8 · `adapter_state`, `load_adapter_`
#
# ●●○ · 8 min · 3 points
#
# `adapter_state` returns the `A` and `B` of every `LoRALinear`, and nothing else: other modules may
# have an `A`, too. A key is the dotted name of the layer, then `.A` or `.B`. `load_adapter_` copies
# such a dict into the parameters of a model that has the same layers. A key that is missing or that
# fits nowhere is a `KeyError`, a tensor of another shape a `ValueError`, and the error names the
# key. In either case nothing is copied: an adapter that is half loaded is worse than one that does
# not load.
#
# <details><summary>Hint</summary>
#
# `named_modules()` tells you which modules are `LoRALinear`. Compare two sets of names before you
# copy anything. `copy_` says nothing when it can repeat a column to make a shape fit.
# </details>


# %%
def adapter_state(model):
    """{"dotted.name.A": tensor, "dotted.name.B": tensor, ...} of every LoRALinear in `model`."""
    # BEGIN SOLUTION
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LoRALinear)]
    return {f"{name}.{key}": getattr(m, key).detach() for name, m in layers for key in "AB"}
    # END SOLUTION


def load_adapter_(model, state):
    """Copy `state` into `model`; KeyError for a missing or unknown name, ValueError for a shape."""
    # BEGIN SOLUTION
    mine = adapter_state(model)
    if wrong := sorted(mine.keys() ^ state.keys()):
        raise KeyError(f"missing or unknown: {', '.join(wrong)}")
    if wrong := [name for name in mine if mine[name].shape != state[name].shape]:
        raise ValueError(f"of another shape: {', '.join(wrong)}")
    for name, tensor in mine.items():
        tensor.copy_(state[name])
    # END SOLUTION


# %%
check.round_trip(adapter_state, load_adapter_, LoRALinear)

# %% tags=["experiment"]
if lab.experiment("How large is what you learned?", 2, needs=["2.2", "2.4", "2.5", "2.8"]):
    learned = adapter_state(model)
    adapter_bytes = sum(t.nbytes for t in learned.values())
    model_bytes = sum(p.nbytes for p in model.parameters()) - adapter_bytes
    kind = next(iter(learned.values())).dtype
    print(f"{len(learned)} tensors, {adapter_bytes / 1e6:.2f} MB in {kind}")
    print(
        f"the model they belong to: {model_bytes / 1e6:.0f} MB, {model_bytes / adapter_bytes:.0f}x"
    )

# %% [markdown]
# One base model serves many such files. You will read "an adapter is 10 to 50 MB" and "a few KB".
# Neither is a law. The size is $r\,(d_\text{in} + d_\text{out})$, summed over the adapted layers,
# times the bytes of a number.

# %% [markdown]
# ## Scaling
#
# Why divide by $r$ at all, and not by something else?

# %% [markdown]
# ### Exercise 2.9 · `scaling`
#
# ●○○ · 2 min · 1 point
#
# LoRA scales its update by $\alpha / r$. Rank-stabilised LoRA (rsLoRA, Kalajdzievski
# [2023](https://arxiv.org/abs/2312.03732)) uses $\alpha / \sqrt{r}$. Return the second where
# `rank_stabilized` is true, else the first.


# %%
def scaling(alpha, r, rank_stabilized=False):
    """The factor before B A, a float."""
    # BEGIN SOLUTION
    return alpha / math.sqrt(r) if rank_stabilized else alpha / r
    # END SOLUTION


# %%
check.scales(scaling)

# %% [markdown]
# Does the choice matter? Train a few steps at each rank with the same $\alpha$ and the same
# learning rate. Then measure how far the weights have moved: the norm of the update relative to
# that of $W$.
#
# You can work out two extremes. An entry of $BA$ is a sum of $r$ terms. If their signs are
# independent, it grows like $\sqrt{r}$; if they agree, like $r$. From r=4 to r=256 the update then
# changes by these factors:
#
# | | signs independent | signs agree |
# |---|---|---|
# | $\alpha / r$ | 1/8 | 1 |
# | $\alpha / \sqrt{r}$ | 1 | 8 |
#
# Which of the two is nearer?


# %%
def update_size(r, stabilized, steps=4, alpha=16):
    """Mean of |update| / |W| over the adapted layers after a few steps at rank r."""
    torch.manual_seed(0)
    model, _ = models.load()
    # the layer divides by r once more, hence the factor
    inject(model, ["q_proj", "v_proj"], r, alpha=r * scaling(alpha, r, stabilized))
    layers = [m for m in model.modules() if isinstance(m, LoRALinear)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    for batch in loop.batches(home, tokenizer, size=4, steps=steps):
        loop.answer_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    sizes = [(m.scaling * m.B @ m.A).norm() / m.base.weight.norm() for m in layers]
    return torch.stack(sizes).mean().item()


# %% tags=["experiment"]
if lab.experiment("How far a few steps go, by rank", 20, needs=["2.2", "2.4", "2.9"]):
    ranks, rows = [4, 16, 64, 256], {"alpha / r": [], "alpha / sqrt(r)": []}
    for r in live.progress(ranks, "ranks"):
        rows["alpha / r"].append(update_size(r, stabilized=False))
        rows["alpha / sqrt(r)"].append(update_size(r, stabilized=True))
    display(plots.update_sizes(ranks, rows))

# %% [markdown]
# Each band reaches from what independent signs would give (its lower edge) to what signs that agree
# would give. In our run the norm fell to a fifth under $\alpha / r$ and grew 1.1 times under
# $\alpha / \sqrt{r}$. Both are nearer to independent signs.
#
# But a norm is not yet a speed of learning. Much of an early update is random, and little of that
# lowers the loss: what counts is the part in which the terms agree. Lab 5 measures which rule keeps
# the speed the same. Whenever you read a comparison of ranks, ask which rule it used, and whether
# the learning rate was tuned for each rank.

# %% [markdown]
# ## Is it really LoRA?
#
# The last test of your code is somebody else's code. The next cell copies your trained `A` and `B`
# into a PEFT model with the same configuration and compares the logits.

# %% tags=["experiment"]
if lab.experiment("Your adapter inside PEFT", 3, needs=["2.2", "2.4", "2.8"]):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=16, target_modules=everything, task_type="CAUSAL_LM")
    theirs = get_peft_model(models.load(dtype=torch.float32)[0], config).eval()
    mine = {f"base_model.model.{name}": tensor for name, tensor in adapter_state(model).items()}
    for name, tensor in theirs.named_parameters():
        key = name.replace("lora_A.default.weight", "A").replace("lora_B.default.weight", "B")
        if key in mine:
            tensor.data.copy_(mine[key])
    ids = some_commands(theirs)
    with torch.no_grad():
        gap = (theirs(**ids).logits - copy.deepcopy(model).float().eval()(**ids).logits).abs().max()
    print(f"largest difference of a logit: {gap:.1e}")

# %% [markdown]
# They are equal, to rounding (in our run to the last digit). What you wrote is LoRA. What PEFT
# adds, in a file of more than a hundred kilobytes, is generality: more layer types, several
# adapters, quantised bases. Lab 3 uses it.

# %% [markdown]
# ### Exercise 2.10 · Quiz
#
# ●○○ · 5 min · 3 points
#
# The first letter that you check counts; then read what it says.
#
# **q1. Why is `B` zero at first, and `A` random?**
#
# - (a) Any start is as good: a few steps of training repair what a random product did.
# - (b) Training starts at the base model, and `B` gets a gradient at the first step.
# - (c) So both get a small gradient at the first step, and neither one runs away.
# - (d) With `A` at zero and `B` random no gradient would ever reach the layer.
#
# **q2. What does a step of full fine-tuning compute and keep that a step of LoRA does not?**
#
# - (a) The activations: frozen layers keep nothing for backward.
# - (b) The way back: gradients pass frozen layers without a product.
# - (c) The gradients of frozen weights, and their moments in Adam.
# - (d) The way forward: two thin products stand in for the one wide product.
#
# **q3. Compare r=8, alpha=16 with r=64, alpha=128.**
#
# - (a) The factor before BA is the same; the second trains eight times the numbers.
# - (b) The second multiplies BA by eight times as much, and trains as many numbers.
# - (c) Both train as many numbers; eight times the rank is eight times the scaling.
# - (d) The second trains eight times as many numbers, so a step takes eight times as long.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "b", "q2": "c", "q3": "a"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - LoRA is two thin matrices beside a frozen one, scaled by $\alpha / r$. `B` starts at zero.
# - It saves the frozen weights' gradients and their optimizer states, most of what is held between
#   steps. Weights and most activations stay. So it helps where optimizer states fill your memory.
#   Where activations do, see lab 4.
# - It saves the products that would give those gradients, nearly a third of a step's arithmetic.
#   The clock saves about as much.
# - An adapter is a small file. In exact arithmetic a merge changes nothing. In 16 bits it rounds,
#   and `unmerge_` does not bring every weight back: keep the base.
# - Whoever compares ranks at one $\alpha$ and one learning rate may be comparing step sizes. Ask
#   which scaling rule was used, and whether the rate was tuned.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["2.2", "2.4"]):
    share = f"{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.1f}M numbers"
    lab.headline(
        f"own LoRA, {share}: right answers to unseen commands "
        f"{right(base_answers)[0]} → {right(lora_answers)[0]} of {len(unseen)}, "
        f"loss {base_loss:.2f} → {lora_loss:.2f} in {curve.seconds[-1]:.0f} s"
    )
