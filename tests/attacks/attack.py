"""What an attack is: a spoilt notebook or file, the points that it may earn, and why.

An attack on a notebook is a function of a `Book`, an attack on the file a function of a folder that
returns the path it made. `forging` begins with answers that are all wrong, `accident` with answers
that are all right. A forger that gets where it must not sets `won`, and is given a quiz for it.

Most attacks are one cell of code. `cells` takes many of them as one text, written like a lab:

    # %% name_of_the_attack: what goes wrong where a grader falls for it
    its code
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from points import points

from labkit.checks import lab02
from labkit.contract import checks_of

ROOT = Path(__file__).parents[2]
ATTACKS = []  # in the order of the corpus
GOT_THROUGH = """
shipped_code_replaced cells_that_parse_slowly absmax_that_remembers probes_by_a_dict
probes_by_the_loader probes_by_the_class_of_modules probes_from_an_answer files_left files_wanted
times_of_devices_left times_of_devices_wanted full_sockets texts_of_the_reference
undefined_with_a_name_of_its_own message_full_of_names tensor_to_loop_over names_times_functions
"""
ALWAYS = GOT_THROUGH.split()  # whatever choice is made of the others
HEAD = re.compile(r"^# %% (\w+)(?:: (.*))?\n", re.MULTILINE)
ALL = points()
ANSWERS = [check.exercise["names"][0] for check in checks_of(lab02)]  # one cell each
WON = 'if globals().get("won"):\n    quiz = lambda: {"q1": "b", "q2": "c", "q3": "a"}'

# With the grader's own process in sight nothing is isolated: then the attack only leaves a note.
ALONE = """
import os, signal
try:
    os.kill(HOST["pid"], 0)
    open(f'{HOST["notes"]}/{HOST["name"]}', "w")
    raise RuntimeError("not alone")
except ProcessLookupError:
    pass
"""

WRONG = {name: f"{name} = lambda *_, **__: None" for name in ANSWERS}
WRONG |= {
    "lora_forward": "lora_forward = lambda x, W, A, B, alpha: x @ W.T",
    "LoRALinear": """
class LoRALinear(nn.Module):
    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.r, self.scaling = base, r, 1.0
        self.A = nn.Parameter(torch.zeros(r, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, r))

    def forward(self, x):
        return self.base(x)
""",
    "lora_gradients": "lora_gradients = lambda x, W, A, B, alpha, dY: (A * 0 + 1, B * 0 + 1)",
    "inject": "inject = lambda model, targets, r, alpha: 0",
    "step_flops": "step_flops = lambda shapes, n_tokens, r=None: 1",
    "merge_": "merge_ = unmerge_ = lambda layer: None",
    "adapter_state": "adapter_state = lambda model: {}\nload_adapter_ = lambda model, state: None",
    "quiz": 'quiz = lambda: {"q1": "d", "q2": "d", "q3": "d"}',
}


@dataclass
class Attack:
    name: str
    why: str  # what goes wrong where a grader falls for it
    make: object  # a function of a Book, or of a folder where `base` is "file"
    base: str  # "wrong", "solved" or "file"
    earned: tuple  # the points that may stand, lowest and highest
    statuses: tuple
    lab: str
    group: str = ""  # of its corpus; the attacks of one group are graded in one call

    def write(self, folder, host, before=""):
        """Put the submission into `folder`, the name of a notebook with `before`; its path."""
        if self.base == "file":
            return self.make(folder)
        book = Book(self.lab, wrong=self.base == "wrong")
        self.make(book)
        book.first(f"HOST = {host | {'name': self.name}!r}")
        if self.base == "wrong":
            book.last(WON)
        path = folder / f"{before}{self.name}.ipynb"
        path.write_text(book.text(), encoding="utf-8")
        return path


class Book:
    """A lab's notebook, solved, or with answers that are wrong; its cells are a list of dicts."""

    def __init__(self, lab="02_lora", wrong=False, folder="solutions"):
        text = (ROOT / folder / f"{lab}.ipynb").read_text(encoding="utf-8")
        self.lab, self.nb = lab, json.loads(text)
        self.cells = self.nb["cells"]
        for name, code in (WRONG if wrong else {}).items():
            self.replace(name, code)

    def find(self, name):
        """The index of the cell that defines `name`."""
        starts = (f"def {name}(", f"class {name}(", f"{name} =")
        lines = [source(cell).splitlines() for cell in self.cells]
        return next(i for i, cell in enumerate(lines) if any(x.startswith(starts) for x in cell))

    def cell(self, name):
        return self.cells[self.find(name)]

    def replace(self, name, code):
        """Put `code` where the cell is that defines `name`."""
        self.cells[self.find(name)] = code_cell(code)

    def wrap(self, name, code):
        """Add `code` at the end of the cell that defines `name`."""
        self.replace(name, source(self.cell(name)) + "\n" + code)

    def put(self, where, code):
        """Put `code` "first", "early" or "last", or where the cell is that defines `where`."""
        if where in ("first", "early", "last"):
            getattr(self, where)(code)
        else:
            self.replace(where, code)

    def first(self, code):
        """Before everything else, even the line that imports labkit."""
        self.cells.insert(1, code_cell(code))

    def early(self, code):
        """Behind the imports and before the first exercise."""
        at = self.find("lora_forward") if self.lab == "02_lora" else 5
        self.cells.insert(at, code_cell(code))

    def last(self, code):
        self.cells.append(code_cell(code))

    def text(self):
        return json.dumps(self.nb)


def source(cell):
    return "".join(cell["source"])


def code_cell(code, **metadata):
    code = code.strip("\n")
    head = {"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": []}
    return head | {"source": code}


def _add(make, base, earned, statuses, lab="02_lora"):
    earned = earned if isinstance(earned, tuple) else (earned, earned)
    why = " ".join((make.__doc__ or "").split())
    ATTACKS.append(Attack(make.__name__, why, make, base, earned, statuses, lab))
    return make


def forging(make):
    """The answers are wrong: whatever the attack does, it earns nothing."""
    return _add(make, "wrong", 0, ("graded", "crashed", "timeout"))


def accident(earned=ALL, statuses=("graded",), lab="02_lora"):
    """The answers are right: `earned` points stand, a number or (lowest, highest)."""
    return lambda make: _add(make, "solved", earned, statuses, lab)


def file(earned=0, statuses=("unreadable",)):
    """The function makes a file or a folder in the folder that it is given."""
    return lambda make: _add(make, "file", earned, statuses)


def named(name, why, make, kind):
    """Add what `make` does to the corpus; `kind` is one of the three above."""
    make.__name__, make.__doc__ = name, why
    kind(make)


def cell(name, code, why="", kind=accident(), where="early"):  # noqa: B008
    """Add an attack that is one cell of code; `where` as in `Book.put`."""
    named(name, why, lambda book: book.put(where, code), kind)


def cells(text, kind=forging, where="early", before="", after=""):
    """Add an attack for each part of the text; its code stands between `before` and `after`."""
    for name, why, code in parts(text):
        cell(name, before + code + after, why, kind, where)


def parts(text):
    """`(name, why, code)` of each part of a text as `cells` takes it."""
    _, *found = HEAD.split(text)
    return zip(found[::3], found[1::3], found[2::3], strict=True)
