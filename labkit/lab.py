"""A lab in a notebook: its header, its experiments, `reveal`, and the score."""

import ast
import contextlib
import functools
import importlib
import io
from collections.abc import Sequence
from types import ModuleType

import torch
from IPython import get_ipython
from IPython.display import Code, display

from labkit import contract, live, plots, reference, session
from labkit.errors import LabError
from labkit.figures import guess
from labkit.names import DEFINITIONS, statements
from labkit.training import hardware, models

MARKS = {"passed": "✓", "revealed": "◐", "lent": "◐", "failed": "✗", "missing": "○"}
OPEN = {"status": "missing", "earned": 0, "message": ""}  # of an unchecked exercise


class Lab:
    """One notebook's lab: device, precision, seed, and the state of its exercises."""

    def __init__(self, stem: str):
        self.stem, self.seed = stem, 0
        self.device = hardware.device()
        self.dtype = hardware.precision(self.device)
        self._checks = {f.exercise["id"]: f for f in reference.checks(stem)}
        marked = [f.exercise for f in self._checks.values()]
        self.exercises = sorted(marked, key=lambda exercise: contract.natural(exercise["id"]))
        self._guesses = {}

    def header(self) -> str:
        """Two lines: the machine and its precision, then the model and where it comes from."""
        on_gpu = self.device == "cuda"
        n = torch.get_num_threads()
        chip = torch.cuda.get_device_name() if on_gpu else f"{n} CPU thread{'s' if n > 1 else ''}"
        kind = str(self.dtype).removeprefix("torch.")
        if self.dtype == torch.float16:
            kind += ", weights float32"
        note = " · rehearsal: no figure counts" if hardware.rehearsal() else ""
        return (
            f"Lab {int(self.stem[:2])} · {chip} · {kind} · seed {self.seed} · torch "
            f"{torch.__version__.split('+')[0]}{note}\nModel: {models.source()}"
        )

    def predict(self, question: str, given: float | None) -> guess.Guess:
        """Record the learner's guess for an experiment: a number, or None for no guess.

        `guess.draw(ax)` draws the guess in a figure, `guess.compare(result)` prints it next to the
        result, and `score` lists all guesses. This never raises, and guesses earn no points.
        """
        self._guesses[question] = guess.noted(question, given)
        return self._guesses[question]

    def experiment(self, title: str, seconds: float, needs: Sequence[str] = ()) -> bool:
        """Announce an experiment; if exercises in `needs` are open, say so and return False."""
        if self._waits(title, needs):
            return False
        live.announce(title, seconds)
        return True

    def gpu(self, title: str, known: str, needs: Sequence[str] = ()) -> bool:
        """Whether an experiment that needs a GPU runs.

        If not, this prints one line that ends in `known`: what others measured, with the source.
        """
        if self._waits(title, needs):
            return False
        if self.device == "cuda":
            print(f"◆ {title} · on {torch.cuda.get_device_name()}")
            return True
        print(f"◇ {title}: there is no GPU here. {known}")
        return False

    def _waits(self, title, needs):
        open_ids = [id for id in needs if self._status(id) not in contract.STANDS]
        if open_ids:
            names = ", ".join(f"{id} ({self._find(id)['name']})" for id in open_ids)
            helps = reference.solved_cells(self.stem)
            stuck = f' Stuck? lab.reveal("{open_ids[0]}")' if helps else ""
            print(f"◇ {title}: waits for {names}.{stuck}")
        return bool(open_ids)

    def reveal(self, id: str) -> None:
        """Show and run the solved cell of exercise `id`, which then earns no points.

        If the exercise has passed, this only shows the solution: the learner's answer keeps its
        points. In a copy of the course without solutions, the solution is lent: it runs but is
        not shown. LabError for a quiz, or if there is nothing to lend.
        """
        exercise = self._find(id)
        cells = reference.solved_cells(self.stem) or []
        source = next((c for c in cells if exercise["name"] in reference.defined(c)), None)
        if source is None:
            quiz = cells and exercise["name"] == "quiz"
            raise LabError(contract.NO_LETTERS if quiz else contract.WITHHELD)
        solved = reference.solved_book(self.stem)
        if solved:
            display(Code(source, language="python"))
        if self._status(id) == "passed":
            print(f"✓ {id} has already passed: your answer is kept.")
        elif solved:
            get_ipython().run_cell(source, store_history=False).raise_error()
            contract.session.note(exercise, "revealed")
            print(f"◐ {id} is revealed: read the solution, then go on. It earns no points.")
        else:
            contract.session.loans[id] = _lend(id, source, cells)
            contract.session.note(exercise, "lent")
            print(f"◐ {id} {contract.LENT}. If you write your own answer later, it counts.")

    def resume(self) -> None:
        """After a restart, run and check the cells of passed exercises again."""
        found = session.saved(self.stem)
        for exercise in self.exercises if found else ():
            id, shell = exercise["id"], get_ipython()
            if id not in found or self._status(id) in contract.STANDS:
                continue
            if found[id]["status"] != "passed":
                self.reveal(id)
                continue
            for source in found[id]["cells"]:
                shell.run_cell(source, store_history=False)
            try:
                self._checks[id](*(shell.user_ns[name] for name in exercise["names"]))
            except contract.CheckFailed as failure:
                print(f"{failure} (it passed before)")
        if not found:
            print("○ no saved progress for this notebook: what you pass from now on is saved")

    def score(self) -> None:
        """Show tables of the exercises' status and points, and of the guesses and results."""
        rows = [self._row(exercise) for exercise in self.exercises]
        earned, possible = (sum(row[key] for row in rows) for key in ("earned", "points"))
        lines = [
            f"{MARKS[row['status']]} {row['id']}  {row['name']:<22} "
            f"{row['earned']} of {row['points']}  {row['status']}"
            for row in rows
        ]
        guesses = guess.table(list(self._guesses.values()))
        text = "\n".join([*lines, f"{earned} of {possible} points", *guesses])
        _publish(text, "score", {"lab": self.stem, "exercises": rows})

    def headline(self, text: str) -> None:
        """Show the lab's one-line result; `labkit run` adds it to its summary."""
        _publish(f"▶ {text}", "headline", {"headline": text})

    def _status(self, id):
        return contract.session.records.get(id, {}).get("status", "missing")

    def _row(self, exercise):
        row = {key: exercise[key] for key in ("id", "name", "points")}
        record = contract.session.records.get(row["id"], OPEN)
        return row | {key: record[key] for key in OPEN}

    def _find(self, id):
        for exercise in self.exercises:
            if exercise["id"] == id:
                return exercise
        known = ", ".join(exercise["id"] for exercise in self.exercises)
        raise LabError(f"There is no exercise {id!r} in this lab, only {known}")


def start(stem: str) -> tuple[Lab, ModuleType]:
    """`(lab, check)` for lab `stem`, such as "02_lora"; prints the header and seeds torch."""
    hardware.one_card()
    models.hush_libraries()
    plots.use_style()
    check = importlib.import_module(f"labkit.checks.lab{stem[:2]}")
    lab, shell, state = Lab(stem), get_ipython(), contract.session
    state.clear()
    state.reference = functools.partial(reference.reference, stem)
    state.namespace = shell.user_ns if shell else {}
    torch.manual_seed(lab.seed)
    if shell:
        shell.events.register("post_run_cell", _explained)  # once, however often a lab starts
        session.watch(stem)
    names = [name for exercise in lab.exercises for name in exercise["names"]]
    for name in names if shell else ():  # a check before its cell gives no traceback
        state.namespace.setdefault(name, contract.NotRun(name))
    print(lab.header())
    return lab, check


def closing(stem: str) -> None:
    """Run all checks of lab `stem` silently on the notebook's objects; show the score."""
    names = get_ipython().user_ns
    for judge in reference.checks(stem):
        objects = [names.get(n, contract.NotRun(n)) for n in judge.exercise["names"]]
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            judge(*objects)
    Lab(stem).score()


def _publish(text, kind, data):
    """Display `text`, with `data` attached for programs that read the executed notebook."""
    mime = f"application/vnd.labkit.{kind}+json"
    display({"text/plain": text, mime: data}, raw=True)


def _lend(id, source, cells):
    """Define a solved cell's objects in the notebook without showing its source; return them."""
    names = get_ipython().user_ns
    for line in reference.imports(cells, source):
        fresh = {}
        exec(line, fresh)
        del fresh["__builtins__"]
        for name, module in fresh.items():
            names.setdefault(name, module)
    exec(compile(source, f"<lent {id}>", "exec"), names)
    return [names[name] for name in sorted(reference.defined(source))]


def _explained(result):
    """Below a NameError, print which experiment defines the name, and what to run."""
    error = result.error_in_exec
    if isinstance(error, NameError) and error.name:
        print(_advice(error.name, get_ipython().history_manager.input_hist_parsed))


def _advice(name: str, cells: list[str]) -> str:
    """Advice on what to run to define `name`, such as an unfinished experiment in `cells`."""
    for cell in reversed(cells):
        for title, names in _experiments(cell):
            if name in names:
                return (
                    f"◇ {name} is defined by the experiment “{title}”, which did not finish: "
                    "run its cell again"
                )
    return (
        f"◇ If a cell above defines {name}, run that cell first "
        "(in JupyterLab: Run, then Run All Above Selected Cell)"
    )


def _experiments(cell):
    """Yield `(title, names it defines)` for each experiment in a cell."""
    for node in statements(cell):
        test = node.test if isinstance(node, ast.If) else None
        if isinstance(test, ast.Call) and ast.unparse(test.func) in ("lab.experiment", "lab.gpu"):
            inner = [one for statement in node.body for one in ast.walk(statement)]
            names = {n.id for n in inner if isinstance(n, ast.Name) and type(n.ctx) is ast.Store}
            names |= {n.name for n in inner if isinstance(n, DEFINITIONS)}
            yield ast.literal_eval(test.args[0]), names
