"""The contract between checks and learners' code."""

from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import torch

from labkit import contract
from labkit.checks.compare import every, expect_close, expect_number, expect_numbers, likeliest
from labkit.contract import CheckFailed, exercise, expect, generator, kept, observe, part
from labkit.contract.plain import plain


@exercise("9.1", points=2)
def doubles(double):
    """doubles"""
    expect(observe(double, 3) == 6, "3 must give 6", earned=1)


def test_a_pass_earns_the_points(accepts):
    accepts(doubles, lambda x: 2 * x)


def test_a_failure_keeps_part_of_the_points_and_the_message():
    with pytest.raises(CheckFailed):
        doubles(lambda x: x)
    record = contract.session.records["9.1"]
    assert (record["status"], record["earned"]) == ("failed", 1)
    assert record["message"] == "3 must give 6"


def test_a_notebook_shows_the_message_and_nothing_else():
    with pytest.raises(CheckFailed) as caught:
        doubles(lambda x: x)
    (line,) = caught.value._render_traceback_()
    assert "✗ 9.1 double: 3 must give 6" in line


def test_stub_is_missing_not_wrong(not_written):
    def double(x):
        raise NotImplementedError

    not_written(doubles, double)


def test_torch_raising_not_implemented_is_a_failure(rejects):
    def double(x):
        raise NotImplementedError("no such kernel")

    assert "no such kernel" in rejects(doubles, double)


def test_an_error_names_the_line_of_the_cell(rejects):
    cell = compile("def double(x):\n    y = x\n    return y + 'a'\n", "<cell 3>", "exec")
    names = {}
    exec(cell, names)
    message = rejects(doubles, names["double"])
    assert "TypeError" in message and "line 3 of the cell" in message


def test_a_matrix_the_wrong_way_round_is_hinted_at(rejects):
    message = rejects(doubles, lambda x: torch.ones(2, 3) @ torch.ones(2, 3))
    assert "shapes cannot be multiplied" in message and "transpose" in message


def test_a_check_called_without_its_object_says_how():
    with pytest.raises(CheckFailed, match=r"called as check\.doubles\(double\)"):
        doubles()


def test_a_revealed_exercise_stays_revealed():
    record = {"id": "9.1", "name": "double", "points": 2, "earned": 0}
    contract.session.records["9.1"] = record | {"status": "revealed", "message": ""}
    doubles(lambda x: 2 * x)
    assert contract.session.records["9.1"]["status"] == "revealed"
    assert contract.session.records["9.1"]["earned"] == 0


def test_what_the_learner_changes_in_place_stays_outside():
    x = torch.ones(3)
    observe(lambda t: t.mul_(5), x)
    assert torch.equal(x, torch.ones(3))


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


def test_the_learners_random_numbers_leave_ours_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    observe(lambda: torch.randn(10))
    assert torch.equal(before, torch.get_rng_state())


def test_inputs_depend_on_seed_and_exercise(monkeypatch):
    monkeypatch.setattr(contract.session, "exercise", "1.1")
    first, again = (torch.rand(1, generator=generator()) for _ in range(2))
    assert first == again
    monkeypatch.setattr(contract.session, "seed", 1)
    assert first != torch.rand(1, generator=generator())
    monkeypatch.setattr(contract.session, "seed", 0)
    monkeypatch.setattr(contract.session, "exercise", "1.2")
    assert first != torch.rand(1, generator=generator())


def test_plain_data():
    tensor = torch.ones(2, requires_grad=True)
    got = plain({"a": (tensor, np.float32(2)), 3: np.arange(2), "f": pd.DataFrame({"r": [4, 8]})})
    assert not got["a"][0].requires_grad
    assert got["a"][1] == 2.0 and type(got["a"][1]) is float
    assert torch.equal(got["3"], torch.arange(2))
    assert got["f"] == {"r": [4, 8]}
    with pytest.raises(TypeError, match="a Linear"):
        plain(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "got, word",
    [
        (None, "return"),
        (torch.ones(3, 2), "transposed"),
        (torch.full((2, 3), torch.nan), "NaN"),
        (torch.arange(6.0).view(2, 3) * 4, "4x"),
        (torch.arange(6.0).view(2, 3) * -1, "sign"),
        (torch.arange(6.0).view(2, 3) + 1, "yours"),
    ],
)
def test_expect_close_says_how_it_misses(got, word):
    with pytest.raises(CheckFailed, match=word):
        expect_close(got, torch.arange(6.0).view(2, 3), "f(x)")


def test_expect_close_takes_rounding_and_other_dtypes():
    wanted = torch.arange(6.0).view(2, 3)
    expect_close(wanted.double() + 1e-5, wanted, "f(x)")


@pytest.mark.parametrize(
    "got, wanted, word",
    [(torch.tensor(3.0), 3.0, "item"), ("3", 3, "text"), (3.0, 3, "int"), (4, 3, "wanted 3")],
)
def test_expect_number_says_how_it_misses(got, wanted, word):
    with pytest.raises(CheckFailed, match=word):
        expect_number(got, wanted, "f(x)")


def test_a_guess_has_to_explain_every_case_that_fails():
    cases = [("f(1)", 2.0, 1.0, {"doubled": 2.0, "plus 1": 2.0, "other": 2.0})]
    cases += [("f(5)", 5.0, 5.0, {"doubled": 10.0}), ("f(3)", 4.0, 3.0, {"doubled": 6.0})]
    with pytest.raises(CheckFailed, match=r"f\(1\) gave 2, wanted 1: plus 1$") as caught:
        expect_numbers(cases)
    assert not caught.value.bare
    with pytest.raises(CheckFailed, match=r"wanted 5$") as caught:
        expect_numbers([("f(5)", 7.0, 5.0, {"doubled": 10.0})])
    assert caught.value.bare


def test_a_guess_that_gives_the_right_numbers_too_comes_first():
    cases = [("f(1)", 2, 1, {"one more": 2, "doubled": 2})]
    cases += [("f(0)", 0, 0, {"one more": 1, "doubled": 0})]
    with pytest.raises(CheckFailed, match=r"gave 2, wanted 1: doubled$"):
        expect_numbers(cases)


@pytest.mark.parametrize(
    "got, word", [(41.2, "in percent"), (0.4, "is rounded"), (0.41, "is rounded"), (0.5, "wanted")]
)
def test_a_number_that_is_only_displayed_otherwise_is_told(got, word):
    with pytest.raises(CheckFailed, match=word) as caught:
        expect_number(got, 0.412, "f(x)")
    assert caught.value.bare


def test_every_case_is_judged_and_each_mistake_told_once(monkeypatch):
    def judge(n):
        if n:
            message = "the sign is wrong" if n < 3 else f"yours {n}, wanted 0"
            raise CheckFailed(f"f({n}): {message}", bare=n > 2)
        return n

    monkeypatch.setattr(contract.session, "faults", [])
    assert every(judge, [(0,), (4,), (1,), (2,)]) == [0]
    assert [str(fault) for fault in contract.session.faults] == ["f(1): the sign is wrong"]
    contract.session.faults.clear()
    assert every(judge, [(5,), (4,)]) == []
    assert [str(fault) for fault in contract.session.faults] == ["f(5): yours 5, wanted 0"]


def test_an_ordered_dict_that_is_left_alone_is_not_changed(monkeypatch):
    monkeypatch.setattr(contract.session, "faults", [])
    observe(lambda: kept(len, OrderedDict(a=torch.ones(2))))
    assert contract.sound()
    observe(lambda: kept(lambda state: state.popitem(), OrderedDict(a=torch.ones(2))))
    assert not contract.sound()


def test_of_several_cases_the_one_that_names_a_mistake_is_told():
    with pytest.raises(CheckFailed, match=r"^named$"), likeliest() as case:
        for text, bare in (("numbers", True), ("named", False), ("another", False)):
            with case():
                raise CheckFailed(text, bare=bare)


@pytest.mark.parametrize("wanted", [3.0, 3])
def test_an_int_that_no_float_holds_is_a_wrong_number(wanted):
    with pytest.raises(CheckFailed, match=r"an int of 1329 bits, wanted 3"):
        expect_number(10**400, wanted, "f(x)", {"upside down": 0.3})


def test_a_guess_names_the_misconception():
    with pytest.raises(CheckFailed, match="not halved"):
        expect_number(4.0, 2.0, "f(x)", {"not halved": 4.0})


@exercise("9.2", points=3)
def sums(total):
    """sums"""
    with part():
        expect_number(observe(total, [1, 2]), 3, "total([1, 2])", {"that is the product": 2})
    with part():
        expect_number(observe(total, [4, 5]), 9, "total([4, 5])", {"that is the product": 20})
    with part():
        expect(observe(total, []) == 0, "the sum of nothing is 0")


def test_all_faults_are_told_at_once_and_named_ones_come_first(rejects):
    message = rejects(sums, lambda xs: 7)
    wanted = [
        "the sum of nothing is 0",
        "total([1, 2]) gave 7, wanted 3",
        "total([4, 5]) gave 7, wanted 9",
    ]
    assert message == "✗ 9.2 total: " + " | ".join(wanted)
    assert contract.session.records["9.2"]["message"] == " | ".join(wanted)


def test_one_misconception_is_told_once(rejects):
    message = rejects(sums, lambda xs: int(np.prod(xs)) if xs else 0)
    assert message == "✗ 9.2 total: total([1, 2]) gave 2, wanted 3: that is the product"


def test_a_notebook_shows_one_fault_a_line():
    with pytest.raises(CheckFailed) as caught:
        sums(lambda xs: 7)
    assert len(caught.value._render_traceback_()) == 3


def test_what_raises_everywhere_is_told_once(rejects):
    message = rejects(sums, lambda xs: xs.nothing)
    assert message.count("AttributeError") == 1


def test_a_stub_is_missing_in_a_check_of_parts(not_written):
    def total(xs):
        raise NotImplementedError

    not_written(sums, total)


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


def test_random_numbers_may_be_drawn(accepts):
    accepts(doubled_all, lambda x: torch.randn(3))


def _model():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    return model.eval()


@pytest.mark.parametrize(
    "f, words",
    [
        (lambda model: model.train(), "training mode"),
        (lambda model: model[0].weight.requires_grad_(False), "what of it trains"),
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


@exercise("9.4", points=2, after="9.1")
def quadrupled(quadruple):
    """quadruples"""
    expect_number(observe(quadruple, 3), 12, "quadruple(3)")


@exercise("9.5", points=2, after="9.1")
def applied(times, double):
    """doubles so many times"""
    expect_number(observe(_times, times, double, 3), 24, "times(double, 3)")


def _times(times, double, n):
    return times(double, n)


@pytest.fixture
def learner(monkeypatch):
    """A learner's names, and the course's own `double` at hand for where it is open."""
    space = {"__name__": "__main__"}
    exec("def quadruple(x):\n    return double(double(x))", space)
    monkeypatch.setattr(contract.session, "namespace", space)
    sources = {"9.1": "def double(x):\n    return 2 * x"}
    monkeypatch.setattr(contract.session, "reference", sources.get)
    return space


def _stub(x):
    raise NotImplementedError


@pytest.mark.parametrize("double", [None, _stub, lambda x: x], ids=["absent", "stub", "wrong"])
def test_an_open_exercise_is_stood_in_for(double, learner, capsys):
    if double:
        learner["double"] = double
    quadrupled(learner["quadruple"])
    assert "judged with the course's own 9.1, which is open" in capsys.readouterr().out
    assert contract.session.records["9.4"]["earned"] == 2
    assert learner.get("double") is double, "what stood in is gone afterwards"


def test_what_stands_in_is_an_argument_too(learner, capsys):
    applied(lambda double, n: double(double(double(n))), contract.NotRun("double"))
    assert "9.5" in capsys.readouterr().out
    assert contract.session.records["9.5"]["status"] == "passed"


def test_nothing_stands_in_for_what_has_passed(learner, rejects):
    learner["double"] = lambda x: 2 * x
    doubles(learner["double"])
    assert "course's own" not in rejects(quadrupled, lambda x: learner["double"](x))


def test_a_wrong_answer_is_wrong_with_what_stands_in(learner, rejects):
    learner["double"] = _stub
    told = rejects(quadrupled, eval("lambda x: double(x)", learner))
    assert "quadruple(3) gave 6, wanted 12 (judged with the course's own 9.1" in told


def test_a_stub_stays_missing_with_what_stands_in(learner, not_written):
    learner["double"] = _stub
    not_written(quadrupled, _stub)


def test_what_comes_later_does_not_stand_in(learner, rejects):
    contract.session.reference = {"9.4": "def quadruple(x):\n    return 4 * x"}.get
    told = rejects(doubles, eval("lambda x: quadruple(x / 2)", {"quadruple": _stub} | learner))
    assert "course's own" not in told


@exercise("9.6", points=2)
def doubles_halves(double):
    """doubles halves, too: an instructor's check of an object that another exercise has"""
    expect_number(observe(double, 0.5), 1.0, "double(0.5)")


def test_an_exercise_is_not_answered_by_what_is_lent_of_its_own_name(learner, rejects):
    """`double` is open, and this exercise is about `double`: the course's would earn its points."""
    learner["double"] = lambda x: 0
    assert "course's own" not in rejects(doubles_halves, learner["double"])
    assert "9.6" not in contract.session.stand_ins(
        "9.6"
    ) and "9.1" not in contract.session.stand_ins("9.6")
    assert "9.1" in contract.session.stand_ins("9.5")


def test_of_what_is_lent_only_what_there_is_stands_in(learner, monkeypatch):
    """An instructor's check in the place of the course's may name more than its solution has."""
    monkeypatch.setitem(contract.NAMES, "9.1", ["double", "half"])
    quadrupled(learner["quadruple"])
    assert contract.session.records["9.4"]["status"] == "passed"


def test_a_mistake_that_has_nothing_to_do_with_what_is_open_is_told_plainly(learner, rejects):
    assert rejects(quadrupled, lambda x: 5) == "✗ 9.4 quadruple: quadruple(3) gave 5, wanted 12"


def test_what_stands_in_shows_none_of_its_lines(learner, rejects):
    sources = {"9.1": "def double(x):\n    secret = x.nothing\n    return secret"}
    contract.session.reference = sources.get
    told = rejects(quadrupled, learner["quadruple"])
    assert "AttributeError" in told and "secret" not in told


def test_a_hint_follows_the_message():
    with pytest.raises(CheckFailed, match=r"^A is wrong; is it transposed\?$"):
        expect(False, "A is wrong", hint="is it transposed?")
    with pytest.raises(CheckFailed, match=r"^A is wrong$"):
        expect(False, "A is wrong", hint="")
    expect(True, "A is wrong", hint="is it transposed?")
