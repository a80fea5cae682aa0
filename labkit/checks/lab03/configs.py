"""What exercise 3.1 expects of two configurations, field by field, on all machines."""

from labkit.checks.compare import ask, expect_number
from labkit.contract import CheckFailed, expect, observe, part
from labkit.labs.lab03 import probes

RANK = 16
ALL = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
HINTS = {
    "LoraConfig.__init__() got an unexpected keyword": "PEFT's names: r, target_modules, "
    "lora_alpha, lora_dropout, bias, task_type",
    "Invalid task type": 'here it is "CAUSAL_LM"',
    "is not defined": "the arguments are output_dir and device",
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
    }.get(got.get("is"), f"a {got.get('is')}")
    expect("is" not in got, f"{call} gave {told}, wanted the type {kind}")


def expect_recipe(recipe):
    """Both configurations for each device; what is wrong on one does not hide another's."""
    loras, seen, failures = {}, {}, {}
    for device in PRECISION:
        call, folder = f'recipe("out-{device}", "{device}")', f"out-{device}"
        try:
            got = ask(call, probes.recipe_fields, recipe, folder, device, hint=HINTS)
        except CheckFailed as failure:
            failures[device] = failure
            continue
        loras[device], seen[device] = _pair(got, call)
    with part():
        _expect_devices_apart(seen, failures)
    for failure in failures.values():
        with part():
            raise failure
    if loras:
        device, lora = next(iter(loras.items()))
        _expect_lora(lora, f'recipe("out-{device}", "{device}")')
        with part():
            same = all(other == lora for other in loras.values())
            expect(same, "the LoraConfig depends on the device: it is the same on all")
        with part():
            told = "two calls of recipe give one and the same LoraConfig (a default, or a global)"
            shares = "cpu" in loras and observe(probes.recipe_shares, recipe, "out-cpu")
            expect(not shares, f"{told}: PEFT writes into it, so make a new one in each call")
    for device, got in seen.items():
        _expect_sft(device, got)


def _pair(got, call):
    """`(fields of the LoraConfig, fields of the SFTConfig)`."""
    if isinstance(got, dict):
        told = {"NoneType": "None (is `return` missing?)"}.get(got["is"], f"a {got['is']}")
        more = {"LoraConfig": "; an SFTConfig belongs to it", "SFTConfig": "; its LoraConfig too"}
        hint = more.get(got["is"], "")
        raise CheckFailed(f"{call} gave {told}, wanted the pair LoraConfig, SFTConfig{hint}")
    expect(len(got) == 2, f"{call} gave {len(got)} things, wanted the pair LoraConfig, SFTConfig")
    turned = "sft" in got[0] and "lora" in got[1]
    expect(not turned, f"{call} gave the pair turned round: LoraConfig, SFTConfig")
    for one, kind, name in zip(got, ("lora", "sft"), ("LoraConfig", "SFTConfig"), strict=True):
        if "is" in one:
            expect_object(one, name, f"{call}: of the pair the {name}")
        expect(kind in one, f"{call}: both are of one kind; wanted the pair LoraConfig, SFTConfig")
    return got[0]["lora"], got[1]["sft"]


def _expect_lora(got, call):
    r, alpha = got["r"], got["lora_alpha"]
    with part():
        wrong = {"8 is PEFT's default: pass r=16": 8, "the recipe's rank is 16": r}
        expect_number(r, RANK, f"{call}: r", wrong)
    with part():
        wrong = {
            "8 is PEFT's default: pass lora_alpha, twice the rank": 8.0,
            "that is the rank itself, wanted twice the rank": float(RANK),
            "that is half the rank, wanted twice": RANK / 2,
            "that is four times the rank, wanted twice": 4.0 * RANK,
            "that is the rank squared, wanted twice the rank": float(RANK * RANK),
            "that is r + 2; twice the rank is 2 * r": RANK + 2.0,
            "that is alpha / r; alpha itself is twice the rank": 2.0,
        }
        whole = float(alpha) if type(alpha) is int else alpha
        wrong["it is twice the rank, 2 * 16"] = whole
        expect_number(whole, 2.0 * RANK, f"{call}: lora_alpha", wrong)
    with part():
        wrong = {
            "0 is PEFT's default: pass lora_dropout": 0.0,
            "that is ten times as much": 0.5,
            "that is a tenth of it: 5 percent are 0.05": 0.005,
            "that is twice as much": 0.1,
            "a share from 0 to 1, not in percent": 5.0,
        }
        expect_number(got["lora_dropout"], 0.05, f"{call}: lora_dropout", wrong)
    with part():
        bias, hint = got["bias"], BIAS.get(got["bias"], "leave it at that")
        expect(bias == "none", f'{call}: bias is {bias!r}, wanted "none": {hint}')
    with part():
        task = got["task_type"]
        expect(task == "CAUSAL_LM", f'{call}: task_type is {task}, wanted "CAUSAL_LM"; {TASK}')
    with part():
        _expect_targets(got["target_modules"], call)
    with part():
        others = ", ".join(f"{name}={value}" for name, value in got["others"].items())
        expect(not others, f"{call} sets {others} too; leave it out")


def _expect_targets(got, call):
    everything = '"all-linear"'
    told = f"{call}: target_modules is not set, and PEFT would take q and v: pass {everything}"
    expect(got is not None, told)
    told = f"{call}: {everything} in a list is the name of one layer; pass the word itself"
    expect(got != ["all-linear"], told)
    letters = got == sorted(set("all-linear"))
    expect(not letters, f"{call}: {everything} was taken apart into letters; pass the word itself")
    spelled = isinstance(got, str) and got != "all-linear" and got.replace("_", "-").lower()
    told = f"{call}: target_modules is {got!r}, spelled {everything}"
    expect(spelled not in ("all-linear", "all", "linear", "all-linears"), told)
    told = f"{call}: target_modules is {got!r}, one text that is read as a pattern"
    expect(not isinstance(got, str) or got == "all-linear", f"{told}; wanted {everything}")
    if got not in ("all-linear", ALL):
        missing = ", ".join(name for name in ALL if name not in got)
        told = f"it leaves out {missing}" if missing else "it names more than the seven of a block"
        told = "the head gets no adapter" if {*ALL, "lm_head"} == {*got} else told
        raise CheckFailed(f"{call}: target_modules is {got}, wanted {everything}: {told}")


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
    ("t4", "use_cpu"): "a T4 is a GPU, only without bf16; go by `device`, not by this machine",
    ("t4", "bf16"): "a T4 has no bf16: fp16=True, bf16=False",
    ("t4", "fp16"): "a T4 has fp16 and no bf16; without either all runs in fp32",
    ("a100", "use_cpu"): "the GPU would idle; go by `device`, not by this machine",
    ("a100", "bf16"): "Ampere and newer have bf16, which needs no gradient scaler",
    ("a100", "fp16"): "use bf16 where there is bf16",
}


def _expect_sft(device, got):
    """The precision of a device, and what is the same on all."""
    call = f'recipe("out-{device}", "{device}")'
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
    hint = '; or is an `if` always true? `device == "t4" or "a100"` is'
    hint = "" if kinds[:1] == [("use_cpu",)] else hint  # so the machine itself says
    hint = hint if any(kinds[:1]) else "; or is each device spelled otherwise where you ask for it?"
    told = f"{told}: go by `device`, not by this machine"
    expect(not same, f"{told}, and pass the flags that the table has for each{hint}")


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
    hint = "that suits full fine-tuning (TRL's default is 2e-5); LoRA wants ten times as much: "
    hint += "2e-4 in runs of hours, near 3e-3 in runs as short as these"
    expect(rate >= 1e-4, f"learning_rate is {rate:g}: {hint}")
    hint = "too large even for LoRA in a short run, which wants 3e-3 or so, and 5e-3 at most"
    expect(rate <= 5e-3, f"learning_rate is {rate:g}: {hint}")


def _expect_length(length):
    hint = "None cuts nothing, and one long example may fill the memory"
    expect(length is not None, f"max_length is None: {hint}")
    hint = "; 1024 is TRL's default, pass max_length" if length == 1024 else ""
    expect(length == 512, f"max_length is {length!r}, wanted 512{hint}")
