"""llama.cpp served from a file: its answers are PEFT's, and it is gone afterwards."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch

from labkit import tasks
from labkit.errors import LabError
from labkit.ship import gguf, recipes, server, vocabulary
from labkit.training import generation, models

pytest.importorskip("xllamacpp")
PROMPTS = ["turn on the lamp", "the kitchen", "12 times in the kitchen turn", "on"]


def conversation(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def files(make, tokenizer, tmp_path_factory):
    """A base and two adapters as GGUF, and the PeftModel with both."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("files")
    base = gguf.write_model(make(), tokenizer, folder / "base.gguf", "f32")
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}
    model = get_peft_model(make(), LoraConfig(task_type="CAUSAL_LM", **settings), "one")
    model.add_adapter("two", LoraConfig(task_type="CAUSAL_LM", **settings))
    rng = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=rng) * 0.3
    model.save_pretrained(folder)
    parts = [
        gguf.write_adapter(folder / name, model.config, folder / f"{name}.gguf")
        for name in ("one", "two")
    ]
    return base, parts, model.eval()


def greedy(model, tokenizer, name, text, n=8):
    """PEFT's answer, with an adapter or without."""
    ids = tokenizer.apply_chat_template(
        conversation(text), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    if name is None:
        with model.disable_adapter():
            out = model.generate(**ids, max_new_tokens=n, do_sample=False)
    else:
        model.set_adapter(name)
        out = model.generate(**ids, max_new_tokens=n, do_sample=False)
    new = out[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def plainly(text):
    """An answer without what two decoders write in their own ways."""
    return " ".join(text.split()).replace("\ufffd", "")


def children():
    """Servers that this process has started and that live."""
    living = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # gone meanwhile, or a zombie
            if "labkit.ship.server" in " ".join(process.cmdline()):
                living.append(process)
    return living


def test_each_request_has_its_own_adapter(files, tokenizer):
    from openai import OpenAI

    base, parts, model = files
    plan = [(name, text) for text in PROMPTS for name in ("one", None, "two")]
    with server.llama_cpp(base, parts, context=256) as address:
        assert address.startswith("http://127.0.0.1:")
        (child,) = children()
        assert {c.laddr.ip for c in child.net_connections() if c.status == "LISTEN"} == {
            "127.0.0.1"
        }
        client = OpenAI(base_url=address, api_key="none", timeout=60)
        extras = [server.choosing(["one", "two"], name) for name, _ in plan]
        asked = [conversation(text) for _, text in plan]
        got = server.ask_all(client, asked, 8, extras)
        ids = server.prompt_ids(address, asked[0])
        rates = server.tokens_per_second(address, asked[:3], 4, extras[:3], rounds=2)
    wanted = [greedy(model, tokenizer, *one) for one in plan]
    equal = [plainly(a) == plainly(b) for a, b in zip(got, wanted, strict=True)]
    told = [
        pair for pair, same in zip(zip(got, wanted, strict=True), equal, strict=True) if not same
    ]
    assert sum(equal) >= 0.75 * len(plan), told  # keys and values are in fp16: near ties may turn
    others = [greedy(model, tokenizer, "two" if name == "one" else "one", t) for name, t in plan]
    assert not any(plainly(a) == plainly(b) for a, b in zip(got, others, strict=True))
    right = tokenizer.apply_chat_template(asked[0], add_generation_prompt=True, return_dict=False)
    assert ids == right
    assert len(rates) == 2 and min(rates) > 0
    assert children() == []


def test_one_prompt_through_another_adapter_is_read_anew(files):
    """llama.cpp's cache of prompts does not know which adapter has made what it keeps."""
    from openai import OpenAI

    base, parts, _ = files
    names, asked = ("one", "two"), conversation(" ".join(PROMPTS))
    choices = [server.choosing(names, name) for name in names]
    alone = []
    for choice in choices:
        with server.llama_cpp(base, parts, slots=1, context=256) as address:
            client = OpenAI(base_url=address, api_key="none", timeout=60)
            alone.append(server.ask(client, asked, 8, choice))
    with server.llama_cpp(base, parts, slots=1, context=256) as address:
        client = OpenAI(base_url=address, api_key="none", timeout=60)
        in_turn = [server.ask(client, asked, 8, choices[k]) for k in (0, 1, 0)]
    assert in_turn == [alone[0], alone[1], alone[0]] and alone[0] != alone[1]


@pytest.mark.thorough
def test_sixty_answers_of_the_course_s_model_are_peft_s(tmp_path):
    """Three adapters of random numbers on the real base: fp32 in PEFT, F16 in llama.cpp."""
    from openai import OpenAI
    from peft import LoraConfig, get_peft_model

    names = ("one", "two", "three")
    base, tokenizer = models.load(dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM")
    ground = gguf.write_model(base, tokenizer, tmp_path / "base.gguf", "f16")
    model = get_peft_model(base, lora, "one").eval()
    for name in names[1:]:
        model.add_adapter(name, lora)
    rng = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=rng) * 0.15
    model.save_pretrained(tmp_path)
    parts = [gguf.write_adapter(tmp_path / n, model.config, tmp_path / f"{n}.gguf") for n in names]
    asked = [conversation(text) for text in tasks.load("home", "test")["text"][:60]]
    plan = [name for name in names for _ in range(20)]  # the most of them in batches of one adapter
    with server.llama_cpp(ground, parts, slots=6, context=256) as address:
        client = OpenAI(base_url=address, api_key="none", timeout=120)
        extras = [server.choosing(names, name) for name in plan]
        got = server.ask_all(client, asked, 6, extras, at_once=6)
    wanted, others = [], []
    for k, name in enumerate(names):
        model.set_adapter(name)
        wanted += generation.answers(model, tokenizer, asked[20 * k : 20 * k + 20], 6)
        others += generation.answers(model, tokenizer, asked[:5], 6) if k else []
    unlike = [pair for pair in zip(got, wanted, strict=True) if pair[0] != pair[1]]
    assert len(unlike) <= 3, unlike
    alike = [a == b for a, b in zip(others, wanted[:5] * 2, strict=True)]
    assert sum(alike) < 5, "the adapters hardly differ"


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
    from openai import OpenAI

    tokenizer = cutting(vocabulary.RULES[rule])
    model = make(family, vocab_size=len(tokenizer), **changes)
    base = gguf.write_model(model, tokenizer, tmp_path / "b.gguf", "f32")
    model = adapted(model=model)
    model.save_pretrained(tmp_path)
    part = gguf.write_adapter(tmp_path, model.config, tmp_path / "a.gguf")
    texts = [*PROMPTS, "it's 12345,  WE'LL see\n\n  2024", "the lamp " * 20]
    with server.llama_cpp(base, [part], context=512) as address:
        client = OpenAI(base_url=address, api_key="none", timeout=60)
        asked = [conversation(text) for text in texts]
        got = server.ask_all(client, asked, 8, [server.choosing(["a"], "a")] * len(asked))
        ids = [server.prompt_ids(address, one) for one in asked]
    wanted = [greedy(model, tokenizer, "default", text) for text in texts]
    assert ids == [
        tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False)
        for one in asked
    ]
    equal = [plainly(a) == plainly(b) for a, b in zip(got, wanted, strict=True)]
    assert sum(equal) >= len(equal) - 1, list(zip(got, wanted, strict=True))


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(LabError, match="no adapter 'tow': the server has one, two"):
        server.choosing(["one", "two"], "tow")
    off = [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
    assert server.choosing(["one", "two"], None) == {"lora": off, "cache_prompt": False}


def test_it_is_gone_after_an_error_and_after_its_starter(files):
    base, parts, _ = files
    with pytest.raises(ZeroDivisionError), server.llama_cpp(base, parts, context=256):
        assert len(children()) == 1
        _ = 1 / 0
    assert children() == []
    code = f"""
        import time
        from labkit.ship import server
        with server.llama_cpp({str(base)!r}, context=256) as address:
            print(address, flush=True)
            time.sleep(300)
    """
    python = [sys.executable, "-c", textwrap.dedent(code)]
    paths = os.pathsep.join(
        [str(Path(server.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    starter = subprocess.Popen(
        python, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert starter.stdout.readline().startswith("http://127.0.0.1:")
    (child,) = children()
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    until = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_cannot_be_served_is_one_line(files, tmp_path):
    base, _, _ = files
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and no more")
    for model, adapters, said in (
        (tmp_path / "none.gguf", [], "no file"),
        (base, [tmp_path / "none.gguf"], "no file"),
        (broken, [], "did not start"),
    ):
        with pytest.raises(LabError, match=said), server.llama_cpp(model, adapters, seconds=60):
            pass
    assert children() == []


def test_without_the_package_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(server.serving, "find_spec", lambda name: None)
    assert server.missing() == ["openai", "xllamacpp"]
    with pytest.raises(LabError, match="serve"), server.llama_cpp(tmp_path / "any.gguf"):
        pass


def test_lines_for_others():
    text = recipes.modelfile("files/base.gguf", "files/one.gguf", "Be brief.")
    assert text.splitlines()[:2] == ["FROM ./base.gguf", "ADAPTER ./one.gguf"]
    assert '"""Be brief."""' in text and "SYSTEM" not in recipes.modelfile("base.gguf")
    adapters = {"one": "one.gguf", "two": "two.gguf"}
    assert recipes.llama_server("base.gguf", adapters).endswith("--lora one.gguf,two.gguf")
    assert "one=./one two=./two" in recipes.vllm("me/base", {"one": "./one", "two": "./two"}, 16)
