"""Measure the cost of a file's rounding: KL from the trained model, and exact answers."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from labkit.data import report, split, tokens
from labkit.data.shapes import Example
from labkit.ship.adapter import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS, TOKENS = 40, 600  # measured at most


def rows(
    adapter: Adapter, file: Path | None, tokenizer: "PreTrainedTokenizerBase", ends: set[int]
) -> tuple[list[dict], str]:
    """Choose rows of `input_ids` and `labels`, and describe their source.

    From the training file, take its held-out rows, or all rows if another file was held out. From
    another file, take all rows. Without a file, take the few samples in the adapter's folder.
    """
    settings = adapter.facts.get("settings", {})
    longest = settings.get("max_length", 512)
    if file:
        read = report.of(file, report.load(file), tokenizer, ends, longest)
        found, what = read.sound(), f"rows of {file.name}"
        data = adapter.facts.get("data", {})
        if read.sha256() == data.get("sha256"):
            if data.get("test_file"):
                what += f", which were trained on: --data {data['test_file']} has unseen rows"
            else:
                _, found = split.split(found, settings["held_out"], settings["seed"])
                what = f"held-out {what}"
    else:
        found, what = _shown(adapter), "held-out rows in the adapter's folder"
    found = found[:: -(-len(found) // ROWS)] if found else []
    made, n = [], 0
    for example in found:
        row = tokens.encode(example, tokenizer).cut(longest)
        if made and n + len(row.learned) > TOKENS:
            break
        made.append(vars(row))
        n += len(row.learned)
    return made, f"{n} tokens of {len(made)} {what}"


def _shown(adapter):
    system = adapter.facts.get("data", {}).get("system")
    first = [{"role": "system", "content": system}] if system else []
    found = []
    for sample in adapter.facts.get("scores", {}).get("samples", []):
        turns = [("user", sample["prompt"]), ("assistant", sample["wanted"])]
        found.append(Example(0, first + [{"role": r, "content": c} for r, c in turns]))
    return found


@torch.no_grad()
def logits(model: "PreTrainedModel", rows: list[dict], size: int = 8) -> list[torch.Tensor]:
    """Logits (k, vocab) in fp32 at the k learned tokens of each row."""
    from labkit.own.trainer import padded_logits

    found = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        counts = [len(tokens.learned(row["labels"])) for row in part]
        found += padded_logits(model, part)[0].float().cpu().split(counts)
    return found


def divergence(exact: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Mean KL(exact || other) per token, in nats."""
    total = 0.0
    for p, q in zip(exact, other, strict=True):
        logs = q.log_softmax(-1), p.log_softmax(-1)
        total += F.kl_div(*logs, reduction="sum", log_target=True).item()
    return total / sum(map(len, exact))


def share_right(predicted: list[torch.Tensor], rows: list[dict], ends: Iterable[int]) -> float:
    """The share of rows that greedy decoding answers exactly, up to the end token."""
    ends, right = set(ends), 0
    for logits, row in zip(predicted, rows, strict=True):
        wanted = tokens.learned(row["labels"])
        stop = next((i + 1 for i, token in enumerate(wanted) if token in ends), len(wanted))
        right += logits.argmax(-1).tolist()[:stop] == wanted[:stop]
    return right / len(rows)
