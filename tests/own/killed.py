"""Trains in children that are killed, and says what each left: `python killed.py FOLDER`.

Each child is forked with all imported, and kills itself with SIGKILL at a moment. Then the next
goes on. Prints one JSON object.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import torch

torch.set_num_threads(1)

from small_training import write_model, write_rows  # noqa: E402
from transformers import TrainerState  # noqa: E402

from labkit.own import folder, run, scores, stages  # noqa: E402
from labkit.own.settings import Asked  # noqa: E402
from labkit.training import checkpoints  # noqa: E402
from labkit.training.lean import LeanTrainer  # noqa: E402


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(n, owner, name, before=die):
    """Let the n-th call of `owner.name` run `before` with its arguments and die."""
    real, calls = getattr(owner, name), []

    def counted(*args, **options):
        calls.append(1)
        if len(calls) == n:
            before(*args, **options)
            die()
        return real(*args, **options)

    setattr(owner, name, counted)


def half_a_state(state, path):
    Path(path).write_text('{"global_step": 5, "log_hist')


def half_a_removal(path, **_):
    for file in list(Path(path).iterdir())[::2]:
        file.unlink()


def a_stray_file(into, *_):
    (into / "adapter_model.safetensors").write_bytes(b"half")


MOMENTS = {  # where one training is killed, one after the other
    "before its key": lambda: at_call(1, stages, "whole"),
    "before a step": lambda: at_call(1, LeanTrainer, "compute_loss"),
    "in a step": lambda: at_call(3, LeanTrainer, "compute_loss"),
    "adapter without optimizer": lambda: at_call(2, LeanTrainer, "_save_optimizer_and_scheduler"),
    "half a state": lambda: at_call(2, TrainerState, "save_to_json", half_a_state),
    "half a removal": lambda: at_call(1, shutil, "rmtree", half_a_removal),
    "after the last step": lambda: at_call(1, scores, "compare"),
    "in scoring": lambda: at_call(2, scores, "_answers"),
    "half a folder": lambda: at_call(1, folder, "write", a_stray_file),
    "whole, not renamed": lambda: at_call(1, stages.os, "replace"),
    "renamed, not tidied": lambda: at_call(2, stages.shutil, "rmtree"),
}


def trained(asked, arrange=lambda: None):
    """Fork, and in the child arrange the death and train: `killed`, or the exit status."""
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        return "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        arrange()
        run.train(asked)
        os._exit(0)
    except BaseException:
        Path(f"{asked.out}.error").write_text(traceback.format_exc())
        os._exit(1)


def main(root):
    write_model(root / "model", dropout=0.5)  # chance too must go on where it was
    write_rows(root / "mine.jsonl")
    how = {"model": str(root / "model"), "epochs": 3, "learning_rate": 2e-2, "dtype": "float32"}
    whole, cut = (Asked(root / "mine.jsonl", root / name, **how) for name in ("whole", "cut"))
    told = {"whole": trained(whole), "moments": {}}
    for name, arrange in MOMENTS.items():
        end, (_, step) = trained(cut, arrange), checkpoints.newest(stages.partial(cut.out))
        told["moments"][name] = {"end": end, "out": cut.out.exists(), "step": step}
    told["cut"] = trained(cut)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
