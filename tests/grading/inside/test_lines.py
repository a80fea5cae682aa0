"""Which lines of a cell run in grading when one of them fails, and what is put back after it."""

import gc
import sys

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from labkit.grading.inside import lines
from labkit.grading.inside.runner import run_cell


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`run(cell)` -> (its first error as one line, whether its last line, `done = 1`, ran)."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config)
    shell.showtraceback = lambda *args, **kwargs: None
    errors = lines.prepare(shell)

    def run(cell):
        shell.user_ns.pop("done", None)
        return run_cell(shell, errors, cell + "\ndone = 1"), "done" in shell.user_ns

    return run


FOR_THE_PLACE = {
    "import not_here": "ModuleNotFoundError",
    "import not_here, math\nmath.pi": "ModuleNotFoundError",
    "open('no.csv')": "FileNotFoundError",
    "%load_ext not_here": "ModuleNotFoundError",
    "%no_such_magic": "UsageError",
    "f(1)": "NameError",
    "raise_ = 1\nget_ipython().kernel.x": "AttributeError",
    "def ask():\n    raise EOFError\nask()": "EOFError",
    "def on():\n    raise AssertionError('Torch not compiled with CUDA')\non()": "Assertion",
    "def web():\n    try:\n        1 / 0\n    except Exception:\n        open('no')\nweb()": "File",
    "import math\nmath.sqrt('x')": "TypeError",
}


@pytest.mark.parametrize("cell", FOR_THE_PLACE)
def test_a_line_that_fails_for_the_place_costs_itself(cell, run):
    error, done = run(cell)
    assert error.startswith(FOR_THE_PLACE[cell]) and done


AT_ALL = ["1 / 0", "raise OSError", "assert False", "STOP", "int('x')", "import sys\nsys.exit()"]
AT_ALL += ["import math\nraise ValueError", "import math\ndef f(): pass\nmath.sqrt('x')", "exec(3)"]


@pytest.mark.parametrize("cell", AT_ALL)
def test_a_line_that_fails_anywhere_ends_its_cell(cell, run):
    error, done = run(cell)
    assert error and not done


@pytest.mark.parametrize("magic", ["%%time", "%%capture", "%%capture out\n%%time"])
def test_cells_under_a_magic_run_as_others_do(magic, run):
    error, done = run(f"{magic}\nimport not_here\nx = 1")
    assert error == "ModuleNotFoundError: No module named 'not_here'" and done


def test_below_a_line_that_is_out_of_time_definitions_run(run):
    late = "def late():\n    raise KeyboardInterrupt\nlate()"  # as the supervisor's signal does
    error, done = run(f"{late}\nx = 1\ndef f():\n    return 3")
    assert error.startswith("KeyboardInterrupt") and not done
    assert run("y = f()") == (None, True)
    assert run("x")[0] == "NameError: name 'x' is not defined"


def test_what_a_function_held_when_it_failed_is_free_below(run):
    gone = "import weakref\nclass Thing: pass\nheld = []\n"
    gone += "def f():\n    thing = Thing()\n    held.append(weakref.ref(thing))\n    1 / 0\n"
    run(gone)
    gc.disable()  # what waits for the collector may wait for long
    try:
        assert run("f()") == ("ZeroDivisionError: division by zero", False)
        assert run("assert held[0]() is None") == (None, True)
    finally:
        gc.enable()


def test_a_module_that_was_just_written_is_found(run):
    for n in range(20):  # too fast for the times that folders keep
        run(f"import part{n}")
        assert run(f"open('part{n}.py', 'w').close()")[1]
        assert run(f"import part{n}") == (None, True)
