"""Note a learner's guess before an experiment, draw it in the figure, print it with the result."""

import math
from dataclasses import dataclass

from matplotlib.axes import Axes

from labkit.plots import INK, PAPER


@dataclass
class Guess:
    """A question, the learner's guess (None if there is none), and the result once it is known."""

    question: str
    value: float | None = None
    result: float | None = None

    def compare(self, result: float) -> None:
        """Note the result, and print it next to the guess if there is one."""
        self.result = float(result)
        if self.value is not None:
            print(f"◆ You guessed {as_text(self.value)}; the result is {as_text(self.result)}.")

    def draw(self, ax: Axes, axis: str = "y") -> None:
        """Draw the guess as a dashed line; `axis`, "x" or "y", is the axis with its unit.

        The axis grows to include the guess, by at most its own range. A guess outside is labeled at
        the edge.
        """
        if self.value is None:
            return
        get, put = getattr(ax, f"get_{axis}lim"), getattr(ax, f"set_{axis}lim")
        log = getattr(ax, f"get_{axis}scale")() == "log"
        value = self.value if not log else math.log10(max(self.value, 1e-300))
        low, high = sorted(map(math.log10, get()) if log else get())
        room = high - low
        inside = low - room <= value <= high + room
        where = value if inside else (high if value > high else low)
        place = 10**where if log else where
        if inside:
            line = ax.axhline if axis == "y" else ax.axvline
            line(self.value, color=INK, lw=1.2, ls=(0, (4, 3)))
            below = value - room / 20
            if not log and value >= 0:
                below = max(below, 0.0)  # bars start at zero
            ends = (min(low, below), max(high, value + room / 8))
            put(*(10**end if log else end for end in ends))
        text = f"your guess: {as_text(self.value)}" + ("" if inside else ", off the chart")
        style = {"color": INK, "fontsize": 9, "bbox": PAPER | {"alpha": 0.8}}
        if axis == "y":
            side = {"va": "top" if where == high else "bottom", "ha": "right", "clip_on": True}
            ax.text(0.99, place, text, transform=ax.get_yaxis_transform(), **side, **style)
        else:
            side = {"va": "bottom", "ha": "center"}
            ax.text(place, 1, text, transform=ax.get_xaxis_transform(), **side, **style)


def noted(question: str, given: object) -> Guess:
    """Read the learner's guess: a number, or text with a number ("40", "40 %" is 40).

    For anything else, a line says that it is no guess. Nothing is raised: guesses cost no points.
    """
    if given is None or given is Ellipsis:
        print(f"◇ {question} Replace None with your guess. A wrong guess costs nothing.")
        return Guess(question)
    try:
        value = float(given.strip(" %") if isinstance(given, str) else given)
    except (TypeError, ValueError):
        value = float("nan")
    if abs(value) < float("inf"):
        print(f"◆ {question} Your guess: {as_text(value)}.")
        return Guess(question, value)
    print(f"◇ {question} A guess is one number, such as 40. Yours is ignored.")
    return Guess(question)


def as_text(value: float) -> str:
    """Format a number for people: 23, 0.0512, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(guesses: list[Guess]) -> list[str]:
    """Format a line per guess with a known result: guess, result, question."""
    known = [g for g in guesses if g.value is not None and g.result is not None]
    head = [f"{'guess':>9} {'measured':>9}"] if known else []
    return head + [f"{as_text(g.value):>9} {as_text(g.result):>9}  {g.question}" for g in known]
