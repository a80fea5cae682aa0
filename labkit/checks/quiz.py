"""Quizzes: each chosen option is explained, whether right or wrong; the first choice counts."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

from labkit import contract
from labkit.checks import engine
from labkit.contract import CheckFailed, exercise, expect, observe

LETTER = re.compile(r"\W*([a-z])\W*")  # "b", and what people write for it: " B. ", "(b)"


def quiz_of(id: str, points: int) -> Callable:
    """The check of quiz `id`, a point per question; its key is `quiz` in labNN.toml."""

    @exercise(id, points)
    def quiz(quiz):
        """the right letters"""
        return judge(quiz, f"{id.partition('.')[0]:0>2}")

    return quiz


def judge(quiz, number):
    """Compare the letters that `quiz()` returns with lab `number`'s key; explain each choice.

    The key, `quiz` in labNN.toml, has each question's letter and a reason for every option.
    Each question earns one point, for the first letter that this session saw. A later letter is
    explained but changes nothing. Raises CheckFailed with the points earned if any is wrong.
    """
    key = read_key(number)
    chosen = observe(quiz)
    form = ", ".join(f'"{question}": "a"' for question in key)
    expect(isinstance(chosen, dict), f"quiz() must return a dict like {{{form}}}")
    kept = contract.session.letters.setdefault(contract.session.exercise, {})
    lines, right = [], 0
    for question, reasons in key.items():
        answer = reasons.pop("answer")
        letter = _letter(chosen.get(question))
        if letter in reasons:
            first = kept.setdefault(question, letter)
            mark = "right" if letter == answer else "not quite"
            other = f" (your first answer, {first}, counts)" if first != letter else ""
            lines.append(f"{question} {letter}, {mark}: {reasons[letter]}{other}")
        else:
            lines.append(f"{question} needs one of {', '.join(reasons)}")
        right += kept.get(question) == answer
    if right < len(key):
        late = " on your first try" if any("your first answer" in line for line in lines) else ""
        raise CheckFailed([f"{right} of {len(key)} right{late}", *lines], earned=right)
    return f"{right} of {len(key)} right\n  " + "\n  ".join(lines)


def _letter(said):
    """The letter in an answer, in lowercase; "" if there is none."""
    found = LETTER.fullmatch(said.lower()) if isinstance(said, str) else None
    return found[1] if found else ""


def read_key(number):
    """Lab `number`'s key: `quiz` in labNN.toml (in a student's copy .b64)."""
    return copy.deepcopy(engine.read(Path(__file__).parent / f"lab{number}.toml")["quiz"])
