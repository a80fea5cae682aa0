"""Lab 9's checks: right answers written differently, and wrong ones that no row expresses."""

from functools import partial

import torch
import torch.nn.functional as F
from test_lab08 import logits_of

from labkit.checks import lab09 as check

# --- 9.1 -----------------------------------------------------------------------------------


def token_kl(student_logits, teacher_logits, mask, reverse=True):
    p, q = (x.float().log_softmax(-1) for x in (student_logits, teacher_logits))
    first, second = (p, q) if reverse else (q, p)
    return (first.exp() * (first - second)).sum(-1).masked_select(mask).mean()


def kl_by_kl_div(student_logits, teacher_logits, mask, reverse=True):
    p = F.log_softmax(student_logits[mask], dim=-1, dtype=torch.float32)
    q = F.log_softmax(teacher_logits[mask], dim=-1, dtype=torch.float32)
    if reverse:
        return F.kl_div(q, p, log_target=True, reduction="batchmean")
    return F.kl_div(p, q, log_target=True, reduction="batchmean")


def kl_by_distributions(student_logits, teacher_logits, mask, reverse=True):
    p, q = (torch.distributions.Categorical(logits=x) for x in (student_logits, teacher_logits))
    kl = torch.distributions.kl_divergence(*((p, q) if reverse else (q, p)))
    return (kl * mask).sum() / mask.sum()


def kl_by_loop(student_logits, teacher_logits, mask, reverse=True):
    """In fp64, a position at a time."""
    total = 0.0
    for i, j in mask.nonzero():
        both = (x[i, j].double() for x in (student_logits, teacher_logits))
        p, q = (x - x.logsumexp(0) for x in both)
        total = total + (p.exp() * (p - q) if reverse else q.exp() * (q - p)).sum()
    return total / mask.sum()


def kl_in_place(student_logits, teacher_logits, mask, reverse=True):
    teacher_logits -= teacher_logits.logsumexp(-1, keepdim=True)
    return token_kl(student_logits, teacher_logits, mask, reverse)


# --- 9.2 and 9.4 ---------------------------------------------------------------------------


@torch.no_grad()
def on_policy(model, prompts, sample):
    mode = model.training
    model.eval()
    batch = dict(sample(model, prompts))
    with model.disable_adapter():
        batch["teacher_logits"] = logits_of(model, batch)
    model.train(mode)
    return batch


def on_policy_by_layers(model, prompts, sample):
    """The layers switched off by hand; right padding needs no attention mask."""
    mode = model.training
    with torch.no_grad():
        batch = sample(model.eval(), prompts)
        model.base_model.disable_adapter_layers()
        teacher = model(batch["input_ids"]).logits
        model.base_model.enable_adapter_layers()
    model.train() if mode else model.eval()
    batch.update(teacher_logits=teacher)
    return batch


def on_policy_twice(model, prompts, sample):
    sample(model, prompts)
    return on_policy(model, prompts, sample)


def on_policy_left_off(model, prompts, sample):
    batch = on_policy(model, prompts, sample)
    model.base_model.disable_adapter_layers()
    return batch


def shifted(student, teacher, batch, kl=token_kl):
    return kl(student[:, :-1], teacher[:, :-1], batch["labels"][:, 1:].ne(-100))


def drift(model, batch):
    mode = model.training
    model.eval()
    with torch.no_grad():
        student = logits_of(model, batch)
        with model.disable_adapter():
            teacher = logits_of(model, batch)
    model.train(mode)
    return float(shifted(student, teacher, batch, kl_by_kl_div))


def drift_by_on_policy(model, batch):
    """9.2 gives the teacher's logits of a batch that is there."""
    mode = model.training
    teacher = on_policy(model, [], lambda *_: batch)["teacher_logits"]
    with torch.inference_mode():
        far = shifted(logits_of(model.eval(), batch), teacher, batch)
    model.train(mode)
    return far.item()


# --- 9.3 -----------------------------------------------------------------------------------


def distill_step(model, optimizer, task_loss, prompts, sample, weight=1.0, clip=1.0):
    """Two backward passes: gradients add up."""
    optimizer.zero_grad(set_to_none=False)
    task = task_loss(model)
    task.backward()
    batch = on_policy(model, prompts, sample)
    far = shifted(logits_of(model, batch), batch["teacher_logits"], batch)
    (weight * far).backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
    optimizer.step()
    return {"kl": float(far), "task": float(task)}


def step_by_selection(model, optimizer, task_loss, prompts, sample, weight=1.0):
    """Positions before answers are selected, and the divergence is torch's."""
    batch = on_policy(model, prompts, sample)
    answer = torch.zeros_like(batch["labels"], dtype=torch.bool)
    answer[:, :-1] = batch["labels"][:, 1:] != -100
    p, q = (x[answer].log_softmax(-1) for x in (logits_of(model, batch), batch["teacher_logits"]))
    far, task = F.kl_div(q, p, log_target=True, reduction="batchmean"), task_loss(model)
    loss = task + weight * far
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return dict(task=task.item(), kl=far.item())


def step_in_mode(training, model, *given, **more):
    mode = model.training
    found = distill_step(model.train(training), *given, **more)
    model.train(mode)
    return found


def step_of_sum(*given, **more):
    found = distill_step(*given, **more)
    return found | {"task": found["task"] + found["kl"]}


RIGHT = [
    *((check.kl, f) for f in (token_kl, kl_by_kl_div, kl_by_loop)),
    *((check.samples, f) for f in (on_policy, on_policy_by_layers)),
    *((check.steps, f) for f in (distill_step, step_by_selection)),
    *((check.drifts, f) for f in (drift, drift_by_on_policy)),
]
WRONG = [
    (check.kl, kl_by_distributions, "softmax underflows"),
    (check.kl, kl_in_place, "changes its input `teacher_logits` in place"),
    (check.samples, on_policy_twice, "the number of calls of sample should be 1, not 2"),
    (check.samples, on_policy_left_off, "the adapter afterwards should be switched on"),
    (check.samples, lambda m, p, s: on_policy(m, p[:1], s), "the arguments of sample"),
    (check.steps, partial(distill_step, clip=0.5), "the change of the weights"),
    (check.steps, partial(step_in_mode, False), "run should be train(), not eval()"),
    (check.steps, partial(step_in_mode, True), "run should be eval(), not train()"),
    (check.steps, step_of_sum, '["task"] of the result should be'),
]

GIVEN = [(check.drifts, "teacher and student are the same model")]
