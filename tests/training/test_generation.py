"""Asking: the letters of `model.generate`, whatever leaves the batch, and draws that are fair."""

import pytest
import torch
from small_llama import with_lora

from labkit.probes import tiny
from labkit.training import generation


def prompts(n, common=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    ids = lambda k: torch.randint(2, 19, (k,), generator=rng).tolist()  # noqa: E731
    start = ids(common)
    return [start + ids(1 + i * 5 % 7) for i in range(n)]


def generated(model, prompt, new):
    """`model.generate`'s greedy continuation of one prompt, by itself and without padding."""
    ids = torch.tensor([prompt])
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "do_sample": False}
    return model.generate(ids, **how)[0, len(prompt) :].tolist()


@pytest.fixture
def model():
    """A tiny Llama that comes to its end in some rows early, in some never."""
    model, _ = tiny.language_model(seed=0)
    model.generation_config.eos_token_id = [0, 9]
    model.generation_config.pad_token_id = 0
    torch.manual_seed(0)
    return model.float()


@pytest.mark.parametrize(
    ("n", "common", "new"), [(1, 4, 20), (9, 0, 20), (9, 1, 20), (9, 4, 20), (5, 4, 1)]
)
def test_letters_are_those_of_generate(model, n, common, new):
    asked = prompts(n, common, seed=n)
    wanted = [generated(model, prompt, new) for prompt in asked]
    assert generation.continuations(model, asked, new) == wanted
    if n == 9:
        assert len({len(row) for row in wanted}) > 2, "rows should end at different times"


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_letters_are_generate_s_with_an_adapter(model, options):
    tuned, asked = with_lora(model, **options), prompts(7)
    wanted = [generated(tuned, prompt, 16) for prompt in asked]
    assert generation.continuations(tuned, asked, 16) == wanted
    with tuned.disable_adapter():
        base = [generated(tuned, prompt, 16) for prompt in asked]
        assert generation.continuations(tuned, asked, 16) == base != wanted


def test_samples_stand_side_by_side_and_repeat_by_their_generator(model):
    asked = prompts(3)

    def drawn(temperature, seed):
        rng = torch.Generator().manual_seed(seed)
        return generation.continuations(model, asked, 12, 4, temperature, rng)

    greedy = generation.continuations(model, asked, 12)
    assert drawn(1e-4, 0) == [row for row in greedy for _ in range(4)]
    assert drawn(1.0, 0) == drawn(1.0, 0) != drawn(1.0, 1)
    assert len({tuple(row) for row in drawn(1.0, 0)}) > 6


def chances(model, ids, temperature):
    with torch.no_grad():
        return (model(torch.tensor([ids])).logits[0, -1] / temperature).softmax(-1)


def as_frequent(drawn, wanted):
    """Whether tokens occur as often as wanted, within four and a half standard errors."""
    share = torch.tensor(drawn).bincount(minlength=len(wanted)) / len(drawn)
    error = (wanted * (1 - wanted) / len(drawn)).sqrt()
    return bool(((share - wanted).abs() <= 4.5 * error + 1e-9).all())


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_draws_are_as_frequent_as_the_model_says(model, temperature):
    model.generation_config.eos_token_id = []
    (asked,), rng = prompts(1), torch.Generator().manual_seed(0)
    drawn = generation.continuations(model, [asked], 2, 4000, temperature, rng)
    first = [row[0] for row in drawn]
    assert as_frequent(first, chances(model, asked, temperature))
    token = max(first, key=first.count)  # and the second draw knows the first
    second = [row[1] for row in drawn if row[0] == token]
    assert as_frequent(second, chances(model, [*asked, token], temperature))


def test_the_model_is_left_as_it_was_even_by_an_error(model):
    tuned = with_lora(model).train()
    forwards = {name: "forward" in vars(m) for name, m in tuned.named_modules()}
    before = tuned.config._attn_implementation
    with pytest.raises(IndexError):
        generation.continuations(tuned, [[1, 2, 10**6], [1, 2, 3, 4]], 4)
    assert tuned.training and tuned.config._attn_implementation == before
    assert forwards == {name: "forward" in vars(m) for name, m in tuned.named_modules()}
