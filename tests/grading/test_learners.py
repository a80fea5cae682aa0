"""What learners do to a notebook, and which answers are found in it all the same."""

import json

import pytest
from submissions import FLOPS, FORWARD, QUIZ, START, STUB, notebook

from labkit.contract import LENT, WITHHELD
from labkit.reference import reference


def test_the_last_definition_wins_and_helpers_live_anywhere(graded):
    helper = "def update(x, A, B):\n    return x @ A.T @ B.T"
    wrong = "def lora_forward(x, W, A, B, alpha):\n    return x @ W.T"
    right = f"{wrong} + alpha / len(A) * update(x, A, B)"
    assert graded(wrong, right, helper)[1]["2.1"]["status"] == "passed"
    assert graded(helper, right, wrong)[1]["2.1"]["status"] == "failed"


def test_a_name_that_a_later_cell_takes_costs_no_answer(graded):
    uses = "import math\n" + FORWARD.replace("len(A)", "max(math.pow(len(A), 1), ONE)")
    _, records = graded("ONE = 1", uses, "max = 3; math, ONE = None, 'x'")
    assert records["2.1"]["status"] == "passed"
    assert records["2.1"]["message"].endswith("but cells below reuse its names: ONE, math, max")
    wrong = uses.replace("(A), 1", "(A), 2")
    assert graded("ONE = 1", wrong, "max = 3")[1]["2.1"]["status"] == "failed"


def test_a_cell_that_fails_costs_itself_only(graded):
    _, records = graded(START, "1 / 0", "x = = 1", FLOPS, "step_flops(1)", QUIZ)
    assert records["2.5"]["status"] == records["2.8"]["status"] == "passed"


def test_what_follows_from_a_cell_that_failed_names_that_cell(graded):
    uses = "def lora_forward(x, W, A, B, alpha):\n    return sns.nothing(x)"
    _, records = graded(START, "import plotly as sns", "raise KeyError\nroot = 2", uses, FLOPS)
    cause = "(sns should come from code cell 2, which raised ModuleNotFoundError: No module named"
    assert cause in records["2.1"]["message"]
    layer = "class LoRALinear(sns.Module): pass"
    _, records = graded(START, "import plotly as sns", layer)
    assert records["2.2"]["message"].startswith("LoRALinear is not defined: its cell raised Name")
    assert cause in records["2.2"]["message"]


def test_a_name_of_an_experiment_is_told(graded):
    uses = "def step_flops(shapes, n_tokens, r=None):\n    return best"
    _, records = graded(START, "best = 3", uses, tags=[1])
    assert "(best comes from code cell 2, an experiment" in records["2.5"]["message"]


def test_checks_and_reveals_in_cells_are_silent_and_give_nothing(graded):
    cell = "check.matches_dense(lora_forward)\nlab.score()\nlab.headline('x')\n"
    cell += "assert lab.experiment('x', 1, needs=['2.1']) is lab.gpu('x', 'y', needs=[]) is False\n"
    cell += "guess = lab.predict('how many?', 3)\nguess.compare(1)\nassert guess.value is None\n"
    cell += "lab.reveal('2.1')\n"  # what stands below it is run
    _, records = graded(START, FORWARD, cell + FLOPS, "lab.reveal('2.8')")
    assert records["2.5"]["status"] == "passed"
    assert (records["2.8"]["status"], records["2.8"]["earned"]) == ("revealed", 0)


def printed(text):
    return [{"output_type": "stream", "name": "stdout", "text": text}]


SOLUTION = f"# as the course has it\n{reference('02_lora', '2.5')}"
REFUSED = [{"output_type": "error", "ename": "LabError", "evalue": WITHHELD, "traceback": []}]


@pytest.mark.parametrize(
    "answer, outputs, status, told",
    [
        (FLOPS, printed("◐ 2.5 is revealed: read it, then go on."), "revealed", ""),
        (FLOPS, printed([f"◐ 2.5 {LENT}.\n"]), "passed", ""),
        (FLOPS, REFUSED, "passed", ""),
        (FLOPS, [], "passed", ""),  # cleared: an answer of one's own counts
        (SOLUTION, [], "revealed", "code cell 3 reveals the solution"),
        (STUB, printed([f"◐ 2.5 {LENT}.\n"]), "missing", "the course lent this solution"),
    ],
)
def test_what_a_reveal_showed_decides_what_counts(answer, outputs, status, told, graded):
    book = json.loads(notebook(START, answer, 'lab.reveal("2.5")'))
    book["cells"][-1]["outputs"] = outputs
    record = graded(data=json.dumps(book).encode())[1]["2.5"]
    assert (record["status"], record["earned"]) == (status, 2 if status == "passed" else 0)
    assert told in record["message"]


def test_experiments_are_skipped_unless_an_answer_is_in_them(graded):
    row, _ = graded(START, "import os\nos._exit(1)", "x = 3\n" + FLOPS, tags=[1, 2])
    assert row["earned"] == 2 and "reason" not in row


def test_a_file_that_a_cell_writes_is_there_for_an_exercise(graded):
    cells = ["open('factor', 'w').write('1')", "FACTOR = int(open('factor').read())"]
    assert graded(*cells, FLOPS.replace("n_tokens *", "FACTOR * n_tokens *"))[0]["earned"] == 2


NEAR = "def lora_fwd(x, W, A, B, alpha):\n    return x"
LATE = f"raise ValueError('no data')\n{FLOPS}"


@pytest.mark.parametrize(
    "id, cells, status, message",
    [
        ("2.1", [], "missing", "lora_forward is not defined"),
        ("2.1", [NEAR], "missing", "lora_forward is not defined; did you mean lora_fwd?"),
        ("2.5", [STUB], "missing", ""),
        ("2.5", [LATE], "missing", "its cell raised ValueError: no data"),
        ("2.5", [STUB, "def step_flops(shapes, r:"], "missing", "its cell raised SyntaxError: "),
        ("2.5", ["def step_flops(shapes):\n  x = (1"], "missing", "'(' was never closed (line 2)"),
        ("2.8", ["quiz = {'q1': 'a'}"], "failed", "is it still a function, defined with def?"),
    ],
)
def test_what_is_not_there_has_a_reason(graded, id, cells, status, message):
    _, records = graded(START, *cells)
    assert records[id]["status"] == status
    assert message in records[id]["message"] and bool(message) == bool(records[id]["message"])


def test_an_answer_in_a_cell_of_text_is_named(graded):
    book = json.loads(notebook(START))
    book["cells"].append({"cell_type": "markdown", "metadata": {}, "source": FLOPS})
    _, records = graded(data=json.dumps(book).encode())
    assert "a cell that is not a code cell" in records["2.5"]["message"]


STATES = ["torch.is_grad_enabled()", "torch.get_default_dtype()", "torch.get_default_device()"]
STATES += ["torch.is_inference_mode_enabled()", "torch.is_autocast_enabled('cpu')", "np.geterr()"]
STATES += ["torch.is_anomaly_enabled()", "list(warnings.filters)", "sum", "signal.getitimer(0)"]
SWITCHES = """
torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64)
torch.device("meta").__enter__()
mode = torch.inference_mode()
mode.__enter__()
torch.set_autocast_enabled("cpu", True)
np.seterr(all="raise")
torch.autograd.set_detect_anomaly(True)
warnings.simplefilter("error")
builtins.sum = max
signal.alarm(60)
"""


def test_what_a_cell_switched_is_put_back_before_an_exercise(graded):
    state = f"[{', '.join(STATES)}]"
    look = f"import builtins, signal, torch, warnings\nimport numpy as np\nbefore = {state}"
    switch = f"{SWITCHES}changed = [a != b for a, b in zip(before, {state})]"
    wrong = f"[i for i in range({len(STATES)}) if now[i] != before[i] or not changed[i]]"
    peek = f"    now = {state}\n    assert not {wrong}, {wrong}\n"
    _, records = graded(look, switch, FLOPS.replace("):\n", f"):\n{peek}", 1))
    assert records["2.5"]["status"] == "passed", records["2.5"]["message"]
