"""Judge an answer case by case, and name the mistake if it is wrong.

`expect_right` compares an answer with an independent formula. Where the two differ, it looks for
the mistake in `labNN.toml`. Each row there has a piece of the course's own solution, what people
write instead, and the message for them:

    ["2.1"."alpha / r"]
    "alpha" = "alpha is not divided by r"

The learner sees the message of the row whose rewritten solution gives the learner's results. If no
row fits, the first failing case is shown, so put small cases first.
"""

import base64
import functools
import math
import re
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from labkit import contract
from labkit.contract import CheckFailed, Session, observe

SECONDS = 0.5  # of computing, to look for the mistake; then the failing case is shown
LONGEST = 300  # characters of a message


class Case(NamedTuple):
    """One call: its description for the learner, its inputs, the result and the right result."""

    where: str
    data: tuple
    got: dict
    right: dict


class Raised(str):
    """The text of an exception, used as the result of the call that raised it."""


def expect_right(
    answer: object, cases: dict, right: Callable, probe: Callable | None = None, tol: float = 1e-4
) -> None:
    """Raise CheckFailed unless the answer is right in all `cases`, `{where: inputs}`.

    `answer(*inputs)` must equal `right(*inputs)`: tensors and floats within `tol` of their size,
    everything else exactly. `answer` may be a tuple of objects that the check receives. With a
    `probe`, `probe(*answer, *inputs)` is observed instead. It returns facts, `{noun: value}`, which
    are compared one by one. `where` begins a sentence, such as "on x of shape (4, 5)".
    """
    answers, given = answer if isinstance(answer, tuple) else (answer,), contract.session.objects
    names = [next((name for name, one in given.items() if one is mine), "") for mine in answers]

    def run(ask, objects, data):
        return _outcome(ask, (probe, *objects) if probe else objects, data)

    judged = [
        Case(where, data, run(observe, answers, data), _facts(right(*data)))
        for where, data in cases.items()
    ]
    wrong = [case for case in judged if _first_wrong(case, tol) is not None]
    if wrong:
        quiet = Session(seed=contract.session.seed)  # an answer of the course's own runs here
        judged.sort(key=lambda case: case is not wrong[0])
        local = functools.partial(run, lambda f, *data: quiet.call(f, data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = _mistake(judged, local, names, tol)
        raise CheckFailed(describe(wrong[0], message, tol), bare=not message)


def _outcome(ask, objects, data):
    """The facts that a call returns; if it raises, the text of the exception."""
    try:
        return _facts(ask(*objects, *data))
    except CheckFailed as failure:
        return {"": Raised(failure)}


def _facts(value):
    """A result as `{noun: value}`."""
    return value if isinstance(value, dict) else {"the result": value}


def _first_wrong(case, tol):
    """The noun of the first wrong fact; None if all facts are right."""
    if "" in case.got:
        return ""
    return next((k for k, v in case.right.items() if not same(case.got.get(k), v, tol)), None)


# --- which mistake -------------------------------------------------------------------------


def _mistake(cases, run, names, tol):
    """The message of the row that explains most wrong facts in the cases; "" if none does."""
    best, message, until = (False, 0), "", time.thread_time() + SECONDS
    for text, objects in rewritten(names):
        score = _explained(cases, functools.partial(run, objects), tol)
        if score > best:
            best, message = score, text
        if time.thread_time() > until:  # a later row might have been better than half of one
            return message if best[0] else ""
    return message


def rewritten(names: list[str]) -> Iterator[tuple[str, tuple]]:
    """Yield `(message, objects called names)` for each row, from the rewritten solution.

    In a copy of the course without solutions, nothing is yielded.
    """
    id = contract.session.exercise
    source = contract.session.reference and contract.session.reference(id)
    for piece, ways in mistakes(id).items() if source else ():
        for new, message in ways.items():
            space = contract.defined_by(source.replace(piece, new))
            yield message, tuple(space[name] for name in names)


def _explained(cases, run, tol):
    """`(whether it alone explains all wrong facts, how many it explains)`; (False, 0) for none.

    A rewritten solution that is wrong where the learner is right explains nothing. If it is wrong
    in another way, it may be one of two mistakes, unless equal numbers elsewhere are an accident.
    """
    explained, others, rich = 0, 0, False
    for number, case in enumerate(cases):
        first, gives = _first_wrong(case, tol), run(case.data)
        for noun in [""] if "" in gives or "" in case.got else case.right:
            mine, its, right = case.got.get(noun), gives.get(noun), case.right.get(noun)
            if same(its, mine, tol):
                explained += not same(mine, right, tol)
                rich |= number == 0 and noun == first and _is_rich(mine)
            elif same(mine, right, tol):
                return False, 0
            elif not same(its, right, tol):
                others += 1
            if number == 0 and noun == first and not explained:
                return False, 0  # it does not explain what the learner will read first
    return (not others, explained) if not others or rich else (False, 0)


def _is_rich(value):
    """Whether two mistakes can't give this value by chance: several numbers, or a large one."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and value.numel() > 4  # not the 2 x 2 of an example
    return type(value) is int and abs(value) > 999


@functools.cache
def read(path: Path) -> dict:
    """Read a TOML file of the checks, {} without one; student copies have it packed as `.b64`."""
    packed = path.with_suffix(".b64")
    if packed.exists():
        return tomllib.loads(base64.b64decode(packed.read_bytes()).decode())
    return tomllib.loads(path.read_text("utf-8")) if path.exists() else {}


def mistakes(id: str) -> dict[str, dict[str, str]]:
    """`{piece of the solution: {what people write there: message}}` for exercise `id`."""
    return read(Path(__file__).parent / f"lab{id.partition('.')[0]:0>2}.toml").get(id, {})


# --- comparison ----------------------------------------------------------------------------


def same(got: object, right: object, tol: float) -> bool:
    """Whether two results are equal: tensors and floats within `tol` of their size.

    NaN equals NaN. Everything else must be equal and of the same type. Two exceptions are equal if
    their texts are; the line of the learner's cell does not count.
    """
    if isinstance(right, torch.Tensor):
        if not isinstance(got, torch.Tensor) or got.shape != right.shape or got.is_complex():
            return False
        got, right = got.double(), right.double()
        size = right.nan_to_num(0, 0, 0).abs().max().clamp_min(1e-8) if right.numel() else 1.0
        return bool(torch.isclose(got, right, rtol=0, atol=float(tol * size), equal_nan=True).all())
    if isinstance(right, dict):
        alike = isinstance(got, dict) and got.keys() == right.keys()
        return alike and all(same(got[key], right[key], tol) for key in right)
    if isinstance(right, list | tuple):
        alike = isinstance(got, list | tuple) and len(got) == len(right)
        return alike and all(same(g, r, tol) for g, r in zip(got, right, strict=True))
    if type(right) is float and type(got) is float:
        near = math.isclose(got, right, rel_tol=tol, abs_tol=tol * 1e-8)
        return near or (math.isnan(got) and math.isnan(right))
    if isinstance(right, Raised) and isinstance(got, Raised):
        return got.partition(" (line ")[0] == right.partition(" (line ")[0]
    return type(got) is type(right) and got == right


# --- wording -------------------------------------------------------------------------------


def describe(case: Case, message: str, tol: float) -> str:
    """The message for the learner: the case, the wrong and the right result, and the mistake."""
    noun = _first_wrong(case, tol)
    got, right = case.got.get(noun), case.right.get(noun)
    if noun == "":  # what an exception may mean in general is less than a message says
        raised = r"^it raised (\w+): (.*?)(; .*| \(line .*)?$"
        said = re.sub(raised, r"it raised \1 (\2)", got) if message else got
    else:
        said = f"{noun} {_difference(got, right, bool(message))}"
        said = said.replace(") should be ", ") should ") if noun.endswith("()") else said
    if got is None and noun in ("the result", "the return value"):
        said = f"{noun} is None" + ("" if message else ": `return` is missing or never reached")
    comma = "," if case.where else ""
    text = f"{case.where}{comma} {said}".strip()
    if message and len(text) + len(message) > LONGEST - 2:
        text = case.where
    text = f"{text}: {message}" if message else text
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2].rsplit(' ', 1)[0]} …"


def _difference(got, right, named):
    """How a value differs from the right one, in a few words if the mistake is `named`."""
    if isinstance(right, torch.Tensor):
        return _unlike(got, right, named)
    if type(got) is not type(right):
        call = ": call .item()" if isinstance(got, torch.Tensor) and got.numel() == 1 else ""
        return f"should be {_kind(right)}, not {_kind(got)}" + ("" if named else call)
    if type(right) is float and not named and abs(got - right) < 2e-3 * abs(right):
        return f"is nearly right, {_short(got)} instead of {_short(right)}: is it rounded?"
    if isinstance(right, list) and all(type(x) is str for x in [*got, *right]):
        missing, extra = ([x for x in a if x not in b] for a, b in ((right, got), (got, right)))
        if missing or extra:
            verb, found, most = "include" if missing else "not include", missing or extra, 3 - named
            return f"should {verb} {', '.join(found[:most])}" + (", …" if len(found) > most else "")
    if isinstance(right, dict):
        key = next((k for k in right if not same(got.get(k), right[k], 1e-4)), None)
        return f"at {key!r} {_difference(got.get(key), right[key], named)}" if key else "is wrong"
    if (got, right) == ("changed", "unchanged"):
        return "should not change"
    return f"should be {_short(right)}, not {_short(got)}"


def _unlike(got, right, named):
    """How a tensor differs from the right one."""
    if not isinstance(got, torch.Tensor):
        return f"should be a tensor, not {_kind(got)}"
    if got.shape != right.shape:
        hint = ": is something transposed?" if got.shape == right.shape[::-1] and not named else ""
        return f"should have shape {tuple(right.shape)}, not {tuple(got.shape)}{hint}"
    if got.is_complex():
        return "should contain real numbers, not complex ones"
    if right.numel() <= 4 and _short(got) != _short(right):
        return f"should be {_short(right)}, not {_short(got)}"
    if named:
        return "is wrong"
    return _relation(got.double(), right.double())


def _relation(got, right):
    """A simple relation between wrong and right numbers, or else where they differ most."""
    factor = ((got * right).sum() / right.square().sum().clamp_min(1e-30)).item()
    if not torch.isfinite(got).all():
        return "contains NaN or infinity"
    if same(got, -right, 1e-3):
        return "has the wrong sign"
    if right.ndim > 1 and same(got, right.mT, 1e-3):
        return "is transposed"
    if same(got, right, 1e-2):
        return "is close, but something was rounded on the way, for example to 16 bits"
    if same(got, factor * right, 1e-3):
        return f"is {factor:.3g} times as large as it should be" if factor else "is all zeros"
    worst = (got - right).abs().argmax()
    yours, wanted = got.flatten()[worst], right.flatten()[worst]
    place = [int(i) for i in torch.unravel_index(worst, right.shape)]
    return f"is {yours:.4g} at {place}, where it should be {wanted:.4g} (the largest error)"


def _kind(value):
    """A value's type, in words."""
    words = {"Tensor": "a tensor", "int": "an int", "str": "a string", "bool": "True or False"}
    words |= {"NoneType": "None", "list": "a list or tuple"}
    return words.get(type(value).__name__, f"a {type(value).__name__}")


def _plain(tensor):
    """A tensor as a number or nested lists, with few digits; whole numbers without a point."""
    if tensor.numel() > 1:
        return [_plain(row) for row in tensor]
    number = float(f"{tensor.item():.4g}")
    return int(number) if number.is_integer() else number


def _short(value):
    """A value in a few characters."""
    if isinstance(value, torch.Tensor):
        value = _plain(value) if value.numel() else "an empty tensor"
    text = f"{value:,}" if type(value) is int else value
    text = f"{value:.6g}".replace("nan", "NaN") if type(value) is float else text
    return str(text) if len(str(text)) <= 90 else f"{str(text)[:87]}…"
