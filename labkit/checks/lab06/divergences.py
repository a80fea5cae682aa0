"""KL(p||q), and what misconceptions give for it in exercise 6.2."""

import math

import torch


def kl(p, q, dim=-1):
    """KL(p||q) of each token in nats, in fp64; another `dim` is where learners normalise too."""
    log_p, log_q = (x.double().log_softmax(dim) for x in (p, q))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def divergences(p, q):
    """Wrong numbers for the mean KL(p||q) a token."""
    each, back, vocab = kl(p, q), kl(q, p), p.shape[-1]
    mean = each.mean().item()
    middle = (0.5 * (p.double().softmax(-1) + q.double().softmax(-1))).log()
    cross = -(p.double().softmax(-1) * q.double().log_softmax(-1)).sum(-1).mean().item()
    flat_p, flat_q = p.reshape(1, -1), q.reshape(1, -1)
    raw = (p.double() * (p.double() - q.double())).sum(-1).mean().item()
    wrong = {
        "this is KL(q||p): p weights the sum; F.kl_div takes log q, then p": back.mean().item()
    }
    for message, tokens in _denominators(p.shape).items():
        wrong[message] = each.sum().item() / tokens
        wrong[f"this is KL(q||p), and {message}"] = back.sum().item() / tokens
    wrong |= _dimensions(p, q)
    return (
        wrong
        | _logarithms(p, q)
        | _of_tokens(each)
        | {"weighted by q, and that is -KL(q||p); weigh by p": -back.mean().item()}
        | {
            "this is the sum over tokens; take the mean": each.sum().item(),
            "averaged over the vocabulary too: sum over it, then take the mean": mean / vocab,
            "summed over tokens and averaged over the vocabulary: the other way round": (
                each.sum().item() / vocab
            ),
            "this is in bits; nats are wanted": mean / math.log(2),
            "that is with log10; nats are wanted": mean / math.log(10),
            "the sign is turned round": -mean,
            "this is the cross-entropy; the entropy of p is missing": cross,
            "this is symmetric; KL(p||q) alone is wanted": (0.5 * (each + back)).mean().item(),
            "this is the Jensen-Shannon divergence": (0.5 * (kl(p, middle) + kl(q, middle)))
            .mean()
            .item(),
            "softmax of the logits is missing": raw,
            "softmax runs over all tokens at once: dim=-1": kl(flat_p, flat_q).item(),
            "dimension 0 is the tokens: softmax and sum run over dim=-1": (
                (p.double().softmax(0) * (p.double().log_softmax(0) - q.double().log_softmax(0)))
                .sum(0)
                .mean()
                .item()
            ),
        }
        | _factors(p, q)
    )


def _of_tokens(each):
    """Another figure than the mean of the right numbers, one a token."""
    wrong = {
        "this is the largest token's, not the mean": each.max(),
        "a sum over the tokens of a sequence, then a mean: the mean is over all tokens": (
            each.sum(-1).mean()
        ),
        "this is the last token's, not the mean": each[..., -1].mean(),
        "this is the median, not the mean": each.median(),
        "this is the first token's, not the mean": each[..., 0].mean(),
        "the last token is left out": each[..., :-1].mean(),
        "the first token is left out": each[..., 1:].mean(),
    }
    return {message: value.item() for message, value in wrong.items()}


def _logarithms(p, q):
    """What is taken for the logarithm of a probability."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return {
        "logits are no logarithms of probabilities: take log_softmax of both": (
            (log_p.exp() * (p.double() - q.double())).sum(-1).mean().item()
        ),
        "q's logits are no logarithms of probabilities: take log_softmax of them too": (
            (log_p.exp() * (log_p - q.double())).sum(-1).mean().item()
        ),
        "that is the mean squared difference of the logits; KL compares probabilities": (
            (p.double() - q.double()).square().mean().item()
        ),
        "terms below 0 are cut off: they belong to the sum": (
            (log_p.exp() * (log_p - log_q)).clamp_min(0).sum(-1).mean().item()
        ),
        "the factor is exp of the logits, which is no probability: softmax": (
            (p.double().exp() * (log_p - log_q)).sum(-1).mean().item()
        ),
        "the sizes of the differences are added: keep their signs": (
            (log_p.exp() * (log_p - log_q).abs()).sum(-1).mean().item()
        ),
    }


def _dimensions(p, q):
    """The softmax, or the sum too, over another dimension than the vocabulary."""
    wrong = {}
    for dim in range(p.dim() - 1):
        message = f"softmax runs over dimension {dim}, not over the vocabulary: dim=-1"
        wrong[message] = kl(p, q, dim).mean().item()
    for dim in range(1, p.dim() - 1):
        message = f"softmax and sum run over dimension {dim}; the vocabulary is the last, dim=-1"
        wrong[message] = kl(p.transpose(dim, -1), q.transpose(dim, -1)).mean().item()
    if p.dim() > 2:
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        terms = log_p.exp() * (log_p - log_q)
        wrong["the sum runs over dimension 1, not over the vocabulary: dim=-1"] = (
            terms.sum(1).mean().item()
        )
    return wrong


def _factors(p, q):
    """Another factor than p, or another logarithm."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return {
        "the sum is weighted by log p; p itself is wanted, its exp": (
            (log_p * (log_p - log_q)).sum(-1).mean().item()
        ),
        "these are halves of squared differences; the formula has p (log p - log q)": (
            (log_p.exp() * (log_p - log_q).square()).sum(-1).mean().item() / 2
        ),
        "the factor p is missing: squares of the differences": (
            (log_p - log_q).square().sum(-1).mean().item()
        ),
        "the factor p is missing: sizes of the differences": (
            (log_p - log_q).abs().sum(-1).mean().item()
        ),
        **_variations(p, q),
        **_of_one(p.double(), q.double()),
        "the factor p is missing": (log_p - log_q).sum(-1).mean().item(),
        "that is the loss on p's likeliest token; all tokens count, by p": -log_q.gather(
            -1, p.argmax(-1, keepdim=True)
        )
        .mean()
        .item(),
        "only p's likeliest token is looked at; all tokens count, by p": (
            (log_p - log_q).gather(-1, p.argmax(-1, keepdim=True)).mean().item()
        ),
        "that is chi-squared, (p - q)² / q; KL has logarithms": (
            ((log_p.exp() - log_q.exp()).square() / log_q.exp()).sum(-1).mean().item()
        ),
        "to take the largest logit off is no log_softmax: its logsumexp comes off": (
            (log_p.exp() * ((p - p.amax(-1, keepdim=True)) - (q - q.amax(-1, keepdim=True))))
            .sum(-1)
            .mean()
            .item()
        ),
        "softmax is taken twice: log_softmax takes the logits": kl(p.softmax(-1), q.softmax(-1))
        .mean()
        .item(),
        "F.kl_div wants the logarithm of q first, log_softmax": (
            (log_p.exp() * (log_p - log_q.exp())).sum().item() / len(p)
        ),
    }


def _of_one(p, q):
    """What comes of one of the two, without a logarithm, or without a softmax."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    likely = log_q.argmax(-1, keepdim=True)
    wrong = {
        "this is p's entropy alone: its cross-entropy with q, less that": -log_p.exp() * log_p,
        "the logarithm is missing: p times log(p / q)": log_p.exp() * (log_p - log_q).exp(),
        "sigmoid looks at each logit alone: log_softmax": (
            p.sigmoid() * (p.sigmoid() / q.sigmoid()).log()
        ),
        "only q's likeliest token is looked at; all tokens count, by p": (log_p - log_q).gather(
            -1, likely
        ),
    }
    found = {message: value.sum(-1).mean().item() for message, value in wrong.items()}
    each = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
    return found | {"a root is drawn of each token's KL": each.sqrt().mean().item()}


def _variations(p, q):
    """Sums of |p - q|, means taken early, and what F.kl_div makes of a q that is no logarithm."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    middle_p, middle_q = (x.exp().flatten(0, -2).mean(0) for x in (log_p, log_q))
    variation = (log_p.exp() - log_q.exp()).abs().sum(-1).mean().item()
    return {
        "the logits are divided by a temperature of 2 first; take them as they are": (
            kl(p / 2, q / 2).mean().item()
        ),
        "the logits are divided by a temperature of 2, as in distillation; take them as they are": (
            4 * kl(p / 2, q / 2).mean().item()
        ),
        "half the sum of |p - q| is the total variation; KL has logarithms": variation / 2,
        "that is the sum of |p - q|; KL has logarithms": variation,
        "the probabilities are averaged over tokens first: each token has its own KL": (
            (middle_p * (middle_p / middle_q).log()).sum().item()
        ),
        "F.kl_div wants the logarithm of q first, log_softmax, and not q itself": (
            (log_p.exp() * (log_p - log_q.exp())).sum(-1).mean().item()
        ),
    }


def finite_alone(p, q):
    """The mean of each token's sum in fp32 without the terms that are infinite or NaN there."""
    p, q = p.softmax(-1), q.softmax(-1)
    terms = torch.nan_to_num(p * (p.log() - q.log()), nan=0.0, posinf=0.0, neginf=0.0)
    return terms.sum(-1).mean().item()


def _denominators(shape):
    """What the sum is divided by in the place of the number of tokens."""
    if len(shape) == 2:
        return {"count the tokens of any leading shape: p[..., 0].numel()": math.prod(shape)}
    found = {
        "divided by the number of sequences, not of tokens": shape[0],
        "divided by one sequence's tokens; divide by all": shape[-2],
    }
    if len(shape) == 4:
        found["divided by the second size alone; divide by all tokens"] = shape[1]
        found["count the tokens of any leading shape: p[..., 0].numel()"] = shape[0] * shape[1]
    return found


def rough(got, wanted, tol=0.01):
    """A number that is close and not close enough; one mistake only if all numbers are."""
    near = isinstance(got, float) and abs(got - wanted) < tol * abs(wanted)
    return {"right but for rounding: computed in 16 bits, or rounded?": got if near else math.nan}
