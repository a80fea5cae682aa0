"""Rows as one sequence in which every beginning that several of them share stands once.

Rows that `packing.pack` makes share one prefix, all of them. Here they form a tree: a token is
computed once for all rows that are the same up to it. Eight answers to one prompt, or the two of a
preference, have much in common, so a tree of them is half or a third of the rows' tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from labkit.training import packing


def tree(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows of token ids -> a batch of N tokens for `packing.hidden_states`.

    `input_ids` and `position_ids` are `(1, N)`. `paths` `(b, n)` says where in the sequence each
    token of a row stands, -1 behind its end; `rows` is that without the prefix of all rows.
    """
    last = min(map(len, rows)) - 1
    columns = zip(*rows, strict=False)
    p = next((i for i, column in enumerate(columns) if i == last or len(set(column)) > 1))
    known, places, paths = {}, [], []
    for row in rows:
        before, path = -1, []
        for place, token in enumerate(row):
            before = known.setdefault((before, token), len(known))
            if before == len(places):
                places.append(place)
            path.append(before)
        paths.append(torch.tensor(path))
    paths = torch.nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=-1)
    ids = torch.tensor([[token for _, token in known]])
    sequence = {"input_ids": ids, "position_ids": torch.tensor([places])}
    return sequence | {"paths": paths, "rows": paths[:, p:]}


@contextmanager
def forward(model: PreTrainedModel) -> Iterator[None]:
    """Meanwhile `model(input_ids, attention_mask=…)` computes its rows as a tree.

    Logits are those of the plain forward but for rounding; where padding is, they mean nothing.
    Rows that are padded on the left, and calls that ask for more, take the plain forward.
    """
    base = packing.base_of(model)
    plain = base.forward

    def as_tree(input_ids=None, attention_mask=None, **more):
        asks = any(value is not None for name, value in more.items() if name != "return_dict")
        if asks or attention_mask is None or (attention_mask.diff(dim=1) > 0).any():
            return plain(input_ids=input_ids, attention_mask=attention_mask, **more)
        lengths = attention_mask.sum(1).tolist()
        rows = [ids[:n] for ids, n in zip(input_ids.tolist(), lengths, strict=True)]
        batch = {name: values.to(base.device) for name, values in tree(rows).items()}
        hidden = packing.hidden_states(base.get_decoder(), batch)[0]
        logits = base.get_output_embeddings()(hidden)  # (N, vocab)
        paths = F.pad(batch["paths"], (0, input_ids.shape[1] - max(lengths)))
        return CausalLMOutput(logits=F.embedding(paths.clamp(min=0), logits))

    with packing.own_forward(base):
        base.forward = as_tree
        yield
