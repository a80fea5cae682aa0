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
    """`examined(rows, test=None, max_length=512)`: the report on rows, written as JSONL."""

    def write(name, rows):
        file = tmp_path / name
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_text("\n".join(lines) + "\n", "utf-8")
        return file

    def examine(rows, test=None, max_length=512):
        file = write("mine.jsonl", rows)
        second = write("test.jsonl", test) if test else None
        return report.of(file, report.load(file), *read_with, max_length, second)

    return examine
