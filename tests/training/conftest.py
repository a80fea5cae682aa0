"""Shared by the tests of training."""

import pytest

from labkit.training import models


@pytest.fixture(scope="module")
def tokenizer():
    return models.load()[1]
