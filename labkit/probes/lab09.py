"""Probes for lab 9."""

import functools

import torch

from labkit.contract import kept, kind
from labkit.probes import policies
from labkit.probes.gradients import differentiated


def distance(token_kl, student_logits, teacher_logits, mask, reverse=None):
    """The KL and its gradient for the student, with the default direction if `reverse` is None."""
    f = token_kl if reverse is None else functools.partial(token_kl, reverse=reverse)
    given = student_logits, teacher_logits, mask
    facts = differentiated(f, ["student_logits"], "the KL", *given)
    if facts.get("the KL", torch.zeros(1)).isnan().any():  # where its gradient is NaN says nothing
        facts.pop("the gradient for student_logits", None)
    return facts


def far(token_kl, *given):
    """The KL between two models that agree on nothing, and whether its gradient is finite."""
    facts = distance(token_kl, *given)
    grad = facts.get("the gradient for student_logits", torch.zeros(1))
    finite = "finite" if bool(grad.isfinite().all()) else "NaN or infinite"
    return facts | {"the gradient for student_logits": finite}


class Sampler:
    """`sample` as the lab describes it: returns one batch and records how it was called."""

    def __init__(self, batch):
        self.batch, self.calls = batch, []

    def __call__(self, model, prompts):
        layers = [m for m in model.modules() if hasattr(m, "lora_A")]
        on = layers and not any(m.disable_adapters for m in layers)
        self.calls.append(
            {
                "the arguments of sample": prompts if hasattr(model, "disable_adapter") else "",
                "the adapter when sampling": "on" if on else "off",
                "the mode when sampling": policies.MODES[any(m.training for m in model.modules())],
                "gradients when sampling": "on" if torch.is_grad_enabled() else "off",
            }
        )
        return {name: tensor.clone() for name, tensor in self.batch.items()}


def sampled(on_policy, seed, batch, prompts, training):
    """How `on_policy` samples and scores, what it returns, and how it leaves a tiny policy."""
    model, sample = policies.copied(seed, training), Sampler(batch)
    before, passes = policies.state(model), policies.watched(model)
    result = kept(functools.partial(on_policy, model), prompts, sample)
    facts = {"the number of calls of sample": len(sample.calls)} | (sample.calls or [{}])[0]
    facts["the mode when scoring"] = " and ".join(sorted({mode for mode, _ in passes}))
    facts["the return value"] = "a dict" if isinstance(result, dict) else kind(result)
    if isinstance(result, dict):
        facts["the entries of the result"] = sorted(map(str, result))
        logits = result.get("teacher_logits")
        facts["the kind of teacher_logits"] = kind(logits)
        if isinstance(logits, torch.Tensor):
            facts["gradients of teacher_logits"] = "on" if logits.requires_grad else "off"
            facts["inference mode when scoring"] = "on" if logits.is_inference() else "off"
            real = batch["attention_mask"][..., None]  # logits at the padding don't count
            fits = logits.shape[:2] == real.shape[:2]
            facts["teacher_logits"] = logits.detach() * (real if fits else 1)
        same = all(torch.equal(result.get(k, torch.tensor(0)), v) for k, v in batch.items())
        facts["the entries that sample gave"] = "unchanged" if same else "changed"
    return facts | policies.left(before, model)


def learner(seed, training):
    """A tiny policy in fp32 whose active adapter trains without dropout, even in train()."""
    model = policies.copied(seed, training)
    for m in model.modules():
        m.p = m.attention_dropout = 0.0
    for name, p in model.named_parameters():
        p.requires_grad_(f".{policies.ACTIVE}." in name)
    return model


def trained(model):
    """The parameters that train, sorted by name."""
    return [p for _, p in sorted(model.named_parameters()) if p.requires_grad]


def stepped(distill_step, seed, batch, task, weight, stale):
    """How `distill_step` moves the trained weights in one SGD step, and what it returns."""
    student, sample, steps = learner(seed, training=not stale), Sampler(batch), []
    mode, passes = policies.MODES[student.training], policies.watched(student)
    optimizer = torch.optim.SGD(trained(student), lr=1.0)
    for p in trained(student) if stale else ():
        p.grad = torch.full_like(p, 0.3)
    optimizer.register_step_pre_hook(lambda *_: steps.append(1))
    before = torch.cat([p.detach().flatten() for p in trained(student)])
    prompts, asked = [f"prompt {i}" for i in range(len(batch["labels"]))], []

    def task_loss(model=None):
        asked.append("the model" if isinstance(model, torch.nn.Module) else kind(model))
        return task_loss_of(student, task)

    how = () if weight is None else (weight,)
    call = functools.partial(distill_step, student, optimizer, task_loss, prompts, sample)
    result = kept(call, *how)
    moved = torch.cat([p.detach().flatten() for p in trained(student)]) - before
    facts = {
        "the number of calls of sample": len(sample.calls),
        "the number of calls of task_loss": len(asked),
        "the argument of task_loss": next(iter(asked), None) or "missing",
        "the number of calls of optimizer.step": len(steps),
        "the return value": "a dict" if isinstance(result, dict) else kind(result),
    }
    for key in ("task", "kl") if isinstance(result, dict) else ():
        facts[f'["{key}"] of the result'] = result.get(key)
    other = [its for its, grads in passes if grads and its != mode]
    facts["the mode in the student's run"] = (other or [mode])[0]
    return facts | {"the change of the weights": moved} | policies.left({}, student)


def task_loss_of(model, ids):
    """The mean loss of predicting each next token of `ids` (b, n)."""
    return model(ids, labels=ids).loss


def drifted(drift, seed, batch, training):
    """The results of two calls of `drift` on a tiny policy, and how they leave the policy."""
    model = policies.copied(seed, training)
    before = policies.state(model)
    value, again = (kept(functools.partial(drift, model), batch) for _ in range(2))
    facts = {"the return value": kind(value), "the result of a second call": "different"}
    if isinstance(value, float) and value == again:
        facts |= {"the result of a second call": "the same", "the KL": round(value, 6)}
    return facts | policies.left(before, model)
