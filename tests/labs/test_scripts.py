"""The scripts of "Take it with you" run as printed, without labkit, on a tiny model."""

import re
import subprocess
import sys

import pytest
from answers import ROOT, STEMS

from labkit.probes.tiny import language_model

SCRIPT = re.compile(r"## Take it with you\n.*?```python\n(.*?)```", re.DOTALL)
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start> ' }}{% endif %}"
)
RUN = """import os, runpy, sys
for folder in sys.argv[1:]:
    os.chdir(folder)
    runpy.run_path("script.py", run_name="__main__")"""


def _script(stem):
    """The code with which a lab ends."""
    text = (ROOT / "labs" / f"{stem}.py").read_text("utf-8")
    return SCRIPT.search(re.sub(r"(?m)^# ?", "", text))[1]


def _tiny(names):
    """The line that names a script's model, or its two, with the tiny one."""
    tiny = ", ".join(names[0].count("HuggingFaceTB") * ['"../tiny"'])
    return f"{names[1]} = {tiny}"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with one of each lab, in which its script ran: all in one process of their own."""
    root = tmp_path_factory.mktemp("scripts")
    model, tokenizer = language_model(0)
    tokenizer.chat_template = TEMPLATE
    for part in (model, tokenizer):
        part.save_pretrained(root / "tiny")
    for stem in STEMS:
        code, n = re.subn(r"(?m)^(MODEL|BASE, TUNED) = .*$", _tiny, _script(stem))
        assert n == 1, stem
        (root / stem).mkdir()
        (root / stem / "script.py").write_text(re.sub(r"(?m)^R = \d+$", "R = 8", code), "utf-8")
    command = [sys.executable, "-c", RUN, *(str(root / stem) for stem in STEMS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return root


@pytest.mark.parametrize("stem", STEMS)
def test_a_script_is_short_and_runs_as_printed(stem, ran):
    code = _script(stem)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20 and "labkit" not in code
    assert (ran / stem / "my-lora" / "adapter_model.safetensors").is_file()
