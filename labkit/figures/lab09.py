"""Figures of lab 9."""

from matplotlib.figure import Figure

from labkit.figures.forms import dots, titled, wilson
from labkit.figures.guess import Guess

COMMANDS, INSTRUCTIONS = 100, 60


def kept(found: dict[str, dict], guess: Guess | None = None) -> Figure:
    """Answers in JSON that nobody asked for, and right answers of `home`: {model: its marks}."""
    json = {name: wilson(marks["json"], INSTRUCTIONS) for name, marks in found.items()}
    home = {name: wilson(marks["home"], COMMANDS) for name, marks in found.items()}
    last = list(found)[-1]
    title = f"{last}: {found[last]['json']} of {INSTRUCTIONS} instructions answered in JSON"
    fig, (left, right) = titled(title, 2, height=0.5 * len(found) + 1.5, sharey=False)
    roles = {"home alone": "mistake"}
    dots(left, json, f"unasked JSON, of {INSTRUCTIONS}\n(line: 95% interval)", roles, "{:.0f}")
    dots(right, home, f"right on home, of {COMMANDS}\n(line: 95% interval)", roles, "{:.0f}")
    left.set_xlim(-2, INSTRUCTIONS)
    right.set(xlim=(-3, COMMANDS), yticklabels=[])
    if guess is not None:
        guess.draw(left, "x")
    return fig


def distances(drifts: dict[str, float]) -> Figure:
    """KL from the base in nats per token, {model: KL}."""
    name, far = next((n, kl) for n, kl in drifts.items() if n != "home alone")
    title = f"{name}: {far:.2f} nats per token from its base"
    fig, ax = titled(title, height=0.5 * len(drifts) + 1.2)
    dots(ax, drifts, "KL from the base, nats per token", {"home alone": "mistake"}, "{:.2f}")
    ax.set(xscale="log", xlim=(0.05, 10))
    ax.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    ax.minorticks_off()
    return fig
