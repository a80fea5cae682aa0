"""The lines that serve a shipped model elsewhere: text, which nothing here runs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.ship.turns import turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank may be


def modelfile(
    gguf: str | Path,
    adapter: str | Path | None = None,
    system: str = "",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> str:
    """A Modelfile for Ollama: a GGUF, an adapter beside it if there is one, and a system message.

    With a `tokenizer` it has the chat template in Ollama's own language, and the template's own
    system message where it writes one unasked. A line says it where Ollama can't write the same.
    """
    lines = [f"FROM ./{Path(gguf).name}"]
    lines += [f"ADAPTER ./{Path(adapter).name}"] if adapter else []
    found = turns(tokenizer) if tokenizer else None
    if found:
        lines += [f'TEMPLATE """{found.template()}"""']
        system = system or found.default
    if found and not found.several:
        lines += ["# a conversation of several turns is another text here than in training"]
    if tokenizer and not found:
        lines += ["# its chat template has no equal in Ollama's language: serve it by llama.cpp"]
    if _ends_early(system or ""):
        told = "a line of its system message ends with three quotation marks"
        lines += [f"# {told}: give it with each request"]
    elif system:
        lines += [f'SYSTEM """{system}"""']
    if tokenizer and tokenizer.eos_token:
        lines += [f'PARAMETER stop "{tokenizer.eos_token}"']
    return "\n".join([*lines, "PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]) + "\n"


def _ends_early(text):
    """Whether Ollama would take a line of the text for its end: marks elsewhere do no harm."""
    return any(line.rstrip().endswith('"""') for line in re.split("[\r\n]", text)[:-1])


def llama_server(gguf: str | Path, adapters: Mapping[str, str | Path]) -> str:
    """The line that starts llama.cpp's own server with a base and adapters, off until asked for.

    A user saw two versions of 2026 leave them on (ggml-org/llama.cpp issue 28674): a request is
    safe if it names every adapter with its scale, as those of `server.choosing` do.
    """
    parts = [f"llama-server -m {gguf} --jinja"]
    # its cache of prompts does not know adapters (ggml-org/llama.cpp issue 26207)
    parts += ["--lora-init-without-apply", "--no-cache-prompt"] if adapters else []
    parts += ["--lora " + ",".join(map(str, adapters.values()))] if adapters else []
    return " \\\n    ".join(parts)


def vllm(base: str, adapters: Mapping[str, str | Path], rank: int, template: str = "") -> str:
    """The line that starts vLLM with PEFT's folders; a request names an adapter as its model.

    `template` is the file of a chat template, where the base brings none or another.
    """
    allowed = next((n for n in RANKS if n >= rank), rank)
    modules = " ".join(f"{name}={path}" for name, path in adapters.items())
    parts = [f"vllm serve {base} --enable-lora --max-lora-rank {allowed}"]
    parts += [f"--lora-modules {modules}"]
    parts += [f"--chat-template {template}"] if template else []
    return " \\\n    ".join(parts)


def transformers(folder: str | Path) -> str:
    """The line that starts transformers' own server with a plain model."""
    return f"transformers serve {folder}"
