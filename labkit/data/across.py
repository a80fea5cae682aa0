"""Find faults across rows: duplicates, contradictions, leaks, imbalance."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from statistics import median

from labkit.data.shapes import Example, folded

Found = tuple[str, list[int], str]  # an id of `meaning.MEANING`, lines, a detail
LONGEST, FEW = 30, 3  # words in a label; a label with fewer rows is rare


def of(examples: list[Example], part: bool = False) -> Iterator[Found]:
    """Faults across the rows of one file; with `part`, the file is held out and may be small."""
    whole = [e for e in examples if e.answer.strip() and e.prompt.strip()]
    yield from _twice(whole)
    yield from _labels(whole, part)
    chats = [e for e in whole if e.messages]
    yield from _unlike(chats)
    yield from _systems(chats)
    if len(examples) < 20 and not part:
        yield "few_rows", [e.line for e in examples], f"{len(examples)} rows"


def between(train: list[Example], test: list[Example]) -> Iterator[Found]:
    """Faults between training and test rows; line numbers refer to the test file."""
    trained = {e.key: e.line for e in reversed(train) if e.key}
    both = [e for e in test if e.key in trained]
    if both:
        pair = f"line {both[0].line} repeats line {trained[both[0].key]} of the training data"
        yield "leak", [e.line for e in both], pair
    known = labels(train)
    unseen = [e for e in test if known and e.answer.strip() and folded(e.answer) not in known]
    if unseen:
        yield "unseen_label", [e.line for e in unseen], repr(unseen[0].answer[:40])


def labels(examples: list[Example]) -> dict[str, int]:
    """Count the rows per answer, case folded, most frequent first; {} if answers are free text.

    Labels have at most 30 words, with at least ten rows in all and four per label on average.
    """
    answers = [folded(e.answer) for e in examples if e.messages and e.answer.strip()]
    counts = Counter(answers)
    short = all(len(label.split()) <= LONGEST for label in counts)
    if len(answers) < 10 or not short or len(answers) < 4 * len(counts):
        return {}
    return dict(counts.most_common())


def _twice(examples):
    """Find rows that repeat an earlier row, and prompts (system message included) with several."""
    seen, repeated, groups = {}, [], defaultdict(list)
    for e in examples:
        asked = folded("\n".join(m["content"] for m in e.messages[:-1])) or e.key
        pair = (asked, folded(e.answer))
        if pair in seen:
            repeated.append((e.line, seen[pair]))
        seen.setdefault(pair, e.line)
        groups[asked].append(e)
    if repeated:
        yield "duplicate", [line for line, _ in repeated], "line {} is line {}".format(*repeated[0])
    different = [g for g in groups.values() if g[0].messages and len(_answers(g)) > 1]
    if different:
        first = " and ".join(repr(answer[:30]) for answer in _answers(different[0])[:2])
        yield "contradiction", sorted(e.line for g in different for e in g), first


def _answers(group):
    return list({folded(e.answer): e.answer.strip() for e in group}.values())


def _labels(examples, part):
    counts = labels(examples)
    spelled = defaultdict(Counter)
    for e in examples if counts else []:
        spelled[folded(e.answer)][e.answer.strip()] += 1
    usual = {label: forms.most_common(1)[0][0] for label, forms in spelled.items()}
    other = [e for e in examples if counts and e.answer.strip() != usual[folded(e.answer)]]
    if other:
        pair = f"{other[0].answer.strip()!r} and {usual[folded(other[0].answer)]!r}"
        yield "spelling", [e.line for e in other], pair
    if not counts or part:
        return
    ranked = [pair for pair in counts.items() if pair[1] >= FEW] or list(counts.items())
    (most, n), (least, m) = ranked[0], ranked[-1]  # rare ones follow below
    line = f"{n} of {len(examples)} rows say {most!r}"
    if len(counts) == 1:
        yield "one_answer", [e.line for e in examples], line
    elif n > 0.8 * len(examples) or n >= 10 * m:
        lines = [e.line for e in examples if folded(e.answer) == most]
        yield "imbalance", lines, f"{line}, {m} say {least!r}"
    rare = [e for e in examples if counts[folded(e.answer)] < FEW]
    if rare:
        names = sorted({e.answer.strip() for e in rare})
        yield "rare_label", [e.line for e in rare], ", ".join(names)[:80]


def _unlike(examples):
    """Find answers that differ from nearly all others: not JSON, unfinished or very long."""
    if len(examples) < 10:
        return
    for name, is_usual, asked in (
        ("broken_json", _is_json, examples),
        ("unfinished", _is_finished, [e for e in examples if len(e.answer.split()) > 3]),
    ):
        odd = [e for e in asked if not is_usual(e.answer.strip())]
        if odd and len(asked) >= 10 and len(odd) <= 0.1 * len(asked):
            yield name, [e.line for e in odd], repr(odd[0].answer.strip()[-40:])
    usual = median(len(e.answer) for e in examples)
    long = [e for e in examples if len(e.answer) > max(2000, 20 * usual)]
    if long:
        yield "far_longer", [e.line for e in long], f"{len(long[0].answer)} characters"


def _is_json(text):
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _is_finished(text):
    return not text[-1].isalnum()


def _systems(examples):
    """Find rows whose system message (or lack of one) differs from that of most rows."""
    systems = [_system(e) for e in examples]
    if len(set(systems)) < 2:
        return
    usual, n = Counter(systems).most_common(1)[0]
    if len(examples) >= 10 and n >= 0.5 * len(examples):
        odd = [e.line for e, system in zip(examples, systems, strict=True) if system != usual]
        yield "system_differs", odd, f"most have {usual[:40]!r}" if usual else "most have none"


def _system(example):
    first = example.messages[0]
    return folded(first["content"]) if first["role"] == "system" else ""
