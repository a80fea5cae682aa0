"""Figures of lab 9."""

from matplotlib.figure import Figure

from labkit import measured
from labkit.figures.forms import dots, titled
from labkit.figures.guess import Guess
from labkit.plots import INK, ROLES

INSTRUCTIONS = 54
AXES = {  # of `kept`: {measure: (label, limits)}
    "intents": (f"intents in {INSTRUCTIONS} other answers", (-3, 57)),
    "home": ("right on home, %", (-5, 105)),
    "kl": ("KL from the base,\nnats per token", (0.05, 10)),
}


def kept(found: dict[str, dict], guess: Guess | None = None) -> Figure:
    """Intents in other answers, right answers on `home`, KL: {model: its marks}, newest last."""
    stored = measured.by_run("distill_lab").loc["ways"]
    first, *_, last = found
    title = f"{last[0].upper()}{last[1:]}: {_verdict(list(found.values()))}"
    fig, axes = titled(title, 3, height=0.4 * len(found) + 1.4, sharey=True)
    for ax, (what, (label, limits)) in zip(axes, AXES.items(), strict=True):
        values = {name: marks[what] for name, marks in found.items()}
        rings = {name: stored.query("setting == @name")[what] for name in found}
        dots(ax, values, label, {first: "base"}, "{:.2g}", rings)
        ax.set(xlim=limits)
    fig.supxlabel("ring: another run (home scored on 300 commands, not 100)", size=9.5, color=INK)
    axes[2].set(xscale="log", xticks=(0.1, 1, 10), xticklabels=("0.1", "1", "10"))
    if guess is not None:
        guess.draw(axes[0], "x")
    return fig


def _verdict(found):
    """The figure's message about the last of the models' marks; the first is the start."""
    start, *_, marks = found
    if marks["intents"] > INSTRUCTIONS / 10:
        return "the intents are still there"
    if marks["home"] < start["home"] / 2:
        return "the intents are gone, and so is home"
    if marks["kl"] > 1.5 * min(each["kl"] for each in found):
        return "few intents, but farther from the base"
    return f"few intents in other answers ({marks['intents']}), and home is kept"


def marked(tokens: list[str], far: list[float]) -> Figure:
    """The KL from the teacher at each token of one answer, in nats."""
    n_far = sum(x > 1 for x in far)
    title = f"The KL exceeds 1 nat at {n_far} of the student's {len(far)} tokens"
    tokens = [token.replace("<|im_end|>", "end") for token in tokens]
    turned = len(tokens) * max(map(len, tokens)) > 80  # else they fit side by side
    fig, ax = titled(title, height=3 if turned else 2.4)
    ax.bar(range(len(far)), far, 0.7, color=[ROLES["mistake" if x > 1 else "base"] for x in far])
    ax.set_xticks(range(len(far)), tokens, rotation=90 * turned, family="monospace", size=9)
    ax.set_title("KL at each token, in nats", size=9.5, weight="normal")
    ax.set_xlim(-0.6, len(far) - 0.4)
    ax.grid(axis="x", visible=False)
    return fig
