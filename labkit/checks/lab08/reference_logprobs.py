"""What exercise 8.3 expects of `reference_logprobs`: what the base gives, and nothing changed."""

import torch
import torch.nn.functional as F

from labkit.checks.compare import ask, close, draw, expect_close, expect_shape, likeliest
from labkit.contract import CheckFailed, expect, part, sound
from labkit.labs.lab08 import probes
from labkit.probes import tiny

IGNORED = -100
NOISE = "a dropout was at work, so it is noise: model.eval() before, and its mode put back"
GRAPH = "a graph for gradients was built, which costs memory and is never used: torch.no_grad()"
METHOD = "disable_adapter is a method, and gives the context: with model.disable_adapter():"
ERRORS = {
    "context manager": METHOD,
    "__enter__": METHOD,
    "disable_adapter": "it is PEFT's: with model.disable_adapter():",
    "copies the whole model": "",
    "Adapter default": "an adapter may have any name; the context brings the active one back",
}
LEFT = {
    "layers": "the adapter is gone: merge_and_unload and unload take it out; switch it off instead",
    "adapters": "the model has other adapters than before: switch it off, and don't delete it",
    "off": "the adapter stays switched off, and what is trained next trains nothing",
    "active": "another adapter is active than before",
    "parts": "the model's parts are in another mode than it: model.train(mode) reaches all of them",
    "scaling": "the adapter's scaling is changed; switch the adapter off instead",
    "weights": "weights are changed: merging and its way back round; switch the adapter off",
    "flags": "other parameters train than before",
    "gradients": "gradients stay switched off: with torch.no_grad(): undoes it on the way out",
}


def batch(rng, left=False):
    """A dict of ids, mask and labels `(b, n)`, padded by id 0, the prompt -100 in the labels."""
    b, n = draw(3, 4, rng), draw(9, 11, rng)
    ids = torch.randint(2, len(tiny.WORDS), (b, n), generator=rng)
    lengths = torch.randint(6, n + 1, (b,), generator=rng)
    lengths[0], lengths[1] = n, n - 3
    places = torch.arange(n)
    kept = places < lengths[:, None]
    start = torch.full((b, 1), 3)
    if left:
        kept = places >= n - lengths[:, None]
        start = n - lengths[:, None] + 3
    labels = ids.masked_fill(~kept | (places < start), IGNORED)
    ids = ids.masked_fill(~kept, 0)
    return {"input_ids": ids, "attention_mask": kept.long(), "labels": labels}


@torch.no_grad()
def logprobs(model, data, mask=True):
    """Log-probability of each answer (b,) by torch's cross-entropy."""
    more = {"attention_mask": data["attention_mask"]} if mask else {}
    logits = model(data["input_ids"], **more).logits.double()
    pairs = zip(logits, data["labels"], strict=True)
    losses = [F.cross_entropy(row[:-1], ids[1:], reduction="sum") for row, ids in pairs]
    return -torch.stack(losses).float()


def expect_reference(reference_logprobs, rng):
    """The base's numbers without a graph or noise; the model as before, also after an exception."""
    seed = draw(0, 10**6, rng)
    cases = [(False, True), (True, True), (False, False)]
    with part(), likeliest() as case:
        for left, training in cases:
            with case():
                _expect(reference_logprobs, seed, batch(rng, left), left, training)
    with part():
        _expect_interrupted(reference_logprobs, seed, batch(rng))


def _expect(reference_logprobs, seed, data, left, training):
    mode = "training" if training else "evaluating"
    call = f"reference_logprobs of a model that is {mode}{', padded on the left' * left}"
    got = ask(call, probes.referenced, reference_logprobs, seed, data, training, hint=ERRORS)
    value = got["value"]
    with part():
        _expect_as_before(got["changed"], call, training)
    if isinstance(value, torch.Tensor) and value.dim() == 2:
        raise CheckFailed(f"{call} gave a number a token, wanted one a sequence")
    one = f"{call} gave one number, wanted {len(data['labels'])}: sequence_logprob of the logits"
    single = isinstance(value, float) or (isinstance(value, torch.Tensor) and value.dim() == 0)
    expect(not single, f"{one}; the model's own loss is a mean over the whole batch")
    expect_shape(value, torch.Size([len(data["labels"])]), call)
    expect(got["passes"], f"{call}: the model was not run")
    noisy = any(one["training"] for one in got["passes"])
    if not noisy:
        base = tiny.llama(torch.Generator().manual_seed(seed))
        wanted = logprobs(base, data)
        known = {} if close(value, wanted, 1e-4) else _guesses(base, seed, data, got)
        expect_close(value, wanted, call, known, tol=1e-4)
    expect(not noisy, f"{call}: {NOISE}")
    built = got["graph"] or any(one["grad"] for one in got["passes"])
    expect(not built, f"{call}: {GRAPH}")
    many = len(got["passes"]) > len(value)
    expect(not many, f"{call}: the model ran {len(got['passes'])} times, once is enough")


def _expect_as_before(changed, call, training):
    told = LEFT | {"mode": _mode(training)}
    first = next((what for what in told if what in changed), None)
    expect(first is None, f"{call}: afterwards {told.get(first)}")


def _mode(training):
    if training:
        return "the model evaluates, and it was training: put back the mode from before eval()"
    return "the model trains, and it was evaluating: put back the mode that it had"


def _expect_interrupted(reference_logprobs, seed, data):
    call = "reference_logprobs where the model raises an exception (MemoryError)"
    told = LEFT | {"mode": _mode(True)}
    try:
        got = ask(call, probes.interrupted, reference_logprobs, seed, data)
    except CheckFailed:
        if sound():  # else what it raises, or its like, is told
            raise
        return
    hint = (
        "an `except` swallows it, or a `return` inside `finally`; return before, and only tidy up"
    )
    expect(got["heard"], f"{call}: nobody hears of it: {hint} in `finally`")
    changed = set(got["changed"])
    gone = "layers" in changed  # and all else with them
    expect(not gone or not sound(), f"{call}: {LEFT['layers']}")
    changed -= {"flags"} if "off" in changed else set()  # PEFT's way to switch off freezes them
    found = [told[what] for what in told if what in changed and not gone]
    expect(
        not found, f"{call}: {'; '.join(found)}", hint="`with` or `finally` undoes it in any case"
    )


def _on(got):
    """What to say of numbers that are those of the model with its adapter."""
    told = "that is the model with its adapter"
    if got["asked off"]:
        told += ": disable_adapter() by itself does nothing, and what is outside of its `with` has "
        return told + "the adapter; run the model in `with model.disable_adapter():`"
    if not all(one["whole"] for one in got["passes"]):
        told += ", which get_base_model() has inside as well"
    return told + ": run it in `with model.disable_adapter():`"


def _guesses(base, seed, data, got):
    """What the wrong model or the wrong sum gives, by what is wrong; `got` tells how it ran."""
    policy = probes.tiny_policy(seed).eval()
    wanted, active = logprobs(base, data), logprobs(policy, data)
    policy.set_adapter(probes.OTHER)
    known = {
        _on(got): active,
        "that is the model with its other adapter: switch all off": logprobs(policy, data),
        "attention_mask is not passed on, and padding is read": logprobs(base, data, mask=False),
        "the adapter is on, and attention_mask is not passed on": logprobs(policy, data, False),
        "attention_mask is turned round: it is 1 on what is read": logprobs(
            base, data | {"attention_mask": 1 - data["attention_mask"]}
        ),
        "that is policy less reference": active - wanted,
        "the sign is turned round: log-probabilities are wanted": -wanted,
    }
    counts = (data["labels"][:, 1:] != IGNORED).sum(1)
    loss = (
        "that is made of the model's own loss, a mean over the whole batch: take its logits, and "
    )
    loss += "your sequence_logprob of them"
    known[loss] = wanted.sum() / counts.sum() * counts
    known[f"{loss} (and its adapter is on)"] = active.sum() / counts.sum() * counts
    known["that is a mean over tokens: sequence_logprob gives sums"] = wanted / counts
    ids = data["input_ids"]
    whole = data | {"labels": ids.masked_fill(data["attention_mask"] == 0, IGNORED)}
    known["the prompt is counted too: pass batch['labels'] on, not the ids"] = logprobs(base, whole)
    known["prompt and padding are counted: pass batch['labels'] on, not the ids"] = logprobs(
        base, data | {"labels": ids}
    )
    return known
