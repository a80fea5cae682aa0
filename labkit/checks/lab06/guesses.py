"""What misconceptions give in lab 6: a message for each, and the tensor or number it leads to."""

import math

import torch

from labkit.checks.compare import close

SAY_IT_ALL = "divided by the number of adapters; the weights say it all"


def rounded(W, A, B, alpha):
    """Merges that are rounded once too often, in the dtype of W."""
    r, kind = len(A), W.dtype
    low = B.to(kind) @ A.to(kind)
    short = "the factors are cast first, so their product is in 16 bits: keep A and B in fp32"
    return {
        "the update is cast before the sum: cast the sum alone": W + (alpha / r * B @ A).to(kind),
        short: (W.float() + alpha / r * low.float()).to(kind),
        f"{short}, and the sum too": W + alpha / r * low,
    }


def summed(adapters, weights):
    """The weighted sum of the updates, in fp64: what `cat` must give."""
    return sum(w * B.double() @ A.double() for (A, B), w in zip(adapters, weights, strict=True))


def crossed(adapters, weights_A, weights_B):
    """The product of weighted sums of the factors, cross terms included."""
    A = sum(w * A for (A, _), w in zip(adapters, weights_A, strict=True))
    B = sum(w * B for (_, B), w in zip(adapters, weights_B, strict=True))
    return B @ A


def of_some(A, B, adapters, weights):
    """Whether BA is the weighted sum of some of the updates, not of all."""
    n, all_of_it = len(weights), summed(adapters, weights)
    if len(A) != B.shape[1] or (len(B), A.shape[1]) != all_of_it.shape:
        return False
    chosen = [[some >> k & 1 for k in range(n)] for some in range(1, 2**n - 1)]
    sums = [summed(adapters, [w * c for w, c in zip(weights, row, strict=True)]) for row in chosen]
    return any(close(B @ A, guess, 1e-4) for guess in sums)


def concatenated(adapters, weights):
    """Wrong products of `combine_cat`."""
    n, total = len(weights), sum(weights)
    wrong = {
        "both factors carry the weight, so the product has its square": [w * w for w in weights],
        "the weights are not used": [1.0] * n,
        "that is the plain mean: the weights are not used": [1 / n] * n,
        "the first weight is used for all": [weights[0]] * n,
        SAY_IT_ALL: [w / n for w in weights],
        "the weights are normalised; take them as they are": [w / total for w in weights],
        "both factors carry the sign of the weight, so a minus is lost": [abs(w) for w in weights],
        "the weights are in another order than the adapters": weights[::-1],
        "a weight of 0 is taken for 1": [w or 1.0 for w in weights],
        "the first weight is not used": [1.0, *weights[1:]],
    }
    if min(weights) >= 0:
        wrong["one factor carries sqrt(w) and the other nothing: the whole w on one of them"] = [
            math.sqrt(w) for w in weights
        ]
    if 0.0 not in weights:
        wrong["the weights divide; multiply by them"] = [1 / w for w in weights]
    products = {message: summed(adapters, parts) for message, parts in wrong.items()}
    if len({len(A) for A, _ in adapters}) == 1:
        for factor, parts in (("B", weights[::-1]), ("A", weights)):
            turned = zip(adapters, reversed(adapters), parts, strict=True)
            told = f"the B's are in another order than the A's (w on {factor})"
            products[told] = sum(w * B.double() @ A.double() for (A, _), (_, B), w in turned)
    return products


def added(adapters, weights):
    """Wrong products of `combine_linear`."""
    ones, n = [1.0] * len(weights), len(weights)
    pairs = {
        "each factor carries w, so a term has w squared: give each sqrt(w)": (weights, weights),
        "A alone is weighted: give each factor sqrt(w)": (weights, ones),
        "B alone is weighted: give each factor sqrt(w)": (ones, weights),
        "the weights are not used: each factor wants sqrt(w)": (ones, ones),
        "that is the mean of A and of B: the weights are not used": ([1 / n] * n, [1 / n] * n),
        "the root of the mean weight on all: each has its own": (
            [math.sqrt(1 / n)] * n,
            [math.sqrt(1 / n)] * n,
        ),
    }
    roots = [math.sqrt(w) for w in weights]
    pairs["a weight of 0 is taken for 1"] = ([x or 1.0 for x in roots],) * 2
    pairs["A of the first adapter alone is taken: each A has its sqrt(w)"] = (
        [1.0] + [0.0] * (n - 1),
        weights,
    )
    pairs["B carries sqrt(w) and A nothing: give it to each factor"] = (ones, roots)
    pairs["A carries sqrt(w) and B nothing: give it to each factor"] = (roots, ones)
    for message, parts in {
        "only the first two adapters are added": [*roots[:2], *[0.0] * (n - 2)],
        SAY_IT_ALL: [x / n for x in roots],
        "the weights are normalised; take them as they are": [
            x / math.sqrt(sum(weights)) for x in roots
        ],
        "the weights are in another order than the adapters": roots[::-1],
    }.items():
        pairs[message] = (parts, parts)
    A, B = (sum(w * pair[k] for pair, w in zip(adapters, weights, strict=True)) for k in (0, 1))
    whole = "the root is drawn from the sums: each term has its own sqrt(w)"
    return {message: crossed(adapters, *parts) for message, parts in pairs.items()} | {
        whole: (B.abs().sqrt() * B.sign()) @ (A.abs().sqrt() * A.sign()),
        f"{whole}, and every sign": B.abs().sqrt() @ A.abs().sqrt(),
    }


def souped(states, name, parts):
    """Wrong means of the tensors `name` of all states."""
    n, keys = len(states), len(states[0])

    def mixed(factors):
        return sum(f * s[name] for f, s in zip(factors, states, strict=True))

    return {
        "this is the sum; divide it by the number of states": mixed([1.0] * n),
        "divided by the number of states; the weights sum to 1 already": mixed(
            [w / n for w in parts]
        ),
        "divided by the number of keys, not of states": mixed([1 / keys] * n),
        "the weights are not used": mixed([1 / n] * n),
        "each state counts half; of n states each counts 1 / n": mixed([0.5] * n),
        "the weights are in another order than the states": mixed(parts[::-1]),
        "halved with each new state: the mean of n divides once, by n": mixed(
            [0.5 ** min(n - 1, n - k) for k in range(n)]
        ),
        "only the first two states are mixed": mixed([*parts[:2], *[0.0] * (n - 2)]),
        "that is the weights' square roots; take them as they are": mixed(
            [math.sqrt(w) for w in parts]
        ),
        "the weights go through softmax; they sum to 1 already": mixed(
            torch.tensor(parts).softmax(0).tolist()
        ),
        "that is the median of the states, not their mean": torch.stack(
            [s[name] for s in states]
        ).median(0)[0],
        "this is the first state alone": states[0][name],
        "this is the last state alone": states[-1][name],
    }


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
    wrong = {"this is KL(q||p); p is the first argument": back.mean().item()}
    for message, tokens in _denominators(p.shape).items():
        wrong[message] = each.sum().item() / tokens
        wrong[f"this is KL(q||p), and {message}"] = back.sum().item() / tokens
    wrong |= _dimensions(p, q)
    return (
        wrong
        | _logarithms(p, q)
        | {
            "this is the sum over tokens; take the mean": each.sum().item(),
            "averaged over the vocabulary too: sum over it, then take the mean": mean / vocab,
            "summed over tokens and averaged over the vocabulary: the other way round": (
                each.sum().item() / vocab
            ),
            "this is in bits; nats are wanted": mean / math.log(2),
            "that is with log10; nats are wanted": mean / math.log(10),
            "the sign is turned round": -mean,
            "this is KL(q||p) with its sign turned round": -back.mean().item(),
            "this is the cross-entropy; the entropy of p is missing": cross,
            "this is symmetric; KL(p||q) alone is wanted": (0.5 * (each + back)).mean().item(),
            "this is the Jensen-Shannon divergence": (0.5 * (kl(p, middle) + kl(q, middle)))
            .mean()
            .item(),
            "this is the largest token's, not the mean": each.max().item(),
            "this is the last token's, not the mean": each[..., -1].mean().item(),
            "softmax of the logits is missing": raw,
            "this is the median, not the mean": each.median().item(),
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
        "the factor p is missing: squares of the differences": (
            (log_p - log_q).square().sum(-1).mean().item()
        ),
        "the factor p is missing: sizes of the differences": (
            (log_p - log_q).abs().sum(-1).mean().item()
        ),
        "the factor p is missing": (log_p - log_q).sum(-1).mean().item(),
        "that is the loss on p's likeliest token; all tokens count, by p": -log_q.gather(
            -1, p.argmax(-1, keepdim=True)
        )
        .mean()
        .item(),
        "only p's likeliest token is looked at; all tokens count, by p": (
            (log_p - log_q).gather(-1, p.argmax(-1, keepdim=True)).mean().item()
        ),
        "the logits are divided by a temperature of 2 first; take them as they are": (
            kl(p / 2, q / 2).mean().item()
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


def rough(got, wanted):
    """A number that is close and not close enough; one mistake only if all numbers are."""
    near = isinstance(got, float) and abs(got - wanted) < 0.02 * abs(wanted)
    return {"right but for rounding: computed in 16 bits, or rounded?": got if near else math.nan}
