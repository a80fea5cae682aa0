"""Cells and answers that never end. A hang costs its cell; the others keep their points."""

from attack import ANSWERS, accident

DEAF = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
"""


@accident(22)
def loop_in_a_scratch_cell(book):
    """A loop that Ctrl-C would end."""
    book.early("while True:\n    pass")


@accident(22)
def loop_that_catches_every_interrupt(book):
    """KeyboardInterrupt, and whatever else a limit raises, is swallowed."""
    book.early("while True:\n    try:\n        while True: pass\n    except BaseException: pass")


@accident(22)
def loop_in_c(book):
    """No bytecode runs, so no Python signal handler does."""
    book.early("sum(range(10**12))")


@accident(22)
def regex_that_backtracks(book):
    """The re module holds the GIL for years."""
    book.early('import re\nre.match(r"(a+)+$", "a" * 60 + "b")')


@accident(22)
def sleep_with_signals_blocked(book):
    """Every signal that can be blocked is."""
    book.early(DEAF + "import time\ntime.sleep(600)")


@accident(22)
def alarms_and_limits_undone(book):
    """The limits that a process may lift itself are lifted first."""
    book.early("""
import resource, signal
for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
    resource.setrlimit(limit, (resource.getrlimit(limit)[1],) * 2)
signal.alarm(0)
signal.setitimer(signal.ITIMER_REAL, 0)
for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(s, signal.SIG_IGN)
while True: pass
""")


@accident(22)
def loop_at_exit(book):
    """The notebook is done, and its process does not go."""
    book.last("import atexit\n@atexit.register\ndef stay():\n    while True: pass")


@accident(22)
def loop_in_del(book):
    """A finalizer that loops when the namespace is torn down."""
    book.last("class Stay:\n    def __del__(self):\n        while True: pass\nstay = Stay()")


@accident(22)
def loop_in_a_thread(book):
    """A thread that is not a daemon: the interpreter waits for it at its end."""
    book.early(
        "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin).start()"
    )


@accident(22)
def deadlock(book):
    """Waits for itself."""
    book.early("import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()")


@accident(22)
def await_forever(book):
    """Top-level await runs in the shell's event loop."""
    book.early("import asyncio\nawait asyncio.sleep(100_000)")


@accident(22)
def loop_in_repr(book):
    """The last line of a cell is displayed."""
    book.early("class Shy:\n    def __repr__(self):\n        while True: pass\nShy()")


@accident(22)
def twenty_looping_cells_at_the_end(book):
    """Each has its own limit, all together have another; the exercises came before."""
    for _ in range(20):
        book.last("while True: pass")


@accident(20)
def loop_when_observed(book):
    """The cell ends at once, its function does not."""
    book.replace("lora_forward", "def lora_forward(*args):\n    while True: pass")


@accident(20)
def loop_in_c_when_observed(book):
    book.replace("lora_forward", "def lora_forward(*args):\n    return sum(range(10**12))")


@accident(20)
def deaf_when_observed(book):
    """Blocks all signals, then catches everything in an endless loop."""
    book.replace(
        "lora_forward",
        f"""
def lora_forward(*args):
    exec({DEAF!r})
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    )


@accident((19, 22))
def slow_and_right(book):
    """A quiz that sleeps half a second is not a hang."""
    book.replace(
        "quiz",
        """
def quiz():
    import time
    time.sleep(0.5)
    return {"q1": "b", "q2": "c", "q3": "a"}
""",
    )


@accident(0, ("graded", "timeout"))
def loop_in_every_exercise(book):
    """Eight observations that hang must not take eight times for ever."""
    for name in ANSWERS:
        book.replace(name, f"def {name}(*args):\n    while True: pass")
    book.last("unmerge_, load_adapter_ = merge_, adapter_state")


@accident(20)
def error_whose_text_never_ends(book):
    """The grader asks the exception for its message."""
    book.replace(
        "lora_forward",
        """
class Slow(Exception):
    def __str__(self):
        while True: pass
def lora_forward(*args):
    raise Slow
""",
    )


@accident(20)
def generator_that_never_ends(book):
    """A check that lists the result would wait for ever."""
    book.replace("lora_forward", "def lora_forward(*args):\n    while True: yield 1")


@accident(20)
def list_that_never_ends(book):
    """A subclass of list whose iteration has no end."""
    book.replace(
        "lora_forward",
        """
class Endless(list):
    def __iter__(self):
        while True: yield 1
def lora_forward(*args):
    return Endless([1])
""",
    )


@accident(20)
def shape_that_never_ends(book):
    """A tensor whose attributes loop when they are read."""
    book.replace(
        "lora_forward",
        """
class Shy(torch.Tensor):
    @property
    def shape(self):
        while True: pass
    def detach(self):
        while True: pass
    @classmethod
    def __torch_function__(cls, *args, **kwargs):
        while True: pass
def lora_forward(x, W, A, B, alpha):
    return (x @ W.T).as_subclass(Shy)
""",
    )


@accident(15, lab="01_svd")
def loop_in_lab_1(book):
    """The same in another lab: a scratch cell that loops, and nothing lost."""
    book.early("while True: pass")
