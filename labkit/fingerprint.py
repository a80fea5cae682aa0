"""What a kept result depends on besides its settings: the code that makes it, and libraries."""

import hashlib
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parent
TRAINING = tuple(
    f"training/{name}.py" for name in ("finetuning", "lean", "packing", "loop")
)  # what makes an adapter
JUDGING = (
    "training/generation.py",
    "training/scoring.py",
    "tasks",
    "measured",
)  # what makes its figures
SUFFIXES = (".py", ".toml", ".jsonl", ".txt")


def code(parts):
    """A hash of the files of labkit in `parts`, names of files and folders, as hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        path = PACKAGE / part
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in SUFFIXES:
                digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def versions(packages):
    """`{name: version}` of installed distributions."""
    return {name: version(name) for name in packages}
