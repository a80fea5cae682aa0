"""What the commands share: what they print on, and errors that become one line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from labkit.errors import LabError

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextlib.contextmanager
def one_line(*kinds: type[Exception]) -> Iterator[None]:
    """A block in which errors of these kinds are about what was named, and become one line."""
    try:
        yield
    except kinds as error:
        raise LabError(str(error)) from error


def console_for(json_wanted: bool) -> Console:
    """The console for people: stderr when stdout carries data."""
    from rich.console import Console

    return Console(stderr=json_wanted)


def print_json(data: object) -> None:
    """Print data for programs."""
    print(json.dumps(data, indent=1, ensure_ascii=False))
