"""Trees of rows: every beginning stands once, and logits and gradients are the plain forward's."""

import pytest
import torch
from test_fast import SIZE, tuned

from labkit.training import packing, trees

ROWS = [
    [1, 2, 3, 4, 5],
    [1, 2, 3, 4, 5],  # the same row
    [1, 2, 3],  # a beginning of others
    [1, 2, 6, 4],
    [1, 2, 3, 4, 7, 8, 9],
    [1, 2, 6, 4, 5],
]


def padded(rows):
    """`input_ids` and `attention_mask` `(b, n)`, right-padded with 0."""
    batch = packing.padded([{"input_ids": row, "labels": row} for row in rows])
    del batch["labels"]
    return batch


def drawn(seed):
    """Some rows of 1 to 9 of three tokens, so that many begin alike."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (6,), generator=rng).tolist()
    return [torch.randint(4, 7, (n,), generator=rng).tolist() for n in lengths]


@pytest.mark.parametrize("rows", [ROWS, *map(drawn, range(4))])
def test_each_beginning_stands_once_as_deep_as_it_was(rows):
    batch = trees.tree(rows)
    begun = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    assert batch["input_ids"].shape == batch["position_ids"].shape == (1, len(begun))
    for row, path in zip(rows, batch["paths"], strict=True):
        path = path[path >= 0]
        assert batch["input_ids"][0, path].tolist() == row
        assert batch["position_ids"][0, path].tolist() == list(range(len(row)))


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[:2], *map(drawn, range(4))])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_logits_and_gradients_are_those_of_the_plain_forward(family, rows):
    model, batch = tuned(family).double(), padded(rows)
    told = batch["attention_mask"].bool()
    weights = torch.randn(*told.shape, SIZE["vocab_size"], dtype=torch.float64)[told]
    trained = [p for p in model.parameters() if p.requires_grad]
    wanted = model(**batch).logits[told]
    asked = torch.autograd.grad((wanted * weights).sum(), trained)
    with trees.forward(model):
        logits = model(**batch).logits
    assert logits.shape[:2] == told.shape
    torch.testing.assert_close(logits[told], wanted, rtol=0, atol=1e-6)  # norms are in fp32
    got = torch.autograd.grad((logits[told] * weights).sum(), trained)
    for g, w in zip(got, asked, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-6 * float(w.abs().max()))


def test_a_tree_has_fewer_tokens_for_the_layers():
    model, seen = tuned(), []
    layer = packing.base_of(model).get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[:2].numel()))
    model(**padded(ROWS))
    with trees.forward(model):
        model(**padded(ROWS))
    assert seen == [6 * 7, 11]


@pytest.mark.parametrize("ask", ["no mask", "left", "labels", "embeddings"])
def test_whoever_asks_for_more_gets_the_plain_forward(ask):
    model, batch = tuned(), padded(ROWS)
    if ask == "no mask":
        del batch["attention_mask"]
    elif ask == "left":
        batch = {name: x.flip(1) for name, x in batch.items()}
    elif ask == "labels":
        batch["labels"] = batch["input_ids"]
    else:
        batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
    wanted = model(**batch)
    with trees.forward(model):
        got = model(**batch)
    assert torch.equal(got.logits, wanted.logits)
    assert (got.loss is None) == (ask != "labels")


@pytest.mark.parametrize("own", [{}, {"forward": lambda **_: None}])
def test_the_forward_is_what_it_was_even_after_an_error(own):
    model = tuned()
    base = packing.base_of(model)
    vars(base).update(own)
    with pytest.raises(RuntimeError, match="stop"), trees.forward(model):
        assert vars(base)["forward"] is not own.get("forward")
        raise RuntimeError("stop")
    assert vars(base).get("forward") is own.get("forward")
