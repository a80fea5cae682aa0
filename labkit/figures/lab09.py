"""Figures of lab 9."""

from matplotlib.figure import Figure

from labkit.figures.forms import dots, look, titled, wilson
from labkit.figures.guess import Guess
from labkit.plots import ROLES, VARIANTS

COMMANDS, INSTRUCTIONS = 100, 60


def kept(found: dict[str, dict], guess: Guess | None = None) -> Figure:
    """Unwanted JSON answers, and right answers of `home`: {model: its marks}."""
    json = {name: wilson(marks["json"], INSTRUCTIONS) for name, marks in found.items()}
    home = {name: wilson(marks["home"], COMMANDS) for name, marks in found.items()}
    last = list(found)[-1]
    title = f"{last}: unwanted JSON for {found[last]['json']} of {INSTRUCTIONS} instructions"
    fig, (left, right) = titled(title, 2, height=0.5 * len(found) + 1.5, sharey=False)
    roles = {"home alone": "mistake"}
    dots(left, json, f"unwanted JSON, of {INSTRUCTIONS}\n(line: 95% interval)", roles, "{:.0f}")
    dots(right, home, f"right on home, of {COMMANDS}\n(line: 95% interval)", roles, "{:.0f}")
    left.set_xlim(-2, INSTRUCTIONS)
    right.set(xlim=(-3, COMMANDS), yticklabels=[])
    if guess is not None:
        guess.draw(left, "x")
    return fig


def marked(tokens: list[str], far: list[float]) -> Figure:
    """The KL from the teacher at each token of one answer, in nats."""
    most = tokens[far.index(max(far))]
    fig, ax = titled(f"The teacher disagrees most where the student says {most!r}")
    ax.bar(range(len(far)), far, 0.7, **look("mistake"))
    ax.set_xticks(range(len(far)), tokens, rotation=90, family="monospace")
    ax.set(ylabel="KL from the teacher\nbefore each token, nats", xlim=(-0.6, len(far) - 0.4))
    ax.grid(axis="x", visible=False)
    return fig


def distances(drifts: dict[str, float], found: dict[str, dict]) -> Figure:
    """KL from the base in nats per token, {model: KL}, and right answers of `home` by its marks."""
    fig, ax = titled("The best models are in the upper left: near the base and good at home")
    for i, (name, kl) in enumerate(drifts.items()):
        color = ROLES["mistake"] if name == "home alone" else VARIANTS[i % len(VARIANTS)]
        value, low, high = wilson(found[name]["home"], COMMANDS)
        how = {"fmt": "o", "ms": 8, "capsize": 4, "label": f"{name}: {kl:.2f}"}
        ax.errorbar(kl, value, [[value - low], [high - value]], color=color, **how)
    ax.legend(loc="upper right", ncols=2)
    reach = min(0.1, *drifts.values()) / 1.2, 2 * max(drifts.values())
    ax.set(xscale="log", xlim=reach, xlabel="KL from the base, nats per token")
    ax.set(ylim=(0, COMMANDS), ylabel=f"right on home, of {COMMANDS}\n(line: 95% interval)")
    ax.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    ax.minorticks_off()
    return fig
