"""Honest notebooks in disorder. The answers are right: the points stand."""

import copy

from attack import ANSWERS, accident, code_cell, forging, source

STUB = "    raise NotImplementedError"


def _scratch(name, code, why, earned=22):
    def spoil(book):
        book.early(code)

    spoil.__name__, spoil.__doc__ = name, why
    accident(earned)(spoil)


_scratch("error_in_a_scratch_cell", "1 / 0", "the cells after it still run")
_scratch("syntax_error", "def f(:\n", "")
_scratch("indentation_error", "  x = 1\n y = 2", "")
_scratch("name_error", "undefined_name", "")
_scratch("time_magic", "%%time\nx = sum(range(1000))", "")
_scratch("timeit_magic", "%timeit -n 1 -r 1 sum(range(1000))", "")
_scratch("capture_magic", "%%capture out\nprint('hidden')", "")
_scratch("matplotlib_widget", "%matplotlib widget", "ipympl is not installed")
_scratch(
    "matplotlib_inline", "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])", ""
)
_scratch("unknown_magic", "%no_such_magic 3", "")
_scratch("unknown_cell_magic", "%%no_such_magic\nx", "")
_scratch("bash_magic", "%%bash\nls", "")
_scratch("html_magic", "%%html\n<b>hello</b>", "")
_scratch("load_ext", "%load_ext autoreload\n%autoreload 2", "reloads modules before each cell")
_scratch("shell_ls", "!ls", "")
_scratch("shell_pip", "!pip install nothing-of-this-name", "no network: it fails at once or soon")
_scratch("pip_magic", "%pip install -q peft", "")
_scratch("shell_curl", "!curl -s -m 5 http://example.com", "")
_scratch("shell_assigned", "files = !ls\nlen(files)", "")
_scratch(
    "shell_removes_home", "import os\nif os.path.expanduser('~') != '/root':\n    !rm -rf ~/*", ""
)
_scratch("asks_for_input", 'name = input("Your name? ")', "nobody answers")
_scratch("asks_for_a_password", "import getpass\ngetpass.getpass()", "")
_scratch("reads_stdin", "import sys\nsys.stdin.read()", "")
_scratch("breakpoint", "breakpoint()", "a debugger waits for a person")
_scratch("pdb_after_an_error", "%pdb on\n1 / 0", "")
_scratch("debug_magic", "%debug", "")
_scratch("colab_drive", 'from google.colab import drive\ndrive.mount("/content/drive")', "")
_scratch("colab_form", '#@title Settings\nrank = 8 #@param {type:"slider", min:1, max:64}', "")
_scratch("needs_a_gpu", 'torch.zeros(3, device="cuda")', "")
_scratch("nvidia_smi", "!nvidia-smi", "")
_scratch("changes_folder", "import os, tempfile\nos.chdir(tempfile.mkdtemp())", "")
_scratch(
    "removes_its_folder", "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)", ""
)
_scratch("default_dtype", "torch.set_default_dtype(torch.float64)", "")
_scratch("grad_off", "torch.set_grad_enabled(False)", "off for all that follows")
_scratch("many_threads", "torch.set_num_threads(64)", "")
_scratch("seeds_torch", "torch.manual_seed(0)", "")
_scratch("deterministic", "torch.use_deterministic_algorithms(True)", "")
_scratch("anomaly_mode", "torch.autograd.set_detect_anomaly(True)", "")
_scratch(
    "display_options",
    "torch.set_printoptions(precision=10)\nimport pandas as pd\n"
    "pd.set_option('display.max_rows', None)",
    "",
)
_scratch("warnings_are_errors", "import warnings\nwarnings.simplefilter('error')", "")
_scratch(
    "logging_to_debug", "import logging\nlogging.basicConfig(level=logging.DEBUG, force=True)", ""
)
_scratch("repr_raises", "class R:\n    def __repr__(self): raise ValueError\nR()", "")
_scratch(
    "del_raises", "class D:\n    def __del__(self): raise ValueError\nD()\nx = 1", "unraisable"
)
_scratch("html_repr_exits", "class R:\n    def _repr_html_(self): raise SystemExit\nR()", "")
_scratch("widgets", "import ipywidgets as w\n@w.interact(n=(1, 5))\ndef f(n=1): print(n)", "")
_scratch("top_level_await", "import asyncio\nawait asyncio.sleep(0.01)", "")
_scratch(
    "nested_event_loop", "import asyncio\nasyncio.run(asyncio.sleep(0.01))", "fails in Jupyter"
)
_scratch(
    "imports_hidden_checks", "from labkit.checks import lab02", "hidden in grading, a failing cell"
)
_scratch("calls_labkit_start_again", 'import labkit\nlab, check = labkit.start("02_lora")', "")
_scratch("starts_another_lab_too", 'import labkit\n_lab, _check = labkit.start("01_svd")', "")
_scratch(
    "names_that_shadow",
    "list, sum, len, max, str = [1], 3, 4, 5, 'x'",
    "builtins used as names",
    (0, 22),
)
_scratch("shadows_check_and_lab", "check, lab = None, None", "check lines fail; answers are there")
_scratch("star_import", "from math import *\nfrom torch import *", "sum is torch's", (20, 22))
_scratch("question_mark", "torch.nn.Linear?", "the pager")
_scratch("history_and_who", "%who\n%history -n", "")
_scratch("writes_a_file", "%%writefile notes.txt\nhello", "")
_scratch("script_magic", "%%script python3\nprint(1)", "")
_scratch("empty_cells", "", "")
_scratch("only_a_comment", "# nothing", "")


@accident(22)
def no_tags_at_all(book):
    """Colab drops or edits metadata: experiments then are cells that fail, or take too long."""
    for cell in book.cells:
        cell["metadata"] = {}


@accident(22)
def code_cells_shuffled_behind(book):
    """All check lines at the end."""
    checks = [c for c in book.cells if source(c).startswith("check.")]
    book.cells[:] = [c for c in book.cells if c not in checks] + checks


@accident(22)
def check_lines_deleted(book):
    """Grading does not depend on the learner's check lines."""
    book.cells[:] = [c for c in book.cells if not source(c).startswith("check.")]


@accident(22)
def text_deleted(book):
    book.cells[:] = [c for c in book.cells if c["cell_type"] == "code"]


@accident(22)
def every_cell_twice(book):
    book.cells[:] = [copy.deepcopy(c) for c in book.cells for _ in range(2)]


@accident(22)
def answers_moved_to_the_end(book):
    """The order of the definitions is turned round, behind everything else."""
    answers = [book.cell(name) for name in ANSWERS]
    book.cells[:] = [c for c in book.cells if c not in answers] + answers[::-1]


@accident(22)
def all_in_one_cell(book):
    """Every answer in one long cell at the end."""
    answers = [book.cell(name) for name in ANSWERS]
    book.cells[:] = [c for c in book.cells if c not in answers]
    book.last("\n\n\n".join(source(c) for c in answers))


@accident(22)
def cell_split(book):
    """The two functions of one exercise in two cells."""
    first, second = source(book.cell("merge_")).split("\n\n\n")
    at = book.find("merge_")
    book.cells[at : at + 1] = [code_cell(first), code_cell("x = 1"), code_cell(second)]


@accident(22)
def helpers_in_other_cells(book):
    """An answer that calls a function of another cell, which uses a global of a third."""
    book.early("SCALE = 1.0")
    book.early("def product(a, b):\n    return a @ b * SCALE")
    book.replace(
        "lora_forward",
        """
def lora_forward(x, W, A, B, alpha):
    return product(x, W.T) + alpha / len(A) * product(product(x, A.T), B.T)
""",
    )


@accident(22)
def redefined_and_right_at_last(book):
    """The last definition counts."""
    book.early("def lora_forward(x, W, A, B, alpha):\n    return x")


@accident(20)
def redefined_and_wrong_at_last(book):
    book.last("def lora_forward(x, W, A, B, alpha):\n    return x")


@accident(20)
def stub_left_in_one(book):
    """One open exercise costs its own points."""
    book.replace("lora_forward", f"def lora_forward(x, W, A, B, alpha):\n{STUB}")


@accident(19)
def stub_left_in_the_layer(book):
    """2.2 is open, and 2.4, 2.6 and 2.7 build on it."""
    book.replace(
        "LoRALinear", f"class LoRALinear(nn.Module):\n    def __init__(self, *a, **k):\n    {STUB}"
    )


@accident(20)
def answer_deleted(book):
    del book.cells[book.find("lora_forward")]


@accident(20)
def answer_commented_out(book):
    text = source(book.cell("lora_forward"))
    book.replace("lora_forward", "\n".join("# " + line for line in text.splitlines()))


@accident(20)
def answer_in_a_text_cell(book):
    """The cell's type was changed by a stray key."""
    book.cell("lora_forward")["cell_type"] = "markdown"


@accident(20)
def answer_in_a_raw_cell(book):
    book.cell("lora_forward")["cell_type"] = "raw"


@accident((20, 22))
def answer_tagged_as_experiment(book):
    """A tag at the wrong cell: skipped, or run all the same, but nothing else is lost."""
    book.cell("lora_forward")["metadata"] = {"tags": ["experiment"]}


@accident(20)
def answer_with_a_syntax_error(book):
    book.wrap("lora_forward", "def broken(:")


@accident(22)
def error_below_the_answer(book):
    """The function is defined before its cell fails."""
    book.wrap("lora_forward", "lora_forward(1, 2, 3, 4, 5)")


@accident(22)
def answer_in_a_timed_cell(book):
    """%%time runs the cell and keeps its names."""
    book.replace("lora_forward", "%%time\n" + source(book.cell("lora_forward")))


@accident(22)
def answer_in_a_captured_cell(book):
    book.replace("lora_forward", "%%capture\n" + source(book.cell("lora_forward")))


@accident(22)
def kernel_that_does_not_exist(book):
    book.nb["metadata"] = {"kernelspec": {"name": "my-conda-env", "display_name": "mine"}}


@accident((0, 22), ("graded", "unreadable"))
def kernel_of_another_language(book):
    """Metadata alone says R; the cells are Python."""
    book.nb["metadata"] = {"kernelspec": {"name": "ir"}, "language_info": {"name": "R"}}


@accident((0, 22), ("graded", "unreadable"))
def start_line_deleted(book):
    """Nothing names the lab any more: graded by its answers, or a row with a reason."""
    book.cells[:] = [c for c in book.cells if "labkit.start" not in source(c)]


@accident(22)
def start_line_written_differently(book):
    for cell in book.cells:
        if "labkit.start" in source(cell):
            cell["source"] = "from labkit import start\nlab, check = start(  '02_lora' )"


@accident(5, ("graded",))
def imports_deleted(book):
    """No torch in the namespace: 2.5 needs none, nor does 2.7 with the course's own layer."""
    book.cells[:] = [c for c in book.cells if "import torch" not in source(c)]
    for name in ("quiz", "lora_forward", "lora_gradients", "inject"):
        book.replace(name, f"def {name}(*args):\n    return torch.nothing")


@accident(22)
def outputs_with_errors(book):
    """Old outputs and counts stay in the file; they mean nothing."""
    for cell in book.cells:
        if cell["cell_type"] == "code":
            cell["execution_count"] = 99
            cell["outputs"] = [
                {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
            ]


@accident(22)
def attachments_and_html(book):
    """Text cells with HTML and pictures."""
    book.cells.insert(
        0,
        {
            "cell_type": "markdown",
            "metadata": {},
            "source": "<script>evil()</script>![a](attachment:a.png)",
            "attachments": {"a.png": {"image/png": "AAAA"}},
        },
    )


@forging
def html_in_an_answer(book):
    """The feedback page shows the learner's own cell: escaped."""
    book.replace(
        "lora_forward",
        """
lora_forward = lambda x, W, A, B, alpha: x @ W.T  # </pre><script>evil()</script>{{ 7 * 7 }}
""",
    )


@forging
def html_in_an_error(book):
    book.replace(
        "lora_forward",
        """
def lora_forward(*args): raise ValueError("</td><script>evil()</script><img src=x onerror=evil()>")
""",
    )


@forging
def terminal_codes_in_an_error(book):
    """Escape sequences would clear the instructor's screen, or write over another's line."""
    book.replace(
        "lora_forward",
        r"""
def lora_forward(*args): raise ValueError("\x1b[2J\x1b]0;owned\x07\r\x1b[1A✓ passed [bold]x[/bold]")
""",
    )


@forging
def formula_in_a_quiz(book):
    """Text that a spreadsheet would compute."""
    book.replace("quiz", """quiz = lambda: {"q1": "=HYPERLINK(1)", "q2": "@SUM(1)", "q3": "+1"}""")


@accident(15, lab="01_svd")
def lab_1_with_an_error(book):
    """The rows of another lab in the same batch have that lab's exercises."""
    book.early("1 / 0")


@accident(15, lab="01_svd")
def lab_1_with_an_exit(book):
    book.early("import os\nos._exit(0)")
