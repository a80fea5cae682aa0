"""Figures of lab 3: what is as it should be in blue, mistakes in orange, the learner's in green."""

from html import escape

import numpy as np
from IPython.display import HTML

from labkit.labs.lab03.tables import forgotten
from labkit.plots import INK, PALETTE, PAPER, figure

GOOD, BAD, YOURS, PARTLY, BESIDE = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[4], PALETTE[5]


def loss_tokens(tokens, has_loss, name):
    """The tokens of one conversation as HTML; those that carry the loss are underlaid.

    `name` is that of the function which made the labels.
    """
    spans = []
    for token, loss in zip(tokens, has_loss, strict=True):
        look = "background:#E69F00;color:#000;font-weight:bold" if loss else "opacity:0.65"
        text = escape(token).replace("\n", "⏎<br>")
        spans.append(f'<span style="{look};padding:1px 2px;margin-right:1px">{text}</span>')
    share = f"{escape(name)}: {sum(has_loss)} of {len(tokens)} tokens carry the loss"
    return HTML(f"<p><b>{share}</b></p><p style='font-family:monospace'>{''.join(spans)}</p>")


def trained_shares(models):
    """A row a model, a dot a choice of layers, on a log axis: `{model: {choice: share}}`."""
    fig, ax = figure(height=0.55 * len(models) + 1.6)
    places = np.arange(len(models))[::-1]
    how = {"textcoords": "offset points", "ha": "center", "color": INK, "bbox": PAPER}
    for y, shares in zip(places, models.values(), strict=True):
        ax.plot([100 * share for share in shares.values()], [y, y], color=INK, lw=1, alpha=0.5)
        for share in shares.values():
            ax.annotate(f"{share:.2%}", (100 * share, y), (0, 9), **how)
    for colour, choice in zip((BESIDE, GOOD), next(iter(models.values())), strict=True):
        dots = [100 * shares[choice] for shares in models.values()]
        ax.plot(dots, places, "o", color=colour, ms=9, label=choice)
    ax.set(xscale="log", xlim=(0.05, 8), xlabel="trainable parameters, % of the model (log)")
    ax.set_xticks([0.1, 0.3, 1, 3], ["0.1%", "0.3%", "1%", "3%"])
    ax.minorticks_off()
    ax.set_yticks(places, list(models))
    ax.set_ylim(-0.5, len(models) - 0.3)
    ax.legend(loc="lower right", title="target_modules")
    told = [share for shares in models.values() for share in shares.values()]
    told = f"The same rank trains {min(told):.2%} to {max(told):.1%} of a model:\n"
    ax.set_title(told + "more with all-linear, most in the smallest model")
    return fig


def unstopped(counts, n, guess=None):
    """Bars: how many of n answers the limit ended and not the model, by the labels it had."""
    fig, ax = figure(height=1.5 + 0.45 * len(counts))
    names, values = list(counts), list(counts.values())
    colours = [BAD, GOOD][: len(names)]  # the broken one, then the mended one
    ax.barh(names[::-1], values[::-1], color=colours[::-1], height=0.55)
    for name, value in counts.items():
        ax.text(value, name, f" {value}", va="center", color=INK)
    ax.set(xlim=(0, 1.08 * n), xlabel=f"answers that do not stop by themselves, of {n}")
    ax.set_ylim(-0.6, len(counts) - 0.4)
    ax.grid(axis="y", visible=False)
    told = [f"With {names[0]} {values[0]} of {n} answers do not stop"]
    told += [f"with {name} {value}" for name, value in list(counts.items())[1:]]
    ax.set_title(",\n".join(told))
    if guess:
        guess.draw(ax, "x")
    return fig


def both_losses(losses):
    """The loss of each step of two runs, the broken one first: `{name: losses}`."""
    fig, ax = figure(height=2.6)
    looks = ((BAD, "-"), (GOOD, "--"))
    for (name, values), (colour, line) in zip(losses.items(), looks, strict=True):
        ax.plot(range(1, len(values) + 1), values, line, color=colour, lw=2, label=name)
    ax.set(xlabel="step", ylabel="loss (nats a token)", ylim=(0, None))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="upper right")
    ax.set_title("The loss does not show which labels are broken")
    return fig


def asked(shares, n, title, guess=None, wrong=()):
    """Bars in percent: the share of n answers right, by the way a model was asked or loaded.

    `title` says what to see; `wrong` names the ways that are mistakes.
    The thin lines are one standard error of a share of n.
    """
    fig, ax = figure(height=1.6 + 0.42 * len(shares))
    names, values = list(shares), [100 * share for share in shares.values()]
    errors = [100 * (share * (1 - share) / n) ** 0.5 for share in shares.values()]
    colours = [BAD if name in wrong else GOOD for name in names]
    ax.barh(names[::-1], values[::-1], color=colours[::-1], height=0.55)
    ax.errorbar(values, names, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    for name, value, error in zip(names, values, errors, strict=True):
        ax.text(value + error, name, f" {value:.0f}%", va="center", color=INK)
    furthest = max(v + e for v, e in zip(values, errors, strict=True))
    ax.set_xlim(0, min(108, max(30, 1.35 * furthest)))
    ax.set(xlabel=f"% of {n} answers exactly right (± standard error)")
    ax.set_ylim(-0.6, len(shares) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    if guess:
        guess.draw(ax, "x")
    return fig


def lost_rows(lost, n, guess):
    """Stacked bars by `max_length`: rows without a label, and rows whose answer has no end."""
    fig, ax = figure(height=3.0)
    names = [str(length) for length in lost]
    below = np.zeros(len(lost))
    for kind, colour in zip(next(iter(lost.values())), (BAD, PARTLY), strict=True):
        values = np.array([counts[kind] for counts in lost.values()])
        ax.bar(names, values, bottom=below, color=colour, width=0.6, label=kind)
        below += values
    for x, counts in enumerate(lost.values()):
        text = " + ".join(str(value) for value in counts.values())
        ax.text(x, below[x], text, ha="center", va="bottom", color=INK)
    ax.set(
        xlabel="max_length (tokens)",
        ylabel=f"damaged rows, of {n}",
        ylim=(0, 1.12 * max(n / 4, *below)),
    )
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right")
    short, counts = list(lost.items())[1]
    told = " and ".join(f"{value} {kind}" for kind, value in counts.items())
    ax.set_title(f"Of {n} rows cut to {short} tokens on the right,\n{told}")
    guess.draw(ax)
    return fig


def scores(groups, n, title):
    """Grouped bars in percent: `groups` maps a metric to {model: share of n}, the base's first.

    The thin lines are one standard error of a share of n.
    """
    fig, ax = figure(height=2.9)
    names = list(next(iter(groups.values())))
    width = 0.8 / len(names)
    for i, (name, colour) in enumerate(zip(names, (BESIDE, GOOD), strict=True)):
        x = np.arange(len(groups)) + (i - (len(names) - 1) / 2) * width
        shares = np.array([group[name] for group in groups.values()])
        heights, errors = 100 * shares, 100 * (shares * (1 - shares) / n) ** 0.5
        ax.bar(x, heights, width * 0.92, color=colour, label=name)
        some = errors > 0
        how = {"fmt": "none", "ecolor": INK, "elinewidth": 1.2, "capsize": 3}
        ax.errorbar(x[some], heights[some], yerr=errors[some], **how)
        for place, height, error in zip(x, heights, errors, strict=True):
            ax.text(place, height + error + 2, f"{height:.0f}%", ha="center", color=INK)
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set(ylim=(0, 116), ylabel=f"% of {n} answers\n(± standard error)")
    ax.set_yticks(range(0, 101, 20))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=len(names), loc="upper left")
    ax.set_title(title)
    return fig


def forgetting(runs, live, guess):
    """Perplexity on everyday English by method and rate, at one task loss: a dot a seed, a mean.

    `runs` is the table of benchmarks/forgetting.py; `live` maps methods with their rates to what
    was measured just now.
    """
    base = runs.loc[runs["study"] == "base", "perplexity"].item()
    runs = forgotten(runs)
    ways = list(dict.fromkeys(runs["way"]))[::-1]
    fig, ax = figure(height=2.3 + 0.42 * len(ways))
    places = [ways.index(way) for way in runs["way"]]
    ax.plot(
        runs["perplexity"], places, "o", color=GOOD, alpha=0.8, label="one seed, by number (file)"
    )
    how = {"textcoords": "offset points", "ha": "center", "va": "top", "fontsize": 8}
    for x, y, seed in zip(runs["perplexity"], places, runs["seed"], strict=True):
        ax.annotate(seed, (x, y), (0, -5), color=INK, **how)
    means = runs.groupby("way")["perplexity"].mean()[ways]
    ax.plot(means, range(len(ways)), "|", color=INK, ms=20, mew=2, label="mean of the seeds")
    stars = [ways.index(way) for way in live]
    ax.plot(list(live.values()), stars, "*", color=YOURS, ms=13, label="yours, seed 0")
    ax.axvline(base, color=INK, ls=":", lw=1)
    ax.text(base, len(ways) - 0.45, f" base: {base:.1f}", color=INK, va="top")
    ax.set_yticks(range(len(ways)), ways)
    ax.set_ylim(-0.5, len(ways) - 0.4)
    ax.set_xlabel("perplexity on everyday English (lower: less forgotten)")
    rise = (lambda x: 100 * (x / base - 1), lambda percent: base * (1 + percent / 100))
    ax.secondary_xaxis("top", functions=rise).set_xlabel("rise over the base, %")
    fig.legend(loc="outside lower center", ncols=3, fontsize=9)
    rises = runs.groupby("way")["rise"]
    low, high = rises.mean().min(), rises.mean().max()
    at_seed = runs.groupby("seed")["rise"]
    seeds, ways = ((part.max() - part.min()).max() for part in (rises, at_seed))
    told = f"At equal task loss seeds of a method differ by up to {seeds:.0f} points,\n"
    told += f"methods at one seed by {ways:.0f} (means: {low:+.0f} to {high:+.0f}%)"
    ax.set_title(told)
    if name := guess.draw(ax, "x"):  # above the dots, on the side that has room
        name.set(rotation=0, ha="left" if guess.value < np.mean(ax.get_xlim()) else "right")
    return fig


def where_loss(runs, yours):
    """The answer's held-out loss, with the loss on the answer and on everything: a line a seed.

    `runs` is the table of benchmarks/where_loss.py; `yours` maps either way to your own loss. At
    its left end a line has its seed's number.
    """
    fig, ax = figure(height=3.4)
    pairs = runs.pivot(index="seed", columns="loss_on", values="loss")
    ways = ["answer", "everything"]
    first, *others = ax.plot([0, 1], pairs[ways].T, "o-", color=GOOD, alpha=0.5, ms=5)
    first.set(alpha=1, lw=3, zorder=3, label=f"seed {pairs.index[0]} (file)")
    others[0].set_label("another seed (file)")
    place, apart = -np.inf, 0.06 * np.ptp(pairs.to_numpy())
    for seed, loss in pairs["answer"].sort_values().items():
        place = max(loss, place + apart)
        ax.text(-0.04, place, seed, ha="right", va="center", color=INK, fontsize=9)
    mine = f"yours, seed {pairs.index[0]} again"
    ax.plot([0, 1], [yours[way] for way in ways], "*--", color=YOURS, ms=12, zorder=4, label=mine)
    ax.set_xticks([0, 1], [f"trained with the loss\non {name}" for name in ("the answer", ways[1])])
    ax.set(xlim=(-0.4, 1.4), ylabel="held-out loss of the answer\n(nats a token)")
    ax.legend(loc="best")
    gap = pairs["everything"] - pairs["answer"]
    told = f"{gap.mean():+.2f} ± {gap.sem():.2f} nats a token".replace("-", "−")
    chance = 2.6 * gap.sem()  # by Student's t, of six seeds
    verdict = "a" if abs(gap.mean()) > chance else "no clear"
    told = f"in the answer's loss, {told} ({len(gap)} seeds)"
    ax.set_title(f"Training on the prompt, too, makes {verdict} difference\n{told}")
    return fig
