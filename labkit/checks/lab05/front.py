"""Which rows of a table are on the front of cost and quality, and what is taken for it."""

from typing import NamedTuple

from labkit.checks.lab05 import frames
from labkit.contract import CheckFailed, expect


class Answer(NamedTuple):
    """What `pareto` was given and what it gave: columns, row labels, names of cost and quality."""

    call: str
    given: dict
    index: list
    found: dict
    labels: list
    cost: str
    quality: str

    @property
    def rows(self):
        """(name, cost, quality) of each row that was given."""
        names = ("run", self.cost, self.quality)
        return list(zip(*(self.given[name] for name in names), strict=True))

    def note_of(self, name):
        """What the column note holds beside run `name`."""
        return self.given["note"][self.given["run"].index(name)]


def answer(got, given, index, names, call):
    """The Answer in the probe's data `got`; CheckFailed unless each row is one that was given."""
    found = frames.columns(got, given, call)
    for name in found["run"]:
        hint = "; where keeps every row: use frame[mask]" if name is None else ""
        known = name in given["run"]
        expect(known, f"{call}: column run holds {name!r}, which no row of frame has{hint}")
    twice = len(set(found["run"])) < len(found["run"])
    expect(not twice, f"{call}: a row comes twice")
    return Answer(call, given, index, found, got["labels"], *names)


def expect_scored(answers):
    """No row without a score is kept."""
    for one in answers:
        failed = [name for name, _, quality in one.rows if quality != quality]
        extra = [name for name in one.found["run"] if name in failed]
        told = f"{one.call}: {(extra or [''])[0]} has no {one.quality} (NaN) and stays"
        expect(not extra, f"{told}: a run without a score is on no front")


def expect_whole(answers):
    """The rows that are kept are as they were, with their labels."""
    for one in answers:
        for k, name in enumerate(one.found["run"]):
            at = one.given["run"].index(name)
            for column, cells in one.given.items():
                was, now = cells[at], one.found[column][k]
                same = now == was or (now is None and was != was)
                told = f"{one.call}: {column} of {name} is {now!r}, it was {was!r}"
                expect(same, f"{told}: leave the rows as they are")
            told = f"{one.call}: the label of {name} is {one.labels[k]!r}, it was {one.index[at]!r}"
            hint = "keep the labels: without reset_index, set_index, ignore_index"
            expect(one.labels[k] == one.index[at], f"{told}: {hint}")


def expect_front(answers):
    """Exactly the right rows are there; a mistake that explains every answer is named."""
    answers = [(one, [row for row in one.rows if row[2] == row[2]]) for one in answers]
    told = [({*one.found["run"]} & {name for name, *_ in rows}, rows) for one, rows in answers]
    wrong = [k for k, (names, rows) in enumerate(told) if names != set(front(rows))]
    if not wrong:
        return
    whole = [[r for r in rows if one.note_of(r[0]) is not None] for one, rows in answers]
    if all(names == set(front(rows)) for (names, _), rows in zip(told, whole, strict=True)):
        hint = "dropna(subset=[quality]) looks at one column"
        raise CheckFailed(f"rows with a hole in another column are gone: {hint}")
    for message in mistakes(told[0][1]):
        if all(_explains(names, mistakes(rows)[message]) for names, rows in told):
            raise CheckFailed(f"{answers[wrong[0]][0].call}: {message}")
    (one, rows), (names, _) = answers[wrong[0]], told[wrong[0]]
    shown = {a: f"{a} ({one.cost} {c}, {one.quality} {q})" for a, c, q in rows}
    for name in sorted(names - set(front(rows))):
        raise CheckFailed(f"{one.call}: {shown[name]} stays; {why_extra(name, rows, shown)}")
    for name in sorted(set(front(rows)) - names):
        raise CheckFailed(f"{one.call}: {shown[name]} is gone; {why_lost(name, rows)}")


def _explains(names, guesses):
    return any(names == set(guess) for guess in guesses)


def beats(c, q, c2, q2):
    """Whether a row of cost c2 and quality q2 beats one of c and q."""
    return c2 <= c and q2 >= q and (c2, q2) != (c, q)


WRONG = {  # what is taken for `beats`, with the mistake's name
    "a row that ties in one and is better in the other beats too: <= and >=, one of them strict": (
        lambda c, q, c2, q2: c2 < c and q2 > q
    ),
    "equal rows do not beat each other: keep both, so one of the two has to be strictly better": (
        lambda c, q, c2, q2: c2 <= c and q2 >= q
    ),
    "at equal cost the one of higher quality beats: >= and <=, and one of them strict": (
        lambda c, q, c2, q2: c2 < c and q2 >= q
    ),
    "at equal quality the cheaper one beats: >= and <=, and one of them strict": (
        lambda c, q, c2, q2: c2 <= c and q2 > q
    ),
    "quality is turned round: high is good": lambda c, q, c2, q2: beats(c, -q, c2, -q2),
    "cost is turned round: low is good": lambda c, q, c2, q2: beats(-c, q, -c2, q2),
    "cost and quality are swapped, or both turned round: low cost and high quality are good": (
        lambda c, q, c2, q2: beats(-c, -q, -c2, -q2)
    ),
    "better in one is not enough to beat: it has to be no worse in the other, too": (
        lambda c, q, c2, q2: c2 < c or q2 > q
    ),
}


def front(rows, beats=beats):
    """Names of the rows `(name, cost, quality)` that none beats; a missing quality never stays."""
    rows = [row for row in rows if row[2] == row[2]]
    return [
        name
        for i, (name, c, q) in enumerate(rows)
        if not any(beats(c, q, *other[1:]) for j, other in enumerate(rows) if j != i)
    ]


def mistakes(rows):
    """`{message: names that stay}` of what is taken for the front of these rows."""
    scored = [row for row in rows if row[2] == row[2]]
    high, low = max(q for *_, q in scored), min(c for _, c, _ in scored)
    right, by_values = front(rows), {}
    for name, c, q in scored:
        by_values.setdefault((c, q), []).append(name)
    orders = (scored, sorted(scored, key=lambda row: (row[1], -row[2])))
    firsts = [names[0] for names in by_values.values()]
    lasts = [names[-1] for names in by_values.values()]
    twin = "of two equal rows one is gone (drop_duplicates?): keep both"
    return {message: [front(rows, rule)] for message, rule in WRONG.items()} | {
        twin: [[name for name in right if name in some] for some in (firsts, lasts)],
        "every row beats itself so: one of the two has to be strictly better": [[]],
        "these are the beaten rows; the others stay: turn the mask round, with ~": [
            [name for name, *_ in scored if name not in right]
        ],
        "nothing is left out": [[name for name, *_ in scored]],
        "that is the best alone; the cheaper ones that none beats stay, too": [
            [name for name, _, q in scored if q == high],
            [next(name for name, _, q in scored if q == high)],
        ],
        "that is the cheapest alone; the better ones that none beats stay, too": [
            [name for name, c, _ in scored if c == low],
            [next(name for name, c, _ in scored if c == low)],
        ],
        "a row is compared with its neighbour alone, by cost or in the table: take all others": [
            *(_above(order, neighbour) for order in orders for neighbour in (True, False)),
        ],
        "only rows of one cost, or of one quality, are compared: take all others": [
            [a for a, c, q in scored if q == max(y for _, x, y in scored if x == c)],
            [a for a, c, q in scored if c == min(x for _, x, y in scored if y == q)],
        ],
        "one row alone, or the best by one figure such as a ratio: all that none beats stay": [
            *([name for name, c, q in scored if of(c, q) == best] for of, best in _figures(scored)),
            *([name] for name, *_ in scored),
        ],
    }


def _above(rows, neighbour):
    """Names of rows whose quality is no lower than that of the row before, or of any before."""
    return [
        name
        for k, (name, _, q) in enumerate(rows)
        if all(q >= other[2] for other in rows[max(0, k - 1) if neighbour else 0 : k])
    ]


def _figures(scored):
    """(function of cost and quality, its highest value) of what is taken for a single figure."""
    for of in (lambda c, q: q / c, lambda c, q: q - c):
        yield of, max(of(c, q) for _, c, q in scored)


def why_extra(name, rows, shown):
    """Why row `name` does not belong on the front."""
    cost, quality = next((c, q) for a, c, q in rows if a == name)
    by = next(row[0] for row in rows if beats(cost, quality, *row[1:]))
    return f"{shown[by]} is no worse in both and better in one"


def why_lost(name, rows):
    """Why row `name` does belong on the front."""
    own = next((c, q) for a, c, q in rows if a == name)
    twin = next((a for a, c, q in rows if (c, q) == own and a != name), None)
    if twin:
        return f"{twin} is equal in both, and equal rows do not beat each other: keep both"
    return "no other row is as good in both and better in one"
