"""What of a notebook is read, and how much of it is parsed."""

import json
import time
from itertools import zip_longest

import pytest
from submissions import notebook

from labkit.grading.judge import submission


def _book(*sources, outputs=(), counts=()):
    book = json.loads(notebook(*sources))
    for cell, count in zip_longest(book["cells"], counts):
        cell |= {"outputs": list(outputs), "execution_count": count}
    return json.dumps(book).encode()


def test_more_code_than_anybody_writes_is_refused():
    with pytest.raises(submission.Unreadable, match="8,400,000 characters of code"):
        submission.read(_book(*["x = 1\n" * 100_000] * 14))


def test_outputs_are_no_code():
    picture = {"output_type": "display_data", "data": {"image/png": "A" * 10_000_000}}
    work = submission.read(_book("def f(): pass", outputs=[picture]))
    assert work.cells == ["def f(): pass"] and work.names() == {"f"}


@pytest.mark.parametrize("end", ["", "\n)"])
def test_what_is_parsed_is_bounded_also_where_it_is_no_python(end, monkeypatch):
    parsed, parse = [], submission.parsed

    def counted(source):
        parsed.append(len(source))
        return parse(source)

    monkeypatch.setattr(submission, "parsed", counted)
    long = "def f(): pass\n" * 10_000 + end
    work = submission.read(_book("def first(): pass", *[long] * 50, "last = 1"))
    assert sum(parsed) <= 2 * submission.PARSED and max(parsed) <= submission.PARSED
    assert work.cell_of("first") == 0 and work.cell_of("f") == 50 and work.cell_of("last") == 51


def test_ten_thousand_cells_are_all_read():
    work = submission.read(_book(*[f"x_{i} = {i}" for i in range(10_000)], 'lab.reveal("2.1")'))
    assert len(work.names()) == 10_000 and set(work.asked) == {"2.1"}


# --- what counts as a reveal ---------------------------------------------------------------

WRITTEN = {
    "a comment": "# lab.reveal('2.1') would cost points",
    "a comment where the cell is no Python": "x = = 1  # lab.reveal('2.1')",
    "a comment below a shell line": "files = !ls\n# lab.reveal('2.1')",
    "text": "print(\"lab.reveal('2.1')\")",
    "a cell that is too long": "# lab.reveal('2.1')\n" + "x = 1\n" * 40_000,
    "a function that nobody calls": "def stuck():\n    lab.reveal('2.1')",
    "a method": "class A:\n    def f(self):\n        lab.reveal('2.1')",
    "a lambda": "stuck = lambda: lab.reveal('2.1')",
    "what never runs": "if False:\n    lab.reveal('2.1')",
    "a file that is written": "%%writefile notes.py\nlab.reveal('2.1')",
    "HTML": "%%html\nlab.reveal('2.1')",
    "no text": "lab.reveal(id)",
}
ASKED = {
    "a call": "lab.reveal('2.1')",
    "by its name": "lab.reveal(id='2.1')",
    "after a magic": "%matplotlib inline\nlab.reveal('2.1')",
    "after a shell line": "!pip install \\\n  x\nlab.reveal('2.1')",
    "after files = !ls": "files = !ls\nlab.reveal('2.1')",
    "after a question": "lab.reveal?\nlab.reveal('2.1')",
    "timed": "%%time\nlab.reveal('2.1')",
    "captured": "%%capture\nlab.reveal('2.1')",
    "in a branch": "if x:\n    pass\nelse:\n    lab.reveal('2.1')",
    "in try": "try:\n    lab.reveal('2.1')\nexcept Exception:\n    pass",
}


@pytest.mark.parametrize("source", WRITTEN.values(), ids=WRITTEN)
def test_who_only_wrote_about_a_reveal_has_seen_nothing(source):
    work = submission.read(_book(source))
    assert not work.asked and not work.shown


@pytest.mark.parametrize("source", ASKED.values(), ids=ASKED)
def test_a_call_counts_where_outputs_were_cleared(source):
    (told,) = submission.read(_book("x = 1", source)).asked.values()
    assert "code cell 2 " in told


def _stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


def test_what_an_output_shows_counts_wherever_it_came_from():
    for lines in "◐ 2.1 is revealed: read it", ["…\n", "◐ 2.1 is revealed: read"]:
        work = submission.read(_book("show('2.1')", outputs=[_stream(lines)]))
        assert work.shown == {"2.1"} and not work.lent
    work = submission.read(_book("show('2.1')", outputs=[_stream("◐ 2.1 is lent: it runs")]))
    assert work.lent == {"2.1"} and not work.shown


def test_a_call_whose_outputs_show_no_solution_does_not_count():
    error = {"output_type": "error", "ename": "LabError", "evalue": "no such exercise"}
    for outputs in [error], [_stream("something else")], [_stream("see: ◐ 2.1 is revealed")]:
        work = submission.read(_book("lab.reveal('2.1')", outputs=outputs))
        assert not work.asked and not work.shown


def test_a_call_in_a_cell_that_was_not_run_does_not_count():
    for counts, revealed in (((1, None), False), ((1, 2), True), ((None, None), True)):
        work = submission.read(_book("x = 1", "lab.reveal('2.1')", counts=counts))
        assert bool(work.asked) == revealed, counts


@pytest.mark.parametrize(
    "ugly", ["\n", " ", "%a\n", "a ", "a,", "x = !a\\\n", "a.", "?", "\t", "x=" * 2]
)
def test_reading_a_cell_takes_no_time_whatever_is_sent(ugly):
    begun = time.process_time()
    submission.read(_book(*[ugly * (submission.PARSED // len(ugly)) + "\n)(" for _ in range(2)]))
    assert time.process_time() - begun < 20  # a quadratic expression takes hours


def test_a_cell_that_python_takes_long_to_list_is_taken_for_needed():
    """Of each name symtable looks at each function."""
    for n, needed in ((2_000, {0, 1, 2}), (100, {0, 2})):
        cell = ",".join(f"n{i}" for i in range(n)) + "\n" + "lambda:0," * n
        assert submission.read(_book("x = 1", cell, "f = x")).needed({"f"}) == needed
