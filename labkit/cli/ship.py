"""`labkit ship`: write an adapter as files for other inference engines."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.shared import Json, one_line, print_json


@one_line(OSError)
def ship(
    folder: Annotated[Path, typer.Argument(help="An adapter from `labkit train` or PEFT.")],
    out: Annotated[Path | None, typer.Option(help="Default: FOLDER-shipped.")] = None,
    gguf: Annotated[
        list[str] | None,
        typer.Option(help="bf16, q8_0, q4_0, f16 or f32; repeatable. Default: the first three."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the merged model; without --gguf, only that.")
    ] = False,
    apart: Annotated[
        bool, typer.Option("--apart", help="Also write the base as GGUF, to serve many adapters.")
    ] = False,
    base: Annotated[str, typer.Option(help="The base model: a name or a folder.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="The training data; its held-out rows test each file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an adapter as GGUF, separate and merged, with costs and the commands to serve it."""
    from labkit.ship import card, shipping

    kinds = tuple(gguf or ()) or (() if merge and not apart else shipping.Asked.kinds)
    target = out or folder.resolve().with_name(f"{folder.resolve().name}-shipped")
    facts = shipping.ship(shipping.Asked(folder, target, kinds, merge, apart, base, data))
    if as_json:
        print_json(facts | {"out": str(target)})
    else:
        print(card.table(facts["files"]))
        print("".join(f"\n{note}\n" for note in facts["notes"]), end="")
        print(f"\nIn {target}:\n")
        print("\n".join(f"# {who}\n{line}" for who, line in facts["lines"].items()))
