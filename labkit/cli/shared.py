"""Helpers that the commands share: consoles, JSON, one-line errors."""

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
    """Turn errors of these kinds into a LabError, which the command prints on one line."""
    try:
        yield
    except kinds as error:
        raise LabError(str(error)) from error


def console_for(json_wanted: bool) -> Console:
    """The console for human-readable output: stderr when stdout carries JSON."""
    return Console(stderr=json_wanted)


def print_json(data: object) -> None:
    """Print `data` as JSON for other programs."""
    print(json.dumps(data, indent=1, ensure_ascii=False))
