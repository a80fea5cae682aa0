"""Lab 8's checks: right answers written differently, and wrong ones that no row expresses."""

import contextlib
import copy
import json
import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from labkit.checks import lab08 as check

# --- 8.1 -----------------------------------------------------------------------------------


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


def dpo_by_softplus(pc, pr, rc, rr, beta):
    return F.softplus(beta * (rc - rr) - beta * (pc - pr)).mean()


def dpo_by_cross_entropy(pc, pr, rc, rr, beta):
    scores = torch.stack([beta * (pc - rc), beta * (pr - rr)], dim=1)
    return F.cross_entropy(scores, torch.zeros(len(pc), dtype=torch.long))


def dpo_in_double(pc, pr, rc, rr, beta):
    x = beta * ((pc.double() - rc) - (pr.double() - rr))
    return torch.mean(-torch.nn.LogSigmoid()(x))


def dpo_by_pieces(pc, pr, rc, rr, beta):
    """log(1 + e^-x) = max(-x, 0) + log(1 + e^-|x|), whose slope at 0 torch takes for twice."""
    x = beta * ((pc - rc) - (pr - rr))
    return ((-x).clamp(min=0) + torch.log1p((-x.abs()).exp())).mean()


def dpo_half_detached(pc, pr, rc, rr, beta):
    return dpo_by_softplus(pc, pr.detach(), rc, rr, beta)


# --- 8.3 -----------------------------------------------------------------------------------


def logits_of(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def reference_by_layers(model, batch):
    """The layers switched off and on by hand."""
    mode = model.training
    try:
        model.base_model.disable_adapter_layers()
        model.train(False)
        with torch.inference_mode():
            logits = model.base_model(batch["input_ids"], batch["attention_mask"]).logits
            return by_cross_entropy(logits, batch["labels"]).clone()
    finally:
        model.base_model.enable_adapter_layers()
        model.train(mode)


def reference_with_stack(model, batch):
    with contextlib.ExitStack() as stack:
        stack.callback(model.train, model.training)
        stack.enter_context(torch.no_grad())
        stack.enter_context(model.disable_adapter())
        logits = logits_of(model.eval(), batch)
    return by_cross_entropy(logits, labels=batch["labels"])


def reference_reraises(model, batch):
    mode = model.training
    try:
        model.eval()
        with torch.no_grad(), model.disable_adapter():
            logp = by_cross_entropy(logits_of(model, batch), batch["labels"])
    except BaseException:
        model.train(mode)
        raise
    model.train(mode)
    return logp


def reference_left_off(model, batch):
    model.base_model.disable_adapter_layers()
    with torch.inference_mode():
        return by_cross_entropy(model.train(False)(**batch).logits, batch["labels"]).clone()


def reference_of_other(model, batch):
    model.set_adapter("earlier")
    return reference_with_stack(model, batch)


def reference_zeroed(model, batch):
    for name, p in model.named_parameters():
        p.data *= "lora_B" not in name
    return reference_with_stack(model, batch)


# --- 8.4 -----------------------------------------------------------------------------------


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


# --- 8.5 -----------------------------------------------------------------------------------


def grpo_by_selection(logp, old_logp, advantages, mask, clip=0.2):
    ratio = (logp - old_logp).exp()[mask]
    gain = advantages[:, None].expand_as(logp)[mask]
    return -torch.min(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean()


def grpo_by_sign(logp, old_logp, advantages, mask, clip=0.2):
    """A bound for either sign."""
    gain, ratio = advantages[:, None], (logp - old_logp).exp()
    stopped = torch.where(gain > 0, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip))
    return -(gain * stopped).masked_fill(~mask, 0.0).sum() / mask.sum()


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
    return grpo_by_sign(logp, old_logp, advantages, mask, clip) + 0.04 * kl


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


def any_json(text):
    with contextlib.suppress(ValueError):
        return json.loads(text)


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
    made = other.get("advantages", advantages_by_row)(torch.from_numpy(rows).float())
    loss = other.get("loss", grpo_by_selection)(logp, logp.detach(), made.reshape(-1), mask)
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


def normalize(parameters):
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
    for p in parameters:
        p.grad = p.grad if p.grad is None else p.grad / (norm + 1e-9)


def step_of_groups(model, optimizer, sample, score, prompts, samples):
    *_, last = (grpo_step(model, optimizer, sample, score, [p], samples) for p in prompts)
    return last


def step_in_place(model, optimizer, sample, score, prompts, samples):
    prompts.append("")
    return grpo_step(model, optimizer, sample, score, prompts[:-1], samples)


def share_by_std(rows):
    """The mean of equal rewards may be rounded."""
    return (torch.tensor(rows).float().std(1) == 0).float().mean().item()


RIGHT = [
    *((check.logprobs, f) for f in (by_cross_entropy, by_loop, by_roll)),
    *((check.dpo, f) for f in (dpo_by_softplus, dpo_by_cross_entropy, dpo_in_double)),
    (check.reference, reference_by_layers),
    (check.reference, reference_with_stack),
    (check.reference, reference_reraises),
    (check.advantages, advantages_by_row),
    (check.advantages, advantages_by_numpy),
    (check.advantages, advantages_by_matrix),
    *((check.clipped, f) for f in (grpo_by_selection, grpo_by_sign, grpo_by_loop)),
    (check.rewards, by_sets),
    (check.rewards, paid(with_gap)),
    (check.rewards, paid(lambda n, extra, said, goal: max(0.0, n / len(goal) - 0.2 * extra))),
    (check.steps, partial(grpo_step, clip=clip_by_hand)),
    (check.steps, partial(grpo_step, advantages=advantages_by_matrix, loss=grpo_by_loop)),
    (check.steps, partial(grpo_step, share=lambda rows: float((rows.std(1) == 0).mean()))),
]

WRONG = [
    (check.logprobs, logprob_in_place, "changes its input `labels` in place"),
    (check.dpo, dpo_by_pieces, "beta 1, the gradient for policy_chosen should be -0.5"),
    (check.dpo, dpo_half_detached, "the gradient for policy_rejected should be 0.1192, not 0"),
    (check.reference, reference_left_off, "the adapter afterwards should be switched on"),
    (check.reference, reference_of_other, "should be policy, not earlier"),
    (check.reference, reference_zeroed, "the weights afterwards should not change"),
    (check.reference, lambda m, b: reference_with_stack(copy.deepcopy(m), b), "copies the whole"),
    (check.advantages, lambda r, *eps: advantages_by_row(r, *eps).clamp(-1, 1), "largest error)"),
    (check.clipped, grpo_with_kl, "the loss should be -1.2, not -1.192"),
    (check.clipped, lambda n, o, a, m: grpo_by_sign(n, o, a, m), "argument 'clip'"),
    (check.rewards, paid(mostly_intent), "all 16 keys) where"),
    (check.rewards, paid(lambda n, extra, said, goal: n / len(said | goal), by_eval), "Python"),
    (check.rewards, paid(lambda n, extra, said, goal: n / len(said | goal), any_json), "isinst"),
    (check.rewards, paid(lambda n, extra, said, goal: n / len(goal) - extra), "to 1, not -3: stop"),
    (check.rewards, lambda a, w: a == w, "a float, not a bool"),
    (check.steps, step_of_groups, "the number of calls of sample should be 1, not 2"),
    (check.steps, partial(grpo_step, clip=normalize), "for 2 prompts with 3 answers each"),
    (check.steps, partial(grpo_step, share=share_by_std), '["equal"] should be'),
    (check.steps, step_in_place, "changes its input `prompts` in place"),
]
