"""The lines that serve a shipped model elsewhere: text, which nothing here runs."""

from collections.abc import Mapping
from pathlib import Path


def modelfile(gguf: str | Path, adapter: str | Path | None = None, system: str = "") -> str:
    """A Modelfile for Ollama: a GGUF, an adapter beside it if there is one, and a system message.

    It has no TEMPLATE: Ollama takes the one inside the GGUF.
    """
    lines = [f"FROM ./{Path(gguf).name}"]
    lines += [f"ADAPTER ./{Path(adapter).name}"] if adapter else []
    lines += ["PARAMETER temperature 0"]
    lines += [f'SYSTEM """{system}"""'] if system else []
    return "\n".join(lines) + "\n"


def llama_server(gguf: str | Path, adapters: Mapping[str, str | Path]) -> str:
    """The line that starts llama.cpp's own server with a base and adapters, off until asked for."""
    parts = [f"llama-server -m {gguf} --lora-init-without-apply --jinja"]
    parts += [f"--lora {path}" for path in adapters.values()]
    return " \\\n    ".join(parts)


def vllm(base: str, adapters: Mapping[str, str | Path], rank: int) -> str:
    """The line that starts vLLM with PEFT's folders; a request names an adapter as its model."""
    modules = " ".join(f"{name}={path}" for name, path in adapters.items())
    parts = [f"vllm serve {base} --enable-lora --max-lora-rank {rank}", f"--lora-modules {modules}"]
    return " \\\n    ".join(parts)
