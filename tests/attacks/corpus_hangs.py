"""Cells and answers that never end. A hang costs its cell; the others keep their points."""

from attack import ALL, accident, cells

cells(
    """
# %% alarms_and_limits_undone: the limits that a process may lift itself are lifted first
import resource, signal
for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
    resource.setrlimit(limit, (resource.getrlimit(limit)[1],) * 2)
signal.alarm(0)
signal.setitimer(signal.ITIMER_REAL, 0)
for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(s, signal.SIG_IGN)
while True: pass

# %% loop_in_a_thread: a thread that is not a daemon: the interpreter waits for it at its end
import threading
def spin():
    while True: pass
threading.Thread(target=spin).start()

# %% loop_in_repr: the last line of a cell is displayed
class Shy:
    def __repr__(self):
        while True: pass
Shy()
""",
    accident(),
)

cells(
    """
# %% loop_at_exit: the notebook is done, and its process does not go
import atexit
@atexit.register
def stay():
    while True: pass

# %% loop_in_del: a finalizer that loops when the namespace is torn down
class Stay:
    def __del__(self):
        while True: pass
stay = Stay()
""",
    accident(),
    "last",
)

cells(
    """
# %% loop_in_c_when_observed
def lora_forward(*args):
    return sum(range(10**12))

# %% error_whose_text_never_ends: the grader asks the exception for its message
class Slow(Exception):
    def __str__(self):
        while True: pass
def lora_forward(*args):
    raise Slow

# %% list_that_never_ends: a subclass of list whose iteration has no end
class Endless(list):
    def __iter__(self):
        while True: yield 1
def lora_forward(*args):
    return Endless([1])

# %% shape_that_never_ends: a tensor whose attributes loop when they are read
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
    accident(ALL - 2),
    "lora_forward",
)


@accident()
def twenty_looping_cells_at_the_end(book):
    """Each has its own limit, all together have another; the exercises came before."""
    for _ in range(20):
        book.last("while True: pass")
