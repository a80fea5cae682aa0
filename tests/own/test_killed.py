"""kill -9 at eleven moments: nothing half-made, and the same result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.thorough

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What `killed.py` says, and its folder."""
    folder = tmp_path_factory.mktemp("killed")
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = f"{HERE}{os.pathsep}{HERE.parents[1]}"
    command = [sys.executable, str(HERE / "killed.py"), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    errors = "".join(file.read_text() for file in folder.glob("*.error"))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"folder": folder, "errors": errors}


def test_each_moment_came_and_left_nothing_half_made(told):
    moments = told["moments"]
    assert told["errors"] == ""
    assert {name: m["end"] for name, m in moments.items()} == dict.fromkeys(moments, "killed")
    assert [name for name, m in moments.items() if m["out"]] == ["renamed, not tidied"]
    steps = [m["step"] for m in moments.values()][:-1]
    assert steps == sorted(steps) and steps[2] > 0 and steps[-1] == 18, steps


def test_it_goes_on_to_the_result_of_the_run_that_nobody_killed(told):
    assert told["whole"] == told["cut"] == 0
    folders = [told["folder"] / name for name in ("whole", "cut")]
    whole, cut = (json.loads((f / "labkit.json").read_text("utf-8")) for f in folders)
    assert cut["losses"] == pytest.approx(whole["losses"], abs=1e-4) and len(cut["losses"]) == 18
    assert whole["losses"][-1] < whole["losses"][0] - 0.1, "nothing was learned or compared"
    wanted, adapter = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert adapter.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(adapter[key], tensor, rtol=1e-3, atol=1e-5, msg=key)
    scores = [facts["scores"]["table"]["adapter"] for facts in (whole, cut)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
    assert len({frozenset(file.name for file in folder.iterdir()) for folder in folders}) == 1
    assert not list(told["folder"].glob("*.partial"))
