"""Lab 8's checks: stubs, wrong answers that learners give, right answers written differently.

Long, for it lists how people answer six exercises.
"""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F

from labkit.checks import lab08 as check


def stub(*_, **__):
    raise NotImplementedError


# --- 8.1 -----------------------------------------------------------------------------------


def sequence_logprob(logits, labels):
    logits, targets = logits[:, :-1], labels[:, 1:]
    kept = targets != -100
    logp = logits.log_softmax(-1).gather(-1, targets.where(kept, 0)[..., None]).squeeze(-1)
    return (logp * kept).sum(-1)


def by_cross_entropy(logits, labels):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return -losses.sum(1)


def by_flat_cross_entropy(logits, labels):
    b, _, vocab = logits.shape
    flat = logits[:, :-1].reshape(-1, vocab)
    return -F.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="none").view(b, -1).sum(1)


def by_loop(logits, labels):
    sums = []
    for row, ids in zip(logits, labels, strict=True):
        total = torch.zeros(())
        for t in range(1, len(ids)):
            if ids[t] >= 0:
                total = total + row[t - 1, ids[t]] - row[t - 1].logsumexp(0)
        sums.append(total)
    return torch.stack(sums)


def by_nll(logits, labels):
    logp = F.log_softmax(logits.float()[:, :-1, :], dim=-1)
    return torch.stack(
        [
            -F.nll_loss(p, y, ignore_index=-100, reduction="sum")
            for p, y in zip(logp, labels[:, 1:], strict=True)
        ]
    )


def by_categorical(logits, labels):
    targets, mask = labels[:, 1:].clone(), labels[:, 1:].ne(-100)
    targets[~mask] = 0
    told = torch.distributions.Categorical(logits=logits[:, :-1]).log_prob(targets)
    return torch.where(mask, told, torch.zeros_like(told)).sum(dim=1)


def by_roll(logits, labels):
    """Labels rolled by one, the last place ignored."""
    targets = labels.roll(-1, dims=1)
    targets[:, -1] = -100
    mask = (targets != -100).double()
    logp = logits.double().log_softmax(2)
    return ((logp * F.one_hot(targets.clamp(min=0), logits.shape[-1])).sum(2) * mask).sum(1).float()


def logprob(
    here=lambda x: x[:, :-1],
    there=lambda y: y[:, 1:],
    logp=lambda x: x.log_softmax(-1),
    filled=lambda y: y.clamp(min=0),
    mask=lambda y: y != -100,
    total=lambda x, m: (x * m).sum(1),
):
    """A sum with one thing changed."""

    def answer(logits, labels):
        x, y = here(logits), there(labels)
        told = logp(x).gather(-1, filled(y)[..., None])[..., 0]
        return total(told, mask(y))

    return answer


def in_place(logits, labels):
    targets = labels[:, 1:]
    mask = targets != -100
    targets[~mask] = 0
    return (logits[:, :-1].log_softmax(-1).gather(-1, targets[..., None])[..., 0] * mask).sum(1)


def mask_of_uncut(logits, labels):
    logp = logits[:, :-1].log_softmax(-1)
    told = logp.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return (told * (labels != -100)[:, :-1]).sum(1)


def whole(x):
    return x


def rolled(logits, labels):
    """What roll brings round from the first place is counted at the last one."""
    targets = labels.roll(-1, 1)
    logp = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (logp * (targets != -100)).sum(1)


def laid_anew(logits, labels):
    cut = logits[:, :-1]
    turned = cut.reshape(len(cut), cut.shape[2], cut.shape[1])
    return -F.cross_entropy(turned, labels[:, 1:], reduction="none").sum(1)


def product_first(logits, labels):
    p = logits[:, :-1].softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return p.where(labels[:, 1:] != -100, 1.0).prod(1).log()


def picked(total):
    """The log-probabilities of all counted tokens in one line."""

    def answer(logits, labels):
        mask, targets = labels[:, 1:] != -100, labels[:, 1:]
        logp = logits[:, :-1].log_softmax(-1)
        return total(logp[mask].gather(1, targets[mask][:, None]))

    return answer


WRONG_LOGPROBS = [
    (picked(lambda x: x.sum()), "puts all rows into one line"),
    (picked(lambda x: x.sum(-1)), "numbers, one a token of all sequences: a mask as an index"),
    (picked(lambda x: x), "numbers, one a token of all sequences: a mask as an index"),
    (laid_anew, "reshape lays the logits out anew"),
    (lambda x, y: torch.tensor([v.item() for v in sequence_logprob(x, y)]), "torch.tensor([...])"),
    (logprob(logp=lambda x: x.log_softmax(0)), "taken over the sequences"),
    (
        logprob(total=lambda x, m: (-(x * m).sum(1) / m.sum(1).clamp(min=1)).exp()),
        "that is the perplexity",
    ),
    (lambda x, y: sequence_logprob(x, y) / len(y), "a sequence alone has another number"),
    (logprob(total=lambda x, m: (x * m).sum(1) / m.sum(1).clamp(min=1) ** 0.5), "by its length"),
    (rolled, "roll brings the first label round"),
    (torch.no_grad()(sequence_logprob), "nothing could be trained by it"),
    (lambda x, y: sequence_logprob(x.detach(), y), "nothing could be trained by it"),
    (logprob(whole, whole), "not shifted"),
    (logprob(lambda x: x[:, 1:], lambda y: y[:, :-1]), "shifted the wrong way"),
    (logprob(mask=lambda y: y == y), "-100 is counted"),
    (logprob(whole, whole, mask=lambda y: y == y), "-100 is counted"),
    (logprob(filled=whole), "put a harmless id in the place of -100"),
    (logprob(filled=lambda y: y % 10, mask=lambda y: y == y), "-100 is counted"),
    (logprob(mask=lambda y: y > 0), "id 0 is left out"),
    (mask_of_uncut, "the mask is not shifted"),
    (logprob(logp=whole), "not normalised"),
    (logprob(logp=lambda x: x.softmax(-1)), "wanted their logarithms"),
    (logprob(logp=lambda x: x.softmax(-1).log()), "the logarithm of a softmax"),
    (product_first, "or of a product of them"),
    (logprob(logp=lambda x: x.log_softmax(1)), "dim=-1 is the vocabulary"),
    (logprob(logp=lambda x: (x.softmax(-1) + 1e-9).log()), "wanted"),
    (logprob(logp=lambda x: x.log_softmax(-1) / math.log(2)), "base 2"),
    (logprob(total=lambda x, m: -(x * m).sum(1)), "the sign is turned round"),
    (logprob(total=lambda x, m: (x * m).sum(1) / m.sum(1)), ("NaN", "over the answer's tokens")),
    (logprob(total=lambda x, m: (x * m).sum(1) / m.sum(1).clamp(min=1)), "mean over the answer's"),
    (logprob(total=lambda x, m: (x * m).mean(1)), "mean over all places"),
    (logprob(total=lambda x, m: (x * m).sum()), "one number"),
    (logprob(total=lambda x, m: (x * m).sum(0)), "not over the sequences"),
    (logprob(total=lambda x, m: x * m), "a number a token"),
    (logprob(total=lambda x, m: (x * m)[:, :-1].sum(1)), "the last token is lost"),
    (logprob(total=lambda x, m: (x * m).sum(1).exp()), "wanted"),
    (lambda x, y: -F.cross_entropy(x[:, :-1].transpose(1, 2), y[:, 1:]), "one number"),
    (lambda x, y: F.cross_entropy(x[:, :-1], y[:, 1:], reduction="none"), "the vocabulary second"),
    (
        lambda x, y: F.cross_entropy(
            x[:, :-1].transpose(1, 2), y[:, 1:], reduction="none", ignore_index=-100
        ).sum(1),
        "the sign is turned round",
    ),
    (lambda x, y: x.log_softmax(-1).gather(-1, y[:, 1:].clamp(min=0)).sum(1), "gather"),
    (
        logprob(total=lambda x, m: (x * m).sum(1) / m.sum()),
        ("the tokens of the whole batch", "mean over all places"),
    ),
    (logprob(total=lambda x, m: torch.where(m, x.exp(), 1.0).prod(1)), "that is the probability"),
    (lambda x, y: (x[:, :-1].log_softmax(-1).amax(-1) * (y[:, 1:] >= 0)).sum(1), "the likeliest"),
    (logprob(logp=lambda x: (x / 4).log_softmax(-1)), "no temperature is asked for"),
    (in_place, "changes its input labels"),
    (lambda x, y: None, "is `return` missing?"),
    (lambda x, y: sequence_logprob(x, y).tolist(), "gave a list"),
]

# --- 8.2 -----------------------------------------------------------------------------------


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    policy, reference = policy_chosen - policy_rejected, reference_chosen - reference_rejected
    return -F.logsigmoid(beta * (policy - reference)).mean()


def dpo_by_softplus(pc, pr, rc, rr, beta):
    return F.softplus(beta * (rc - rr) - beta * (pc - pr)).mean()


def dpo_by_cross_entropy(pc, pr, rc, rr, beta):
    scores = torch.stack([beta * (pc - rc), beta * (pr - rr)], dim=1)
    return F.cross_entropy(scores, torch.zeros(len(pc), dtype=torch.long))


def dpo_by_bce(pc, pr, rc, rr, beta):
    x = beta * ((pc - rc) - (pr - rr))
    return F.binary_cross_entropy_with_logits(x, torch.ones_like(x))


def dpo_by_logaddexp(pc, pr, rc, rr, beta):
    x = (pc - rc - pr + rr) * beta
    return torch.logaddexp(torch.zeros_like(x), -x).sum() / x.numel()


def dpo_by_pieces(pc, pr, rc, rr, beta):
    """log(1 + e^-x) = max(-x, 0) + log(1 + e^-|x|), whose slope at 0 torch takes for twice."""
    x = beta * ((pc - rc) - (pr - rr))
    return ((-x).clamp(min=0) + torch.log1p((-x.abs()).exp())).mean()


def dpo_by_logsumexp(pc, pr, rc, rr, beta):
    """Minus the log-softmax of the chosen one."""
    scores = torch.stack([pc - rc, pr - rr])
    return (torch.logsumexp(beta * scores, 0) - beta * scores[0]).mean()


def dpo_in_double(pc, pr, rc, rr, beta):
    x = beta * ((pc.double() - rc) - (pr.double() - rr))
    return torch.mean(-torch.nn.LogSigmoid()(x))


def loss_of(f):
    """A mean of f(x, beta) where x is the margin times beta."""

    def answer(pc, pr, rc, rr, beta):
        return f(beta * ((pc - rc) - (pr - rr)), beta)

    return answer


def margin_of(f):
    """The right loss of a wrong margin."""
    return lambda pc, pr, rc, rr, beta: -F.logsigmoid(beta * f(pc, pr, rc, rr)).mean()


def dpo_detached(pc, pr, rc, rr, beta):
    return -F.logsigmoid(beta * ((pc - rc) - (pr - rr)).detach()).mean()


def dpo_half_detached(pc, pr, rc, rr, beta):
    return -F.logsigmoid(beta * ((pc - rc) - (pr.detach() - rr))).mean()


def dpo_in_place(pc, pr, rc, rr, beta):
    pc -= rc
    pr -= rr
    return -F.logsigmoid(beta * (pc - pr)).mean()


def margins(pc, pr, rc, rr, beta):
    return beta * ((pc - rc) - (pr - rr))


def smoothed(*given):
    x = margins(*given)
    return -(0.9 * F.logsigmoid(x) + 0.1 * F.logsigmoid(-x)).mean()


def each_by_itself(pc, pr, rc, rr, beta):
    """As KTO does, without its pairs."""
    good, bad = F.logsigmoid(beta * (pc - rc)), F.logsigmoid(-beta * (pr - rr))
    return -(good + bad).mean() / 2


WRONG_DPO = [
    (
        loss_of(lambda x, beta: ((-x).relu() + x.abs().neg().exp().log1p()).mean()),
        "it is zero at margin 0, where training starts",
    ),
    (each_by_itself, "each answer has a sigmoid of its own"),
    (smoothed, "0.1 times the margin is added to the loss"),
    (lambda *given: -F.logsigmoid(margins(*given) - 1).mean(), "plus -1"),
    (lambda *given: -F.logsigmoid(margins(*given)).min(), "alone have"),
    (lambda *given: (-F.logsigmoid(margins(*given))).log().mean(), "the logarithm of the loss"),
    (margin_of(lambda pc, pr, rc, rr: (pr - rr) - (pc - rc)), "the pairs are swapped"),
    (loss_of(lambda x, beta: -F.logsigmoid(-x).mean()), "the sign of the margin is turned"),
    (margin_of(lambda pc, pr, rc, rr: pc - pr), "the reference is not used"),
    (margin_of(lambda pc, pr, rc, rr: pc - pr + rc - rr), "the reference is added"),
    (margin_of(lambda pc, pr, rc, rr: pc - rc), "the rejected answer does not count"),
    (margin_of(lambda pc, pr, rc, rr: (pc - rc).exp() - (pr - rr).exp()), "turned into ratios"),
    (margin_of(lambda pc, pr, rc, rr: pc / rc - pr / rr), "logarithms are divided"),
    (margin_of(lambda pc, pr, rc, rr: pc - pr - rc - rr), "take it from that answer first"),
    (margin_of(lambda pc, pr, rc, rr: pc - pr - rc), "the rejected answer has no reference"),
    (margin_of(lambda pc, pr, rc, rr: pc - rc + pr - rr), "both answers are added up"),
    (lambda pc, pr, rc, rr, beta: -F.logsigmoid(pc - rc - pr + rr).mean(), "beta is missing"),
    (
        lambda pc, pr, rc, rr, beta: -(beta * F.logsigmoid(pc - rc - pr + rr)).mean(),
        "beta stands outside",
    ),
    (lambda pc, pr, rc, rr, b: -F.logsigmoid((pc - rc - pr + rr) / b).mean(), "divided by beta"),
    (lambda pc, pr, rc, rr, b: -F.logsigmoid(b * (pc - pr) - (rc - rr)).mean(), "policy alone"),
    (loss_of(lambda x, beta: -F.logsigmoid(x).sum()), "wanted their mean"),
    (loss_of(lambda x, beta: -F.logsigmoid(x)), "numbers, wanted one"),
    (loss_of(lambda x, beta: F.logsigmoid(x).mean()), "the minus is missing"),
    (loss_of(lambda x, beta: F.logsigmoid(-x).mean()), "log(1 - sigmoid)"),
    (loss_of(lambda x, beta: -torch.sigmoid(x).mean()), "the logarithm is missing"),
    (loss_of(lambda x, beta: torch.sigmoid(-x).mean()), "the chance of the wrong choice"),
    (loss_of(lambda x, beta: -x.mean()), "the sigmoid is missing"),
    (loss_of(lambda x, beta: (1 - x).relu().mean()), "hinge"),
    (loss_of(lambda x, beta: (x / beta - 1 / (2 * beta)).square().mean()), "IPO"),
    (loss_of(lambda x, beta: -F.logsigmoid(x.mean())), "the mean is taken before"),
    (loss_of(lambda x, beta: -x.sigmoid().mean().log()), "the mean is taken before the log"),
    (loss_of(lambda x, beta: -x.sigmoid().log().mean()), "leaves fp32's range"),
    (loss_of(lambda x, beta: torch.log(1 + torch.exp(-x)).mean()), "leaves fp32's range"),
    (loss_of(lambda x, beta: -(x.sigmoid() + 1e-8).log().mean()), "caps the loss"),
    (loss_of(lambda x, b: -x.sigmoid().clamp(min=1e-20).log().mean()), ("caps", "range")),
    (loss_of(lambda x, b: F.binary_cross_entropy(x.sigmoid(), x * 0 + 1)), ("caps", "range")),
    (loss_of(lambda x, beta: -F.logsigmoid(x.clamp(-20, 20)).mean()), "such as a clamp"),
    (loss_of(lambda x, beta: (-F.logsigmoid(x)).mean().item()), "a step needs the tensor"),
    (loss_of(lambda x, beta: (-F.logsigmoid(x)).mean()[None]), "wanted (): one number"),
    (loss_of(lambda x, beta: -F.logsigmoid(x).max()), ("and their mean", "alone have")),
    (loss_of(lambda x, beta: -F.logsigmoid(x.sum())), ("and their mean", "alone have")),
    (margin_of(lambda pc, pr, rc, rr: pc.exp() - rc.exp() - pr.exp() + rr.exp()), "probabilities"),
    (dpo_detached, "no gradient"),
    (dpo_half_detached, "it is zero: is something detached?"),
    (dpo_by_pieces, "a kink there"),
    (dpo_in_place, "in place"),
    (lambda pc, pr, rc, rr, b: np.log(1 + np.exp(-b * (pc.numpy() - pr.numpy()))), "torch alone"),
    (lambda *_: None, "is `return` missing?"),
]

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


def reference_by_modules(model, batch):
    """Each module's own mode kept; the inner model is called."""
    modes = {name: module.training for name, module in model.named_modules()}
    with torch.set_grad_enabled(False), model.disable_adapter():
        try:
            model.eval()
            logits = logits_of(model.get_base_model(), batch)
        finally:
            for name, module in model.named_modules():
                module.training = modes[name]
    return by_cross_entropy(logits, batch["labels"])


def reference_with_stack(model, batch):
    import contextlib

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
            told = sequence_logprob(logits_of(model, batch), batch["labels"])
    except BaseException:
        model.train(mode)
        raise
    model.train(mode)
    return told


def reference(
    off=lambda model: model.disable_adapter(),
    run=logits_of,
    grad=torch.no_grad,
    before=lambda model: model.eval(),
    after=lambda model, mode: model.train(mode),
    made=lambda logits, batch: sequence_logprob(logits, batch["labels"]),
    safe=True,
):
    """The reference with one thing changed."""

    def answer(model, batch):
        mode = model.training
        before(model)
        try:
            with grad(), off(model):
                told = made(run(model, batch), batch)
        except Exception:
            if safe:
                after(model, mode)
            raise
        after(model, mode)
        return told

    return answer


def nothing(*_):
    import contextlib

    return contextlib.nullcontext()


def layers_left_off(model, batch):
    model.base_model.disable_adapter_layers()
    mode = model.training
    model.eval()
    with torch.no_grad():
        told = sequence_logprob(logits_of(model, batch), batch["labels"])
    model.train(mode)
    return told


def layers_by_hand(model, batch):
    mode = model.training
    model.eval()
    model.base_model.disable_adapter_layers()
    with torch.no_grad():
        told = sequence_logprob(logits_of(model, batch), batch["labels"])
    model.base_model.enable_adapter_layers()
    model.train(mode)
    return told


def swallowed(model, batch):
    try:
        return reference_logprobs(model, batch)
    except Exception as error:
        print(error)


def grad_left_off(model, batch):
    torch.set_grad_enabled(False)
    told = reference_logprobs(model, batch)
    return told


def copied(model, batch):
    import copy

    return reference_logprobs(copy.deepcopy(model), batch)


def unloaded(model, batch):
    mode = model.training
    base = model.unload().eval()
    with torch.no_grad():
        told = sequence_logprob(logits_of(base, batch), batch["labels"])
    model.train(mode)
    return told


def deleted(model, batch):
    model.delete_adapter("policy")
    return reference_logprobs(model, batch)


def other_adapter(model, batch):
    model.set_adapter("earlier")
    return reference()(model, batch)


def no_with(model, batch):
    mode = model.training
    model.eval()
    model.disable_adapter()
    with torch.no_grad():
        told = sequence_logprob(logits_of(model, batch), batch["labels"])
    model.train(mode)
    return told


def after_the_with(model, batch):
    mode = model.training
    model.eval()
    with torch.no_grad():
        with model.disable_adapter():
            inputs = dict(batch)
        told = sequence_logprob(logits_of(model, inputs), batch["labels"])
    model.train(mode)
    return told


def popped(model, batch):
    labels = batch.pop("labels")
    mode = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            return sequence_logprob(model(**batch).logits, labels)
    finally:
        model.train(mode)


def zeroed(model, batch):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.zero_()
    return reference(off=nothing)(model, batch)


def unscaled(model, batch):
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling.update(dict.fromkeys(module.scaling, 0.0))
    return reference(off=nothing)(model, batch)


def by_own_loss(model, batch):
    """The model's loss is a mean over the batch; times a row's tokens it is not the row's sum."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            return -model(**batch).loss * (batch["labels"][:, 1:] != -100).sum(1)
    finally:
        model.train(training)


def default_again(model, batch):
    told = reference_logprobs(model, batch)
    model.set_adapter("default")
    return told


def by_loss_alone(model, batch):
    return by_own_loss(model, batch)[0]


def root_alone(model, mode):
    model.training = mode


WRONG_REFERENCES = [
    (by_loss_alone, "the model's own loss is a mean over the whole batch"),
    (reference(after=root_alone), "the model's parts are in another mode"),
    (by_own_loss, "a mean over the whole batch"),
    (default_again, "an adapter may have any name"),
    (reference(off=nothing), "that is the model with its adapter: run it in"),
    (
        reference(off=nothing, run=lambda m, b: logits_of(m.get_base_model(), b)),
        "has inside as well",
    ),
    (no_with, "disable_adapter() by itself does nothing"),
    (after_the_with, "what is outside of its `with` has the adapter"),
    (reference(off=lambda model: model.disable_adapter), "disable_adapter is a method"),
    (reference(grad=nothing), "a graph for gradients was built"),
    (reference(grad=nothing, made=lambda x, b: sequence_logprob(x, b["labels"]).detach()), "graph"),
    (reference(before=nothing, after=nothing), "a dropout was at work"),
    (reference(after=nothing), "the model evaluates, and it was training"),
    (reference(after=lambda model, mode: model.train()), "trains, and it was evaluating"),
    (reference(safe=False), "where the model raises an exception (MemoryError)"),
    (layers_left_off, "stays switched off"),
    (layers_by_hand, "where the model raises an exception"),
    (swallowed, "a `return` inside `finally`"),
    (grad_left_off, "gradients"),
    (copied, "copies the whole model"),
    (unloaded, "afterwards the adapter is gone"),
    (deleted, "other adapters than before"),
    (other_adapter, "another adapter is active"),
    (reference(run=lambda model, batch: model(batch["input_ids"]).logits), "attention_mask"),
    (reference(made=lambda x, b: sequence_logprob(x, b["input_ids"])), "counted: pass batch"),
    (reference(made=lambda x, b: -sequence_logprob(x, b["labels"])), "the sign is turned"),
    (reference(made=lambda x, b: sequence_logprob(x, b["labels"]).sum()), "gave one number"),
    (reference(made=lambda x, b: x.log_softmax(-1)), "wanted"),
    (reference(made=lambda x, b: None), "is `return` missing?"),
    (popped, "changes its input batch in place"),
    (zeroed, "weights are changed"),
    (unscaled, "scaling is changed"),
    (lambda model, batch: torch.zeros(len(batch["labels"])), "the model was not run"),
]

# --- 8.4 -----------------------------------------------------------------------------------


def group_advantages(rewards, eps=1e-4):
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + eps)


def advantages_by_row(rewards, eps=1e-4):
    return torch.stack([(row - row.mean()) / (row.std() + eps) for row in rewards])


def advantages_by_var_mean(rewards, eps=1e-4):
    var, mean = torch.var_mean(rewards, dim=-1, keepdim=True)
    return (rewards - mean) / (var**0.5 + eps)


def advantages_by_transpose(rewards, eps=1e-4):
    columns = rewards.T
    return ((columns - columns.mean(0)) / (columns.std(0) + eps)).T


def advantages_by_hand(rewards, eps=1e-4):
    n = rewards.shape[1]
    gap = rewards - (rewards.sum(1) / n).unsqueeze(1)
    std = (gap.square().sum(1) / (n - 1)).sqrt()
    return gap / (std[:, None] + eps)


def advantages_by_numpy(rewards, eps=1e-4):
    rows = rewards.numpy()
    gap = rows - rows.mean(axis=1, keepdims=True)
    return torch.from_numpy(gap / (rows.std(axis=1, ddof=1, keepdims=True) + eps))


def advantages_where(rewards, eps=1e-4):
    """Equal groups by an if."""
    made = torch.zeros_like(rewards)
    for i, row in enumerate(rewards):
        if not (row == row[0]).all():
            made[i] = (row - row.mean()) / (row.std(correction=1) + eps)
    return made


def advantages_by_matrix(rewards, eps=1e-4):
    """A centring matrix leaves 6e-8 of equal rewards, which is 6e-4 over eps."""
    n = rewards.shape[1]
    gap = rewards @ (torch.eye(n) - 1 / n)
    return gap / ((gap.square().sum(1, keepdim=True) / (n - 1)).sqrt() + eps)


def scaled(centre=lambda x: x.mean(1, keepdim=True), spread=lambda x, eps: x.std(1, keepdim=True)):
    return lambda rewards, eps=1e-4: (rewards - centre(rewards)) / spread(rewards, eps)


def spread(f):
    return scaled(spread=f)


def std(x, **more):
    return x.std(1, keepdim=True, **more)


def centre(f):
    return scaled(centre=f, spread=lambda x, eps: std(x) + eps)


def advantages_in_place(rewards, eps=1e-4):
    rewards -= rewards.mean(1, keepdim=True)
    return rewards / (rewards.std(1, keepdim=True) + eps)


def ranked(rewards, eps=1e-4):
    return group_advantages(rewards.argsort(1).argsort(1).float(), eps)


WRONG_ADVANTAGES = [
    (ranked, "ranks stand in the place of the rewards"),
    (lambda r, eps=1e-4: group_advantages(r, eps).abs(), "the signs are lost"),
    (lambda r, eps=1e-4: r / (std(r) + eps) - r.mean(1, keepdim=True), "first the mean, then"),
    (lambda r, eps=1e-4: r.softmax(1), "add up to 1, wanted 0"),
    (lambda r, eps=1e-4: group_advantages(r, eps).clamp(min=0), "below zero are cut off"),
    (lambda r, eps=1e-4: group_advantages(r, eps).tanh(), "not in proportion"),
    (lambda r, eps=1e-4: r.softmax(1) - 1 / r.shape[1], "ten times as large"),
    (lambda r, eps=1e-4: (r - r.cumsum(1) / 3) / (r.std(1, keepdim=True) + eps), "add up to"),
    (spread(lambda x, eps: std(x)), "eps is not added"),
    (spread(lambda x, eps: std(x, correction=0) + eps), "wanted n - 1"),
    (spread(lambda x, eps: std(x, unbiased=False) + eps), "wanted n - 1"),
    (spread(lambda x, eps: std(x) + 1e-4), "eps is hard-coded"),
    (spread(lambda x, eps: std(x) + 1e-8), "eps is not added"),
    (spread(lambda x, eps: std(x).clamp(min=eps)), "wanted is the deviation plus eps"),
    (spread(lambda x, eps: (x.var(1, keepdim=True) + eps).sqrt()), "under the root"),
    (spread(lambda x, eps: x.var(1, keepdim=True) + eps), "the variance"),
    (spread(lambda x, eps: x.std() + eps), "the deviation of all rewards"),
    (spread(lambda x, eps: 1.0), "not divided by the deviation"),
    (spread(lambda x, eps: std(x) - eps), "eps is taken away"),
    (scaled(lambda x: x.mean(), lambda x, eps: x.std() + eps), "of all rewards: each prompt"),
    (
        scaled(lambda x: x.mean(0, keepdim=True), lambda x, eps: x.std(0, keepdim=True) + eps),
        "a group is a row",
    ),
    (scaled(lambda x: x.mean(0), lambda x, eps: x.std(0) + eps), ("a group is a row", "equal")),
    (scaled(lambda x: x.mean(1), lambda x, eps: x.std(1) + eps), "keepdim=True"),
    (centre(lambda x: 0.0), "the mean is not taken away"),
    (centre(lambda x: x.median(1, keepdim=True).values), "the median"),
    (centre(lambda x: x.amin(1, keepdim=True)), "the lowest reward"),
    (
        centre(lambda x: (x.sum(1, keepdim=True) - x) / (x.shape[1] - 1)),
        "the mean of the others",
    ),
    (lambda x, eps=1e-4: -group_advantages(x, eps), "the sign is turned round"),
    (lambda x, eps=1e-4: group_advantages(x, eps).flatten(), "is flat"),
    (lambda x, eps=1e-4: group_advantages(x, eps).softmax(1), "add up to 1, wanted 0"),
    (lambda x, eps=1e-4: group_advantages(x, eps).clamp(-1, 1), "not in proportion"),
    (
        lambda x, eps=1e-4: (x - x.mean(1, keepdim=True)) / std(x) + eps,
        "brackets are missing",
    ),
    (lambda x, eps=1e-4: x.argsort(1).argsort(1).float(), "add up to"),
    (lambda x: group_advantages(x), "positional argument"),
    (lambda x, eps=1e-4: x - x.mean(1, keepdim=True) / (std(x) + eps), "brackets are missing"),
    (lambda x, eps=1e-4: (x - x.mean(1, keepdim=True)).sign(), "the sign alone"),
    (
        lambda x, eps=1e-4: (
            (x - x.mean(1)) / (x.std(1) + eps)
            if x.shape[0] == x.shape[1]
            else group_advantages(x, eps)
        ),
        "means 0.5 and 3.5",
    ),
    (advantages_in_place, "in place"),
    (lambda x, eps=1e-4: None, "is `return` missing?"),
]

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
    gain = advantages[:, None]
    ratio = (logp - old_logp).exp()
    stopped = torch.where(gain > 0, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip))
    return -(gain * stopped).masked_fill(~mask, 0.0).sum() / mask.sum()


def grpo_by_max(logp, old_logp, advantages, mask, clip=0.2):
    """As PPO is often written: the larger of two losses."""
    weight = mask.to(logp.dtype)
    ratio = torch.exp(logp - old_logp)
    loss1 = -advantages.view(-1, 1) * ratio
    loss2 = -advantages.view(-1, 1) * torch.clamp(ratio, 1.0 - clip, 1.0 + clip)
    return torch.sum(torch.max(loss1, loss2) * weight) / weight.sum().clamp(min=1)


def grpo_by_loop(logp, old_logp, advantages, mask, clip=0.2):
    total, n = torch.zeros(()), 0
    for i in range(len(logp)):
        for j in range(logp.shape[1]):
            if mask[i, j]:
                ratio = (logp[i, j] - old_logp[i, j]).exp()
                bounded = ratio.clamp(1 - clip, 1 + clip)
                total = total - torch.min(ratio * advantages[i], bounded * advantages[i])
                n += 1
    return total / n


def grpo_by_weighted_rows(logp, old_logp, advantages, mask, clip=0.2):
    """Means of answers, weighted by their lengths."""
    ratio = (logp - old_logp.detach()).exp()
    gain = advantages.reshape(len(logp), 1)
    objective = torch.min(ratio * gain, ratio.clip(1 - clip, 1 + clip) * gain)
    lengths = mask.sum(1)
    rows = objective.where(mask, torch.zeros(())).sum(1) / lengths
    return -(rows * lengths / lengths.sum()).sum()


def grpo(
    ratio=lambda new, old: (new - old).exp(),
    objective=lambda r, a, c: torch.min(r * a, r.clamp(1 - c, 1 + c) * a),
    gain=lambda a, m: a[:, None],
    mean=lambda x, m: -(x * m).sum() / m.sum(),
):
    """The loss with one thing changed."""

    def answer(logp, old_logp, advantages, mask, clip=0.2):
        value = objective(ratio(logp, old_logp), gain(advantages, mask), clip)
        return mean(value, mask)

    return answer


def weighing(f):
    """logp, weighed by what is taken for the objective."""

    def answer(logp, old_logp, advantages, mask, clip=0.2):
        weight = f((logp - old_logp).exp(), advantages[:, None], clip)
        return -(weight * logp * mask).sum() / mask.sum()

    return answer


def clipping(f):
    return grpo(objective=f)


def averaging(f):
    return grpo(mean=lambda x, m: -f(x, m))


def grpo_by_answer(logp, old_logp, advantages, mask, clip=0.2):
    """GSPO's ratio, the geometric mean of an answer's."""
    mean = ((logp - old_logp) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    return grpo_loss(mean.expand_as(logp), torch.zeros_like(logp), advantages, mask, clip)


def grpo_no_clip_parameter(logp, old_logp, advantages, mask):
    return grpo_loss(logp, old_logp, advantages, mask)


def grpo_in_place(logp, old_logp, advantages, mask, clip=0.2):
    old_logp[~mask] = 0.0
    return grpo_loss(logp, old_logp, advantages, mask, clip)


def objective(new, old, gain, clip=0.2):
    ratio = (new - old).exp()
    return torch.min(ratio * gain[:, None], ratio.clamp(1 - clip, 1 + clip) * gain[:, None])


def grpo_with_kl(logp, old_logp, advantages, mask, clip=0.2):
    gap = old_logp - logp
    kl = ((gap.exp() - 1 - gap) * mask).sum() / mask.sum()
    return grpo_loss(logp, old_logp, advantages, mask, clip) + 0.04 * kl


def twice_clipped(r, a, c):
    """A bad answer held at 3 A, as some codes of PPO have it."""
    held = torch.min(r * a, r.clamp(1 - c, 1 + c) * a)
    return torch.where(a < 0, torch.max(held, 3 * a), held)


def floored(r, a, c):
    """A good answer held at 0.5 A where it has become less likely."""
    held = torch.min(r * a, r.clamp(1 - c, 1 + c) * a)
    return torch.where(a > 0, torch.max(held, 0.5 * a), held)


WRONG_LOSSES = [
    (grpo_with_kl, "something is added to it, such as a KL"),
    (clipping(twice_clipped), "clips above 1 + clip, too: with A = -1 the objective stays at -3"),
    (clipping(floored), "clips below 1 - clip, too: with A = 1 the objective stays at 0.5"),
    (grpo(lambda new, old: (new - old).clamp(max=1).exp()), "stays at -2.72 where the ratio is"),
    (
        clipping(lambda r, a, c: torch.min(r * a, r.clamp(1 + c, 1 - c) * a)),
        "the bounds change places",
    ),
    (clipping(lambda r, a, c: torch.min(r * a, r.clamp(c, 1 / c) * a)), "clip itself is the bound"),
    (clipping(lambda r, a, c: torch.min(r * a, r.clamp(1 - c, 1.0) * a)), "at 1.1 it is 1"),
    (
        clipping(lambda r, a, c: torch.min(r * a, r.clamp(1 - c, 1 + c) * a).clamp(-1.5)),
        "stays at -1.5",
    ),
    (
        clipping(lambda r, a, c: -torch.min(-r * a, -r.clamp(1 - c, 1 + c) * a)),
        "the larger one: put the minus last, or take max",
    ),
    (
        lambda n, o, a, m, clip=0.2: (
            -((objective(n, o, a, clip) * m).sum(0) / m.sum(0).clamp(min=1)).mean()
        ),
        "each token counts once",
    ),
    (
        lambda n, o, a, m, clip=0.2: -(objective(n, o, a, clip) * n * m).sum() / m.sum(),
        "multiplied by logp",
    ),
    (
        lambda n, o, a, m, clip=0.2: -objective(n * m, o * m, a, clip).sum() / m.sum(),
        "padding is masked in the logarithms",
    ),
    (
        lambda n, o, a, m, clip=0.2: grpo_loss(n, o, (a - a.mean()) / (a.std() + 1e-4), m, clip),
        "normalised once more",
    ),
    (clipping(lambda r, a, c: r.clamp(1 - c, 1 + c) * a), "what is clipped is taken always"),
    (clipping(lambda r, a, c: r * a), "it is not clipped"),
    (clipping(lambda r, a, c: torch.max(r * a, r.clamp(1 - c, 1 + c) * a)), "the larger"),
    (clipping(lambda r, a, c: torch.min(r, r.clamp(1 - c, 1 + c)) * a), "on the wrong side"),
    (clipping(lambda r, a, c: r.clamp(max=1 + c) * a), "on the wrong side"),
    (clipping(lambda r, a, c: r.clamp(min=1 - c) * a), "the larger ratio"),
    (clipping(lambda r, a, c: torch.where(a > 0, r.clamp(max=1 + c), r) * a), "bad answers are"),
    (clipping(lambda r, a, c: torch.min(r * a, r.clamp(-c, c) * a)), "clipped to ±clip"),
    (clipping(lambda r, a, c: torch.min(r * a, r.clamp(0.8, 1.2) * a)), "hard-coded"),
    (clipping(lambda r, a, c: torch.min(r * a, (r * a).clamp(1 - c, 1 + c))), "the product is"),
    (clipping(lambda r, a, c: torch.min(r * a, r.clamp(1 / (1 + c), 1 + c) * a)), "1 / (1 + clip)"),
    (clipping(lambda r, a, c: torch.min(r, r.clamp(1 - c, 1 + c)) * a.abs()), "by size"),
    (grpo(lambda new, old: new - old), "exp is missing"),
    (grpo(lambda new, old: (old - new).exp()), "upside down"),
    (grpo(lambda new, old: new / old), "logarithms are divided"),
    (grpo(lambda new, old: new.exp()), "old_logp is not used"),
    (grpo(lambda new, old: new.exp() / (old.exp() + 1e-2)), ("in a small case", "the mean of A")),
    (weighing(lambda r, a, c: r * a), "the ratio multiplies logp"),
    (weighing(lambda r, a, c: r.clamp(1 - c, 1 + c).detach() * a), "the clipped ratio multiplies"),
    (grpo(objective=lambda r, a, c: 0.3 * r.log() * a), "the loss is 0 times the mean of A"),
    (grpo(lambda new, old: (new - old).exp().detach()), "no gradient"),
    (grpo(lambda new, old: (new - new.detach()).exp()), "the ratio is 1 everywhere"),
    (grpo(gain=lambda a, m: a), ("one an answer", "advantages[:, None]")),
    (grpo(gain=lambda a, m: a.abs()[:, None]), "by size"),
    (grpo(gain=lambda a, m: ((a - a.mean()) / (a.std() + 1e-9))[:, None]), "normalised once more"),
    (grpo(gain=lambda a, m: 1.0), "the advantages are not used"),
    (averaging(lambda x, m: ((x * m).sum(1) / m.sum(1)).mean()), "each token counts once"),
    (averaging(lambda x, m: x.mean()), "the mask is not used"),
    (averaging(lambda x, m: (x * m).mean()), "divided by all places"),
    (averaging(lambda x, m: (x * m).sum()), "wanted their mean"),
    (averaging(lambda x, m: (x * m).sum() / len(x)), "the number of answers"),
    (averaging(lambda x, m: x.sum() / m.sum()), "only the divisor leaves it out"),
    (averaging(lambda x, m: (x * ~m).sum() / (~m).sum()), "the mask is turned round"),
    (averaging(lambda x, m: x * m), "wanted one: the mean"),
    (averaging(lambda x, m: (x * m).sum(1) / m.sum(1)), "wanted one: the mean"),
    (grpo(mean=lambda x, m: (x * m).sum() / m.sum()), "the minus is missing"),
    (averaging(lambda x, m: ((x * m).sum() / m.sum()).item()), "a step needs the tensor"),
    (averaging(lambda x, m: (x * (1 - m)).sum() / m.sum()), "~mask is its opposite"),
    (
        clipping(lambda r, a, c: torch.min(r.detach() * a, r.clamp(1 - c, 1 + c) * a)),
        ("gradient", "detached"),
    ),
    (grpo(lambda new, old: 1 + new.exp() - old.exp()), "probabilities are taken from"),
    (
        clipping(lambda r, a, c: torch.min(r * a, r.detach().clamp(1 - c, 1 + c) * a)),
        "halved within the clip",
    ),
    (grpo_by_answer, "each answer has one ratio"),
    (grpo_no_clip_parameter, "the parameters are"),
    (grpo_in_place, "in place"),
    (lambda *_, **__: None, "is `return` missing?"),
]

# --- 8.6 -----------------------------------------------------------------------------------


def read(text):
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def same(a, b):
    return type(a) is type(b) and a == b


def n_right(said, goal):
    return sum(key in said and same(said[key], value) for key, value in goal.items())


def reward(answer, wanted):
    said, goal = read(answer), json.loads(wanted)
    return n_right(said, goal) / len(said | goal) if said is not None else 0.0


def reward_by_f1(answer, wanted):
    said, goal = read(answer), json.loads(wanted)
    right = n_right(said, goal) if said else 0
    return 2 * right / (len(said) + len(goal)) if right else 0.0


def reward_by_sets(answer, wanted):
    """Pairs as texts, their share of all pairs of both."""
    try:
        said = json.loads(answer)
        pairs = {(key, json.dumps(value)) for key, value in said.items()}
    except (ValueError, AttributeError):
        return 0
    goal = {(key, json.dumps(value)) for key, value in json.loads(wanted).items()}
    return len(pairs & goal) / len(pairs | goal)


def reward_with_a_gap(answer, wanted):
    """At most a half for what is not all right."""
    said, goal = read(answer), json.loads(wanted)
    if said is None:
        return 0.0
    right, extra = n_right(said, goal), len(said.keys() - goal.keys())
    if right == len(goal) and not extra:
        return 1.0
    return 0.5 * right / len(goal) / (1 + extra)


def reward_with_penalty(answer, wanted):
    said, goal = read(answer), json.loads(wanted)
    if not said:
        return 0.0
    extra = sum(key not in goal for key in said)
    return max(0.0, n_right(said, goal) / len(goal) - 0.2 * extra)


def got_alike(said, goal):
    """A key that is null is as good as one that is missing."""
    pairs = [(said.get(key), goal.get(key)) for key in said | goal]
    return sum(json.dumps(given) == json.dumps(wanted) for given, wanted in pairs)


def reward_halved(answer, wanted):
    """Half for each key too many."""
    said, goal = read(answer), json.loads(wanted)
    if said is None:
        return 0.0
    return n_right(said, goal) / len(goal) * 0.5 ** len(set(said) - set(goal))


def paid(
    read=read,
    right=n_right,
    over=lambda said, goal: len(said | goal),
    more=lambda said, goal: 0.0,
    none=lambda answer: 0.0,
):
    def answer(answer, wanted):
        said, goal = read(answer), json.loads(wanted)
        if said is None:
            return none(answer)
        return min(1.0, max(0.0, right(said, goal) / over(said, goal) + more(said, goal)))

    return answer


def extra(said, goal):
    return len(said.keys() - goal.keys())


def loose(said, goal):
    return sum(key in said and said[key] == value for key, value in goal.items())


def as_text(said, goal):
    return sum(str(said.get(key)) == str(value) for key, value in goal.items())


def folded(said, goal):
    def fold(value):
        return value.lower().strip() if isinstance(value, str) else value

    return sum(key in said and same(fold(said[key]), fold(v)) for key, v in goal.items())


def anything(text):
    return json.loads(text)


def any_json(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def bracketed(text):
    """The part from the first brace to the last."""
    return read(text[text.find("{") : text.rfind("}") + 1])


def by_eval(text):
    try:
        data = eval(text, {"true": True, "false": False, "null": None})
    except Exception:
        return None
    return data if isinstance(data, dict) else None


def mostly_intent(answer, wanted):
    """The intent is worth half, so that all keys with it earn more than a half without it."""
    said, goal = read(answer), json.loads(wanted)
    if said is None:
        return 0.0
    return 0.5 * same(said.get("intent"), goal["intent"]) + 0.5 * reward(answer, wanted)


def of_keys(answer, wanted):
    """Shares of keys, of whatever is read: a list of dicts, too."""
    said, goal = json.loads(answer), json.loads(wanted)
    keys = set(said) | set(goal)
    return sum(same(said.get(key), goal.get(key)) for key in keys) / len(keys)


def by_hashes(answer, wanted):
    said, goal = read(answer), json.loads(wanted)
    if said is None:
        return 0.0
    a, b = ({(key, type(value), value) for key, value in data.items()} for data in (said, goal))
    return len(a & b) / len(a | b)


def all_or_nothing(answer, wanted):
    said, goal = read(answer), json.loads(wanted)
    return float(bool(said) and n_right(said, goal) == len(said))


def quarter_for_a_key(answer, wanted):
    """A wanted key with a wrong value earns a quarter, whatever the value."""
    said, goal = read(answer), json.loads(wanted)
    if said is None:
        return 0.0
    named = 0.75 * n_right(said, goal) + 0.25 * len(said.keys() & goal.keys())
    return max(0.0, named - 0.5 * extra(said, goal)) / len(goal)


def near_numbers_pay(answer, wanted):
    """Where 0 or 1 is wanted, a number near it earns a quarter."""
    said, goal = read(answer), json.loads(wanted)
    near = [k for k, v in (said or {}).items() if type(v) is not str and goal.get(k, "") in (0, 1)]
    near = [k for k in near if not same(said[k], goal[k]) and abs(said[k] - goal[k]) < 10]
    return reward(answer, wanted) + 0.25 * len(near) / len(goal)


WRONG_REWARDS = [
    (by_hashes, "a set holds neither: put its JSON text there"),
    (mostly_intent, "naming every key pays"),
    (lambda answer, wanted: float(answer == wanted), "compare what json.loads gives"),
    (lambda answer, wanted: float(read(answer) == json.loads(wanted)), "by itself"),
    (lambda answer, wanted: answer == wanted, "gave a bool"),
    (paid(over=lambda said, goal: len(goal)), "a key too many has to cost something, or naming"),
    (paid(over=lambda s, g: max(len(s), len(g))), "is free as long as wanted ones are missing"),
    (paid(over=lambda said, goal: max(1, len(said))), "divided by the keys of the answer alone"),
    (all_or_nothing, "gave 1: 1 is for equal data alone"),
    (near_numbers_pay, "without that key 0.75: a guessed value pays"),
    (paid(over=lambda said, goal: max(len(said), len(goal)), read=anything), "it is 0"),
    (paid(right=loose), "in Python True == 1"),
    (paid(right=as_text), "a text is no number (is str() of both compared?)"),
    (paid(right=folded), "case counts"),
    (paid(right=lambda said, goal: len(said.keys() & goal.keys())), "a key alone is worth nothing"),
    (paid(right=lambda s, g: 0.5 * n_right(s, g) + 0.5 * len(s.keys() & g.keys())), "a key alone"),
    (paid(read=anything), "a model says all sorts of things"),
    (of_keys, "for what is no JSON object it is 0"),
    (paid(read=any_json), "a model says all sorts of things"),
    (paid(read=bracketed), ' I hope this helps for {"intent"'),
    (paid(read=by_eval), "no JSON object"),
    (paid(more=lambda said, goal: 0.1), "no key is right"),
    (paid(none=lambda answer: 0.1 if answer.startswith("{") else 0.0), "no JSON object"),
    (paid(over=lambda said, goal: len(goal), more=lambda s, g: -0.02 * extra(s, g)), "every key"),
    (paid(over=lambda said, goal: len(goal) + 0.1 * extra(said, goal)), "naming every key"),
    (paid(right=got_alike), "one too many"),
    (lambda a, w: 10 * reward(a, w), "outside of 0 to 1"),
    (lambda a, w: reward(a, w) - 0.5, "ends at 0: max(0.0, …)"),
    (paid(over=lambda said, goal: len(goal)), "gave 1, and without the last key 1"),
    (lambda a, w: 1 - reward(a, w), "wanted 1"),
    (lambda a, w: float(len(a) == len(w)), "wanted 1"),
    (lambda a, w: torch.tensor(reward(a, w)), "use .item()"),
    (lambda a, w: str(reward(a, w)), "gave text"),
    (lambda a, w: None, "is `return` missing?"),
    (lambda a, w: round(reward(a, w)), ("by itself", "each right key")),
    (lambda a, w: min(reward(a, w), 0.9), "wanted 1"),
    (lambda a, w: reward_by_f1(a, w) if read(a) != {} else 1 / 0, "a JSON object without keys"),
    (
        lambda a, w: sum(x == y for x, y in zip(a, w, strict=False)) / max(len(a), len(w)),
        "no JSON object",
    ),
]


def quiz():
    return {"q1": "b", "q2": "d", "q3": "a", "q4": "c"}


def judged(check, answers):
    return [(check, *(answer if isinstance(answer, tuple) else (answer,))) for answer in answers]


RIGHT = [
    *judged(
        check.logprobs,
        [
            sequence_logprob,
            by_cross_entropy,
            by_flat_cross_entropy,
            by_loop,
            by_nll,
            by_categorical,
            by_roll,
        ],
    ),
    *judged(
        check.dpo,
        [
            dpo_loss,
            dpo_by_softplus,
            dpo_by_cross_entropy,
            dpo_by_bce,
            dpo_by_logaddexp,
            dpo_by_logsumexp,
            dpo_in_double,
        ],
    ),
    *judged(
        check.reference,
        [
            reference_logprobs,
            reference_with_decorator,
            reference_by_layers,
            reference_by_modules,
            reference_with_stack,
            reference_reraises,
        ],
    ),
    *judged(
        check.advantages,
        [
            group_advantages,
            advantages_by_row,
            advantages_by_var_mean,
            advantages_by_transpose,
            advantages_by_hand,
            advantages_by_numpy,
            advantages_where,
            advantages_by_matrix,
        ],
    ),
    *judged(
        check.clipped,
        [
            grpo_loss,
            grpo_by_selection,
            grpo_by_sign,
            grpo_by_max,
            grpo_by_loop,
            grpo_by_weighted_rows,
        ],
    ),
    *judged(
        check.rewards,
        [
            reward,
            reward_by_f1,
            reward_by_sets,
            reward_with_a_gap,
            reward_with_penalty,
            reward_halved,
        ],
    ),
    (check.quiz, quiz),
]
WRONG = [
    *judged(check.logprobs, WRONG_LOGPROBS),
    *judged(check.dpo, WRONG_DPO),
    *judged(check.reference, WRONG_REFERENCES),
    *judged(check.advantages, WRONG_ADVANTAGES),
    *judged(check.clipped, WRONG_LOSSES),
    *judged(check.rewards, WRONG_REWARDS),
    (check.quiz, lambda: {**quiz(), "q1": "a"}, "q1 a, not quite"),
    (check.quiz, lambda: {**quiz(), "q2": "c"}, "q2 c, not quite"),
    (check.quiz, lambda: {"q1": "b"}, "wants one of"),
]


def test_a_reward_that_any_value_earns_is_not_told_of_true_and_1(rejects):
    told = rejects(check.rewards, quarter_for_a_key)
    assert "a key alone is worth nothing" in told and "True == 1" not in told


def test_of_an_adapter_that_is_gone_nothing_else_is_told(rejects):
    told = rejects(check.reference, unloaded)
    assert told.count("the adapter is gone") == 1 and "finally" not in told


def test_frozen_parameters_are_those_of_an_adapter_that_is_off(rejects):
    told = rejects(check.reference, layers_by_hand)
    assert "stays switched off" in told and "other parameters" not in told


def test_torch_does_not_warn_above_a_message(rejects, recwarn):
    rejects(check.advantages, scaled(lambda x: x.mean(0), lambda x, eps: x.std(0) + eps))
    assert not recwarn.list


STUBS = [
    (one, stub)
    for one in (
        check.logprobs,
        check.dpo,
        check.reference,
        check.advantages,
        check.clipped,
        check.rewards,
        check.quiz,
    )
]
SEEDS = {"RIGHT": range(4)}
