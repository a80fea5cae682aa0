"""Advice on what a learner's code raises, or says over all calls at once."""

from labkit.contract import CheckFailed, observe


def asked(call, hints, f, *data):
    """`observe(f, *data)`; what it raises names the call first, and a hint last.

    `hints` maps a piece of the message to advice; the first that fits is given.
    """
    try:
        return observe(f, *data)
    except CheckFailed as failure:
        told = str(failure)
        hint = next((advice for sign, advice in hints.items() if sign in told), "")
        begin = f"{call}: " * bool(call)
        raise CheckFailed(f"{begin}{told}{'; ' if hint else ''}{hint}") from None
