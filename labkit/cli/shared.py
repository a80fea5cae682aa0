"""What the commands share: what they print on, and errors that become one line."""

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from labkit.errors import LabError

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
    return Console(stderr=json_wanted)


def print_json(data: object) -> None:
    """Print data for programs."""
    print(json.dumps(data, indent=1, ensure_ascii=False))
