"""Lab 8's checks: right answers written differently, wrong ones that no row expresses, stubs."""

import contextlib
import copy
import json
import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from labkit import contract
from labkit.checks import lab08 as check

# --- 8.1 -----------------------------------------------------------------------------------


def sequence_logprob(logits, labels):
    logits, targets = logits[:, :-1], labels[:, 1:]
    counted = targets != -100
    logp = logits.log_softmax(-1).gather(-1, targets.where(counted, 0)[..., None]).squeeze(-1)
    return (logp * counted).sum(-1)


def by_cross_entropy(logits, labels):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return -losses.sum(1)


def by_loop(logits, labels):
    sums = []
    for row, ids in zip(logits, labels, strict=True):
        total = torch.zeros(())
        for t in range(1, len(ids)):
            if ids[t] >= 0:
                total = total + row[t - 1, ids[t]] - row[t - 1].logsumexp(0)
        sums.append(total)
    return torch.stack(sums)


def by_categorical(logits, labels):
    targets, mask = labels[:, 1:].clone(), labels[:, 1:].ne(-100)
    targets[~mask] = 0
    logp = torch.distributions.Categorical(logits=logits[:, :-1]).log_prob(targets)
    return torch.where(mask, logp, torch.zeros_like(logp)).sum(dim=1)


def by_roll(logits, labels):
    """Labels rolled by one, the last position ignored; in fp64, with one_hot."""
    targets = labels.roll(-1, dims=1)
    targets[:, -1] = -100
    logp = logits.double().log_softmax(2)
    logp = (logp * F.one_hot(targets.clamp(min=0), logits.shape[-1])).sum(2)
    return (logp * (targets != -100).double()).sum(1)


def logprob_in_place(logits, labels):
    targets = labels[:, 1:]
    mask = targets != -100
    targets[~mask] = 0
    return (logits[:, :-1].log_softmax(-1).gather(-1, targets[..., None])[..., 0] * mask).sum(1)


# --- 8.2 -----------------------------------------------------------------------------------


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    policy, reference = policy_chosen - policy_rejected, reference_chosen - reference_rejected
    return -F.logsigmoid(beta * (policy - reference)).mean()


def dpo_by_softplus(pc, pr, rc, rr, beta):
    return F.softplus(beta * (rc - rr) - beta * (pc - pr)).mean()


def dpo_by_cross_entropy(pc, pr, rc, rr, beta):
    scores = torch.stack([beta * (pc - rc), beta * (pr - rr)], dim=1)
    return F.cross_entropy(scores, torch.zeros(len(pc), dtype=torch.long))


def dpo_by_logsumexp(pc, pr, rc, rr, beta):
    """Minus the log-softmax of the chosen one."""
    scores = torch.stack([pc - rc, pr - rr])
    return (torch.logsumexp(beta * scores, 0) - beta * scores[0]).mean()


def dpo_in_double(pc, pr, rc, rr, beta):
    x = beta * ((pc.double() - rc) - (pr.double() - rr))
    return torch.mean(-torch.nn.LogSigmoid()(x))


def dpo_by_pieces(pc, pr, rc, rr, beta):
    """log(1 + e^-x) = max(-x, 0) + log(1 + e^-|x|), whose slope at 0 torch takes for twice."""
    x = beta * ((pc - rc) - (pr - rr))
    return ((-x).clamp(min=0) + torch.log1p((-x.abs()).exp())).mean()


def dpo_half_detached(pc, pr, rc, rr, beta):
    return dpo_loss(pc, pr.detach(), rc, rr, beta)


def dpo_clamped(pc, pr, rc, rr, beta):
    return -F.logsigmoid((beta * ((pc - rc) - (pr - rr))).clamp(-20, 20)).mean()


# --- 8.3 -----------------------------------------------------------------------------------


def logits_of(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def reference_logprobs(model, batch):
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            return sequence_logprob(logits_of(model, batch), batch["labels"])
    finally:
        model.train(training)


@torch.no_grad()
def reference_with_decorator(model, batch):
    mode = model.training
    try:
        with model.disable_adapter():
            model.eval()
            logits = model(**batch).logits
    finally:
        model.train() if mode else model.eval()
    return sequence_logprob(logits, batch["labels"])


def reference_by_layers(model, batch):
    """The layers switched off and on by hand."""
    mode = model.training
    try:
        model.base_model.disable_adapter_layers()
        model.train(False)
        with torch.inference_mode():
            logits = model.base_model(batch["input_ids"], batch["attention_mask"]).logits
            return sequence_logprob(logits, batch["labels"]).clone()
    finally:
        model.base_model.enable_adapter_layers()
        model.train(mode)


def reference_with_stack(model, batch):
    with contextlib.ExitStack() as stack:
        stack.callback(model.train, model.training)
        stack.enter_context(torch.no_grad())
        stack.enter_context(model.disable_adapter())
        logits = logits_of(model.eval(), batch)
    return sequence_logprob(logits, labels=batch["labels"])


def reference_reraises(model, batch):
    mode = model.training
    try:
        model.eval()
        with torch.no_grad(), model.disable_adapter():
            logp = sequence_logprob(logits_of(model, batch), batch["labels"])
    except BaseException:
        model.train(mode)
        raise
    model.train(mode)
    return logp


def reference_left_off(model, batch):
    model.base_model.disable_adapter_layers()
    with torch.inference_mode():
        return sequence_logprob(model.train(False)(**batch).logits, batch["labels"]).clone()


def reference_of_other(model, batch):
    model.set_adapter("earlier")
    return reference_logprobs(model, batch)


def reference_zeroed(model, batch):
    for name, p in model.named_parameters():
        p.data *= "lora_B" not in name
    return reference_logprobs(model, batch)


# --- 8.4 -----------------------------------------------------------------------------------


def group_advantages(rewards, eps=1e-4):
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + eps)


def advantages_by_row(rewards, eps=1e-4):
    return torch.stack([(row - row.mean()) / (row.std() + eps) for row in rewards])


def advantages_by_numpy(rewards, eps=1e-4):
    rows = rewards.numpy()
    gap = rows - rows.mean(axis=1, keepdims=True)
    return torch.from_numpy(gap / (rows.std(axis=1, ddof=1, keepdims=True) + eps))


def advantages_by_matrix(rewards, eps=1e-4):
    """A centering matrix leaves 6e-8 of equal rewards, which is 6e-4 over eps."""
    n = rewards.shape[1]
    gap = rewards @ (torch.eye(n) - 1 / n)
    return gap / ((gap.square().sum(1, keepdim=True) / (n - 1)).sqrt() + eps)


def advantages_in_place(rewards, eps=1e-4):
    rewards -= rewards.mean(1, keepdim=True)
    return rewards / (rewards.std(1, keepdim=True) + eps)


# --- 8.5 -----------------------------------------------------------------------------------


def grpo_loss(logp, old_logp, advantages, mask, clip=0.2):
    ratio, gain = torch.exp(logp - old_logp), advantages.unsqueeze(1)
    clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
    each = -torch.minimum(ratio * gain, clipped * gain)
    return (each * mask).sum() / mask.sum()


def grpo_by_selection(logp, old_logp, advantages, mask, clip=0.2):
    ratio = (logp - old_logp).exp()[mask]
    gain = advantages[:, None].expand_as(logp)[mask]
    return -torch.min(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean()


def grpo_by_sign(logp, old_logp, advantages, mask, clip=0.2):
    """A bound for either sign."""
    gain, ratio = advantages[:, None], (logp - old_logp).exp()
    stopped = torch.where(gain > 0, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip))
    return -(gain * stopped).masked_fill(~mask, 0.0).sum() / mask.sum()


def grpo_by_max(logp, old_logp, advantages, mask, clip=0.2):
    """As PPO is often written: the larger of two losses."""
    ratio, weight = torch.exp(logp - old_logp), mask.to(logp.dtype)
    loss1 = -advantages.view(-1, 1) * ratio
    loss2 = -advantages.view(-1, 1) * torch.clamp(ratio, 1.0 - clip, 1.0 + clip)
    return torch.sum(torch.max(loss1, loss2) * weight) / weight.sum().clamp(min=1)


def grpo_by_loop(logp, old_logp, advantages, mask, clip=0.2):
    total = torch.zeros(())
    for i, j in mask.nonzero().tolist():
        ratio = (logp[i, j] - old_logp[i, j]).exp()
        bounded = ratio.clamp(1 - clip, 1 + clip)
        total = total - torch.min(ratio * advantages[i], bounded * advantages[i])
    return total / mask.sum().item()


def grpo_with_kl(logp, old_logp, advantages, mask, clip=0.2):
    gap = old_logp - logp
    kl = ((gap.exp() - 1 - gap) * mask).sum() / mask.sum()
    return grpo_loss(logp, old_logp, advantages, mask, clip) + 0.04 * kl


def grpo_in_place(logp, old_logp, advantages, mask, clip=0.2):
    old_logp[~mask] = 0.0
    return grpo_loss(logp, old_logp, advantages, mask, clip)


# --- 8.6 -----------------------------------------------------------------------------------


def read(text):
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def n_right(said, goal):
    both = [key for key in goal if key in said and type(said[key]) is type(goal[key])]
    return sum(said[key] == goal[key] for key in both)


def paid(formula, read=read):
    """A reward by `formula(right keys, extra keys, said, goal)`."""

    def reward(answer, wanted):
        said, goal = read(answer), json.loads(wanted)
        if said is None:
            return 0.0
        return formula(n_right(said, goal), len(said.keys() - goal.keys()), said, goal)

    return reward


def by_sets(answer, wanted):
    """Pairs as texts, their share of all pairs of both; an int where nothing is right."""
    try:
        pairs = {(key, json.dumps(value)) for key, value in json.loads(answer).items()}
    except (ValueError, AttributeError):
        return 0
    goal = {(key, json.dumps(value)) for key, value in json.loads(wanted).items()}
    return len(pairs & goal) / len(pairs | goal)


def with_gap(right, extra, said, goal):
    """At most a half for what is not all right."""
    return 1.0 if right == len(goal) and not extra else 0.5 * right / len(goal) / (1 + extra)


def mostly_intent(right, extra, said, goal):
    """The intent is worth half, so all keys with it earn more than a half without it."""
    return 0.5 * (said.get("intent") == goal["intent"]) + 0.5 * right / len(said | goal)


def by_eval(text):
    try:
        data = eval(text, {"true": True, "false": False, "null": None})
    except Exception:
        return None
    return data if isinstance(data, dict) else None


# --- 8.7 -----------------------------------------------------------------------------------


def grpo_step(model, optimizer, sample, score, prompts, samples, **other):
    """Plain Python; `advantages`, `clip` and `share` may be given to it."""
    optimizer.zero_grad(set_to_none=False)
    answers, logp, mask = sample(model=model, prompts=prompts, samples=samples)
    rows = np.array([score(a) for a in answers]).reshape(-1, samples)
    made = other.get("advantages", group_advantages)(torch.from_numpy(rows).float())
    loss = other.get("loss", grpo_loss)(logp, logp.detach(), made.reshape(-1), mask)
    loss.backward()
    clip = torch.nn.utils.clip_grad_norm_
    other.get("clip", lambda ps: clip(ps, max_norm=1))(list(model.parameters()))
    optimizer.step()
    share = other.get("share", lambda rows: np.mean([len(set(row)) == 1 for row in rows]))
    return {"reward": rows.mean(), "equal": share(rows)}


def clip_by_hand(parameters):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(g.square().sum().item() for g in grads))
    for g in grads:
        g.mul_(min(1.0, 1.0 / (norm + 1e-6)))


def clip_each(parameters):
    for p in parameters:
        torch.nn.utils.clip_grad_norm_([p], 1.0)


def normalize(parameters):
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
    for p in parameters:
        p.grad = p.grad if p.grad is None else p.grad / (norm + 1e-9)


def step_of_groups(model, optimizer, sample, score, prompts, samples):
    *_, last = (grpo_step(model, optimizer, sample, score, [p], samples) for p in prompts)
    return last


def share(equal):
    return lambda rows: equal(torch.tensor(rows).float()).float().mean().item()


SHARES = [
    share(lambda rewards: rewards.std(1) == 0),
    share(lambda rewards: rewards.std(1) < 1e-2),
    share(lambda rewards: (group_advantages(rewards) == 0).all(1)),
    share(lambda rewards: (rewards.round() == rewards[:, :1].round()).all(1)),
]


def step_in_place(model, optimizer, sample, score, prompts, samples):
    prompts.append("")
    return grpo_step(model, optimizer, sample, score, prompts[:-1], samples)


RIGHT = [
    *((check.logprobs, f) for f in (sequence_logprob, by_cross_entropy, by_loop)),
    *((check.logprobs, f) for f in (by_categorical, by_roll)),
    *((check.dpo, f) for f in (dpo_loss, dpo_by_softplus, dpo_by_cross_entropy)),
    *((check.dpo, f) for f in (dpo_by_logsumexp, dpo_in_double)),
    *((check.reference, f) for f in (reference_logprobs, reference_with_decorator)),
    *((check.reference, f) for f in (reference_by_layers, reference_with_stack)),
    (check.reference, reference_reraises),
    *((check.advantages, f) for f in (group_advantages, advantages_by_row)),
    *((check.advantages, f) for f in (advantages_by_numpy, advantages_by_matrix)),
    *((check.clipped, f) for f in (grpo_loss, grpo_by_selection, grpo_by_sign)),
    *((check.clipped, f) for f in (grpo_by_max, grpo_by_loop)),
    (check.rewards, by_sets),
    (check.rewards, paid(with_gap)),
    (check.rewards, paid(lambda n, extra, said, goal: n / len(said | goal))),
    (check.rewards, paid(lambda n, extra, said, goal: 2 * n / (len(said) + len(goal)))),
    (check.rewards, paid(lambda n, extra, said, goal: max(0.0, n / len(goal) - 0.2 * extra))),
    (check.rewards, paid(lambda n, extra, said, goal: n / len(goal) * 0.5**extra)),
    (check.steps, grpo_step),
    (check.steps, partial(grpo_step, clip=clip_by_hand)),
    (check.steps, partial(grpo_step, advantages=advantages_by_matrix, loss=grpo_by_loop)),
    (check.steps, partial(grpo_step, share=lambda rows: float((rows.std(1) == 0).mean()))),
    (check.quiz, lambda: {"q1": "b", "q2": " D. ", "q3": "(a)", "q4": "c"}),
]
SEEDS = {"RIGHT": range(3)}

WRONG = [
    (check.logprobs, logprob_in_place, "changes its input labels in place"),
    (check.logprobs, lambda x, y: sequence_logprob(x, y).tolist(), "a tensor, not a list"),
    (check.logprobs, lambda x, y: sequence_logprob(x / 2, y), "the result should be -1.674"),
    (check.logprobs, lambda x, y: print(end=""), "is `return` missing?"),
    (check.dpo, dpo_by_pieces, "beta 1, the gradient for policy_chosen should be -0.5"),
    (check.dpo, dpo_half_detached, "the gradient for policy_rejected should be 0.1192, not 0"),
    (check.dpo, dpo_clamped, "the size of the loss should be above 100"),
    (check.dpo, lambda *data: dpo_loss(*data).item(), "a tensor, not a float"),
    (check.reference, reference_left_off, "the adapter afterwards should be switched on"),
    (check.reference, reference_of_other, "should be policy, not earlier"),
    (check.reference, reference_zeroed, "the weights afterwards should be unchanged"),
    (check.reference, lambda m, b: reference_logprobs(copy.deepcopy(m), b), "copies the whole"),
    (check.reference, lambda m, b: torch.zeros(len(b["labels"])), "one per sequence, not 0"),
    (check.advantages, advantages_in_place, "changes its input rewards in place"),
    (check.advantages, lambda r, *eps: group_advantages(r, *eps).clamp(-1, 1), "is furthest off)"),
    (check.advantages, lambda r, eps=1e-4: group_advantages(r).flatten(), "shape (2, 2), not"),
    (check.clipped, grpo_in_place, "changes its input old_logp in place"),
    (check.clipped, grpo_with_kl, "the loss should be -1.2, not -1.192"),
    (check.clipped, lambda *data, **clip: grpo_loss(*data, **clip).item(), "not a float"),
    (check.clipped, lambda *data, **clip: grpo_loss(*data, **clip)[None], "shape (), not (1,)"),
    (check.clipped, lambda n, o, a, m: grpo_loss(n, o, a, m), "argument 'clip'"),
    (check.rewards, paid(mostly_intent), "all 16 keys, to"),
    (check.rewards, paid(lambda n, extra, said, goal: n / len(said | goal), by_eval), "Python"),
    (check.rewards, lambda a, w: torch.tensor(by_sets(a, w)), "a float, not a tensor"),
    (check.rewards, lambda a, w: a == w, "a float, not a bool"),
    (check.steps, step_of_groups, "the number of calls of sample should be 1, not 2"),
    (check.steps, partial(grpo_step, clip=clip_each), "where the norm of the gradient is above 1"),
    (check.steps, partial(grpo_step, clip=normalize), "for 2 prompts with 3 answers each"),
    (check.steps, partial(grpo_step, share=lambda rows: torch.tensor(0.0)), "not a tensor: call"),
    *((check.steps, partial(grpo_step, share=f), "of the result should be") for f in SHARES),
    (check.steps, step_in_place, "changes its input prompts in place"),
    (check.quiz, lambda: {"q1": "a", "q2": "d", "q3": "a", "q4": "c"}, "q1 a, not quite"),
    (check.quiz, lambda: {"q1": "b"}, "q2 wants one of"),
]


def _stub(*_, **__):
    raise NotImplementedError


STUBS = [(judged, _stub) for judged in contract.checks_of(check)]
