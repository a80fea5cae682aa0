"""Score without generating: one forward pass shows whether greedy decoding would be right.

Greedy decoding gives the right answer if and only if, with that answer as input, the most likely
next token is right at every position.
"""

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labkit.training import loop


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset
) -> tuple[float, float]:
    """Score conversations: (share of answers exactly right, mean loss in nats per token)."""
    right, loss = _marks(_answers(model, tokenizer, dataset))
    return sum(right) / len(right), loss


def said(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset
) -> tuple[list[bool], float, torch.Tensor]:
    """(which answers are exactly right, mean loss, logits (k, vocab) at the k answer tokens).

    Shorter conversations come first. Logits are fp32, on the CPU.
    """
    parts = [(x.cpu(), y.cpu(), n) for x, y, n in _answers(model, tokenizer, dataset)]
    return *_marks(parts), torch.cat([logits for logits, *_ in parts])


def _marks(parts):
    """(which answers are right, mean loss) from the output of `_answers`."""
    right, losses = [], []
    for logits, targets, lengths in parts:
        losses.append(F.cross_entropy(logits, targets, reduction="none"))
        hits = (logits.argmax(-1) == targets).split(lengths)
        right += [bool(hit[:-1].all()) for hit in hits]  # the last token, a newline, does not count
    return right, torch.cat(losses).mean().item()


@torch.no_grad()
def _answers(model, tokenizer, dataset, size=24):
    """Yield (logits (k, vocab), targets (k,), tokens of each answer) for batches of `dataset`."""
    for batch, lengths in loop.by_length(tokenizer, dataset, size):
        logits, targets = loop.answer_logits(model.eval(), batch)
        yield logits.float(), targets, lengths
