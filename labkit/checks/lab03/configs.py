"""What exercises 3.1 and 3.4 expect of a configuration, field by field, over all calls."""

from labkit.checks.compare import ask, expect_number
from labkit.contract import CheckFailed, expect, part
from labkit.labs.lab03 import probes

LORA_HINTS = {
    "unexpected keyword": "PEFT's names: r, target_modules, lora_alpha, lora_dropout, bias, "
    "task_type",
    "Invalid task type": 'here it is "CAUSAL_LM"',
    "is not defined": "the arguments are r and targets",
}
TASK = "without it PEFT does not know that this is a language model"
BIAS = {
    None: "the word, in quotes",
    False: "the word, in quotes",
    "all": "all biases would train",
    "lora_only": "biases would train",
}


def expect_object(got, kind, call):
    """The learner returned an object of the right kind, so the probe brings its fields."""
    told = {
        "NoneType": "None (is `return` missing?)",
        "method": "a method (are its brackets missing?)",
        "type": "a class (are its brackets missing?)",
        "LlamaForCausalLM": "a plain LlamaForCausalLM (`base` itself, merged, never adapted, or "
        "adapted by transformers)",
    }.get(got.get("is"), f"a {got.get('is')}")
    expect("is" not in got, f"{call} gave {told}, wanted the type {kind}")


def expect_lora(lora_config, cases):
    """A LoraConfig with the right fields for all `(r, targets)`; a field that fails, told once."""
    seen = []
    for r, layers in cases:
        call = f"lora_config({r}, {layers!r})"
        got = ask(call, probes.config_fields, lora_config, r, layers, hint=LORA_HINTS)
        expect_object(got, "LoraConfig", call)
        seen.append((call, r, layers, got))
    for check in (_expect_rank, _expect_alpha, _expect_dropout, _expect_words, _expect_targets):
        with part():
            check(seen)
    with part():
        for call, _, _, got in seen:
            others = ", ".join(f"{name}={value}" for name, value in got["others"].items())
            expect(not others, f"{call} sets {others} too; leave it out")


def _expect_rank(seen):
    fixed = {got["r"] for *_, got in seen}
    for call, r, _, got in seen:
        wrong = {
            "r is not passed on; 8 is PEFT's default": 8,
            "that is twice the rank: alpha is what doubles": 2 * r,
        }
        if len(fixed) == 1 and 8 not in fixed:
            wrong["this is the same for every r: pass r on"] = got["r"]
        expect_number(got["r"], r, f"{call}: r", wrong)


def _expect_alpha(seen):
    fixed = {got["lora_alpha"] for *_, got in seen}
    pairs = [(got["lora_alpha"], r) for _, r, _, got in seen]
    numbers = all(type(alpha) in (int, float) for alpha, _ in pairs)
    more = _same(alpha - r for alpha, r in pairs) if numbers else None
    times = _same(alpha / r for alpha, r in pairs) if numbers else None
    for call, r, _, got in seen:
        wrong = {
            "that is the rank itself, wanted twice the rank": r,
            "8 is PEFT's default: pass lora_alpha, twice the rank": 8,
            "that is half the rank, wanted twice": r / 2,
            "that is the rank squared, wanted twice the rank": r * r,
        }
        if len(fixed) == 1 and 8 not in fixed:
            wrong["this is the same for every r: write 2 * r"] = got["lora_alpha"]
        if more is not None:
            wrong[f"that is r + {more:g}; twice the rank is 2 * r"] = r + more
        if times is not None:
            wrong[f"that is {times:g} times the rank, wanted twice"] = r * times
        expect_number(got["lora_alpha"], 2.0 * r, f"{call}: lora_alpha", wrong)


def _same(numbers):
    """The number that all are, or None."""
    found = set(numbers)
    return found.pop() if len(found) == 1 else None


def _expect_dropout(seen):
    for call, _, _, got in seen:
        wrong = {
            "0 is PEFT's default: pass lora_dropout": 0.0,
            "that is ten times as much": 0.5,
            "a share from 0 to 1, not in percent": 5.0,
        }
        expect_number(got["lora_dropout"], 0.05, f"{call}: lora_dropout", wrong)


def _expect_words(seen):
    for call, _, _, got in seen:
        bias, task = got["bias"], got["task_type"]
        hint = BIAS.get(bias, "leave it at that")
        with part():
            expect(bias == "none", f'{call}: bias is {bias!r}, wanted "none": {hint}')
        with part():
            expect(task == "CAUSAL_LM", f'{call}: task_type is {task}, wanted "CAUSAL_LM"; {TASK}')


def _expect_targets(seen):
    for call, _, layers, full in seen:
        got = full["target_modules"]
        whole = isinstance(layers, str)
        split = whole and isinstance(got, list) and got == sorted(set(layers))
        hint = "pass targets as it is"
        expect(not split, f'{call}: "all-linear" was taken apart into letters; {hint}')
        boxed = got in ([layers], [sorted(layers)])
        expect(not boxed, f"{call}: target_modules is {got}, a list around it; {hint}")
        expect(got is not None, f"{call}: target_modules is not set; pass targets to it")
        text = isinstance(got, str) and not whole
        hint = f"one text is read as a pattern, and names no list of layers; {hint}"
        expect(not text, f"{call}: target_modules is {got!r}: {hint}")
        wanted = layers if whole else sorted(layers)
        hint = "pass targets as it is" if whole and got else "targets is not passed on"
        told = f"{call}: target_modules is {got}, wanted {wanted!r}"
        expect(got == wanted, told, hint=hint)


FLAGS = ("use_cpu", "bf16", "fp16")
PRECISION = {  # the flags of each device
    "cpu": (True, False, False),
    "t4": (False, False, True),
    "a100": (False, True, False),
}
WHY = {
    ("cpu", "use_cpu"): "pass use_cpu=True, or a GPU of the machine would be taken",
    ("cpu", "bf16"): "TRL's default is bf16=True unless fp16 is set: say bf16=False",
    ("cpu", "fp16"): "fp16 needs a GPU's gradient scaler",
    ("t4", "use_cpu"): "the GPU would idle; go by `device`, not by this machine",
    ("t4", "bf16"): "a T4 has no bf16: fp16=True, bf16=False",
    ("t4", "fp16"): "a T4 has fp16 and no bf16; without either all runs in fp32",
    ("a100", "use_cpu"): "the GPU would idle; go by `device`, not by this machine",
    ("a100", "bf16"): "Ampere and newer have bf16, which needs no gradient scaler",
    ("a100", "fp16"): "use bf16 where there is bf16",
}


def expect_sft(sft_config):
    """An SFTConfig for each device; what is wrong on one does not hide what is on another."""
    seen, failures = {}, {}
    for device in PRECISION:
        call = f'sft_config("out-{device}", "{device}")'
        try:
            seen[device] = ask(
                call, probes.sft_fields, sft_config, f"out-{device}", device, hint={}
            )
        except CheckFailed as failure:
            failures[device] = failure
    with part():
        _expect_devices_apart(seen, failures)
    for failure in failures.values():
        with part():
            raise failure
    for device, got in seen.items():
        call = f'sft_config("out-{device}", "{device}")'
        expect_object(got, "SFTConfig", call)
        none = not any(got[name] for name in FLAGS)
        spelled = f'; or is "{device}" spelled otherwise where you ask for it?' if none else ""
        for name, flag in zip(FLAGS, PRECISION[device], strict=True):
            mine = bool(got[name])
            with part():
                told = f"{call}: {name} is {mine}, wanted {flag}; {WHY[device, name]}"
                expect(mine == flag, told + spelled)
        _expect_the_same_everywhere(got, device, call)


def _expect_devices_apart(seen, failures):
    """Not all devices get the same precision; an error about bf16 shows that it was asked for."""
    kinds = [tuple(name for name in FLAGS if got.get(name)) for got in seen.values()]
    kinds += [("bf16",) for failure in failures.values() if "support bf16" in str(failure)]
    same = len(kinds) == len(PRECISION) and len(set(kinds)) == 1
    told = f"{' and '.join(kinds[0]) or 'no precision'} on every device" if same else ""
    hint = 'or is an `if` always true? `device == "t4" or "a100"` is'
    expect(not same, f"{told}: pass the flags that the table has for each; {hint}")


def _expect_the_same_everywhere(got, device, call):
    folder = got["output_dir"]
    with part():
        expect(folder == f"out-{device}", f"{call}: output_dir is {folder!r}; pass it on")
    with part():
        _expect_rate(got["learning_rate"])
    with part():
        _expect_length(got["max_length"])
    with part():
        hint = "completion_only_loss=False puts the loss on the prompt too"
        expect(got["completion_only_loss"] is not False, f"{hint}; leave it out")
    with part():
        hint = "assistant_only_loss=True wants a chat template that marks the answers"
        expect(not got["assistant_only_loss"], f"{hint}; leave it out: completions are marked")


def _expect_rate(rate):
    number = type(rate) in (int, float)
    expect(number, f"learning_rate is {rate!r}, wanted a number, without quotes")
    hint = "that suits full fine-tuning (TRL's default is 2e-5); LoRA wants 2e-4 or so"
    expect(rate >= 1e-4, f"learning_rate is {rate:g}: {hint}")
    hint = "too large even for LoRA, which wants 2e-4 or so, and 5e-3 at most"
    expect(rate <= 5e-3, f"learning_rate is {rate:g}: {hint}")


def _expect_length(length):
    hint = "None cuts nothing, and one long example may fill the memory"
    expect(length is not None, f"max_length is None: {hint}")
    hint = "; 1024 is TRL's default, pass max_length" if length == 1024 else ""
    expect(length == 512, f"max_length is {length!r}, wanted 512{hint}")
