"""What misconceptions give in lab 3, and the perplexity itself."""

import math

import torch
import torch.nn.functional as F


def counts(shapes, r):
    pairs = shapes.values()
    d_out, d_in = sum(o for o, _ in pairs), sum(i for _, i in pairs)
    dense = sum(o * i for o, i in pairs)
    return {
        "A is (r, d_in) and B is (d_out, r): add d_out and d_in, don't multiply them": r * dense,
        "this counts the dense weights": dense,
        "this counts A only; B has d_out * r more": r * d_in,
        "this counts B only; A has r * d_in more": r * d_out,
        "r is missing": d_out + d_in,
        "d_out is used twice, as if matrices were square": 2 * r * d_out,
        "d_in is used twice, as if matrices were square": 2 * r * d_in,
        "this is twice as much; each matrix is in shapes once": 2 * r * (d_out + d_in),
        "r counts quadratically here; it is linear": r * r * (d_out + d_in),
        "this counts one matrix; sum over shapes": r * sum(next(iter(pairs))),
    }


@torch.no_grad()
def _losses(model, ids, shift=1):
    """Negative log-likelihood, in nats, of each token from `shift` on."""
    logits = model(input_ids=ids[None]).logits[0].double()
    return F.cross_entropy(logits[: len(ids) - shift], ids[shift:], reduction="none")


def perplexities(model, tokenizer, texts):
    """The perplexity of the texts, and what a misconception gives in its place."""
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    losses = [_losses(model, i) for i in ids]
    every, means = torch.cat(losses), torch.stack([x.mean() for x in losses])
    sizes = torch.tensor([len(i) for i in ids]).double()
    padded = torch.nn.utils.rnn.pad_sequence(ids, True, tokenizer.pad_token_id)
    edge = torch.cat(
        [_losses(model, row[: len(i) + 1]) for row, i in zip(padded, ids, strict=True)]
    )
    by_id = torch.cat(
        [x[i[1:] != tokenizer.pad_token_id] for x, i in zip(losses, ids, strict=True)]
    )
    logs = {
        "the texts' mean losses are averaged; sum losses and tokens, then divide": means.mean(),
        "weighed by tokens, but n tokens make n - 1 predictions": means @ sizes / sizes.sum(),
        "divided by all tokens, but the first has no prediction": every.sum() / sizes.sum(),
        "padding counts; mask it": torch.cat([_losses(model, row) for row in padded]).mean(),
        "the first padding after a text counts; mask the targets, mask[:, 1:]": edge.mean(),
        "real <end> tokens are left out; find padding by attention_mask, not by id": by_id.mean(),
        "the texts are joined, so each reads the one before": _losses(model, torch.cat(ids)).mean(),
        "logits at position t predict token t + 1": torch.cat(
            [_losses(model, i, shift=0) for i in ids]
        ).mean(),
    }
    for size in (2, 4, 8, 16, 32):
        parts = [torch.cat(losses[i : i + size]).mean() for i in range(0, len(losses), size)]
        message = f"the means of batches (here of {size}) are averaged; sum losses and tokens"
        logs[message] = torch.stack(parts).mean()
    for length in (16, 32, 64, 128):
        kept = torch.cat([x[: length - 1] for x in losses])
        logs[f"texts are cut after {length} tokens: no truncation, or a longer one"] = kept.mean()
    mean, each = every.mean().item(), means.exp().mean().item()
    plain = {
        "this is the mean of the texts' perplexities; long texts count more": each,
        "this is the mean loss; exp is missing": mean,
        "this is 2 to the power of a loss in nats; use exp": 2**mean,
        "this is the mean loss in bits": mean / math.log(2),
    }
    return math.exp(mean), {k: v.exp().item() for k, v in logs.items()} | plain
