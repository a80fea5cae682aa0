"""`labkit data`: what is in a data file, and what would go wrong in training."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.shared import Json, console_for, one_line, print_json

COLORS = {"wrong": "red", "look": "yellow", "note": "dim"}


@one_line(OSError)
def data(
    file: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet.")],
    test: Annotated[Path | None, typer.Option(help="A test file to compare with FILE.")] = None,
    model: Annotated[str, typer.Option(help="The model to train: a name or folder.")] = "",
    max_length: Annotated[int, typer.Option(min=1, help="Rows are cut at this many tokens.")] = 512,
    as_json: Json = False,
) -> int:
    """Describe a data file and list what would go wrong in training; exit 1 if anything would."""
    from labkit.data import report

    loaded = report.load(file)  # before slow imports: unreadable files fail at once
    if test:
        report.load(test)

    from labkit.training import models

    tokenizer, ends = models.tokenizer(model or models.default())
    found = report.of(file, loaded, tokenizer, ends, max_length, test)
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found, console_for(False))
    return int(bool(found.wrong))


def _show(found, console):
    def say(text, style=None):
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    for line in found.summary():
        say(line)
    for finding in found.findings:
        say(f"{finding.level:>5}  {found.line(finding)}", COLORS[finding.level])
        say(f"       → {finding.as_dict()['do']}")
    if found.wrong:
        say("Training on this file would go wrong: fix what is marked 'wrong', then check again.")
    else:
        say("Nothing in this file would go wrong in training.")
