"""Shared by the tests of training."""

import pytest
from transformers import AutoTokenizer

from labkit import tasks
from labkit.training import hardware, models


@pytest.fixture(scope="session")
def tokenizer():
    """The real one; its model stays on the disk."""
    return AutoTokenizer.from_pretrained(models.path(hardware.SMALLEST))


@pytest.fixture(scope="session")
def home():
    return tasks.load("home", "train").select(range(48))
