"""Run llama.cpp on this machine: a GGUF base with separate adapters, for OpenAI clients.

The engine is the package `xllamacpp`, which contains llama.cpp's own server. It runs in a separate
process, listens only on 127.0.0.1, and ends with the block or with the process that started it.
"""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabError

if TYPE_CHECKING:
    from openai import OpenAI

NEEDS = ("openai", "xllamacpp")
INSTALL = "pip install 'lora-labs[serve]'"
READY = "listening on "  # what the child process prints once it can answer


def missing() -> list[str]:
    """The packages from the extra `serve` that are needed but not installed."""
    return [name for name in NEEDS if not find_spec(name)]


@contextmanager
def llama_cpp(
    model: str | Path,
    adapters: Sequence[str | Path] = (),
    slots: int = 4,
    context: int = 1024,
    seconds: float = 120,
) -> Iterator[str]:
    """Serve a GGUF while the block runs; yields the base URL for clients, which ends in /v1.

    `slots` requests run at once, each with room for `context` tokens, on OMP_NUM_THREADS threads.
    Adapters are off unless a request switches them on: see `choosing`. LabError if a package or a
    file is missing, or if the server does not answer within `seconds`.
    """
    if "xllamacpp" in missing():
        raise LabError(f"xllamacpp is missing: {INSTALL}")
    for path in (model, *adapters):
        if not Path(path).is_file():
            raise LabError(f"no file {path}")
    order = {
        "model": str(Path(model).resolve()),
        "adapters": [str(Path(path).resolve()) for path in adapters],
        "slots": slots,
        "context": context,
    }
    command = [sys.executable, "-m", __name__, json.dumps(order)]
    here = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command, text=True, env=os.environ | {"PYTHONPATH": paths}, **pipes)
    try:
        yield _address(child, seconds) + "/v1"
    finally:
        _stop(child)


def choosing(names: Sequence[str], name: str | None) -> Mapping:
    """The `extra_body` of a request for adapter `name` of the server's `names`, or for none.

    llama.cpp numbers its adapters and ignores unknown numbers, so an unknown name raises LabError
    here, before anything is sent. Each prompt is processed anew, since llama.cpp was found to look
    up its prompt cache by tokens, whatever adapter had filled the cache (ggml-org/llama.cpp issue
    26207).
    """
    if name is not None and name not in names:
        raise LabError(f"no adapter {name!r}: the server has {', '.join(names) or 'none'}")
    scales = [{"id": i, "scale": float(other == name)} for i, other in enumerate(names)]
    return {"lora": scales, "cache_prompt": False}


def ask(
    client: "OpenAI", messages: list[dict], max_tokens: int, extra: Mapping | None = None
) -> str:
    """Return the server's greedy answer to `messages` as text; a final answer there is dropped."""
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    how = {"model": "gguf", "max_tokens": max_tokens, "temperature": 0, "extra_body": extra}
    return client.chat.completions.create(messages=asked, **how).choices[0].message.content.strip()


def ask_all(
    client: "OpenAI",
    conversations: Sequence[list[dict]],
    max_tokens: int,
    extras: Sequence[Mapping | None],
    at_once: int = 4,
) -> list[str]:
    """Call `ask` on each conversation with its own `extra`, `at_once` at a time, in order."""
    with ThreadPoolExecutor(at_once) as pool:
        jobs = [
            pool.submit(ask, client, messages, max_tokens, extra)
            for messages, extra in zip(conversations, extras, strict=True)
        ]
        return [job.result() for job in jobs]


def prompt_ids(address: str, messages: list[dict]) -> list[int]:
    """The token ids that the server at `address` gives a conversation, up to its answer.

    Compare these ids with the training ids before you compare answers.
    """
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    text = _post(address, "/apply-template", {"messages": asked})["prompt"]
    body = {"content": text, "add_special": True, "parse_special": True}
    return _post(address, "/tokenize", body)["tokens"]


def _post(address, path, body):
    """Call one of llama.cpp's own routes, which OpenAI's protocol lacks."""
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(address.removesuffix("/v1") + path, data, kind)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def _address(child, seconds):
    """Wait for the child's address; LabError if the child ends first or takes too long."""
    timer = threading.Timer(seconds, child.kill)
    timer.start()
    try:
        for line in child.stdout:
            if line.startswith(READY):
                return line.removeprefix(READY).strip()
    finally:
        timer.cancel()
    raise LabError(f"llama.cpp did not start within {seconds:g} s, or could not read its files")


def _stop(child):
    child.stdin.close()
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    child.stdout.close()


def _serve(order):
    """Run in the child: start llama.cpp, print the address, and wait until the input ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = order["model"]
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = order["slots"], order["slots"] * order["context"]
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # waiting threads use no CPU
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads):  # as in torch; default: one per core
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.use_jinja, params.ui, params.verbosity = True, False, 0
    adapters = []
    for path in order["adapters"]:
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = path, 0.0
        adapters.append(info)
    params.lora_adapters = adapters
    server = xllamacpp.Server(params)
    print(READY + server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # its threads would keep running


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
