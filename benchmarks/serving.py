"""Answers and speed of engines that serve one base and several adapters, beside PEFT's.

    python benchmarks/serving.py answers                        # llama.cpp, of the extra `serve`
    python benchmarks/serving.py speed
    python benchmarks/serving.py answers --vllm PATH/python     # vLLM, in an environment of its own
    python benchmarks/serving.py speed --vllm PATH/python

Two adapters are lab 7's (30 steps of `home` and of two groups of `tickets`). `answers`: each has 60
held-out prompts, greedily, in PEFT (fp32), and in the engine from weights of 16 bits. Where an
answer differs, the two texts and the gap between PEFT's two likeliest tokens at the first place of
difference are printed: a near tie is rounding, a wide gap is not. `speed`: new tokens a second of
1, 8 and 32 requests at once, 32 tokens each, the median and the range of three rounds, no prompt
twice; of a merged model, of one adapter apart, and of both mixed. OMP_NUM_THREADS=1 gives each
engine one thread: where other work runs beside, two wait for each other at every product.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import studies
import torch
from peft import PeftModel

from labkit import tasks
from labkit.ship import gguf, server
from labkit.training import generation, hardware, models, serving

NAMES, PROMPTS, LIMIT = ("home", "tickets"), 60, 48
OPTIONS = {"home": {}, "tickets": {"groups": ("delivery", "returns")}}
AT_ONCE, ROUNDS, NEW = (1, 8, 32), 3, 32


def adapters(tokenizer):
    """{task: folder of lab 7's adapter}, trained now or taken from its cache."""
    lab = studies.of_lab("07_ship", "train_on", "as_pairs")
    lab |= {"tokenizer": tokenizer, "lab": SimpleNamespace(device=hardware.device())}
    rows = {name: tasks.load(name, "train", **OPTIONS[name]) for name in NAMES}
    rows["tickets"] = lab["as_pairs"](rows["tickets"])
    return {name: lab["train_on"](rows[name], 30, name).folder for name in NAMES}


def prompts(n):
    """{task: n held-out conversations}."""
    rows = {name: tasks.load(name, "test", **OPTIONS[name]).shuffle(seed=1) for name in NAMES}
    return {name: data["messages"][:n] for name, data in rows.items()}


def merged(folders):
    """The base with the first adapter in its weights."""
    base = models.load(dtype=torch.float32)[0]
    return PeftModel.from_pretrained(base, folders[NAMES[0]]).merge_and_unload()


@contextlib.contextmanager
def llama_cpp(folders, tokenizer, apart):
    """llama.cpp's address, and what names an adapter in a request."""
    with tempfile.TemporaryDirectory() as shelf:
        shelf, parts = Path(shelf), []
        model = models.load()[0] if apart else merged(folders)
        ground = gguf.write_model(model, tokenizer, shelf / "base.gguf", "f16")
        for name, folder in folders.items() if apart else ():
            parts.append(gguf.write_adapter(folder, model.config, shelf / f"{name}.gguf"))
        names = NAMES if apart else ()
        with server.llama_cpp(ground, parts, slots=max(AT_ONCE), context=512) as address:
            yield address, lambda name: server.choosing(names, name if apart else None)


@contextlib.contextmanager
def vllm(python, folders, tokenizer, apart):
    """The same of vLLM in another environment."""
    with tempfile.TemporaryDirectory() as shelf:
        model = models.path("smollm2-135m") if apart else Path(shelf)
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--served-model-name", "base", "--dtype", "bfloat16", "--enforce-eager"]
        command += ["--max-model-len", "512", "--max-num-seqs", str(max(AT_ONCE))]
        if apart:
            command += ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "2"]
            command += ["--lora-modules", *(f"{name}={at}" for name, at in folders.items())]
        else:
            merged(folders).bfloat16().save_pretrained(shelf)
            tokenizer.save_pretrained(shelf)
        env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        env |= (
            {"VLLM_CPU_OMP_THREADS_BIND": "0"} if os.environ.get("OMP_NUM_THREADS") == "1" else {}
        )
        env.pop("PYTHONPATH", None)
        with serving.running("vLLM", command, env, seconds=300) as address:
            yield address, lambda name: {"model": name if apart else "base"}


def ask(address, messages, body):
    """An answer's text and its number of tokens, over OpenAI's protocol."""
    data = json.dumps({"model": "base", "messages": messages[:-1], "temperature": 0} | body)
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/chat/completions", data.encode(), kind)
    with urllib.request.urlopen(request, timeout=600) as answer:
        told = json.load(answer)
    return told["choices"][0]["message"]["content"].strip(), told["usage"]["completion_tokens"]


def gap(fleet, tokenizer, messages, mine, other):
    """Where two answers part: PEFT's two likeliest tokens there, and their logits' difference."""
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=False
    )
    ids, others = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (mine, other))
    n = next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), None)
    n = min(len(ids), len(others)) if n is None else n
    with torch.no_grad():
        top = fleet(torch.tensor([prompt + ids[:n]])).logits[0, -1].topk(2)
    words = " | ".join(repr(tokenizer.decode(i)) for i in top.indices.tolist())
    return f"{words}, {top.values[0] - top.values[1]:.3f} apart"


def answers(serve, folders, tokenizer):
    """Print how many of the engine's answers are PEFT's, and each that is not."""
    asked = prompts(PROMPTS)
    fleet = PeftModel.from_pretrained(models.load(dtype=torch.float32)[0], folders["home"], "home")
    fleet.eval().load_adapter(folders["tickets"], adapter_name="tickets")
    with serve(folders, tokenizer, True) as (address, choose):
        for name in NAMES:
            body = choose(name) | {"max_tokens": LIMIT}
            with ThreadPoolExecutor(8) as pool:
                jobs = [pool.submit(ask, address, messages, body) for messages in asked[name]]
                told = [job.result()[0] for job in jobs]
            fleet.set_adapter(name)
            theirs = generation.answers(fleet, tokenizer, asked[name], LIMIT)
            same = sum(a == b for a, b in zip(told, theirs, strict=True))
            print(f"{name:<8} {same} of {len(told)} answers are PEFT's", flush=True)
            for messages, a, b in zip(asked[name], theirs, told, strict=True):
                if a != b:
                    print(f"    {a!r}\n    {b!r}\n    {gap(fleet, tokenizer, messages, a, b)}")


def speed(serve, folders, tokenizer):
    """Print new tokens a second, merged, apart and mixed, by the number of requests at once."""
    most = ROUNDS * max(AT_ONCE)
    asked = prompts(most)
    one = [(NAMES[0], messages) for messages in asked[NAMES[0]]]
    both = [(NAMES[i % 2], asked[NAMES[i % 2]][i // 2]) for i in range(most)]
    for apart, plans in ((False, {"merged": one}), (True, {"apart": one, "mixed": both})):
        with serve(folders, tokenizer, apart) as (address, choose):
            for way, plan in plans.items():
                for n in AT_ONCE:
                    rates = sorted(_rates(address, choose, plan, n))
                    told = f"{rates[1]:.1f} ({rates[0]:.1f} to {rates[-1]:.1f})"
                    print(f"{way:<7} {n:>2} at once: {told} tokens a second", flush=True)


def _rates(address, choose, plan, n):
    """A number a round, with prompts that no round before it had."""
    body = {"max_tokens": NEW, "ignore_eos": True}
    with ThreadPoolExecutor(n) as pool:
        for k in range(ROUNDS):
            begun = time.perf_counter()
            jobs = [
                pool.submit(ask, address, messages, choose(name) | body)
                for name, messages in plan[k * n : (k + 1) * n]
            ]
            made = sum(job.result()[1] for job in jobs)
            yield made / (time.perf_counter() - begun)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("answers", "speed"))
    parser.add_argument("--vllm", help="the python of an environment that has vLLM")
    given = parser.parse_args()
    tokenizer = models.tokenizer("smollm2-135m")[0]
    folders = adapters(tokenizer)
    serve = partial(vllm, given.vllm) if given.vllm else llama_cpp
    {"answers": answers, "speed": speed}[given.what](serve, folders, tokenizer)


if __name__ == "__main__":
    main()
