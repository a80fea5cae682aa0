"""The process that runs cells and its supervisor, without walls: orders of events, and time."""

import contextlib
import errno
import multiprocessing
import os
import signal
import socket
import time

import pytest

from labkit.grading.inside import cells as holding
from labkit.grading.inside import clock as clocks
from labkit.grading.inside import runner, supervisor, tree, zygote
from labkit.grading.inside.cells import Cells
from labkit.grading.inside.clock import Clock
from labkit.grading.judge import submission
from labkit.grading.limits import Limits

QUICK = Limits(cell_seconds=5, total_seconds=60)


@pytest.fixture
def hold(monkeypatch, tmp_path):
    """`hold(*sources)` -> Cells that were run; what they started ends with the test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    held = []

    def run(*sources, needed=(), seconds=120, limits=QUICK):
        held.append(Cells(list(sources), set(needed), seconds, zygote._shell(), limits))
        held[0].run()
        return held[0]

    yield run
    for cells in held:
        cells.end()


# --- orders of events -----------------------------------------------------------------------

THREAD = "import threading, time\n"
THREAD += "threading.Thread(target=time.sleep, args=[60], daemon=True).start()"


def _slow(monkeypatch, name):
    real = getattr(runner, name)

    def slow(*args, **what):
        real(*args, **what)
        time.sleep(0.4)

    monkeypatch.setattr(runner, name, slow)


@pytest.mark.parametrize("slow", ["_send", "kill"])
def test_going_on_without_threads_loses_nothing_whatever_comes_first(slow, hold, monkeypatch):
    """There is a pause behind the word of the new process, or behind the end of the old one."""
    _slow(monkeypatch, slow)
    cells = hold(THREAD, "x = 7", "assert x == 7")
    before = cells.pid
    cells.settle()
    assert cells.pid != before and tree.threads(cells.pid) == 1
    cells._run(2, 5)
    assert cells.messages == {}


def test_the_supervisor_may_be_the_first_to_end_the_old_process(hold, monkeypatch):
    _slow(monkeypatch, "_send")
    cells = hold(THREAD, "x = 7", "assert x == 7")
    before = cells.pid

    def kill(keep=None):
        os.kill(before, signal.SIGKILL)
        os.waitpid(before, 0)

    with monkeypatch.context() as patch:
        patch.setattr(tree, "kill_but", kill)
        cells.settle()
    time.sleep(0.6)
    assert tree.alive(cells.pid)
    cells._run(2, 5)
    assert cells.messages == {}


@pytest.mark.parametrize("slow", ["_send", "kill"])
def test_cells_in_processes_of_their_own_lose_nothing(slow, hold, monkeypatch):
    _slow(monkeypatch, slow)
    cells = hold("x = 7", "import os\nos._exit(0)", "x += 1", "assert x == 8")
    assert set(cells.messages) == {1} and cells.apart


def test_a_message_of_a_process_that_has_ended_is_read(hold):
    """It is told, and its process gone, between two looks at either."""
    cells = hold("x = 7")
    cells.order(settle=True)
    assert cells.new_pid() > 1
    ended = [-5]  # no such process
    cells.order(run=0, apart=False)
    time.sleep(0.5)
    assert cells.answer(Clock(5, time.monotonic() + 60), *ended)["done"] == 0


# --- time -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _busy(core, n):
    """`n` processes that compute on a core."""
    fork = multiprocessing.get_context("fork")
    spin = lambda: [os.sched_setaffinity(0, {core}), [0 for _ in iter(int, 1)]]  # noqa: E731
    busy = [fork.Process(target=spin, daemon=True) for _ in range(n)]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


@pytest.fixture
def one_core():
    """The core that this process and its children have for the test."""
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    yield core
    os.sched_setaffinity(0, before)


def test_waiting_for_a_core_does_not_count(hold, one_core):
    """A second and a half of work takes three and more beside others, and has a limit of two."""
    limits = Limits(cell_seconds=2, total_seconds=60, crowding=50)
    work = "import time\nend = time.process_time() + 1.5\nwhile time.process_time() < end: pass"
    with _busy(one_core, 4):
        cells = hold(work, "x = 1", limits=limits)
    assert cells.messages == {}


def test_computing_and_sleeping_count_beside_others_too(hold, one_core):
    limits = Limits(cell_seconds=0.5, total_seconds=60, crowding=50)
    with _busy(one_core, 2):
        cells = hold("while True: pass", "import time\ntime.sleep(60)", "x = 1", limits=limits)
    assert {index: how for index, (how, _) in cells.messages.items()} == {
        0: "timeout",
        1: "timeout",
    }


EACH = [n / 20 for n in range(1, 101)]  # looks at a clock in five seconds


@pytest.mark.parametrize(
    "seconds, looks, used, up",  # looks: at, computed until then, ready
    [
        (1, [(at, at / 10, True) for at in EACH], 0.5, False),  # it waited for a core
        (1, [(at, 0, False) for at in EACH], 5, True),  # it slept
        (6, [(at, 4 * at, True) for at in EACH], 5, False),  # four processes at a time
        (1, [(30, 0, False)], clocks.STEP, False),  # we were not asked for long
        (1, [(100, 0, True)], 0, True),  # its time by the clock was 99 seconds
    ],
)
def test_what_a_clock_counts(seconds, looks, used, up, monkeypatch):
    times = iter([0, *(at for at, *_ in looks)])
    pulses = iter([(0, False), *(look[1:] for look in looks)])
    monkeypatch.setattr(clocks.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(tree, "pulse", lambda *known: next(pulses))
    clock = Clock(seconds, 99)
    over = [clock.over() for _ in looks]
    assert clock.used == pytest.approx(used) and over[-1] == up


SLEEP = "import time\ntime.sleep(0.6)\n"
SLOW = Limits(cell_seconds=0.9, total_seconds=1.5)


def test_cells_that_exercises_need_have_their_time_when_others_have_used_it_up(hold):
    cells = hold(*[SLEEP] * 7, f"{SLEEP}x = 7", f"{SLEEP}assert x == 7", needed={7, 8}, limits=SLOW)
    assert {how for how, _ in cells.messages.values()} == {"timeout"}
    assert cells.messages.keys() < set(range(7)) and 6 in cells.messages


def test_where_time_is_short_a_cell_that_nobody_needs_has_little(hold, monkeypatch):
    monkeypatch.setattr(holding, "LITTLE", 0.2)
    cells = hold(*[SLEEP] * 3, SLEEP, "x = 7", "assert x == 7", limits=SLOW)
    assert cells.messages == {3: ["timeout", "there was little time left for this cell"]}


def test_cells_end_in_time_for_the_exercises(hold):
    begun = time.monotonic()
    cells = hold(*[SLEEP] * 40, needed=range(40), seconds=3)
    assert time.monotonic() - begun < 20
    assert cells.messages[39] == ["timeout", "there was no time left for this cell"]
    assert 0 not in cells.messages


def test_which_cells_an_exercise_needs():
    cells = {
        "import numpy as np": True,  # used by the answer
        "import os": False,
        "import numpy as np\nnp.ones(4)": False,  # it is there
        "FACTOR = 2": True,  # used by a helper
        "def helper(x):\n    y = FACTOR\n    return x * y": True,
        "y = 1\nprint(helper(2))": False,  # another y
        "class Base:\n    pass": True,
        "class answer(Base):\n    def f(self): return helper(np.ones(3))": True,
        "answer.f.note = 3": True,
        "table = {}": True,
        "table['x'] = 1": True,
        "table.update(x=2)": True,
        "answer.g = lambda self: table": True,
        "if FACTOR:\n    from sys import path as FACTOR": True,
        "for i in range(10):\n    answer()": False,
        "files = !ls": False,
        "x = = 1": True,  # nobody knows
        "%%time\nfor step in range(3): pass": False,
        "def change():\n    global FACTOR\n    FACTOR = 3": True,
    }
    needed = submission.Submission(list(cells)).needed({"answer"})
    assert {source: i in needed for i, source in enumerate(cells)} == cells


def test_what_cells_need_is_found_in_time():
    chain = [f"def f{i}(): return f{i + 1}()" for i in range(4_000)]
    assert submission.Submission(chain).needed({"f0"}) == set(range(4_000))


def test_where_no_descriptor_can_be_sent_nobody_is_said_to_have_ended(hold, monkeypatch):
    """A neighbour may have used them up: it is waited for, but not for a submission's own."""
    cells = hold("x = 7")
    asked = []

    def refused(*given):
        asked.append(given)
        raise OSError(errno.ETOOMANYREFS, "too many references")

    monkeypatch.setattr(socket, "send_fds", refused)
    monkeypatch.setattr(tree, "under_way", lambda: 300 * (len(asked) > 2))
    with pytest.raises(holding.Crowded, match="descriptors in flight"):
        cells.order(fds=[0], serve=True)
    assert len(asked) == 3, "a neighbour's were waited for, its own were not"
    monkeypatch.setattr(cells, "deadline", 0)
    with pytest.raises(holding.Crowded):
        cells.order(fds=[0], serve=True)
    assert tree.alive(cells.pid)


def test_the_time_of_an_exercise_begins_with_the_process_that_answers(hold, monkeypatch):
    """To have one may take long, where others have all descriptors in flight."""
    cells = hold("x = 7")
    real = cells.order

    def late(**order):
        time.sleep(0.5)
        real(**order)

    monkeypatch.setattr(cells, "order", late)
    answers = supervisor.Answers(cells, QUICK)
    answers.code = b""
    began = time.monotonic()
    answers.begin()
    answers._fork()
    answers.line.close()
    assert answers.clock.end - began >= 0.5 + QUICK.crowding * QUICK.exercise_seconds
