"""Memory, disk, output, processes and answers without measure. All are bounded: a sandbox that
fails costs this machine some gigabytes for some seconds, not its life."""

from attack import Book, accident, file

EAT = """
def eat(step=256 << 20, most=8 << 30):
    kept = []
    while sum(map(len, kept)) < most:
        free = next(int(l.split()[1]) for l in open("/proc/meminfo") if "MemAvailable" in l)
        if free < 3 << 20:  # in KiB: the machine itself comes first
            raise MemoryError
        kept.append(bytearray(b"x") * step)
    return kept
"""


@accident(22)
def memory_in_a_scratch_cell(book):
    """8 GB in steps: the limit ends the cell, not the machine."""
    book.early(EAT + "eat()")


@accident(20)
def memory_when_observed(book):
    book.replace("lora_forward", EAT + "lora_forward = lambda *args: eat()")


@accident(22)
def memory_kept_by_a_process_of_its_own(book):
    """A child is under the same limit, or its memory counts too."""
    book.early(EAT + "import os\nif not os.fork():\n    eat()\n    os._exit(0)\nos.wait()")


@accident(22)
def tensor_of_ten_terabytes(book):
    """Asks once for more than there is."""
    book.early("torch.empty(10**13)")


@accident(22, ("graded",))
def disk_flood(book):
    """2 GB into the temporary folder and beside the notebook."""
    book.early("""
import os, tempfile
for folder in (tempfile.gettempdir(), os.getcwd(), "/dev/shm", "/var/tmp"):
    try:
        with open(f"{folder}/lora-attack-{HOST['name']}", "wb") as f:
            for _ in range(128): f.write(bytes(4 << 20))
    except OSError:
        pass
""")


@accident(22)
def file_flood(book):
    """50,000 small files."""
    book.early("""
import os, tempfile
folder = tempfile.mkdtemp(prefix="lora-attack-")
for i in range(50_000):
    with open(f"{folder}/{i}", "w") as f: f.write("x")
""")


@accident(22)
def sparse_file(book):
    """A terabyte that is not there."""
    book.early("import tempfile\nf = tempfile.TemporaryFile()\nf.truncate(1 << 40)")


@accident(22)
def output_flood(book):
    """200 MB through print."""
    book.early('for _ in range(200):\n    print("x" * (1 << 20))')


@accident(22)
def raw_output_flood(book):
    """200 MB straight to the descriptors, round whatever captures print."""
    book.early("""
import os
for _ in range(100):
    for fd in (1, 2):
        try: os.write(fd, b"x" * (1 << 20))
        except OSError: pass
""")


@accident(22)
def display_flood(book):
    """10,000 pictures' worth of display calls."""
    book.early("for _ in range(10_000):\n    display({'text/html': 'x' * 5_000}, raw=True)")


@accident((20, 22))
def output_flood_when_observed(book):
    """The answer is right, and 100 MB of text come with it."""
    book.wrap(
        "lora_forward",
        """
def loud(f):
    def g(*args):
        for _ in range(100): print("x" * (1 << 20))
        return f(*args)
    return g
lora_forward = loud(lora_forward)
""",
    )


@accident(22)
def logging_flood(book):
    """100,000 warnings."""
    book.early(
        "import warnings\nwarnings.simplefilter('always')\n"
        "for i in range(100_000): warnings.warn(f'no {i}')"
    )


@accident(22)
def fork_storm(book):
    """2,000 processes at most, 10 seconds at most."""
    book.early("""
import os, time
for _ in range(2_000):
    try: child = os.fork()
    except OSError: break
    if not child:
        time.sleep(10)
        os._exit(0)
""")


@accident(22)
def fork_tree(book):
    """Each child forks too: 2 ** 10 processes at most."""
    book.early("""
import os, time
def grow(depth):
    for _ in range(depth):
        try: child = os.fork()
        except OSError: break
        if not child:
            grow(depth - 1)
            time.sleep(10)
            os._exit(0)
        depth -= 1
grow(10)
""")


@accident(22)
def thread_storm(book):
    """3,000 threads that sleep."""
    book.early("""
import threading, time
try:
    for _ in range(3_000): threading.Thread(target=time.sleep, args=(10,), daemon=True).start()
except RuntimeError: pass
""")


@accident(22)
def shell_storm(book):
    """300 programs that sleep."""
    book.early("""
import subprocess
try:
    for _ in range(300): subprocess.Popen(["sleep", "10"])
except OSError: pass
""")


@accident(22)
def descriptor_storm(book):
    """Opens files until no descriptor is left."""
    book.early("""
kept = []
try:
    while len(kept) < 100_000: kept.append(open("/dev/null"))
except OSError: pass
""")


def _answer(name, code, why, earned=20):
    """`lora_forward` returns what the expression `code` gives."""

    def spoil(book):
        book.replace("lora_forward", f"def lora_forward(x, W, A, B, alpha):\n    return {code}")

    spoil.__name__, spoil.__doc__ = f"answer_{name}", why
    accident(earned)(spoil)


_answer("stride_0", "torch.zeros(1).expand(10**12)", "4 TB once it is cloned")
_answer("stride_0_numel", "torch.zeros(1).expand(2**31, 2**31)", "2 ** 62 elements, an overflow")
_answer("two_gigabytes", "torch.zeros(500_000_000)", "more than an answer may be")
_answer("text_of_50_mb", '"x" * 50_000_000', "")
_answer("int_of_100_000_digits", "10 ** 100_000", "Python refuses to print or read it")
_answer("list_of_ten_million", "[0] * 10_000_000", "")
_answer("list_in_itself", "(lambda a: a.append(a) or a)([])", "no end to descend to")
_answer("dict_in_itself", "(lambda a: a.update(a=a) or a)({})", "")
_answer("deep_list", "__import__('functools').reduce(lambda a, _: [a], range(100_000), 0)", "")
_answer(
    "wide_tree",
    "__import__('functools').reduce(lambda a, _: [a] * 10, range(12), 0)",
    "ten lists in memory, 10 ** 12 numbers once they are written down",
)
_answer("many_tensors", "[torch.zeros(1)] * 2_000_000", "")
_answer("error_of_50_mb", "exec('raise ValueError(\"x\" * 50_000_000)')", "a message to cut")
_answer("error_name_of_1_mb", "exec('raise type(\"E\" * 10**6, (Exception,), {})')", "")
_answer("many_dimensions", "torch.zeros([1] * 1000)", "")


@accident(19)
def quiz_of_50_mb(book):
    """The letter of a question is 50 MB long."""
    book.replace("quiz", 'quiz = lambda: {"q1": "b" * 50_000_000, "q2": "c", "q3": "a"}')


@file(22, ("graded",))
def notebook_of_10_mb(folder):
    """Outputs with pictures in them are ordinary."""
    return _write(
        folder,
        "notebook_of_10_mb",
        lambda book: book.cells[5]["outputs"].append(
            {"output_type": "display_data", "metadata": {}, "data": {"image/png": "A" * 10_000_000}}
        ),
    )


@file((0, 22), ("graded", "unreadable"))
def notebook_of_200_mb(folder):
    """Beyond what anybody hands in: graded, or a row with a reason."""
    return _write(
        folder,
        "notebook_of_200_mb",
        lambda book: book.cells[5]["outputs"].append(
            {"output_type": "stream", "name": "stdout", "text": "A" * 200_000_000}
        ),
    )


@file((0, 22), ("graded", "timeout", "unreadable"))
def notebook_of_10_000_cells(folder):
    """Nobody writes them by hand."""

    def add(book):
        for i in range(10_000):
            book.last(f"x_{i} = {i}")

    return _write(folder, "notebook_of_10_000_cells", add)


@file(22, ("graded",))
def cell_of_5_mb(folder):
    """A long literal in one cell."""
    return _write(folder, "cell_of_5_mb", lambda book: book.early(f'text = "{"x" * 5_000_000}"'))


@file((20, 22), ("graded",))
def cell_that_the_parser_dies_of(folder):
    """Brackets nested a hundred thousand deep."""
    return _write(folder, "cell_that_the_parser_dies_of", lambda book: book.early("(" * 100_000))


def _write(folder, name, spoil):
    book = Book()
    spoil(book)
    path = folder / f"{name}.ipynb"
    path.write_text(book.text(), encoding="utf-8")
    return path


@accident((0, 22), ("graded", "crashed"))
def descriptors_under_way(book):
    """Thousands in its own sockets: the kernel counts them for the grader's user, unless root."""
    book.early("""
import os, socket, time
def to(n):
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(f"/tmp/full-{n}")
    return sender
full, senders, kept = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(4)], [], 0
for n, end in enumerate(full):
    end.bind(f"/tmp/full-{n}")
    for _ in range(8):
        senders.append(to(n))
        senders[-1].setblocking(False)
        try:
            while True: kept += senders[-1].send(b"x")
        except OSError: pass
for n in range(36):  # all wait for room, behind the kernel's check
    if not os.fork():
        many = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
        socket.send_fds(to(n % 4), [b"y"], many)
        time.sleep(600)
        os._exit(0)
time.sleep(2)
for _ in range(kept // 4):
    for end in full: end.recv(1)
time.sleep(1)
""")
