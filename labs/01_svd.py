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
# LoRA rests on one sentence: "the change that fine-tuning makes is low-rank". In this lab you
# find out what that means, and whether it is true. You will cut a photograph, then the weights of
# a real language model, then what fine-tuning did to them.
#
# About 55 minutes if you know PyTorch well (41 for the exercises), up to 85 if you do not. The
# experiments take under two minutes on two CPU cores.

# %%
import labkit

lab, check = labkit.start("01_svd")

# %%
import statistics

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from matplotlib import cbook
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from labkit import live, tasks
from labkit.labs.lab01 import plots
from labkit.plots import png
from labkit.training import loop, models

# %% [markdown]
# ## A matrix is a sum of simple ones
#
# The simplest matrix is a column times a row, $u v^\top$. The singular value decomposition (SVD)
# writes any $W$ as a sum of such terms, the largest first:
#
# $$W = \sum_i s_i\, u_i v_i^\top, \qquad s_1 \ge s_2 \ge \dots \ge 0.$$
#
# The $u_i$ are orthogonal and of length 1, and so are the $v_i$. The number of terms with
# $s_i > 0$ is the *rank*. A LoRA update $BA$ with $r$ columns in $B$ is a sum of $r$ terms, so its
# rank is at most $r$. The first question is what $r$ terms can hold.

# %% [markdown]
# ### Exercise 1.1 · `best_rank_r`
#
# ●●○ · 7 min · 2 points
#
# Return the matrix of rank at most `r` that is nearest to `W`: the one that leaves the least sum of
# squared differences, which is the distance in the *Frobenius norm*. The Eckart-Young theorem says
# which: keep the first `r` terms of the sum. An `r` beyond the rank is fine, then nothing is cut.
#
# <details><summary>Hint</summary>
#
# `torch.linalg.svd(W, full_matrices=False)` returns three things. Look at their shapes. The third
# is called `Vh` for a reason: its *rows* are the $v_i$. Scaling the columns of `U` is a plain `*`.
# </details>


# %%
def best_rank_r(W, r):
    """W (d_out, d_in) -> the nearest matrix of rank at most r, (d_out, d_in)."""
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
# How far is that matrix from $W$? Return $\lVert W - W_r \rVert / \lVert W \rVert$ as a float, with
# the Frobenius norm (the root of the sum of all squared entries). Build neither $W_r$ nor
# $W - W_r$: the singular values alone tell you. Where $r$ is the rank or more it is 0, to
# rounding.
#
# <details><summary>Hint</summary>
#
# Rotations do not change lengths, so $\lVert W \rVert^2$ is the sum of all $s_i^2$. What is left
# of $W$ once the first $r$ terms are gone?
# </details>


# %%
def relative_error(W, r):
    """|W - W_r| / |W| for the best W_r of rank r, a float."""
    # BEGIN SOLUTION
    s = torch.linalg.svdvals(W)
    return (s[r:].norm() / s.norm()).item()
    # END SOLUTION


# %%
check.errors(relative_error)

# %% [markdown]
# A photograph is a matrix too. This one comes with matplotlib: Grace Hopper, who wrote one of
# the first compilers.

# %% tags=["experiment"]
if lab.experiment("A photograph, rank by rank", 1, needs=["1.1", "1.2"]):
    pixels = torch.tensor(plt.imread(cbook.get_sample_data("grace_hopper.jpg")) / 255.0)
    photo = F.avg_pool2d(pixels.mean(-1)[None].float(), 2)[0]  # grey, (303, 256)
    shown = [1, 2, 5, 10, 20, 50, 100, 256]
    pictures = {r: best_rank_r(photo, r) for r in shown}
    display(plots.rank_grid(pictures, {r: relative_error(photo, r) for r in shown}))

# %% [markdown]
# Rank 1 is one column of brightness times one row. At rank 5 there is a person, at 20 you would
# recognise her. Note where the error is: smooth areas are right early, edges and medals come late.
# "Low rank" means that every row is a mixture of a few patterns.

# %% tags=["experiment"]
if lab.experiment("Move the slider", 0, needs=["1.1", "1.2"]):
    import ipywidgets

    def picture(r):
        title = f"r = {r} · error {relative_error(photo, r):.1%}"
        return png(plots.one_picture(best_rank_r(photo, r), title))

    slider = ipywidgets.IntSlider(10, 1, 256, description="rank r", continuous_update=False)
    slider.layout.width = "420px"
    image = ipywidgets.Image(value=picture(slider.value), width=420)
    slider.observe(lambda change: setattr(image, "value", picture(change["new"])), "value")
    display(ipywidgets.VBox([slider, image]))

# %% [markdown]
# ## What a low rank costs
#
# The nearest matrix of rank $r$ is as large as $W$ until you keep it as two thin factors.
#
# ### Exercise 1.3 · `lora_params`, `break_even_rank`
#
# ●○○ · 5 min · 2 points
#
# `lora_params` counts the numbers in $A$, `(r, d_in)`, and $B$, `(d_out, r)`. `break_even_rank` is
# the largest rank at which they hold strictly fewer numbers than $W$, 0 where no rank saves. Both
# are ints, and $W$ need not be square. *Strictly*, for at equality the rank has become smaller and
# nothing was saved: where $W$ is square and its side even, this is half the side.


# %%
def lora_params(d_out, d_in, r):
    """How many numbers B (d_out, r) and A (r, d_in) hold, an int."""
    # BEGIN SOLUTION
    return r * (d_out + d_in)
    # END SOLUTION


def break_even_rank(d_out, d_in):
    """The largest r at which B and A hold strictly fewer numbers than W, an int."""
    # BEGIN SOLUTION
    return (d_out * d_in - 1) // (d_out + d_in)
    # END SOLUTION


# %%
check.parameters(lora_params, break_even_rank)

# %% [markdown]
# You have just checked a number that everybody quotes: a 4096 × 4096 matrix has 16.7 million
# entries, and LoRA with $r=16$ trains 131,072 in its place, 128 times fewer. And you have seen that
# the count grows *linearly* with the rank. (You will read "quadratically" somewhere. Your formula
# has no $r^2$.)
#
# Few numbers are only good if they are enough. Compare the photograph with pure noise.

# %% tags=["experiment"]
if lab.experiment("What the numbers buy", 2, needs=["1.1", "1.2", "1.3"]):
    noise = torch.rand(photo.shape, generator=torch.Generator().manual_seed(lab.seed)) - 0.5
    ranks = range(1, 190, 8)
    costs = [lora_params(*photo.shape, r) / photo.numel() for r in ranks]
    errors = {"photograph": photo, "noise": noise}
    errors = {name: [relative_error(W, r) for r in ranks] for name, W in errors.items()}
    display(plots.error_and_cost(costs, errors, break_even_rank(*photo.shape)))

# %% [markdown]
# On the photograph the error falls at once. On noise no direction stands out: the singular values
# fall slowly, and the price buys little. So a low rank is no free lunch. It is a bet that the
# matrix has structure, and the singular values say whether the bet is good.

# %% [markdown]
# ## Two ways to put a spectrum into one number
#
# The squared singular values are the *energy* of a matrix. Two summaries are in use:
#
# - the **energy rank**: how many leading values hold a given fraction of the energy;
# - the **stable rank** $\lVert W \rVert_F^2 / \lVert W \rVert_2^2$: the whole energy over that of
#   the largest direction. It is 1 when one direction has it all, the full rank when all are equal.
#
# ### Exercise 1.4 · `energy_rank`, `stable_rank`
#
# ●●○ · 8 min · 3 points
#
# `energy_rank(s, fraction)` gets singular values, largest first, and returns the smallest rank
# whose energy is *at least* the fraction of the whole, an int. `stable_rank(W)` is a float.
#
# <details><summary>Hint</summary>
#
# `cumsum` gives the energy of the first 1, 2, 3, … values. How many of these partial sums are too
# small? The spectral norm $\lVert W \rVert_2$ is the largest singular value.
# </details>


# %%
def energy_rank(s, fraction):
    """s (k,) singular values, largest first -> how many of them hold `fraction` of the energy."""
    # BEGIN SOLUTION
    energy = s.square().cumsum(0)
    return int((energy < fraction * energy[-1]).sum()) + 1
    # END SOLUTION


def stable_rank(W):
    """|W|_F^2 / |W|_2^2, a float."""
    # BEGIN SOLUTION
    s = torch.linalg.svdvals(W)
    return (s.square().sum() / s[0] ** 2).item()
    # END SOLUTION


# %%
check.ranks(energy_rank, stable_rank)

# %% [markdown]
# ## The weights of a real model
#
# SmolLM2-135M has 30 blocks with seven matrices each: `q_proj`, `k_proj`, `v_proj` and `o_proj` in
# the attention, `gate_proj`, `up_proj` and `down_proj` in the MLP. Are they low-rank? Beside each
# spectrum we draw that of a random matrix of the same shape.

# %% tags=["experiment"]
if lab.experiment("Spectra of trained and random matrices", 4, needs=["1.4"]):
    base, tokenizer = models.load(dtype=torch.bfloat16)
    start = {n: W.detach() for n, W in base.named_parameters() if n.endswith("proj.weight")}
    real, noise, layer = {}, {}, "model.layers.15"
    for kind in ["self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj"]:
        W = start[f"{layer}.{kind}.weight"].float()
        real[kind.split(".")[1]] = torch.linalg.svdvals(W).cpu().numpy()
        noise[kind.split(".")[1]] = torch.linalg.svdvals(torch.randn_like(W)).cpu().numpy()
    display(plots.spectra(real, noise))

# %% [markdown]
# Training has given some directions of `q_proj` and the MLP more weight than chance would, and
# hardly any in `v_proj`. But no curve falls off a cliff that chance would not have: the last values
# of a square matrix like `q_proj` are near zero, trained or random. There is no rank at which you
# could say "the rest is nothing". Now every fifth block, with your two numbers for each matrix.


# %%
def by_kind(values):
    """{"…layers.0.self_attn.q_proj.weight": number, …} -> {"q_proj": [numbers by block], …}."""
    kinds = {}
    for name, value in values.items():
        kinds.setdefault(name.split(".")[-2], []).append(value)
    return kinds


def middle(kinds):
    """The median of all numbers in such a dict."""
    return round(statistics.median(number for values in kinds.values() for number in values))


def r90(W):
    """How many directions of W hold 90% of its energy."""
    return energy_rank(torch.linalg.svdvals(W), 0.9)


# %% tags=["experiment"]
if lab.experiment("Ranks of trained and random matrices", 6, needs=["1.2", "1.4"]):
    some = [n for n in start if int(n.split(".")[2]) % 5 == 0]
    panels = {"rank for 90% of the energy": r90, "stable rank": stable_rank}
    for label, rank_of in list(panels.items()):
        trained = {n: rank_of(start[n].float()) for n in live.progress(some, label)}
        random = {n: rank_of(torch.randn_like(start[n].float())) for n in some[:7]}
        panels[label] = {"trained": by_kind(trained), "random": by_kind(random)}
    typical = {name: middle(kinds) for name, kinds in panels["rank for 90% of the energy"].items()}
    title = "Rank for 90% of the energy, median: {trained} trained, {random} random"
    display(plots.rank_strips(panels, title.format(**typical)))
    kept = sorted(1 - relative_error(start[n].float(), 8) ** 2 for n in some)
    print(f"rank 8 would keep {kept[len(kept) // 2]:.0%} of a matrix's energy (median)")

# %% [markdown]
# Each dot is a matrix, block by block from left to right; the dash is a random one. By energy,
# queries and keys have the most structure, values and the MLP have little. The stable rank differs
# more, in the MLP as well, because it only asks how much the largest direction stands out.
#
# So the weights are *not* low-rank, and the number below the picture says what a cut to rank 8
# would leave of them. LoRA never says that they are. It says that their *change* is.

# %% [markdown]
# ## What does fine-tuning change?
#
# Take the weights before, $W_0$, and after, $W_1$. The update is $W_1 - W_0$. To ask what an update
# of rank $r$ could have done, replace it by its best rank-$r$ part and leave $W_0$ whole.
#
# ### Exercise 1.5 · `truncate_update`
#
# ●○○ · 4 min · 2 points
#
# Return $W_0$ plus the best rank-`r` part of the update. Change neither input.


# %%
def truncate_update(W0, W1, r):
    """W0, W1 (d_out, d_in) -> W0 plus the best rank-r part of W1 - W0."""
    # BEGIN SOLUTION
    return W0 + best_rank_r(W1 - W0, r)
    # END SOLUTION


# %%
check.truncates(truncate_update)

# %% [markdown]
# Now a real update. The task is `home`: a spoken command in, a JSON intent out. The test commands
# use sentence patterns and words that training never shows.
#
# All 210 matrices train, at full rank: 106 million numbers. The embedding and the norms rest, so
# that *everything* that changes is an update that we can cut.


# %%
def fine_tune(model, tokenizer, title, steps=20, learning_rate=2e-4):
    """Train what requires grad on `home`, in place: warm up, then down to zero along a line."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0, fused=True)
    curve, home = live.Curve(title, steps), tasks.load("home", "train")
    model.train()
    for step, batch in enumerate(loop.batches(home, tokenizer, size=16, steps=steps)):
        warm = min(1, (step + 1) / 3)
        optimizer.param_groups[0]["lr"] = learning_rate * warm * (1 - step / steps)
        loss = loop.answer_loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.add(loss)


# %% tags=["experiment"]
if lab.experiment("A short full fine-tune", 45, needs=["1.1", "1.4", "1.5"]):
    unseen = tasks.load("home", "test").shuffle(seed=1).select(range(48))
    tuned, _ = models.load(dtype=torch.float32)
    tuned.requires_grad_(False)
    matrices = {n: W for n, W in tuned.named_parameters() if n in start}
    for W in matrices.values():
        W.requires_grad_(True)
    loss_before = loop.held_out_loss(tuned, tokenizer, unseen)
    fine_tune(tuned, tokenizer, "Full fine-tuning on home")
    loss_after = loop.held_out_loss(tuned, tokenizer, unseen)
    n_trained = sum(W.numel() for W in matrices.values())
    print(f"{n_trained:,} numbers trained; held-out loss {loss_before:.2f} → {loss_after:.2f}")

# %% [markdown]
# The loss on commands of unseen patterns has fallen by most of what it was. What did that do to the
# matrices? One SVD of each update serves all that follows. It is what your `truncate_update` does
# inside; the cell compares the two on one matrix.

# %% tags=["experiment"]
if lab.experiment("The SVD of every update", 10, needs=["1.1", "1.4", "1.5"]):
    factors, spectra = {}, {}
    for name, W in live.progress(matrices.items(), "SVD of each update"):
        U, S, Vh = torch.linalg.svd(W.detach() - start[name], full_matrices=False)
        factors[name], spectra[name] = (U * S, Vh), S
    name = "model.layers.15.self_attn.q_proj.weight"
    W0, W1 = start[name].float(), matrices[name].detach().clone()
    shared = W0 + factors[name][0][:, :8] @ factors[name][1][:8]
    gap = (shared - truncate_update(W0, W1, 8)).abs().max() / W1.abs().max()
    print(f"rank 8 from these factors and by truncate_update: {gap:.1g} apart")

# %% tags=["experiment"]
if lab.experiment("How many directions an update takes", 1, needs=["1.1", "1.2", "1.4", "1.5"]):
    update_r90 = by_kind({name: energy_rank(S, 0.9) for name, S in spectra.items()})
    weights_r90 = panels["rank for 90% of the energy"]["trained"]
    title = f"90% of an update's energy takes rank {middle(update_r90)} at the median"
    both = {"update": update_r90, "weights": weights_r90}
    display(plots.rank_strips({"rank for 90% of the energy": both}, title))

# %% [markdown]
# Two things are true at once. The update is far lower in rank than the weights it changes. And it
# is not as low as people say. "Rank 4 to 8 holds over 90% of the signal" is a sentence you will
# meet; if signal means energy, it is wrong for this update. Longer runs on larger models find the
# same: full fine-tuning updates of 10 to 100 times the usual LoRA ranks (Biderman et al., 2024).
#
# But nobody fine-tunes to collect energy. What matters is the loss.


# %%
def try_update(part):
    """(held-out loss, share of energy) when each update becomes part(U * S, Vh)."""
    share = 0.0
    with torch.no_grad():
        for name, W in matrices.items():
            update = part(*factors[name])
            share += (update.norm() / factors[name][0].norm()).item() ** 2 / len(matrices)
            W.copy_(start[name] + update)
    return loop.held_out_loss(tuned, tokenizer, unseen), share


def gain(loss):
    """The share of full fine-tuning's gain that is left at this held-out loss."""
    return (loss_before - loss) / (loss_before - loss_after)


# %% tags=["experiment"]
if lab.experiment("Every update cut to rank r", 16, needs=["1.1", "1.4", "1.5"]):
    ranks, losses, energy = [1, 2, 4, 8, 16, 32, 64], [], []
    for r in live.progress(ranks, "ranks"):
        loss, share = try_update(lambda US, Vh, r=r: US[:, :r] @ Vh[:r])
        losses.append(loss)
        energy.append(share)
    gains = [gain(loss) for loss in losses]
    display(plots.energy_and_gain(ranks, energy, gains))
    print("rank     ", *(f"{r:6}" for r in ranks))
    print("loss     ", *(f"{loss:6.2f}" for loss in losses), f"   uncut {loss_after:.2f}")

# %% [markdown]
# This is the picture of the lab. "Gain" is how far the held-out loss falls; 100% is what the whole
# update achieves. The orange curve says that the update is not low-rank. The blue one says that it
# hardly matters: a low-rank cut keeps most of the gain. A claim about energy and a claim about loss
# are two claims. The first is wrong here, the second right.
#
# Is the rest noise, then? Keep only the rest and see. And are any 8 directions good enough? Keep
# the part of the update that acts on 8 random input directions.

# %% tags=["experiment"]
if lab.experiment("Top, rest and random directions", 7, needs=["1.1", "1.4", "1.5"]):
    torch.manual_seed(lab.seed)

    def random_inputs(US, Vh, r=8):
        Q = torch.linalg.qr(torch.randn(Vh.shape[1], r)).Q.to(Vh)  # (d_in, r), orthonormal
        return US @ (Vh @ Q) @ Q.T

    kept = {
        "top 8 directions": lambda US, Vh: US[:, :8] @ Vh[:8],
        "all but the top 8": lambda US, Vh: US[:, 8:] @ Vh[8:],
        "8 random input directions": random_inputs,
    }
    tried = {name: try_update(part) for name, part in kept.items()}
    parts = {name: (share, gain(loss)) for name, (loss, share) in tried.items()}
    display(plots.parts_of_update(parts))

# %% [markdown]
# The shares of energy of the first two add up to 100%; the shares of the gain do not. With the
# eight leading directions gone, what is left still lowers the loss. So the tail is not noise. That
# the gains add up to more than 100% does not yet mean that both parts say the same: the loss falls
# steeply at first, and any good part of an update gets most of the way. Random directions are worth
# next to nothing at the same rank. Few directions of this update suffice, but they must be its
# leading ones. Training is freer: it can fit `B` to the directions that `A` happens to have
# (lab 5).

# %% [markdown]
# ## LoRA is not an SVD
#
# You will read that LoRA is "a constrained SVD of the update". It is not. LoRA never sees the
# update; it follows the loss. Eckart-Young only *bounds* it: no $BA$ of rank 8 can be nearer to the
# update than its first eight terms. Even when $BA$ is trained for nothing but this distance, `B`
# and `A` do not become the factors of the SVD.

# %% tags=["experiment"]
if lab.experiment("B and A trained towards one update", 2, needs=["1.1", "1.2", "1.4", "1.5"]):
    torch.manual_seed(lab.seed)
    goal = (W1 - W0) / (W1 - W0).norm()
    A, B = torch.randn(8, 576).to(goal) * 0.05, torch.zeros(576, 8).to(goal)
    optimizer = torch.optim.Adam([A.requires_grad_(), B.requires_grad_()], 3e-3)
    errors = []
    for _ in range(400):
        loss = (B @ A - goal).square().sum()
        errors.append(loss.item() ** 0.5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    learned, top = A.detach().cpu().numpy(), factors[name][1][:8].cpu().numpy()
    display(plots.learned_factors(errors, relative_error(goal, 8), learned, top))

# %% [markdown]
# Left: the product comes down to the bound and not below. Middle: the pale squares say that the
# rows of the learned $A$ are not quite orthogonal. Right: were it the SVD, this would be a
# diagonal. Instead each learned row is a mixture of the SVD's, in no order. Nothing forbids it:
# for any invertible $R$, $(BR)(R^{-1}A)$ is the same update. So do not read meaning into single
# rows of a trained $A$. The subspace that they span is what counts (Lab 5).

# %% [markdown]
# ## Another small number: intrinsic dimension
#
# One more result is often quoted as "fine-tuning is low-rank": 200 parameters reach 90% of full
# fine-tuning of RoBERTa on a paraphrase task (Aghajanyan et al., 2020). They measured
# something else. All $D$ parameters of a network are one vector $\theta$. Pick a random flat of
# dimension $d$ through the start,
#
# $$\theta = \theta_0 + P z, \qquad P: (D, d) \text{ fixed and random}, \quad z: (d,),$$
#
# and train $z$ alone. The smallest $d$ that reaches 90% of full training is called $d_{90}$.
#
# ### Exercise 1.6 · `subspace_point`, `project_gradient`
#
# ●●○ · 6 min · 3 points
#
# `subspace_point` gives $\theta$. `project_gradient` turns the gradient with respect to $\theta$
# into the gradient with respect to $z$. Neither changes its inputs.
#
# <details><summary>Hint</summary>
#
# The chain rule: $\theta_i$ depends on $z_j$ through $P_{ij}$, so sum over all $i$. Check the shape
# of what you return.
# </details>


# %%
def subspace_point(theta0, P, z):
    """theta0 (D,), P (D, d), z (d,) -> the point of the flat, (D,)."""
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
# For the real model $P$ would not fit in memory, so we take a small network: it reads the mean of
# the model's own word vectors of a `home` command and names one of ten intents. It is trained on
# 1,600 commands and scored on 400 others of the same patterns.


# %%
def network(width):
    """A fresh network on 576 inputs, its parameters, and these as one vector."""
    torch.manual_seed(lab.seed)
    net = nn.Sequential(nn.Linear(576, width), nn.ReLU(), nn.Linear(width, 10))
    return net, list(net.parameters()), parameters_to_vector(net.parameters()).detach()


def fit(net, step, x, y, steps=200):
    """`step(loss)` after each batch; then the accuracy of `net` on the last 400 commands."""
    for _ in range(steps):
        i = torch.randint(1600, (256,))
        step(F.cross_entropy(net(x[i]), y[i]))
    return (net(x[1600:]).argmax(1) == y[1600:]).float().mean().item()


# %% [markdown]
# First with all parameters, then in a flat. Your two functions are the whole difference.


# %%
def fit_fully(width, x, y):
    """Accuracy when all parameters train."""
    net, params, _ = network(width)
    optimizer = torch.optim.Adam(params, 1e-3)

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return fit(net, step, x, y)


# %%
def fit_in_flat(width, d, x, y):
    """Accuracy when z (d,) alone trains, and the matrix rank of the first layer's update."""
    net, params, theta0 = network(width)
    first = params[0].detach().clone()
    P, z = torch.randn(len(theta0), d) / len(theta0) ** 0.5, torch.zeros(d)
    optimizer = torch.optim.Adam([z], 0.5)

    def step(loss):
        grad_theta = parameters_to_vector(torch.autograd.grad(loss, params))
        z.grad = project_gradient(P, grad_theta)
        optimizer.step()
        vector_to_parameters(subspace_point(theta0, P, z), params)

    accuracy = fit(net, step, x, y)
    return accuracy, torch.linalg.matrix_rank(params[0].detach() - first).item()


# %% tags=["experiment"]
if lab.experiment("Training in random flats", 10, needs=["1.4", "1.6"]):
    commands = tasks.load("home", "train").shuffle(seed=0)
    intents = sorted(set(commands["intent"]))
    y = torch.tensor([intents.index(name) for name in commands["intent"]])
    words = base.get_input_embeddings().weight.detach().float().cpu()
    x = torch.stack([words[tokenizer(text).input_ids].mean(0) for text in commands["text"]])
    x = (x - x.mean(0)) / x.std()
    dims, accuracies, full, d90 = [1, 2, 5, 10, 20, 50, 100, 200, 300, 500], {}, {}, {}
    for width in (16, 48):
        D = len(network(width)[2])
        full[D] = fit_fully(width, x, y)
        runs = [fit_in_flat(width, d, x, y) for d in live.progress(dims, f"flats in {D:,}")]
        accuracies[D] = [accuracy for accuracy, _ in runs]
        d90[D] = next(d for d, (a, _) in zip(dims, runs, strict=True) if a >= 0.9 * full[D])
    display(plots.intrinsic(dims, accuracies, full, d90))
    print(f"rank of the first layer's update at d = {dims[5]}: {runs[5][1]} of {width}")

# %% [markdown]
# The dotted line is 90% of full training, the dashed one marks the first $d$ we tried that gets
# there. A few hundred numbers do the work of many thousands. And the two curves nearly coincide:
# three times the parameters do not ask for three times the dimension. $d_{90}$ describes the task
# more than the network.
#
# But read the line below the picture. A flat of dimension 50 moved the first layer by a matrix of
# *full* rank. A small intrinsic dimension says that few numbers suffice; a low matrix rank says
# that few directions do. LoRA bets on the second, one matrix at a time. Neither proves the other.

# %% [markdown]
# ### Exercise 1.7 · Quiz
#
# ●○○ · 5 min · 3 points
#
# The first letter that you check counts; then read what it says.
#
# **q1. A 4096 × 4096 layer gets LoRA with r=16. What happens to the memory of training it?**
#
# - (a) The weights shrink 128-fold.
# - (b) The activations shrink 128-fold.
# - (c) Gradients and optimizer states shrink 128-fold; the weights and most activations stay.
# - (d) Nothing shrinks but the file on disk.
#
# **q2. You train LoRA with r=8. How does its BA relate to the update of full fine-tuning?**
#
# - (a) The best rank-8 part bounds how near BA can come; BA itself is learned from the loss.
# - (b) BA is the best rank-8 part of that update.
# - (c) BA can be nearer to that update than its best rank-8 part is.
# - (d) The columns of B are its first eight singular directions.
#
# **q3. A rank-8 cut kept about two thirds of the energy and most of the gain. What follows?**
#
# - (a) The update has rank 8.
# - (b) The other third of the energy is noise.
# - (c) Eight numbers a matrix would do, since the intrinsic dimension is small.
# - (d) Few directions can do most of the task, although the update is not low-rank in energy.


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
# - The first $r$ terms of the SVD are the best that rank $r$ can do, and the singular values that
#   are left say how good that is.
# - Two thin matrices cost $r\,(d_\text{out} + d_\text{in})$ numbers: linear in the rank.
# - The weights of a real model are far from low-rank. Their update is lower, and still not low in
#   energy. A low-rank cut of it keeps most of the gain all the same: that is LoRA's bet.
# - A few leading directions of a finished update do most of its work; as many random ones gain next
#   to nothing.
# - Few directions, few parameters and few numbers on disk are three different statements.
#
# Lab 2 trains the two thin matrices directly.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["1.1", "1.2", "1.4", "1.5", "1.6"]):
    D = min(d90)
    lab.headline(
        f"a full update cut to rank 8 keeps {energy[3]:.0%} of its energy, {gains[3]:.0%} of its "
        f"gain (rank {middle(update_r90)} for 90% of the energy); d90 is {d90[D]} of {D:,} numbers"
    )
