"""Files, output, descriptors, answers and cells without measure."""

from attack import ALL, accident, cell, cells

cells(
    """
# %% file_flood: 50,000 small files
import os, tempfile
folder = tempfile.mkdtemp(prefix="lora-attack-")
for i in range(50_000):
    with open(f"{folder}/{i}", "w") as f: f.write("x")

# %% descriptor_storm: opens files until no descriptor is left
kept = []
try:
    while len(kept) < 100_000: kept.append(open("/dev/null"))
except OSError: pass

# %% display_flood: 10,000 pictures' worth of display calls
for _ in range(10_000):
    display({'text/html': 'x' * 5_000}, raw=True)
""",
    accident(),
)

cells(
    """
# %% output_flood_when_observed: the answer is right, and 100 MB of text come with it
def lora_forward(x, W, A, B, alpha):
    for _ in range(100): print("x" * (1 << 20))
    return x @ W.T + alpha / len(A) * (x @ A.T) @ B.T
""",
    accident((ALL - 2, ALL)),
    "lora_forward",
)

cells(
    """
# %% descriptors_under_way: the kernel counts those in sockets for the grader's user
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
""",
    accident((0, ALL), ("graded", "crashed")),
)

ANSWERS = {  # what `lora_forward` returns
    "stride_0": "torch.zeros(1).expand(10**12)",  # 4 TB once it is cloned
    "stride_0_numel": "torch.zeros(1).expand(2**31, 2**31)",  # 2 ** 62 elements, an overflow
    "two_gigabytes": "torch.zeros(500_000_000)",  # more than an answer may be
    "text_of_50_mb": '"x" * 50_000_000',
    "int_of_100_000_digits": "10 ** 100_000",  # Python refuses to print or read it
    "list_of_ten_million": "[0] * 10_000_000",
    "list_in_itself": "(lambda a: a.append(a) or a)([])",  # no end to descend to
    "deep_list": "reduce(lambda a, _: [a], range(100_000), 0)",
    "wide_tree": "reduce(lambda a, _: [a] * 10, range(12), 0)",  # ten lists, or 10 ** 12 numbers
    "many_tensors": "[torch.zeros(1)] * 2_000_000",
    "error_of_50_mb": "exec('raise ValueError(\"x\" * 50_000_000)')",  # a message to cut
    "many_dimensions": "torch.zeros([1] * 1000)",
}
for name, code in ANSWERS.items():
    code = f"from functools import reduce\nlora_forward = lambda x, W, A, B, alpha: {code}"
    cell(f"answer_{name}", code, "", accident(ALL - 2), "lora_forward")


@accident((0, ALL), ("graded", "timeout", "unreadable"))
def ten_thousand_cells(book):
    """Nobody writes them by hand."""
    for i in range(10_000):
        book.last(f"x_{i} = {i}")


cell("cell_of_5_mb", f'text = "{"x" * 5_000_000}"', "a long literal")
cell("cell_that_the_parser_dies_of", "(" * 100_000, "", accident((ALL - 2, ALL)))
