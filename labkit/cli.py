"""The `labkit` command. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from labkit.errors import LabError

app = typer.Typer(
    epilog="Example: labkit run 1 2",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# the extra `jupyter`, which Colab and graders do without
NOTEBOOKS = (
    "ipykernel",
    "jupyter_client",
    "jupytext",
    "latex2mathml",
    "nbclient",
    "nbconvert",
    "nbformat",
)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def main(argv: list[str] | None = None) -> None:
    """Run the command and exit: 0, 1 for a failed run, 2 for bad input, 130 for Ctrl-C."""
    args = sys.argv[1:] if argv is None else argv
    try:
        sys.exit(app(args or ["--help"], prog_name="labkit", standalone_mode=False))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in NOTEBOOKS:
            raise
        print(f"labkit: {error.name} is missing: pip install -e '.[jupyter]'", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # what typer raises for a bad argument
        if not usage and not isinstance(error, LabError | ValueError | OSError):
            raise
        line = " ".join((usage() if usage else str(error)).split())
        print(f"labkit: {line}", file=sys.stderr)
        sys.exit(2)


def course_root() -> Path:
    """Return the folder of the course: the one we are in, else the one labkit was installed from.

    Raises LabError where there is none.
    """
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[1]):
        if (folder / "pyproject.toml").is_file():
            if (folder / "labs").is_dir():
                return folder
            if (folder / "labkit/cli.py").is_file():
                raise LabError(f"{folder} has no labs/: it is a copy of the course for students")
    raise LabError("no course here: go to the folder that you cloned (it holds labs/)")


def _console(json_wanted: bool):
    """Return the console for people: stderr when stdout carries data."""
    from rich.console import Console

    return Console(stderr=json_wanted)


def _without_iri_grammar() -> None:
    """Keep jsonschema, under nbformat, from compiling a grammar for 1.2 s that no notebook needs.

    It is optional there: without it, addresses with non-ASCII characters are not validated.
    """
    sys.modules.setdefault("rfc3987_syntax", None)


def _print_json(data: object) -> None:
    print(json.dumps(data, indent=1, ensure_ascii=False))


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


@app.command(epilog="Example: labkit doctor --json")
def doctor(as_json: Json = False) -> int:
    """Say what this machine can run, and the mend for what it cannot."""
    from labkit.course.doctor import examine

    findings = examine()
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        _print_findings(findings)
    return int(any(finding.verdict == "bad" for finding in findings))


def _print_findings(findings: list) -> None:
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "bad": "red"}
    table = Table("what", "", "value", "note", box=None)
    for f in findings:
        table.add_row(f.what, Text(f.verdict, colours[f.verdict]), Text(f.value), Text(f.mend))
    _console(False).print(table)


@app.command(epilog="Example: labkit fetch")
def fetch(as_json: Json = False) -> None:
    """Bring the model and the data into the cache (done on first use anyway)."""
    from labkit import tasks
    from labkit.course.doctor import MODEL
    from labkit.training import models

    console, rows = _console(as_json), []
    jobs = {f"model {MODEL}": lambda: str(models.fetch(MODEL))}
    for split in ("train", "test"):
        jobs[f"task home, {split}"] = lambda s=split: f"{len(tasks.load('home', s))} examples"
    for name, job in jobs.items():
        start = time.perf_counter()
        row = {"what": name, "result": job(), "seconds": round(time.perf_counter() - start, 1)}
        rows.append(row)
        console.print(f"{name}: {row['result']}, {row['seconds']} s", markup=False, soft_wrap=True)
    if as_json:
        _print_json(rows)


@app.command(epilog="Example: labkit build --check")
def build(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 on drift.")] = False,
) -> int:
    """Build notebooks/ and solutions/ from labs/."""
    _without_iri_grammar()
    from labkit.course import notebooks

    changed = notebooks.build(course_root(), check)
    for name in changed:
        print(f"{'differs from its master' if check else 'written'}: {name}")
    if not changed:
        print("all notebooks are current")
    elif check:
        print("run 'labkit build' and commit the result")
    return int(check and bool(changed))


@app.command(epilog="Example: labkit run 2 --out build")
def run(
    labs: Annotated[list[str] | None, typer.Argument(help="2, 02 or 02_lora; default all.")] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for pages.")] = Path("build"),
    as_json: Json = False,
) -> int:
    """Execute solved labs with live progress; leave pages with their pictures and a summary."""
    _without_iri_grammar()
    from labkit.course import notebooks
    from labkit.course.run import find_labs
    from labkit.course.run import run as run_labs

    console, root = _console(as_json), course_root()
    stems = find_labs(labs or [], root)
    if notebooks.build(root, check=True):
        console.print("labs/ was edited and not built: what runs is older. See 'labkit build'")
    try:
        results = run_labs(stems, root, out, console)
    except KeyboardInterrupt:
        console.print(f"stopped; what is done is in {out / 'index.html'}", soft_wrap=True)
        raise
    if as_json:
        _print_json([asdict(result) for result in results])
    console.print(f"pages: {out / 'index.html'}", markup=False, soft_wrap=True)
    return int(any(result.status != "ok" for result in results))


@app.command(epilog="Example: labkit memory llama-2-70b --method qlora --checkpointing --fit 48GB")
def memory(
    model: Annotated[
        str | None, typer.Argument(help="A name, a config.json or its folder, a hub id.")
    ] = None,
    method: Annotated[str, typer.Option(help="full, lora or qlora.")] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 16,
    targets: Annotated[str, typer.Option(help="all-linear, or q_proj,v_proj,…")] = "all-linear",
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 1,
    seq: Annotated[int, typer.Option(help="Tokens a sequence.")] = 512,
    optim: Annotated[str, typer.Option(help="As transformers names it.")] = "adamw_torch_fused",
    checkpointing: Annotated[bool, typer.Option(help="Recompute layers in backward.")] = False,
    attention: Annotated[str, typer.Option(help="sdpa (fused) or eager.")] = "sdpa",
    answer_tokens: Annotated[int | None, typer.Option(help="Logits for the last so many.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the base; bfloat16, full: float32.")] = None,
    adapter_dtype: Annotated[str, typer.Option(help="Of the adapters.")] = "float32",
    autocast: Annotated[bool, typer.Option(help="Multiply in 16 bits.")] = True,
    dropout: Annotated[float, typer.Option(help="Of the adapters' inputs.")] = 0.0,
    double_quant: Annotated[bool, typer.Option(help="Quantise the scales too.")] = True,
    prepare_kbit: Annotated[bool, typer.Option(help="Cast the rest of QLoRA to fp32.")] = False,
    padded: Annotated[bool, typer.Option(help="Rows of different lengths.")] = False,
    accumulation: Annotated[int, typer.Option(help="Micro-batches a step.")] = 1,
    fit: Annotated[str | None, typer.Option(help="What fits: 16GB, 24GB, 48GB, 80GB.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Save a picture here.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a training step takes: simulated without weights, and in closed form."""
    asked = dict(locals())
    from labkit.memory import configs
    from labkit.memory.settings import Settings, parse_size

    if model is None:
        raise LabError(f"say a model: {', '.join(configs.built_in())}, or a config.json")
    for name in ("model", "fit", "plot", "as_json"):
        del asked[name]
    settings, limit = Settings(**asked), parse_size(fit) if fit else None
    config = configs.find(model)
    from labkit.memory import report

    with _console(True).status("simulating a step") as status:
        found = report.examine(model, config, settings, limit, say=status.update)
    if plot:
        report.figure(found).savefig(plot)
    if as_json:
        _print_json(report.as_data(found))
    else:
        report.show(found, _console(False))


@app.command(epilog="Example: labkit claims A1 A18")
def claims(
    ids: Annotated[list[str] | None, typer.Argument(help="A1, A2, …; default all.")] = None,
    as_json: Json = False,
) -> None:
    """List what is said about LoRA, what is right, and the lab and cell that measure it."""
    from labkit.course.claims import load

    found = load(ids or [])
    if as_json:
        _print_json([asdict(claim) for claim in found])
        return
    from rich.text import Text

    console = _console(False)
    for claim in found:
        console.print(Text.assemble((f"{claim.id} ", "bold"), claim.claim))
        console.print(Text.assemble((f"   {claim.verdict}: ", "yellow"), claim.right))
        places = "; ".join(f"{lab}, {cell}" for lab, cell in claim.where)
        console.print(Text(f"   {places or 'not measured in this course'}", "dim"))


@app.command(epilog="Example: labkit export graded --canvas gradebook.csv")
def export(
    out: Annotated[Path, typer.Argument(help="What 'labkit grade --out' wrote.")],
    canvas: Annotated[Path | None, typer.Option(help="The gradebook that Canvas exported.")] = None,
    moodle: Annotated[Path | None, typer.Option(help="The grading worksheet of Moodle.")] = None,
    gradescope: Annotated[bool, typer.Option(help="A file a submission.")] = False,
    lab: Annotated[str | None, typer.Option(help="2, 02 or 02_lora, if there are several.")] = None,
    column: Annotated[str | None, typer.Option(help="Title of the column to fill.")] = None,
) -> int:
    """Fill the grades into the table of another system; exit 1 if somebody should look."""
    from labkit.grading.after import exports

    if (canvas is not None) + (moodle is not None) + gradescope != 1:
        raise LabError("say one of --canvas GRADEBOOK.csv, --moodle WORKSHEET.csv, --gradescope")
    if gradescope:
        print(f"written: {exports.to_gradescope(out)}")
        return 0
    name, fill = ("canvas.csv", exports.canvas) if canvas else ("moodle.csv", exports.moodle)
    done = fill(exports.results_in(out), canvas or moodle, lab, column)
    (out / name).write_bytes(done.data())
    print(f"written: {out / name}; students with points: {done.matched}")
    for line in [*done.remarks, *(f"LOOK: {problem}" for problem in done.problems)]:
        print(line)
    return int(bool(done.problems))


@app.command(epilog="Example: labkit grade submissions/ --out grades")
def grade(
    paths: Annotated[list[Path], typer.Argument(help="Notebooks, or folders of them.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for grades and pages.")],
    jobs: Annotated[int | None, typer.Option(min=1, help="Side by side; default a core.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Of the checks' inputs; default random."),
    ] = None,
    checks: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Your own checks, a .py file.")
    ] = None,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Go on without a sandbox.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Dask workers on this machine.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="A Dask scheduler, tcp://…:8786.")] = None,
    again: Annotated[
        list[str] | None, typer.Option(help="Grade this one afresh: a name, a part of it, a *.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Grade submissions, each in its sandbox; a second call grades only what is new."""
    from labkit.grading.after import show
    from labkit.grading.collect import left_out
    from labkit.grading.grade import grade as grade_all

    console, now, notes = _console(as_json), [], []
    if unsafe:
        show.loud(console)
    with show.progress(console) as told:

        def progress(done, total, row):
            now.append(row)
            told(done, total, row)

        rows = grade_all(
            paths,
            out,
            jobs=jobs,
            seed=seed,
            checks=checks,
            unsafe=unsafe,
            progress=progress,
            workers=workers,
            scheduler=scheduler,
            again=again or (),
            notes=notes,
        )
    if as_json:
        _print_json([row.data() for row in rows])
    show.summary(rows, out, console, notes + left_out(paths, out), now)


@app.command(epilog="Example: labkit release --out for-students")
def release(
    out: Annotated[Path, typer.Option(file_okay=False, help="A new folder.")],
    gradescope: Annotated[
        bool, typer.Option("--gradescope", help="Make autograders instead, one zip a lab.")
    ] = False,
    checks: Annotated[
        Path | None, typer.Option(exists=True, help="Private checks for the autograders.")
    ] = None,
    repository: Annotated[
        str | None, typer.Option(help="Where you will publish it; Colab installs from there.")
    ] = None,
) -> None:
    """Make what students get: the course without solutions, masters and tests."""
    _without_iri_grammar()
    from labkit.course import release as made

    if checks and not gradescope:
        raise LabError("--checks are private: they go into --gradescope's zips, not to students")
    if gradescope:
        files = made.autograders(course_root(), out, checks)
    else:
        files = made.release(course_root(), out, repository)
    print(f"written: {len(files)} files in {out}")
