"""Shared by the tests of training."""

import pytest
from transformers import AutoTokenizer

from labkit.training import hardware, models


@pytest.fixture(scope="session")
def tokenizer():
    """The real one; its model stays on the disk."""
    return AutoTokenizer.from_pretrained(models.path(hardware.SMALLEST))
