"""Rows of different lengths as one sequence without padding, their common prefix in it once.

Linear layers and norms, nine tenths of a step, see every token once. Attention alone works on
padded rows, in which a row sees the prefix and itself. The numbers are those of padded rows.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IGNORED = -100  # the label of a token that is no part of an answer


def pack(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows of `input_ids` and `labels` -> a batch of one packed sequence of N tokens.

    `input_ids`, `labels`, `position_ids` are `(1, N)`; `rows` `(b, n)` says where in the sequence
    each token of a row stands, -1 for padding. The prefix stands before all of them.
    """
    p = shared_prefix(rows)
    ids, labels, places = list(rows[0]["input_ids"][:p]), [IGNORED] * p, list(range(p))
    lengths = torch.tensor([len(row["input_ids"]) - p for row in rows])
    for row in rows:
        ids += row["input_ids"][p:]
        labels += [IGNORED, *row["labels"][p + 1 :]]  # nothing before a row predicts its first
        places += range(p, len(row["input_ids"]))
    starts = p + lengths.cumsum(0) - lengths
    columns = torch.arange(int(lengths.max()))
    where = torch.where(columns < lengths[:, None], starts[:, None] + columns, -1)
    sequence = {"input_ids": ids, "labels": labels, "position_ids": places}
    return {name: torch.tensor([values]) for name, values in sequence.items()} | {"rows": where}


def shared_prefix(rows: list[dict[str, list[int]]]) -> int:
    """How many leading tokens all rows share; it ends before the last token of any prompt."""
    if len(rows) == 1:
        return 0
    prompts = [next((i for i, y in enumerate(row["labels"]) if y != IGNORED), 0) for row in rows]
    columns = zip(*(row["input_ids"] for row in rows), strict=False)
    shortest = min(len(row["input_ids"]) for row in rows)
    same = next((i for i, column in enumerate(columns) if len(set(column)) > 1), shortest)
    return max(0, min(same, min(prompts) - 1))


def hidden_states(decoder: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The decoder's last hidden states `(1, N, d)` of a packed batch, for plain causal attention.

    Each position sees what it would see in a row of its own: the prefix and its own row.
    """
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    with _attention(decoder.config, "packed_rows"):
        out = decoder(**inputs, use_cache=False, layout=_Layout(batch["rows"]))
    return out.last_hidden_state


@contextmanager
def _attention(config, name):
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


class _Layout:
    """How the b rows of n slots lie behind the p tokens of the prefix in a packed sequence."""

    def __init__(self, rows):
        self.b, self.n = rows.shape
        self.p = int(rows[0, 0])
        behind = (rows - self.p).flatten()
        self.slots = (rows >= 0).flatten().nonzero()[:, 0]  # the slot of each token
        self.empty = (rows < 0).flatten().nonzero()[:, 0]
        self.tokens = behind.clamp(min=0)  # the token of each slot; an empty one holds the first
        # padding stands at the end of a row, so the causal mask hides it too
        seen = torch.ones(self.p + self.n, self.p + self.n, dtype=torch.bool, device=rows.device)
        self.causal0, self.causal = seen.tril()[: self.p, : self.p], seen.tril()[self.p :]


class _Gather(torch.autograd.Function):
    """Rows `(n, d)` at the places `there`. None matters twice: so the gradient is gathered, too.

    It comes from the places `back`, and is 0 at those that are `left_out`.
    """

    @staticmethod
    def forward(ctx, rows, there, back, left_out):
        ctx.back, ctx.left_out = back, left_out
        return rows.index_select(0, there)

    @staticmethod
    def backward(ctx, gradient):
        gathered = gradient.index_select(0, ctx.back).index_fill_(0, ctx.left_out, 0)
        return gathered, None, None, None


def _attend(module, query, key, value, attention_mask, scaling, dropout=0.0, layout=None, **_):
    """transformers' attention, of a packed sequence: `(1, heads, N, d)` -> `(1, N, heads, d)`."""
    (q0, q), (k0, k), (v0, v) = (_split(x, layout) for x in (query, key, value))
    k, v = (torch.cat([x0.expand(layout.b, -1, -1, -1), x], 2) for x0, x in ((k0, k), (v0, v)))
    prefix = _softmax_attention(q0, k0, v0, layout.causal0, scaling, dropout)
    rows = _softmax_attention(q, k, v, layout.causal, scaling, dropout)
    tokens = _Gather.apply(rows, layout.slots, layout.tokens, layout.empty)  # (t, d)
    out = torch.cat([prefix, tokens])
    return out.unflatten(1, (query.shape[1], -1))[None], None


def _split(x, layout):
    """`(1, h, N, d)` -> the prefix `(1, h, p, d)` and the rows `(b, h, n, d)`."""
    h, d = x.shape[1], x.shape[3]
    tokens = x[0, :, layout.p :].transpose(0, 1).reshape(-1, h * d)
    tails = _Gather.apply(tokens, layout.tokens, layout.slots, layout.slots[:0])  # (b n, h d)
    return x[:, :, : layout.p], tails.view(layout.b, layout.n, h, d).transpose(1, 2)


def _softmax_attention(q, k, v, allowed, scaling, dropout):
    """`(b, h, n, d)` queries on `(b, h_kv, m, d)` keys -> `(b n, h d)`; softmax in fp32."""
    (b, h, n, d), (_, h_kv, m, _) = q.shape, k.shape
    grouped = q.reshape(b, h_kv, h // h_kv * n, d)  # heads that share a key head, side by side
    scores = (grouped @ k.transpose(2, 3)).view(b, h, n, m) * scaling
    scores = scores.masked_fill(~allowed, float("-inf"))
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(v.dtype), dropout)
    mixed = weights.view(b, h_kv, h // h_kv * n, m) @ v
    return mixed.view(b, h, n, d).transpose(1, 2).reshape(b * n, h * d)


ALL_ATTENTION_FUNCTIONS.register("packed_rows", _attend)
