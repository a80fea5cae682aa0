"""The course's folder, and the masters in its labs/."""

import re
import tomllib
from pathlib import Path

from labkit.errors import LabError


def root() -> Path:
    """The course's folder: the current one, or where labkit was installed from; else LabError."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[2]):
        if (folder / "pyproject.toml").is_file():
            if (folder / "labs").is_dir():
                return folder
            if (folder / "labkit/cli").is_dir():
                raise LabError(f"{folder} has no labs/: it is a copy of the course for students")
    raise LabError("no course here: go to the folder that you cloned (it contains labs/)")


def project(root: Path) -> dict:
    """The project table of pyproject.toml in the folder `root`."""
    try:
        return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    except (ValueError, KeyError) as error:
        raise LabError(f"{root / 'pyproject.toml'} has no valid project table: {error}") from None


def masters(root: Path) -> list[Path]:
    """The masters of the course in `root`, in order."""
    return sorted((root / "labs").glob("[0-9][0-9]_*.py"))


def title(master: Path) -> str:
    """The title of a master: its first heading."""
    return re.search(r"(?m)^# # (.+)$", master.read_text("utf-8"))[1]
