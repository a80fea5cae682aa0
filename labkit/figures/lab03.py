"""Figures of lab 3."""

from collections.abc import Sequence
from html import escape

from IPython.display import HTML
from matplotlib.figure import Figure

from labkit.figures.forms import bars, counted, curves, titled
from labkit.figures.guess import Guess

LOSS = "training loss (nats per token)"


def rates(runs: dict[str, Sequence[float]], guess: Guess) -> Figure:
    """Loss curves by learning rate: {rate: losses in nats}, newest last. guess: the first's end."""
    lowest = runs[min(runs, key=float)]
    named = {f"rate {rate}": losses for rate, losses in runs.items()}
    still = lowest[-1] > 0.9 * lowest[0]
    title = "At the lowest rate, the loss hardly falls" if still else "The loss falls at every rate"
    fig, ax = titled(title)
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
    share = f"{sum(has_loss)} of {len(tokens)} tokens count toward the loss"
    return HTML(f"<p><b>{share}</b></p><p style='font-family:monospace'>{''.join(spans)}</p>")


def stops(counts: dict[str, int], losses: dict[str, Sequence[float]], n: int) -> Figure:
    """Answers of `n` that don't stop, by labels, each with the last loss of its run in nats."""
    named = {f"{name}\nfinal loss {losses[name][-1]:.2f}": count for name, count in counts.items()}
    given, *_ = named
    low, high = sorted(losses[name][-1] for name in counts)
    alike = high < 1.5 * low
    title = "The loss doesn't show which model stops" if alike else "The labels decide what stops"
    fig, ax = titled(title)
    counted(ax, named, n, "answers that don't stop", roles={given: "mistake"}, top=n)
    return fig


def checkpointed(runs: dict[str, tuple[Sequence[float], float, Sequence[bool]]]) -> Figure:
    """Activations and trained B by {way: (losses in nats, bytes at the peak, which B moved)}."""
    title = "Both checkpointed runs save memory"
    title += (
        "" if all(all(run[2]) for run in runs.values()) else ", but one doesn't train the blocks"
    )
    fig, (left, right) = titled(title, 2)
    named = {f"{way}\nloss {run[0][0]:.2f}\nto {run[0][-1]:.2f}": run for way, run in runs.items()}
    roles = {name: "mistake" for name in named if name.startswith("given")}
    peaks = {k: peak / 1e6 for k, (_, peak, _) in named.items()}
    bars(left, peaks, "activations (MB)", roles, "{:.0f}")
    moved = {k: sum(which) for k, (_, _, which) in named.items()}
    n = max(len(which) for _, _, which in runs.values())
    bars(right, moved, f"trained B matrices (of {n})", roles)
    return fig


def reloaded(counts: dict[str, int], n: int, guess: Guess) -> Figure:
    """Right answers of `n` as trained, and as loaded with a mistake."""
    *_, (wrong, count) = counts.items()
    fig, ax = titled(f"Loaded this way, the model gets {count / n:.0%} of the answers right")
    counted(ax, counts, n, roles={wrong: "mistake"}, guess=guess)
    return fig
