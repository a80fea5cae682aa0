"""The walls around a submission, seen from inside: what cells reach, and what they cannot."""

import fcntl
import json
import os
import py_compile
import shutil
import socket
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from labkit.course import doctor
from labkit.grading import cgroup, sandbox, wire
from labkit.grading.inside import seccomp, tree
from labkit.grading.limits import MIB, Limits
from labkit.grading.warm import WarmProcess

pytestmark = pytest.mark.skipif(not sandbox.available(), reason="no bubblewrap here")

ROOT = Path(__file__).parents[2]
SMALL = Limits(
    cell_seconds=8,
    exercise_seconds=8,
    total_seconds=40,
    memory_bytes=600 * MIB,
    processes=24,
    file_bytes=8 * MIB,
    disk_bytes=16 * MIB,
)


LITTLE = """
from labkit.grading.inside import zygote
zygote.warm = zygote._shell
zygote.main()
"""


def _with_little(*kinds):
    """`sandbox.command` whose warm processes of these kinds warm up nothing behind their walls."""
    real = sandbox.command

    def command(fd, kind):
        *wall, _, _, own, told = real(fd, kind)
        return [*wall, "-c", LITTLE, own, told] if kind in kinds else real(fd, kind)

    return command


@pytest.fixture
def little(monkeypatch):
    """Warm processes without what labs use, for tests that ask for nothing of it."""
    monkeypatch.setattr(sandbox, "command", _with_little("nested", "alone"))


@pytest.fixture(scope="module", params=["nested", "alone"])
def warm(request):
    """A warm process with both walls, and one with the outer wall alone."""
    if request.param == "nested":
        yield request.getfixturevalue("nested")
        return
    with pytest.MonkeyPatch.context() as patch:  # it starts anew for each submission
        patch.setattr(sandbox, "command", _with_little("alone"))
        process = WarmProcess(SMALL, request.param)
        yield process
        process.end()


@pytest.fixture(scope="module")
def nested():
    process = WarmProcess(SMALL, "nested")
    process.wait()
    if not process.nested:
        process.end()
        pytest.skip("no nested user namespaces here")
    yield process
    process.end()


def _task(*cells, needed=(), seconds=100):
    return json.dumps({"cells": cells, "needed": needed, "seconds": seconds}).encode()


def _run(warm, *cells):
    """{index: [how, message]} of the cells that went wrong, run as a submission's."""
    with warm.submission() as link:
        wire.send(link, b"C", _task(*cells))
        kind, body = wire.receive(link, 1 << 24, time.monotonic() + 120)
        assert kind == b"D", body
        return {index: [how, why] for index, how, why in json.loads(body)}


def _told(warm, expression, before=""):
    """The value of an expression inside the sandbox, as the text of an error brings it out."""
    cell = (
        f"import os, socket, json\n{before}\nraise Exception('VALUE ' + json.dumps({expression}))"
    )
    ((how, why),) = _run(warm, cell).values()
    assert how == "raised", why
    assert "VALUE " in why, why
    return json.loads(why.partition("VALUE ")[2])


def test_what_is_inside(warm, monkeypatch):
    """One pass, because a process with the outer wall alone serves a single submission."""
    monkeypatch.setenv("A_SECRET_OF_MINE", "1")
    code = f"""
home = os.path.exists({str(Path.home() / ".bashrc")!r})
variables = ["A_SECRET_OF_MINE" in os.environ, "PATH" in os.environ]
pids = len([n for n in os.listdir("/proc") if n.isdigit()])
addresses = [name for _, name in socket.if_nameindex()]
home |= os.path.exists("/run/proc")
"""
    value = "[variables, home, pids, os.path.basename(os.getcwd()), os.getuid() == 0, addresses]"
    assert _told(warm, value, code) == [[False, True], False, 2, "work", False, ["lo"]]


def test_where_nesting_fails_the_wall_that_shows_the_host_is_not_used(little, monkeypatch):
    """Here the warm process is made to say that it cannot nest, behind the wall for nesting."""
    real = sandbox.command
    monkeypatch.setattr(sandbox, "command", lambda fd, kind: [*real(fd, kind)[:-1], "alone"])
    process = WarmProcess(SMALL, "nested")
    try:
        assert _told(process, "os.path.exists('/run/proc')") is False
        assert process.kind == "alone"
    finally:
        process.end()


PATHS = [
    ROOT / "solutions",
    ROOT / "labs",
    ROOT / "tests",
    ROOT / ".git",
    ROOT / "labkit" / "checks" / "engine.py",
    ROOT / "labkit" / "checks" / "engine.py",
    ROOT / "labkit" / "checks" / "lab01.toml",
    ROOT / "labkit" / "checks" / "lab02.toml",
    Path("/etc/passwd"),
    Path("/etc/shadow"),
    Path("/var"),
    Path("/home"),
    Path.home() / ".bashrc",
    Path.home() / ".ssh",
    Path("/sys"),
    Path("/run/proc"),
]
NEEDED = [ROOT, Path(sys.prefix), Path(sys.base_prefix)]  # the way to these is there, if they are


def test_what_is_secret_is_not_there(nested):
    shut = [p for p in PATHS if not any(place.is_relative_to(p) for place in NEEDED)]
    paths = [str(p) for p in shut if p.exists() or p == Path("/run/proc")]
    assert _told(nested, f"[p for p in {paths} if os.path.exists(p)]") == []


def test_of_labkit_all_but_what_is_closed_is_inside(nested):
    """Its bytecode, too: every file outside is there or below a closed folder, and none is more."""
    package = ROOT / "labkit"
    closed = {package / name for name in sandbox.HIDDEN}
    bytecode = Path(py_compile.compile(package / "checks" / "engine.py"))
    files = {path for path in package.rglob("*") if path.is_file()}
    open_ = {path for path in files if not closed & set(path.parents)}
    assert bytecode in files - open_
    code = f"""
files = [os.path.join(w, f) for w, _, files in os.walk({str(package)!r}) for f in files]
import hashlib
told = [len(files), hashlib.sha256("\\n".join(sorted(files)).encode()).hexdigest()]
"""
    text = "\n".join(sorted(map(str, open_)))
    assert _told(nested, "told", code) == [len(open_), sha256(text.encode()).hexdigest()]


def test_what_is_secret_is_hidden_in_every_copy_of_the_course(tmp_path, monkeypatch):
    """In the base Python, in environments below it, and where the whole course lies in one."""
    places = ["lib/python3.11/site-packages", "envs/lora/lib/python3.11/site-packages", "src/lora"]
    names = ("checks", "_solutions", "_lent")
    secret = {f"{place}/labkit/{name}" for place in places for name in names} | {"src/lora/labs"}
    others = [f"{places[0]}/{name}" for name in ("labkit/labs", "other/checks", "labs")]
    for name in [*secret, *others, "labs"]:
        (tmp_path / name).mkdir(parents=True)
    before = set(sandbox._hidden())
    sandbox._hidden.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "prefixes", lambda: [str(tmp_path)])
        found = set(sandbox._hidden()) - before
    sandbox._hidden.cache_clear()
    assert found == {str(tmp_path / name) for name in secret}


def test_writing_is_possible_in_scratch_space_only(nested):
    tries = ["/", "/usr", "/etc", "/dev", "/cache", "/run", "/proc", "/work", sys.prefix, str(ROOT)]
    tries += [str(ROOT / "labkit"), sandbox.scratch(), "/dev/shm", "."]
    code = f"""
wrote = []
for folder in {tries}:
    try: open(os.path.join(folder, "x"), "w").close(); wrote.append(folder)
    except OSError: pass
"""
    assert _told(nested, "wrote", code) == [sandbox.scratch(), "/dev/shm", "."]


def test_nothing_of_one_submission_reaches_the_next(nested):
    leave = """
import os, subprocess, ctypes
open("../note", "w").write("x"); open("/dev/shm/note", "w").write("x")
for fd in range(3): os.set_blocking(fd, False)
subprocess.Popen(["sleep", "60"], start_new_session=True)
import torch
torch.left_behind = True
"""
    assert _run(nested, leave) == {}
    code = "import torch\nflags = [os.get_blocking(fd) for fd in range(3)]"
    code += "\npids = [n for n in os.listdir('/proc') if n.isdigit()]"
    code += "\nnotes = [os.path.exists(f'{folder}/note') for folder in ('..', '/dev/shm')]"
    value = "[notes, flags, hasattr(torch, 'left_behind'), len(pids)]"
    assert _told(nested, value, code) == [[False, False], [True] * 3, False, 2]


def test_devices_keep_no_time_that_the_next_could_read(nested):
    """They are the machine's own, and anybody may set their times to now."""
    code = """
import pty
touched = []
for name in ("null", "zero", "full", "random", "urandom", "tty", "pts/ptmx"):
    try: os.utime(f"/dev/{name}"); touched.append(name)
    except OSError: pass
works = len(open("/dev/urandom", "rb").read(8)) == 8 and len(pty.openpty()) == 2
"""
    assert _told(nested, "[touched, works]", code) == [[], True]


def test_a_submission_has_a_network_of_its_own_that_is_down(nested):
    """Nothing of another one's sockets is left there, and no address can be reached."""
    code = "routes = '127.0.0.1' in open('/proc/net/fib_trie').read()"
    code += (
        "\nnames = [n for line in open('/proc/net/unix').readlines()[1:] for n in line.split()[7:]]"
    )
    assert _told(nested, "[routes, names]", code) == [False, []]


REFUSED = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def failed(name, *args):
    return getattr(libc, name)(*args) == -1 and errno.errorcode[ctypes.get_errno()]
context, fd = ctypes.c_ulong(), os.open("/usr", os.O_RDONLY)
sysv = [failed("semget", 0, 1, 0o600), failed("msgget", 0, 0o600), failed("shmget", 0, 1, 0o600)]
queue = failed("syscall", NUMBERS["mq_open"], b"x", os.O_CREAT | os.O_RDWR, 0o600, None)
aio = failed("syscall", NUMBERS["io_setup"], 1, ctypes.byref(context))
watch = failed("inotify_init1", 0)
families = [failed("socket", family, 1, 0) for family in (2, 10, 38, 40)]
families += [failed("socket", 16, 3, protocol) for protocol in (0, 4)]
inode = [failed("fcntl", fd, command, 0) for command in (1024, 1026, 1036)]
"""


def test_what_the_kernel_counts_for_nobody_is_refused(warm):
    """Queues, semaphores and watches of the kernel, sockets that lead elsewhere, leases, hints."""
    numbers = seccomp.MACHINES[os.uname().machine][1]
    code = f"NUMBERS = {numbers}" + REFUSED
    value = "[sysv, queue, aio, watch, families, inode]"
    families = ["ENETUNREACH"] * 2 + ["EAFNOSUPPORT"] * 2 + [False, "EAFNOSUPPORT"]
    wanted = [["EPERM"] * 3, "EPERM", "EPERM", "EPERM", families, ["EINVAL"] * 3]
    assert _told(warm, value, code) == wanted


LOCKS = """
import fcntl, os
fd = os.open({path!r}, os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
fcntl.lockf(fd, fcntl.LOCK_SH)
"""


def test_a_lock_on_a_file_of_the_machine_is_none(nested):
    path = ROOT / "labkit" / "__init__.py"
    with nested.submission() as link, open(path, "rb+") as file:
        wire.send(link, b"C", _task(LOCKS.format(path=str(path))))
        assert json.loads(wire.receive(link, 1 << 24, time.monotonic() + 120)[1]) == []
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


HONEST = {
    "a manager": """
import multiprocessing
with multiprocessing.get_context("fork").Manager() as manager:
    shared = manager.dict(a=1)
    assert shared["a"] == 1
""",
    "workers that load data": """
import torch
loader = torch.utils.data.DataLoader(torch.arange(8), batch_size=4, num_workers=2)
assert sum(batch.sum().item() for batch in loader) == 28
""",
    "an event loop": """
import asyncio, threading
async def three(): return await asyncio.to_thread(lambda: 3)
found = []
thread = threading.Thread(target=lambda: found.append(asyncio.run(three())))
thread.start(); thread.join()
assert found == [3]
""",
    "a pair of sockets": """
import socket
a, b = socket.socketpair()
a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
a.sendall(b"x"); assert b.recv(1) == b"x"
assert socket.gethostname()
""",
    "locks on files": """
import filelock, sqlite3
with filelock.FileLock("a.lock", timeout=1): pass
with sqlite3.connect("a.db") as base:
    base.execute("create table t (x)"); base.execute("insert into t values (1)")
assert sqlite3.connect("a.db").execute("select x from t").fetchall() == [(1,)]
""",
    "a download that fails": """
import requests
try: requests.get("https://huggingface.co", timeout=5)
except requests.ConnectionError: pass
try: requests.get("http://127.0.0.1:8000", timeout=5)
except requests.ConnectionError: pass
""",
    "a program": "import subprocess; assert subprocess.run(['true']).returncode == 0",
    "streams": "import os; assert [os.write(2, b'x'), os.read(0, 1)] == [1, b'']",
}


def test_honest_code_goes_on_working(warm):
    told = _run(warm, *HONEST.values())
    assert {list(HONEST)[index]: why for index, why in told.items()} == {}


DESCRIPTORS = """
import fcntl, os
found = {}
for name in os.listdir("/proc/self/fd"):
    try: kind = os.readlink(f"/proc/self/fd/{name}").partition(":")[0]
    except OSError: continue  # the one that lists them
    found[int(name)] = [kind, fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE]
"""


def test_a_submission_has_no_descriptor_that_another_one_had(warm):
    """Three that lead nowhere, and the way to its own supervisor."""
    found = _told(warm, "found", DESCRIPTORS)
    assert {found.pop(fd)[0] for fd in "012"} == {"/dev/null"}
    assert list(found.values()) == [["socket", os.O_RDWR]]


def test_what_is_written_to_the_standard_streams_reaches_nobody(nested):
    leave = """
import os
for fd in (0, 1, 2):
    try: os.write(fd, b"an answer")
    except OSError: pass
    try: os.lseek(fd, 1 << 40, 0); os.ftruncate(fd, 100)
    except OSError: pass
"""
    assert _run(nested, leave) == {}
    read = """
got = []
for fd in (0, 1, 2):
    try: got.append(open(f"/proc/self/fd/{fd}", "rb").read(100).decode())
    except OSError: got.append("")
    os.write(max(fd, 1), b"and one can write")
"""
    assert _told(nested, "got", read) == ["", "", ""]


def test_a_hundred_megabytes_of_progress_bars_do_no_harm(nested):
    bars = """
import os, sys
from tqdm import tqdm
line = "\\r" + "#" * (1 << 20)
for _ in range(100): print(line, file=sys.stderr)
for _ in tqdm(range(20_000), mininterval=0, miniters=1): pass
os.write(2, line.encode()); sys.stdout.flush(); sys.stderr.flush()
"""
    assert _run(nested, bars, bars) == {}


def test_there_is_no_way_out_to_the_network(nested):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"""
failed = 0
for host in ("127.0.0.1", "10.0.0.1", "1.1.1.1"):
    try: socket.create_connection((host, {server.getsockname()[1]}), timeout=2)
    except OSError: failed += 1
"""
        assert _told(nested, "failed", code) == 3


def test_privileges_are_gone(nested):
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
fields = [int(status[k].strip(), 16) for k in ("CapPrm", "CapEff", "CapInh")]
fields += [int(status[k]) for k in ("NoNewPrivs", "Seccomp")]
calls = [libc.unshare(0x10000000), libc.unshare(0x20000), libc.ptrace(16, 1, 0, 0)]
calls += [libc.mount(b"t", b"/tmp", b"tmpfs", 0, None), libc.setuid(0), libc.chroot(b"/tmp")]
calls += [libc.sched_setaffinity(0, 8, b"\\xff" * 8)]
"""
    fields, calls = _told(nested, "[fields, calls]", code)
    assert fields == [0, 0, 0, 1, 2]
    assert calls == [-1] * 7


def test_the_supervisor_cannot_be_touched(nested):
    code = """
import signal
done = []
for sign in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT):
    os.kill(1, sign)
for name in ("mem", "environ", "maps", "fd", "root"):
    path = f"/proc/1/{name}"
    try: os.listdir(path) if name in ("fd", "root") else open(path).read(1)
    except OSError: continue
    done.append(name)
"""
    assert _told(nested, "done", code) == []


SLEEPERS = """
import threading, time
for _ in range(200): threading.Thread(target=time.sleep, args=[60], daemon=True).start()
"""
BREEDERS = """
import os, time
for _ in range(8):  # below the limit on processes, above that on memory
    if not os.fork():
        x = bytearray(b"x") * (200 << 20)
        time.sleep(60)
time.sleep(30)
"""
SOCKETS = """
import os, socket, time
kept = []
for _ in range(3):
    if os.fork(): continue
    while len(kept) < 100: kept.append(socket.socketpair())
    time.sleep(30)
while len(kept) < 110: kept.append(socket.socketpair())
time.sleep(30)
"""
HOGS = {
    "forks": ("import os, time\nwhile True:\n    if not os.fork(): time.sleep(60)", ""),
    "threads": (SLEEPERS, "thread"),
    "memory": ("x = bytearray(2 << 30)", "MemoryError"),
    "memory by tensors": ("import torch\nx = torch.ones(1 << 30)", "memory"),
    "memory by processes": (BREEDERS, "MiB of memory"),
    "sockets": (SOCKETS, "512 sockets"),
    "a file": ("open('big', 'wb').write(bytes(64 << 20))", "File too large"),
    "files": ("for i in range(20): open(str(i), 'wb').write(bytes(4 << 20))", "No space"),
    "output": ("print('x' * (1 << 28))", None),
}


@pytest.mark.parametrize("what", HOGS)
def test_a_hog_costs_its_cell_and_nothing_else(what, nested):
    source, word = HOGS[what]
    began = time.monotonic()
    after = "import os\nopen('after', 'w').write('x' * 1000)" if word != "No space" else "1"
    told = _run(nested, "kept = 7", source, "assert kept == 7", after)
    assert set(told) == ({1} if word is not None else set()), told
    assert word is None or word in told[1][1], told
    assert time.monotonic() - began < 60
    assert nested.process.poll() is None


def test_a_tree_is_gone_when_the_judge_hangs_up(nested):
    """Also in the middle of a cell that ignores all signals."""
    deaf = "import signal, time\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(60)"
    with nested.submission() as link:
        wire.send(link, b"C", _task(deaf))
        time.sleep(1)
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert _run(nested, "x = 1") == {}


def test_the_warm_process_ends_with_its_judge(little):
    process = WarmProcess(SMALL, "nested")
    process.wait()
    process.control.close()
    process.process.wait(10)
    process.end()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_each_warm_process_of_root_is_a_user_of_its_own(nested, little):
    """What the kernel counts by user, processes above all, is not shared with others."""
    import psutil

    other = WarmProcess(SMALL, "alone")
    try:
        other.wait()
        found = [psutil.Process(w.process.pid).children(True)[-1] for w in (nested, other)]
        users = [set(process.uids()) for process in found]
        assert all(len(user) == 1 and user & {0, 65534} == set() for user in users)
        assert users[0] != users[1]
    finally:
        other.end()


def test_memory_of_the_warm_process(nested):
    import psutil

    children = psutil.Process(nested.process.pid).children(recursive=True)
    assert sum(p.memory_info().rss for p in children) < 1.5e9


def test_an_ordinary_user_has_both_walls():
    """Only root can try this: another user, if that one can read the interpreter."""
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    code = "from labkit.grading import sandbox; print(sandbox.trial())"
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    # /root may be closed to others: a view of this machine in which it is open
    view = [sandbox.available(), "--dev-bind", "/", "/"]
    closed = [p for path in sandbox.prefixes() for p in reversed(Path(path).parents)]
    for folder in dict.fromkeys(str(p) for p in closed if not p.stat().st_mode & 1):
        view += ["--perms", "0755", "--tmpfs", folder]
        inside = [str(p) for p in closed if str(p).startswith(f"{folder}/")]
        for below in dict.fromkeys(inside):
            view += ["--perms", "0755", "--dir", below]
    for path in sandbox.prefixes():
        view += ["--ro-bind", path, path]
    done = subprocess.run(
        [*view, *user, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
    )
    assert done.stdout.strip() == "nested", done.stderr + done.stdout


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_filter_is_well_formed(machine):
    """Every jump lands inside the program, and every path ends in a return."""
    steps = seccomp.program(machine)
    assert len(steps) % 8 == 0 and len(steps) // 8 < 4096
    import struct

    parsed = [struct.unpack_from("<HBBI", steps, i) for i in range(0, len(steps), 8)]
    for i, (code, yes, no, _) in enumerate(parsed):
        if code in (seccomp.EQUAL, seccomp.ANY_BIT):
            assert i + 1 + max(yes, no) < len(parsed)
    assert parsed[-1][0] == seccomp.RETURN and parsed[-1][3] == seccomp.ALLOW


def test_a_machine_without_a_filter_has_none():
    assert seccomp.program("s390x") == b""


def test_doctor_says_how_submissions_are_isolated(monkeypatch):
    for told, verdict in (("nested", "ok"), ("alone", "warn"), ("Operation not permitted", "warn")):
        monkeypatch.setattr(sandbox, "trial", lambda told=told: told)
        found = doctor.check_sandbox()
        assert found.verdict == verdict and (verdict == "ok" or found.mend)
    assert "Operation not permitted" in found.mend


def test_where_ubuntu_forbids_the_sandbox_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "Path", lambda path: tmp_path / Path(path).name)
    for setting, told in ((None, False), ("1\n", True), ("0\n", False)):
        if setting:
            (tmp_path / "apparmor_restrict_unprivileged_userns").write_text(setting)
        line = sandbox.mend("bwrap: setting up uid map: Permission denied")
        assert line.startswith("bwrap: setting up uid map: Permission denied")
        name = "kernel.apparmor_restrict_unprivileged_userns=0"
        assert line.endswith(f"sudo sysctl {name}") == told and (name in line) == told


def test_where_a_memory_cgroup_can_be_made_a_warm_process_is_in_it(tmp_path, monkeypatch, little):
    """A folder stands for the kernel's; of two places the first cannot be written."""
    monkeypatch.setattr(cgroup, "_parents", lambda: [tmp_path / "missing", tmp_path])
    process = WarmProcess(SMALL)
    try:
        assert _run(process, "x = 1") == {}
        (group,) = tmp_path.iterdir()
        assert int((group / "memory.max").read_text()) > SMALL.memory_bytes
        assert (group / "cgroup.procs").read_text() == "0\n"
    finally:
        process.end()
    assert (group / "cgroup.kill").read_text() == "1"


def test_where_none_can_be_made_the_command_is_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    assert cgroup.make(SMALL) is None
    assert cgroup.entering(None, ["true"]) == ["true"]


def test_outside_of_a_tree_nothing_is_killed():
    """Where this process is not process 1 of its own tree, `kill_but` does nothing."""
    assert not tree.enclosed() and tree.others() == []
    sleeper = subprocess.Popen(["sleep", "30"])
    tree.kill_but()
    tree.kill_but(sleeper.pid)
    assert sleeper.poll() is None
    tree.kill(sleeper.pid)
    assert sleeper.wait(5) == -9
    for pid in (1, 0, -1, None, True, "2"):
        tree.kill(pid)
        tree.kill_group(pid)
