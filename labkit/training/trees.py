"""Pack rows into one sequence in which every shared beginning occurs once.

In `packing.pack`, all rows share one prefix. Here they form a tree, and a token is computed once
for all rows that agree up to this token. Eight answers to one prompt, or a preference pair, have
much in common: the tree has a half or a third of the rows' tokens.
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
    """Turn rows of token ids into a batch of N tokens for `packing.hidden_states`.

    `input_ids` and `position_ids` are `(1, N)`. `paths` `(b, n)` has the position of each row's
    tokens in the sequence, -1 after the row's end; `rows` is `paths` without the common prefix.
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
    """Make `model(input_ids, attention_mask=…)` compute its rows as a tree while the block runs.

    Logits equal the plain forward's except for rounding, and are undefined at padding. Left-padded
    rows and calls with other arguments use the plain forward.
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
