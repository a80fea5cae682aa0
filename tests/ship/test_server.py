"""llama.cpp served from a file: its answers are PEFT's, and it is gone afterwards."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from labkit import tasks
from labkit.errors import LabError
from labkit.ship import gguf, server, vocabulary
from labkit.training import models
from labkit.training.loop import prompt_ids

pytest.importorskip("xllamacpp")
openai = pytest.importorskip("openai")
PROMPTS = ["turn on the lamp", "the kitchen", "12 times in the kitchen turn", "on"]


def conversation(text):
    return [{"role": "user", "content": text}]


def as_files(model, folder):
    model.save_pretrained(folder)
    return {
        name: gguf.write_adapter(folder / name, model.config, folder / f"{name}.gguf")
        for name in model.peft_config
    }


@pytest.fixture(scope="module")
def files(make, adapted, tokenizer, tmp_path_factory):
    """A base and two adapters as GGUF, and the PeftModel with both."""
    folder = tmp_path_factory.mktemp("files")
    base = gguf.write_model(make(), tokenizer, folder / "base.gguf", "f32")
    model = adapted(names=("one", "two"))
    return base, as_files(model, folder), model


def answers(address, adapters, plan, n=8, at_once=4):
    """The server's answers to a plan's (name of an adapter, text)."""
    client = openai.OpenAI(base_url=address, api_key="none", timeout=120)
    extras = [server.choosing(list(adapters), name) for name, _ in plan]
    asked = [conversation(text) for _, text in plan]
    return server.ask_all(client, asked, n, extras, at_once)


def greedy(model, tokenizer, plan, n=8):
    """PEFT's answers, with an adapter or without."""
    found = []
    for name, text in plan:
        ids = torch.tensor([prompt_ids(tokenizer, conversation(text))])
        if name:
            model.set_adapter(name)
        with contextlib.nullcontext() if name else model.disable_adapter():
            out = model.generate(ids, max_new_tokens=n, do_sample=False)
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return found


def unlike(got, wanted):
    """The pairs that differ, but for what two decoders write in their own ways."""
    plainly = lambda text: " ".join(text.split()).replace("\ufffd", "")  # noqa: E731
    pairs = zip(map(plainly, got), map(plainly, wanted), strict=True)
    return [pair for pair in pairs if pair[0] != pair[1]]


def children():
    living = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # gone meanwhile, or a zombie
            if "labkit.ship.server" in " ".join(process.cmdline()):
                living.append(process)
    return living


def test_each_request_has_its_own_adapter(files, tokenizer):
    base, adapters, model = files
    plan = [(name, text) for text in PROMPTS for name in ("one", None, "two")]
    with server.llama_cpp(base, adapters.values(), context=256) as address:
        (child,) = children()
        heard = {c.laddr.ip for c in child.net_connections() if c.status == "LISTEN"}
        got = answers(address, adapters, plan)
    assert heard == {"127.0.0.1"} and children() == []
    told = unlike(got, greedy(model, tokenizer, plan))
    assert len(told) <= 3, told  # keys and values are in fp16: near ties may turn
    other = {"one": "two", "two": "one", None: "one"}
    swapped = greedy(model, tokenizer, [(other[name], text) for name, text in plan])
    assert len(unlike(got, swapped)) == len(plan)


def test_one_prompt_through_another_adapter_is_read_anew(files):
    """llama.cpp's cache of prompts does not know which adapter has made what it keeps."""
    base, adapters, _ = files
    one, two = ((name, " ".join(PROMPTS)) for name in ("one", "two"))
    told = []
    for plan in ([one], [two], [one, two, one]):
        with server.llama_cpp(base, adapters.values(), slots=1, context=256) as address:
            told.append(answers(address, adapters, plan, at_once=1))
    alone, other, in_turn = told
    assert in_turn == alone + other + alone and alone != other


@pytest.mark.thorough
def test_the_course_s_model_answers_as_in_peft(adapted, tmp_path):
    """Three adapters of random numbers on the real base: fp32 in PEFT, F16 in llama.cpp."""
    names = ("one", "two", "three")
    base, tokenizer = models.load(dtype=torch.float32)
    ground = gguf.write_model(base, tokenizer, tmp_path / "base.gguf", "f16")
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    model = adapted(base, names, std=0.06, r=2, lora_alpha=4, target_modules=targets)
    adapters = as_files(model, tmp_path)
    texts = tasks.load("home", "test")["text"][:4]
    plan = [(name, text) for name in names for text in texts]
    with server.llama_cpp(ground, adapters.values(), slots=6, context=256) as address:
        got = answers(address, adapters, plan, n=6, at_once=6)
    told = unlike(got, greedy(model, tokenizer, plan, n=6))
    assert len(told) <= 1, told
    assert len(unlike(got, got[4:] + got[:4])) > 8, "the adapters hardly differ"


LLAMA_3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA_3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("family", "rule", "changes"),
    [
        ("qwen2", "qwen2", {}),
        ("qwen3", "qwen2", {"head_dim": 16}),
        ("llama", "llama-bpe", {"rope_parameters": LLAMA_3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_family_answers_as_in_peft(adapted, make, cutting, tmp_path, family, rule, changes):
    """Base and adapter as files: words are cut alike, and the adapter's answers are PEFT's."""
    tokenizer = cutting(vocabulary.RULES[rule])
    model = make(family, vocab_size=len(tokenizer), **changes)
    base = gguf.write_model(model, tokenizer, tmp_path / "b.gguf", "f32")
    model = adapted(model, ("a",))
    adapters = as_files(model, tmp_path)
    texts = [*PROMPTS, "it's 12345,  WE'LL see\n\n  2024", "the lamp " * 20]
    plan = [("a", text) for text in texts]
    with server.llama_cpp(base, adapters.values(), context=512) as address:
        got = answers(address, adapters, plan)
        ids = [server.prompt_ids(address, conversation(text)) for text in texts]
    assert ids == [prompt_ids(tokenizer, conversation(text)) for text in texts]
    told = unlike(got, greedy(model, tokenizer, plan))
    assert len(told) <= 1, told


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(LabError, match="no adapter 'tow': the server has one, two"):
        server.choosing(["one", "two"], "tow")
    off = [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
    assert server.choosing(["one", "two"], None) == {"lora": off, "cache_prompt": False}


STARTER = """
import sys, time
from labkit.ship import server
with server.llama_cpp(sys.argv[1], context=256) as address:
    print(address, flush=True)
    time.sleep(300)
"""


def test_it_is_gone_after_an_error_and_after_its_starter(files):
    base, adapters, _ = files
    with pytest.raises(ZeroDivisionError), server.llama_cpp(base, adapters.values(), context=256):
        assert len(children()) == 1
        _ = 1 / 0
    assert children() == []
    env = os.environ | {"PYTHONPATH": str(Path(server.__file__).parents[2])}
    command = [sys.executable, "-c", STARTER, str(base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as starter:
        assert starter.stdout.readline().startswith("http://127.0.0.1:")
        (child,) = children()
        starter.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_cannot_be_served_is_one_line(files, tmp_path):
    none, broken = tmp_path / "none.gguf", tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and no more")
    for model, adapters, said in (
        (none, [], "no file"),
        (files[0], [none], "no file"),
        (broken, [], "did not start"),
    ):
        with pytest.raises(LabError, match=said), server.llama_cpp(model, adapters, seconds=60):
            pass
    assert children() == []


def test_without_the_package_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    assert server.missing() == ["openai", "xllamacpp"]
    with pytest.raises(LabError, match="serve"), server.llama_cpp(tmp_path / "any.gguf"):
        pass
