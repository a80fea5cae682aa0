"""Report what this machine can run, and how to fix what it can't."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

MODEL = "smollm2-135m"
GIB = 2**30
LAB_BYTES = 6 * GIB  # memory for a lab; the largest peaks at 5 GB
INSTALL = "pip install -e '.[dev]'"
COLORS = {"ok": "green", "warn": "yellow", "bad": "red"}


@dataclass
class Finding:
    """A line of the report: verdict is `ok`, `warn` (runs with limits) or `bad` (does not run)."""

    what: str
    value: str
    verdict: str = "ok"
    fix: str = ""


def examine() -> list[Finding]:
    """Return all findings, without using a network or writing anything."""
    findings = []
    for check in CHECKS:
        try:
            findings.append(check())
        except Exception as error:  # report a broken installation, too
            what = check.__name__.removeprefix("check_")
            findings.append(Finding(what, _line(error), "bad", INSTALL))
    return findings


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _unless(good: bool, what: str, value: str, fix: str) -> Finding:
    """A finding, which is a warning with a `fix` unless it is `good`."""
    return Finding(what, value) if good else Finding(what, value, "warn", fix)


def show(findings: list[Finding], console: Console) -> None:
    """Print the findings as a table."""
    table = Table("what", "", "value", "note", box=None)
    for f in findings:
        table.add_row(f.what, Text(f.verdict, COLORS[f.verdict]), Text(f.value), Text(f.fix))
    console.print(table)


def check_python() -> Finding:
    value = f"{sys.version.split()[0]} ({sys.executable})"
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return _unless(good, "python", value, "the course is tested on Python 3.11 to 3.13")


def check_torch() -> Finding:
    import torch

    return Finding("torch", torch.__version__)


def check_gpu() -> Finding:
    """The GPU that labs would use, the model that fits it, and whether 4 bits work there."""
    import torch

    from labkit.training import hardware

    if hardware.device() == "cpu":
        return Finding("gpu", "none", "ok", "all labs run on the CPU; GPU cells are skipped")
    card = torch.cuda.get_device_properties(0)
    value = f"{card.name}, {card.total_memory / GIB:.0f} GiB"
    try:
        import bitsandbytes

        bitsandbytes.functional.quantize_4bit(torch.zeros(64, 64, device="cuda"), quant_type="nf4")
    except Exception as error:  # a missing library, an old driver, an unknown card
        broken = f"{value}; bitsandbytes: {_line(error)}"
        fix = "QLoRA cells will fail: run pip install -U bitsandbytes to match torch's CUDA"
        return Finding("gpu", broken, "warn", fix)
    largest = hardware.largest_qlora(card.total_memory)
    settings = "largest QLoRA model (1 x 512 tokens, checkpointed)"
    return Finding("gpu", value, "ok", f"{settings}: {largest or 'none'}")


def check_precision() -> Finding:
    """The number format that training uses here."""
    import torch

    from labkit.training import hardware

    where = hardware.device()
    kind = hardware.precision(where)
    if kind == torch.float16:
        note = "no bf16 on this card: fp16 matmuls with a gradient scaler, plain loops in fp32"
        return Finding("precision", "float16, adapters float32", "ok", note)
    if kind == torch.float32:
        note = "no fast bf16 here: experiments take 1.5 to 3 times as long as stated"
        return Finding("precision", "float32", "warn", note)
    return Finding("precision", "bfloat16, adapters float32")


def n_cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent outside Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_cores() -> Finding:
    n = n_cores()
    return _unless(n > 1, "cores", str(n), "times in the labs are for two cores")


def check_memory() -> Finding:
    """Free memory, compared with the LAB_BYTES that a lab needs."""
    import psutil

    free = psutil.virtual_memory().available
    fix = f"close other programs: a lab can need {LAB_BYTES // GIB} GiB"
    return _unless(free >= LAB_BYTES, "memory", f"{free / GIB:.1f} GiB free", fix)


def check_disk() -> Finding:
    """Free disk space where the model and the tasks are cached."""
    from labkit.download import cache_dir

    folder = cache_dir().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    fix = "set LABKIT_CACHE to a folder with 2 GiB free"
    return _unless(free >= 2 * GIB, "disk", f"{free / GIB:.1f} GiB free", fix)


def check_model() -> Finding:
    """Where the model is, or a warning that it has not been downloaded yet."""
    from labkit.training import models

    here, fix = models.complete(MODEL), "'labkit fetch' downloads it now"
    return _unless(here, "model", models.source(MODEL), fix)


def check_sandbox() -> Finding:
    """What isolates submissions when they are graded."""
    from labkit.grading import cgroup, sandbox
    from labkit.grading.limits import Limits

    if not sandbox.available():
        fix = "only for grading: install the package 'bubblewrap' (Linux), or grade with --unsafe"
        return Finding("sandbox", "none", "warn", fix)
    found = sandbox.trial()
    group = cgroup.make(Limits())
    cgroup.remove(group)
    bound = ", all in a memory cgroup" if group else ""
    if found == "nested":
        value = f"bubblewrap, and one process tree per submission{bound}"
        fix = "" if group else "no memory cgroup here: kernel memory is only partly limited"
        return Finding("sandbox", value, "ok", fix)
    if found == "alone":
        fix = "only for grading: without nested user namespaces, each submission has to warm up"
        value = f"bubblewrap, one warm process per submission{bound}"
        return Finding("sandbox", value, "warn", fix)
    fix = f"only for grading: bubblewrap does not work here ({sandbox.advice(found)})"
    return Finding("sandbox", "bubblewrap, but it fails", "warn", fix)


def check_kernel() -> Finding:
    """The Jupyter kernel that a notebook opened here would use."""
    from jupyter_client.kernelspec import KernelSpecManager

    program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    if not os.path.isabs(program):  # Jupyter replaces a bare `python` by the running interpreter
        program = sys.executable
    good = Path(program) == Path(sys.executable)
    value = f"python3 is {'this Python' if good else program}"
    return _unless(good, "kernel", value, "python -m ipykernel install --sys-prefix")


CHECKS = (
    *(check_python, check_torch, check_gpu, check_precision, check_cores),
    *(check_memory, check_disk, check_model, check_sandbox, check_kernel),
)
