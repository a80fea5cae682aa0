"""Pack rows of different lengths into one sequence without padding, their common prefix once.

Linear layers and norms, 90% of a step, process every token once. Only attention works on padded
rows, where each row sees the prefix and itself. Results equal those of padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from labkit.data.tokens import IGNORED  # the label of tokens outside answers
from labkit.errors import LabError


def pack(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pack rows of `input_ids` and `labels` into a batch of one sequence of N tokens.

    `input_ids`, `labels`, `position_ids` are `(1, N)`; the prefix comes first. `rows` `(b, n)` has
    the position of each row's tokens in the sequence, -1 for padding.
    """
    p = shared_prefix(rows)
    ids, labels, places = list(rows[0]["input_ids"][:p]), [IGNORED] * p, list(range(p))
    lengths = torch.tensor([len(row["input_ids"]) - p for row in rows])
    for row in rows:
        ids += row["input_ids"][p:]
        labels += [IGNORED, *row["labels"][p + 1 :]]  # no token predicts a row's first
        places += range(p, len(row["input_ids"]))
    starts = p + lengths.cumsum(0) - lengths
    columns = torch.arange(int(lengths.max()))
    where = torch.where(columns < lengths[:, None], starts[:, None] + columns, -1)
    sequence = {"input_ids": ids, "labels": labels, "position_ids": places}
    return {name: torch.tensor([values]) for name, values in sequence.items()} | {"rows": where}


def padded(rows: list[dict[str, list[int]]], pad: int = 0) -> dict[str, torch.Tensor]:
    """Right-pad rows into one batch: `input_ids`, `labels`, `attention_mask`, each `(b, n)`."""
    n = max(len(row["input_ids"]) for row in rows)
    batch = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        more = n - len(row["input_ids"])
        batch["input_ids"].append(row["input_ids"] + [pad] * more)
        batch["labels"].append(row["labels"] + [IGNORED] * more)
        batch["attention_mask"].append([1] * (n - more) + [0] * more)
    return {name: torch.tensor(values) for name, values in batch.items()}


def shared_prefix(rows: list[dict[str, list[int]]]) -> int:
    """Count the leading tokens that all rows share, ending before any prompt's last token."""
    if len(rows) == 1:
        return 0
    prompts = [next((i for i, y in enumerate(row["labels"]) if y != IGNORED), 0) for row in rows]
    columns = zip(*(row["input_ids"] for row in rows), strict=False)
    shortest = min(len(row["input_ids"]) for row in rows)
    same = next((i for i, column in enumerate(columns) if len(set(column)) > 1), shortest)
    return max(0, min(same, min(prompts) - 1))


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The model itself, or the base model inside a PeftModel."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def own_forward(model: torch.nn.Module) -> Iterator[None]:
    """Restore `model`'s own forward after the block, whatever replaced it in the meantime."""
    own = vars(model).get("forward")
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if own is not None:
            model.forward = own


def hidden_states(
    decoder: PreTrainedModel, batch: dict[str, torch.Tensor], cache: KeyValueCache | None = None
) -> torch.Tensor:
    """Compute a packed batch's last hidden states `(1, N, d)` with plain causal attention.

    Each position sees the prefix and its own row. `cache` stores keys and values, for generation.
    """
    return _run(decoder, batch["input_ids"], batch["position_ids"], _Layout(batch["rows"], cache))


def _run(decoder, input_ids, position_ids, layout):
    with _attention(decoder.config, "packed_rows"):
        out = decoder(input_ids, position_ids=position_ids, use_cache=False, layout=layout)
    return out.last_hidden_state


@contextmanager
def _attention(config, name):
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


class _Layout:
    """The layout of a packed sequence: p prefix tokens, followed by b rows of n slots."""

    def __init__(self, rows, cache=None):
        self.cache = cache
        self.b, self.n = rows.shape
        self.p = int(rows[0, 0])
        self.longest = self.p + self.n
        behind = (rows - self.p).flatten()
        filled = (behind >= 0).nonzero()[:, 0]
        slots = behind.new_full((int(behind.max()) + 1,), len(behind))
        # the slot of each token, or its first slot if several rows share the token
        self.slots = slots.scatter_reduce_(0, behind[filled], filled, "amin")
        self.shared = len(filled) > len(slots)
        self.empty = torch.ones_like(behind).index_fill_(0, self.slots, 0).nonzero()[:, 0]
        self.tokens = behind.clamp(min=0)  # the token of each slot; empty ones use the first
        # padding comes last in a row, so the causal mask hides it too
        later = torch.full((self.p + self.n, self.p + self.n), float("-inf"), device=rows.device)
        later = later.triu(1)
        self.later0, self.later = later[: self.p, : self.p], later[self.p :]

    def attend(self, layer, query, key, value, scaling, dropout):
        """Attend with queries `(1, heads, N, d)`; returns `(N, heads d)`."""
        (q0, q), (k0, k), (v0, v) = (_split(x, self) for x in (query, key, value))
        if self.cache:
            self.cache.store(layer, (k0, v0), (k, v))
        k, v = (torch.cat([x0.expand(self.b, -1, -1, -1), x], 2) for x0, x in ((k0, k), (v0, v)))
        later0, later = self.later0.to(q.dtype), self.later.to(q.dtype)
        prefix = _softmax_attention(q0, k0, v0, later0, scaling, dropout)
        rows = _softmax_attention(q, k, v, later, scaling, dropout)
        return torch.cat([prefix, _Gather.apply(rows, self.slots, self.tokens, self.empty)])


class KeyValueCache:
    """A cache of every layer's keys and values, for the prefix (once) and for each growing row.

    `lengths` `(b,)` are token counts with the prefix; each row has room for `more` new tokens.
    """

    def __init__(self, lengths: torch.Tensor, more: int):
        self.places, self.more = lengths, more  # position of each row's next token
        self.prefix, self.rows = {}, {}  # by layer, keys and values: (1, h, p, d) and (b, h, n, d)

    def store(self, layer: int, prefix: tuple, rows: tuple) -> None:
        """Store a layer's keys and values for prefix and rows, with room for new tokens."""
        self.prefix[layer] = [x[0] for x in prefix]
        self.rows[layer] = [F.pad(x, (0, 0, 0, self.more)) for x in rows]
        self.end = rows[0].shape[2]  # the slot that the next token of every row takes
        p, n = prefix[0].shape[2], self.end + self.more
        self.longest = p + n
        slots = torch.arange(n, device=self.places.device)
        self.unseen = (slots >= self.places[:, None] - p)[:, None, None]  # (b, 1, 1, n)

    def choose(self, rows: torch.Tensor) -> None:
        """Continue with only these rows, in this order; a row may occur more than once."""
        self.places, self.unseen = self.places[rows], self.unseen[rows]
        self.rows = {layer: [x[rows] for x in both] for layer, both in self.rows.items()}

    def step(self, decoder: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        """Compute the hidden states `(b, d)` of one more token `(b,)` per row."""
        self.unseen[..., self.end] = False
        hidden = _run(decoder, tokens[:, None], self.places[:, None], self)[:, 0]
        self.places, self.end = self.places + 1, self.end + 1
        return hidden.contiguous()  # for a slice, torch would copy a frozen head per row

    def attend(self, layer, query, key, value, scaling, dropout):
        """Attend with new tokens' queries `(b, heads, 1, d)` -> `(b, heads d)`; fp32 softmax."""
        (k0, v0), (k, v) = self.prefix[layer], self.rows[layer]
        k[:, :, self.end], v[:, :, self.end] = key[:, :, 0], value[:, :, 0]
        (b, h, _, d), (h_kv, p, _) = query.shape, k0.shape
        g = h // h_kv  # query heads per key head
        q = query.view(b, h_kv, g, d) * scaling
        common = q.transpose(0, 1).reshape(h_kv, b * g, d) @ k0.transpose(1, 2)  # all rows at once
        common = common.view(h_kv, b, g, p).transpose(0, 1)
        # including the empty slots: a product with a slice would copy the slice first
        own = (q @ k.transpose(2, 3)).masked_fill_(self.unseen, float("-inf"))
        weights = torch.cat([common, own], 3).softmax(-1, dtype=torch.float32).to(v.dtype)
        common = weights[..., :p].transpose(0, 1).reshape(h_kv, b * g, p) @ v0
        out = common.view(h_kv, b, g, d).transpose(0, 1) + weights[..., p:] @ v
        return out.reshape(b, h * d)


class _Gather(torch.autograd.Function):
    """Gather the rows of `x` at `there`; the gradient is gathered by `back`, and 0 at `empty`.

    Maps tokens `(t, d)` to slots `(b n, d)` or back. No row is used twice, so nothing is summed.
    """

    @staticmethod
    def forward(ctx, x, there, back, empty):
        ctx.back, ctx.empty = back, empty
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx, gradient):
        gathered = gradient.index_select(0, ctx.back)
        if ctx.empty is not None:
            gathered.index_fill_(0, ctx.empty, 0)
        return gathered, None, None, None


def _attend(
    module, query, key, value, attention_mask, scaling, dropout=0.0, layout=None, **special
):
    """`layout`'s attention for transformers: `(b, heads, n, d)` -> `(b, n, heads, d)`."""
    b, h, n, d = query.shape
    _check_plain(module, special, layout)
    out = layout.attend(module.layer_idx, query, key, value, scaling, dropout)
    return out.view(b, n, h, d), None


def _check_plain(module, special, layout):
    """LabError if a model's attention has a sliding window, a soft cap or a sink."""
    window = special.get("sliding_window")
    if window is not None and layout.longest > window:
        how = f"a window of {window} tokens"
    elif special.get("softcap") is not None:
        how = "a soft cap"
    elif special.get("s_aux") is not None:
        how = "attention sinks"
    else:
        return
    kind = module.config.model_type
    raise LabError(f"{kind} attends with {how}, but packed rows do not: use TRL's SFTTrainer")


def _split(x, layout):
    """Split `(1, h, N, d)` into the prefix `(1, h, p, d)` and the rows `(b, h, n, d)`."""
    h, d = x.shape[1], x.shape[3]
    tails = x[0, :, layout.p :].transpose(0, 1).reshape(-1, h * d)
    if layout.shared:  # a token's gradient sums over the rows that share it
        tails = F.embedding(layout.tokens, tails.float()).to(x.dtype)
    else:
        tails = _Gather.apply(tails, layout.tokens, layout.slots, None)
    return x[:, :, : layout.p], tails.view(layout.b, layout.n, h, d).transpose(1, 2)


def _softmax_attention(q, k, v, hidden, scaling, dropout):
    """Attend with queries `(b, h, n, d)` to keys `(b, h_kv, m, d)`; returns `(b n, h d)`.

    `hidden` `(n, m)` is -inf where a key is hidden, else 0. torch computes bf16 softmax in fp32.
    """
    (b, h, n, d), (_, h_kv, m, _) = q.shape, k.shape
    grouped = (q * scaling).reshape(b * h_kv, h // h_kv * n, d)  # query heads that share a key head
    hidden = hidden.repeat(h // h_kv, 1).expand(b * h_kv, -1, -1)
    scores = torch.baddbmm(hidden, grouped, k.reshape(b * h_kv, m, d).transpose(1, 2))
    weights = F.dropout(scores.softmax(-1), dropout)
    mixed = weights @ v.reshape(b * h_kv, m, d)
    return mixed.view(b, h, n, d).transpose(1, 2).reshape(b * n, h * d)


ALL_ATTENTION_FUNCTIONS.register("packed_rows", _attend)
