"""Write the commands that serve a shipped model in other engines."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.ship.turns import turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values that vLLM's --max-lora-rank accepts


def modelfile(
    gguf: str | Path,
    adapter: str | Path | None = None,
    system: str = "",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> str:
    """Write a Modelfile for Ollama: a GGUF, optionally a separate adapter, and a system message.

    With a `tokenizer`, it includes the chat template in Ollama's language and the template's
    default system message. A comment says if Ollama can't reproduce the template.
    """
    lines = [f"FROM ./{Path(gguf).name}"]
    lines += [f"ADAPTER ./{Path(adapter).name}"] if adapter else []
    found = turns(tokenizer) if tokenizer else None
    if found:
        lines += [f'TEMPLATE """{found.template()}"""']
        system = system or found.default
    if found and not found.several:
        lines += ["# a conversation of several turns is rendered differently here than in training"]
    if tokenizer and not found:
        lines += ["# the chat template has no equivalent in Ollama's language: use llama.cpp"]
    if _ends_early(system or ""):
        why = "a line of the system message ends with three quotation marks"
        lines += [f"# {why}: send the message with each request"]
    elif system:
        lines += [f'SYSTEM """{system}"""']
    if tokenizer and tokenizer.eos_token:
        lines += [f'PARAMETER stop "{tokenizer.eos_token}"']
    return "\n".join([*lines, "PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]) + "\n"


def _ends_early(text):
    """Whether Ollama would end the text early, at a line that ends with three quotation marks."""
    return any(line.rstrip().endswith('"""') for line in re.split("[\r\n]", text)[:-1])


def llama_server(gguf: str | Path, adapters: Sequence[str | Path] = ()) -> str:
    """The command for llama.cpp's server with a base and adapters, which start switched off.

    Two versions from 2026 may leave adapters on (ggml-org/llama.cpp issue 28674). A request is safe
    if it gives every adapter's scale, as the requests from `server.choosing` do.
    """
    parts = [f"llama-server -m {gguf} --jinja"]
    # the prompt cache ignores adapters (ggml-org/llama.cpp issue 26207)
    parts += ["--lora-init-without-apply", "--no-cache-prompt"] if adapters else []
    parts += ["--lora " + ",".join(map(str, adapters))] if adapters else []
    return " \\\n    ".join(parts)


def vllm(base: str, name: str, folder: str | Path, rank: int, template: str = "") -> str:
    """The command for vLLM with a PEFT folder as model `name`; `template` is a file."""
    allowed = next((n for n in RANKS if n >= rank), rank)
    parts = [f"vllm serve {base} --enable-lora --max-lora-rank {allowed}"]
    parts += [f"--lora-modules {name}={folder}"]
    parts += [f"--chat-template {template}"] if template else []
    return " \\\n    ".join(parts)
