"""What of a notebook is read, and how much of it is parsed."""

import json

import pytest

from labkit.grading import submission


def _book(*sources, outputs=()):
    cells = [
        {"cell_type": "code", "metadata": {}, "outputs": list(outputs), "source": source}
        for source in sources
    ]
    return json.dumps({"nbformat": 4, "cells": cells}).encode()


def test_more_code_than_anybody_writes_is_refused():
    long = "x = 1\n" * 100_000
    with pytest.raises(submission.Unreadable, match=r"8,400,000 characters of code, at most 8,0"):
        submission.read(_book(*[long] * 14))


def test_outputs_are_no_code():
    picture = {"output_type": "display_data", "data": {"image/png": "A" * 10_000_000}}
    work = submission.read(_book("def f(): pass", outputs=[picture]))
    assert work.cells == ["def f(): pass"] and work.names() == {"f"}


@pytest.mark.parametrize("end", ["", "\n)"])
def test_what_is_parsed_is_bounded_also_where_it_is_no_python(end, monkeypatch):
    parsed, parse = [], submission._tree

    def counted(source):
        parsed.append(len(source))
        return parse(source)

    monkeypatch.setattr(submission, "_tree", counted)
    long = "def f(): pass\n" * 10_000 + end
    work = submission.read(_book("def first(): pass", *[long] * 50, "last = 1"))
    assert sum(parsed) <= 2 * submission.PARSED and max(parsed) <= submission.PARSED
    assert work.cell_of("first") == 0 and work.cell_of("f") == 50 and work.cell_of("last") == 51


def test_ten_thousand_cells_are_all_read():
    work = submission.read(_book(*[f"x_{i} = {i}" for i in range(10_000)], 'lab.reveal("2.1")'))
    assert len(work.names()) == 10_000 and work.revealed() == {"2.1"}
