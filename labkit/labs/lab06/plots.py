"""Figures of lab 6."""

import numpy as np

from labkit.plots import INK, OVER_GUESS, PALETTE, PAPER, figure, likely

KINDS = ["q", "k", "v", "o", "gate", "up", "down"]  # a block's layers, in the model's order
MARKERS = "osD^v"
FLOOR = 1e-8  # what fp32 cannot tell from zero


def combinations(along, rest):
    """What each recipe makes of a wanted sum of updates, a dot a layer.

    Both map a recipe to a list: `along` how many times the sum is in it, `rest` the size of what
    else is, as a share of the sum's.
    """
    fig, ax = figure(height=3.2)
    for (name, times), colour, marker in zip(along.items(), PALETTE, MARKERS, strict=False):
        ax.plot(times, rest[name], marker, color=colour, ms=4, alpha=0.5)
        x, y = np.median(times), max(rest[name])
        style = {"color": colour, "ha": "center", "bbox": PAPER}
        ax.annotate(name, (x, y), (0, 9), textcoords="offset points", **style)
    ax.axvline(1, color=INK, lw=0.8, zorder=1)
    ax.set(xlabel="how many times it holds the wanted sum (1: once, as wanted)")
    ax.set(ylabel="size of what else it holds,\n|rest| / |wanted sum|")
    ax.set_xlim(0, 1.1 * max(max(times) for times in along.values()))
    ax.set_ylim(-0.08, 1.25 * max(max(sizes) for sizes in rest.values()))
    cat, linear, other = map(np.median, (along["cat"], along["linear"], rest["linear"]))
    told = f"“cat” holds the wanted sum {cat:.1f} times and nothing else;\n“linear” holds it "
    ax.set_title(f"{told}{linear:.1f} times, and other things of {other:.1f} times its size")
    return fig


def divergences(kls, title, guess=None):
    """A dot of KL (nats a token) on a log axis for each entry of `kls`, name to number.

    `guess` is one of nats.
    """
    fig, ax = figure(height=0.45 * len(kls) + 1.3)
    places, values = np.arange(len(kls))[::-1], np.maximum(list(kls.values()), FLOOR)
    told = [f"{v:.2g}" if v > FLOOR else f"below {FLOOR:.0e}" for v in values]
    _dots(ax, places, values, told)
    ax.set(xscale="log", xlabel="KL from the model that was trained, nats a token (log)")
    ax.set_xlim(values.min() / 4, values.max() * 10)
    ax.set_yticks(places, list(kls))
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    if guess:
        guess.draw(ax, "x")
    return fig


def _dots(ax, places, values, labels):
    """Dots with a label each, on faint lines from the left edge: a log axis has no zero."""
    ax.hlines(places, 0, values, color=PALETTE[0], alpha=0.35, lw=2)
    ax.plot(values, places, "o", color=PALETTE[0], ms=8)
    for y, value, label in zip(places, values, labels, strict=True):
        ax.annotate(label, (value, y), (9, 0), textcoords="offset points", va="center", color=INK)
    ax.set_ylim(places.min() - 0.6, places.max() + 0.6)


def unmoved(sizes, shares, guess):
    """The percentage of weights that a merge leaves where they were, against |dW| / |W| in percent.

    A dot a layer; both go from the first block to the last, in a block by KINDS.
    """
    fig, ax = figure(height=3.3)
    sizes, shares = (np.reshape(values, (-1, len(KINDS))) for values in (sizes, shares))
    groups = {"q, k, v, o": slice(0, 4), "gate, up": slice(4, 6), "down": slice(6, 7)}
    for (name, part), colour, marker in zip(groups.items(), PALETTE, MARKERS, strict=False):
        style = {"color": colour, "ms": 4, "alpha": 0.6}
        ax.plot(sizes[:, part].ravel(), shares[:, part].ravel(), marker, label=name, **style)
    ax.set(xlabel="size of the update, |ΔW| / |W| of a layer, %", ylabel="weights that stay, %")
    ax.set(xlim=(0, None), ylim=(0, 1.15 * shares.max()))
    ax.legend(title="a dot is a layer", loc="lower left", fontsize=9, **OVER_GUESS)
    told = (
        f"Merged in bf16, {shares.mean():.0f}% of a layer's weights do not move (mean of layers):"
    )
    ax.set_title(f"{told}\nthe smaller a layer's update, the more of them")
    guess.draw(ax)
    return fig


def both_tasks(scores, tasks, n, title, guess):
    """Two horizontal bars a model, one a task, in percent, with the 68% interval of n examples.

    `scores` maps a model to a pair of shares, the base and the two parents first; `tasks` names the
    two tasks; `guess` is one of percent.
    """
    fig, ax = figure(height=0.5 * len(scores) + 1.2)
    places = np.arange(len(scores))[::-1]
    for i, (task, colour) in enumerate(zip(tasks, PALETTE, strict=False)):
        shares = np.array([100 * pair[i] for pair in scores.values()])
        low, high = (100 * ends for ends in likely(shares / 100, n, z=1))
        y = places + (0.5 - i) * 0.38
        hatch = "" if i == 0 else "//"
        ax.barh(y, shares, 0.36, color=colour, hatch=hatch, edgecolor="white", label=f"on {task}")
        ax.hlines(y, low, high, color=INK, lw=1)
        for place, share, end in zip(y, shares, high, strict=True):
            label = {"va": "center", "color": INK, "fontsize": 9}
            ax.text(end + 0.8, place, f"{share:.0f}", **label)
    # a guess's name stands in the room above the bars
    ax.set_ylim(-0.6, len(scores) - (0.4 if guess.value is None else -0.6))
    ax.axhline(places[len(tasks)] - 0.5, color=INK, lw=0.8, ls=":")  # mixtures are below it
    ax.set_yticks(places, list(scores))
    told = f"right to the letter, % of {n} held-out examples (line: 68% interval)"
    ax.set(xlabel=told, xlim=(0, None))
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0)
    ax.set_title(title, pad=26)
    guess.draw(ax, "x")
    return fig


def loss_sums(losses, own, tasks):
    """The losses of each mixture on two tasks, one bar after the other.

    `own` is the sum of the losses of each task by its own adapter.
    """
    fig, ax = figure(height=0.4 * len(losses) + 1.4)
    places, left = np.arange(len(losses))[::-1], np.zeros(len(losses))
    for i, (task, colour) in enumerate(zip(tasks, PALETTE, strict=False)):
        values = np.array([pair[i] for pair in losses.values()])
        style = {"color": colour, "hatch": "//" if i else "", "edgecolor": "white"}
        ax.barh(places, values, 0.6, left=left, label=f"on {task}", **style)
        left += values
    for y, total in zip(places, left, strict=True):
        ax.text(total, y, f" {total:.2f}", va="center", color=INK)
    ax.axvline(own, color=INK, ls=":", lw=1.5)
    ax.set_yticks(places, list(losses))
    ax.set(xlabel="loss on both tasks, nats a token (dotted: each task by its own adapter)")
    ax.set_xlim(0, 1.15 * left.max())
    ax.grid(axis="y", visible=False)
    fig.legend(loc="outside lower center", ncols=2, fontsize=9)
    ax.set_title(
        f"Both losses together: {left.min():.2f} by the best mixture, {own:.2f} by two adapters"
    )
    return fig


def weight_curves(weights, curves, title, guess):
    """Loss against the weight that both adapters get; `curves` maps two tasks to losses.

    A dotted line marks the weight with the lowest sum of losses; `guess` is one of that weight.
    """
    fig, ax = figure(height=3.2)
    sums = np.sum(list(curves.values()), axis=0)
    lines = zip((curves | {"sum": sums}).items(), (*PALETTE[:2], INK), MARKERS, strict=False)
    for (task, losses), colour, marker in lines:
        ax.plot(weights, losses, color=colour, marker=marker, ls="--" if task == "sum" else "-")
        ax.annotate(f"  {task}", (weights[-1], losses[-1]), color=colour, va="center")
    ax.axvline(weights[sums.argmin()], color=INK, ls=":", lw=1.5)
    lowest = (weights[sums.argmin()], sums.min())
    ax.annotate(f"{sums.min():.2f}", lowest, (6, 6), textcoords="offset points", color=INK)
    ax.set(xlabel="weight w of both adapters", ylabel="loss, nats a token", ylim=(0, None))
    ax.set_xlim(None, weights[-1] + 0.2 * (weights[-1] - weights[0]))
    ax.set_title(title)
    guess.draw(ax, "x")
    return fig


def speeds(rates, title):
    """Bars of tokens a second; `rates` maps a name to the rates of repeated runs.

    The bar is the fastest run, the line goes back to the slowest.
    """
    fig, ax = figure(height=0.45 * len(rates) + 1.3)
    places = np.arange(len(rates))[::-1]
    for y, runs in zip(places, rates.values(), strict=True):
        ax.barh(y, max(runs), color=PALETTE[0], height=0.6, alpha=0.6)
        ax.plot([min(runs), max(runs)], [y, y], color=INK, lw=1.5, marker="|")
        ax.text(max(runs), y, f"  {max(runs):.1f}", va="center", color=INK)
    ax.set_yticks(places, list(rates))
    fastest = max(max(runs) for runs in rates.values())
    ax.set(xlim=(0, 1.15 * fastest))
    ax.set_xlabel("new tokens a second, one prompt (bar: fastest run, line: to the slowest)")
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    return fig
