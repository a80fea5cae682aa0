"""What a wrong shape says of how it came about."""

import math


def misshapen(got: tuple, wanted: tuple) -> str:
    """`: …` on the shape of an answer that is not the wanted one; or ""."""
    if got == wanted[::-1]:
        return ": is something transposed?"
    bare = [[n for n in shape if n != 1] for shape in (got, wanted)]
    if bare[0] == bare[1] and len(got) > len(wanted):
        return ": an axis of length 1 is left over, squeeze() takes it away"
    if bare[0] == bare[1] and len(got) < len(wanted):
        return ": an axis of length 1 is lost, keepdim=True keeps it"
    if len(got) == 1 < len(wanted) and got[0] == math.prod(wanted):
        return ": the numbers are all there, and the axes are lost"
    if len(wanted) < len(got) and math.prod(got) == math.prod(wanted):
        return ": the numbers are all there, and an axis too many: flatten or reshape"
    return ""
