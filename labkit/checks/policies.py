"""For the checks of labs 8 and 9: batches for the tiny policy, and its right results."""

import torch

from labkit.checks.inputs import draw
from labkit.probes import policies, tiny

IGNORED = -100


def batch(rng, side):
    """A dict of ids, mask and labels (b, n), padded with id 0; prompts have the label -100."""
    b, n = draw(3, 4, rng), draw(9, 11, rng)
    ids = torch.randint(2, len(tiny.WORDS), (b, n), generator=rng)
    lengths = torch.randint(6, n + 1, (b, 1), generator=rng)
    lengths[0], lengths[1] = n, n - 3
    first = n - lengths if side == "left" else 0 * lengths
    places = torch.arange(n)
    used = (places >= first) & (places < first + lengths)
    labels = ids.masked_fill(~used | (places < first + 3), IGNORED)
    ids = ids.masked_fill(~used, 0)
    return {"input_ids": ids, "attention_mask": used.long(), "labels": labels}


def base_logits(seed, batch):
    """Logits (b, n, vocab) of the policy without its adapters."""
    with torch.no_grad():
        base = policies.base(seed)
        return base(batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def unchanged(training):
    """The facts about a policy that was left unchanged, as `left` describes it."""
    return {
        "the adapter afterwards": "switched on",
        "the adapters afterwards": sorted([policies.ACTIVE, policies.OTHER]),
        "the active adapter afterwards": policies.ACTIVE,
        "the mode afterwards": "train()" if training else "eval()",
        "the parameters that train afterwards": "unchanged",
        "the scaling of the adapter afterwards": "unchanged",
        "the weights afterwards": "unchanged",
    }
