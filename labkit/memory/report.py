"""Print the results of `labkit memory`: simulation, closed form, and the batches that fit."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import PretrainedConfig

from labkit.memory import adapted, budget, fit, plots
from labkit.memory.dimensions import NoClosedForm
from labkit.memory.ledger import CATEGORIES
from labkit.memory.settings import Settings
from labkit.memory.simulate import Simulation, simulate
from labkit.plots import use_style

GB = 10**9
COLORS = dict(zip(CATEGORIES, ("blue", "red", "green", "magenta", "yellow", "white"), strict=True))
ROOM = {  # ways to save memory, in the order to try them
    "gradient checkpointing": {"checkpointing": True},
    "paged 8-bit optimizer states": {"optim": "paged_adamw_8bit"},
    "logits for 64 answer tokens": {"answer_tokens": 64},
    "4-bit base (qlora)": {"method": "qlora", "dtype": "bfloat16"},
}


@dataclass
class Report:
    """The results for one model and one set of settings."""

    model: str
    settings: Settings
    simulated: Simulation
    closed: budget.Budget | None
    why_not: str = ""
    notes: tuple[str, ...] = ()
    limit: int | None = None
    room: list[tuple[str, int]] | None = None
    batches: dict[int, int] | None = None
    batches_with: str | None = None

    @property
    def fits(self) -> bool | None:
        """Whether the step as given fits in `limit`; None without a limit."""
        return self.limit and self.simulated.peak <= self.limit


def examine(
    model: str,
    config: PretrainedConfig,
    settings: Settings,
    limit: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Report on one step and, given `limit` bytes, on what fits; `say` receives progress lines."""
    fitting = settings.but(attention=adapted.attention_of(config, settings))
    simulated = simulate(config, fitting, timeline=True)
    notes = tuple(_notes(config, settings, fitting, simulated))
    report = Report(str(model), fitting, simulated, None, notes=notes, limit=limit)
    try:
        report.closed = budget.closed_form(config, fitting)
    except NoClosedForm as error:
        report.why_not = str(error)
    if limit:
        _find_room(config, report, say)
    return report


def _notes(config, asked, settings, simulated):
    """Caveats for this result, as sentences without a period."""
    kind, n = config.model_type, simulated.n_experts
    if whole := getattr(config, "part_of", None):
        yield f"this covers only {whole}'s text part; images and audio are not counted"
    if same := getattr(config, "taken_for", ""):
        yield f"its layers are counted as {same} layers, which are identical"
    if asked.attention != settings.attention:
        yield f"transformers has no fused attention for {kind}: eager attention stores the scores"
    if n and settings.method == "qlora":
        yield (
            f"fused experts ({n / GB:.3g} B parameters) stay in {settings.dtype}:"
            " bitsandbytes packs only linear layers"
        )
    if settings.method == "qlora" and kind.startswith("gemma3n"):
        yield (
            f"{' and '.join(adapted.CLIPPED)} stay in {settings.dtype}: transformers clips them at"
            " each step, impossible in 4 bits; list them in llm_int8_skip_modules when loading"
        )
    if n and settings.method != "full" and not simulated.adapted_experts:
        yield "the experts get no adapters; --experts adds them (PEFT's target_parameters)"
    if kind in adapted.MAMBA and settings.method != "full":
        yield "out_proj gets no adapter: Mamba's kernel multiplies by it, so PEFT refuses"
    kinds = {*(getattr(config, "layer_types", None) or ())}
    if kind in adapted.MAMBA or kinds & {"mamba", "linear_attention"}:
        yield "recurrent layers run transformers' code; specialized kernels need less memory"
    if simulated.adapted_experts:
        yield "experts get adapters; PEFT adds the update to a copy of each layer's experts"


def _find_room(config, report, say):
    """Apply memory savers one after another; find the largest batches for the first that fits."""
    settings = report.settings
    steps = [("the settings as given", settings, report.simulated.peak)]
    for name, change in ROOM.items():
        short = settings.seq <= change.get("answer_tokens", 0)
        changed = settings if short else settings.but(**change)
        if changed != settings:
            settings = changed
            say(f"simulating with {name}")
            steps.append((name, settings, simulate(config, settings).peak))
    report.room = [(name, peak) for name, _, peak in steps[1:]]
    for name, settings, peak in steps:
        if peak <= report.limit:
            say(f"searching for the largest batch with {name}")
            report.batches_with = name
            report.batches = fit.largest_batches(config, settings, report.limit)
            return


def as_data(report: Report) -> dict:
    """The report as plain data, sizes in bytes."""
    simulated = asdict(report.simulated)
    del simulated["timeline"]
    out = {"model": report.model, "settings": asdict(report.settings), "simulated": simulated}
    out["notes"] = list(report.notes)
    out["closed_form"] = closed = asdict(report.closed) if report.closed else None
    if closed:
        closed |= {"peak": report.closed.peak, "static": report.closed.static()}
    if report.limit:
        out["fit"] = {
            "limit": report.limit,
            "fits": report.fits,
            "largest_batch": report.batches or {},
            "largest_batch_with": report.batches_with,
            "more_room": [{"change": name, "peak": peak} for name, peak in report.room],
        }
    return out


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print(Text(_headline(report), "bold"))
    console.print(_settings_line(report.settings), style="dim", highlight=False)
    for note in report.notes:
        console.print(Text(f"Note: {note}."))
    console.print(_bar(report.simulated, min(console.width, 100) - 12))
    console.print(_table(report))
    console.print(_verdict(report), highlight=False)
    if report.limit:
        _show_fit(report, console)


def _headline(report):
    s = report.simulated
    share = 100 * s.n_trainable / s.n_params
    what = report.settings.method
    if report.settings.objective != "sft":
        what = f"{report.settings.objective} with {what}"
    return (
        f"{report.model}, {what}: {_gb(s.peak)} GB at the peak"
        f" ({s.n_params / GB:.3g} B parameters, {s.n_trainable / 1e6:.4g} M trained, {share:.3g}%)"
    )


def _settings_line(s):
    batch = {"sft": "", "dpo": " pairs", "grpo": f" prompts x {s.samples} answers"}[s.objective]
    parts = [f"batch {s.batch}{batch} x {s.seq} tokens", s.optim, f"{s.dtype} base", s.attention]
    if s.method != "full":
        parts.insert(1, f"rank {s.rank} on {s.targets}")
    parts += [name for name in ("autocast", "checkpointing") if getattr(s, name)]
    return ", ".join(parts)


def _bar(simulated, width):
    """Draw the peak as one stacked bar, with labels that make it readable without color."""
    bar = Text()
    for name in CATEGORIES:
        n = round(width * simulated.by_category[name] / simulated.peak)
        if n:
            label = name[: n - 2].center(n) if n > 4 else " " * n
            bar.append(label, f"black on {COLORS[name]}")
    bar.append(f" {_gb(simulated.peak)} GB")
    return bar


def _table(report):
    table = Table("GB", box=None, header_style="bold", pad_edge=False)
    table.add_column("simulated", justify="right")
    table.add_column("closed form", justify="right")
    table.add_column("formula", style="dim", overflow="fold")
    static = report.simulated.static
    for category in CATEGORIES[:-1]:
        ours = static.get(category, report.simulated.by_category.get(category, 0))
        closed = _gb(report.closed.total(category)) if report.closed else "-"
        style = f"bold {COLORS.get(category, 'cyan')}"
        table.add_row(category, _gb(ours), closed, style=style)
        for term in report.closed.terms if report.closed else ():
            if term.category == category:
                table.add_row(f"  {term.name}", "", _gb(term.bytes), escape(term.formula))
    if report.simulated.paged:
        table.add_row("paged states", _gb(report.simulated.paged), "", "can leave the GPU")
    for phase in ("reference", "rollout"):  # runs before the step, without gradients
        if phase in report.simulated.phases:
            closed = _gb(report.closed.moments["in the reference"]) if report.closed else "-"
            table.add_row(f"peak of the {phase}", _gb(report.simulated.phases[phase]), closed)
    closed = _gb(report.closed.peak) if report.closed else "-"
    table.add_row("peak", _gb(report.simulated.peak), closed, style="bold")
    return table


def _verdict(report):
    phases = report.simulated.phases
    phase = max(phases, key=phases.get)
    rest = "the categories above don't peak together: gradients grow as activations are freed"
    line = f"The peak is in {phase}; {rest}."
    if not report.closed:
        return f"{line} ({report.why_not})"
    moment = max(report.closed.moments, key=report.closed.moments.get)
    off = report.closed.peak / report.simulated.peak - 1
    return f"{line} The closed form puts it {moment}, {off:+.1%} off the simulation."


def _show_fit(report, console):
    limit = f"{report.limit / GB:.4g} GB"
    answer, left = ("fits", "to spare") if report.fits else ("does not fit", "too much")
    gap = _gb(abs(report.limit - report.simulated.peak))
    shape = f"{report.settings.batch} x {report.settings.seq}"
    console.print(f"\nBatch {shape} {answer} in {limit}:", end=" ")
    console.print(f"{gap} GB {left}. The CUDA context (about 0.5 GB) and fragmentation add more.")
    for name, peak in report.room:
        verdict = "fits" if peak <= report.limit else "does not fit"
        console.print(f"  then with {name}: {_gb(peak)} GB, {verdict}", highlight=False)
    if not report.batches:
        console.print("None of these options makes it fit.")
        return
    table = Table("length", "largest batch", "tokens", box=None, pad_edge=False)
    for length, batch in report.batches.items():
        table.add_row(str(length), str(batch) if batch else "none", str(length * batch))
    console.print(f"The largest batch that fits with {report.batches_with}:")
    console.print(table)


def _gb(n_bytes):
    return f"{n_bytes / GB:,.3f}"


def figure(report: Report) -> Figure:
    """Draw bars of the simulation and the closed form, and the timeline, for `--plot`."""
    use_style()
    rows = {"simulated": report.simulated.by_category}
    if report.closed:
        moment = ("activations", "temporary", "weights", "optimizer")
        rows["closed form"] = {name: report.closed.total(name) for name in moment}
    return plots.bars_and_timeline(rows, report.simulated, _headline(report), report.limit)
