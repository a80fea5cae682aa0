"""Probes for lab 8."""

import contextlib
import functools
import json

import torch
import torch.nn.functional as F
from torch import nn

from labkit.contract import CheckFailed, kept, kind
from labkit.probes import policies
from labkit.probes.gradients import differentiated

NO_OBJECT = "valid JSON may also be a list, number or null: return 0 unless isinstance(data, dict)"
FAILURES = {"MemoryError": MemoryError, "KeyboardInterrupt": KeyboardInterrupt}


def logprobs(sequence_logprob, logits, labels):
    """The result of `sequence_logprob` and its gradient."""
    return differentiated(sequence_logprob, ["logits"], "the result", logits, labels)


def preferred(dpo_loss, *given):
    """The DPO loss and its gradient for the policy; for extreme inputs, only the loss's size."""
    facts = differentiated(dpo_loss, ["policy_chosen", "policy_rejected"], "the loss", *given)
    loss, far = facts.get("the loss", torch.tensor(torch.inf)), given[0] - given[2] < -500
    if bool(far.all() and (loss < 400).all()):
        return {"the loss in nats": "below 400"}
    return {"the loss in nats": "above 400"} | facts


def clipped(grpo_loss, logp, old_logp, advantages, mask, clip=None):
    """The GRPO loss and its gradient, with the function's default clip if `clip` is None."""
    f = grpo_loss if clip is None else functools.partial(grpo_loss, clip=clip)
    return differentiated(f, ["logp"], "the loss", logp, old_logp, advantages, mask)


def advantages(group_advantages, rewards, *eps):
    """The result of `group_advantages`, with rounding residue of equal rewards set to 0."""
    got = group_advantages(rewards, *eps)
    if isinstance(got, torch.Tensor) and got.shape == rewards.shape:
        equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
        got = got.where(~(equal & (got.abs() < 1e-2)), 0)
    return {"the result": got}


def referenced(reference_logprobs, seed, batch, training, fails):
    """How `reference_logprobs` runs a tiny policy, what it returns, and how it leaves the model."""
    model, grad = policies.copied(seed, training), torch.is_grad_enabled()
    passes, before = policies.watched(model, FAILURES.get(fails)), policies.state(model)
    for part in (model, model.base_model, model.get_base_model()):
        part.__deepcopy__ = _refuse
    most, value = len(batch["labels"]), None
    try:
        value, outcome = kept(functools.partial(reference_logprobs, model), batch), "return"
    except FAILURES.get(fails, ()):
        outcome = f"raise {fails}"
    on = torch.is_grad_enabled() == grad
    torch.set_grad_enabled(grad)
    few, modes = 1 <= len(passes) <= most, {mode for mode, _ in passes}
    built = any(graph for _, graph in passes) or getattr(value, "requires_grad", False)
    return {
        "reference_logprobs()": outcome,
        "the return value": kind(value),
        "the number of forward passes": "one, or one per sequence" if few else str(len(passes)),
        "the mode in the forward pass": "train()" if "train()" in modes else "eval()",
        "the forward pass": "with gradients" if built else "without gradients",
        "the result": value if isinstance(value, torch.Tensor) else None,
        "gradients afterwards": "on" if on else "switched off",
    } | policies.left(before, model)


def _refuse(_):
    raise CheckFailed(
        "your code copies the whole model, which contains the base: switch the adapter off"
    )


def earned(reward, answer, wanted, law, than="", *others):
    """Whether the reward obeys `law` relative to the lowest of `others`, described by `than`."""
    try:
        got = reward(answer, wanted)
    except (AttributeError, TypeError) as error:
        with contextlib.suppress(ValueError):
            if not isinstance(json.loads(answer), dict):
                raise CheckFailed(f"it raised {type(error).__name__}: {NO_OBJECT}") from None
        raise
    if isinstance(got, bool) or not isinstance(got, int | float):
        return {"the return value": kind(got)}
    if not 0 <= got <= 1:
        how = "stop at 0, with max(0.0, ...)" if got < 0 else "a complete answer earns 1"
        raise CheckFailed(f"the reward should be from 0 to 1, not {got:g}: {how}")
    facts = {"the return value": "a float"}
    if not others:
        words = "0" if got == 0 else "1" if got == 1 else "between 0 and 1"
        return facts | {"the reward": "less than 1" if law == "less than 1" and got < 1 else words}
    gap = float(got) - float(min(reward(other, wanted) for other in others))
    up, down = gap > 1e-9, gap < -1e-9  # smaller differences are rounding
    laws = {"higher than": up, "at most as high as": not up, "at least as high as": not down}
    right = laws.get(law, down or (not up and got == 0))  # "lower than", or both 0
    actual = "higher" if up else "lower" if down else "the same"
    return facts | {"the reward": f"{law} {than}" if right else actual}


class Policy(nn.Module):
    """Logits for each token of an answer: the prompt's own plus shared logits."""

    def __init__(self, seed, n_prompts, samples, scale, n_tokens=5, vocab=4):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.own = nn.Parameter(torch.randn(n_prompts, n_tokens, vocab, generator=rng))
        self.shared = nn.Parameter(torch.randn(n_tokens, vocab, generator=rng))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.tokens = torch.randint(vocab, (n_prompts, samples, n_tokens), generator=rng)
        lengths = torch.randint(1, n_tokens + 1, (n_prompts, samples, 1), generator=rng)
        lengths[0, :2, 0] = torch.tensor([1, n_tokens])
        self.mask, self.scale = torch.arange(n_tokens) < lengths, scale

    def logp(self, i, samples):
        """Log-probabilities `(samples, n_tokens)` of the answers to prompt i."""
        logp = F.log_softmax(self.scale * (self.own[i] + self.shared), -1)
        return logp.expand(samples, -1, -1).gather(-1, self.tokens[i, :samples, :, None])[..., 0]


class _Rollout:
    """`sample` and `score` as the lab describes them; records their arguments."""

    def __init__(self, rewards):
        self.calls, self.scored, rows = [], set(), enumerate(rewards.tolist())
        self.paid = {f"answer {k} to prompt {i}": r for i, row in rows for k, r in enumerate(row)}

    def sample(self, model, prompts, samples):
        self.calls.append((model, list(prompts), samples))
        places = [int(prompt.split()[-1]) for prompt in prompts]
        answers = [f"answer {k} to {prompt}" for prompt in prompts for k in range(samples)]
        logp = torch.cat([model.logp(i, samples) for i in places])
        return answers, logp, torch.cat([model.mask[i, :samples] for i in places])

    def score(self, answer):
        if not isinstance(answer, str) or answer not in self.paid:
            raise CheckFailed("score() takes one answer, a string that sample() returned")
        self.scored.add(answer)
        return self.paid[answer]


def stepped(grpo_step, seed, rewards, scale, stale):
    """How `grpo_step` calls its arguments and moves the weights, and what it returns."""
    (n, samples), rollout, steps = rewards.shape, _Rollout(rewards), []
    model, prompts = Policy(seed, n, samples, scale), [f"prompt {i}" for i in range(n)]
    optimizer = torch.optim.SGD(trained := [model.own, model.shared], lr=1.0)
    for p in trained if stale else ():
        p.grad = torch.full_like(p, 0.3)

    def note(*_):
        some = [bool(p.grad.any()) for p in trained if p.grad is not None]
        steps.append("get a gradient" if any(some) else "only zeros" if some else "None")

    optimizer.register_step_pre_hook(note)
    before = torch.cat([p.detach().flatten() for p in trained])
    step = functools.partial(grpo_step, model, optimizer, rollout.sample, rollout.score)
    result = kept(step, prompts, samples)
    moved = torch.cat([p.detach().flatten() for p in trained]) - before
    meant = rollout.calls == [(model, prompts, samples)]
    facts = {
        "the number of calls of sample": len(rollout.calls),
        "the arguments of sample": "model, prompts, samples" if meant else "others",
        "the answers without a score": sorted(rollout.paid.keys() - rollout.scored),
        "the number of calls of optimizer.step": len(steps),
        "optimizer.step()": ", ".join(steps),
        "the change of the weights": moved if moved.abs().max() > 1e-3 else 0 * moved,
        "the return value": "a dict" if isinstance(result, dict) else kind(result),
    }
    for key in ("reward", "equal") if isinstance(result, dict) else ():
        facts[f'result["{key}"]'] = result.get(key)
        facts["the keys of the result"] = sorted(map(str, result))
    return facts
