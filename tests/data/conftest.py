"""A clean file to plant faults in, and the tokens that it is read with."""

import json

import pytest

from labkit import tasks
from labkit.data import report
from labkit.training import models


@pytest.fixture(scope="session")
def read_with():
    """`(tokenizer, ends)` of the labs' model."""
    return models.tokenizer("smollm2-135m")


@pytest.fixture(scope="session")
def clean():
    """40 tickets of four categories as conversations: nothing is wrong with them."""
    rows = tasks.load("tickets", "train")["messages"]
    return [messages for start in (0, 20, 60, 100) for messages in rows[start : start + 10]]


@pytest.fixture
def examined(tmp_path, read_with):
    """`examined(rows, test=None)`: the report on rows (dicts, or lists of messages) as JSONL."""

    def write(name, rows):
        rows = [row if isinstance(row, dict) else {"messages": row} for row in rows]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", "utf-8")
        return tmp_path / name

    def examine(rows, test=None):
        file = write("mine.jsonl", rows)
        second = write("test.jsonl", test) if test else None
        return report.of(file, report.load(file), *read_with, test=second)

    return examine
