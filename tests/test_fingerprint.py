"""What a kept adapter is keyed by: a change of the code that made it makes it anew."""

import shutil

import pytest

from labkit import fingerprint


@pytest.mark.parametrize("name", ["training/lean.py", "training/packing.py"])
def test_another_line_of_code_is_another_result(name, tmp_path, monkeypatch):
    shutil.copytree(fingerprint.PACKAGE / "training", tmp_path / "training")
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path)
    before = fingerprint.of(fingerprint.TRAINING, (), {})
    assert fingerprint.of(fingerprint.TRAINING, (), {}) == before
    with open(tmp_path / name, "a") as file:
        file.write("\nSTEPS = 25\n")
    assert fingerprint.of(fingerprint.TRAINING, (), {}) != before


def test_sets_count_in_any_order_and_a_package_that_is_missing_counts():
    first = fingerprint.of((), ["torch"], {"rank": 8, "targets": {"v", "q"}})
    assert first == fingerprint.of((), ["torch"], {"targets": {"q", "v"}, "rank": 8})
    assert first != fingerprint.of((), ["no-such-package"], {"rank": 8, "targets": {"v", "q"}})
