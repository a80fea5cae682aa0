"""Answers and speed of engines that serve one base and several adapters, beside PEFT's.

    python benchmarks/serving.py                        # llama.cpp, of the extra `serve`
    python benchmarks/serving.py --vllm PATH/python     # vLLM as well, in an environment of its own

Two adapters are trained as in lab 7 (30 steps of `home` and of two groups of `tickets`, or taken
from its cache). Each answers 60 held-out prompts, greedily: in PEFT (fp32), and by an engine from
weights of 16 bits. Where an answer differs, the two texts and the gap between PEFT's two likeliest
tokens at the first place of difference are printed: a near tie is rounding, a wide gap is not.
Then 1, 8 and 32 mixed requests at once, new tokens a second, the median of three rounds.
"""

import argparse
import json
import os
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from trl import SFTConfig

from labkit import tasks
from labkit.ship import gguf, server
from labkit.training import finetuning, generation, hardware, models, serving

NAMES, PROMPTS, LIMIT = ("home", "tickets"), 60, 48
OPTIONS = {"home": {}, "tickets": {"groups": ("delivery", "returns")}}


def adapter(name, tokenizer):
    """The folder of lab 7's adapter for a task."""
    data = tasks.load(name, "train", **OPTIONS[name])
    if name == "tickets":
        data = data.map(
            lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
            remove_columns=data.column_names,
        )
    where = {"target_modules": "all-linear", "bias": "none", "task_type": "CAUSAL_LM"}
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, **where)
    size = {"max_length": 512, "max_steps": 30, "per_device_train_batch_size": 8}
    flags = hardware.flags(hardware.device())
    args = SFTConfig("build/ship", learning_rate=2e-3, report_to="none", **size, **flags)
    return finetuning.finetune(models.load()[0], tokenizer, data, lora, args, title=name).folder


def vllm(python, base, folders):
    """vLLM's server in another environment, while a block runs; its base URL."""
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base)]
    command += ["--dtype", "bfloat16", "--max-model-len", "1024", "--max-num-seqs", "32"]
    command += ["--enforce-eager", "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2"]
    command += ["--lora-modules", *(f"{name}={folder}" for name, folder in folders.items())]
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONPATH", None)
    return serving.running("vLLM", command, env, seconds=300)


def ask(address, messages, name, limit, choose):
    """An answer's text and its number of tokens, over OpenAI's protocol."""
    body = {"messages": messages[:-1], "max_tokens": limit, "temperature": 0} | choose(name)
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/chat/completions", data, kind)
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


def compare(engine, address, fleet, tokenizer, asked, theirs, choose):
    """Print how many answers are PEFT's, and tokens a second of mixed requests."""
    for name in NAMES:
        with ThreadPoolExecutor(8) as pool:
            told = list(
                pool.map(lambda m, n=name: ask(address, m, n, LIMIT, choose)[0], asked[name])
            )
        same = sum(a == b for a, b in zip(told, theirs[name], strict=True))
        print(f"{engine:<10} {name:<8} {same} of {len(told)} answers are PEFT's", flush=True)
        fleet.set_adapter(name)
        for messages, a, b in zip(asked[name], theirs[name], told, strict=True):
            if a != b:
                print(f"    {a!r}\n    {b!r}\n    {gap(fleet, tokenizer, messages, a, b)}")
    mixed = [(name, messages) for pair in zip(*asked.values(), strict=True)
             for name, messages in zip(NAMES, pair, strict=True)]  # fmt: skip
    for n in (1, 8, 32):
        rates = []
        for _ in range(3):
            begun = time.perf_counter()
            with ThreadPoolExecutor(n) as pool:
                made = pool.map(lambda one: ask(address, one[1], one[0], LIMIT, choose), mixed[:n])
                rates.append(sum(count for _, count in made) / (time.perf_counter() - begun))
        print(f"{engine:<10} {n:>2} requests: {sorted(rates)[1]:.1f} tokens a second", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", help="the python of an environment that has vLLM")
    given = parser.parse_args()
    base, tokenizer = models.load(dtype=torch.float32)
    folders = {name: adapter(name, tokenizer) for name in NAMES}
    asked = {
        name: tasks.load(name, "test", **OPTIONS[name]).shuffle(seed=1)["messages"][:PROMPTS]
        for name in NAMES
    }
    fleet = PeftModel.from_pretrained(base, folders["home"], "home").eval()
    fleet.load_adapter(folders["tickets"], adapter_name="tickets")
    theirs = {}
    for name in NAMES:
        fleet.set_adapter(name)
        theirs[name] = generation.answers(fleet, tokenizer, asked[name], LIMIT)
    given_parts = (fleet, tokenizer, asked, theirs)
    with tempfile.TemporaryDirectory() as shelf:
        ground = gguf.write_model(models.load()[0], tokenizer, Path(shelf) / "base.gguf", "f16")
        parts = [
            gguf.write_adapter(folder, base.config, Path(shelf) / f"{name}.gguf")
            for name, folder in folders.items()
        ]
        with server.llama_cpp(ground, parts, slots=8, context=512) as address:
            compare("llama.cpp", address, *given_parts, lambda name: server.choosing(NAMES, name))
    if given.vllm:
        with vllm(given.vllm, models.path("smollm2-135m"), folders) as address:
            compare("vLLM", address, *given_parts, lambda name: {"model": name})


if __name__ == "__main__":
    main()
