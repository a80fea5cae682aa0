"""The scripts of "Take it with you" run as printed, without labkit, on a tiny model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.probes.tiny import language_model

ROOT = Path(__file__).parents[2]
SCRIPT = re.compile(r"## Take it with you\n.*?```python\n(.*?)```", re.DOTALL)
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start> ' }}{% endif %}"
)


def _scripts():
    """`{stem: code}` of the labs that end with a script."""
    texts = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "labs").glob("*.py"))}
    found = {stem: SCRIPT.search(re.sub(r"(?m)^# ?", "", text)) for stem, text in texts.items()}
    return {stem: match[1] for stem, match in found.items() if match}


def _tiny(names):
    """The line that names a script's model, or its two, with the tiny one."""
    tiny = ", ".join(names[0].count("HuggingFaceTB") * ['"tiny"'])
    return f"{names[1]} = {tiny}"


@pytest.mark.parametrize("stem", _scripts())
def test_a_script_is_short_and_runs_as_printed(stem, tmp_path):
    code = _scripts()[stem]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 20 and "labkit" not in code
    model, tokenizer = language_model(0)
    tokenizer.chat_template = TEMPLATE
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "tiny")
    tiny, n = re.subn(r"(?m)^(MODEL|BASE, TUNED) = .*$", _tiny, code)
    assert n == 1
    tiny = re.sub(r"(?m)^R = \d+$", "R = 8", tiny)
    (tmp_path / "script.py").write_text(tiny, "utf-8")
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "my-lora" / "adapter_model.safetensors").is_file()
