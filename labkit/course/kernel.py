"""A Jupyter kernel of the interpreter that runs now, and a notebook executed in it."""

from collections.abc import Callable
from pathlib import Path

from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets import default

CELL_SECONDS = 3600  # a cell that takes longer hangs


class KernelOfThisPython(AsyncKernelManager):
    """Starts `sys.executable`, whatever kernels are installed on the machine."""

    @default("kernel_spec_manager")
    def _only_this_python(self) -> KernelSpecManager:
        manager = KernelSpecManager(parent=self)
        spec = manager.kernel_spec_class(resource_dir=RESOURCES, **get_kernel_dict())
        manager.get_kernel_spec = lambda name: spec
        return manager


def execute(
    book: NotebookNode, folder: Path, at_cell: Callable[[int], None]
) -> tuple[str, int | None]:
    """Run the cells of book in place, in a fresh kernel in folder, calling at_cell before each.

    Returns one line that says what failed ("" when nothing did), and the kernel's peak bytes.
    """
    client = NotebookClient(
        book,
        kernel_manager_class=KernelOfThisPython,
        timeout=CELL_SECONDS,
        startup_timeout=180,
        coalesce_streams=True,
        extra_arguments=["--log-level=CRITICAL"],  # what a cell writes is not affected
        resources={"metadata": {"path": str(folder)}},
    )
    failure, peak = "", None
    try:
        with client.setup_kernel():
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
    """The largest resident memory that the kernel has had (Linux; None elsewhere)."""
    try:
        status = Path(f"/proc/{manager.provisioner.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux, or the kernel is gone
        return None
