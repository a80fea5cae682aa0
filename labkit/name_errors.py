"""A line below a NameError in a lab: which experiment defines the name, and what to run."""

import ast
import contextlib

from IPython import get_ipython
from IPython.core.interactiveshell import InteractiveShell

from labkit.names import DEFINITIONS, statements


def watch(shell: InteractiveShell) -> None:
    """Make `shell` print that line from now on; a second call changes nothing."""
    with contextlib.suppress(ValueError):
        shell.events.unregister("post_run_cell", _after)
    shell.events.register("post_run_cell", _after)


def _after(result):
    error = result.error_in_exec
    if isinstance(error, NameError) and error.name:
        print(advice(error.name, get_ipython().history_manager.input_hist_parsed))


def advice(name: str, cells: list[str]) -> str:
    """What to run to define `name`; an experiment among the run `cells` did not finish."""
    for cell in reversed(cells):
        for title, names in _experiments(cell):
            if name in names:
                return (
                    f"◇ {name} is made by the experiment “{title}”, which has not run to its end: "
                    "run its cell again"
                )
    return (
        f"◇ If a cell above makes {name}, run that one first "
        "(in JupyterLab: Run, then Run All Above Selected Cell)"
    )


def _experiments(cell):
    """`(title, names it defines)` of each experiment of a cell."""
    for node in statements(cell):
        test = node.test if isinstance(node, ast.If) else None
        if isinstance(test, ast.Call) and ast.unparse(test.func) in ("lab.experiment", "lab.gpu"):
            inner = [one for statement in node.body for one in ast.walk(statement)]
            names = {n.id for n in inner if isinstance(n, ast.Name) and type(n.ctx) is ast.Store}
            names |= {n.name for n in inner if isinstance(n, DEFINITIONS)}
            yield ast.literal_eval(test.args[0]), names
