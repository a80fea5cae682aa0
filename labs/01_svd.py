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
# # Lab 1 · What the SVD sees
#
# Full fine-tuning updates every weight of a model. LoRA assumes that a *low-rank* update is enough.
# Is that a good bet? In this lab, you fully fine-tune a real language model, cut the update down to
# a low rank, and check how many answers it still gets right. Then you train a low-rank update
# directly with LoRA and compare the results.
#
# {{ time }}

# %%
import labkit

lab, check = labkit.start("01_svd")

# %% [markdown]
# ## How a lab works
#
# Complete each cell marked `TODO`, then run the check below it. A failing check tells you what is
# wrong. If you are stuck, open the hint. If the hint doesn't help, `lab.reveal("1.1")` shows and
# runs the solution, but you earn no points.
#
# Cells that begin with `if lab.experiment(…)` train a model or measure something, and print how
# long they take. Cells marked **Try it** are for you to change and rerun. After a kernel restart,
# `lab.resume()` restores your passing answers.

# %%
import math

import peft
import torch
import torch.nn.functional as F
from IPython.display import display
from ipywidgets import IntSlider, interact
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from labkit import live, measured, tasks
from labkit.figures import lab01 as figures
from labkit.plots import compare_answers
from labkit.training import generation, loop, models

# %% [markdown]
# ## A matrix is a sum of simple matrices
#
# A linear layer computes $y = W x$ with a weight matrix $W$ of shape `(d_out, d_in)`. Fine-tuning
# changes $W$ to $W + \Delta W$, where $\Delta W$ is the *update*. LoRA ([Hu et al.
# 2021](https://arxiv.org/abs/2106.09685)) writes the update as a product of two small matrices:
#
# $$\Delta W = \frac{\alpha}{r}\, B A, \qquad A: (r, d_\text{in}), \quad B: (d_\text{out}, r),$$
#
# where $\alpha / r$ is a fixed factor. If $r$ is small, most matrices can't be written as such a
# product. Which matrices can? The simplest example is a column times a row, $u v^\top$. The
# singular value decomposition (SVD) writes any $W$ as a sum of such products, largest first:
#
# $$W = \sum_i s_i\, u_i v_i^\top, \qquad s_1 \ge s_2 \ge \dots \ge 0.$$
#
# The $u_i$ are orthonormal, as are the $v_i$. Each term is called a *direction*; there are
# $\min(d_\text{out}, d_\text{in})$ of them. The *rank* of $W$ is the number of its nonzero singular
# values $s_i$. $BA$ is a sum of $r$ terms (column $i$ of $B$ times row $i$ of $A$), so its rank is
# at most $r$. Conversely, any matrix of rank $r$ equals some product $BA$. How much of a matrix can
# $r$ terms capture?
#
# Keep one example in mind: the matrix with rows (3, 0) and (0, 1). Its singular values are 3 and 1,
# and its first SVD term has the rows (3, 0) and (0, 0).
#
# ### Exercise 1.1 · `best_rank_r`
#
# ●●○ · 7 min · 2 points
#
# Return the matrix of rank at most `r` that is closest to `W` in the *Frobenius norm*, the square
# root of the sum of squared entries. By the Eckart-Young theorem, this matrix is the sum of the
# first `r` terms of the SVD. If `r` exceeds the rank of `W`, the result is `W` itself.
#
# <details><summary>Hint</summary>
#
# `torch.linalg.svd(W, full_matrices=False)` returns three tensors. Look at their shapes. The third
# tensor is called `Vh`, not `V`, because its *rows* are the $v_i$. To scale the columns of `U`, use
# a plain `*`.
# </details>


# %%
def best_rank_r(W, r):
    """W (d_out, d_in) -> the closest matrix of rank at most r, (d_out, d_in)."""
    # BEGIN SOLUTION
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return (U[:, :r] * S[:r]) @ Vh[:r]
    # END SOLUTION


# %%
check.optimal(best_rank_r)

# %% [markdown]
# ### Exercise 1.2 · `relative_error`
#
# ●●○ · 6 min · 2 points
#
# How far from $W$ is $W_r$, the matrix from exercise 1.1? Return
# $\lVert W - W_r \rVert / \lVert W \rVert$ as a float. You need only the singular values. The check
# fails if you build $W_r$ or $W - W_r$. In the example, truncation to rank 1 removes the entry 1
# from a matrix of norm $\sqrt{10}$, so the error is 0.316.
#
# <details><summary>Hint</summary>
#
# Rotations don't change lengths, so $\lVert W \rVert^2$ is the sum of all $s_i^2$. Which terms of
# this sum are left in the error? Add only those.
# </details>


# %%
def relative_error(W, r):
    """|W - W_r| / |W| as a float, for the best rank-r matrix W_r."""
    # BEGIN SOLUTION
    s = torch.linalg.svdvals(W)
    return (s[r:].norm() / s.norm()).item()
    # END SOLUTION


# %%
check.errors(relative_error)

# %% [markdown]
# A grayscale photograph is a matrix, too. The photograph below comes with matplotlib and shows
# Grace Hopper, who wrote one of the first compilers.

# %% tags=["experiment"]
if lab.experiment("A photograph, rank by rank", 1, needs=["1.1", "1.2"]):
    photo = figures.photograph()  # grayscale, (300, 256)
    shown = [1, 5, 10, 20, 50, 256]
    pictures = {r: best_rank_r(photo, r) for r in shown}
    display(figures.rank_grid(pictures, {r: relative_error(photo, r) for r in shown}))

# %% [markdown]
# The rank-1 picture is one column of brightness values times one row. At rank 5, you can see a
# person. At rank 20, you can recognize Grace Hopper. In a low-rank matrix, every row is a mixture
# of the same few patterns. In smooth areas, neighboring rows are alike, so a few patterns are
# enough. Small slanted details, such as the stars on the flag, need many patterns.
#
# **Try it: rank.** Use the slider to find the rank at which you no longer see a difference.

# %% tags=["experiment"]
if lab.experiment("Move the slider", 0, needs=["1.1", "1.2"]):

    @interact(r=IntSlider(30, min=1, max=256, continuous_update=False))
    def show(r):
        title = f"r = {r} · error {relative_error(photo, r):.1%}"
        return figures.beside(best_rank_r(photo, r), photo, title)

# %% [markdown]
# ## What does a low rank cost?
#
# The closest rank-$r$ matrix has as many entries as $W$. You save space only if you store this
# matrix as two factors.
#
# ### Exercise 1.3 · `lora_params`, `break_even_rank`
#
# ●○○ · 3 min · 1 point
#
# `lora_params` counts the parameters in $A$ (shape `(r, d_in)`) and $B$ (shape `(d_out, r)`).
# `break_even_rank` returns the largest rank at which $A$ and $B$ together have strictly fewer
# parameters than $W$ (shape `(d_out, d_in)`), or 0 if no such rank exists. Both functions return
# ints. (A 4 × 4 matrix has 16 parameters. Its factors have 8 at rank 1 and 16 at rank 2, so the
# break-even rank is 1.)


# %%
def lora_params(d_out, d_in, r):
    """The number of parameters in B (d_out, r) and A (r, d_in) together, an int."""
    # BEGIN SOLUTION
    return r * (d_out + d_in)
    # END SOLUTION


def break_even_rank(d_out, d_in):
    """The largest r at which B and A have strictly fewer parameters than W, an int."""
    # BEGIN SOLUTION
    return (d_out * d_in - 1) // (d_out + d_in)
    # END SOLUTION


# %%
check.parameters(lora_params, break_even_rank)

# %% [markdown]
# The parameter count grows linearly with the rank. At $r = 16$, the factors of a 4096 × 4096 matrix
# have 131,072 parameters instead of 16,777,216.
#
# Are so few parameters enough? That depends on the matrix. Compare the photograph with noise of the
# same shape. (The code subtracts the mean of each matrix first. Otherwise, the first term would
# mostly represent the mean, and noise would look easier to compress than it is.) Guess before you
# run the cell. Wrong guesses cost no points.

# %%
guess_noise = lab.predict(
    "Store noise as two factors with a fifth as many numbers. What is the error, in percent?", None
)

# %% tags=["experiment"]
if lab.experiment("The error at each storage cost", 1, needs=["1.1", "1.2", "1.3"]):
    noise = torch.rand(photo.shape, generator=torch.Generator().manual_seed(lab.seed))
    centered = {"photograph": photo - photo.mean(), "noise": noise - noise.mean()}
    ranks = range(3, 190, 4)
    costs = [lora_params(300, 256, r) / photo.numel() for r in ranks]
    errors = {name: [relative_error(W, r) for r in ranks] for name, W in centered.items()}
    display(figures.error_and_cost(costs, errors, break_even_rank(300, 256), guess_noise))
    guess_noise.compare(100 * errors["noise"][figures.fifth_of(costs)])

# %% [markdown]
# A few directions capture most of the photograph. In noise, every direction holds about as much as
# the next, so each one you drop adds to the error. A low-rank approximation works only if the
# matrix has structure.
#
# ## Are a language model's weights low-rank?
#
# The squared singular values add up to $\lVert W \rVert^2$, the *energy* of the matrix. How many
# directions do you need to capture most of the energy? (Strictly, almost every matrix in practice
# has full rank. Here, *low-rank* means that a few directions hold 90% of the energy.)
#
# ### Exercise 1.4 · `energy_rank`
#
# ●●○ · 6 min · 2 points
#
# `s` contains a matrix's singular values, largest first. Return, as an int, the smallest rank that
# captures *at least* `fraction` of the energy. In the example, the energies are 9 and 1. One
# direction is enough for 85%, but 95% requires both.
#
# <details><summary>Hint</summary>
#
# `cumsum` gives the energy of the first value, of the first two, and so on. How many of these
# partial sums are too small?
# </details>


# %%
def energy_rank(s, fraction):
    """s (k,) singular values, largest first -> smallest rank with `fraction` of the energy."""
    # BEGIN SOLUTION
    energy = s.square().cumsum(0)
    return int((energy < fraction * energy[-1]).sum()) + 1
    # END SOLUTION


# %%
check.ranks(energy_rank)

# %% [markdown]
# SmolLM2-135M-Instruct, the model used in all labs, has 30 blocks with seven weight matrices each:
# `q_proj`, `k_proj`, `v_proj` and `o_proj` in the attention module, and `gate_proj`, `up_proj` and
# `down_proj` in the MLP. Their sizes differ (a `q_proj` has 576 directions, a `k_proj` 192), so
# measure what percentage of its directions each matrix needs for 90% of its energy. The code uses
# every fifth block and compares the weights with random matrices of the same shapes.


# %%
def shares_by_kind(matrices):
    """{"….q_proj.weight": W, …} -> {"q_proj": [% of directions, block by block], …}."""
    kinds = {}
    for name, W in live.progress(matrices.items(), "SVDs"):
        s = torch.linalg.svdvals(W.float())
        kinds.setdefault(name.split(".")[-2], []).append(100 * energy_rank(s, 0.9) / len(s))
    return kinds


# %%
question = "What percentage of directions does the median weight matrix need for 90% of its energy?"
guess_rank = lab.predict(question, None)

# %% tags=["experiment"]
if lab.experiment("How many directions the weights take", 3, needs=["1.4"]):
    model, tokenizer = models.load(dtype=torch.float32)
    start = {n: W.detach().clone() for n, W in model.named_parameters() if "_proj." in n}
    fifth = [n for n in start if int(n.split(".")[2]) % 5 == 0]  # in every fifth block
    weights = shares_by_kind({n: start[n] for n in fifth})
    random = shares_by_kind({n: torch.randn_like(start[n]) for n in fifth[:7]})
    display(figures.energy_ranks(weights, random, guess_rank))
    guess_rank.compare(figures.median(weights))

# %% [markdown]
# `q_proj`, `k_proj` and `o_proj` have some structure. By this measure, the other matrices are
# closer to noise. (This model's weights were once rounded to 4 bits, which added some noise.) No
# matrix comes close to rank 8: each needs at least four times as many directions. LoRA, however,
# assumes a low rank only for the *change* in these weights.
#
# ## What does fine-tuning change?
#
# Is the full fine-tuning update low-rank, then? Train the model, then cut its update to a low rank.
#
# ### Exercise 1.5 · `truncate_update`, `energy_within`
#
# ●●○ · 9 min · 3 points
#
# `truncate_update` returns $W_0$ plus the best rank-`r` approximation of the update $W_1 - W_0$.
# You may reuse your earlier functions.
#
# `energy_within` compares two updates of the same matrix. The left singular vectors $u_i$ of an
# update are the *output* directions that it writes to. Return, as a float, the share of `dW`'s
# energy in the span of the first `k` left singular vectors of `reference`. To compute it, project
# the columns of `dW` onto that span and compare the sums of squares. If `dW` and `reference` are
# both the matrix with rows (3, 0) and (0, 1), the result is 0.9 at `k = 1`.
#
# <details><summary>Hint</summary>
#
# If $u_1, \dots, u_k$ are orthonormal, the projection of a vector $x$ onto their span has the same
# length as the vector of coordinates $u_i \cdot x$. You don't need to build the projection.
# </details>


# %%
def truncate_update(W0, W1, r):
    """W0, W1 (d_out, d_in) -> W0 plus the best rank-r approximation of W1 - W0."""
    # BEGIN SOLUTION
    return W0 + best_rank_r(W1 - W0, r)
    # END SOLUTION


def energy_within(dW, reference, k):
    """Share of the energy of dW (d_out, d_in) in `reference`'s top k left singular vectors."""
    # BEGIN SOLUTION
    U, _, _ = torch.linalg.svd(reference, full_matrices=False)
    inside = U[:, :k].T @ dW  # (k, d_in)
    return (inside.square().sum() / dW.square().sum()).item()
    # END SOLUTION


# %%
check.truncates(truncate_update, energy_within)

# %% [markdown]
# The `home` task is to turn a spoken command into JSON that a smart home understands. None of the
# 60 test answers occurs in the training data, and the test commands use different sentence
# patterns. You train all 210 matrices, a total of 106 million parameters. The embeddings and norms
# stay frozen, so every change is a matrix update that you can truncate.


# %%
def fine_tune(model, title, learning_rate, steps=50):
    """Train all parameters that require grad on `home`, 16 commands per step."""
    curve, home = live.Curve(title, steps), tasks.load("home", "train")
    batches = loop.batches(home, tokenizer, size=16, steps=steps)
    for loss in loop.train(model, batches, steps, learning_rate):
        curve.add(loss)


def judge(name, model):
    """Record the model's answers to the test commands, and print how many are right."""
    with torch.autocast(lab.device, torch.bfloat16, enabled=lab.dtype == torch.bfloat16):
        said[name] = generation.answers(model, tokenizer, unseen["messages"])
    right[name] = sum(a == b for a, b in zip(said[name], unseen["answer"], strict=True))
    loss[name] = loop.held_out_loss(model, tokenizer, unseen)
    print(f"{name}: {right[name]} of 60 answers right, held-out loss {loss[name]:.2f}")


# %% tags=["experiment"]
if lab.experiment("Full fine-tuning on home", 75, needs=["1.4"]):
    unseen = tasks.draw("home", "test", 60)
    said, right, loss = {}, {}, {}  # keyed by model name
    judge("base", model)
    for name, W in model.named_parameters():
        W.requires_grad_(name in start)
    fine_tune(model, "Full fine-tuning on home", 3e-4)
    judge("full", model)
    tuned = {n: W.detach().clone() for n, W in model.named_parameters() if n in start}

# %% [markdown]
# How many directions does this update need? Look at one MLP matrix, and guess before you run the
# cell.

# %%
guess_update = lab.predict(
    "What percentage of its directions does this update need for 90% of its energy?", None
)

# %% tags=["experiment"]
if lab.experiment("How many directions the update takes", 2, needs=["1.4"]):
    name = "model.layers.15.mlp.up_proj.weight"
    W, dW = start[name], tuned[name] - start[name]
    matrices = {"random matrix": torch.randn_like(W), "weight": W, "update": dW}
    spectra = {name: torch.linalg.svdvals(M.float()).cpu() for name, M in matrices.items()}
    display(figures.captured(spectra, guess_update))
    guess_update.compare(100 * energy_rank(spectra["update"], 0.9) / min(W.shape))

# %% [markdown]
# The update needs far fewer directions than the weight, but far more than 8. In long training runs
# with a 7B model on code and math, Biderman et al. ([2024](https://arxiv.org/abs/2405.09673)) found
# updates that needed 10 to 100 times the usual LoRA ranks for 90% of their variance. Adam may be
# part of the reason ([evidence](../docs/evidence/01_svd.md#how-many-directions-an-update-takes)).
#
# The goal is right answers, not energy. Cut every update to rank $r$ with your `truncate_update`,
# and test the model again.


# %%
@torch.no_grad()
def cut_to(r):
    """Apply the cut updates to the model, judge it, and return the share of energy they keep."""
    kept = total = 0.0
    for n, W in live.progress([(n, W) for n, W in model.named_parameters() if n in start], "cut"):
        W.copy_(truncate_update(start[n], tuned[n], r))
        kept += (W - start[n]).square().sum().item()
        total += (tuned[n] - start[n]).square().sum().item()
    judge(f"cut to rank {r}", model)
    return kept / total


energy = {}  # share kept by each cut so far: {rank: share}

# %%
guess_cut = lab.predict("After a cut to rank 8, how many of the 60 answers are right?", None)

# %% [markdown]
# **Try it: the rank of the cut.** Run the cell. Then predict what a cut to rank 32 will keep, and
# rerun with `cut_ranks = [32]`.

# %% tags=["experiment", "cover"]
cut_ranks = [1, 8, 16, 64]
if lab.experiment("Every update cut to rank r", 58, needs=["1.1", "1.4", "1.5"]):
    for r in cut_ranks:
        energy[r] = cut_to(r)
    cuts = {r: right[f"cut to rank {r}"] for r in energy}
    stored = measured.load("svd")
    display(figures.cuts(energy, cuts, right["full"], stored, guess_cut))
    if 8 in cuts:
        guess_cut.compare(cuts[8])

# %% [markdown]
# Cut to rank 8, the update keeps less than half of the right answers. Averaged over three other
# seeds, rank 8 keeps 42% of them, rank 16 keeps 83%, and rank 64 keeps all
# ([evidence](../docs/evidence/01_svd.md#what-a-cut-keeps)). At rank 8, the held-out loss is about
# three times the full update's. Is rank 8 too low for LoRA, then?
#
# ## What does LoRA find?
#
# Truncation happens after training and ignores the loss. LoRA's update has rank at most 8
# throughout training, and every step tries to lower the loss within that limit. Train LoRA on the
# same batches. In lab 2, you will write LoRA by hand. Here, the PEFT library adds an $A$ and a $B$
# to each of the 210 matrices. (The base model is frozen, so it can stay in 16 bits. LoRA needs a
# higher learning rate; lab 5 explains why.)
#
# **Try it: LoRA's rank.** Guess for rank 8, then run the cell. A cut to rank 1 leaves no right
# answers: how many will LoRA get? Set `lora_rank = 1` and rerun.

# %%
guess_lora = lab.predict("How many of the 60 answers will rank-8 LoRA get right?", None)
loras = {}  # right answers of your LoRAs so far: {rank: count}

# %% tags=["experiment"]
lora_rank = 8
if lab.experiment("LoRA on the same batches", 60, needs=["1.1", "1.4", "1.5"]):
    torch.manual_seed(lab.seed)
    config = peft.LoraConfig(r=lora_rank, lora_alpha=16, target_modules="all-linear")
    student = peft.get_peft_model(models.load()[0], config)
    n_lora = sum(p.numel() for p in student.parameters() if p.requires_grad)
    print(f"LoRA trains {n_lora:,} parameters, not {sum(W.numel() for W in start.values()):,}")
    name = f"LoRA, r = {lora_rank}"
    fine_tune(student, f"{name}, on home", 5e-3)
    judge(name, student)
    loras[lora_rank] = right[name]
    display(figures.cuts(energy, cuts, right["full"], stored, guess_lora, loras))
    if lora_rank == 8:
        guess_lora.compare(loras[8])
    answers = {model: said[model] for model in ("base", "full", "cut to rank 8", name)}
    display(compare_answers(unseen["text"], unseen["answer"], answers, rows=3))

# %% [markdown]
# Rank-8 LoRA trains 2% as many parameters as full fine-tuning. Your run may differ: over three
# seeds, LoRA gets 91% as many answers right, at a somewhat higher loss (one learning rate per
# method). LoRA's authors hypothesized that the update is low-rank. LoRA requires less: *some*
# update of rank 8 must work well, and training must find it. Why does the cut do worse? Perhaps
# because the eight directions that it keeps were trained alongside those that it drops.
#
# Do LoRA and full fine-tuning write to the same directions? Measure how much of LoRA's energy lies
# in the full update's top 8 output directions. A random update would have a share of
# $8 / d_\text{out}$ there (*chance*). The figure also shows stored runs on other batches.

# %%
guess_shared = lab.predict(
    "What percentage of LoRA's energy is in the full update's top 8 output directions?", None
)

# %% tags=["experiment"]
if lab.experiment("Which directions do they share?", 5, needs=["1.1", "1.4", "1.5"]):
    layers = dict(student.get_base_model().named_modules())
    shares, spectra = [], []
    for n in fifth:
        lora_update = layers[n.removesuffix(".weight")].get_delta_weight("default").detach()
        shares.append(energy_within(lora_update, tuned[n] - start[n], 8))
        spectra.append(torch.linalg.svdvals(lora_update))
    needed = [energy_rank(s, 0.9) for s in spectra]
    middle = sorted(needed)[len(needed) // 2]
    print(f"90% of LoRA's energy is in {middle} of its {lora_rank} directions")
    chance = [8 / len(start[n]) for n in fifth]
    own = [energy_within(tuned[n] - start[n], tuned[n] - start[n], 8) for n in fifth]
    display(figures.overlap(shares, own, stored, chance, guess_shared))
    guess_shared.compare(100 * torch.tensor(shares).median().item())

# %% [markdown]
# The share of LoRA's energy in these directions is about thirty times the chance level
# ([evidence](../docs/evidence/01_svd.md#where-lora-writes)). Even on other batches, LoRA has 38%
# there, so the shared starting point and task matter more than the batches. Full fine-tuning on
# other batches has 34% there, but this isn't comparable with LoRA's share: even the full update
# itself has only part of its energy there (first row). Still, in the median matrix, more than half
# of LoRA's energy lies in other directions.
#
# ## Another small number: intrinsic dimension
#
# LoRA's authors were inspired by another result. Aghajanyan et al.
# ([2020](https://arxiv.org/abs/2012.13255)) trained only 200 numbers and reached 90% of RoBERTa's
# full fine-tuning performance on a paraphrase task. But they didn't measure matrix rank. Following
# Li et al. ([2018](https://arxiv.org/abs/1804.08838)), they put all $D$ parameters of a network
# into one vector $\theta$ and trained only inside a random subspace of dimension $d$ around the
# starting point $\theta_0$:
#
# $$\theta = \theta_0 + P z, \qquad P: (D, d) \text{ fixed and random}, \quad z: (d,).$$
#
# ### Exercise 1.6 · `subspace_point`, `project_gradient`
#
# ●●○ · 5 min · 2 points
#
# `subspace_point` computes $\theta$. `project_gradient` turns the gradient with respect to $\theta$
# into the gradient with respect to $z$.
#
# <details><summary>Hint</summary>
#
# Use the chain rule: $\theta_i$ depends on $z_j$ through $P_{ij}$, so sum over all $i$. If $P$ is
# the column (1, 2, 3) and the gradient is (1, 0, 1), the result is 4.
# </details>


# %%
def subspace_point(theta0, P, z):
    """theta0 (D,), P (D, d), z (d,) -> the point in the subspace, (D,)."""
    # BEGIN SOLUTION
    return theta0 + P @ z
    # END SOLUTION


def project_gradient(P, grad_theta):
    """P (D, d), gradient with respect to theta (D,) -> gradient with respect to z (d,)."""
    # BEGIN SOLUTION
    return P.T @ grad_theta
    # END SOLUTION


# %%
check.subspace(subspace_point, project_gradient)

# %% [markdown]
# For SmolLM2, $P$ would be too large: 134.5 million rows of 200 numbers. Instead, train a small
# network with 14,098 parameters from scratch. Given the mean of a `home` command's token
# embeddings, the network predicts which of ten intents the command has.


# %%
def fit(d, steps=200):
    """(accuracy, rank of the first layer's update) after training z (d,); d=None: all of theta."""
    torch.manual_seed(lab.seed)
    net = nn.Sequential(nn.Linear(576, 24), nn.ReLU(), nn.Linear(24, 10))
    theta = theta0 = parameters_to_vector(net.parameters()).detach()
    P = torch.randn(len(theta), d) / len(theta) ** 0.5 if d else None
    z = torch.zeros(d or len(theta))
    optimizer = torch.optim.Adam([z], 0.5 if d else 1e-3)
    for _ in range(steps):
        i = torch.randint(1600, (256,))
        grads = torch.autograd.grad(F.cross_entropy(net(x[i]), y[i]), list(net.parameters()))
        grad = parameters_to_vector(grads)
        z.grad = project_gradient(P, grad) if d else grad
        optimizer.step()
        theta = subspace_point(theta0, P, z) if d else theta0 + z
        vector_to_parameters(theta, net.parameters())
    accuracy = (net(x[1600:]).argmax(1) == y[1600:]).float().mean().item()
    change = (theta - theta0)[: 24 * 576].view(24, 576)
    return accuracy, torch.linalg.matrix_rank(change).item()


# %% tags=["experiment"]
if lab.experiment("Training in random subspaces", 4, needs=["1.4", "1.6"]):
    commands = tasks.load("home", "train").shuffle(seed=0)
    intents = sorted(set(commands["intent"]))
    y = torch.tensor([intents.index(name) for name in commands["intent"]])
    words = model.get_input_embeddings().weight.detach().cpu()
    x = torch.stack([words[tokenizer(text).input_ids].mean(0) for text in commands["text"]])
    x = (x - x.mean(0)) / x.std()
    dims = [1, 2, 5, 10, 20, 50, 100, 200, 300, 500]
    found = {d: fit(d) for d in live.progress(dims, "subspaces")}
    full = fit(None)[0]
    display(figures.intrinsic({d: a for d, (a, _) in found.items()}, full, n_params=14_098))
    print(f"rank of the first layer's update at d = 1: {found[1][1]} (the maximum is 24)")

# %% [markdown]
# In this run, training a few hundred numbers gives 90% of the accuracy of training all 14,098
# parameters. Yet the first layer's update has full rank even if you train a single number, because
# a random direction in parameter space is a random matrix in each layer. Low intrinsic dimension
# means that a few *numbers* are enough. Low matrix rank means that a few *directions* are enough.
# LoRA relies on low-rank matrices.
#
# ## Take it with you
#
# You can convert a full fine-tune into a LoRA adapter by cutting the difference between two
# checkpoints to low rank. (mergekit calls this *LoRA extraction*.) The script below extracts an
# adapter from SmolLM2's instruction tuning, without the embeddings and norms.
#
# ```python
# import torch
# from peft import LoraConfig, get_peft_model
# from transformers import AutoModelForCausalLM
#
# BASE, TUNED = "HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"
# R = 64
#
# base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
# tuned = AutoModelForCausalLM.from_pretrained(TUNED, dtype=torch.float32)
# config = LoraConfig(r=R, lora_alpha=R, target_modules="all-linear", task_type="CAUSAL_LM")
# model = get_peft_model(base, config)
# for name, layer in model.base_model.model.named_modules():
#     if hasattr(layer, "lora_A"):
#         update = (tuned.get_submodule(name).weight - layer.base_layer.weight).detach()
#         U, S, Vh = torch.linalg.svd(update, full_matrices=False)
#         layer.lora_B["default"].weight.data = (U[:, :R] * S[:R]).contiguous()
#         layer.lora_A["default"].weight.data = Vh[:R].contiguous()
#         print(f"{name}: {S[:R].square().sum() / S.square().sum():.0%} of the energy")
# model.save_pretrained("my-lora")
# ```

# %% [markdown]
# ### Exercise 1.7 · Quiz
#
# ●○○ · 4 min · 3 points
#
# Only your first answer to each question counts. Then read the explanations.
#
# **q1. A cut to rank 8 keeps only part of a full fine-tuning update's energy. What does that say
# about LoRA with r=8?**
#
# - (a) LoRA must end at a higher loss, because it can't represent the rest of the update.
# - (b) The rank is too low: raise it until 90% of the energy fits.
# - (c) Not much: LoRA needs one good update of rank 8, not this particular update.
# - (d) LoRA will learn the same eight directions and lose what the other directions contribute.
#
# **q2. You train LoRA with r=8. How does its update, $\frac{\alpha}{r} BA$, relate to the full
# fine-tuning update?**
#
# - (a) It can't be closer to that update than the best rank-8 approximation, and needn't be close.
# - (b) It can be closer to that update than the best rank-8 approximation, because it is trained.
# - (c) The columns of B become the first eight left singular vectors of that update.
# - (d) Once training has converged, it is the best rank-8 approximation of that update.
#
# **q3. Trained in a random subspace of dimension 200, a network reaches 90% of the accuracy of full
# training. What follows?**
#
# - (a) The singular values of the update fall off quickly after the first 200.
# - (b) Each matrix's update has rank at most 200, so LoRA with r=200 can represent it.
# - (c) Most of the network's weights didn't change, so they didn't need training.
# - (d) A few numbers are enough, but each matrix's update may have full rank.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "c", "q2": "a", "q3": "d"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - The first $r$ terms of the SVD add up to the closest matrix of rank $r$. Stored as two factors,
#   this matrix takes $r\,(d_\text{out} + d_\text{in})$ numbers.
# - This model's weights aren't low-rank. The full fine-tuning update needs fewer directions than
#   the weights, but more than 8. Cutting it to rank 16 keeps most of the right answers, and cutting
#   it to rank 64 loses almost nothing.
# - LoRA trains at rank 8 from the start and gets about 90% as many answers right as full
#   fine-tuning. LoRA doesn't need the full update to be low-rank.
# - Low matrix rank and low intrinsic dimension are different properties.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["1.1", "1.4", "1.5"]):
    cut, lora = right["cut to rank 8"], right["LoRA, r = 8"]
    lab.headline(
        f"right answers out of {len(unseen)}: full fine-tuning {right['full']}, "
        f"its rank-8 cut {cut}, rank-8 LoRA {lora}"
    )
