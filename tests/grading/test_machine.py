"""What a machine allows: both walls or one, which system calls, a memory cgroup or none."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.course import doctor
from labkit.grading import cgroup, sandbox
from labkit.grading.inside import seccomp
from labkit.grading.limits import Limits

ROOT = Path(__file__).parents[2]


def test_an_ordinary_user_has_both_walls():
    """Only root can try this: another user, if that one can read the interpreter."""
    if os.getuid() or not shutil.which("setpriv") or not sandbox.available():
        pytest.skip("needs root, setpriv and bubblewrap")
    # /root may be closed to others: a view of this machine in which it is open
    view = [sandbox.available(), "--dev-bind", "/", "/"]
    above = [p for path in sandbox.prefixes() for p in reversed(Path(path).parents)]
    for folder in dict.fromkeys(p for p in above if not p.stat().st_mode & 1):
        view += ["--perms", "0755", "--tmpfs", str(folder)]
        for below in dict.fromkeys(p for p in above if folder in p.parents):
            view += ["--perms", "0755", "--dir", str(below)]
    for path in sandbox.prefixes():
        view += ["--ro-bind", path, path]
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    code = "from labkit.grading import sandbox; print(sandbox.trial())"
    done = subprocess.run(
        [*view, *user, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
    )
    assert done.stdout.strip() == "nested", done.stderr + done.stdout


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_every_jump_of_the_filter_lands_inside_it_and_its_end_is_a_return(machine):
    steps = list(struct.iter_unpack("<HBBI", seccomp.program(machine)))
    assert len(steps) < 4096
    for i, (code, yes, no, _) in enumerate(steps):
        if code in (seccomp.EQUAL, seccomp.ANY_BIT):
            assert i + 1 + max(yes, no) < len(steps)
    assert steps[-1][0] == seccomp.RETURN and steps[-1][3] == seccomp.ALLOW
    assert seccomp.program("s390x") == b""  # there is none for a machine whose numbers we lack


def test_doctor_says_how_submissions_are_isolated(monkeypatch):
    for told, verdict in (("nested", "ok"), ("alone", "warn"), ("Operation not permitted", "warn")):
        monkeypatch.setattr(sandbox, "trial", lambda told=told: told)
        found = doctor.check_sandbox()
        assert found.verdict == verdict and (verdict == "ok" or found.fix)
    assert "Operation not permitted" in found.fix


@pytest.mark.parametrize(("setting", "forbidden"), [(None, False), ("1\n", True), ("0\n", False)])
def test_what_ubuntu_forbids_has_its_remedy(setting, forbidden, monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "Path", lambda path: tmp_path / Path(path).name)
    if setting:
        (tmp_path / "apparmor_restrict_unprivileged_userns").write_text(setting)
    line = sandbox.advice("bwrap: Permission denied")
    assert line.startswith("bwrap: Permission denied")
    remedy = "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    assert (remedy in line) == forbidden


def test_where_no_memory_cgroup_can_be_made_the_command_is_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    assert cgroup.make(Limits()) is None
    assert cgroup.entering(None, ["true"]) == ["true"]
