"""A tiny model in a folder and a file to train it on."""

import pytest
from small_training import write_model, write_rows

from labkit.own.settings import Asked


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `model` and `mine.jsonl`."""
    made = tmp_path_factory.mktemp("own")
    write_model(made / "model")
    write_rows(made / "mine.jsonl")
    return made


@pytest.fixture
def asked(folder, tmp_path):
    """`asked(**more)`: the settings of a training of 12 steps that takes a second."""

    def settings(**more):
        given = {"file": folder / "mine.jsonl", "out": tmp_path / "mine", "batch": 8, "epochs": 2}
        given |= {"model": str(folder / "model"), "learning_rate": 2e-2, "dtype": "float32"}
        return Asked(**given | more)

    return settings
