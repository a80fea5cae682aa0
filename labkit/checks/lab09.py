"""Checks of lab 9. The reference is a closed form in fp64 on the dense logits of a tiny model."""

import torch

from labkit.checks import policies
from labkit.checks.engine import expect_right
from labkit.checks.inputs import draw, randn
from labkit.checks.quiz import quiz_of
from labkit.contract import exercise, generator
from labkit.probes import lab09 as probes
from labkit.probes.policies import MODES, copied

EXAMPLE = torch.tensor([[[0.9, 0.1]]]).log(), torch.tensor([[[0.5, 0.5]]]).log()


@exercise("9.1", points=3)
def kl(token_kl):
    """the KL and its gradient in either direction, averaged over the positions that count"""
    rng, one = generator(), torch.ones(1, 1, dtype=torch.bool)
    where = "for a student with 0.9 and 0.1, and a teacher with 0.5 and 0.5"
    cases = {where: (*EXAMPLE, one), f"{where}, reverse=False": (*EXAMPLE, one, False)}
    for reverse in (None, True, False):
        name = "for random logits" + (f", reverse={reverse}" if reverse is not None else "")
        cases[name] = *_two(rng), reverse
    student, teacher, mask = _two(rng)
    cases["where every position counts"] = student, teacher, torch.ones_like(mask)
    cases["where the two models are the same"] = student, student, mask
    expect_right(token_kl, cases, _distance, probes.distance)
    where, cases = "for logits in the hundreds (softmax underflows: use log_softmax)", {}
    for way in (True, False):
        cases[f"{where} and reverse={way}"] = 100 * student, 100 * teacher, mask, way
    cases["for bf16 logits"] = student.bfloat16(), teacher.bfloat16(), mask
    expect_right(token_kl, cases, _far, probes.far)


def _two(rng):
    """Logits (b, n, vocab) of two models, and a mask (b, n) with rows of different lengths."""
    b, n, vocab = draw(3, 4, rng), draw(5, 7, rng), draw(9, 12, rng)
    student, teacher = (2 * randn(b, n, vocab, rng=rng) for _ in range(2))
    mask = torch.rand(b, n, generator=rng) < 0.5
    mask[0], mask[1] = False, True
    return student, teacher, mask


def _distance(student, teacher, mask, reverse=None):
    """The formulas and their derivatives, in fp64, one position at a time."""
    slope, total, n = torch.zeros(student.shape, dtype=torch.float64), 0.0, int(mask.sum())
    for place in mask.nonzero().tolist():
        p, q = (each[tuple(place)].double().log_softmax(-1) for each in (student, teacher))
        if reverse is False:
            here = torch.nn.functional.kl_div(p, q, reduction="sum", log_target=True)
            slope[tuple(place)] = (p.exp() - q.exp()) / n
        else:
            here = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)
            slope[tuple(place)] = p.exp() * (p - q - here) / n
        total = total + here / n
    total, slope = (x.where(x.abs() > 1e-6, 0) for x in (torch.as_tensor(total), slope))
    facts = {"the return value": "a tensor", "the KL": total, "the gradient": "kept"}
    return facts | {"the gradient for student_logits": slope}


def _far(*given):
    return {"the KL": _distance(*given)["the KL"], "the gradient for student_logits": "finite"}


@exercise("9.2", points=3)
def samples(on_policy):
    """the student samples, the base scores, and the model is left as it was"""
    rng, cases = generator(), {}
    seed = draw(0, 10**6, rng)
    for mode in ("train()", "eval()"):
        batch = policies.batch(rng, "right")
        prompts = [f"prompt {draw(10, 99, rng)}" for _ in batch["labels"]]
        cases[f"for a model in {mode}"] = seed, batch, prompts, mode == "train()"
    expect_right(on_policy, cases, _sampled, probes.sampled)


def _sampled(seed, batch, prompts, training):
    return {
        "the number of calls of sample": 1,
        "the arguments of sample": prompts,
        "the adapter when sampling": "on",
        "the mode when sampling": "eval()",
        "gradients when sampling": "off",
        "the mode when scoring": "eval()",
        "the return value": "a dict",
        "the entries of the result": sorted([*batch, "teacher_logits"]),
        "the kind of teacher_logits": "a tensor",
        "gradients of teacher_logits": "off",
        "inference mode when scoring": "off",
        "teacher_logits": policies.base_logits(seed, batch) * batch["attention_mask"][..., None],
        "the entries that sample gave": "unchanged",
    } | policies.unchanged(training)


@exercise("9.3", points=4)
def steps(distill_step):
    """moves the weights by the clipped gradient of the task loss plus the weighted KL"""
    rng, cases = generator(), {}
    seed = draw(0, 10**6, rng)
    for name, weight, stale in (
        ("with its default weight", None, False),
        ("with a weight of 0.25", 0.25, False),
        ("for a model in eval() with leftover gradients", 2.0, True),
    ):
        batch, task = policies.batch(rng, "right"), torch.randint(2, 20, (2, 5), generator=rng)
        cases[name] = seed, batch, task, weight, stale
    expect_right(distill_step, cases, _stepped, probes.stepped, tol=2e-3)


def _stepped(seed, batch, task, weight, stale):
    model = probes.learner(seed, training=not stale).double()
    with torch.enable_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        of_task = probes.task_loss_of(model, task)
        before_answers = batch["labels"].roll(-1, 1) != policies.IGNORED
        before_answers[:, -1] = False
        p = logits[before_answers].log_softmax(-1)
        q = policies.base_logits(seed, batch)[before_answers].double().log_softmax(-1)
        far = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()
        whole = of_task + (1.0 if weight is None else weight) * far
        grads = torch.autograd.grad(whole, probes.trained(model))
    moved = -torch.cat([grad.flatten() for grad in grads])
    return {
        "the number of calls of sample": 1,
        "the number of calls of task_loss": 1,
        "the argument of task_loss": "the model",
        "the number of calls of optimizer.step": 1,
        "the return value": "a dict",
        "the mode in the student's run": MODES[not stale],
        '["task"] of the result': of_task.item(),
        '["kl"] of the result': far.item(),
        "the change of the weights": moved / moved.norm().clamp(min=1.0),
        "the mode afterwards": MODES[not stale],
    }


@exercise("9.4", points=3)
def drifts(drift):
    """the KL from the base, without dropout noise; the model's mode stays as it was"""
    rng, cases = generator(), {}
    seed = draw(0, 10**6, rng)
    for mode in ("eval()", "train()"):
        where = f"for a model in {mode}"
        cases[where] = seed, policies.batch(rng, "right"), mode == "train()"
    expect_right(drift, cases, _drifted, probes.drifted)


def _drifted(seed, batch, training):
    with torch.no_grad():
        model = copied(seed, training=False)
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    mask = batch["labels"][:, 1:] != policies.IGNORED
    teacher = policies.base_logits(seed, batch)
    far = _distance(logits[:, :-1], teacher[:, :-1], mask)["the KL"].item()
    facts = {"the return value": "a float"} | policies.unchanged(training)
    return facts | {"the result of a second call": "the same", "the KL": far}


quiz = quiz_of("9.5", points=4)
