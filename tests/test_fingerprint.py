"""What a kept result is keyed by: a change of the code that made it makes it anew."""

import shutil

import pytest

from labkit import fingerprint

EVERYTHING = fingerprint.TRAINING + fingerprint.JUDGING


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the files that count."""
    for part in EVERYTHING:
        path = fingerprint.PACKAGE / part
        copy = shutil.copytree if path.is_dir() else shutil.copy
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        copy(path, tmp_path / part)
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["training/lean.py", "training/packing.py", "measured/short.py", "tasks/home.py"]
)
def test_another_line_of_code_is_another_result(package, name):
    before = fingerprint.code(EVERYTHING)
    assert fingerprint.code(EVERYTHING) == before
    with open(package / name, "a") as file:
        file.write("\nSTEPS = 25\n")
    assert fingerprint.code(EVERYTHING) != before


def test_what_only_judges_leaves_adapters_alone(package):
    before = fingerprint.code(fingerprint.TRAINING)
    (package / "training/generation.py").write_text("")
    assert fingerprint.code(fingerprint.TRAINING) == before
