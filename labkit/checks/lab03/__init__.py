"""Checks of lab 3. The reference is PEFT itself, or a formula of the check's own."""

import tempfile
from pathlib import Path

import torch

from labkit.checks.compare import ask, draw, expect_close, expect_number, expect_numbers_or_first
from labkit.checks.lab03 import guesses
from labkit.checks.lab03.configs import expect_lora, expect_object, expect_sft
from labkit.checks.lab03.matching import expect_matches
from labkit.checks.quiz import judge
from labkit.contract import exercise, expect, generator, observe, part
from labkit.labs import tiny
from labkit.labs.lab03 import probes


@exercise("3.1", points=2)
def config(lora_config):
    """alpha is twice the rank for any rank; dropout, bias, task and targets are as asked"""
    ranks = (torch.randperm(40, generator=generator())[:3] + 9).tolist()  # none is 8, PEFT's own
    targets = [["q_proj", "v_proj"], ["up_proj", "down_proj", "o_proj"], "all-linear"]
    expect_lora(lora_config, list(zip(ranks, targets, strict=True)))


ADAPTED = [
    ("SmolLM2-135M", ("q_proj", "v_proj")),
    ("Llama-2-7B", ("q_proj", "v_proj")),
    ("Llama-3.1-8B", ("q_proj", "k_proj", "v_proj", "o_proj")),
    ("Llama-3.1-8B", "all-linear"),
]


LOOPS = {
    "values to unpack": "a loop over a dict gives its names: shapes.values() gives the pairs",
    "can only concatenate": "a loop over .items() gives (name, (d_out, d_in))",
    "not subscriptable": "shapes maps a name to a pair (d_out, d_in): shapes.values()",
    "unsupported operand": "each value of shapes is a pair (d_out, d_in)",
    "has no attribute": "shapes is a dict of pairs (d_out, d_in), not of tensors or layers",
}


@exercise("3.2", points=2)
def counts(count_lora_params):
    """equals PEFT's count on SmolLM2-135M, Llama-2-7B and Llama-3.1-8B"""
    rng, cases = generator(), []
    ranks = [(11, 13, 17, 19, 23)[i] for i in torch.randperm(5, generator=rng)[:2]]
    for r in ranks:  # no rank is a factor that somebody writes down, and no two are the same
        names = [f"layers.{i}.{part}" for i in range(2) for part in ("q_proj", "mlp.up_proj")]
        shapes = {name: (draw(10, 49, rng), draw(50, 99, rng)) for name in names}
        wanted = r * sum(sum(pair) for pair in shapes.values())
        call = f"count_lora_params({{{names[0]!r}: {shapes[names[0]]}, … 3 more}}, r={r})"
        got = ask("", count_lora_params, shapes, r, hint=LOOPS)
        cases.append((call, got, wanted, guesses.counts(shapes, r)))
    expect_numbers_or_first(cases)  # one alone may be a misconception's by accident
    cases = []
    for model, targets in ADAPTED:
        shapes, wanted = probes.peft_count(model, targets)
        layers = targets if isinstance(targets, str) else ", ".join(targets)
        call = f"count_lora_params of {model}, {layers}, r=16"
        got = observe(count_lora_params, shapes, 16)
        cases.append((call, got, wanted, guesses.counts(shapes, 16)))
    expect_numbers_or_first(cases)


def _talk(rng, roles):
    """Messages of `roles`; capitals and outer spaces show who passes on another text."""
    texts = [f" {tiny.words(rng, 4, 9).title()} {i}\n" for i in range(len(roles))]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


@exercise("3.3", points=3)
def prompt_completion(to_prompt_completion):
    """the last answer alone is the completion; all turns before it are the prompt"""
    rng, turn, seen = generator(), ["user", "assistant"], []
    for roles in (turn, ["system", *turn], ["system", *turn, *turn], turn * 3):
        messages = _talk(rng, roles)
        example = {"messages": messages, "intent": "HassTurnOn"}
        got, left = ask("", probes.prompt_completion, to_prompt_completion, example, hint=TALKS)
        keys = f"; it has {', '.join(got)}" if isinstance(got, dict) else ""
        pair = isinstance(got, dict) and {"prompt", "completion"} <= set(got)
        wanted = '{"prompt": [...], "completion": [...]}'
        expect(pair, f"to_prompt_completion must return {wanted}{keys}")
        seen.append((got, left, messages, f"of {', '.join(roles)}"))
    with part():
        hint = "slice with [:-1] and [-1:] instead of pop()"
        same = all(left == messages for _, left, messages, _ in seen)
        expect(same, f"it changed the example's own messages; {hint}")
    with part():
        for got, _, messages, call in seen:
            _expect_completion(got["completion"], messages, call)
    with part():
        for got, _, messages, call in seen:
            _expect_prompt(got["prompt"], messages, call)


TALKS = {
    "unhashable type: 'slice'": 'example is a dict: slice example["messages"]',
    "KeyError": 'the list of messages is example["messages"]',
    "has no attribute": 'the list of messages is example["messages"], each one a dict',
}


def _turns(part, name, call):
    """A list of messages as (role, content) pairs; else what is wrong with it."""
    hint = "give a list of messages, so that TRL applies the model's chat template"
    expect(not isinstance(part, str), f"{name} {call} is text; {hint}")
    expect(not isinstance(part, dict), f"{name} {call} is a single message: put it in a list")
    good = isinstance(part, list) and all(isinstance(m, dict) for m in part)
    expect(good, f"{name} {call} is {str(part)[:40]}; {hint}")
    keys = all("role" in m and "content" in m for m in part)
    expect(keys, f"{name} {call}: a message lost its role or content")
    return [(m["role"], m["content"]) for m in part]


def _expect_completion(part, messages, call):
    got, wanted = (_turns(p, "completion", call) for p in (part, messages))
    hint = "the completion is the last answer alone, or the loss falls on the prompt too"
    expect(got != wanted, f"completion {call} holds the whole conversation; {hint}")
    first = next(pair for pair in wanted if pair[0] == "assistant")
    early = got == [first] != wanted[-1:]
    expect(not early, f"completion {call} is the first answer, wanted the last; use [-1:]")
    every = got == [pair for pair in wanted if pair[0] == "assistant"] != wanted[-1:]
    expect(not every, f"completion {call} holds every answer; earlier ones belong to the prompt")
    told = ", ".join(role for role, _ in got) or "nothing"
    _expect_unchanged(got, wanted, wanted[-1:], f"completion {call}")
    expect(got == wanted[-1:], f"completion {call} is {told}, wanted the last message alone")


def _expect_prompt(part, messages, call):
    got, wanted = (_turns(p, "prompt", call) for p in (part, messages))
    hint = "then the model reads what it should write"
    expect(wanted[-1] not in got, f"prompt {call} includes the answer; {hint}")
    told = ", ".join(role for role, _ in got) or "nothing"
    _expect_unchanged(got, wanted, wanted[:-1], f"prompt {call}")
    hint = "all that comes before the last answer, system message and earlier turns included"
    expect(got == wanted[:-1], f"prompt {call} is {told}, wanted {hint}")


def _expect_unchanged(got, messages, wanted, call):
    """The right roles do not come with a text that no message has."""
    same = [role for role, _ in got] == [role for role, _ in wanted]
    new = any(pair not in messages for pair in got)
    expect(not (same and new), f"{call}: a message's text was changed; pass messages as they are")
    expect(
        not new, f"{call} holds a message that `messages` does not: add none, TRL's template does"
    )
    turned = got != wanted and sorted(got) == sorted(wanted)
    expect(not turned, f"{call} is not in the order of `messages`")


@exercise("3.4", points=3)
def sft(sft_config):
    """the right precision on CPU, T4 and A100, a learning rate for LoRA, today's names"""
    expect_sft(sft_config)


@exercise("3.5", points=3)
def matches(exact_match):
    """the share of equal JSON data; key order and spaces don't count, invalid JSON is wrong"""
    expect_matches(exact_match, generator())


@exercise("3.6", points=3)
def perplexity_weighs_tokens(perplexity):
    """exp of the mean loss of all predicted tokens, padding left out"""
    rng = generator()
    seed = draw(1, 10**6, rng)
    model, tokenizer = tiny.language_model(seed)
    several = [tiny.words(rng, n, n) for n in (3, 17, 5, 26, 2, 11)]
    many = [
        tiny.words(rng, 2, 9) for _ in range(40)
    ]  # more than a batch, and a long one among them
    many.insert(draw(10, 30, rng), tiny.words(rng, 150, 150))
    for texts, name in (
        ([tiny.words(rng, 9, 9)], "one text"),
        (several, "6 texts"),
        ([f"{text} <end>" for text in several], "6 texts with <end>"),
        (many, "40 short texts and one of 150 words"),
        ([tiny.words(rng, 5, 5), tiny.words(rng, 600, 600)], "a text of 5 words and one of 600"),
    ):
        got = observe(probes.perplexity_of, perplexity, seed, texts)
        wanted, call = guesses.perplexity(model, tokenizer, texts), f"perplexity of {name}"
        expect_number(got["value"], wanted, call, _thought(got, wanted, seed, texts))


def _thought(got, wanted, seed, texts):
    """`{message: the learner's number}` where the number is wrong and a misconception gives it."""
    value = got["value"]
    if type(value) not in (int, float) or _near(value, wanted):
        return {}
    model, tokenizer = tiny.language_model(seed)
    longest = max(len(tokenizer(text)["input_ids"]) for text in texts)
    known = guesses.perplexities(model, tokenizer, texts)
    told = [message for message, number in known if _near(value, number, 5e-6)]
    if got["began"]:
        told.insert(0, "a token such as BOS stands before each text: add none")
    if got["training"]:
        told.insert(0, "the model was in train mode, where dropout is at work")
    if 1 < got["longest"] < longest - 1:  # one may read all tokens but the last
        least = f"a text has {longest} tokens, and the model saw {got['longest']} at most"
        told.append(f"{least}: cut none")
    return {message: value for message in told[:1]}


def _near(value, number, tol=1e-4):
    return abs(value - number) <= tol * abs(number)


SIZED = {
    "No such file": "the weights are in adapter_model.safetensors",
    **dict.fromkeys(("unsupported operand", "subscriptable"), "folder is a Path: folder / name"),
}
LOADED = {
    "No adapter layers": "was the adapter merged? Leave it beside the base",
    "os.PathLike": "base comes first, then the folder",
    "Can't find 'adapter_config.json'": "the folder is the second argument",
}


@exercise("3.7", points=3)
def adapter_folder(adapter_bytes, load_tuned):
    """the size of adapter_model.safetensors; a PeftModel in eval mode with the same logits"""
    rng = generator()
    seed = draw(1, 10**6, rng)
    ids = torch.randint(len(tiny.WORDS), (2, 9), generator=rng)
    cases = [(r, *probes.tiny_adapted(seed, r)) for r in (draw(2, 4, rng), draw(5, 9, rng))]
    with part():
        for r, _, tuned in cases:
            _expect_bytes(ask("", probes.bytes_told, adapter_bytes, seed, r, hint=SIZED), tuned)
    with part():
        for r, base, tuned in cases:
            got = ask("", probes.reloaded, load_tuned, seed, r, ids, hint=LOADED)
            _expect_loaded(got, base, tuned, ids)


def _expect_loaded(got, base, tuned, ids):
    """A PeftModel on `base` itself, in eval mode; the base is whole below the adapter."""
    expect_object(got, "PeftModel", "load_tuned(base, folder)")
    with part():
        hint = "load_tuned left it in train mode, with dropout: call .eval()"
        expect(not got["training"], hint)
    with part():
        expect(
            got["own"],
            "load_tuned puts the adapter on another model than `base`",
            hint="it takes the memory twice: put the adapter on `base` itself",
        )
    with part():
        hint = "leave it beside them, and another one can take its turn"
        expect(not got["merged"], f"load_tuned merges the adapter into the base's weights: {hint}")
    with torch.no_grad():
        wanted, plain = (m(input_ids=ids).logits for m in (tuned, base))
    fresh = {
        "these are the base model's: the saved adapter isn't loaded, or is switched off": plain
    }
    expect_close(got["logits"], wanted, "the logits after load_tuned", fresh)
    hint = "load_tuned changed the base's own weights: don't merge"
    same = got["plain"].shape == plain.shape and torch.allclose(got["plain"], plain, atol=1e-4)
    expect(same, f"with the adapter off, the logits are not the base model's; {hint}")


def _expect_bytes(got, tuned):
    with tempfile.TemporaryDirectory() as folder:
        probes.save_adapter(tuned, folder)
        sizes = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
        weights = Path(folder) / "adapter_model.safetensors"
        text = weights.read_text(encoding="utf-8", errors="ignore")
        entry = Path(folder).stat().st_size
    wanted = sizes["adapter_model.safetensors"]
    tensors = sum(p.numel() for n, p in tuned.named_parameters() if "lora_" in n)
    guesses = {
        "this is the whole folder": sum(sizes.values()),
        **{f"this is {name}; wanted adapter_model.safetensors": n for name, n in sizes.items()},
        "adapter_config.json is no weights": wanted + sizes["adapter_config.json"],
        "this is in kilobytes": wanted / 1024,
        "this is in whole kilobytes": wanted // 1024,
        "this is in thousands of bytes": wanted / 1000,
        "this is in megabytes": wanted / 1e6,
        "this is in MiB": wanted / 2**20,
        "these are bits": 8 * wanted,
        "these are characters of text; the file holds bytes: ask its size": len(text),
        "this counts numbers, not bytes": tensors,
        "these are the tensors alone; the file has a header too: ask for its size": 4 * tensors,
        "this is the folder's own entry, or whole blocks on the disk; ask the file's size": entry,
    }
    expect(not isinstance(got, list), "adapter_bytes gave a list, or all of stat(): take .st_size")
    if isinstance(got, int) and got < 200:
        told = "this is a count of files, or the size of a Python object: ask .stat().st_size"
        guesses.setdefault(told, got)
    expect_number(got, wanted, "adapter_bytes(folder)", guesses)


@exercise("3.8", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "03")
