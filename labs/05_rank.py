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
# # Lab 5 · Which rank?
#
# Is r=8 enough? Should you double alpha when you double the rank? To find out, people usually train
# at a few ranks and compare losses. In this lab, you will see why two such comparisons contradict
# each other, and then make a fair one. You will then look for a task where rank matters.
#
# {{ time }}

# %%
import labkit

lab, check = labkit.start("05_rank")

# %%
import functools
import math

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from peft import LoraConfig, get_peft_model
from torch import nn

from labkit import live, measured, tasks
from labkit.figures import lab05 as figures
from labkit.measured import tables
from labkit.training import loop, models

# %% [markdown]
# ## Two comparisons
#
# Train LoRA adapters on `home` at r=4, 16 and 64, for 24 steps with 4 commands per step. Then
# measure the loss on 100 commands with unseen sentence patterns. All other settings match lab 2.


# %%
home, unseen = tasks.load("home"), tasks.draw("home", "test", 100)


@functools.cache  # each setting is trained only once
def train_home(rank, alpha, learning_rate, seed):
    """Train LoRA on home for 24 steps; return {"loss": held-out loss in nats per token}."""
    torch.manual_seed(seed)
    model, tokenizer = models.load()
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")
    model = get_peft_model(model, config)
    rows = tasks.draw("home", "train", 96, seed)
    batches = loop.batches(rows, tokenizer, size=4, steps=24, seed=seed)
    title = f"r={rank}, alpha={alpha:g}, rate {learning_rate:g}"
    for _ in live.progress(loop.train(model, batches, 24, learning_rate), title, 24):
        pass
    return {"loss": loop.held_out_loss(model, tokenizer, unseen)}


# %% [markdown]
# Two people run this experiment with the same learning rate, 0.001. One sets $\alpha = 2r$, as many
# tutorials do. The other keeps $\alpha = 32$ throughout. What will each person conclude?

# %% tags=["experiment", "cover"]
if lab.experiment("Three ranks, three rules for alpha", 105):
    ranks, rate = [4, 16, 64], 1e-3
    rules = {
        "alpha = 2r": lambda r: 2 * r,
        "alpha = 32": lambda r: 32,
        "alpha = 128": lambda r: 128,
    }
    found = {
        rule: [
            train_home(rank=rank, alpha=alpha_of(rank), learning_rate=rate, seed=0)["loss"]
            for rank in ranks
        ]
        for rule, alpha_of in rules.items()
    }
    display(figures.rules(ranks, found))

# %% [markdown]
# "Rank matters a lot, so use r=64," says the first person. "Rank doesn't matter," says the second.
# Both people used the same data, seed and ranks. Only $\alpha$ differed, and it explains nearly all
# the disagreement: with $\alpha = 128$ for both, r=4 is almost as good as r=64.
#
# ## How much does a step lower the loss?

# %% [markdown]
# ### Exercise 5.1 · `first_update`
#
# ●●● · 15 min · 3 points
#
# How does the effective weight, $W + \frac{\alpha}{r} B A$, change in one training step? $B$ starts
# at zero. Let $G$, of shape `(d_out, d_in)`, be the gradient of the loss with respect to $W$.
# Return the change in the effective weight after Adam's first step with learning rate `lr`.
#
# In its first step, Adam changes every parameter by $-\text{lr} \cdot \frac{g}{|g| + \epsilon}$,
# where $g$ is that parameter's gradient. Ignore $\epsilon$, and leave parameters with a zero
# gradient unchanged. Use the chain rule to derive the gradients of $B$ and $A$. At $B = 0$, one of
# them is zero. The check compares your result with `torch.optim.Adam`.
#
# <details><summary>Hint</summary>
#
# With $Y = W x + \frac{\alpha}{r} B A x$, the gradient of $B$ is $\frac{\alpha}{r} G A^\top$, and
# the gradient of $A$ is $\frac{\alpha}{r} B^\top G$. A number divided by its absolute value is its
# sign.
# </details>


# %%
def first_update(G, A, r, alpha, lr):
    """G (d_out, d_in), A (r, d_in) -> change in W (d_out, d_in) in Adam's first step from B = 0."""
    # BEGIN SOLUTION
    gradient = alpha / r * G @ A.T  # of B, (d_out, r)
    B = -lr * torch.sign(gradient)
    return alpha / r * B @ A  # A has not moved: at B = 0, its gradient is zero
    # END SOLUTION


# %%
check.first_step(first_update)

# %% [markdown]
# Your formula also shows how much the step lowers the loss. To first order, a change $\Delta W$
# lowers the loss by $-\langle G, \Delta W \rangle$. (Multiply $G$ and $\Delta W$ entrywise and
# sum.) For your update, the decrease is
#
# $$\frac{\alpha}{r}\, \text{lr} \sum_{k=1}^{r} \lVert G a_k \rVert_1,$$
#
# where $a_k$ is row $k$ of $A$ and $\lVert \cdot \rVert_1$ sums absolute values. The decrease is a
# sum of $r$ similar terms, times $\alpha / r$. What happens when you raise $r$ and keep $\alpha$
# fixed?

# %% [markdown]
# ### Exercise 5.2 · `scaling`
#
# ●○○ · 4 min · 1 point
#
# Return the factor that multiplies $BA$. LoRA divides $\alpha$ by $r$. *rsLoRA* ([Kalajdzievski
# 2023](https://arxiv.org/abs/2312.03732)) divides $\alpha$ by $\sqrt r$ instead. In PEFT,
# `use_rslora=True` selects rsLoRA.


# %%
def scaling(alpha, r, rank_stabilized=False):
    """The factor that multiplies B @ A, as a float."""
    # BEGIN SOLUTION
    return alpha / math.sqrt(r) if rank_stabilized else alpha / r
    # END SOLUTION


# %%
check.scales(scaling)

# %%
guess_step = lab.predict(
    "With alpha = 2r, how many times as much does the first step help at r=64 as at r=4?", None
)


# %%
def gradient_of(layer=15):
    """The gradient (d_out, d_in) of one q_proj weight on four commands, in fp32."""
    model, tokenizer = models.load(dtype=torch.float32)
    weight = model.requires_grad_(False).model.layers[layer].self_attn.q_proj.weight
    weight.requires_grad_(True)
    batch = next(loop.batches(home, tokenizer, size=4, steps=1))
    loop.answer_loss(model, batch, autocast=False).backward()
    return weight.grad.cpu()


# %% tags=["experiment"]
if lab.experiment("The first step of a real layer", 2, needs=["5.1", "5.2"]):
    G, helps = gradient_of(), {}
    wide = torch.empty(64, G.shape[1])
    drawn = [nn.init.kaiming_uniform_(wide.clone(), a=5**0.5) for _ in range(32)]
    factors = {
        "alpha = 2r": lambda r: scaling(2 * r, r),
        "rsLoRA, alpha = 32": lambda r: scaling(32, r, rank_stabilized=True),
        "alpha = 32": lambda r: scaling(32, r),
    }
    for rule, factor in factors.items():
        helps[rule] = []
        for r in (4, 8, 16, 32, 64):
            alpha = factor(r) * r
            steps = [first_update(G, A[:r], r, alpha, lr=1e-3) for A in drawn]
            helps[rule].append(-sum((G * step).sum().item() for step in steps))
    display(figures.first_steps([4, 8, 16, 32, 64], helps, guess_step))
    guess_step.compare(helps["alpha = 2r"][-1] / helps["alpha = 2r"][0])

# %% [markdown]
# To first order, the first step's effect is proportional to $\alpha$ and independent of the rank,
# because dividing by $r$ cancels the sum's growth with $r$. With $\alpha = 2r$, the first step
# lowers the loss about sixteen times as much at r=64 as at r=4. That fits the first comparison: at
# r=4, where $\alpha = 8$, a learning rate of 0.001 is too low. Why does rsLoRA divide by $\sqrt r$?
# Under plain gradient descent, the effect is proportional to $\alpha^2 / r$, so at a fixed $\alpha$
# it falls as $r$ grows. Dividing by $\sqrt r$ makes it independent of $r$. Under Adam, it makes the
# first step's effect grow with $\sqrt r$ instead.
#
# ## A fair comparison
#
# Use a grid search to find the best learning rate for each rank.

# %% [markdown]
# ### Exercise 5.3 · `sweep`
#
# ●●○ · 9 min · 2 points
#
# Run `train_fn` with every combination of rank and learning rate, and collect one row per run. Call
# the function as `train_fn(rank=…, alpha=…, learning_rate=…, seed=…)`; it returns a dict of
# results. Pass `alpha_of(rank)` as `alpha`. Use the same seed, such as 0, for all runs, so that
# only the settings differ. Don't convert or round `rank` or `learning_rate`.
#
# Return a DataFrame with the columns `rank`, `alpha` and `learning_rate`, plus one column per
# result. Row order doesn't matter.


# %%
def sweep(train_fn, ranks, learning_rates, alpha_of):
    """A DataFrame with one row per run: rank, alpha, learning_rate, and train_fn's results."""
    # BEGIN SOLUTION
    rows = []
    for rank in ranks:
        for learning_rate in learning_rates:
            row = {"rank": rank, "alpha": alpha_of(rank), "learning_rate": learning_rate}
            rows.append(row | train_fn(**row, seed=0))
    return pd.DataFrame(rows)
    # END SOLUTION


# %%
check.sweeps(sweep)

# %% [markdown]
# **Try it: rank, alpha and rate.** First run the cell as it is, with $\alpha = 32$. Then change
# `alpha_of` to `lambda rank: 2 * rank`. Which learning rate will be best for each rank?

# %%
guess_rate = lab.predict(
    "With alpha = 32, which learning rate is best at r=64: 1e-3, 3e-3 or 1e-2?", None
)

# %% tags=["experiment"]
learning_rates = [1e-3, 3e-3, 1e-2]
alpha_of = lambda rank: 32  # noqa: E731
if lab.experiment("A grid of your own", 90, needs=["5.3"]):
    grid = sweep(train_home, [4, 16, 64], learning_rates, alpha_of)
    table = grid.pivot(index="rank", columns="learning_rate", values="loss")
    display(figures.grid(table))
    guess_rate.compare(table.loc[64].idxmin())

# %% [markdown]
# With $\alpha = 32$, the same learning rate is best for all three ranks on this coarse grid. Over
# three stored seeds at that rate, the loss at r=64 was 4% lower than at r=4 (95% interval: 11%
# lower to 2% higher; [evidence](../docs/evidence/05_rank.md#ranks-at-their-best-rate)). With
# $\alpha = 2r$, the best rates for r=4, 16 and 64 are 1e-2, 3e-3 and 1e-3. At these rates, the
# mean gap between r=4 and r=64 shrinks from 0.63 to 0.04 nats in the stored runs.
#
# For several values of $\alpha$, the next figure shows the lowest learning rate that brings the
# held-out loss to 0.45, interpolated between the rates that we tried. These precomputed runs use up
# to three seeds.

# %% tags=["experiment"]
if lab.experiment("Learning rate against alpha", 0, needs=["5.3"]):
    reached = tables.rates_reaching(measured.load("rank_sweep"), loss=0.45)
    display(figures.rate_against_alpha(reached))

# %% [markdown]
# The learning rate you need falls roughly as $\alpha^{-0.7}$: with sixteen times the $\alpha$, you
# need a seventh of the rate. With targets of 0.5 and 0.4, the exponents are -0.6 and -0.8. So
# $\alpha$ and the learning rate act almost like a single knob: fix one and tune the other. Take two
# common rules:
#
# - *"When you double r, double alpha."* Doubling alpha doubles the first step's effect, so you
#   would have to tune the learning rate again. Keep both fixed when you change the rank. "LoRA
#   Without Regret"
#   ([2025](https://thinkingmachines.ai/blog/lora/)) reached the same conclusion for large models.
# - *"LoRA needs ten times the learning rate of full fine-tuning."* On our grids, the ratio is about
#   30 for $\alpha = 8$, 10 to 20 for $\alpha = 32$, and 3 to 10 for $\alpha = 128$
#   ([evidence](../docs/evidence/05_rank.md#learning-rate-against-alpha)).
#
# ## Where rank binds
#
# On `home`, r=4 does almost as well as r=64. A rank *binds* if a higher rank reaches a clearly
# lower loss when each uses its own best learning rate. Random data makes a clean test: it has no
# patterns, so the adapter must store every bit.

# %% [markdown]
# ### Exercise 5.4 · `bits_stored`
#
# ●●○ · 8 min · 2 points
#
# An adapter memorizes pairs of a random key and a random value. Each value is one of `n_choices`
# equally likely choices, so it carries $\log_2(\text{n\_choices})$ bits. After training, the
# cross-entropy of a value shows how many of its bits are still missing. `losses` contains one
# cross-entropy per pair, in *nats*. Return the total number of bits that the adapter stored. On
# some pairs, the model may do worse than guessing: subtract those bits. If the total is negative,
# return 0.
#
# <details><summary>Hint</summary>
#
# One nat is $1 / \ln 2$ bits. Don't clamp each pair at 0: a model that has learned nothing makes
# lucky guesses, too, and you would count only those.
# </details>


# %%
def bits_stored(losses, n_choices):
    """losses (n,) in nats, one per pair -> total bits stored by the adapter, a float."""
    # BEGIN SOLUTION
    bits = math.log2(n_choices) - losses / math.log(2)
    return max(0.0, bits.sum().item())
    # END SOLUTION


# %%
check.stores(bits_stored)

# %% [markdown]
# Each key consists of four random tokens. Its value is drawn at random from 64 tokens, so each pair
# carries 6 bits. To make the rank bind, keep the adapter small: apply LoRA to a single matrix, the
# last layer's `gate_proj`. Each unit of rank then adds 2,112 parameters. All earlier layers are
# frozen, so each run computes their output only once per key, and training takes seconds.


# %%
VALUES = 64  # 6 bits per pair


def last_layer(n):
    """The model, and the inputs (n, 576) to the last layer's MLP for n random keys."""
    keys = torch.randint(1000, 49000, (n, 4), generator=torch.Generator().manual_seed(0))
    model, seen = models.load(dtype=torch.float32)[0].cpu(), []
    norm = model.model.layers[-1].post_attention_layernorm
    hook = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, -1]))
    with torch.no_grad():
        for some in live.progress(keys.split(50), "running the frozen layers"):
            model(some, logits_to_keep=1)
    hook.remove()
    return model, torch.cat(seen)


def memorize(rank, n, passes=100, learning_rate=0.02, seed=0):
    """Memorize n random pairs with LoRA on the last gate_proj; return the bits it stores."""
    model, inputs = last_layer(n)
    torch.manual_seed(seed)
    last = rf".*layers\.{len(model.model.layers) - 1}\.mlp\.gate_proj"
    get_peft_model(model, LoraConfig(r=rank, lora_alpha=32, target_modules=last))
    layer, head = model.model.layers[-1], model.lm_head.weight[1000 : 1000 + VALUES]
    values = torch.randint(VALUES, (n,))

    def losses(rows):
        x = inputs[rows]
        x = model.model.norm(x + layer.mlp(layer.post_attention_layernorm(x)))
        return F.cross_entropy(x @ head.T, values[rows], reduction="none")

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable)
    for step in live.progress(range(passes), f"r={rank}, {n} pairs"):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / passes)
        for rows in torch.randperm(n).chunk(4):
            losses(rows).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return bits_stored(losses(torch.arange(n)), VALUES)


stored = {}  # your results so far: {(rank, pairs): bits}

# %% [markdown]
# **Try it: rank and number of pairs.** The 250 pairs carry 1,500 bits. What is the smallest rank
# that stores nearly all of them? Try the three ranks in the cell, then change `n_pairs`.

# %%
guess_bits = lab.predict("What percentage of the 1,500 bits does an adapter with r=1 store?", None)

# %% tags=["experiment"]
n_pairs, memory_ranks = 250, [1, 2, 8]
if lab.experiment("Memorize random pairs", 10, needs=["5.4"]):
    for rank in memory_ranks:
        stored[rank, n_pairs] = memorize(rank, n_pairs)
    display(figures.memory(stored, guess_bits))
    guess_bits.compare(100 * stored.get((1, 250), float("nan")) / 1500)

# %% [markdown]
# Here, the rank limits how much the adapter memorizes in 100 passes. The next figure is for 1,000
# pairs and three seeds, with each rank at the best of five learning rates.

# %% tags=["experiment"]
if lab.experiment("Where rank binds", 0, needs=["5.4"]):
    runs = measured.load("rank").query("study == 'chosen'").groupby("setting", sort=False)
    display(figures.bits({int(r[2:]): list(bits) for r, bits in runs["value"]}, available=6000))

# %% [markdown]
# The adapter stores 14% of the bits at r=1, about 90% at r=4, and nearly all of them at r=8. No
# learning rate we tried makes up for a low rank. At r=1, it stores 700 to 850 bits with either 250
# or 1,000 pairs, but this isn't a fixed limit: after 400 passes, it stores about 930 and 1,080,
# respectively ([evidence](../docs/evidence/05_rank.md#where-rank-binds)).
#
# A typical adapter on all linear layers already has 305,280 parameters at r=1. The 96 `home`
# commands probably contain far fewer bits than it can store, though we didn't measure that. Large
# code or math datasets contain many more. In long training runs on such data, LoRA fell behind full
# fine-tuning, and lower ranks fell further behind ([Biderman et al.
# 2024](https://arxiv.org/abs/2405.09673)).
#
# ## Variants
#
# PEFT includes many variants of LoRA, most of which beat LoRA in their own papers:
#
# | method | what it changes |
# |---|---|
# | PiSSA | starts from the top singular vectors of $W$ and trains them |
# | rsLoRA | divides $\alpha$ by $\sqrt r$ |
# | DoRA | trains the norm of each row of the weight separately |
# | LoRA+ | gives `B` a higher learning rate |
# | LoRA-FA | freezes `A` |
#
# For a fair comparison, run each method at its best learning rate with several seeds. For each
# seed, all methods see the same data in the same order, so compare them seed by seed.

# %% [markdown]
# ### Exercise 5.5 · `paired_difference`
#
# ●●○ · 12 min · 3 points
#
# `frame` has one row per run, with the columns `method`, `seed` and `score`, and possibly others.
# Each method has one row per seed. Ignore the row order and the index.
#
# For each seed that both methods share, compute $\text{score}(a) - \text{score}(b)$. For the $n$
# differences, return `(mean, error)` as two floats:
#
# - A failed run has a score of NaN. Skip its seed: $n$ counts only the remaining seeds.
# - `error` is the standard error of the mean: the sample standard deviation of the differences
#   (with $n - 1$ in the denominator) divided by $\sqrt{n}$.
# - With one shared seed, `error` is NaN. With no shared seed, both values are NaN.
#
# Don't change `frame`.
#
# <details><summary>Hint</summary>
#
# If two Series are indexed by seed, pandas subtracts them seed by seed. A seed that occurs in only
# one Series gives NaN. `Series.std()` divides by $n - 1$, while `np.std` divides by $n$.
# </details>


# %%
def paired_difference(frame, a, b):
    """(mean, standard error) of score(a) - score(b) over the seeds that both methods share."""
    # BEGIN SOLUTION
    by_seed = frame.set_index("seed")
    first = by_seed.loc[by_seed["method"] == a, "score"]
    second = by_seed.loc[by_seed["method"] == b, "score"]
    gaps = (first - second).dropna()
    error = gaps.std() / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
    return float(gaps.mean()), float(error)
    # END SOLUTION


# %%
check.pairs(paired_difference)

# %% tags=["experiment"]
if lab.experiment("Variants, each at its best learning rate", 0, needs=["5.5"]):
    runs = tables.at_best_rate(measured.load("variants")).rename(columns={"loss": "score"})
    scores = runs.pivot(index="seed", columns="method", values="score")
    scores = scores.drop(columns=["OLoRA", "orthogonal", "MiSS"])  # see the evidence page
    lora = scores.pop("LoRA")
    display(figures.variants((100 * scores.sub(lora, axis=0) / lora.mean()).to_dict("list")))
    for method in ("full fine-tuning", "rsLoRA"):
        mean, error = (100 * x / lora.mean() for x in paired_difference(runs, method, "LoRA"))
        print(f"{method}: loss {mean:+.0f}% relative to LoRA's, standard error {error:.1f}%")

# %% [markdown]
# These runs are on `home`, with adapters at r=16 and $\alpha = 32$. Each method uses its best
# learning rate, chosen on the held-out commands themselves. (At r=16, rsLoRA is LoRA with
# $\alpha = 128$.) We couldn't distinguish any variant from LoRA: the 95% intervals (4.3 standard
# errors, with three seeds) range from ±9% to ±28%. Lee et al.
# ([2026](https://arxiv.org/abs/2602.04998)) find that variants come within 1-2% of each other once
# the learning rate is tuned. Full fine-tuning was better for all three seeds, by 11 to 12%. Three
# seeds can agree by chance: in the grid above, its gain was 10% ± 20%
# ([evidence](../docs/evidence/05_rank.md#learning-rate-against-alpha)).
#
# At a shared learning rate, the ranking would depend on that rate. At 1e-3, rsLoRA is best (0.31),
# and LoRA is far behind (0.47). At 3e-3, LoRA is at its best (0.33), and LoRA+ diverges (5.5, with
# one seed; [evidence](../docs/evidence/05_rank.md#variants)).
#
# ## Case study: 48 kinds of tickets
#
# Do you need LoRA at all? A shop sorts support tickets into 48 categories and has 20 training
# examples per category. We tested five methods on 288 new tickets: logistic regression on TF-IDF
# features (of words and of characters), LoRA, QLoRA and full fine-tuning. Each of the last three
# used the best of three learning rates, with three seeds.

# %%
guess_words = lab.predict("What percentage of tickets does word-level TF-IDF get right?", None)

# %% tags=["experiment"]
if lab.experiment("48 categories, five methods", 0, needs=["5.5"]):
    scores = tables.at_best_rate(measured.load("tickets"), score="accuracy", lowest=False)
    display(figures.tickets(scores, guess_words))
    guess_words.compare(100 * scores.loc[scores["method"] == "TF-IDF", "accuracy"].mean())

# %% [markdown]
# TF-IDF trains in seconds and reaches 42% on words and 45% on characters: run such a baseline
# before you train an adapter. LoRA's lead of two points may be noise, since each score is accurate
# only to ±6 points. Full fine-tuning beats LoRA by 5 to 7 points for every seed, but on the same
# tickets, which also served to choose both rates. The training labels carry only 5,400 bits, and
# the adapter has 4.9 million parameters, so capacity is probably not the reason; the coarse grid of
# rates may be.
#
# ## Defaults
#
# | knob | start | when to change it |
# |---|---|---|
# | `r` | 16 | raise it if a higher rank, at its own best rate, lowers the held-out loss |
# | `lora_alpha` | 32, at every rank | leave it, and tune the learning rate |
# | learning rate | 2e-4 for 7B models, 1e-3 to 3e-3 for small ones | always tune it first |
# | targets | all linear layers or MLPs | avoid attention alone |
#
# The values for large models are common practice. On our small model, attention alone [did
# worst](../docs/evidence/05_rank.md#where-to-put-an-adapter).
#
# ## Take it with you
#
# This script sweeps learning rates at a fixed alpha and saves the best adapter.
#
# ```python
# from datasets import Dataset
# from peft import LoraConfig
# from trl import SFTConfig, SFTTrainer
#
# MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# ROWS = [(f"Add {i} and {i + 1}", str(2 * i + 1)) for i in range(80)]
#
# def message(role, text):
#     return [{"role": role, "content": text}]
#
# rows = [{"prompt": message("user", q), "completion": message("assistant", a)} for q, a in ROWS]
# train, held_out = Dataset.from_list(rows).train_test_split(16, seed=0).values()
# lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
# losses = {}
# for rate in (3e-4, 1e-3, 3e-3):
#     args = SFTConfig("sweep", learning_rate=rate, per_device_train_batch_size=8, bf16=False)
#     data = {"train_dataset": train, "eval_dataset": held_out}
#     trainer = SFTTrainer(MODEL, args, **data, peft_config=lora)
#     trainer.train()
#     losses[rate] = trainer.evaluate()["eval_loss"]
#     if losses[rate] == min(losses.values()):
#         trainer.save_model("my-lora")
# print(losses)
# ```

# %% [markdown]
# ### Exercise 5.6 · Quiz
#
# ●○○ · 4 min · 3 points
#
# Only your first answer to each question counts. Then read the explanation.
#
# **q1. A colleague trains adapters of rank 4, 16 and 64 with alpha = 2r, a learning rate of 2e-4
# and three seeds per rank. Rank 64 is clearly the best. What does this show?**
#
# - (a) The task contains more information than r=4 can store.
# - (b) The lower ranks have overfit.
# - (c) Not much yet: alpha also grew, so the steps were larger.
# - (d) Nothing, because three seeds are never enough.
#
# **q2. You double alpha and keep everything else the same. Which learning rate gives a similar
# run?**
#
# - (a) The old rate: alpha and the learning rate are independent.
# - (b) A bit more than half of the old rate.
# - (c) Twice the old rate, to keep up with alpha.
# - (d) A quarter of the old rate: alpha scales both A and B.
#
# **q3. When does a higher rank help, if you tune the learning rate for each rank?**
#
# - (a) Always: more parameters give a better fit.
# - (b) Never: r=8 is enough for every task.
# - (c) When the model is large, regardless of the data.
# - (d) When the data contains more information than the smaller adapter can store.


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
# - The first step's effect grows with the learning rate times $\alpha$, regardless of the rank.
#   With $\alpha = 2r$ and a single learning rate, you compare step sizes, not ranks.
# - $\alpha$ and the learning rate act almost like a single knob: the rate you need falls roughly as
#   $\alpha^{-0.7}$.
# - Rank binds when the data contains more information than the adapter can store during training.
#   On `home`, rank hardly matters.
# - Compare methods seed by seed, each at its own best learning rate, and include a baseline that
#   needs no GPU.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["5.3"]):
    spans = {rule: max(losses) - min(losses) for rule, losses in found.items()}
    lab.headline(
        f"r = 4 to 64 at one rate: losses differ by {spans['alpha = 2r']:.2f} with alpha = 2r "
        f"and by {spans['alpha = 32']:.2f} with alpha = 32; best rates in your last grid, by rank: "
        f"{', '.join(f'{rate:g}' for rate in table.idxmin(axis=1))}"
    )
