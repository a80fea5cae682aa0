"""Figures of lab 9."""

from matplotlib.figure import Figure

from labkit import measured
from labkit.figures.forms import RING, dots, titled
from labkit.figures.guess import Guess
from labkit.plots import BESIDE, INK, ROLES

COMMANDS, INSTRUCTIONS = 100, 60
STORED = {"distilled": "its own answers", "written answers": "written answers, cross-entropy"}


def _others(name):
    """The stored runs of a model, a row per seed with columns home, json, kl; empty if unknown."""
    runs = measured.by_run("distill_lab").loc["ways"]
    return runs[runs.index.get_level_values("setting") == STORED.get(name, name)]


def kept(found: dict[str, dict], guess: Guess | None = None) -> Figure:
    """Unwanted JSON answers, and right answers of `home`: {model: its marks}, the newest last."""
    first, *_, last = found
    half = found[first]["home"] / 2
    title = f"{last}: unwanted JSON for {found[last]['json']} of {INSTRUCTIONS} instructions"
    title = f"{last}: home is lost" if found[last]["home"] < half else title
    fig, axes = titled(title, 2, height=0.45 * len(found) + 1.3, sharey=True)
    units = {"json": ("unwanted JSON", INSTRUCTIONS), "home": ("right on home", COMMANDS)}
    for ax, (what, (unit, n)) in zip(axes, units.items(), strict=True):
        values = {name: marks[what] for name, marks in found.items()}
        bad = [
            k for k, value in values.items() if (value > n / 10 if what == "json" else value < half)
        ]
        roles = dict.fromkeys(found, "base") | {last: "LoRA"} | dict.fromkeys(bad, "mistake")
        rings = {name: _others(name)[what] for name in found}
        dots(ax, values, f"{unit}, of {n}\n(ring: other runs)", roles, "{:.0f}", rings)
        ax.set_xlim(-0.05 * n, 1.05 * n)
    if guess is not None:
        guess.draw(axes[0], "x")
    return fig


def marked(tokens: list[str], far: list[float]) -> Figure:
    """The KL from the teacher at each token of one answer, in nats."""
    most = 0 if far[0] > max(far) / 2 else far.index(max(far))
    title = "The teacher objects from the first token on"
    title = f"The teacher disagrees most where the student says {tokens[most]!r}" if most else title
    tokens = [token.replace("<|im_end|>", "end") for token in tokens]
    turned = len(tokens) * max(map(len, tokens)) > 80  # else they fit side by side
    fig, ax = titled(title, height=3 if turned else 2.4)
    ax.bar(range(len(far)), far, 0.7, color=ROLES["base"])[most].set_color(ROLES["mistake"])
    ax.set_xticks(range(len(far)), tokens, rotation=90 * turned, family="monospace", size=9)
    ax.set_title("KL from the teacher before each token, nats", size=9.5, weight="normal")
    ax.set_xlim(-0.6, len(far) - 0.4)
    ax.grid(axis="x", visible=False)
    return fig


def distances(drifts: dict[str, float], found: dict[str, dict]) -> Figure:
    """KL from the base in nats per token, {model: KL}, and right answers of `home` by its marks."""
    home = {name: found[name]["home"] for name in drifts}
    top = max(62, 1.1 * max(home.values()))
    gap = top / 15  # between a name and other marks
    good = [name for name in drifts if home[name] >= next(iter(home.values())) / 2]
    best = [name for name in good if drifts[name] < 1.5 * min(drifts[n] for n in good)]
    fig, ax = titled(f"Nearest to the base with home kept: {' and '.join(best)}", height=3)
    marks = [tuple(run) for name in drifts for run in _others(name)[["kl", "home"]].to_numpy()]
    for name, kl in sorted(drifts.items(), key=lambda row: -row[1]):
        text, runs, height = f"{name}: {kl:.2g}", _others(name), home[name]
        color = ROLES["LoRA" if name in best else "base"]
        ax.plot(runs["kl"], runs["home"], **RING | {"mec": color})
        ax.plot(kl, height, "o", ms=8, color=color)
        near = [y for x, y in marks if kl <= x < kl * 10 ** (0.023 * len(text))]  # under the name
        y = min(range(2, 99), key=lambda y: (any(abs(y - m) < gap for m in near), abs(y - height)))
        ax.annotate(text, (kl, y), (9, 0), color=INK, **BESIDE)
        marks += [(kl, height), (kl, y)]
    ax.text(0.01, 0.97, "← better ↑", transform=ax.transAxes, va="top", color="#777777")
    reach = min(0.13, min(drifts.values()) / 1.3), max(6, 3 * max(drifts.values()))
    ax.set(xscale="log", xlim=reach, xlabel="KL from the base, nats per token (ring: other runs)")
    ax.set(ylim=(-3, top), ylabel=f"right on home, of {COMMANDS}")
    ax.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    ax.minorticks_off()
    return fig
