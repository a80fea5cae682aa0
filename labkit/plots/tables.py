"""Answers side by side, as a table that reads well in a notebook and in print."""

from collections.abc import Sequence
from html import escape

from IPython.display import HTML

STYLE = "text-align:left; vertical-align:top; white-space:normal; max-width:24em"


def compare_answers(
    questions: Sequence[str],
    wanted: Sequence[str] | None,
    answers: dict[str, Sequence[str]],
    rows: int = 8,
) -> HTML:
    """An HTML table: question, wanted answer, and what each model said, with ✓ or ✗.

    `answers` maps a model's name to its answers; pass `wanted=None` where nothing is right or
    wrong. Only the first `rows` questions are shown.
    """
    head = ["asked", *(["wanted"] if wanted is not None else []), *answers]
    body = []
    for i in range(min(rows, len(questions))):
        cells = [escape(questions[i])]
        if wanted is not None:
            cells.append(_code(wanted[i]))
        for told in answers.values():
            mark = "" if wanted is None else ("✓ " if told[i] == wanted[i] else "✗ ")
            cells.append(mark + _code(told[i]))
        body.append(cells)
    return HTML(f"<table>{_row(head, 'th')}{''.join(_row(cells, 'td') for cells in body)}</table>")


def _code(text, limit=280):
    short = text if len(text) <= limit else text[:limit] + " …"
    return f'<span style="font-size:0.93em">{escape(short)}</span>'


def _row(cells, tag):
    return "<tr>" + "".join(f'<{tag} style="{STYLE}">{cell}</{tag}>' for cell in cells) + "</tr>"
