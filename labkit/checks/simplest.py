"""Mistakes without a name: told by the smallest case in which they show."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from labkit.contract import CheckFailed


@contextlib.contextmanager
def unnamed(say: Callable[[], None]) -> Iterator[None]:
    """Where what is inside fails and no mistake is named, `say()` may raise what tells more."""
    try:
        yield
    except CheckFailed as failure:
        if failure.bare:
            say()
        raise


KEPT = "asked the same twice, it gives two answers: is something kept from call to call, such as "
KEPT += "in a default argument that is a dict or a list, or drawn by chance?"


def simplest(cases):
    """Where what is inside fails and no mistake is named, tell the first of `cases` that fails too.

    A case is `(call, answer, wanted, why)`: `answer()` gives a number, a list of them or a tensor,
    and `why` says in a few words how the wanted one comes about.
    """

    def say():
        for call, answer, wanted, why in cases:
            try:
                got = _listed(answer())
            except CheckFailed:  # it does not run there: the first failure says more
                continue
            right = _listed(wanted)
            if not _same(got, right):
                if _shown(got) != _again(answer):
                    raise CheckFailed(f"{call}: {KEPT}") from None
                got, right, at = _first_wrong(got, right)
                told = f"{call} gave {_shown(got)}{at}, wanted {_shown(right)}: {why}"
                raise CheckFailed(f"in a small case, {told}") from None

    return unnamed(say)


def _again(answer):
    """What a second answer looks like; None where there is none."""
    try:
        return _shown(_listed(answer()))
    except CheckFailed:
        return None


def _first_wrong(got, wanted):
    """Both lists; of long ones their first numbers that differ, and where these stand."""
    if len(got) != len(wanted) or len(got) < 9:
        return got, wanted, ""
    k = next(k for k in range(len(got)) if not _same(got[k : k + 1], wanted[k : k + 1]))
    return got[k : k + 1], wanted[k : k + 1], f" at place {k}"


def _listed(value):
    if isinstance(value, torch.Tensor):
        value = value.flatten().tolist()
    return list(value) if isinstance(value, list | tuple) else [value]


def _same(got, wanted):
    def near(a, b):
        return type(a) in (int, float) and abs(a - b) <= 1e-3 * max(1e-3, abs(b))

    return len(got) == len(wanted) and all(map(near, got, wanted))


def _shown(values):
    told = [f"{v:.4g}" if type(v) is float else str(v) for v in values]
    return told[0] if len(told) == 1 else f"[{', '.join(told)}]"
