"""Cache keys for grades, adapters and measurements: hashes of everything they depend on."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Module

PACKAGE = Path(__file__).parent
# code that trains an adapter
TRAINING = tuple(
    f"training/{name}.py" for name in ("finetuning", "lean", "packing", "loop", "fast")
)
NO_MATTER = {"__pycache__", "templates"}  # folders that no result depends on


def of(code: Iterable[str | Path], packages: Iterable[str], settings: dict) -> str:
    """A hash of code, package versions and settings, as hex digits.

    `code` lists files and folders; labkit's own paths are relative to the package. `settings` is
    plain data, which may contain sets and any object that its str() identifies.
    """
    known = {"settings": settings, "packages": {name: _version(name) for name in packages}}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=_plain).encode())
    for part in code:
        for file in _files(PACKAGE / part):
            data = file.read_bytes()
            name = file.relative_to(PACKAGE) if file.is_relative_to(PACKAGE) else file.name
            digest.update(f"{name} {len(data)} ".encode("utf-8", "surrogatepass") + data)
    return digest.hexdigest()


def weights(model: "Module") -> str:
    """A hash of a model's tensors, including their names and dtypes, as hex digits."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _files(path: Path) -> Iterator[Path]:
    """Yield the file, or the files below the folder in order, except hidden ones."""
    if path.is_file():
        yield path
    for root, folders, files in os.walk(path):
        folders[:] = sorted(set(folders) - NO_MATTER)
        yield from (Path(root) / name for name in sorted(files) if not name.startswith("."))
