"""Execute one notebook in a fresh kernel of this Python."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

CELL_SECONDS = 3600  # a cell that takes longer hangs


@dataclass
class LabResult:
    """The result of one lab: status is `ok`, `failed` (error says why) or `stopped` (Ctrl-C)."""

    lab: str
    title: str
    status: str = "stopped"
    seconds: float = 0.0
    passed: int = 0
    exercises: int = 0
    headline: str = ""
    peak_bytes: int | None = None  # of the kernel; None if unknown
    error: str = ""


class KernelOfThisPython(AsyncKernelManager):
    """Starts `sys.executable`, whatever kernels are installed on the machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel spec that ipykernel gives for this Python."""
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


def execute(
    book: nbformat.NotebookNode,
    folder: Path,
    at_cell: Callable[[int], None],
    started: Callable[[int], None] = lambda process: None,
    env: dict[str, str] | None = None,
    **options,
) -> tuple[str, int | None]:
    """Run the cells of `book` in place, in a fresh kernel in `folder`; call `at_cell` before each.

    `started` gets the kernel's process id, `env` is its environment (default this process's),
    `options` are passed to nbclient. Returns one line that describes the failure ("" for none), and
    the kernel's peak memory in bytes.
    """
    client = NotebookClient(
        book,
        kernel_manager_class=KernelOfThisPython,
        startup_timeout=180,
        coalesce_streams=True,
        extra_arguments=["--log-level=CRITICAL"],  # cells' output is not affected
        resources={"metadata": {"path": str(folder)}},
        **{"timeout": CELL_SECONDS} | options,
    )
    client.comm_open_handlers.clear()  # answering a slider can lose a reply: nbclient#312
    failure, peak = "", None
    try:
        with client.setup_kernel(env=env or dict(os.environ)):
            started(client.km.provisioner.pid)
            client.reset_execution_trackers()
            try:
                for index, cell in enumerate(book.cells):
                    at_cell(index)
                    client.execute_cell(cell, index)
            finally:
                peak = peak_bytes(client.km)
    except CellExecutionError as error:
        failure = f"{error.ename}: {error.evalue.strip()}"
    except CellTimeoutError:
        failure = f"a cell ran longer than {CELL_SECONDS // 60} minutes"
    except DeadKernelError:
        failure = "the kernel died (out of memory?)"
    except RuntimeError as error:  # the kernel did not start
        failure = str(error)
    return failure.partition("\n")[0], peak


def peak_bytes(manager: AsyncKernelManager) -> int | None:
    """The largest resident memory of the kernel so far (Linux; None elsewhere)."""
    try:
        status = Path(f"/proc/{manager.provisioner.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux, or the kernel is gone
        return None
