"""What a kept result is keyed by: a change of the code that made it makes it anew."""

import shutil

import pytest

from labkit import fingerprint

EVERYTHING = fingerprint.TRAINING


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


@pytest.mark.parametrize("name", ["training/lean.py", "training/packing.py"])
def test_another_line_of_code_is_another_result(package, name):
    before = fingerprint.of(EVERYTHING, (), {})
    assert fingerprint.of(EVERYTHING, (), {}) == before
    with open(package / name, "a") as file:
        file.write("\nSTEPS = 25\n")
    assert fingerprint.of(EVERYTHING, (), {}) != before


def test_versions_and_settings_count_too(monkeypatch):
    def key(settings, packages=("torch",)):
        return fingerprint.of((), packages, settings)

    first = key({"rank": 8, "targets": {"v", "q"}})
    assert first == key({"targets": {"q", "v"}, "rank": 8})
    found = {first, key({"rank": 16}), key({"rank": 8}), key({"rank": 8}, ("no-such-package",))}
    monkeypatch.setattr(fingerprint, "version", lambda name: "0")
    assert len(found | {key({"rank": 8})}) == 5
