"""Figures of lab 3."""

from collections.abc import Sequence
from html import escape

from IPython.display import HTML
from matplotlib.figure import Figure

from labkit.figures.forms import counted, curves, titled
from labkit.figures.guess import Guess

LOSS = "training loss (nats per token)"


def rates(runs: dict[str, Sequence[float]], guess: Guess) -> Figure:
    """Loss curves by learning rate: {rate: losses in nats}, newest last. guess: the first's end."""
    lowest = runs[min(runs, key=float)]
    named = {f"rate {rate}": losses for rate, losses in runs.items()}
    still = lowest[-1] > 0.9 * lowest[0]
    fig, ax = titled("At the lowest rate the loss hardly moves" if still else "Every rate learns")
    curves(ax, named, LOSS)
    guess.draw(ax)
    return fig


def targets(runs: dict[str, Sequence[float]]) -> Figure:
    """Loss curves by the layers that LoRA adapts: {targets: losses in nats}, newest last."""
    best = min(runs, key=lambda name: sum(runs[name][-5:]))
    fig, ax = titled(f"In this run, {best} ends with the lowest loss")
    curves(ax, runs, LOSS)
    return fig


def loss_tokens(tokens: Sequence[str], has_loss: Sequence[bool]) -> HTML:
    """The tokens of a row, with those that the loss counts marked."""
    spans = []
    for token, loss in zip(tokens, has_loss, strict=True):
        look = "background:#E69F00;color:#000;font-weight:bold" if loss else "opacity:0.65"
        text = escape(token).replace("\n", "⏎<br>")
        spans.append(f'<span style="{look};padding:1px 2px;margin-right:1px">{text}</span>')
    share = f"The loss counts {sum(has_loss)} of {len(tokens)} tokens"
    return HTML(f"<p><b>{share}</b></p><p style='font-family:monospace'>{''.join(spans)}</p>")


def reloaded(counts: dict[str, int], n: int, guess: Guess) -> Figure:
    """Right answers of `n` as trained, and as loaded with a mistake."""
    *_, (wrong, count) = counts.items()
    fig, ax = titled(f"Loaded like this, the model gets {count / n:.0%} of the answers right")
    counted(ax, counts, n, roles={wrong: "mistake"}, guess=guess)
    return fig
