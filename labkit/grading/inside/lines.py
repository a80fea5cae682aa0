"""How the lines of a cell run in grading: as in Jupyter, but for those that fail for the place.

A submission was made where there is a network, a GPU, a person at the keyboard and other libraries.
A line that fails for want of these costs what it would have defined, and the rest of its cell runs.
Where a line fails that fails anywhere, the cell ends there, as it does in Jupyter. Below a line
that is out of time only definitions run, which take none.
"""

import ast
import subprocess
import sys

from IPython.core.error import StdinNotImplementedError, UsageError

PLACE = (ImportError, OSError, EOFError, MemoryError, Warning, subprocess.SubprocessError)
PLACE += (UsageError, StdinNotImplementedError)
# in the text of errors that have no class of their own
SIGNS = ("cuda", "nvidia", "gpu", "mps ", "allocate memory", "module '", "no kernel", "'kernel'")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
DEEP = 8  # causes of an error that are looked at


def prepare(shell: object) -> list:
    """Have `shell` go on like this; returns the list in which it leaves the errors of a cell."""
    run, errors = shell.run_ast_nodes, []

    async def run_nodes(nodes, cell_name, interactivity=None, compiler=compile, result=None):
        nodes, failed, late = _split(nodes), False, False
        for node in nodes:
            if late and not isinstance(node, DEFINITIONS):
                continue
            if not await run([node], cell_name, "none", compiler, result):
                continue
            failed = True
            errors.append(result.error_before_exec or result.error_in_exec)
            late = late or isinstance(errors[-1], KeyboardInterrupt)
            if not _goes_on(node, errors[-1], nodes):
                break
        return failed

    def timed(line, cell):  # `%%time` without a clock: IPython's own keeps errors to itself
        shell.run_cell(cell, store_history=False, silent=True)

    shell.run_ast_nodes = run_nodes
    shell.register_magic_function(timed, "cell", "time")
    sys.path.insert(0, "")  # modules are found beside the notebook, as in Jupyter
    return errors


def _split(nodes):
    """`import a, b` as two lines: b is there without a."""
    split = []
    for node in nodes:
        parts = node.names if isinstance(node, ast.Import) else []
        split += [ast.copy_location(ast.Import([part]), node) for part in parts] or [node]
    return split


def _goes_on(node, error, nodes):
    """Whether the lines below `node`, of a cell's `nodes`, run when it has raised `error`."""
    if isinstance(node, ast.Raise | ast.Assert) or isinstance(error, SystemExit):
        return False
    if type(error) is NameError:  # it follows from another line, unless it is `STOP`
        return not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Name))
    if isinstance(error, KeyboardInterrupt) or _for_the_place(error):
        return True
    if any(isinstance(n, ast.Name) and n.id == "get_ipython" for n in ast.walk(node)):
        return True  # a magic, or a line for the system's shell
    kinds = {type(one) for one in nodes}  # a cell that imports and defines nothing sets things up
    return bool(kinds & {ast.Import, ast.ImportFrom}) and not kinds & set(DEFINITIONS)


def _for_the_place(error):
    """Whether an error, or one that it comes from, may be due to where the cell runs."""
    for _ in range(DEEP):
        if isinstance(error, PLACE) or any(sign in str(error).lower() for sign in SIGNS):
            return True
        error = error.__cause__ or error.__context__
        if error is None:
            break
    return False
