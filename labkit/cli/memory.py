"""`labkit memory`, with one option per field of `Settings`."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from logging import getLogger
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.shared import Json, console_for, one_line, print_json
from labkit.errors import LabError
from labkit.memory.settings import Settings, parse_size


def with_settings(command: Callable) -> Callable:
    """Replace the command's `settings` argument with one option per field of `Settings`."""

    @functools.wraps(command)
    def with_options(**given):
        chosen = {field.name: given.pop(field.name) for field in fields(Settings)}
        return command(settings=Settings(**chosen), **given)

    own = inspect.signature(command, eval_str=True)
    options = inspect.signature(Settings).parameters.values()
    parts = [options if p.name == "settings" else [p] for p in own.parameters.values()]
    with_options.__signature__ = own.replace(parameters=[p for part in parts for p in part])
    del with_options.__annotations__
    return with_options


@with_settings
def memory(
    model: Annotated[
        str | None, typer.Argument(help="A name, a config.json or its folder, or a Hub id.")
    ] = None,
    settings: Settings = Settings(),  # noqa: B008
    fit: Annotated[
        str | None, typer.Option(help="Show what fits in this much memory, such as 24GB.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Save a figure here.")] = None,
    as_json: Json = False,
) -> None:
    """Predict a training step's memory, by simulation without weights and in closed form."""
    from transformers import logging

    from labkit.memory import configs

    logging.set_verbosity_error()  # warnings about missing kernels: nothing runs
    getLogger("torch._subclasses.fake_tensor").disabled = True  # its errors become one line
    if model is None:
        raise LabError(f"name a model: {', '.join(configs.built_in())}, or a config.json")
    limit, config = parse_size(fit) if fit else None, configs.find(model)
    from labkit.memory import report

    with console_for(True).status("simulating a step") as status:
        found = report.examine(model, config, settings, limit, say=status.update)
    if plot:
        with one_line(OSError, ValueError):  # no such folder, unknown format
            report.figure(found).savefig(plot)
    if as_json:
        print_json(report.as_data(found))
    else:
        report.show(found, console_for(False))
