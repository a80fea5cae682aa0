"""Figures of lab 3."""

from html import escape

import numpy as np
from IPython.display import HTML

from labkit.plots.style import INK, PALETTE, figure


def loss_tokens(tokens, has_loss):
    """The tokens of one conversation as HTML; those that carry the loss are underlaid."""
    spans = []
    for token, loss in zip(tokens, has_loss, strict=True):
        look = "background:#E69F00;color:#000" if loss else "opacity:0.65"
        text = escape(token).replace("\n", "⏎<br>")
        spans.append(f'<span style="{look};padding:1px 2px;margin-right:1px">{text}</span>')
    share = f"{sum(has_loss)} of {len(tokens)} tokens carry the loss"
    return HTML(f"<p><b>{share}</b></p><p style='font-family:monospace'>{''.join(spans)}</p>")


def trained_shares(rows):
    """Bars on a log axis: the share of a model that trains; `rows` is a list of (label, share)."""
    fig, ax = figure(height=0.42 * len(rows) + 1.3)
    labels, shares = zip(*rows, strict=True)
    places = np.arange(len(rows))[::-1]
    ax.barh(places, [100 * share for share in shares], color=PALETTE[1], height=0.6)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the line of 1%
    how = {"textcoords": "offset points", "va": "center", "color": INK, "bbox": paper}
    for y, share in zip(places, shares, strict=True):
        ax.annotate(f"{share:.3%}", (100 * share, y), (6, 0), **how)
    ax.axvline(1, color=INK, ls=":", lw=1, zorder=0)
    ax.set(xscale="log", xlim=(0.02, 60), xlabel="trainable parameters, % of the model (log)")
    ax.set_yticks(places, labels)
    low, high = min(shares), max(shares)
    ax.set_title(f"“Under 1%” depends:\nthe same rank trains {low:.2%} to {high:.1%} of a model")
    return fig


def scores(groups, title):
    """Grouped bars in percent: `groups` maps a metric to {model: share}."""
    fig, ax = figure(height=2.9)
    names = list(next(iter(groups.values())))
    width = 0.8 / len(names)
    for i, (name, colour) in enumerate(zip(names, PALETTE, strict=False)):
        x = np.arange(len(groups)) + (i - (len(names) - 1) / 2) * width
        heights = [100 * group[name] for group in groups.values()]
        ax.bar(x, heights, width * 0.92, color=colour, label=name)
        for place, height in zip(x, heights, strict=True):
            ax.text(place, height + 1, f"{height:.0f}%", ha="center", color=INK)
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set(ylim=(0, 112), ylabel="%")
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=len(names), loc="upper left")
    ax.set_title(title)
    return fig


def forgetting(perplexities):
    """Bars of perplexity on general text by model; the first is the base model."""
    fig, ax = figure(height=2.7)
    names, values = list(perplexities), list(perplexities.values())
    ax.bar(names, values, color=[PALETTE[0], *PALETTE[1 : len(names)]], width=0.55)
    for x, value in enumerate(values):
        ax.text(x, value, f"{value:.1f}", ha="center", va="bottom", color=INK)
    ax.axhline(values[0], color=INK, ls=":", lw=1)
    ax.set(ylabel="perplexity, general text", ylim=(0, 1.18 * max(values)))
    ax.grid(axis="x", visible=False)
    worst = max(range(1, len(values)), key=values.__getitem__)
    change = values[worst] / values[0]
    ax.set_title(f"After “{names[worst]}” ordinary text is {change:.2f}x as surprising")
    return fig
