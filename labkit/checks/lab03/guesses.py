"""What misconceptions give in lab 3, and the perplexity itself."""

import math

import torch
import torch.nn.functional as F

from labkit.checks.counts import counted, left_out, shared


def counts(shapes, r):
    """Wrong counts of the parameters at rank r."""
    pairs = shapes.values()
    d_out, d_in = sum(o for o, _ in pairs), sum(i for _, i in pairs)
    dense = sum(o * i for o, i in pairs)
    return {
        "A is (r, d_in) and B is (d_out, r): add d_out and d_in, don't multiply them": r * dense,
        **counted(shapes, r),
        **_counted_by_name(shapes, r),
        "this counts the dense weights": dense,
        "this is what LoRA saves; what A and B hold is asked": dense - r * (d_out + d_in),
        "this counts the names; a matrix has r * (d_out + d_in) numbers": r * len(pairs),
        "that is the mean over the matrices; sum over them": r * (d_out + d_in) // len(pairs),
        "r is missing": d_out + d_in,
        "this is twice as much: a matrix is in shapes once, and a number is no bytes": 2
        * r
        * (d_out + d_in),
        "r counts quadratically here; it is linear": r * r * (d_out + d_in),
        "these are bytes, 4 each; wanted how many numbers": 4 * r * (d_out + d_in),
        "r is taken off as well; A and B share none": r * (d_out + d_in) - len(pairs) * r * r,
        "* binds before +: put brackets around the sum, r * (d_out + d_in)": r * d_out + d_in,
        "* binds before +: put brackets round the sum, r * (d_out + d_in)": d_out + r * d_in,
        "these are millions; wanted how many numbers": r * (d_out + d_in) / 1e6,
        "not all matrices are like the first; sum over shapes": (
            r * len(pairs) * sum(next(iter(pairs)))
        ),
        "equal shapes are counted once; each name has a matrix of its own": (
            r * sum(map(sum, set(map(tuple, pairs))))
        ),
        "the size of the dense matrix does not matter; add d_out and d_in": dense // r,
        "a bias is counted too; A and B have none": r * (d_out + d_in) + d_out,
        "nothing stands between A and B": r * (d_out + d_in) + len(pairs) * r * r,
        "r is the rank of A and B, also where a side of the matrix is shorter": sum(
            min(r, o, i) * (o + i) for o, i in pairs
        ),
        "this adds the dense weights; LoRA trains A and B alone": r * (d_out + d_in) + dense,
        **shared(shapes, r),
        **left_out(shapes, r),
    } | {
        f"this is for r={k}, whatever r is: use r": k * (d_out + d_in)
        for k in (4, 8, 16, 32, 64)
        if k != r
    }


def _counted_by_name(shapes, r):
    """What it gives to leave some names out, or to count each for something else."""
    ends = {name: name.split(".")[-1] for name in shapes}
    size = {name: r * sum(shape) for name, shape in shapes.items()}
    last = {end: name for name, end in ends.items()}
    wide = sum(n for name, n in size.items() if ends[name] not in ("k_proj", "v_proj"))
    pairs, total = list(shapes.values()), sum(size.values())
    few = sum(n for name, n in size.items() if ends[name] in ("q_proj", "v_proj"))
    return {
        "the sides are added; a matrix holds their product": sum(map(sum, pairs)) + r * len(pairs),
        "this is a share of the dense weights; wanted how many": total / sum(map(math.prod, pairs)),
        "the longer side is used twice, as if matrices were square": 2 * r * sum(map(max, pairs)),
        "the shorter side is used twice, as if matrices were square": 2 * r * sum(map(min, pairs)),
        "only q and v are counted; all that shapes names is adapted": few,
        "that is half of it, from the mean of both sides: A and B add them": sum(
            r * (sum(pair) // 2) for pair in pairs
        ),
        "names that end alike are one key here; each name has a matrix of its own": (
            sum(size[name] for name in last.values())
        ),
        "the last matrix is left out; sum over all of shapes": total - list(size.values())[-1],
        "the first matrix is left out; sum over all of shapes": total - next(iter(size.values())),
        "k and v are left out; all that shapes names is adapted": wide,
        "that is one more a matrix; alpha / r is no parameter": total + len(shapes),
        "that is half of it: A has r * d_in and B has d_out * r": sum(
            n // 2 for n in size.values()
        ),
    }


@torch.no_grad()
def _losses(model, ids, shift=1, mask=None, softmax=False, over=-1):
    """Negative log-likelihood, in nats, of each token from `shift` on, or before the last.

    `softmax` takes it twice, `over` an axis of (n, vocabulary) that is not the last.
    """
    how = {} if mask is None else {"attention_mask": mask[None]}
    logits = model(input_ids=ids[None], **how).logits[0].double()
    logits = logits.softmax(-1) if softmax else logits
    if over != -1:  # the wrong axis
        return -logits[:-1].log_softmax(over)[range(len(ids) - 1), ids[1:]]
    if shift < 0:
        return F.cross_entropy(logits[1:], ids[:-1], reduction="none")
    return F.cross_entropy(logits[: len(ids) - shift], ids[shift:], reduction="none")


@torch.no_grad()
def _likeliest(model, ids):
    """Negative log-likelihood, in nats, of the likeliest token at each place but the last."""
    logits = model(input_ids=ids[None]).logits[0, :-1].double()
    return -logits.log_softmax(-1).amax(-1)


@torch.no_grad()
def _entropy(model, ids):
    """The entropy, in nats, of the prediction at each place but the last."""
    logs = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


@torch.no_grad()
def _of_all(model, ids):
    """The mean over the vocabulary of -log p, in nats, at each place but the last."""
    return -model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1).mean(-1)


def perplexity(model, tokenizer, texts):
    """The perplexity of the texts."""
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    return torch.cat([_losses(model, i) for i in ids]).mean().exp().item()


def perplexities(model, tokenizer, texts):
    """`(message, number)` for each misconception: what it gives in place of the perplexity."""
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    losses = [_losses(model, i) for i in ids]
    every, means = torch.cat(losses), torch.stack([x.mean() for x in losses])
    mean = every.mean().item()
    yield "this is the mean of the texts' perplexities; long texts count more", means.exp().mean()
    for more in (0, 1):
        counts = torch.tensor([float(len(x) + more) for x in losses], dtype=means.dtype)
        told = "the texts' perplexities are averaged, weighed by tokens: average losses, then exp"
        yield told, means.exp() @ counts / counts.sum()
    sizes = torch.tensor([len(text) for text in texts]).double()
    told = "the texts' mean losses are weighed by characters: weigh by predicted tokens"
    yield told, _exp(means.double() @ sizes / sizes.sum())
    told = "divided by characters; divide by the number of predicted tokens"
    yield told, _exp(every.sum() / sizes.sum())
    yield "a minus is missing: the loss is the negative log-likelihood", math.exp(-mean)
    yield "this is the median of the texts' perplexities", means.exp().quantile(0.5)
    yield "this is the mean loss; exp is missing", mean
    yield "this is 2 to the power of a loss in nats; use exp", 2**mean
    yield "this is the mean loss in bits", mean / math.log(2)
    yield "exp is taken of a loss in bits; exp wants nats, ln and no log2", _exp(mean / math.log(2))
    told = "that is the loss of the likeliest tokens; the text's own tokens are asked"
    yield told, _exp(torch.cat([_likeliest(model, i) for i in ids]).mean())
    told = "that is the entropy of the predictions; the text's own tokens are asked"
    yield told, _exp(torch.cat([_entropy(model, i) for i in ids]).mean())
    yield "exp is taken of each token's loss; average the losses, then exp", every.exp().mean()
    size, n = model.config.vocab_size, len(every) + len(ids)
    told = "the first token is counted, as if each were as likely; nothing predicts it"
    yield told, _exp((every.sum() + len(ids) * math.log(size)) / n)
    yield "it is exp(0), nothing is counted: len() of ids (1, n) is 1, .shape[1] is n", 1.0
    told = "the mean is one of losses, not of probabilities: log first"
    yield told, 1 / every.neg().exp().mean()
    yield (
        "this is exp of the sum of all losses; divide by the number of predictions",
        _exp(every.sum()),
    )
    for logs in (
        _averages(ids, losses),
        _masks(model, tokenizer, ids, losses),
        _tokens(model, tokenizer, ids, losses),
        _batches(losses),
    ):
        yield from ((message, _exp(log)) for message, log in logs)


def _exp(log):
    return math.exp(min(float(log), 700))


def _averages(ids, losses):
    every, means = torch.cat(losses), torch.stack([x.mean() for x in losses])
    sizes = torch.tensor([len(i) for i in ids]).double()
    yield "the texts' mean losses are averaged; sum losses and tokens, then divide", means.mean()
    told = "weighed by tokens, but n tokens make n - 1 predictions"
    yield told, means @ sizes / sizes.sum()
    told = "divided by all tokens, or words, but the first has no prediction"
    yield told, every.sum() / sizes.sum()
    yield "divided by the number of texts; divide by predicted tokens", every.sum() / len(ids)
    yield "the texts' mean losses are added up: sum losses and tokens, then divide", means.sum()
    told = "the texts' mean losses are summed; sum the losses of tokens, reduction='sum'"
    yield told, means.sum() / len(every)
    if len(ids) > 1:
        yield "this is the first text alone; sum over all", means[0]
        yield "this is the last text alone; sum over all", means[-1]
    told = "the last prediction of each text alone counts; sum over all tokens"
    yield told, torch.stack([x[-1] for x in losses if len(x)]).mean()
    for n in range(3, 11):
        long = [x for x in losses if len(x) >= n - 1]
        if 0 < len(long) < len(losses):
            yield (
                "short texts are left out; sum over all",
                torch.cat(long).mean(),
            )
    for n in range(2, len(ids)):
        yield f"these are the first {n} texts alone; sum over all", torch.cat(losses[:n]).mean()
        yield f"these are the last {n} texts alone; sum over all", torch.cat(losses[-n:]).mean()


def _masks(model, tokenizer, ids, losses):
    """A wrong use of the mask, with all texts in a batch or with batches of usual sizes."""
    pad = tokenizer.pad_token_id
    by_id = [x[i[1:] != pad] for x, i in zip(losses, ids, strict=True)]
    told = "real <end> tokens are left out; find padding by attention_mask, not by id"
    yield told, torch.cat(by_id).mean()
    hint = "divide by mask[:, 1:].sum()"
    total, count = torch.cat(losses).sum(), sum(map(len, losses))
    for size in (len(ids), 2, 4, 8, 16, 32):
        batches = [_padded(ids[i : i + size], pad) for i in range(0, len(ids), size)]
        rows = [row for batch in batches for row in batch]
        for masked in (False, True):
            each = [_losses(model, row, mask=mask if masked else None) for row, mask in rows]
            edge = torch.cat([x[: len(i)] for x, i in zip(each, ids, strict=True)])
            padded = torch.cat(each)
            yield f"padding is counted: {hint}", total / len(padded)
            yield f"padding is counted: {hint}", total / (len(padded) + len(rows))
            yield f"losses at padding are in the sum: mask them, and {hint}", padded.sum() / count
            yield "padding counts; mask it, in the sum and in the count", padded.mean()
            told = "the first padding after a text counts; mask the targets, mask[:, 1:]"
            yield told, edge.mean()
            yield told, edge.sum() / count
    longest = max(map(len, losses))
    shares = torch.stack([x.sum() / longest for x in losses])
    yield f"padding is counted, and perplexities are averaged: {hint}", shares.exp().mean().log()
    left = [torch.nn.functional.pad(i, (longest + 1 - len(i), 0), value=pad) for i in ids]
    left = [(_losses(model, row), len(x)) for row, x in zip(left, losses, strict=True)]
    told = "the model reads the padding on the left: pass attention_mask"
    for first in (0, 1):  # whether the padding predicts the first token, and that counts
        yield told, torch.cat([x[-n - first :] for x, n in left]).mean()


def _padded(ids, pad):
    """`(row, attention mask)` of each text in a batch, padded on the right."""
    rows = torch.nn.utils.rnn.pad_sequence(ids, True, pad)
    masks = torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], True, 0)
    return list(zip(rows, masks, strict=True))


def _tokens(model, tokenizer, ids, losses):
    """Texts that are joined, shifted, longer or shorter than they are, or padded on the left."""
    told = "the first prediction of each text is left out: logits[:, :-1] meet ids[:, 1:]"
    yield told, torch.cat([x[1:] for x in losses]).mean()
    told = "the last prediction of each text is left out: logits[:, :-1] meet ids[:, 1:]"
    yield told, torch.cat([x[:-1] for x in losses]).mean()
    joined = _losses(model, torch.cat(ids))
    yield "the texts are joined, so each reads the one before", joined.mean()
    still = [_losses(model, i, shift=0) for i in ids]
    for first in (0, 1):  # whether the first token counts
        shifted = torch.cat([x[first:] for x in still])
        yield "logits at position t predict token t + 1", shifted.mean()
        yield "logits at position t predict token t + 1", shifted.sum() / sum(map(len, losses))
    told = "averaged over the vocabulary; the loss is that of the text's own tokens"
    yield told, torch.cat([_of_all(model, i) for i in ids]).mean()
    twice = [_losses(model, i, shift=2) for i in ids if len(i) > 2]
    told = "the labels are shifted twice: a model that is given labels shifts them itself"
    yield told, torch.cat(twice).mean()
    counts = torch.tensor([len(x) + 1.0 for x in twice])
    yield told, torch.stack([x.mean() for x in twice]) @ counts.double() / counts.sum()
    back = [_losses(model, i, shift=-1) for i in ids]
    yield "shifted the wrong way: logits[:, :-1] meet ids[:, 1:]", torch.cat(back).mean()
    twice = [_losses(model, i, softmax=True) for i in ids]
    yield "cross_entropy wants logits, and takes their softmax itself", torch.cat(twice).mean()
    turned = [_losses(model, i, over=0) for i in ids]
    told = "softmax goes over the vocabulary, the last axis, not over positions"
    yield told, torch.cat(turned).mean()
    begin, end = torch.tensor([tokenizer.bos_token_id]), torch.tensor([tokenizer.eos_token_id])
    begun = [_losses(model, torch.cat([begin, i])) for i in ids]
    told = "a token such as BOS stands before each text: add none"
    yield f"{told}; the text's first token is predicted by nothing", torch.cat(begun).mean()
    yield told, torch.cat([x[1:] for x in begun]).mean()
    ended = torch.cat([_losses(model, torch.cat([i, end])) for i in ids])
    yield "an <end> stands after each text: add nothing to it", ended.mean()
    for length in (16, 32, 64, 128, 256, 512):
        kept = torch.cat([x[: length - 1] for x in losses])
        yield f"texts are cut after {length} tokens: cut none", kept.mean()


def _batches(losses):
    for size in (2, 4, 8, 16, 32):
        parts = [torch.cat(losses[i : i + size]).mean() for i in range(0, len(losses), size)]
        told = f"the means of batches (here of {size}) are averaged; sum losses and tokens"
        yield told, torch.stack(parts).mean()
        told = f"the perplexities of batches (here of {size}) are averaged; sum losses and tokens"
        yield told, torch.stack(parts).exp().mean().log()
