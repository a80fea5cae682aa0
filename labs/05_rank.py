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
# "Start with r=8." "r=16 is the sweet spot." "Above 32 it only overfits." "Double alpha when you
# double r." Everybody who trains LoRA has heard these. Each of them was true somewhere, for one
# model, one task and one learning rate.
#
# In this lab you compare ranks fairly. It is harder than it looks: the most common comparison
# changes two things at once.
#
# About 80 minutes if you know PyTorch well (52 for the exercises), up to 110 if you do not. The
# experiments take under eight minutes on two CPU cores, and seconds when you run them again.

# %%
import labkit

lab, check = labkit.start("05_rank")

# %%
import re
from collections import Counter

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from torch import nn

from labkit import live, measured, tasks
from labkit.labs.lab05 import plots
from labkit.measured import short
from labkit.memory import configs
from labkit.memory import plots as memory_plots
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate
from labkit.plots import compare_answers
from labkit.tasks import tickets
from labkit.training import finetuning, generation, models

# %% [markdown]
# ## What a rank costs
#
# ### Exercise 5.1 · `param_table`
#
# ●○○ · 5 min · 2 points
#
# A table of what LoRA trains at each of several ranks. `shapes` maps the name of each adapted
# matrix to its `(d_out, d_in)`. One row a rank, in the order of `ranks` and labelled 0, 1, 2, …
# (pandas does that by itself). These are columns, none of them the index:
#
# | column | what |
# |---|---|
# | `rank` | the rank |
# | `trainable` | how many numbers the adapter holds on all matrices together |
# | `percent` | that number in percent of the numbers in these same matrices; two decimals do |
#
# Shapes alone do not tell how large the whole model is, so `percent` refers to the matrices that
# are adapted. PEFT's percentage is lower: it divides by the whole model, embeddings and adapter
# included.


# %%
def param_table(shapes, ranks):
    """DataFrame rank, trainable, percent (of the matrices in {name: (d_out, d_in)})."""
    # BEGIN SOLUTION
    dense = sum(d_out * d_in for d_out, d_in in shapes.values())
    sides = sum(d_out + d_in for d_out, d_in in shapes.values())
    table = pd.DataFrame({"rank": ranks})
    table["trainable"] = table["rank"] * sides
    table["percent"] = 100 * table["trainable"] / dense
    return table
    # END SOLUTION


# %%
check.counts(param_table)

# %% [markdown]
# Now three real models, from their shapes alone. On the *meta* device they weigh nothing.

# %% tags=["experiment"]
if lab.experiment("Ranks 4 to 64 on three models", 6, needs=["5.1"]):
    ranks, tables = [4, 8, 16, 32, 64], {}
    for name in ("smollm2-135m", "llama-2-7b", "llama-3.1-8b"):
        for place in ("q, v", "all-linear"):
            tables[f"{name}, {place}"] = param_table(short.shapes(name, place), ranks)
        narrow, wide = (tables[f"{name}, {place}"]["trainable"] for place in ("q, v", "all-linear"))
        print(f"{name}: all-linear is {wide[0] / narrow[0]:.2f} times q, v")
    columns = {name: table.set_index("rank")["trainable"] for name, table in tables.items()}
    display(pd.DataFrame(columns).map("{:,}".format))
    ends = [f"{t['percent'].iloc[i]:.2f}%" for t in tables.values() for i in (0, -1)]
    print(f"of their matrices: {ends[0]} (135M, q,v, r=4) to {ends[3]} (135M, all-linear, r=64)")
    llama = {name.split(", ", 1)[1]: t for name, t in tables.items() if "llama-2" in name}
    display(plots.counts(llama))

# %% [markdown]
# Sentences that circulate, next to your table:
#
# - *"Parameters grow quadratically with the rank."* On two log axes a line of slope one is
#   proportional growth: $r\,(d_\text{in} + d_\text{out})$ a matrix.
# - *"For a 7B model r = 4, 8, 16, 32, 64 train 2, 4, 8, 16, 33 million."* That is Llama-2-7B with
#   q and v. On all linear layers it is 10 to 160 million. And "q and v at r=16: 4.2 million" is
#   the row of r=8.
# - *"SmolLM2-135M, q and v, r=16: 131,072."* That is one matrix of 4096 × 4096. And *"Llama-3.1-8B,
#   all-linear, r=16: 13.6 million"* is attention without the MLPs.
# - *"All-linear is about three times q,v."* See the three ratios above.
#
# So a rank without its targets says nothing, neither about cost nor about capacity. "LoRA trains
# under 1%" is of that kind too. Of SmolLM2-135M and its adapter, as PEFT counts, it is 0.17% for
# r=4 on q,v and 12.7% for r=64 on all layers; the line above divides by the adapted matrices alone.
#
# ## Does r=64 need the memory of full fine-tuning?
#
# You can read that it comes close. It is quickly simulated: a training step of Llama-2-7B, one
# sequence of 512 tokens, on a device without numbers. `labkit.memory` follows every tensor that
# PyTorch, PEFT and the optimizer would make.

# %% tags=["experiment"]
if lab.experiment("Llama-2-7B at four ranks and in full, simulated", 25, needs=["5.1"]):
    llama_7b, rows = configs.find("llama-2-7b"), {}
    for r in live.progress([4, 16, 64, 256], "ranks"):
        rows[f"r={r}"] = simulate(llama_7b, Settings(rank=r)).by_category
    rows["full"] = simulate(llama_7b, Settings(method="full")).by_category
    gigabytes = {name: sum(parts.values()) / 1e9 for name, parts in rows.items()}
    share = gigabytes["r=64"] / gigabytes["full"]
    more = gigabytes["r=64"] - gigabytes["r=4"]
    title = f"r=64 on all linear layers: {share:.0%} of full fine-tuning's peak"
    display(memory_plots.bars(rows, title))
    print(f"from r=4 to r=64 the peak grows by {more:.1f} GB, to {gigabytes['r=64']:.1f} GB")

# %% [markdown]
# The blue part is the frozen model, and it is there at every rank. At the peak a rank adds 12 bytes
# a trainable number (the adapter and two moments in fp32; its gradient is not there yet) and some
# activation. Full fine-tuning pays 16 bytes for every weight. So memory is no reason to fear r=64.
#
# ## The comparison that everybody makes
#
# Take a task, train at r = 4, 16 and 64, look which is best. Do that now, on `home`. The runs are
# short so that you can make many: 24 steps of 4 commands. A rank is judged by its loss on commands
# with patterns and words that were never seen in training.
#
# `short.train` is lab 3's fine-tuning with these settings, and `short.measure` asks of a run: how
# many numbers it trained, the peak of a step's memory, its seconds, the size of its file, the loss
# on 100 unseen commands, and how many of 40 it answers exactly.
#
# ### Exercise 5.2 · `sweep`
#
# ●●● · 12 min · 4 points
#
# Run `train_fn` on every pair of a rank and a learning rate, and collect one row a run.
#
# - Call it as `train_fn(rank=…, alpha=…, learning_rate=…, seed=…)`. It returns a dict of results.
# - `alpha` is `alpha_of(rank)`.
# - The seed decides the draw of `A` and the order of the data. Use one seed, an int, for all runs,
#   so that they differ in nothing but the two settings.
# - Pass each rank as the int that it is: settings go into a file, and NumPy's ints do not.
# - A run that raises must not cost you the others: it stays in the table with the text of its
#   exception, and without results (NaN). (Ctrl-C must still stop the sweep.)
#
# The frame has the columns `rank`, `alpha`, `learning_rate`, all that `train_fn` returned, and
# `error`: the text, or `""` where all went well. Its rows may be in any order.
#
# <details><summary>Hint</summary>
#
# Two loops and a list of dicts; `pd.DataFrame(list_of_dicts)` fills what is missing with NaN.
# `except Exception` lets Ctrl-C through, a bare `except` does not.
# </details>


# %%
def sweep(train_fn, ranks, learning_rates, alpha_of):
    """DataFrame, one row a pair: rank, alpha, learning_rate, train_fn's results, error."""
    # BEGIN SOLUTION
    rows = []
    for rank in ranks:
        for learning_rate in learning_rates:
            row = {"rank": rank, "alpha": alpha_of(rank), "learning_rate": learning_rate}
            try:
                row |= train_fn(**row, seed=0) | {"error": ""}
            except Exception as error:
                row["error"] = str(error)
            rows.append(row)
    return pd.DataFrame(rows)
    # END SOLUTION


# %%
check.sweeps(sweep)


# %% [markdown]
# The usual choice: `alpha = 2r`, and one learning rate for all.

# %% tags=["experiment"]
if lab.experiment("r = 4, 16, 64 with alpha = 2r", 80, needs=["5.2"]):
    doubled = sweep(short.measure, [4, 16, 64], [1e-3], alpha_of=lambda rank: 2 * rank)
    display(doubled.drop(columns=["learning_rate", "error"]))

# %% [markdown]
# `trainable` and `adapter_mb` grow with the rank in proportion, `peak_mb` and `seconds` much less.
# The loss falls steeply. One would write: "rank matters, take 64". Before you do, change one thing:
# keep $\alpha$ fixed at 32. At r=16 that is the same run as above.

# %% tags=["experiment"]
if lab.experiment("The same with alpha fixed", 80, needs=["5.2"]):
    fixed = sweep(short.measure, [4, 16, 64], [1e-3], alpha_of=lambda rank: 32)
    display(fixed.drop(columns=["learning_rate", "error"]))
    rules = {"alpha = 2r": doubled, "alpha = 32": fixed}
    display(plots.one_rate(rules, 1e-3))

# %% [markdown]
# Same ranks, same parameters, same data, same seed. With $\alpha = 2r$ the rank seems to decide
# everything. With $\alpha$ fixed it decides next to nothing. The first table measured the *size of
# the steps*.
#
# Why? Adam moves each number of `B` by about the learning rate, whatever the size of its gradient.
# The update is $(\alpha / r) \sum_{k=1}^{r} b_k a_k$: $r$ terms, and their useful parts add up. So
# the step that counts goes like $(\alpha / r) \cdot r = \alpha$. Doubling $\alpha$ with $r$ does
# keep the factor $\alpha / r$, and doubles the step.
#
# (Lab 2 found that under $\alpha / r$ with fixed $\alpha$ the *norm* of the update falls with the
# rank. Both hold: the norm contains the random parts of the terms, which average out as $r$ grows.
# The loss sees the part that adds up.)

# %% [markdown]
# ## The comparison that is fair
#
# Give every rank its own best learning rate, and repeat with other seeds. That is dozens of runs,
# more than a lab should make you wait for. They were made beforehand, on two CPU cores, by
# `benchmarks/rank_sweep.py` with the settings of `short.train`. Its rows are a file of this course,
# and the same script makes them again. First a test of the file: do your runs agree with its rows?

# %% tags=["experiment"]
if lab.experiment("Your runs beside the file's", 0, needs=["5.2"]):
    runs = measured.load("rank_sweep")
    failed = (runs["error"] != "").sum()
    print(f"{len(runs)} runs, seeds {sorted(set(runs['seed']))}, {failed} failed")
    yours = pd.concat([doubled, fixed]).drop_duplicates(["rank", "alpha"])
    plain = runs[(runs["study"] == "rank") & (runs["variant"] == "") & (runs["seed"] == 0)]
    pairs = yours.merge(plain, on=["rank", "alpha", "learning_rate"], suffixes=("", "_file"))
    display(pairs[["rank", "alpha", "learning_rate", "loss", "loss_file"]])
    gap = (pairs["loss"] / pairs["loss_file"] - 1).abs().max()
    print(f"largest difference: {gap:.1%}")

# %% [markdown]
# Small differences are rounding: bf16 sums depend on the number of threads and on the processor.
#
# Three rules, chosen so that they agree at r=16, where the factor before $BA$ is 2 under each:
#
# | rule | factor at r = 4, 16, 64 |
# |---|---|
# | $\alpha = 32$, factor $\alpha / r$ | 8, 2, 0.5 |
# | $\alpha = 2r$, factor $\alpha / r$ | 2, 2, 2 |
# | rank-stabilised, factor $8 / \sqrt{r}$ | 4, 2, 1 |

# %% tags=["experiment"]
if lab.experiment("Every rank at its own learning rate", 0, needs=["5.2"]):
    panels = short.by_rule(runs)
    best = {
        rule: {rank: line.loc[line["mean"].idxmin()] for rank, line in lines.items()}
        for rule, lines in panels.items()
    }
    means = [row["mean"] for rows in best.values() for row in rows.values()]
    title = f"Each at its best learning rate: losses from {min(means):.2f} to {max(means):.2f}"
    display(plots.rate_curves(panels, title))
    tuned = {
        rule: {r: row["learning_rate"] for r, row in rows.items()} for rule, rows in best.items()
    }
    print("best learning rate on the grid")
    display(pd.DataFrame(tuned).T)

# %% [markdown]
# Look at where the curves have their lowest points. Under $\alpha = 2r$ they are shifted sideways:
# the higher the rank, the lower the rate it wants. Under the other two rules every rank has its
# best rate at 0.003: one learning rate serves all, and this grid does not tell the two apart. The
# rest of the curves does. At 0.001 the ranks of $\alpha = 32$ lie on each other, at 0.49, 0.48 and
# 0.50. Those of the stabilised rule lie at 0.65, 0.48 and 0.39: the step still grows with the rank,
# less than under $\alpha = 2r$. (A bar spans the seeds. Where it is long, some seeds broke.)
#
# That answers three sentences:
#
# - *"$\alpha / r$ acts as a multiplier of the learning rate; when you double $r$, double $\alpha$
#   to keep the effective rate."* That keeps the factor, and changes the effective rate. With
#   $\alpha$ fixed the best rate hardly depends on the rank ("LoRA Without Regret", 2025, reports
#   the same of large models).
# - *"alpha = 2r."* A convention. It is fine as long as you tune the learning rate for each rank.
# - *"Rank-stabilised scaling is needed for high ranks."* Its paper is about the size of the
#   activations at ranks of hundreds; on this task, tuned, no rule stands out.

# %% tags=["experiment"]
if lab.experiment("How much rank is worth, and how much a seed", 0, needs=["5.2"]):
    for rule, rows in best.items():
        text = ", ".join(
            f"r={r}: {row['mean']:.3f} ({row['low']:.3f}-{row['high']:.3f}, {row['runs']:.0f} runs)"
            for r, row in rows.items()
        )
        print(f"{rule:<12} {text}")

# %% [markdown]
# Lowest and highest of the seeds stand in brackets. Compare the differences between ranks with
# these ranges before you call one better. On this task, at this length, the honest summary is:
# from r=4 to r=64 tuning the step matters far more than the rank.
#
# It is a statement about a *small* task. Ten kinds of commands and 96 examples fit into r=4. What a
# rank limits is how much can be stored, and where there is much to store, in long training on code
# or mathematics, low ranks do fall behind (Biderman et al. 2024). "Above r=32 it never helps" and
# "r=8 is enough" are both claims about your data, not about LoRA.
#
# ## LoRA's learning rate and full fine-tuning's
#
# *"LoRA takes five to ten times the learning rate, because fewer parameters share the gradient."*
# Two claims in one sentence. The number first: the same 96 commands, every weight trainable.

# %% tags=["experiment"]
if lab.experiment("Two learning-rate curves", 0, needs=["5.2"]):
    lines = {
        "LoRA, r=16": panels["alpha = 32"][16],
        "full": measured.spread(runs[runs["study"] == "full"]),
    }
    display(plots.rate_ratio(lines))
    for name, line in lines.items():
        row = line.loc[line["mean"].idxmin()]
        print(f"{name}: best mean loss {row['mean']:.3f} at {row['learning_rate']:g}")

# %% [markdown]
# The grid is coarse, half a decade a step, so read the ratio as "about ten", not as a number with
# two digits. Now the reason. If sharing the gradient among fewer parameters were it, the ratio
# would change when r=4 becomes r=64, sixteen times the parameters. With $\alpha$ fixed it does
# not: you have just seen the three curves on top of each other. What sets LoRA's rate is the
# parametrisation (B starts at zero, the update is a product with a factor before it), not the
# count.
#
# ## Where to spend parameters
#
# q and v were the choice of the first paper. QLoRA adapted all linear layers. To compare places
# fairly, give each the same number of parameters.
#
# ### Exercise 5.3 · `matched_rank`
#
# ●○○ · 4 min · 2 points
#
# The largest rank at which adapters on `shapes` have at most `budget` parameters in all, an int; 0
# when not even rank 1 fits. Nothing but the budget limits it.


# %%
def matched_rank(shapes, budget):
    """The largest rank (int) whose adapters on {name: (d_out, d_in)} fit into `budget` numbers."""
    # BEGIN SOLUTION
    return budget // sum(d_out + d_in for d_out, d_in in shapes.values())
    # END SOLUTION


# %%
check.fits(matched_rank)

# %% tags=["experiment"]
if lab.experiment("Attention, MLPs or all, at equal parameters", 3, needs=["5.1", "5.3"]):
    budget = int(param_table(short.shapes("smollm2-135m", "all-linear"), [4])["trainable"][0])
    spent = {}
    for place in ("all-linear", "attention", "MLPs"):
        shapes = short.shapes("smollm2-135m", place)
        spent[place] = matched_rank(shapes, budget)
        used = param_table(shapes, [spent[place]])["trainable"][0]
        print(f"{place:<11} r={spent[place]:<3} {used:,} of {budget:,}")

# %% tags=["experiment"]
if lab.experiment("What each place brings, from the file", 0, needs=["5.1", "5.2", "5.3"]):
    plain = runs[(runs["alpha"] == 32) & (runs["variant"] == "")]
    groups, rates = {}, {}
    for place, rank in spent.items():
        part = plain[(plain["targets"] == place) & (plain["rank"] == rank)]
        line = measured.spread(part)
        rates[place] = float(line.loc[line["mean"].idxmin(), "learning_rate"])
        groups[f"{place}, r={rank}"] = list(part["loss"][part["learning_rate"] == rates[place]])
    means = {name: np.mean(losses) for name, losses in groups.items()}
    title = f"Best at equal parameters: {min(means, key=means.get)}"
    display(plots.dots(groups, title, "held-out loss; a dot a seed", "{:.3f}"))
    print("each at its best learning rate:", rates)

# %% [markdown]
# A dot is a run. Where the dots of two rows overlap, three seeds do not tell the places apart.
# In larger studies all linear layers were needed to match 16-bit fine-tuning (QLoRA), and MLPs
# alone beat attention alone at equal parameters (PEFT's benchmark: MLPs r=10 at .494, attention
# r=32 at .478). So "attention-only costs 1-3%" is a number from somewhere; the direction is what
# to remember, and it costs one line to test: `target_modules="all-linear"`.

# %% [markdown]
# ## What do two ranks learn in common?
#
# The LoRA paper argues for small ranks like this: train at r=8 and at r=64, and compare the
# subspaces that the two `A` span. If the first direction agrees and the others do not, then one
# direction was signal and the rest noise.
#
# ### Exercise 5.4 · `subspace_similarity`
#
# ●●○ · 10 min · 3 points
#
# Let $U_i$ `(d_in, i)` hold the top $i$ *right* singular vectors of `A1` as columns, $U_j$ the top
# $j$ of `A2`. Return (Hu et al. 2021, section 7.2)
#
# $$\phi(i, j) = \frac{\lVert U_i^\top U_j \rVert_F^2}{\min(i, j)}.$$
#
# It is 1 when one span contains the other and 0 when they are orthogonal.
#
# <details><summary>Hint</summary>
#
# `torch.linalg.svd(A, full_matrices=False)` returns `U, S, Vh`. The right singular vectors are the
# *rows* of `Vh`. The squared Frobenius norm is the sum of all squared entries.
# </details>


# %%
def subspace_similarity(A1, A2, i, j):
    """A1 (r1, d_in), A2 (r2, d_in) -> overlap of top-i and top-j right singular spaces, a float."""
    # BEGIN SOLUTION
    first = torch.linalg.svd(A1, full_matrices=False).Vh[:i]  # (i, d_in)
    second = torch.linalg.svd(A2, full_matrices=False).Vh[:j]  # (j, d_in)
    return (first @ second.T).square().sum().item() / min(i, j)
    # END SOLUTION


# %%
check.overlaps(subspace_similarity)


# %% tags=["experiment"]
if lab.experiment("A of r=8 against A of r=64, two seeds", 40, needs=["5.4"]):
    small, large = short.train(8, 32, 3e-3, seed=1), short.train(64, 32, 3e-3, seed=0)
    (A8, out8), (A64, out64) = short.factors(small), short.factors(large)
    maps = {
        "A: what is read": short.grid(subspace_similarity, A8, A64),
        "B: what is written": short.grid(subspace_similarity, out8, out64),
        "two random A": short.grid(subspace_similarity, torch.randn(8, 576), torch.randn(64, 576)),
    }
    in_A, in_B, by_chance = (frame.loc[8, 8] for frame in maps.values())
    title = f"Top 8 directions: {in_A:.2f} shared in A, {in_B:.2f} in B, {by_chance:.2f} by chance"
    display(plots.overlaps(maps, title))

# %% [markdown]
# A bright cell says that the two runs use the same directions. Left, `A`: next to nothing, hardly
# more than between two random matrices (right). The runs started from different random `A`, and in
# 24 steps `A` has not moved far. What an adapter reads of its input is mostly where the dice fell.
#
# Middle, the directions into which the update writes. They are the work of `B`, which started at
# zero, so all that is in it was learned. Other seed, other data, other rank, and the overlap is
# many times what chance gives. It does not end after the first direction, either.
#
# The paper found its overlap, above .5 for the first direction, in `A` of runs that were trained to
# the end. The argument is the same: what two runs share is signal. But one has to look where
# training has had time to put it.
#
# ## Which settings are worth their price?
#
# ### Exercise 5.5 · `pareto`
#
# ●●○ · 8 min · 3 points
#
# Keep the rows that no other row beats. Low `cost` is good, high `quality` is good. A row is
# beaten when another one is no worse in both and better in one. So two equal rows do not beat each
# other: both stay. A row whose quality is missing (a failed run) never stays.
#
# Rows that stay keep all their columns and their labels, in any order. Two rows of `frame` may have
# one label. Leave `frame` itself as it is.


# %%
def pareto(frame, cost, quality):
    """The rows of `frame` (all columns) that none beats: low `cost`, high `quality`."""

    # BEGIN SOLUTION
    def beaten(row):
        no_worse = (frame[cost] <= row[cost]) & (frame[quality] >= row[quality])
        better = (frame[cost] < row[cost]) | (frame[quality] > row[quality])
        return (no_worse & better).any()

    return frame[frame[quality].notna() & ~frame.apply(beaten, axis=1)]
    # END SOLUTION


# %%
check.not_beaten(pareto)

# %% tags=["experiment"]
if lab.experiment("The front of this lab's settings", 1, needs=["5.1", "5.2", "5.5"]):
    rows, plain = [], runs[(runs["alpha"] == 32) & (runs["variant"] == "")]
    for (place, rank), part in plain.groupby(["targets", "rank"]):
        table = param_table(short.shapes("smollm2-135m", place), [rank])
        loss = measured.spread(part)["mean"].min()
        row = {"label": f"{place}, r={rank}", "trainable": table["trainable"][0], "loss": loss}
        rows.append(row | {"quality": -loss})
    settings = pd.DataFrame(rows)
    kept = pareto(settings, "trainable", "quality")
    title = f"On the front of cost and loss: {', '.join(kept['label'])}"
    display(plots.front(settings, kept, title))

# %% [markdown]
# The orange points are the sensible choices: nothing cheaper is as good. When we ran it there was
# one alone, the MLPs at r=6, both cheapest and best. Before you believe it, look at the dots of the
# seeds above: its three runs span more than the distance to r=64. With other seeds other points may
# be back. A front made of few runs is a sketch.
#
# ## Little data, much rank
#
# *"A high rank overfits."* Take 16 commands, and go through them ten times. Every so often look at
# the loss on them and on the unseen ones.
#
# ### Exercise 5.6 · `overfit_gap`
#
# ●●○ · 8 min · 2 points
#
# `history` has one row an evaluation, with the columns `rank`, `step`, `train_loss` and
# `held_out_loss`, in any order. Each rank has its own last step: runs may be of different length.
# Leave `history` as it is. Return one row a rank, in rising order of rank, with these columns:
#
# | column | what |
# |---|---|
# | `rank` | the rank |
# | `best_step` | the step with the lowest held-out loss (the first of them) |
# | `gap` | held-out minus training loss at the last step |
# | `rise` | held-out loss at the last step minus the lowest: what stopping early would have saved |


# %%
def overfit_gap(history):
    """DataFrame rank, best_step, gap, rise: one row a rank of `history`."""
    # BEGIN SOLUTION
    rows = []
    for rank, part in history.sort_values("step").groupby("rank"):
        last, best = part.iloc[-1], part.loc[part["held_out_loss"].idxmin()]
        gap = last["held_out_loss"] - last["train_loss"]
        rise = last["held_out_loss"] - best["held_out_loss"]
        rows.append({"rank": rank, "best_step": int(best["step"]), "gap": gap, "rise": rise})
    return pd.DataFrame(rows)
    # END SOLUTION


# %%
check.gap(overfit_gap)


# %% tags=["experiment"]
if lab.experiment("Sixteen commands at r=4 and r=64", 70, needs=["5.6"]):
    parts = [short.few_examples(rank, alpha=32, learning_rate=3e-3, seed=0) for rank in (4, 64)]
    history = pd.concat(parts, ignore_index=True)
    gaps = overfit_gap(history)
    display(gaps.round(3))
    low, high = gaps["gap"]
    title = f"Held-out minus training loss at the end: {low:.2f} at r=4, {high:.2f} at r=64"
    display(plots.overfitting(history, title))

# %% [markdown]
# Solid: unseen commands. Dotted: the sixteen that it trains on. When we ran it, r=64 knew the
# sixteen by heart after 24 steps and r=4 at the end, and both ended with the same gap. What is left
# on the unseen ones is what sixteen examples cannot teach. Compare the two solid lines before you
# blame the rank: r=4 has 1.2 million numbers, far more than sixteen commands need, so a sixteen
# times larger adapter is not sixteen times freer. This is one seed. What it shows for certain is
# the gap itself; which rank ends lower may change.
#
# Against overfitting, in this order: stop early (`best_step`), more data, dropout, fewer layers or
# a lower rank.

# %% [markdown]
# ## Variants, one line each
#
# PEFT carries many relatives of LoRA. Four that you will meet:
#
# - **rsLoRA** divides by $\sqrt{r}$: `use_rslora=True`.
# - **DoRA** trains the length of each row of the weight apart from its direction: `use_dora=True`.
# - **PiSSA** starts at the largest singular vectors of `W` instead of a random `A` and a zero `B`,
#   and freezes the rest: `init_lora_weights="pissa"`.
# - **LoRA+** gives `B` a higher learning rate than `A`. It is a matter of the optimizer:
#   `create_loraplus_optimizer(model, AdamW, lr=…, loraplus_lr_ratio=16)`.
#
# Seconds and memory are measured now, two steps each, at r=16. The losses are from the file, for
# the same two seeds and each at the best of the rates that were tried, or the comparison would be
# unfair again. For DoRA and LoRA+ that is the edge of the grid, so theirs may lie outside it.
# (rsLoRA with $\alpha = 8$ has the factor 2 at r=16, as plain LoRA with $\alpha = 32$ has: the same
# run.)

# %% tags=["experiment"]
if lab.experiment("Five adapters: loss, seconds, memory", 25, needs=["5.2"]):
    switches = {"LoRA": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}}
    switches |= {"PiSSA": {"init_lora_weights": "pissa"}, "LoRA+": {}}
    named, rows = runs[runs["study"] == "variants"], []
    plain = runs.query("study == 'rank' and rank == 16 and alpha == 32 and seed in @named.seed")
    for name in live.progress(list(switches), "variants"):
        line = measured.spread(named[named["variant"] == name.lower()])
        line = measured.spread(plain) if line.empty else line
        top = line.loc[line["mean"].idxmin()]
        config = short.lora(16, 8 if name == "rsLoRA" else 32, **switches[name])
        peak, seconds = short.step_cost(config)
        row = {"": name, "loss": top["mean"], "at rate": top["learning_rate"], "runs": top["runs"]}
        rows.append(row | {"seconds a step": seconds, "peak MB": round(peak / 1e6)})
    display(pd.DataFrame(rows).set_index("").round({"loss": 3, "seconds a step": 2}))

# %% [markdown]
# Read the loss column together with the spread of the seeds above. Only a difference larger than
# that is worth a word, and one task is not a verdict: DoRA, PiSSA and LoRA+ have papers with tasks
# on which they win. Memory is less ambiguous: DoRA needs the norm of every updated weight at each
# step, and pays for it. The seconds are of one step, and noisy: LoRA, rsLoRA, PiSSA and LoRA+ do
# the same work in it, so what differs among them is noise.
#
# ## A case: 48 kinds of tickets
#
# A shop routes support tickets into 48 categories. You may have read of such a case with 15,000
# tickets, three epochs and 91.3% for LoRA against 92.5% for full fine-tuning. Nobody can check it.
# So here is a smaller one that you can: 960 tickets to learn from, twenty a category, and 288 to be
# judged by. Categories are close to each other, and some tickets are rude, misspelt, long, or about
# two things at once.
#
# Start with the cheapest thing that could work. Count words, weigh them by how rare they are
# (TF-IDF), average each category, and give a new ticket to the nearest average. No neural network,
# a dozen lines.


# %%
def nearest_centroid(rows, texts):
    """The category of `rows` whose mean TF-IDF vector is nearest, for each text."""
    bags = [Counter(re.findall(r"[a-z0-9']+", t.lower())) for t in [*rows["text"], *texts]]
    n, vocabulary = len(rows), sorted(set().union(*bags[: len(rows)]))
    counts = np.array([[bag[word] for word in vocabulary] for bag in bags])
    vectors = np.log1p(counts) * (np.log((1 + n) / (1 + (counts[:n] > 0).sum(0))) + 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    labels = np.array(rows["category"])
    names = np.unique(labels)
    centres = np.stack([vectors[:n][labels == name].mean(0) for name in names])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return names[(vectors[n:] @ centres.T).argmax(1)].tolist()


# %% tags=["experiment"]
if lab.experiment("The baseline", 3, needs=["5.5"]):
    ticket_train, ticket_test = tasks.load("tickets"), tasks.load("tickets", "test")
    for row in ticket_test.shuffle(seed=3).select(range(4)):
        print(f"{row['category']:<22} {row['style']:<10} {row['text'][:90]}")
    baseline = nearest_centroid(ticket_train, ticket_test["text"])
    score = tickets.accuracy(baseline, ticket_test)
    print(f"\nnearest centroid: {score:.1%} right; guessing: {1 / len(tickets.CATEGORIES):.1%}")

# %% [markdown]
# Every method below has to beat this line, or it is not worth its electricity.
#
# Next, the model as it comes: the 48 names in the prompt, and the ticket (zero-shot). Here on 48
# tickets; the table below has all 288.

# %% tags=["experiment"]
if lab.experiment("Zero-shot on 48 tickets", 20, needs=["5.5"]):
    some = ticket_test.select(range(0, 288, 6))
    asked = [tickets.zero_shot(text) for text in some["text"]]
    told = generation.answers(*models.load(), asked, max_new_tokens=16)
    named = sum(row in answer for row, answer in zip(some["category"], told, strict=True))
    print(f"right: {sum(tickets.hits(told, some))} of {len(some)}; named in a sentence: {named}")
    display(compare_answers(some["text"], some["category"], {"zero-shot": told}, rows=4))

# %% [markdown]
# Now LoRA, on one corner: billing, eight categories that are close to each other. 160 tickets, seen
# twice.

# %% tags=["experiment"]
if lab.experiment("LoRA learns eight kinds of billing tickets", 75, needs=["5.5"]):
    corner, judged = (tasks.load("tickets", s, groups=("billing",)) for s in ("train", "test"))
    args = short.arguments(2e-3, seed=0, steps=40, batch=8)
    torch.manual_seed(lab.seed)
    model, tokenizer = models.load()
    config = short.lora(16, 32)
    routed = finetuning.finetune(model, tokenizer, corner, config, args, title="billing")

# %% tags=["experiment"]
if lab.experiment("Billing: LoRA beside the baseline", 10, needs=["5.5"]):
    told = generation.answers(routed.model, tokenizer, judged["messages"], max_new_tokens=10)
    centroid = nearest_centroid(corner, judged["text"])
    for name, answers in [("LoRA", told), ("nearest centroid", centroid)]:
        right = tickets.hits(answers, judged)
        print(f"{name:<17} {sum(right)} of {len(judged)} ({np.mean(right):.0%})")
    both = {"LoRA": told, "nearest centroid": centroid}
    display(
        compare_answers(
            judged["text"][::7],
            judged["category"][::7],
            {name: answers[::7] for name, answers in both.items()},
            rows=6,
        )
    )

# %% [markdown]
# LoRA is not ahead of counting words here: when we ran it, it was four tickets behind. With 48 test
# tickets one standard error is about seven points, so the order is not certain. But by the rule
# above this LoRA has not earned its electricity. Read the examples too.
#
# All 48 categories take minutes a method, so those runs were made beforehand by
# `benchmarks/tickets_study.py`: one pass over the 960 tickets, 120 steps of 8. LoRA and QLoRA with
# r=16, $\alpha = 32$ on all linear layers and learning rate 2e-3, full fine-tuning with 2e-4; no
# rate was tuned on this task. QLoRA trains on weights rounded to NF4 with double quantisation.
# They were expanded once instead of at every step, since a CPU is slow at that: the same numbers
# bit for bit in a forward pass, without the savings. Lab 4 has the real thing and its memory.

# %% tags=["experiment"]
if lab.experiment("All 48 categories, every method", 0, needs=["5.5"]):
    study, groups = measured.load("tickets"), {"nearest centroid": [100 * score]}
    for method, part in study.groupby("method", sort=False):
        groups[method] = list(100 * part["accuracy"])
    stored = {"nearest centroid": 48 * 3512, "zero-shot": 0, "full": 134_515_008}
    table = pd.DataFrame({"runs": {name: len(values) for name, values in groups.items()}})
    table["accuracy"] = {name: np.mean(values) for name, values in groups.items()}
    table["numbers"] = [stored.get(name, 4_884_480) for name in table.index]
    first = table["accuracy"].idxmax()
    title = f"Best: {first}, {table['accuracy'].max():.0f}%; the baseline has {100 * score:.0f}%"
    display(plots.dots(groups, title, "accuracy on 288 tickets, %; a dot a run", "{:.0f}%"))
    display(table.round(1))
    front = pareto(table, "numbers", "accuracy").index
    print(f"on the front of numbers stored and accuracy: {', '.join(front)}")

# %% [markdown]
# One run a method and 288 tickets: a standard error is three points, and a seed adds its own. So
# full fine-tuning is ahead of counting words, LoRA by a little, and QLoRA not for certain. With
# runs of two to five characters counted in place of words, a logistic regression reaches 45% on
# the same split (`labkit/tasks/README.md`). At this size of data a baseline that trains in a
# second is a rival.
#
# Nor do these bars say what full fine-tuning is worth over LoRA: neither learning rate was tuned.
# Zero-shot names no category to the letter. That is this small model, and not a verdict on
# prompting. It is on the front only because nothing is cheaper than nothing.

# %% tags=["experiment"]
if lab.experiment("Who confuses what", 1, needs=["5.5"]):
    answers = measured.load("ticket_answers")["lora 0"]
    counts = tickets.confusion(answers, ticket_test)
    group_of = tickets.GROUP_OF | {tickets.OTHER: tickets.OTHER}
    by_group = counts.groupby(group_of).sum().T.groupby(group_of).sum().T
    order = list(tickets.GROUPS)
    by_group = by_group.reindex(index=order, columns=[*order, tickets.OTHER], fill_value=0)
    inside = np.trace(by_group[order].to_numpy()) / by_group.to_numpy().sum()
    exact = np.trace(counts[list(tickets.CATEGORIES)].to_numpy()) / len(ticket_test)
    title = f"LoRA: {exact:.0%} right category, {inside:.0%} right group"
    display(plots.confusion(by_group, title))

# %% [markdown]
# The diagonal is the right group, which is not yet the right category.

# %% [markdown]
# ## Defaults, and when to leave them
#
# No measurement gives a rank for all tasks. What you can have is a place to start, and a sign for
# each direction. Change one knob at a time, and tune the learning rate again when you change
# another.
#
# | knob | start | raise it when | lower it when |
# |---|---|---|---|
# | `r` | 8 or 16 | training loss stalls at its best rate; much data | few examples, overfitting |
# | `lora_alpha` | 32, or 2r | (leave it, tune the learning rate) | (leave it) |
# | learning rate | 2e-4; 1e-3 to 3e-3 in short runs | loss falls slowly, smoothly | spikes |
# | `lora_dropout` | 0.05 | held-out loss rises, training loss falls | training loss stalls |
# | `max_grad_norm` | 1.0 | rarely | 0.3 where the gradient norm spikes |
# | targets | all linear layers | | attention only, where adapters must be small |

# %% [markdown]
# ### Exercise 5.7 · Quiz
#
# ●○○ · 5 min · 3 points
#
# The first letter that you check counts; then read what it says.
#
# **q1. A colleague trains r = 4, 16, 64 with alpha = 2r at learning rate 2e-4, three seeds each,
# and finds r=64 clearly best. What does this show?**
#
# - (a) The task needs the capacity of r=64.
# - (b) The smaller ranks overfit.
# - (c) Not yet that rank matters: the step grew with the rank. Each rank needs its own learning
#   rate.
# - (d) Nothing, for three seeds are too few; with ten it would be a proof.
#
# **q2. You can afford 10 million trainable parameters. Where do they go first?**
#
# - (a) All into the highest rank on q and v: rank is what counts.
# - (b) Over all linear layers at a lower rank, and then measure against attention alone.
# - (c) Nowhere but q and v: the paper showed that they suffice.
# - (d) Into the norms and the embeddings.
#
# **q3. 200 examples, r=64. Training loss falls to nearly zero, held-out loss has risen since the
# first epoch, the gradient norm is calm. What do you do?**
#
# - (a) Raise `r` and train longer.
# - (b) Halve `alpha` and set `max_grad_norm=0.3`.
# - (c) Raise the learning rate to leave the bad minimum.
# - (d) Stop after the best step; then dropout 0.1, a lower rank or fewer layers, and more data.


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
# - Parameters are proportional to the rank. Memory grows much less: from r=4 to r=64 by an eighth
#   on 7 billion parameters (simulated), by a few tenths on this small model.
# - `alpha = 2r` at one learning rate compares step sizes. Tune the rate for each rank, or keep
#   $\alpha$ fixed, and repeat with other seeds.
# - With $\alpha$ fixed, LoRA wants about ten times the learning rate of full fine-tuning, at every
#   rank.
# - Compare places at equal parameters, variants at their own best rate, and everything with a
#   baseline that needs no GPU.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["5.2", "5.5"]):
    factor = {name: frame["loss"].max() / frame["loss"].min() for name, frame in rules.items()}
    tuned = [row["mean"] for row in best["alpha = 32"].values()]
    lab.headline(
        f"r = 4 to 64 at one learning rate: losses differ x{factor['alpha = 2r']:.2f} with "
        f"alpha = 2r, x{factor['alpha = 32']:.2f} with alpha fixed, "
        f"x{max(tuned) / min(tuned):.2f} with the rate tuned; tickets: {first} "
        f"{table['accuracy'].max():.0f}%, TF-IDF {100 * score:.0f}%"
    )
