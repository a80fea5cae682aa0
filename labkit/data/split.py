"""`split`: rows held out of the training, so that no prompt stands on both sides."""

import hashlib

from labkit.data.shapes import Example


def split(
    examples: list[Example], share: float = 0.2, seed: int = 0, most: int = 200
) -> tuple[list[Example], list[Example]]:
    """(train, held out): of the rows a `share`, `most` at most, and all rows of a prompt together.

    The same rows give the same two parts, in whatever order they stand.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.key, []).append(example)
    wanted = min(most, round(share * len(examples)))
    held: set[str] = set()
    taken = 0
    for key in sorted(groups, key=lambda key: _draw(key, seed)):
        if taken >= wanted or len(held) == len(groups) - 1:  # a group stays to be trained on
            break
        held.add(key)
        taken += len(groups[key])
    train = [e for e in examples if e.key not in held]
    return train, [e for e in examples if e.key in held]


def _draw(key, seed):
    return hashlib.sha256(f"{seed} {key}".encode()).digest()
