"""What moves while you wait: a progress line, and a loss curve that draws itself."""

import time

from IPython.display import HTML, display

REDRAW_SECONDS = 2.0  # a picture a second would cost more than the training step beside it


def progress(items, label, total=None):
    """Iterate over `items` and keep one line up to date: how far, and the time left."""
    total = len(items) if total is None else total
    begun = shown = time.perf_counter()
    handle = display(HTML(_line(label, 0, total, 0)), display_id=True)
    for done, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if now - shown > 0.5 or done == total:
            shown = now
            handle.update(HTML(_line(label, done, total, now - begun)))


class Curve:
    """A loss curve that grows in the notebook: `curve.add(loss)` once a step.

    `losses` and `seconds` (since the start, after each step) stay for later plots.
    """

    def __init__(self, title, steps):
        self.title, self.steps = title, steps
        self.losses, self.seconds = [], []
        self._begun = self._shown = time.perf_counter()
        self._text = display(HTML(_line(title, 0, steps, 0)), display_id=True)
        self._picture = None

    def add(self, loss):
        """Note the loss of one more step; redraw when the picture is older than two seconds."""
        now = time.perf_counter()
        self.losses.append(float(loss))
        self.seconds.append(now - self._begun)
        if now - self._shown > REDRAW_SECONDS or len(self.losses) == self.steps:
            self._shown = now
            self._draw()

    def _draw(self):
        from labkit import plots

        done, seconds = len(self.losses), self.seconds[-1]
        note = f" · loss {self.losses[-1]:.3f}"
        self._text.update(HTML(_line(self.title, done, self.steps, seconds, note)))
        figure = plots.growing_loss(self.losses, self.steps, self.title)
        if self._picture is None:
            self._picture = display(figure, display_id=True)
        else:
            self._picture.update(figure)


def _line(label, done, total, seconds, note=""):
    """`label ████░░ 30/60 · 12 s left`, as HTML."""
    share = done / max(total, 1)
    if done >= total:
        ending = f"{seconds:.0f} s in all"
    else:
        ending = f"about {seconds / done * (total - done):.0f} s left" if done else "starting"
    bar = "█" * round(20 * share) + "░" * (20 - round(20 * share))
    return f"<code>{label} {bar} {done}/{total} · {ending}{note}</code>"
