"""Checks of lab 8. The reference is torch's own losses, a closed form in fp64, or a rule.

`tests/labs/test_trl_agrees.py` shows that the closed forms agree with TRL's.
"""

import json

import torch
import torch.nn.functional as F

from labkit.checks import policies
from labkit.checks.engine import expect_right
from labkit.checks.inputs import draw, randn
from labkit.checks.quiz import quiz_of
from labkit.contract import exercise, generator
from labkit.probes import lab08 as probes


@exercise("8.1", points=2)
def logprobs(sequence_logprob):
    """minus torch's cross-entropy of each answer: shifted by one, summed, without -100"""
    rng = generator()
    quarter = torch.tensor([1.0, 3.0]).log().expand(1, 4, 2)
    where = "for probabilities of 1/4 and 3/4 at each position and labels [0, 0, 1, -100]"
    cases = {where: (quarter, torch.tensor([[0, 0, 1, policies.IGNORED]]))}
    one_empty = _labeled(rng, 2, 0)
    one_empty[1][1] = policies.IGNORED
    cases |= {
        "for labels between a prompt and padding": _labeled(rng, 2, 1),
        "for labels after padding on the left": _labeled(rng, 4, 0),
        "for labels at every position, including id 0": _labeled(rng, 0, 0),
        "for labels in two parts": _labeled(rng, 2, 0, hole=True),
        "for a row without labels among other rows": one_empty,
    }
    logits, labels = _labeled(rng, 2, 1)
    where = "for logits in the hundreds, where some probabilities are 0 in fp32"
    expect_right(
        sequence_logprob, cases | {where: (100 * logits, labels)}, _logprobs, probes.logprobs
    )


def _labeled(rng, before, after, hole=False):
    """Logits (b, n, vocab), labels (b, n), at least `before` and `after` positions unlabeled."""
    b, n, vocab = draw(3, 5, rng), draw(8, 11, rng), draw(12, 20, rng)
    logits, labels = 2 * randn(b, n, vocab, rng=rng), torch.randint(vocab, (b, n), generator=rng)
    labels[:, 5] = 0
    for i, row in enumerate(labels):
        row[: before and before + i % 2] = policies.IGNORED
        row[n - (after and after + i % 3) :] = policies.IGNORED
        row[n // 2 : n // 2 + hole] = policies.IGNORED
    return logits, labels


def _logprobs(logits, labels):
    leaf = logits.double().clone().requires_grad_()
    with torch.enable_grad():
        total = _sums(leaf, labels)
        (grad,) = torch.autograd.grad(total.sum(), leaf)
    return _facts("the result", total, {"logits": grad})


def _sums(logits, labels):
    """Minus torch's cross-entropy, one sequence at a time, in fp64."""
    pairs = zip(logits.double(), labels, strict=True)
    losses = [F.cross_entropy(row[:-1], ids[1:], reduction="sum") for row, ids in pairs]
    return -torch.stack(losses)


def _facts(noun, value, grads):
    facts = {"the return value": "a tensor", noun: value.detach(), "the gradient": "kept"}
    return facts | {f"the gradient for {name}": grad for name, grad in grads.items()}


@exercise("8.2", points=3)
def dpo(dpo_loss):
    """TRL's loss and gradient, and finite numbers at margins of a thousand nats"""
    rng = generator()
    one, other = (-1.0, -3.0, -2.0, -2.0), (-5.0, -1.0, -5.0, -1.0)
    cases = {
        "for a pair whose margin is 2, beta 1": (*torch.tensor(one)[:, None], 1.0),
        "for a pair whose margin is 0, beta 1": (*torch.tensor(other)[:, None], 1.0),
    }
    for beta in (0.1, 0.5, 1.0):
        four = pairs(rng)
        cases[f"for {len(four[0])} pairs, beta {beta:g}"] = *four, beta
    same = pairs(rng)[2:]
    cases["where policy and reference are the same, beta 0.1"] = *same, *same, 0.1
    for sign, side in ((1, "above"), (-1, "below")):
        four = pairs(rng)
        four[0] = four[0] + sign * (1000 + 50 * torch.rand(len(four[0]), generator=rng))
        for beta in (0.5, 1.0):
            cases[f"for margins of a thousand nats {side} 0, beta {beta:g}"] = *four, beta
    expect_right(dpo_loss, cases, preference, probes.preferred)


def pairs(rng, spread=4.0):
    """Log-probabilities (b,) of policy and reference, chosen and rejected, in dpo_loss's order."""
    b = draw(5, 7, rng)
    reference = [-20 - 10 * randn(b, rng=rng).abs() for _ in range(2)]
    return [log + spread * randn(b, rng=rng) for log in reference] + reference


def preference(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    """log(1 + exp(-x)), where x is beta times the margin, and its derivative, in fp64."""
    chosen = policy_chosen.double() - reference_chosen
    rejected = policy_rejected.double() - reference_rejected
    x = beta * (chosen - rejected)
    loss = torch.logaddexp(torch.zeros_like(x), -x).mean()
    slope = -beta * torch.sigmoid(-x) / len(x)
    loss, slope = (value.where(value.abs() > 1e-6, 0) for value in (loss, slope))
    size = {"the loss in nats": "above 400"} if loss > 400 else {}
    return size | _facts("the loss", loss, {"policy_chosen": slope, "policy_rejected": -slope})


@exercise("8.3", points=3)
def reference(reference_logprobs):
    """the base's log-probabilities; the model is left as it was, even after an exception"""
    rng = generator()
    seed, cases = draw(0, 10**6, rng), {}
    for side, mode in (("right", "train()"), ("left", "train()"), ("right", "eval()")):
        where = f"for a model in {mode} and rows padded on the {side}"
        cases[where] = seed, policies.batch(rng, side), mode == "train()", ""
    for fails, cause in (("MemoryError", ""), ("KeyboardInterrupt", ", as the Stop button does")):
        where = f"when the model raises {fails}{cause}"
        cases[where] = seed, policies.batch(rng, "right"), True, fails
    expect_right(reference_logprobs, cases, _referenced, probes.referenced)


def _referenced(seed, batch, training, fails):
    facts = {"reference_logprobs()": f"raise {fails}" if fails else "return"}
    if not fails:
        facts["the return value"] = "a tensor"
        facts["the number of forward passes"] = "one, or one per sequence"
        facts["the mode in the forward pass"] = "eval()"
        facts["the forward pass"] = "without gradients"
        facts["the result"] = _sums(policies.base_logits(seed, batch), batch["labels"])
    return facts | {"gradients afterwards": "on"} | policies.unchanged(training)


@exercise("8.4", points=2)
def advantages(group_advantages):
    """TRL's advantages; a group whose rewards are equal gives zeros"""
    rng = generator()
    n, flat, sparse = draw(3, 5, rng), _groups(rng, 4, 6), torch.zeros(4, 8)
    flat[0], flat[2], flat[3] = 0.0, 1.0, 0.5
    sparse[1, draw(0, 7, rng)], sparse[2, :3] = 1.0, 1.0
    cases = {
        "for rewards [[0, 0.4], [2, 5]] and eps = 0.5": (torch.tensor([[0, 0.4], [2, 5]]), 0.5),
        f"for {n} prompts with {n + 3} samples": (_groups(rng, n, n + 3),),
        f"for {n} prompts with {n} samples": (_groups(rng, n, n),),
        "for 5 prompts with 2 samples": (_groups(rng, 5, 2),),
        "for 4 groups, three of them with equal rewards": (flat,),
        "for rewards that are mostly 0": (sparse,),
        "for rewards of about 0.01": (1e-2 * _groups(rng, n, 8),),
    }
    expect_right(group_advantages, cases, z_scores, probes.advantages)
    cases = {"for one prompt with 6 samples": (_groups(rng, 1, 6),)}  # torch warns of a column
    expect_right(group_advantages, cases, z_scores, probes.advantages)


def _groups(rng, prompts, samples):
    """Rewards of at least 0; each row has its own mean and spread."""
    spread, mean = (torch.rand(prompts, 1, generator=rng) for _ in range(2))
    return (randn(prompts, samples, rng=rng) * (0.3 * spread + 0.05) + mean).abs()


def z_scores(rewards, eps=1e-4):
    """The advantages by NumPy, in fp64."""
    rows = rewards.double().numpy()
    gap = rows - rows.mean(1, keepdims=True)
    return torch.from_numpy(gap / (rows.std(1, ddof=1, keepdims=True) + eps))


@exercise("8.5", points=4)
def clipped(grpo_loss):
    """TRL's loss and gradient, clipped on the right side for either sign"""
    rng, cases = generator(), {}
    for gain in (1.0, -1.0):
        for ratio in (2.0, 0.5):
            logp, one = torch.tensor([[ratio]]).log(), torch.ones(1, 1)
            data = logp, 0 * one, torch.tensor([gain]), one.bool()
            cases[f"for one token with A = {gain:g} and a ratio of {ratio:g}"] = data
    zero, mask = torch.zeros(2, 3), torch.tensor([[True, False, False], [True, True, True]])
    where = "for answers of 1 and 3 tokens with A = 2 and -1, where every ratio is 1"
    cases[where] = zero - 1, zero - 1, torch.tensor([2.0, -1.0]), mask
    good, bad, same, padded = (batch(rng) for _ in range(4))
    good[2], bad[2], same[0] = good[2].abs(), -bad[2].abs(), same[1]
    padded[0] = padded[0].masked_fill(~padded[3], -3.0)
    cases |= {
        "for a batch": batch(rng),
        "for a batch with clip=0.3": [*batch(rng), 0.3],
        "for a batch with as many answers as tokens": batch(rng, square=True),
        "for a batch where logp equals old_logp": same,
        "for good answers only": good,
        "for bad answers only": bad,
        "for a batch with other numbers at the padding": padded,
    }
    expect_right(grpo_loss, cases, by_token, probes.clipped)


def batch(rng, square=False):
    """[logp, old_logp, advantages, mask] for answers of several lengths, padded on the right."""
    b = draw(5, 7, rng)
    t = b if square else b + draw(2, 4, rng)
    old = -randn(b, t, rng=rng).abs() - 0.1
    logp = old + 0.45 * randn(b, t, rng=rng)
    logp[:2, 0], logp[:2, 1] = old[:2, 0] + 2, old[:2, 1] - 2  # far off, for either sign
    advantages = randn(b, rng=rng).abs().clamp(min=0.2)
    advantages[1::2] *= -1
    lengths = torch.randint(2, t + 1, (b,), generator=rng)
    lengths[0], lengths[1] = 2, t
    made = [logp, old, advantages, torch.arange(t) < lengths[:, None]]
    near_zero = by_token(*made)["the loss"].abs() < 0.1  # where rounding would count
    return batch(rng, square) if near_zero else made


def by_token(logp, old_logp, advantages, mask, clip=0.2):
    """The loss and its derivative for logp, token by token in fp64: three cases per sign."""
    total, slope = 0.0, torch.zeros(logp.shape, dtype=torch.float64)
    ratios = (logp.double() - old_logp.double()).exp().tolist()
    gains, n = advantages.double().tolist(), int(mask.sum())
    for i, j in mask.nonzero().tolist():
        ratio, gain = ratios[i][j], gains[i]
        stopped = ratio > 1 + clip if gain > 0 else ratio < 1 - clip
        bound = 1 + clip if gain > 0 else 1 - clip
        total -= gain * (bound if stopped else ratio)
        slope[i, j] = 0.0 if stopped else -gain * ratio / n
    return _facts("the loss", torch.tensor(total / n), {"logp": slope})


WORDS = ("study", "hall", "attic", "lamp", "fan", "blue", "window", "garage", "porch", "heater")
KEYS = (
    "intent", "name", "area", "floor", "domain", "device_class", "state", "color", "brightness",
    "temperature", "volume_level", "item", "hours", "minutes", "seconds", "conversation_command",
)  # fmt: skip
NUMBERS = ("brightness", "temperature", "volume_level", "hours", "minutes", "seconds")
EXAMPLE = {"intent": "HassTurnOn", "area": "study"}


@exercise("8.6", points=3)
def rewards(reward):
    """1 only for equal data, partial reward for right keys, no gain from listing every key"""
    rng, cases = generator(), {}
    for data in (EXAMPLE, _drawn(rng)):
        for law in (_fixed, _part, _extra, _wrong_values, _kinds, _every_key):
            for what, said, wanted, *obeys in law(data, rng):
                answer, wanted, *obeys = map(_json, (said, wanted, *obeys))
                where = f"for the answer {_short(answer)} ({what}) where {wanted} is wanted"
                cases[where] = answer, wanted, *obeys
    expect_right(reward, cases, _obeyed, probes.earned)


def _obeyed(answer, wanted, law, than="", *others):
    return {"the return value": "a float", "the reward": f"{law} {than}".strip()}


def _drawn(rng):
    """Wanted data of four keys: the intent, a number and two texts."""
    order = [KEYS[1:][i] for i in torch.randperm(len(KEYS) - 1, generator=rng).tolist()]
    texts = [key for key in order if key not in NUMBERS]
    number = next(key for key in order if key in NUMBERS)
    return {key: _value(key, rng) for key in ("intent", number, *texts[:2])}


def _value(key, rng):
    if key == "intent":
        return f"HassTurn{('On', 'Off')[draw(0, 1, rng)]}"
    return draw(2, 90, rng) if key in NUMBERS else WORDS[draw(0, len(WORDS) - 1, rng)]


def _other(value):
    """Another value of the same kind."""
    return value + 7 if isinstance(value, int) else f"{value} upstairs"


def _json(data):
    """Compact JSON, as in the rows of `home`; texts as they are."""
    return data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))


def _short(text):
    return f"{text[:60]} … {text[-20:]}" if len(text) > 90 else text or "''"


def _fixed(data, rng):
    """Answers that earn 1 or 0."""
    back, whole = dict(reversed(data.items())), _json(data)
    strange = {key: _value(key, rng) for key in [key for key in KEYS if key not in data][:3]}
    for what, said, law in (
        ("the wanted text", data, "1"),
        ("with blanks", json.dumps(data), "1"),
        ("in another order", back, "1"),
        ("on several lines", f" {json.dumps(back, indent=1)}\n", "1"),
        ("no keys", {}, "0"),
        ("all values are wrong", {key: _other(value) for key, value in data.items()}, "0"),
        ("all keys are unwanted", strange, "0"),
        ("with other keys", {f"{key}_": value for key, value in data.items()}, "0"),
        ("not JSON", "I turned it on.", "0"),
        ("an empty text", "", "0"),
        ("JSON that is cut off", whole[:-1], "0"),
        ("with words after the JSON", f"{whole} I hope this helps", "0"),
        ("in a code fence", f"```json\n{whole}\n```", "0"),
        ("a Python dict", str(data), "0"),
        ("a list instead of an object", [data], "0"),
        ("a list of keys", list(data), "0"),
        ("a number", "1", "0"),
        ("a JSON value", "null", "0"),
        ("a JSON value", "true", "0"),
        ("a text in quotes", json.dumps(whole), "0"),
    ):
        yield what, said, data, law


def _part(data, rng):
    """Each right key adds something, and fewer than all of them earn less than 1."""
    order = [list(data)[i] for i in torch.randperm(len(data), generator=rng).tolist()]
    for n in range(1, len(data)):
        said = {key: data[key] for key in order[:n]}
        less, key = {key: data[key] for key in order[: n - 1]}, order[n - 1]
        what, than = f"{n} right key{'s'[: n - 1]}", f'without "{key}"' if less else "for {}"
        yield what, said, data, "higher than", than, less
        yield f"{n} of {len(data)} keys", said, data, "less than 1"


def _extra(data, rng):
    """Each unwanted key costs something."""
    others = [key for key in KEYS if key not in data]
    half = dict(list(data.items())[: len(data) // 2])
    for said, what in ((data, "all"), (half, "half")):
        for key in others:
            more = said | {key: _value(key, rng)}
            both, than = f'{what} right, plus an unwanted "{key}"', f'without "{key}"'
            yield both, more, data, "lower than", than, said
            said = more
    one = {key: _value(key, rng)}
    law, than = "at least as high as", "with half of the right keys"
    yield "all right, plus one unwanted key", data | one, data, law, than, half | one
    what, than = f'all right, plus "{key}": null', f'without "{key}"'
    yield what, data | {key: None}, data, "lower than", than, data


def _wrong_values(data, rng):
    """A wanted key with a wrong value earns no more than the same answer without it."""
    *most, last = data
    for keys in {tuple(most), (most[0],)}:
        right = {key: data[key] for key in keys}
        for given in (_other(data[last]), None, [data[last]], {last: data[last]}):
            what, said = f'a wrong value of "{last}"', right | {last: given}
            yield what, said, data, "at most as high as", f'without "{last}"', right


def _kinds(data, rng):
    """Values of different types differ, such as true, 1 and "1"; so do texts in another case."""
    *most, key = data
    rest = {name: data[name] for name in most}
    kinds = (1, True), (0, False), (True, 1), (12, "12"), ("12", 12), ("on", "On"), ("on", "on ")
    for goal, said in kinds:
        what, law = f"{json.dumps(said)} instead of {json.dumps(goal)}", "at most as high as"
        yield what, rest | {key: said}, rest | {key: goal}, law, f'without "{key}"', rest
    yield f'without "{key}"', rest, rest | {key: None}, "less than 1"


def _every_key(data, rng):
    """An answer with every possible key, the wanted ones right, earns less than an honest half."""
    items, n = list(data.items()), len(data) // 2
    every = {key: _value(key, rng) for key in KEYS} | data
    than, *halves = "for half of the right keys", dict(items[:n]), dict(items[-n:])
    yield f"all {len(KEYS)} keys", every, data, "lower than", than, *halves


@exercise("8.7", points=3)
def steps(grpo_step):
    """samples once, and moves the weights by the clipped gradient for the group's advantages"""
    rng = generator()
    seed, third = draw(0, 10**6, rng), torch.full((1, 8), 1 / 3)
    close = torch.tensor([[0.1, 0.1], [1.0, 1.0], [0.2, 0.4], [0.5, 0.5]]).repeat(1, 4)
    close[3, 1], rows = 0.51, "0.1 or 1 throughout, 0.2 and 0.4, or 0.5 and 0.51"
    cases = {
        "for 2 prompts with 3 answers each": (seed, _paid(rng, 2, 3), 0.3, False),
        "for a model with leftover gradients": (seed, _paid(rng, 2, 4), 0.3, True),
        "where every answer earns 0.5": (seed, torch.full((2, 4), 0.5), 0.3, True),
        "where all 8 answers earn 1/3": (seed, third, 0.3, False),
        f"for 4 prompts whose answers earn {rows}": (seed, close, 0.3, False),
        "where the norm of the gradient is above 1": (seed, _paid(rng, 2, 5), 30.0, False),
        "for 3 prompts with 3 answers each": (seed, _paid(rng, 3, 3), 0.3, True),
    }
    expect_right(grpo_step, cases, _stepped, probes.stepped, tol=1e-3)


def _paid(rng, prompts, samples):
    """Rewards that differ by 0.05 or more within a group."""
    rows = [torch.randperm(20, generator=rng)[:samples] for _ in range(prompts)]
    return torch.stack(rows) / 20 + torch.arange(prompts)[:, None]


def _stepped(seed, rewards, scale, stale):
    (prompts, samples), paid = rewards.shape, rewards.double()
    model = probes.Policy(seed, prompts, samples, scale).double()
    gains, mask = z_scores(rewards), model.mask
    with torch.enable_grad():
        logp = torch.stack([model.logp(i, samples) for i in range(prompts)])
        loss = -(gains[..., None] * logp)[mask].mean()  # the ratio is 1, its slope that of logp
        grads = torch.autograd.grad(loss, (model.own, model.shared))
    moved = -torch.cat([grad.flatten() for grad in grads])
    return {
        "the number of calls of sample": 1,
        "the arguments of sample": "model, prompts, samples",
        "the answers without a score": [],
        "the number of calls of optimizer.step": 1,
        **({"optimizer.step()": "get a gradient"} if gains.any() else {}),
        "the change of the weights": moved / moved.norm().clamp(min=1.0),
        "the return value": "a dict",
        'result["reward"]': paid.mean().item(),
        'result["equal"]': (paid.amax(1) == paid.amin(1)).double().mean().item(),
        "the keys of the result": ["equal", "reward"],
    }


quiz = quiz_of("8.8", points=4)
