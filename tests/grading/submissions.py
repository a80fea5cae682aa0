"""Notebooks that these tests hand in, cells that answer lab 2, and what stands in for a judge."""

import json
from pathlib import Path
from typing import ClassVar

import pytest

from labkit.grading import sandbox
from labkit.grading.limits import Limits
from labkit.grading.row import Exercise, Row

QUICK = Limits(cell_seconds=6, exercise_seconds=10, total_seconds=60, memory_bytes=1 << 30)
KIND = "nested" if sandbox.available() else "bare"
needs_sandbox = pytest.mark.skipif(KIND == "bare", reason="no bubblewrap here")


def notebook(*sources, tags=()):
    cells = [
        {"cell_type": "code", "metadata": {}, "source": source, "outputs": []} for source in sources
    ]
    for i in tags:
        cells[i]["metadata"] = {"tags": ["experiment"]}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}).encode()


NAMED = '# labkit.start("02_lora")'  # so that a judge needs no checks of other labs
START = 'import labkit\nlab, check = labkit.start("02_lora")'
FLOPS = """
def step_flops(shapes, n_tokens, r=None):
    frozen = sum(d_out * d_in for d_out, d_in in shapes.values())
    thin = sum((r or 0) * (d_out + d_in) for d_out, d_in in shapes.values())
    return n_tokens * ((4 if r else 6) * frozen + 6 * thin)
"""
FORWARD = """
def lora_forward(x, W, A, B, alpha):
    return x @ W.T + alpha / len(A) * (x @ A.T) @ B.T
"""
QUIZ = 'def quiz():\n    return {"q1": "b", "q2": "c", "q3": "a"}'
STUB = "def step_flops(shapes, n_tokens, r=None):\n    raise NotImplementedError"


class Fake:
    """Stands in for a judge: gives a point, notes what it is asked, and may fail."""

    asked: ClassVar = []

    def __init__(self, *setup):
        pass

    def grade(self, name, data, seed):
        Fake.asked.append((name, data, seed))
        if b"INTERRUPT" in data:
            raise KeyboardInterrupt
        tries = [Exercise("2.1", "f", 2, 1, "failed")]
        return Row(name, "graded", "", "02_lora", 1, 2, 0.1, tries), {"2.1": "f"}

    def kill(self):
        pass

    stop = kill


# a warm process that has imported what it needs itself, and nothing that labs use
LITTLE = """
from labkit.grading.inside import zygote
def warm():
    from labkit.grading.inside import answer, supervisor
    return zygote._shell()
zygote.warm = warm
zygote.main()
"""
REAL = sandbox.command


def little(fd, kind):
    """Takes the place of `sandbox.command`: such a process, in the same sandbox."""
    *wall, _, _, own, told = REAL(fd, kind)
    return [*wall, "-c", LITTLE, own, told]


LITTLE_JUDGE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import submissions
from labkit.grading.judge import judge
submissions.sandbox.command = submissions.little
judge.main()
"""
LITTLE_JUDGE = ("-c", LITTLE_JUDGE)  # takes the place of `workers.JUDGE`
