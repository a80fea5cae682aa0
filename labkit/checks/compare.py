"""What a check asks with, and comparisons that say what is wrong.

Draw inputs with `randn` and `draw`, from one `generator()` of `labkit.contract`. Then

- `ask` calls the learner's code: as `observe`, and what it raises names the call;
- `expect_close` compares a tensor, `expect_number` a number: their guesses name a misconception;
- `expect_shape`, `expect_kind` look at the form alone; `expect` of `labkit.contract` at the rest.

With several cases: `every` tells the mistakes of all of them, each once; `likeliest` tells one, for
cases that show the same few mistakes; `expect_numbers` compares numbers that show the same mistake,
`expect_numbers_or_first` those that may show several.
What no guess names is told by `relations` (what was done to the right numbers
or which input is forgotten) and `simplest` (the smallest case in which it shows), in this order.
What fails in a `with part():` of `labkit.contract` lets the check go on.
"""

import contextlib
import re

import torch

from labkit.checks.compound import AND, RIGHT, multiple, then
from labkit.checks.relations import close, difference
from labkit.checks.shapes import misshapen
from labkit.contract import CheckFailed, expect, generator, observe, part
from labkit.contract.hints import GUESSES, HINTS


def randn(*shape, rng=None):
    """Standard normal numbers of `shape` from `rng`, else from a new generator of the session."""
    return torch.randn(*shape, generator=rng or generator())


def draw(low, high, rng):
    """An int from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def ask(call, f, *data, hint=""):
    """`observe(f, *data)`; what it raises names the call, if any, first and the hint last.

    `hint` is advice, or `{piece of the message: advice}`, of which the first that fits is given.
    """
    try:
        return observe(f, *data)
    except CheckFailed as failure:
        told = _advised(str(failure), hint if isinstance(hint, dict) else {"": hint})
        raise CheckFailed(f"{call}: {told}" if call else told, bare=hint == "") from None


def _advised(told, hints):
    """The text of a failure with the check's advice, in place of what is said of any such one.

    Advice for any text, "", takes the place of guesses alone, and follows what else is said.
    """
    sign = next((sign for sign in hints if sign in told), "")
    advice = hints.get(sign, "")
    if not advice or (not sign and "it raised NameError" in told):  # what it is about was not met
        return told
    general = next((text for text in HINTS.values() if f"; {text}" in told), "")
    if general and (sign or general in GUESSES):
        told = told.replace(f"; {general}", "", 1)
    return f"{told}; {advice}"


def every(judge, cases):
    """`judge(*case)` for all cases, as parts of a check; returns what it gave where it didn't fail.

    Of the failures those are told that name a mistake, each once; if none does, the first alone.
    """
    given, failures = [], {}
    for case in cases:
        try:
            given.append(judge(*case))
        except CheckFailed as failure:
            failures.setdefault(_kernel(str(failure)), failure)
    named = [failure for failure in failures.values() if not failure.bare]
    for failure in named or list(failures.values())[:1]:
        with part():
            raise failure
    return given


def _kernel(text):
    """What is the same in a message for another case: without its call and its numbers."""
    if raised := re.search(r"it raised \w+", text):
        return raised[0]
    return re.sub(r"\d+", "", re.split(r": | gave | has shape | holds ", text)[-1])


@contextlib.contextmanager
def likeliest():
    """Yields `case`: of all that fails in a `with case():`, the first that names a mistake counts.

    Where none does, the first that fails counts. For cases that show the same few mistakes.
    """
    faults = []

    @contextlib.contextmanager
    def case():
        try:
            yield
        except CheckFailed as failure:
            faults.append(failure)

    yield case
    if faults:
        raise min(faults, key=lambda fault: fault.bare)


def expect_close(got, wanted, call, guesses=None, tol=1e-4, related=False):
    """Raise CheckFailed unless tensor `got` equals `wanted` to `tol`, relative to its size.

    `call` is how the learner would write what was asked. `guesses` maps a misconception to the
    tensor that it gives: when `got` is that tensor, the misconception is the message. `related`
    looks, where none is, for what was done to the right numbers, too.
    """
    expect_shape(got, wanted.shape, call)
    got, wanted = got.double(), wanted.double()
    expect(torch.isfinite(got).all(), f"{call} holds NaN or infinity")
    if close(got, wanted, tol):
        return
    for near in (tol, max(tol, min(30 * tol, 3e-3))):  # an epsilon more or less is the same one
        for message, guess in (guesses or {}).items():
            two = near > tol and AND in message  # two mistakes are soon near by accident
            if two or guess.shape != got.shape or close(wanted, guess.double(), near):
                continue
            if close(got, guess.double(), near):
                raise CheckFailed(f"{call}: {message}")
    told, named = difference(got, wanted, related)
    raise CheckFailed(f"{call}: {told}", bare=not named)


def expect_related(*args, **kwargs):
    """`expect_close` that looks for what was done to the right numbers, too."""
    expect_close(*args, related=True, **kwargs)


def expect_shape(got, shape, call):
    """Raise CheckFailed unless `got` is a tensor of `shape`."""
    if not isinstance(got, torch.Tensor):
        raise CheckFailed(f"{call} gave {kind_of(got)}, wanted a tensor of shape {tuple(shape)}")
    if got.shape != shape:
        hint = misshapen(tuple(got.shape), tuple(shape))
        raise CheckFailed(f"{call} has shape {tuple(got.shape)}, wanted {tuple(shape)}{hint}")
    expect(not got.is_complex(), f"{call} holds complex numbers, wanted real ones")


def expect_number(got, wanted, call, guesses=None, tol=1e-4):
    """Raise CheckFailed unless `got` is a Python number equal to `wanted` (ints exactly).

    `guesses` maps a misconception to the number that it gives.
    """
    if isinstance(got, torch.Tensor) and got.numel() == 1:
        raise CheckFailed(f"{call} gave a tensor, wanted a Python number: use .item()")
    if isinstance(got, torch.Tensor):
        raise CheckFailed(f"{call} gave a tensor of shape {tuple(got.shape)}, wanted one number")
    if type(got) not in (int, float):
        several = ": one number, of all together" if isinstance(got, list | dict) else ""
        raise CheckFailed(f"{call} gave {kind_of(got)}, wanted {kind_of(wanted)}{several}")
    if type(wanted) is int and type(got) is float and got == wanted:
        raise CheckFailed(f"{call} gave {got!r}, wanted the int {wanted}: use // or int()")
    if got == wanted if type(wanted) is int else _near(got, wanted, tol):
        return
    told = f"{call} gave {_number(got)}, wanted {_number(wanted)}"
    for message, guess in (guesses or {}).items():
        exact = type(wanted) is type(guess) is int
        meant = got == guess if exact else _near(got, guess, tol)
        if meant and guess != wanted:
            raise CheckFailed(f"{told}: {message}")
    raise CheckFailed(told + _displayed(got, wanted), bare=True)


def _displayed(got, wanted):
    """What to say of a number that is right but for how it is displayed."""
    units = {"thousands": 1e3, "millions": 1e6}
    for name in [name for name, unit in units.items() if _near(got, wanted / unit, 1e-3)]:
        return f": these are {name}; the number itself is wanted" if wanted else ""
    if type(wanted) is int or not wanted:
        return ""
    if _near(got, 100 * wanted, 1e-3):
        return ": that is in percent; the number itself is wanted"
    if type(got) is int and wanted - 1 < got < wanted + 1:
        return ": that is rounded to a whole number; the number itself is wanted"
    if any(got == round(wanted, n) for n in range(type(got) is float, 6)):
        return ": that is rounded; the number itself is wanted"
    return ""


def expect_kind(got, call):
    """Raise CheckFailed unless `got` is a Python number."""
    expect_number(got, got if type(got) in (int, float) else 1.0, call)


def expect_numbers(cases, tol=1e-4, sizes=()):
    """`expect_number` of several `(call, got, wanted, guesses)` that show the same mistakes.

    A guess is told when it explains each of them that fails and that has it. One that gives the
    right ones as well comes first: a small int is soon right by accident. Where none is told, a
    fifth item of the first that fails is: text on what the wanted number is made of. `sizes`, a
    `{name: size}` a case, names a factor of the right numbers, and what is done to them.
    """
    failing, made = [], ()
    for call, got, wanted, guesses, *parts in cases:
        try:
            expect_number(got, wanted, call, tol=tol)
        except CheckFailed as failure:
            if not failure.bare:
                raise
            made = made if failing else parts
            failing.append((failure, got, guesses | ({RIGHT: wanted} if sizes else {})))
    if not failing:
        return
    known = {m: None for _, _, guesses in failing for m in guesses if m != RIGHT}
    alike = min(1e-3, 10 * tol)
    told = [(got, guesses) for _, got, guesses in failing]
    known = [m for m in known if _explains(m, told, alike)]
    every_one = [(got, guesses) for _, got, _, guesses, *_ in cases]
    whole = [m for m in known if _explains(m, every_one, alike)]
    known = [m for m in known if AND not in m or m in whole]  # two mistakes are far-fetched
    same = len({got for _, got, *_ in cases}) == 1 and len({case[2] for case in cases}) > 2
    if same and all(AND in message for message in (whole or known)[:1]):
        raise CheckFailed(f"{failing[0][0]}: it is the same number whatever is given")
    if known:
        raise CheckFailed(f"{failing[0][0]}: {(whole or known)[0]}")
    if more := then(told):
        raise CheckFailed(f"{failing[0][0]}: {more}")
    factor, named = multiple([(got, wanted) for _, got, wanted, *_ in cases], sizes)
    made = (factor,) if factor else made
    raise CheckFailed("; ".join([str(failing[0][0]), *made]), bare=not named)


def _explains(message, told, tol):
    """Whether a guess gives, to `tol`, each number of `told`, `(number, guesses)`, that has it."""
    pairs = [(got, guesses[message]) for got, guesses in told if message in guesses]
    sizes = [abs(guess) for _, guess in pairs if type(guess) is float]
    least = 1e-6 * max(sizes, default=0.0)  # where a guess is 0, rounding gave 1e-8

    def gives(got, guess):
        if type(got) is type(guess) is int:
            return got == guess
        floats = type(got) is type(guess) is float
        return _near(got, guess, tol) or (floats and abs(got - guess) < least)

    return all(gives(got, guess) for got, guess in pairs)


def expect_numbers_or_first(cases, tol=1e-4, sizes=()):
    """`expect_numbers`; where no guess explains all, the first that one explains is told."""
    try:
        expect_numbers(cases, tol, sizes)
    except CheckFailed as failure:
        for call, got, wanted, guesses, *_ in cases if failure.bare else ():
            try:
                expect_number(got, wanted, call, guesses, tol)
            except CheckFailed as one:
                if not one.bare:
                    raise one from None
        raise


def _near(got, wanted, tol):
    """Whether two numbers are equal to `tol`, relative to the second; an int may be of any size."""
    try:
        return got == wanted or abs(got - wanted) <= tol * max(1e-8, abs(wanted))
    except OverflowError:  # an int that no float holds
        return False


def _number(value):
    if type(value) is int:
        return f"{value:,}" if value.bit_length() < 200 else f"an int of {value.bit_length()} bits"
    return f"{value:,.6g}"


def expect_linear(call, run, inputs):
    """Raise CheckFailed unless the tensor `run(*inputs)` is linear in each of `{name: tensor}`.

    For an answer that is wrong anyway: something in it is normalised, squared, cut at zero, added.
    """
    plain = run(*inputs.values())
    for name, tensor in inputs.items():
        unused = close(run(*(inputs | {name: 0 * tensor}).values()), plain, 1e-6)
        expect(not unused, f"{call}: {name} changes nothing; is something else in its place?")
        for factor, told in ((2.0, "twice"), (-1.0, "minus")):
            got = run(*(inputs | {name: factor * tensor}).values())
            linear = close(got, factor * plain, 1e-3)
            hint = "nothing is added to it, squared, normalised or cut off"
            text = f"{call} is not linear in {name}: {told} {name} is not {told} the result"
            expect(linear, f"{text}; {hint}")


def kind_of(value: object) -> str:
    """What kind of thing an answer is, in words."""
    if value is None:
        return "None (is `return` missing?)"
    kind = type(value).__name__
    return {"int": "an int", "str": "text"}.get(kind, f"a {kind}")
