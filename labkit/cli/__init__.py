"""The `labkit` command. Each command imports its heavy libraries itself."""

import sys
from typing import Annotated

import typer

from labkit import train
from labkit.cli import course, data, grading, memory, ship
from labkit.errors import LabError

app = typer.Typer(
    epilog="Example: labkit run 1 2",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# the optional dependencies: package -> extra
EXTRAS = (
    dict.fromkeys(("ipykernel", "jupyter_client", "jupytext", "nbclient", "nbformat"), "jupyter")
    | dict.fromkeys(("copydetect", "scipy"), "grading")
    | dict.fromkeys(("docutils", "latex2mathml", "myst_nb", "pydata_sphinx_theme", "sphinx"), "dev")
)
EXAMPLES = {  # one per command, in the order of --help
    course.doctor: "doctor --json",
    course.fetch: "fetch",
    course.build: "build --check",
    course.run: "run 2 --out build",
    memory.memory: "memory llama-2-70b --method qlora --checkpointing --fit 48GB",
    course.claims: "claims A1 A18",
    data.data: "data mine.jsonl --test held-out.jsonl",
    train.train: "train mine.jsonl --out my-adapter",
    ship.ship: "ship my-adapter --data mine.csv --gguf q8_0",
    grading.check: "check 02_lora.ipynb",
    grading.export: "export graded --canvas gradebook.csv",
    grading.grade: "grade submissions/ --out grades",
    course.release: "release --out for-students",
}
for _command, _example in EXAMPLES.items():
    app.command(epilog=f"Example: labkit {_example}")(_command)


def main(argv: list[str] | None = None) -> None:
    """Run the command and exit with 0, 1 (a failed run), 2 (bad input) or 130 (Ctrl-C)."""
    args = sys.argv[1:] if argv is None else argv
    # nbformat's jsonschema would spend 1.2 s compiling a URL grammar that no notebook needs
    sys.modules.setdefault("rfc3987_syntax", None)
    try:
        sys.exit(app(args or ["--help"], prog_name="labkit", standalone_mode=False))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        line = f"{error.name} is missing: pip install -e '.[{EXTRAS[error.name]}]'"
    except (LabError, BrokenPipeError) as error:
        line = str(error)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer raises those for a bad argument
            raise
        line = error.format_message()
    print(f"labkit: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"labkit {version('lora-labs')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """LoRA Labs: hands-on labs on LoRA and QLoRA."""
