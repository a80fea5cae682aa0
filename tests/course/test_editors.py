"""VS Code's settings and the container: what they name is there."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]


def read(name):
    return json.loads((ROOT / name).read_text("utf-8"))


def test_vs_code_looks_for_python_where_make_puts_it():
    """A folder serves Windows too, where the interpreter is not in `bin`."""
    venv = re.search(r"(?m)^BIN := (.+)/bin$", (ROOT / "Makefile").read_text("utf-8"))[1]
    folder = read(".vscode/settings.json")["python.defaultInterpreterPath"]
    assert folder == "${workspaceFolder}/" + venv


def test_the_container_brings_what_vs_code_recommends_and_its_set_up_can_run():
    container = read(".devcontainer/devcontainer.json")
    wanted = read(".vscode/extensions.json")["recommendations"]
    assert container["customizations"]["vscode"]["extensions"] == wanted
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert container["image"].rpartition(":")[2] in SpecifierSet(project["requires-python"])
    script = ROOT / container["postCreateCommand"]
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
