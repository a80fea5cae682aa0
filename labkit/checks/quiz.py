"""Quizzes: every chosen option is answered with a reason, right or wrong."""

import base64
import tomllib
from pathlib import Path

from labkit.grading.contract import CheckFailed, expect, observe


def judge(quiz, number):
    """Compare the letters that `quiz()` returns with lab `number`'s key; explain what was chosen.

    The key is quizNN.toml: for each question the right letter and an explanation of every option.
    One point a question; raises CheckFailed, with the points of the right ones, for a wrong letter.
    """
    key = read_key(number)
    chosen = observe(quiz)
    form = ", ".join(f'"{question}": "a"' for question in key)
    expect(isinstance(chosen, dict), f"quiz() must return a dict like {{{form}}}")
    lines, right = [], 0
    for question, reasons in key.items():
        answer = reasons.pop("answer")
        letter = str(chosen.get(question, "")).strip().lower()
        if letter not in reasons:
            lines.append(f"{question} wants one of {', '.join(reasons)}")
            continue
        mark = "right" if letter == answer else "not quite"
        right += letter == answer
        lines.append(f"{question} {letter}, {mark}: {reasons[letter]}")
    if right < len(key):
        raise CheckFailed(f"{right} of {len(key)} right. " + " | ".join(lines), earned=right)
    return f"{right} of {len(key)} right\n  " + "\n  ".join(lines)


def read_key(number):
    """Lab `number`'s key: quizNN.toml, which in a student's copy is packed as quizNN.b64."""
    path = Path(__file__).parent / f"quiz{number}.toml"
    packed = path.with_suffix(".b64")
    if packed.exists():
        return tomllib.loads(base64.b64decode(packed.read_bytes()).decode())
    return tomllib.loads(path.read_text(encoding="utf-8"))
