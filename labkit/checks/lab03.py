"""Checks of lab 3. The reference is PEFT itself, or a formula of the check's own."""

import json
import tempfile
from pathlib import Path

import torch

from labkit.checks import guesses03 as guesses
from labkit.checks.compare import ask, expect_close, expect_number
from labkit.checks.quiz import judge
from labkit.grading.contract import exercise, expect, generator, observe
from labkit.probes import lab03 as probe


def _draw(low, high, rng):
    """An int from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def _words(rng, low, high):
    ids = torch.randint(len(probe.WORDS), (_draw(low, high, rng),), generator=rng)
    return " ".join(probe.WORDS[i] for i in ids)


def _expect_object(got, kind, call):
    """The learner returned an object of the right kind, so the probe brings its fields."""
    told = {
        "NoneType": "None (is `return` missing?)",
        "LlamaForCausalLM": "a plain LlamaForCausalLM (merged, or never adapted)",
    }.get(got.get("is"), f"a {got.get('is')}")
    expect("is" not in got, f"{call} gave {told}, wanted the type {kind}")


@exercise("3.1", points=2)
def config(lora_config):
    """alpha is twice the rank for any rank; dropout, bias, task and targets are as asked"""
    rng = generator()
    ranks = torch.randperm(40, generator=rng)[:3] + 3
    targets = [["q_proj", "v_proj"], ["up_proj", "down_proj", "o_proj"], "all-linear"]
    for r, layers in zip(ranks.tolist(), targets, strict=True):
        call = f"lora_config({r}, {layers!r})"
        got = ask(call, "", probe.config_fields, lora_config, r, layers)
        _expect_object(got, "LoraConfig", call)
        expect_number(got["r"], r, f"{call}: r")
        once = {"that is the rank itself, wanted twice the rank": r}
        expect_number(got["lora_alpha"], 2.0 * r, f"{call}: lora_alpha", once)
        zero = {"0 is PEFT's default: pass lora_dropout": 0.0}
        expect_number(got["lora_dropout"], 0.05, f"{call}: lora_dropout", zero)
        expect(got["bias"] == "none", f'{call}: bias is {got["bias"]!r}, wanted "none"')
        hint = "without it PEFT does not know that this is a language model"
        task = got["task_type"]
        expect(task == "CAUSAL_LM", f'{call}: task_type is {task}, wanted "CAUSAL_LM"; {hint}')
        _expect_targets(got["target_modules"], layers, call)
        others = ", ".join(f"{name}={value}" for name, value in got["others"].items())
        expect(not others, f"{call} sets {others} too; leave it out")


def _expect_targets(got, layers, call):
    wanted = layers if isinstance(layers, str) else sorted(layers)
    split = isinstance(layers, str) and isinstance(got, list) and got == sorted(set(layers))
    expect(not split, f'{call}: "all-linear" was taken apart into letters; pass targets as it is')
    boxed = got == [layers]
    expect(not boxed, f"{call}: target_modules is {got}, a list around it; pass targets as it is")
    hint = "targets is not passed on"
    expect(got == wanted, f"{call}: target_modules is {got}, wanted {wanted}; {hint}")


ADAPTED = [
    ("SmolLM2-135M", ("q_proj", "v_proj")),
    ("Llama-2-7B", ("q_proj", "v_proj")),
    ("Llama-3.1-8B", ("q_proj", "k_proj", "v_proj", "o_proj")),
    ("Llama-3.1-8B", "all-linear"),
]


@exercise("3.2", points=2)
def counts(count_lora_params):
    """equals PEFT's count on SmolLM2-135M, Llama-2-7B and Llama-3.1-8B"""
    rng = generator()
    for _ in range(2):
        r = _draw(3, 9, rng)
        names = [f"layers.{i}.{part}" for i in range(2) for part in ("q_proj", "mlp.up_proj")]
        shapes = {name: (_draw(10, 49, rng), _draw(50, 99, rng)) for name in names}
        wanted = r * sum(sum(pair) for pair in shapes.values())
        call = f"count_lora_params({{{names[0]!r}: {shapes[names[0]]}, … 3 more}}, r={r})"
        got = observe(count_lora_params, shapes, r)
        expect_number(got, wanted, call, guesses.counts(shapes, r))
    for model, targets in ADAPTED:
        shapes, wanted = probe.peft_count(model, targets)
        layers = targets if isinstance(targets, str) else ", ".join(targets)
        call = f"count_lora_params of {model}, {layers}, r=16"
        got = observe(count_lora_params, shapes, 16)
        expect_number(got, wanted, call, guesses.counts(shapes, 16))


def _talk(rng, roles):
    return [{"role": role, "content": f"{_words(rng, 4, 9)} {i}"} for i, role in enumerate(roles)]


@exercise("3.3", points=3)
def prompt_completion(to_prompt_completion):
    """the last answer alone is the completion; all turns before it are the prompt"""
    rng, turn = generator(), ["user", "assistant"]
    for roles in (turn, ["system", *turn], ["system", *turn, *turn], turn * 3):
        messages = _talk(rng, roles)
        example = {"messages": messages, "intent": "HassTurnOn"}
        got, left = observe(probe.prompt_completion, to_prompt_completion, example)
        call = f"of {', '.join(roles)}"
        pair = isinstance(got, dict) and {"prompt", "completion"} <= set(got)
        expect(pair, 'to_prompt_completion must return {"prompt": [...], "completion": [...]}')
        _expect_completion(got["completion"], messages, call)
        _expect_prompt(got["prompt"], messages, call)
        hint = "slice with [:-1] and [-1:] instead of pop()"
        expect(left == messages, f"it changed the example's own messages; {hint}")


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


PRECISION = {  # use_cpu, bf16, fp16
    "cpu": (True, False, False),
    "t4": (False, False, True),
    "a100": (False, True, False),
}
WHY = {
    ("cpu", "use_cpu"): "pass use_cpu=True, or a GPU of the machine would be taken",
    ("cpu", "bf16"): "TRL's default is bf16=True unless fp16 is set: say bf16=False",
    ("cpu", "fp16"): "fp16 needs a GPU's gradient scaler",
    ("t4", "use_cpu"): "the GPU would idle",
    ("t4", "bf16"): "a T4 has no bf16: fp16=True, bf16=False",
    ("t4", "fp16"): "a T4 has fp16 and no bf16; without either all runs in fp32",
    ("a100", "use_cpu"): "the GPU would idle",
    ("a100", "bf16"): "Ampere and newer have bf16, which needs no gradient scaler",
    ("a100", "fp16"): "use bf16 where there is bf16",
}


@exercise("3.4", points=3)
def sft(sft_config):
    """the right precision on CPU, T4 and A100, a learning rate for LoRA, today's names"""
    for device, wanted in PRECISION.items():
        call = f'sft_config("out-{device}", "{device}")'
        got = observe(probe.sft_fields, sft_config, f"out-{device}", device)
        _expect_object(got, "SFTConfig", call)
        for name, flag in zip(("use_cpu", "bf16", "fp16"), wanted, strict=True):
            hint = WHY[device, name]
            mine = bool(got[name])
            expect(mine == flag, f"{call}: {name} is {mine}, wanted {flag}; {hint}")
        folder = got["output_dir"]
        expect(folder == f"out-{device}", f"{call}: output_dir is {folder!r}; pass it on")
        _expect_rate(got["learning_rate"], call)
        length = got["max_length"]
        hint = "None cuts nothing, and one long example may fill the memory"
        expect(length is not None, f"{call}: max_length is None: {hint}")
        hint = "; 1024 is TRL's default, pass max_length" if length == 1024 else ""
        expect(length == 512, f"{call}: max_length is {length!r}, wanted 512{hint}")
        hint = "completion_only_loss=False puts the loss on the prompt too"
        expect(got["completion_only_loss"] is not False, f"{call}: {hint}; leave it out")


def _expect_rate(rate, call):
    number = type(rate) in (int, float)
    expect(number, f"{call}: learning_rate is {rate!r}, wanted a number, without quotes")
    told = f"{call}: learning_rate is {rate:g}"
    hint = "that suits full fine-tuning (TRL's default is 2e-5); LoRA wants 2e-4 or so"
    expect(rate >= 1e-4, f"{told}: {hint}")
    expect(rate <= 5e-3, f"{told}: too large even for LoRA, which wants 2e-4 or so")


def _command(rng):
    """A command as data, of a shape like the answers of `home`, with two names in a list."""
    names = [probe.WORDS[i] for i in torch.randperm(len(probe.WORDS), generator=rng)[:2]]
    slots = {"brightness": _draw(2, 99, rng), "rooms": names, "dim": True}
    slots["area"] = f"{_words(rng, 1, 1).title()} {_words(rng, 1, 1)}"
    return {"intent": f"Hass{_words(rng, 1, 1).title()}", "slots": slots}


def _match_cases(data):
    """`(prediction, is it right?, what a wrong verdict means)` for the reference `data`."""
    slots, text = data["slots"], json.dumps(data)
    turned = {"slots": dict(reversed(slots.items())), "intent": data["intent"]}
    more, less = data | {"area": "hall"}, {"intent": data["intent"]}
    lists = data | {"slots": slots | {"rooms": slots["rooms"][::-1]}}
    values = data | {"slots": slots | {"brightness": 1}}
    small, joined = (slots["area"].lower(), slots["area"].replace(" ", ""))
    spaces = "spaces outside of strings are not data: parse both, don't compare text"
    whole = "all of the prediction must be JSON; text around it, or `in`, is not enough"
    return [
        (json.dumps(turned), True, "order of keys is not data: parse both, don't compare text"),
        (f" \n{json.dumps(data, indent=2)}\n", True, spaces),
        (json.dumps(data, separators=(",", ":")), True, spaces),
        (json.dumps(values), False, "same keys, other values: compare the parsed data with =="),
        (_with(data, area=small), False, "capitals are data: lower() is too much"),
        (_with(data, area=joined), False, "spaces inside of strings are data"),
        (_with(data, brightness=str(slots["brightness"])), False, "a text is no number in JSON"),
        (json.dumps(lists), False, "the order in a list is data"),
        (json.dumps(more), False, "one key more is another answer"),
        (json.dumps(less), False, "one key less is another answer"),
        (f"Sure! {text}", False, whole),
        (f"{text} {text}", False, whole),
        (str(data), False, "single quotes and True are Python, not JSON: use json.loads"),
        (text[:-3], False, "half an answer is no JSON, so it is wrong"),
        ("", False, "text that is no JSON is wrong"),
        ("null", False, "null is JSON, and another answer"),
        (f"[{text}]", False, "a list of one answer is another answer"),
    ]


def _with(data, **slots):
    return json.dumps(data | {"slots": data["slots"] | slots})


@exercise("3.5", points=3)
def matches(exact_match):
    """the share of equal JSON data; key order and spaces don't count, invalid JSON is wrong"""
    rng = generator()
    commands = [_command(rng) for _ in range(5)]
    right = [json.dumps(c) for c in commands]
    other = [json.dumps(c | {"intent": "HassNevermind"}) for c in commands]
    got = observe(probe.matched, exact_match, right[:3] + other[3:], right)
    call = "exact_match of 5 predictions, 3 right"
    number = {"this is the number of matches": 3, "this is in percent; a share is from 0 to 1": 60}
    swapped = {"this is the share of wrong ones": 0.4}
    expect_number(got, 0.6, call, number | swapped)
    bad = [right[0], "I can't", other[2], "", right[4]]
    call = "exact_match of 5 predictions, 2 right, 2 no JSON"
    got = ask(call, "", probe.matched, exact_match, bad, right)
    valid = {"divide by all of them: invalid ones are wrong, not absent": 2 / 3}
    counted = {
        "an invalid prediction counts as right": 0.8,
        "an invalid prediction ends the count; go on with the next one": 0.2,
    }
    expect_number(got, 0.4, call, valid | counted | {"this is the number of matches": 2})
    got = observe(probe.matched, exact_match, right, right[1:] + right[:1])
    call = "exact_match of 5 predictions, each the reference of another"
    expect_number(got, 0.0, call, {"compare each prediction with its own reference": 1.0})
    cases, told = _match_cases(commands[0]), {}
    calls = [f"exact_match([{_short(case[0])}], [{_short(right[0])}])" for case in cases]
    for i in torch.randperm(len(cases), generator=rng).tolist():  # no order to learn by heart
        told[i] = ask(calls[i], "", probe.matched, exact_match, [cases[i][0]], right[:1])
    for i, (_, wanted, why) in enumerate(cases):
        expect_number(told[i], float(wanted), calls[i], {why: 1.0 - wanted})


def _short(text):
    return repr(text if len(text) < 95 else f"{text[:60]} … {text[-30:]}")


@exercise("3.6", points=3)
def perplexity_weighs_tokens(perplexity):
    """exp of the mean loss of all predicted tokens, padding left out"""
    rng = generator()
    seed = _draw(1, 10**6, rng)
    model, tokenizer = probe.tiny_language_model(seed)
    one = [_words(rng, 9, 9)]
    several = [_words(rng, n, n) for n in (3, 17, 5, 26, 2, 11)]
    ended = [f"{text} <end>" for text in several]
    many = [_words(rng, 2, 9) for _ in range(40)]  # more than a batch, and a long one among them
    many.insert(_draw(10, 30, rng), _words(rng, 150, 150))
    for texts, name in (
        *((one, "one text"), (several, "6 texts"), (ended, "6 texts with <end>")),
        (many, "40 short texts and one of 150 words"),
    ):
        wanted, known = guesses.perplexities(model, tokenizer, texts)
        got = observe(probe.perplexity_of, perplexity, seed, texts)
        expect_number(got, wanted, f"perplexity of {name}", known)


@exercise("3.7", points=3)
def adapter_folder(adapter_bytes, load_tuned):
    """the size of adapter_model.safetensors; a PeftModel in eval mode with the same logits"""
    rng = generator()
    seed = _draw(1, 10**6, rng)
    ids = torch.randint(len(probe.WORDS), (2, 9), generator=rng)
    for r in (_draw(2, 4, rng), _draw(5, 9, rng)):
        base, tuned = probe.tiny_adapted(seed, r)
        _expect_bytes(observe(probe.bytes_told, adapter_bytes, seed, r), tuned)
        got = observe(probe.reloaded, load_tuned, seed, r, ids)
        _expect_object(got, "PeftModel", "load_tuned(base, folder)")
        expect(not got["training"], "load_tuned left it in train mode, with dropout: call .eval()")
        with torch.no_grad():
            wanted, plain = (m(input_ids=ids).logits for m in (tuned, base))
        fresh = {"these are the base model's: the saved adapter isn't loaded": plain}
        expect_close(got["logits"], wanted, "the logits after load_tuned", fresh)


def _expect_bytes(got, tuned):
    with tempfile.TemporaryDirectory() as folder:
        probe.save_adapter(tuned, folder)
        sizes = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
    wanted = sizes["adapter_model.safetensors"]
    tensors = sum(p.numel() for n, p in tuned.named_parameters() if "lora_" in n)
    guesses = {
        "this is the whole folder": sum(sizes.values()),
        **{f"this is {name}; wanted adapter_model.safetensors": n for name, n in sizes.items()},
        "this is in kilobytes": wanted / 1024,
        "this is in thousands of bytes": wanted / 1000,
        "this is in megabytes": wanted / 1e6,
        "this counts numbers, not bytes": tensors,
        "these are the tensors alone; the file has a header too: ask for its size": 4 * tensors,
    }
    expect_number(got, wanted, "adapter_bytes(folder)", guesses)


@exercise("3.8", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "03")
