"""Files: atomic writes, the course's templates, and the last line of a log."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`, moved to `path` when the block succeeds.

    If the block raises, `path` is unchanged. Concurrent writers do not collide. The folder is
    created if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:60]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@cache
def template(name: str) -> "jinja2.Template":
    """A compiled template; autoescape is on, so data never becomes markup."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Environment(loader=loader, autoescape=True, **options).get_template(name)


def last_line(file: BinaryIO) -> str:
    """The last line that a process wrote into a file; "" if none."""
    file.seek(0)
    return file.read().decode(errors="replace").strip().rpartition("\n")[2]
