"""Hold out rows so that no prompt occurs on both sides of the split."""

import hashlib

from labkit.data.shapes import Example


def split(
    examples: list[Example], share: float = 0.2, seed: int = 0, most: int = 200
) -> tuple[list[Example], list[Example]]:
    """Split into (train, held out), `share` of the rows but at most `most`, grouped by prompt."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.key, []).append(example)
    wanted = min(most, round(share * len(examples)))
    test: set[str] = set()
    taken = 0
    for key in sorted(groups, key=lambda key: _draw(key, seed)):
        if taken >= wanted or len(test) == len(groups) - 1:  # leave one group for training
            break
        test.add(key)
        taken += len(groups[key])
    train = [e for e in examples if e.key not in test]
    return train, [e for e in examples if e.key in test]


def _draw(key, seed):
    return hashlib.sha256(f"{seed} {key}".encode()).digest()
