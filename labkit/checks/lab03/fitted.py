"""What exercise 3.5 expects of `fit`: the prompt gives way, and the answer keeps its end."""

from labkit.checks.compare import ask, draw, every, kind_of
from labkit.checks.lab03.labelled import END, IGNORED, words
from labkit.contract import CheckFailed, expect

FITS = {
    "values to unpack": "give a pair: input_ids, labels",
    "can only concatenate": "prompt_ids and answer_ids are lists, and so is [-100] * n",
    "has no attribute": "prompt_ids and answer_ids are plain lists of ints",
    "unsupported operand": "prompt_ids and answer_ids are plain lists of ints",
    "unexpected keyword": "the parameters are prompt_ids, answer_ids, max_length",
}
OWN = dict.fromkeys(
    ("it raised ValueError", "it raised AssertionError"),
    "no row is refused: the prompt gives way, and an answer too long keeps its head",
)


def expect_fit(fit, rng):
    """Rows that fit, whose prompt is too long, whose answer leaves no room, or is too long."""
    a, p = draw(4, 6, rng), draw(8, 11, rng)
    cases = [
        (p, a, p + a + draw(1, 5, rng), "all of it fits"),
        (p, a, p + a, "all of it fits exactly"),
        (p, a, p + draw(1, a - 2, rng), "the prompt is too long"),
        (p, a, a + 1, "one token of the prompt fits"),
        (p + 9, a, p - 1, "the prompt alone is longer than max_length"),
        (p, a, a, "the answer leaves no room"),
        (p, a + 4, a + 1, "the answer alone is too long"),
        (0, a, a + 3, "there is no prompt"),
    ]
    met = []
    every(lambda *case: _expect_fit(fit, rng, met, *case), cases)


def _expect_fit(fit, rng, met, p, a, longest, what):
    """One row; a mistake that was `met` in a row before is the likeliest in this one, too."""
    prompt, answer = words(p, rng), [*words(a - 1, rng), END]
    call = f"fit of {p} prompt and {a} answer tokens to {longest} ({what})"
    got = ask(call, fit, prompt, answer, longest, hint=FITS | OWN)
    pair = isinstance(got, list) and len(got) == 2
    expect(pair, f"{call} gave {kind_of(got)}, wanted the pair input_ids, labels")
    lists = all(isinstance(one, list) for one in got)
    expect(lists, f"{call}: input_ids and labels are plain lists")
    ids, labels = got
    kept = answer[:longest]
    head = prompt[p - min(p, longest - len(kept)) :] if longest > len(kept) else []
    right = [head + kept, [IGNORED] * len(head) + kept]
    if [ids, labels] == right:
        return
    expect([labels, ids] != right, f"{call}: the pair is turned round: input_ids, then labels")
    told = f"{call}: {len(ids)} input_ids and {len(labels)} labels; every token has a label"
    more = len(labels) - len(ids) == p - len(head) > 0
    hint = "the prompt was cut and its labels were not" if more else "-100 where it is not learned"
    expect(len(ids) == len(labels), told, hint=hint)
    known = _misfit(prompt, answer, longest)
    for message in sorted(known, key=lambda m: m not in met):
        if [list(one) for one in known[message]] == [ids, labels]:
            met.append(message)
            raise CheckFailed(f"{call}: {message}")
    _expect_parts(call, ids, labels, right, longest, prompt, kept)
    raise CheckFailed(f"{call} gave {got}, wanted {right}", bare=True)


def _expect_parts(call, ids, labels, right, longest, prompt, kept):
    """What shows on a row that no known mistake explains."""
    with_label = [y for y in labels if y != IGNORED]
    over = "the row is longer than max_length"
    expect(len(ids) <= longest, f"{call}: {len(ids)} tokens; {over}")
    expect(with_label, f"{call}: no token has a label, so the row trains on nothing")
    other = [i for i, y in zip(ids, labels, strict=True) if y not in (IGNORED, i)]
    expect(not other, f"{call}: a label is the token's own id, or -100")
    told = "these are the right tokens, but the wrong ones have labels: the answer's, and all"
    expect(ids != right[0], f"{call}: {told}")
    missing = [y for y in right[1] if y != IGNORED and y not in with_label]
    told = "the answer lost tokens that had room; the prompt is what gives way"
    expect(not missing, f"{call}: {told}")
    asked, n = [i for i, y in zip(*right, strict=True) if y == IGNORED], len(with_label)
    mine = ids[: len(ids) - n]
    if ids[len(ids) - n :] == right[0][len(asked) :] and len(mine) < len(asked):
        told = f"{call}: the prompt lost {len(asked) - len(mine)} tokens that had room"
        whole = "; a slice takes a number below 0 from the end: max(0, …)"
        raise CheckFailed(told + whole * (mine == prompt[len(prompt) + len(kept) - longest :]))
    told = f"{call}: other tokens of the prompt are kept than its last {len(asked)}"
    expect(ids[len(asked) :] != right[0][len(asked) :], f"{told}: cut it from its front")


ENDLESS = "the end is taken off though only the prompt was cut; it goes only where the answer "
ENDLESS += "itself is cut"


def _misfit(prompt, answer, n):
    """`{message: (input_ids, labels)}`: what misconceptions give, the likeliest first."""
    both, marks = prompt + answer, [IGNORED] * len(prompt) + answer
    known, filled = {}, all(y == IGNORED for y in marks[:n])
    if filled:
        told = "cut on the right: the prompt fills the row, and it trains on nothing"
        known[told] = (both[:n], marks[:n])
    if len(answer) > n:
        told = "an answer that was cut has no label left; its head is worth learning"
        known[told] = (answer[:n], [IGNORED] * n)
    if len(answer) >= n:
        known |= _cut_too_early(prompt, answer, n)
    if len(both) > n >= len(answer):
        for more in (1, 0):  # whether the prompt takes the place of the end
            left = "" if more else ", and its place is left empty"
            known[ENDLESS + left] = _row(_last(prompt, n - len(answer) + more), answer[:-1])
    told = "cut on the right: the answer loses its end, though the prompt has tokens to spare"
    if not filled:
        known[told] = (both[:n], marks[:n])
    known["the prompt is left out, though there is room"] = (answer[:n], answer[:n])
    told = "cut on the left alone: an answer too long keeps its head, not its tail"
    known[told] = (both[-n:], marks[-n:])
    pairs = {message: _row(*parts) for message, parts in _parts(prompt, answer, n).items()}
    return known | pairs | {"nothing is cut": (both, marks)} | _relabelled(prompt, answer, n)


def _cut_too_early(prompt, answer, n):
    """Rows of answers of n tokens or more of which n - 1 are kept."""
    told = "an answer that is too long keeps its first max_length tokens, not max_length - 1"
    if len(answer) == n:
        told = "an answer of exactly max_length fits whole, its end token too: it is cut only "
        told += "where it is longer (is it >= for >, or max_length - 1?)"
    filled = f"{told}, and no token of the prompt has room"
    return {told: _row([], answer[: n - 1]), filled: _row(prompt[-1:], answer[: n - 1])}


def _row(prompt, answer):
    return prompt + answer, [IGNORED] * len(prompt) + answer


def _last(tokens, n):
    """The last n tokens, none where n is 0."""
    return tokens[len(tokens) - min(max(0, n), len(tokens)) :]


def _parts(prompt, answer, n):
    """`{message: (prompt, answer)}` of rows of which too much or the wrong part is cut."""
    room, cut = max(0, n - len(answer)), answer[:n]
    tail, other = _last(prompt, room), "is a < for a <=, or a - 1 too many?"
    return {
        "an answer of max_length leaves no room: [-0:] is the whole list; count from the front": (
            prompt,
            cut,
        ),
        "the prompt loses its end, where the question is: cut it from its front": (
            prompt[:room],
            cut,
        ),
        "an end is put behind an answer that was cut: it teaches to stop midway": (
            tail,
            [*answer[: n - 1], answer[-1]],
        ),
        "an answer that is too long keeps its tail: keep its head": ([], answer[-n:]),
        f"the row keeps one token less than max_length: {other}": (_last(prompt, room - 1), cut),
        f"the row keeps one token more than it holds: {other}": (_last(prompt, room + 1), cut),
        "the row is dropped: the prompt can give way, and an answer too long keeps its head": (
            [],
            [],
        ),
    }


def _relabelled(prompt, answer, n):
    """`{message: (input_ids, labels)}` of rows with wrong labels, or with other tokens."""
    cut = answer[:n]
    tail = _last(prompt, n - len(answer))
    ids, right = _row(tail, cut)
    more = n - len(ids)
    return {
        "the prompt is cut, but its labels are not, so the answer's labels fall off: as many -100 "
        "as prompt tokens are kept": (
            ids,
            ([IGNORED] * len(prompt) + cut)[: len(ids)],
        ),
        "the prompt has labels: -100 on each of its tokens": (ids, ids),
        "labels of the answer are -100, and the prompt's are not": (
            ids,
            tail + [IGNORED] * len(cut),
        ),
        "no token has a label": (ids, [IGNORED] * len(ids)),
        "the end of the answer has no label: it says where to stop": (ids, [*right[:-1], IGNORED]),
        "the answer stands before the prompt": (cut + tail, cut + [IGNORED] * len(tail)),
        "it is padded; that is for later, when rows come together": (
            ids + [END] * more,
            right + [IGNORED] * more,
        ),
        "the prompt's first token stays, and one behind it is lost: cut from the front": (
            prompt[:1] * bool(tail) + tail[1:] + cut,
            right,
        ),
    }
