"""Live displays: a countdown, a progress line, and loss curves."""

import time
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import SupportsFloat

from IPython import get_ipython
from IPython.display import HTML, display

REDRAW_SECONDS = 4.0  # redrawing every second would slow training by a tenth
COUNTDOWN = """<style>
@property --labkit-left {{ syntax: "<integer>"; inherits: false; initial-value: 1; }}
@keyframes labkit-{seconds} {{ from {{ --labkit-left: {seconds}; }} to {{ --labkit-left: 1; }} }}
@keyframes labkit-late {{ from, to {{ content: "longer than expected"; }} }}
.labkit-{seconds}::after {{ content: counter(left) " s left";
  counter-reset: left var(--labkit-left);
  animation: labkit-{seconds} {seconds}s linear, labkit-late 1s {seconds}s forwards; }}
</style>{text} · <span class="labkit-{seconds}"></span>"""
_pace = 1.0  # time of the last long experiment here / its announced time
_waiting = None  # the current countdown: its handle and its text


def announce(title: str, seconds: float) -> None:
    """Announce an experiment and how long it will take; at the end, print how long it took.

    The browser counts down on its own, since the kernel is busy. The countdown stops when the
    experiment reports its own progress.
    """
    global _waiting
    wait = round(seconds * _pace)
    text = f"◆ {title} · about {wait} s" + (" here" if _pace > 1.2 else " on two CPU cores")
    shell = get_ipython()
    if shell is None or seconds < 2:
        print(text if seconds >= 2 else f"◆ {title} · a moment")
        return
    html = COUNTDOWN.format(seconds=wait, text=escape(text))
    handle = display({"text/plain": text, "text/html": html}, raw=True, display_id=True)
    begun, _waiting = time.perf_counter(), (handle, text)

    def ended(result):
        global _pace, _waiting
        _waiting = None
        shell.events.unregister("post_run_cell", ended)
        took = time.perf_counter() - begun
        if result.success and seconds >= 10:
            _pace = max(1.0, took / seconds)  # cached results are no measure of the pace
        line = f"◆ {title} · {'took' if result.success else 'stopped after'} {took:.0f} s"
        handle.update({"text/plain": line, "text/html": escape(line)}, raw=True)

    shell.events.register("post_run_cell", ended)


def _begins(line):
    """Replace the countdown by a progress display's first line; return the display's handle."""
    global _waiting
    if _waiting:
        (handle, text), _waiting = _waiting, None
        handle.update({"text/plain": text, "text/html": escape(text)}, raw=True)
    return display(HTML(line), display_id=True)


def progress(items: Iterable, label: str, total: int | None = None) -> Iterator:
    """Iterate over `items` and update a line that shows the progress and the time left."""
    total = len(items) if total is None else total
    begun = shown = time.perf_counter()
    handle = _begins(_line(label, 0, total, 0))
    for done, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if handle and (now - shown > 0.5 or done == total):
            shown = now
            handle.update(HTML(_line(label, done, total, now - begun)))


class Curves:
    """Live curves of one training run.

    Call `curves.add(reward=…, kl=…)` once per step, always with the same names; None means not
    measured. `values[name]` and `seconds` (since the start, after each step) remain for later
    plots. The figure shows `names`, below a progress line, and is redrawn from time to time.
    Without `picture` only the line is shown, for use when a later figure shows the curve.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        ylabel: str = "",
        names: Sequence[str] = (),
        picture: bool = True,
    ):
        self.title, self.steps, self.drawn = title, steps, picture
        self.ylabel, self.names = ylabel, names
        self.values, self.seconds = {}, []
        self._begun = self._shown = time.perf_counter()
        self._text = _begins(_line(title, 0, steps, 0))
        self._picture = None

    def add(self, **values: SupportsFloat | None) -> None:
        """Record one step; redraw if the figure is older than four seconds."""
        for name, value in values.items():  # waits for the GPU, before the clock is read
            self.values.setdefault(name, []).append(None if value is None else float(value))
        now = time.perf_counter()
        self.seconds.append(now - self._begun)
        done = len(self.seconds)
        latest = {name: numbers[-1] for name, numbers in self.values.items()}
        note = "".join(f" · {name} {x:.3g}" for name, x in latest.items() if x is not None)
        if self._text is None:  # no notebook
            return print(f"{self.title} {done}/{self.steps}{note}", flush=True)
        if now - self._shown <= REDRAW_SECONDS and done < self.steps:
            return
        self._shown = now
        self._text.update(HTML(_line(self.title, done, self.steps, self.seconds[-1], note)))
        if not self.drawn:
            return
        from labkit import plots  # here: `labkit train` needs no matplotlib

        shown = {name: self.values[name] for name in self.names}
        figure = plots.growing(shown, self.steps, self.title, self.ylabel)
        if self._picture is None:
            self._picture = display(figure, display_id=True)
        else:
            self._picture.update(figure)


class Curve(Curves):
    """A progress line with the loss: call `curve.add(loss)` per step; `losses` keeps all values."""

    def __init__(self, title: str, steps: int):
        super().__init__(title, steps, picture=False)
        self.losses = self.values["loss"] = []

    def add(self, loss: SupportsFloat) -> None:
        """Record the loss of one step."""
        super().add(loss=loss)


def _line(label, done, total, seconds, note=""):
    """`label ████░░ 30/60 · 12 s left`, as HTML."""
    share = done / max(total, 1)
    if done >= total:
        ending = f"{seconds:.0f} s in all"
    else:
        left = max(1, round(seconds / done * (total - done))) if done else 0
        ending = f"about {left} s left" if done else "starting"
    bar = "█" * round(20 * share) + "░" * (20 - round(20 * share))
    return f"<code>{label} {bar} {done}/{total} · {ending}{note}</code>"
