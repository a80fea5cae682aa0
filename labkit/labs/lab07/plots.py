"""Figures of lab 7: what is right or as it should be in blue, what is wrong in orange."""

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from labkit.plots import INK, PALETTE, PAPER, figure, headed

GOOD, BAD, BESIDE, RUNS_ON = PALETTE[0], PALETTE[1], PALETTE[5], PALETTE[4]


def _bars(values, colours, label, told):
    """Horizontal bars, the first on top, each with its text beside it."""
    fig, ax = figure(height=1.5 + 0.42 * len(values))
    names, lengths = list(values), list(values.values())
    ax.barh(names[::-1], lengths[::-1], color=list(colours)[::-1], height=0.58)
    for name, length, text in zip(names, lengths, told, strict=True):
        ax.text(length, name, f" {text}", va="center", color=INK)
    ax.set(xlabel=label, xlim=(0, 1.15 * max(1, *lengths)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", visible=False)
    return fig, ax


def faults(counts, n, left_out, guess):
    """Bars, the longest on top: how many of n rows have each fault; below, those with any."""
    shown = sorted(counts, key=counts.get, reverse=True)
    bars = {name.replace("_", " "): counts[name] for name in shown} | {"any of these": left_out}
    colours = [RUNS_ON] * len(shown) + [BAD]
    label = f"rows of {n} with this fault; one row may have several"
    fig, ax = _bars(bars, colours, label, list(bars.values()))
    headed(fig, f"{left_out} of {n} rows are not fit to train on")
    if name := guess.draw(ax, "x"):
        name.set(y=0.33, va="center")  # beside the shorter bars
    return fig


def leaks(leaked, guess):
    """Bars in percent: test rows whose question stands in training, by way of splitting.

    `leaked` maps a way to (such rows, all test rows); the last way is by prompt.
    """
    shares = {way: 100 * some / max(1, n) for way, (some, n) in leaked.items()}
    told = [f"{some} of {n}" for some, n in leaked.values()]
    label = "test rows whose question stands in training, %"
    fig, ax = _bars(shares, [BAD] * (len(shares) - 1) + [GOOD], label, told)
    first, *_, last = shares.values()
    title = f"{first:.0f}% of the coin's test rows ask what a training row asks,\n"
    headed(fig, f"{title}{last:.0f}% of those that your split chose")
    if name := guess.draw(ax, "x"):
        _laid(name, ax, 0.16)
    return fig


def _laid(name, ax, y):
    """A guess's name along a row or gap without bars, on the side of its line that has room."""
    low, high = ax.get_xlim()
    name.set(y=y, va="center", rotation=0)
    if name.get_position()[0] < (low + high) / 2:
        name.set(ha="left", text=f"  {name.get_text()}")


def _with_errors(ax, shares, n, begun=None):
    """Lines of one standard error at shares of n rows, and each in percent, beside `begun`."""
    for name, share in shares.items():
        error = 100 * (share * (1 - share) / n) ** 0.5
        ax.plot([100 * share - error, 100 * share + error], [name, name], color=INK, lw=1.5)
        first = 100 * (begun or shares)[name]
        text = f"{100 * share:.0f}%" + (f", {first:.0f}% begin so" if first > 100 * share else "")
        end, beside = (max(100 * share + error, first), name), {"textcoords": "offset points"}
        ax.annotate(text, end, (8, 0), va="center", color=INK, bbox=PAPER, **beside)
    ax.set_xlim(0, 112)
    ax.set_xticks(range(0, 101, 20))


def scores(rights, n, guess):
    """Bars in percent with their standard errors: answers right to the letter, of n held out."""
    values = {name: 100 * share for name, share in rights.items()}
    colours = [GOOD if name == "trained" else BESIDE for name in values]
    label = f"right to the letter, % of {n} held-out answers (line: one standard error)"
    fig, ax = _bars(values, colours, label, [""] * len(values))
    _with_errors(ax, rights, n)
    best = max((name for name in values if name != "trained"), key=values.get)
    told = f"Trained, it answers {values['trained']:.0f}% of unseen questions right;\n"
    headed(fig, f"{told}the best without training: {best}, {values[best]:.0f}%")
    guess.draw(ax, "x")
    return fig


def asked(ways, n, guess):
    """Bars by way of asking: right to the letter, and right at first and then going on, % of n.

    `ways` maps a way to two shares: of the answers that are right, and of those that begin right.
    The first way is the one of training.
    """
    rights = {way: right for way, (right, _) in ways.items()}
    begun = {way: begins for way, (_, begins) in ways.items()}
    values, firsts = ({k: 100 * v for k, v in shares.items()} for shares in (rights, begun))
    label = f"% of {n} answers (line: one standard error of what is right)"
    fig, ax = _bars(firsts, [RUNS_ON] * len(ways), label, [""] * len(ways))
    ax.containers[0].set_label("begins right, and goes on")
    ax.barh(list(values), list(values.values()), color=GOOD, height=0.58, label="right")
    _with_errors(ax, rights, n, begun)
    fig.legend(loc="outside lower right", reverse=True, ncols=2)
    first, *others = values.values()
    title = f"Asked as in training {first:.0f}% are right, otherwise {min(others):.0f}"
    title += f" to {max(others):.0f}%" if max(others) > min(others) else "%"
    most = max(firsts, key=lambda way: firsts[way] - values[way])
    if firsts[most] > values[most]:
        title += f";\n{most}: {firsts[most]:.0f}% begin right, {values[most]:.0f}% stop there"
    headed(fig, title)
    if name := guess.draw(ax, "x"):
        _laid(name, ax, 0.375)  # below the way that it is about
    return fig


def files(made, exact, n, guess):
    """Left the size of each file, middle its KL from what was trained, right its score of n rows.

    `made` maps a kind to (MB, KL in nats a token, share right); the last one has the rows of q and
    k not moved, and is no file: its size is NaN. `exact` is the share before.
    """
    fig, axes = figure(3, height=1.9 + 0.42 * len(made))
    names = list(made)[::-1]
    colours = [BAD] + [GOOD] * (len(names) - 1)
    sizes, gaps, rights = (np.array([made[name][k] for name in names]) for k in range(3))
    size, gap, right = axes
    size.barh(names, sizes, color=colours, height=0.55)
    for name, value in zip(names[1:], sizes[1:], strict=True):
        size.text(value, name, f" {value:.0f}", va="center", color=INK)
    size.text(0, names[0], " no file", va="center", color=INK)
    size.set(xlabel="size, MB", xlim=(0, 1.35 * np.nanmax(sizes)))
    shown = np.maximum(gaps, 1e-8)
    gap.scatter(shown, names, color=colours, s=64)
    for name, value in zip(names, shown, strict=True):
        gap.annotate(f"{value:.1g}", (value, name), (9, 0), textcoords="offset points", va="center")
    gap.set(xscale="log", xlabel="KL, nats a token (log)")
    gap.set_xlim(shown.min() / 10, shown.max() * 300)  # room for the numbers
    right.axvline(100 * exact, color=INK, ls=":", lw=1.2, zorder=0)
    right.barh(names, 100 * rights, color=colours, height=0.55)
    _with_errors(right, dict(zip(names, rights, strict=True)), n)
    right.set(xlabel=f"right, % of {n}\n(dots: unmerged, fp32)", xlim=(0, 125))
    right.set_xticks((0, 50, 100))
    for ax in (gap, right):
        ax.set_yticks(range(len(names)), [""] * len(names))
    for ax in axes:
        ax.set_ylim(-0.6, len(names) - 0.4)
        ax.grid(axis="y", visible=False)
    headed(fig, _of_files(made))
    if name := guess.draw(right, "x"):
        _laid(name, right, 0.26)
    return fig


def _of_files(made):
    """The title of `files`: what the smallest file costs, and what the wrong order does."""
    *files, (_, (_, turned, right)) = made.items()
    smallest, (size, kl, _) = min(files, key=lambda file: file[1][0])
    share = size / made["bf16"][0]
    told = f"{smallest} takes {share:.0%} of bf16's bytes, at a KL of {kl:.1g} nats;\n"
    return f"{told}rows of q and k not moved: KL {turned:.1g}, and {100 * right:.0f}% right"


def batches(sizes, times, guess):
    """Milliseconds of a layer's adapters against the rows of a batch; both axes are logs.

    `times` maps two ways to seconds; `guess` is how many times the first one's the second takes.
    """
    fig, ax = figure(height=3.2)
    for (name, seconds), colour, marker in zip(times.items(), (BESIDE, GOOD), "so", strict=True):
        ax.plot(sizes, [1000 * s for s in seconds], color=colour, marker=marker, label=name)
    ax.set(xscale="log", yscale="log", xlabel="rows of the batch (log)")
    ax.set_ylabel("milliseconds, best of 20 (log)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.set_xticks(sizes)
    ax.legend()
    if guess.value is not None:
        ax.set_xlabel(f"rows of the batch (log); your guess for {sizes[-1]}: {guess.value:g} times")
    (one, first), (other, second) = times.items()
    told = f"{second[-1] / first[-1]:.1f} times as long {other} as {one}"
    return headed(fig, f"{sizes[-1]} mixed rows in one layer take {told}")


def equal(table, guess):
    """Bars a customer: answers that are PEFT's, right and not, and those that differ.

    `table` has a row an answer, with the columns customer, equal and right.
    """
    customers = list(dict.fromkeys(table["customer"]))[::-1]
    same, right, n = table["equal"], table["right"], len(table)
    fig, ax = figure(height=1.9 + 0.42 * len(customers))
    kinds = {"PEFT's, and right": same & right, "PEFT's, and wrong": same & ~right}
    kinds["not PEFT's"] = ~same
    end = np.zeros(len(customers), int)
    for colour, (kind, rows) in zip((GOOD, BESIDE, BAD), kinds.items(), strict=True):
        counts = table[rows]["customer"].value_counts().reindex(customers, fill_value=0).to_numpy()
        ax.barh(customers, counts, left=end, color=colour, height=0.58, label=kind)
        for name, first, count in zip(customers, end, counts, strict=True):
            if count:
                ax.text(first + count / 2, name, count, ha="center", va="center", bbox=PAPER)
        end = end + counts
    ax.set(xlabel="served answers", xlim=(0, 1.05 * end.max()))
    if guess.value is not None:
        ax.set_xlabel(f"served answers (your guess: {guess.value:g} of {n} are PEFT's)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", visible=False)
    fig.legend(loc="outside lower right", ncols=3)
    good, wrong, _ = (rows.sum() for rows in kinds.values())
    told = f"{good + wrong} of {n} served answers are PEFT's to the letter,"
    return headed(fig, f"{told}\n{good} of them right and {wrong} wrong")


def speeds(rates, how):
    """Bars of tokens a second, the median of rounds; lines from the slowest to the fastest.

    `rates` maps a way to the numbers of its rounds; the first way is what others are set beside.
    """
    middle = {name: float(np.median(runs)) for name, runs in rates.items()}
    first, *others = middle
    n_rounds = len(rates[first])
    label = f"new tokens a second (median of {n_rounds}; line: slowest to fastest)"
    colours = [BESIDE] + [GOOD] * len(others)
    fig, ax = _bars(middle, colours, label, [""] * len(rates))
    for name, runs in rates.items():
        ax.plot([min(runs), max(runs)], [name, name], color=INK, lw=1.5)
        ax.text(max(runs), name, f"  {middle[name]:.3g}", va="center", color=INK)
    ax.set_xlim(0, 1.2 * max(max(runs) for runs in rates.values()))
    told = ", ".join(f"{name} {middle[name] / middle[first]:.0%}" for name in others)
    headed(fig, f"{how}, {first} = 100%:\n{told}")
    return fig
