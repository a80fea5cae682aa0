"""Answers side by side, as a table that reads well in a notebook and in print."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
from IPython.display import HTML

TEMPLATE = Path(__file__).parents[1] / "templates" / "answers.html.j2"


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
    table = jinja2.Template(TEMPLATE.read_text("utf-8"), autoescape=True)
    told = {"questions": questions, "wanted": wanted, "answers": answers}
    return HTML(table.render(told, n=min(rows, len(questions))))
