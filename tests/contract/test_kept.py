"""What a learner's code has to leave as it found it: inputs, settings of torch, models."""

from collections import OrderedDict

import pytest
import torch
from small_llama import small_llama, with_lora

from labkit import contract
from labkit.contract import kept, observe


def faults(f, *args):
    """What `f(*args)` leaves changed, as a check would say it."""
    session = contract.Session()

    def probe():
        kept(f, *args)

    session.call(probe, ())
    return " ".join(map(str, session.faults))


def test_what_a_probe_finds_changed_is_a_fault_and_its_result_arrives_all_the_same(monkeypatch):
    def grow(numbers):
        numbers.append(3)
        return len(numbers)

    monkeypatch.setattr(contract.session, "faults", [])
    for f, result, n in ((len, 2, 0), (grow, 3, 1), (len, 2, 1)):
        assert observe(lambda f: kept(f, [1, 2]), f) == result
        assert len(contract.session.faults) == n
    assert "changes its input `numbers` in place" in str(contract.session.faults[0])


def test_an_ordered_dict_that_is_left_alone_is_not_changed():
    assert not faults(len, OrderedDict(a=torch.ones(2)))
    assert faults(OrderedDict.popitem, OrderedDict(a=torch.ones(2)))


@pytest.mark.parametrize(
    "setting, words",
    [
        (lambda: torch.manual_seed(0), "random seed"),
        (lambda: torch.set_grad_enabled(False), "gradients"),
        (lambda: torch.set_default_dtype(torch.float64), "default dtype"),
    ],
)
def test_settings_of_torch_are_told_and_put_back(setting, words):
    state = torch.get_rng_state()
    assert words in faults(setting)
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    assert torch.equal(state, torch.get_rng_state())


def test_random_numbers_may_be_drawn_and_seeded_apart():
    def apart():
        with torch.random.fork_rng():
            torch.manual_seed(0)

    state = torch.get_rng_state()
    assert not faults(lambda: torch.randn(3)) and not faults(apart)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "f, words",
    [
        (lambda model: model.train(), "was in eval mode before and is in train mode now"),
        (lambda model: model[1].train(), "training mode (at 1)"),
        (lambda model: model[0].weight.requires_grad_(False), "the parameters that train"),
        (lambda model: model[0].weight.data.add_(1), "its weights (at 0.weight)"),
        (lambda model: model[0].register_forward_hook(print), "hooks"),
        (lambda model: model.append(torch.nn.ReLU()), "training mode"),
    ],
)
def test_a_model_is_given_back_as_it_was(f, words):
    told = faults(f, torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()).eval())
    assert "it leaves model changed" in told and words in told


def test_another_active_adapter_is_a_change():
    model = with_lora(small_llama(), ("first", "second"), r=2, target_modules=["q_proj"])
    assert "its active adapter" in faults(lambda model: model.set_adapter("second"), model)
    model.set_adapter("first")
    both = lambda model: [model.set_adapter(name) for name in ("second", "first")]  # noqa: E731
    assert not faults(both, model)
