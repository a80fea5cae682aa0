"""What a learner's code has to leave as it found it: inputs, settings of torch, models."""

from collections import OrderedDict

import pandas as pd
import pytest
import torch

from labkit import contract
from labkit.contract import exercise, kept, observe


def test_what_a_probe_finds_changed_is_a_fault_and_its_result_arrives_all_the_same(monkeypatch):
    def probe(f):
        return contract.kept(f, [1, 2])

    def grow(numbers):
        numbers.append(3)
        return len(numbers)

    monkeypatch.setattr(contract.session, "faults", [])
    assert observe(probe, len) == 2 and contract.sound()
    assert observe(probe, grow) == 3
    assert "changes its input numbers in place" in str(contract.session.faults[0])
    assert observe(probe, len) == 2 and len(contract.session.faults) == 1


def test_an_ordered_dict_that_is_left_alone_is_not_changed(monkeypatch):
    monkeypatch.setattr(contract.session, "faults", [])
    observe(lambda: kept(len, OrderedDict(a=torch.ones(2))))
    assert contract.sound()
    observe(lambda: kept(lambda state: state.popitem(), OrderedDict(a=torch.ones(2))))
    assert not contract.sound()


@exercise("9.3", points=2)
def doubled_all(twice):
    """doubles whatever it gets"""
    for thing in (torch.ones(3), [1, 2], {"a": 1}, pd.DataFrame({"a": [1]})):
        observe(_twice, twice, thing)


def _twice(twice, thing):
    twice(thing)


CHANGES = [
    lambda x: x.mul_(2) if isinstance(x, torch.Tensor) else x,
    lambda x: x.append(1) if isinstance(x, list) else x,
    lambda x: x.update(b=1) if isinstance(x, dict) else x,
    lambda x: x.insert(0, "b", [2]) if isinstance(x, pd.DataFrame) else x,
]


@pytest.mark.parametrize("twice", CHANGES, ids=["tensor", "list", "dict", "frame"])
def test_what_is_changed_in_place_is_told_by_every_check(twice, rejects):
    assert "it changes its input thing in place" in rejects(doubled_all, twice)


@pytest.mark.parametrize(
    "setting, words",
    [
        (lambda x: torch.manual_seed(0), "random numbers"),
        (lambda x: torch.set_grad_enabled(False), "gradients"),
        (lambda x: torch.set_default_dtype(torch.float64), "default dtype"),
    ],
)
def test_settings_of_torch_are_told_and_put_back(setting, words, rejects):
    state = torch.get_rng_state()
    assert words in rejects(doubled_all, setting)
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    assert torch.equal(state, torch.get_rng_state())


def test_random_numbers_may_be_drawn_and_seeded_apart(accepts):
    accepts(doubled_all, lambda x: torch.randn(3))

    def apart(x):
        with torch.random.fork_rng():
            torch.manual_seed(0)

    accepts(doubled_all, apart)


def _model():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    return model.eval()


@pytest.mark.parametrize(
    "f, words",
    [
        (lambda model: model.train(), "came in eval mode and is left in train mode"),
        (lambda model: model[1].train(), "training mode (at 1)"),
        (lambda model: model[0].weight.requires_grad_(False), "the parameters that train"),
        (lambda model: model[0].weight.data.add_(1), "its weights (at 0.weight)"),
        (lambda model: model[0].register_forward_hook(print), "hooks"),
        (lambda model: model.append(torch.nn.ReLU()), "training mode"),
    ],
)
def test_a_model_is_given_back_as_it_was(f, words):
    told = _faults(f, _model())
    assert "it leaves model changed" in told and words in told


def _faults(f, model):
    """What `kept` finds changed by `f(model)`, as text."""
    session = contract.Session()

    def probe():
        kept(f, model)

    session.call(probe, ())
    return " ".join(map(str, session.faults))


def test_another_active_adapter_is_a_change():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16)
    base = LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=2, num_key_value_heads=2))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]), "first")
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))

    def asks(model):
        model.set_adapter("second")

    assert "its active adapter" in _faults(asks, model)

    def gives_back(model):
        model.set_adapter("second")
        model.set_adapter("first")

    model.set_adapter("first")
    assert not _faults(gives_back, model)
