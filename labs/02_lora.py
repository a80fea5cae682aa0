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
# In this lab, you write LoRA in about forty lines of PyTorch, add it to a real language model, and
# teach the model a new task. Then you measure what LoRA saves and what it doesn't.
#
# In cells marked **Try it**, change a setting, predict the result, and rerun the cell. Some cells
# ask for a guess first. Wrong guesses cost no points.
#
# {{ time }}

# %%
import labkit

lab, check = labkit.start("02_lora")

# %%
import copy
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from IPython.display import display
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from labkit import live, tasks
from labkit.figures import lab02 as figures
from labkit.memory.measure import track
from labkit.plots import compare_answers
from labkit.training import generation, loop, models, packing

# %% [markdown]
# ## The idea
#
# A linear layer computes $y = W x$ with a weight matrix $W$ of shape `(d_out, d_in)`. Fine-tuning
# changes $W$ to $W + \Delta W$. LoRA ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) freezes
# $W$ and writes the update $\Delta W$ as a product of two small matrices:
#
# $$\Delta W = \frac{\alpha}{r}\, B A, \qquad A: (r, d_\text{in}), \quad B: (d_\text{out}, r).$$
#
# The *rank* $r$ is small: 8 and 16 are common choices. $\alpha$ scales the update. Only $A$ and $B$
# are trained.
#
# The figure shows one attention projection of the model you will train, drawn to scale.

# %%
display(figures.low_rank(d_out=576, d_in=576, r=8))

# %% [markdown]
# ### Exercise 2.1 · `lora_forward`
#
# ●●○ · 7 min · 2 points
#
# Compute the layer's output, including the update. `x` can have any leading dimensions: one vector,
# a batch, or a batch of sequences. Never form $BA$ or copy $W$: a second matrix as large as $W$
# would use up some of the memory that LoRA saves. The check measures the largest tensor you create.
#
# Work through one case by hand first. Let $W$ be the 2 × 2 identity, $A$ the row (1, 1), $B$ the
# column (1, 0), $\alpha = 2$ and $x = (1, 2)$. Then $W x = (1, 2)$, $A x = 3$ and $B A x = (3, 0)$.
# With $r = 1$, the factor $\alpha / r$ is 2, so the output is (7, 2).
#
# <details><summary>Hint</summary>
#
# Matrix multiplication is associative. Which grouping of `x`, `A` and `B` keeps every intermediate
# result small? Watch the transposes: `nn.Linear` computes `x @ W.T`.
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
# ### Exercise 2.2 · `LoRALinear`
#
# ●●● · 12 min · 3 points
#
# Wrap an existing `nn.Linear` in a layer with the attributes `base`, `A`, `B`, `r`, `scaling`
# ($\alpha / r$) and `merged`, initially `False` (exercise 2.6 changes it). Follow three rules:
#
# 1. `base` is the given module itself, frozen. A copy would double the memory use.
# 2. `A` starts with random entries of size about $1/\sqrt{d_\text{in}}$. The PEFT library draws
#    entries up to this size with `nn.init.kaiming_uniform_(A, a=math.sqrt(5))`. `B` starts at zero,
#    so the new layer is initially equivalent to the old one. As in PEFT, both are fp32
#    `nn.Parameter`s on the device of `base.weight`.
# 3. `forward` returns `base(x)` plus the scaled update, in the dtype of `base(x)`. Never create a
#   matrix as large as $W$. While `merged` is `True`, return only `base(x)`.
#
# <details><summary>Hint: where to begin</summary>
#
# Call `super().__init__()` before you assign modules and parameters, so that `nn.Module` can
# register them. `nn.Module` has a method that freezes all parameters of a module.
# </details>
#
# <details><summary>Hint: dtypes</summary>
#
# `base` may be in bf16 while `A` and `B` are in fp32. Convert `x` with `x.to(self.A.dtype)` before
# you multiply it by `A`. Convert the update back before you add it.
# </details>


# %%
class LoRALinear(nn.Module):
    """A frozen nn.Linear `base` plus the trainable update (alpha / r) B A."""

    def __init__(self, base, r, alpha):
        super().__init__()
        # BEGIN SOLUTION
        self.base = base.requires_grad_(False)
        self.r, self.scaling, self.merged = r, alpha / r, False
        device = base.weight.device
        self.A = nn.Parameter(torch.empty(r, base.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(base.out_features, r, device=device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        # END SOLUTION

    def forward(self, x):
        """x (..., d_in) -> (..., d_out), in the dtype of base(x)."""
        # BEGIN SOLUTION
        y = self.base(x)
        if self.merged:
            return y
        update = self.scaling * (x.to(self.A.dtype) @ self.A.T) @ self.B.T
        return y + update.to(y.dtype)
        # END SOLUTION


# %%
check.layer(LoRALinear)

# %% [markdown]
# ## Where should training start?
#
# Training should start from the base model, because a large random update would damage the model
# before the first step. The simplest way is to set $BA = 0$. Should `A`, `B`, or both be zero? The
# gradients rule out one choice.
#
# ### Exercise 2.3 · `lora_gradients`
#
# ●●● · 10 min · 3 points
#
# `dY` is the gradient of the loss with respect to the layer's output. Derive the gradients of `A`
# and `B` by hand and return them. Don't use `backward()` or other autograd functions.
#
# Try a case with a single row and a single output: $x = (1, 2)$, $A = (1, 1)$, $B = 2$, $\alpha =
# 2$ and $dY = 1$. With $r = 1$, the factor $\alpha / r$ is 2, so $dB = 2 A x = 6$ and $dA = 2 B\, x
# = (4, 8)$. If `x` has several rows, sum their gradients. You won't need $W$.
#
# <details><summary>Hint</summary>
#
# Write the update as two layers, `h = x Aᵀ` and `y = s h Bᵀ` with `s = alpha / r`. For a linear
# layer `y = h Bᵀ`, the gradient of `B` is `dYᵀ h` and the gradient of `h` is `dY B`. Apply this
# rule to both layers.
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
# In your formulas, $dA$ contains $B$, and $dB$ contains $A$. If $B = 0$, only $B$ gets a nonzero
# gradient in the first step. From the second step on, both matrices train.
#
# Now try each initialization in a real model, SmolLM2-135M-Instruct. (Our copy comes from a 4-bit
# file, so it isn't exactly the original.) The `home` task is to turn a spoken command into JSON
# that a smart home understands.

# %%
everything = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
home, unseen = tasks.load("home"), tasks.draw("home", "test", 60)
for row in home.select(range(0, 1500, 500)):
    print(f"{row['text']}\n    {row['answer']}")

# %% [markdown]
# All training runs in this lab use the same short PyTorch loop. `loop.answer_loss` is the mean
# cross-entropy over the answer tokens.


# %%
def train(model, batches, steps, learning_rate):
    """Train all parameters that require grad, in place; yield the loss of each step."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, learning_rate, weight_decay=0.0)
    model.train()
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        loss = loop.answer_loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


# %% [markdown]
# The next function adds your layer to two projections of every block, initializes `A` and `B`, and
# trains for ten steps on the same eight commands. At LoRA's usual learning rate of 2e-4, ten steps
# would show little, so the rate below is 50 times higher.


# %%
def first_steps(start, learning_rate, steps=10):
    """Losses of the first steps; start: "B = 0", "A = 0", "both random" or "both zero"."""
    torch.manual_seed(lab.seed)
    model, tokenizer = models.load()
    model.requires_grad_(False)
    for block in model.model.layers:
        for name in ("q_proj", "v_proj"):
            layer = LoRALinear(getattr(block.self_attn, name), r=8, alpha=32)
            if start in ("A = 0", "both random"):
                nn.init.kaiming_uniform_(layer.B, a=math.sqrt(5))
            if start in ("A = 0", "both zero"):
                nn.init.zeros_(layer.A)
            setattr(block.self_attn, name, layer)
    batch = next(loop.batches(home, tokenizer, size=8, steps=1))
    return list(train(model, [batch] * steps, steps, learning_rate))


start_runs = {}  # your runs so far: {setting: losses}

# %% [markdown]
# **Try it: initialization.** Which initialization fails immediately, which never learns, and which
# overshoots? Run the cell. Then halve the learning rate: set `starts` to
# `[("A = 0", 5e-3), ("B = 0", 5e-3)]` and rerun the cell. The new curves appear next to the old
# ones.

# %% tags=["experiment"]
starts = [("both random", 1e-2), ("both zero", 1e-2), ("A = 0", 1e-2), ("B = 0", 1e-2)]
if lab.experiment("Four ways to start", 35, needs=["2.2"]):
    for start, learning_rate in starts:
        start_runs[f"{start}, rate {learning_rate:g}"] = first_steps(start, learning_rate)
    display(figures.first_losses(start_runs))

# %% [markdown]
# If `A` and `B` are both random, their product is already so large that it damages the model. If
# both are zero, neither ever gets a nonzero gradient. `A = 0` starts from the base model, but at
# this learning rate its loss shoots up at first, while `B = 0` learns right away. At half the
# learning rate, both learn, and three seeds are too few to tell which is better
# ([evidence](../docs/evidence/02_lora.md#where-training-starts)).
#
# Why does `A = 0` overshoot? Adam's first step changes every entry with a nonzero gradient by about
# the learning rate. With `A = 0`, 576 such changes can add up in each entry of $Ax$. With `B = 0`,
# only 8 can add up in each output. Hayou et al. ([2024](https://arxiv.org/abs/2406.08447)) show
# theoretically that `B = 0` tolerates larger learning rates, and confirm it in fine-tuning runs.
# PEFT also starts with `B = 0`.
#
# ## Into the model
#
# SmolLM2-135M has 30 blocks, each with seven linear layers: four in the attention module and three
# in the MLP. You will add LoRA to all 210 layers.
#
# ### Exercise 2.4 · `inject`
#
# ●●● · 13 min · 3 points
#
# Replace every `nn.Linear` whose own name is in `targets` with a `LoRALinear`, in place. Don't
# replace any other kind of module, whatever its name. Freeze everything except the new `A` and `B`.
# (Other modules may also have a parameter called `A` or `B`.) Return the number of layers you
# replaced.
#
# A layer's own name is the last part of its dotted name: `q_proj` in
# `model.layers.0.self_attn.q_proj`. A top-level layer has no dot in its name.
#
# <details><summary>Hint: how to reach a layer</summary>
#
# `model.named_modules()` yields dotted names. `model.get_submodule("a.b")` returns the parent of
# `a.b.q_proj`, and `setattr` replaces a child of that module.
# </details>
#
# <details><summary>Hint: the order</summary>
#
# Collect the names first, then replace the layers: don't modify the module tree while you loop over
# it. What happens to your new `A` and `B` if you freeze everything after adding them?
# </details>


# %%
def inject(model, targets, r, alpha):
    """Add LoRA to the target layers of `model`, in place; return how many were replaced."""
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
# ### Is it really LoRA?
#
# PEFT is Hugging Face's library of parameter-efficient fine-tuning methods, including LoRA. Copy
# the same random `A` and `B` into your model and PEFT's, and compare the two models' predictions.

# %% tags=["experiment"]
if lab.experiment("Your LoRA against PEFT's", 3, needs=["2.2", "2.4"]):
    mine, theirs = (models.load(dtype=torch.float32)[0] for _ in range(2))
    inject(mine, everything, r=8, alpha=16)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=everything)
    theirs = get_peft_model(theirs, config).eval()
    for name, layer in mine.named_modules():
        if isinstance(layer, LoRALinear):
            other = theirs.base_model.model.get_submodule(name)
            other.lora_A["default"].weight.data = layer.A.data
            other.lora_B["default"].weight.data = nn.init.normal_(layer.B, std=0.02).data
    ids = torch.arange(1000, 1020, device=theirs.device)[None]  # twenty arbitrary tokens
    with torch.no_grad():
        gap = (mine(ids).logits - theirs(ids).logits).abs().max()
        with theirs.disable_adapter():
            change = (mine(ids).logits - theirs(ids).logits).abs().max()
    print(f"The adapter moves logits by up to {change:.1f}. Yours and PEFT's differ by {gap:.1g}.")

# %% [markdown]
# In fp32, the two models agree. PEFT also supports dropout, other layer types, multiple adapters
# and quantized base models. You will use PEFT in lab 3.
#
# ## A task to learn
#
# None of the 60 test answers occurs in the training data, and the test commands use different
# sentence patterns. First, try it without training: put a few commands and their answers in the
# prompt.


# %%
def right(answers):
    """How many answers match word for word, and how many have the right intent."""
    exact = intent = 0
    for answer, wanted in zip(answers, unseen["answer"], strict=True):
        exact += answer == wanted
        fields = [text.strip("{}").split(",") for text in (answer, wanted)]
        intent += fields[0][0] == fields[1][0]  # the first field is the intent
    return exact, intent


def count_params(model):
    """(trainable, total) parameter counts; a tensor shared by two modules counts once."""
    params = list(model.parameters())
    return sum(p.numel() for p in params if p.requires_grad), sum(p.numel() for p in params)


# %% [markdown]
# **Try it: examples.** The task has ten intents. How many of the 60 answers will be right with one
# example of each intent in the prompt? Run the cell, then try two of each.

# %% tags=["experiment"]
per_intent = 1
if lab.experiment("What the base model answers", 15):
    base, tokenizer = models.load()
    rows = home.shuffle(seed=lab.seed).to_pandas().groupby("intent").head(per_intent)
    shots = [message for messages in rows["messages"] for message in messages]
    said = {}  # {model: its answers}
    for kind, start in (("base model", []), (f"{len(rows)} examples", shots)):
        conversations = [start + messages for messages in unseen["messages"]]
        said[kind] = generation.answers(base, tokenizer, conversations)
        exact, intents = right(said[kind])
        print(f"{kind}: {exact} of 60 right, {intents} intents. The first:", said[kind][0])

# %% [markdown]
# With examples, this small model begins to write JSON, but most intents and fields are wrong. (A
# large model may need no training for such a task.) Now train a rank-8 LoRA on all seven linear
# layers of every block, for 50 steps with 16 commands each.
#
# **Try it: learning rate.** LoRA needs a higher learning rate (here, 5e-3) than full fine-tuning
# (3e-4 in our runs). How many answers would be right at 1e-3? Change `rate` and rerun both
# experiments.

# %%
guess_right = lab.predict("After 50 steps, how many of the 60 answers will match exactly?", None)

# %% tags=["experiment"]
rate = 5e-3
if lab.experiment("Your LoRA learns `home`", 90, needs=["2.2", "2.4"]):
    torch.manual_seed(lab.seed)
    model, tokenizer = models.load()
    inject(model, everything, r=8, alpha=16)
    trainable, total = count_params(model)
    print(f"{trainable:,} of {total:,} parameters train: {trainable / total:.1%}")
    curve = live.Curves("Your LoRA on home", 50, "loss (nats per token)", ["training", "held out"])
    losses = train(model, loop.batches(home, tokenizer, size=16, steps=50), 50, rate)
    few = tasks.draw("home", "test", 20)
    for step, loss in enumerate(losses, start=1):
        held_out = loop.held_out_loss(model, tokenizer, few) if step % 10 == 0 else None
        curve.add(**{"training": loss, "held out": held_out})

# %% tags=["experiment", "cover"]
if lab.experiment("Before and after", 5, needs=["2.2", "2.4"]):
    lora_answers = generation.answers(model, tokenizer, unseen["messages"])
    said["your LoRA"] = lora_answers
    counts = {kind: right(answers) for kind, answers in said.items()}
    display(figures.right_answers(counts, len(unseen), guess_right))
    guess_right.compare(right(lora_answers)[0])
    display(compare_answers(unseen["text"], unseen["answer"], said, rows=3))

# %% [markdown]
# The training loss starts at the base model's, because `B` starts at zero. You trained less than 2%
# of the parameters. The training loss ends near zero, but the held-out loss levels off above it,
# and many answers are wrong: the test commands have new sentence patterns, and one wrong field
# spoils an answer. With each of three seeds, full fine-tuning reached a lower held-out loss, but it
# didn't clearly get more answers right
# ([evidence](../docs/evidence/02_lora.md#answers-before-and-after)).
#
# ### Rank and alpha
#
# How much does the rank matter, and what does $\alpha$ do? The next function trains for ten steps,
# with 8 commands per step, at a rank, $\alpha$ and learning rate of your choice.


# %%
def short_run(r, alpha, learning_rate, steps=10):
    """Losses of a short LoRA run on `home`."""
    torch.manual_seed(lab.seed)
    model, tokenizer = models.load()
    inject(model, everything, r, alpha)
    batches = loop.batches(home, tokenizer, size=8, steps=steps)
    losses = train(model, batches, steps, learning_rate)
    return list(live.progress(losses, f"r={r}, alpha={alpha}, rate {learning_rate:g}", steps))


rank_runs = {}  # your runs so far: {setting: losses}

# %% [markdown]
# **Try it: rank and alpha.** A common rule is $\alpha = 2r$, which gives $\alpha = 16$ at rank 8
# and 128 at rank 64. The cell below tries both ranks with both values. Which curves will agree,
# those with the same rank or those with the same $\alpha$? Run the cell. Then try rank 1, and test
# whether eight times the learning rate does the same as eight times $\alpha$: rerun the cell with
# `settings = [(1, 16, 1e-3), (8, 16, 8e-3)]`.

# %% tags=["experiment"]
settings = [(8, 16, 1e-3), (64, 16, 1e-3), (8, 128, 1e-3), (64, 128, 1e-3)]  # (r, alpha, rate)
if lab.experiment("Rank and alpha", 46, needs=["2.2", "2.4"]):
    for r, alpha, rate in settings:
        rank_runs[f"r={r}, alpha={alpha}, rate {rate:g}"] = short_run(r, alpha, rate)
    display(figures.turned(rank_runs))

# %% [markdown]
# The curves with the same $\alpha$ nearly agree, even at rank 1 (in the rerun). $BA$ is a sum of
# $r$ terms, each a column of $B$ times a row of $A$. Adam's first step moves the output by about
# the same amount through each term, and the factor $1/r$ cancels the number of terms. If you raise
# the rank and $\alpha$ together, training starts faster because of $\alpha$, not because of the
# rank ([evidence](../docs/evidence/02_lora.md#rank-and-alpha)). In lab 5, you will see when the
# rank matters.
#
# Early in training, $\alpha$ acts much like a learning rate. The first step changes only $B$, so
# after it, eight times the rate and eight times $\alpha$ give the same loss. Then the curves
# diverge, because the higher rate also moves $A$ eight times as far.
#
# ## What does a step cost?
#
# Full fine-tuning trains 55 times as many parameters as your LoRA. Does a full fine-tuning step
# need 55 times as much arithmetic? Count its matrix products. For each weight and token, the
# forward pass does one multiplication and one addition. The backward pass computes two gradients,
# each with a product of the same size: the weight gradient for the optimizer, and the input
# gradient for the layers below.
#
# ### Exercise 2.5 · `step_flops`
#
# ●●○ · 8 min · 2 points
#
# How many floating-point operations (FLOPs) do the forward and backward passes of linear layers
# take? `shapes` maps each layer's name to the shape `(d_out, d_in)` of its weight matrix. Every
# layer processes `n_tokens` tokens. A multiply-add counts as two operations.
#
# - If `r` is `None`, all weights train.
# - If `r` is given, the weights are frozen, and each weight matrix gets a trainable `A` and `B` of
#   rank `r`.
#
# Every layer also computes the gradient of its input `x`. Count only matrix products. Return an int
# that equals the count from `torch.utils.flop_counter`.
#
# <details><summary>Hint</summary>
#
# Multiplying an $n \times k$ matrix by a $k \times m$ matrix takes $2\,n\,k\,m$ FLOPs. List the
# products for $y = x W^\top$. Which product disappears when $W$ is frozen? Then list the products
# for `h = x Aᵀ` and `y = h Bᵀ`: neither `A` nor `B` is frozen, and `h` needs a gradient, too.
# </details>


# %%
def step_flops(shapes, n_tokens, r=None):
    """Forward and backward FLOPs, an int, of layers {name: (d_out, d_in)}; r=None: full."""
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
# A frozen weight needs no gradient, which removes one of the three matrix products. LoRA in every
# block therefore saves at most a third of the arithmetic, no matter how few parameters you train.
# At rank 8, a step needs 69% of the arithmetic of a full fine-tuning step, and at rank 64, 85%.
#
# ### Arithmetic and memory
#
# Measure one training step in three settings: full fine-tuning in fp32, LoRA in fp32, and LoRA on a
# bf16 base model. Guess first.

# %%
guess_peak = lab.predict(
    "In fp32, LoRA's peak memory is what percentage of full fine-tuning's?", None
)


# %%
def measure(lora, dtype, commands):
    """FLOPs of a training step, and its peak memory in bytes by category."""
    model, tokenizer = models.load(dtype=dtype)
    if lora:
        inject(model, everything, r=8, alpha=16)
    rows = [loop.encode(tokenizer, messages) for messages in home["messages"][:commands]]
    batch = {name: part.to(model.device) for name, part in packing.padded(rows).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-5)

    def step():
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # creates Adam's state
    with FlopCounterMode(display=False) as counter, track(model, optimizer) as peak:
        step()
    return counter.get_total_flops(), peak.by_category


# %% [markdown]
# **Try it: batch size.** If you increase `commands` from 8 to 32, will LoRA's memory rise or fall
# relative to full fine-tuning's?

# %% tags=["experiment"]
commands = 8
if lab.experiment("A step's memory", 20, needs=["2.2", "2.4"]):
    kinds = {
        "full fine-tuning\nfp32": (False, torch.float32),
        "LoRA\nfp32": (True, torch.float32),
        "LoRA\nbf16 base": (True, torch.bfloat16),
    }
    cost = {kind: measure(*how, commands) for kind, how in live.progress(kinds.items(), "steps")}
    peaks = {kind: peak for kind, (_, peak) in cost.items()}
    display(figures.memory(peaks, guess_peak))
    full_peak, lora_peak = (sum(peaks[kind].values()) for kind in list(kinds)[:2])
    guess_peak.compare(100 * lora_peak / full_peak)

# %% [markdown]
# LoRA stores neither Adam moments nor gradients for the frozen weights. In this run, having no
# gradients doesn't lower the peak, which comes at the end of the forward pass, before there are
# any. LoRA still stores the weights and most *activations*, the tensors that the forward pass saves
# for the backward pass. Gradients still flow through the frozen layers, and each of your layers
# stores its input `x`, because computing $dA$ (exercise 2.3) requires `x`.
#
# Activations grow with the batch, so LoRA's relative saving shrinks: with 32 commands, its peak is
# 76% of full fine-tuning's. Lab 4 shows how to reduce activation memory.
#
# In the third bar, the bf16 base halves the weight memory, but the activations hardly shrink: each
# of your layers now stores its own fp32 copy of `x`, made by `x.to(self.A.dtype)`.

# %% tags=["experiment"]
if lab.experiment("A step's arithmetic", 1, needs=["2.2", "2.4", "2.5"]):
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LoRALinear)]
    shapes = {name: tuple(layer.base.weight.shape) for name, layer in layers}
    (full_flops, _), (lora_flops, _), _ = cost.values()
    print("FLOPs of a LoRA step as a percentage of full fine-tuning's:")
    print(f"{step_flops(shapes, 1, r=8) / step_flops(shapes, 1):.0%} by your step_flops")
    print(f"{lora_flops / full_flops:.0%} by torch's count of the whole model")

# %% [markdown]
# ## Merge
#
# Your layer does extra work for every generated token. After training, add the update to $W$ once.
# The layer is then as fast as the original.
#
# ### Exercise 2.6 · `merge_`, `unmerge_`
#
# ●●○ · 6 min · 3 points
#
# `merge_` adds $(\alpha / r) BA$ to `layer.base.weight` in place; `unmerge_` subtracts it. Both
# keep `layer.merged` up to date, so calling either function twice has the same effect as calling it
# once. The layer's output stays the same up to rounding. Nothing else changes: `A`, `B` and the
# train/eval mode stay the same, and `base.weight` remains the same frozen Parameter with the same
# dtype.
#
# <details><summary>Hint</summary>
#
# The update requires grad because `A` and `B` do, so autograd would record the change. Prevent this
# with `torch.no_grad()`. Which form keeps the Parameter and its dtype: `+=` or `= … + …`?
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
    """Subtract the update of `layer`, in place, if it was merged."""
    # BEGIN SOLUTION
    if layer.merged:
        with torch.no_grad():
            layer.base.weight -= layer.scaling * layer.B @ layer.A
        layer.merged = False
    # END SOLUTION


# %%
check.merges(merge_, unmerge_, LoRALinear)


# %%
def merged(model):
    """A copy of `model` with all its LoRA layers merged."""
    twin = copy.deepcopy(model)
    for layer in twin.modules():
        if isinstance(layer, LoRALinear):
            merge_(layer)
    return twin


# %% tags=["experiment"]
if lab.experiment("The same answers after a merge?", 12, needs=["2.2", "2.4", "2.6"]):
    merged_answers = generation.answers(merged(model), tokenizer, unseen["messages"])
    same = sum(a == b for a, b in zip(merged_answers, lora_answers, strict=True))
    print(f"After the merge, {same} of {len(unseen)} answers are the same, word for word, ", end="")
    print(f"and {right(merged_answers)[0]} are right ({right(lora_answers)[0]} before).")

# %% [markdown]
# Merging rounds the new weights. In fp32, you won't notice the rounding. In bf16, a few answers may
# change, and 3% of the weights differ from their original values after `unmerge_`
# ([evidence](../docs/evidence/02_lora.md#merged-and-unmerged)). So keep a copy of the base model
# instead of relying on `unmerge_`.
#
# ## Save and load
#
# Training changed only `A` and `B`. If you save them, you can send what the model learned to anyone
# who has the base model. The recipient also needs $\alpha$, which isn't in the saved file. PEFT
# stores $\alpha$ in `adapter_config.json`.
#
# ### Exercise 2.7 · `adapter_state`, `load_adapter_`
#
# ●●○ · 9 min · 3 points
#
# `adapter_state` returns a dict of the `A` and `B` of every `LoRALinear` and nothing else. (Other
# modules may also have an `A`.) Each key is the layer's dotted name plus `.A` or `.B`.
# `load_adapter_` copies such a dict into the parameters of a model with the same layers. If any key
# or shape doesn't match, raise an error before you change any parameter, because a partly loaded
# adapter is worse than none.
#
# <details><summary>Hint</summary>
#
# Find the layers with `named_modules()` and `isinstance`. Compare two dicts of shapes before you
# copy, because `copy_` silently broadcasts a smaller tensor. Autograd doesn't allow `copy_` into a
# trainable parameter, but `detach()` returns a view of the same memory.
# </details>


# %%
def adapter_state(model):
    """{"dotted.name.A": tensor, "dotted.name.B": tensor, ...} of every LoRALinear in `model`."""
    # BEGIN SOLUTION
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LoRALinear)]
    return {f"{name}.{key}": getattr(m, key).detach() for name, m in layers for key in "AB"}
    # END SOLUTION


def load_adapter_(model, state):
    """Copy `state` into `model`; if keys or shapes differ, raise an error and copy nothing."""
    # BEGIN SOLUTION
    mine = adapter_state(model)
    if {k: t.shape for k, t in mine.items()} != {k: t.shape for k, t in state.items()}:
        raise ValueError("the keys or shapes of this adapter do not fit the model")
    for name, tensor in mine.items():
        tensor.copy_(state[name])
    # END SOLUTION


# %%
check.round_trip(adapter_state, load_adapter_, LoRALinear)

# %% tags=["experiment"]
if lab.experiment("Send it to a fresh model", 8, needs=["2.2", "2.4", "2.7"]):
    fresh, _ = models.load()
    inject(fresh, everything, r=8, alpha=16)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "adapter.safetensors"
        save_file(adapter_state(model), file)
        megabytes = file.stat().st_size / 1e6
        load_adapter_(fresh, load_file(file))
    same = generation.answers(fresh, tokenizer, unseen["messages"]) == lora_answers
    base_megabytes = sum(p.nbytes for p in models.load()[0].parameters()) / 1e6
    print(f"adapter: {megabytes:.1f} MB, base model: {base_megabytes:.0f} MB")
    print(f"The fresh model gives the same 60 answers: {same}")

# %% [markdown]
# The adapter is in fp32 and the base model in bf16. One base model can serve many such adapters,
# each with $r\,(d_\text{in} + d_\text{out})$ parameters per adapted layer.
#
# ## Take it with you
#
# Here is the same method in PEFT and TRL. Save the script as `train_lora.py`, substitute your own
# model and rows, and run `python train_lora.py`. Lab 3 explains the settings.
#
# ```python
# from datasets import Dataset
# from peft import AutoPeftModelForCausalLM, LoraConfig
# from transformers import pipeline
# from trl import SFTConfig, SFTTrainer
#
# MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# ROWS = [("Turn off the kitchen lights", '{"intent": "HassTurnOff", "area": "kitchen"}')] * 64
#
# def message(role, text):
#     return [{"role": role, "content": text}]
#
# rows = [{"prompt": message("user", q), "completion": message("assistant", a)} for q, a in ROWS]
# lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
# settings = SFTConfig("my-lora", learning_rate=1e-3, per_device_train_batch_size=8, bf16=False)
# trainer = SFTTrainer(MODEL, settings, train_dataset=Dataset.from_list(rows), peft_config=lora)
# trainer.train()
# trainer.save_model()  # saves only the adapter
# merged = AutoPeftModelForCausalLM.from_pretrained("my-lora").merge_and_unload()
# ask = pipeline("text-generation", merged, tokenizer=trainer.processing_class)
# print(ask(message("user", ROWS[0][0]), max_new_tokens=40)[0]["generated_text"][-1]["content"])
# ```

# %% [markdown]
# ### Exercise 2.8 · Quiz
#
# ●○○ · 4 min · 3 points
#
# Only your first answer to each question counts. Then read the explanations.
#
# **q1. Why does LoRA start with `B` at zero and `A` random?**
#
# - (a) It doesn't matter: every initialization learns equally well at every learning rate.
# - (b) Training starts from the base model and tolerates larger rates than with `A` at zero.
# - (c) Both matrices get a small gradient in the first step, so neither diverges.
# - (d) With `A` at zero and `B` random, no gradient would ever reach the layer.
#
# **q2. What does a full fine-tuning step compute and store that a LoRA step doesn't?**
#
# - (a) Activations: with LoRA, no layer stores anything for the backward pass.
# - (b) Input gradients: with LoRA, they pass through frozen layers without a matrix product.
# - (c) The gradients and Adam moments of the weights that LoRA freezes.
# - (d) The large products of the forward pass: LoRA replaces each with two small ones.
#
# **q3. Which two settings have nearly the same loss curve over the first steps?**
#
# - (a) r=8, alpha=16 and r=64, alpha=16: the same alpha.
# - (b) r=8, alpha=16 and r=64, alpha=128: the same factor in front of BA.
# - (c) r=8, alpha=16 and r=8, alpha=128: the same number of parameters.
# - (d) None: curves of different ranks differ from the first step on.


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
# - LoRA adds the product of two small matrices, scaled by $\alpha / r$, to a frozen weight matrix.
#   `B` starts at zero, so training starts from the base model.
# - With the same $\alpha$, short runs at ranks 8 and 64 learn almost equally fast. Early in
#   training, $\alpha$ acts like a learning rate.
# - LoRA needs no gradients or Adam moments for the frozen weights. At a small rank, it also avoids
#   almost a third of the arithmetic. It still needs the weights and most activations.
# - Merging removes the extra work per token. An adapter is a small file that fits one base model
#   and one $\alpha$.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["2.2", "2.4"]):
    lab.headline(
        f"LoRA from scratch, {trainable / 1e6:.1f}M parameters: right answers to unseen commands "
        f"{right(said['base model'])[0]} → {right(lora_answers)[0]} of {len(unseen)} "
        f"in {curve.seconds[-1]:.0f} s of training; "
        f"{right(said[f'{len(rows)} examples'])[0]} with {len(rows)} examples in the prompt"
    )
