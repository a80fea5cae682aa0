"""Run a cell's lines as Jupyter does, but continue after failures caused by the environment.

A submission was written with a network, a GPU, a keyboard and other libraries. A line that fails
without them loses only what it would have defined, and the rest of its cell runs. After any other
failure the cell ends, as in Jupyter. After a timeout only definitions run, which take no time.
"""

import ast
import subprocess
import sys

from IPython.core.error import StdinNotImplementedError, UsageError

PLACE = (ImportError, OSError, EOFError, MemoryError, Warning, subprocess.SubprocessError)
PLACE += (UsageError, StdinNotImplementedError)
# parts of error messages without a class of their own
SIGNS = ("cuda", "nvidia", "gpu", "mps ", "allocate memory", "module '", "no kernel", "'kernel'")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
DEEP = 8  # causes of an error to inspect


def prepare(shell: object) -> list:
    """Make `shell` run cells this way; return the list to which it adds a cell's errors."""
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
    sys.path.insert(0, "")  # find modules next to the notebook, as in Jupyter
    return errors


def _split(nodes):
    """`import a, b` as two lines, so that b is imported without a."""
    split = []
    for node in nodes:
        parts = node.names if isinstance(node, ast.Import) else []
        split += [ast.copy_location(ast.Import([part]), node) for part in parts] or [node]
    return split


def _goes_on(node, error, nodes):
    """Whether the rest of a cell's `nodes` runs after `node` has raised `error`."""
    if isinstance(node, ast.Raise | ast.Assert) or isinstance(error, SystemExit):
        return False
    if type(error) is NameError:  # caused by another line, unless it is `STOP`
        return not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Name))
    if isinstance(error, KeyboardInterrupt) or _for_the_place(error):
        return True
    if any(isinstance(n, ast.Name) and n.id == "get_ipython" for n in ast.walk(node)):
        return True  # a magic or a shell command
    kinds = {type(one) for one in nodes}  # a cell with imports and no definitions is set-up
    return bool(kinds & {ast.Import, ast.ImportFrom}) and not kinds & set(DEFINITIONS)


def _for_the_place(error):
    """Whether an error, or one of its causes, may be due to the environment."""
    for _ in range(DEEP):
        if isinstance(error, PLACE) or any(sign in str(error).lower() for sign in SIGNS):
            return True
        error = error.__cause__ or error.__context__
        if error is None:
            break
    return False
