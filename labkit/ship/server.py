"""llama.cpp on this machine: one base as GGUF with separate adapters, for OpenAI's clients.

The package `xllamacpp` contains llama.cpp's own server. It runs in a child process, listens only on
127.0.0.1, and ends with the block or with the parent process.
"""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.training import serving

if TYPE_CHECKING:
    from openai import OpenAI

NEEDS = ("openai", "xllamacpp")
INSTALL = serving.INSTALL
READY = "listening on "  # printed by the child once it answers


def missing() -> list[str]:
    """The packages that this module needs, from the extra `serve`, and that are not installed."""
    return serving.missing(NEEDS)


@contextmanager
def llama_cpp(
    model: str | Path,
    adapters: Sequence[str | Path] = (),
    slots: int = 4,
    context: int = 1024,
    seconds: float = 120,
) -> Iterator[str]:
    """Serve a GGUF while the block runs; yields the base URL for clients, which ends in /v1.

    `slots` requests run at once, each with `context` tokens, on OMP_NUM_THREADS threads. Adapters
    are off unless a request chooses one: see `choosing`. LabError when a package or a file is
    missing, or when the server does not answer within `seconds`.
    """
    if serving.missing(["xllamacpp"]):
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
    """The `extra_body` of a request that wants adapter `name` of the server's `names`, or none.

    llama.cpp ignores unknown adapter numbers, so an unknown name is a LabError here. Prompts are
    not cached, because the cache is looked up by tokens, regardless of the adapter
    (ggml-org/llama.cpp issue 26207).
    """
    if name is not None and name not in names:
        raise LabError(f"no adapter {name!r}: the server has {', '.join(names) or 'none'}")
    scales = [{"id": i, "scale": float(other == name)} for i, other in enumerate(names)]
    return {"lora": scales, "cache_prompt": False}


def ask(
    client: "OpenAI", messages: list[dict], max_tokens: int, extra: Mapping | None = None
) -> str:
    """The server's greedy answer to `messages`, a text; a trailing answer is dropped."""
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
    """`ask` for each conversation with its own `extra`, `at_once` in parallel; answers in order."""
    with ThreadPoolExecutor(at_once) as pool:
        jobs = [
            pool.submit(ask, client, messages, max_tokens, extra)
            for messages, extra in zip(conversations, extras, strict=True)
        ]
        return [job.result() for job in jobs]


def prompt_ids(address: str, messages: list[dict]) -> list[int]:
    """The ids that the server makes of a conversation, up to where its answer begins.

    Compare them with training's before you compare answers.
    """
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    text = _post(address, "/apply-template", {"messages": asked})["prompt"]
    body = {"content": text, "add_special": True, "parse_special": True}
    return _post(address, "/tokenize", body)["tokens"]


def tokens_per_second(
    address: str,
    conversations: Sequence[list[dict]],
    n: int,
    extras: Sequence[Mapping],
    rounds: int = 3,
) -> list[float]:
    """New tokens per second in each round: all conversations at once, n tokens for each.

    The time includes reading the prompts, again in each round.
    """

    def generate(messages, extra):
        body = {"prompt": prompt_ids(address, messages), "n_predict": n, "ignore_eos": True}
        body |= {"cache_prompt": False} | dict(extra)
        return _post(address, "/completion", body)["tokens_predicted"]

    rates = []
    with ThreadPoolExecutor(len(conversations)) as pool:
        for _ in range(rounds):
            begun = time.perf_counter()
            made = sum(pool.map(generate, conversations, extras))
            rates.append(made / (time.perf_counter() - begun))
    return rates


def _post(address, path, body):
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(address.removesuffix("/v1") + path, data, kind)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def _address(child, seconds):
    """The child's address once it listens; LabError if it exits, or takes too long."""
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
    serving.stop(child)
    child.stdout.close()


def _serve(order):
    """The child: start llama.cpp, print its address, and wait until the input closes."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = order["model"]
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = order["slots"], order["slots"] * order["context"]
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # waiting threads don't spin
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads):  # as torch does; else one per core
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
