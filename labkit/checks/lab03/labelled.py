"""What exercise 3.3 expects of `answer_labels`: prompts and padding without labels, ends with."""

import torch

from labkit.checks.compare import ask, draw, every, expect_shape
from labkit.contract import CheckFailed, expect, sound

IGNORED = -100
END = 2  # SmolLM2's end token, which is its padding token too

LABELS = {
    "unexpected keyword": "the parameters are input_ids, attention_mask, prompt_lengths",
    "tokenizer": "no tokenizer is needed: attention_mask says where padding is",
    "'list' object": "the three inputs are tensors",
    "only integer tensors": "prompt_lengths holds one number a row: go through the rows",
    "element tensors can be converted": "prompt_lengths holds one number a row, not one for all",
    "too many indices": "prompt_lengths holds one number a row, (b,): prompt_lengths[:, None]",
    "must match the size": "prompt_lengths (b,) beside (b, n): prompt_lengths[:, None]",
    "of size": "prompt_lengths (b,) beside (b, n): prompt_lengths[:, None]",
}


def expect_labels(answer_labels, rng):
    """The labels of batches whose padding is the end token or not, on either side."""
    cases = [(side, pad, rng) for side in ("right", "left") for pad in (END, 0)]
    every(lambda *case: _expect_labels(answer_labels, *case), cases)
    if not sound():
        return
    for side in ("right", "left"):
        ids, mask, prompts = (x.roll(-1, 0) for x in batch(side, 0, rng))  # the longest row first
        used = mask.bool().any(0)
        ids, mask = ids[:, used], mask[:, used]
        call = f"answer_labels of rows padded on the {side}, the first of which has no padding"
        got = ask(call, answer_labels, ids, mask, prompts, hint=LABELS)
        hint = "on which side padding stands, each row's own attention_mask says"
        expect(torch.equal(got.long(), labels(ids, mask, prompts)), f"{call}: {hint}")
    ids, mask, _ = batch("right", END, rng)
    tail = "a row without an answer has no label at all"
    got = ask("", answer_labels, ids[:1, :4], mask[:1, :4], torch.tensor([4]), hint=LABELS)
    expect(bool((got == IGNORED).all()), f"answer_labels of a prompt alone: {tail}")


def _expect_labels(answer_labels, side, pad, rng):
    ids, mask, prompts = batch(side, pad, rng)
    same = "the end token" if pad == END else "another token than the end"
    call = f"answer_labels of rows padded on the {side} with {same}"
    got = ask(call, answer_labels, ids, mask, prompts, hint=LABELS)
    expect_shape(got, ids.shape, call)
    expect(not got.is_floating_point(), f"{call}: labels are token ids, and these are floats")
    told = "these are true and false: put the token's id where it is true, -100 elsewhere"
    expect(got.dtype != torch.bool, f"{call}: {told}")
    right = labels(ids, mask, prompts)
    if torch.equal(got.long(), right):
        expect(got.dtype == ids.dtype, f"{call}: {got.dtype}; keep the dtype of input_ids")
        return
    ignored = got[right == IGNORED].unique()
    told = f"{call}: ignored tokens have {ignored[0]}; cross_entropy leaves out -100 alone"
    expect(len(ignored) > 1 or ignored[0] in (IGNORED, 0, -1, pad, END), told)
    for message, guess in mislabelled(ids, mask, prompts, pad).items():
        if torch.equal(got.long(), guess) and not torch.equal(guess, right):
            raise CheckFailed(f"{call}: {message}")
    raise CheckFailed(f"{call}: {_difference(got.long(), right, ids, mask)}")


def batch(side, pad, rng):
    """Ids (4, n), mask and prompt lengths: two turns, an end inside, a line after the end."""
    rows, prompts = [], []
    for turns, after in ((1, []), (2, []), (1, [9]), (1, [])):
        prompt = []
        for _ in range(turns):
            prompt += [*words(draw(2 * turns - 1, turns + 2, rng), rng), END]
        prompts.append(len(prompt))
        zero = [0] * (pad != 0)  # a token like others, where padding is another one
        rows.append([*prompt, *words(draw(2, 5, rng), rng), *zero, END, *after])
    longest = max(map(len, rows)) + draw(0, 1, rng)
    ids, mask = [], []
    for row in rows:
        more = longest - len(row)
        ids.append(row + [pad] * more if side == "right" else [pad] * more + row)
        mask.append([1] * len(row) + [0] * more if side == "right" else [0] * more + [1] * len(row))
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(prompts)


def words(n, rng):
    """n token ids that are no end."""
    return torch.randint(20, 90, (n,), generator=rng).tolist()


def labels(ids, mask, prompts, shift=0):
    """The ids of the answers, -100 elsewhere; `shift` moves where they begin."""
    kept = torch.full_like(ids, IGNORED)
    for row, real in enumerate(mask.tolist()):
        places = [i for i, is_real in enumerate(real) if is_real]
        chosen = places[int(prompts[row]) + shift :]
        kept[row, chosen] = ids[row, chosen]
    return kept


NO_END = "an end token has no label, so nothing teaches the model to stop: padding is where "
NO_END += "attention_mask is 0, whatever its id"
LEFT = "padding on the left moves the prompt: count real tokens, attention_mask.cumsum(1)"
PADDED = "padding has labels: it is where attention_mask is 0"
PROMPTED = "the prompt has labels: its first prompt_lengths real tokens get -100"
ON_THE_LEFT = "padding is taken to stand on the left; attention_mask says where it is"
ORDER = "rows and prompt lengths are not in one order: row k has prompt_lengths[k]"


def mislabelled(ids, mask, prompts, pad):
    """`{message: labels}`: what misconceptions give, the likeliest first."""
    right, real = labels(ids, mask, prompts), mask.bool()
    chosen = _chosen(ids, real, right != IGNORED, prompts)
    chosen |= _by_other_counts(ids, real, right != IGNORED, prompts)
    known = _written(ids, real, right, pad)
    known |= {message: torch.where(where, ids, IGNORED) for message, where in chosen.items()}
    moved = {
        "the last token of the prompt has a label: the answer begins behind prompt_lengths real "
        "tokens, and cumsum counts from 1, so the prompt is <= prompt_lengths": -1,
        "the first token of the answer has no label: the prompt is prompt_lengths real tokens, and "
        "no more": 1,
    }
    known |= {message: labels(ids, mask, prompts, by) for message, by in moved.items()}
    for turned in (prompts.flip(0), prompts.roll(1), prompts.roll(-1)):
        known.setdefault(ORDER, labels(ids, mask, turned))
    return known


def _chosen(ids, real, asked, prompts):
    """`{message: where labels are}` of wrong choices of the tokens that have one."""
    places, ends = torch.arange(ids.shape[1]), ids == END
    counted = places >= prompts[:, None]  # as if padding on the left were none
    from_end = places >= ids.shape[1] - (real.sum(1) - prompts)[:, None]
    after_end = (ends & asked).cumsum(1) - (ends & asked).long() > 0
    last, behind = torch.zeros_like(asked), torch.zeros_like(asked)
    for row in range(len(ids)):
        at = int(asked[row].nonzero()[-1])
        last[row, at] = True
        behind[row, at + 1 : at + 2] = True
    all_alike = "is taken for all: prompt_lengths has one a row"
    return {
        NO_END: asked & ~ends,
        f"{NO_END}; and {LEFT}": counted & ~ends,
        LEFT: counted & real,
        f"{LEFT}, both at its beginning and at its end": counted & (places < real.sum(1)[:, None]),
        "`~` of 1 and 0 is -2 and -1, numbers of rows: make the mask bool first": (
            real.cumsum(1) > prompts[:, None]
        )
        & (torch.arange(len(ids)) < len(ids) - 2)[:, None],
        PADDED: asked | ~real,
        f"{PADDED}, and {LEFT}": counted,
        PROMPTED: real,
        f"{NO_END}; and {PROMPTED}": real & ~ends,
        f"{PROMPTED}, and {PADDED}": torch.ones_like(real),
        "turned round: the prompt has labels and the answer has none": real & ~asked,
        f"one row's prompt length {all_alike}": real & (places >= int(prompts[0])),
        f"the longest prompt {all_alike}": real & (places >= int(prompts.max())),
        ON_THE_LEFT: real & from_end,
        "the token 0 of an answer has no label: 0 is a token, and -100 alone is none": (
            asked & (ids != 0)
        ),
        "an end has a label only where it is a row's last token; what stands behind it, such as a "
        "line break, is part of the answer too": asked & (~ends | last),
        "what follows the answer's end token is part of the answer too: the mask says how far": (
            asked & ~after_end
        ),
        "the first padding behind an answer has a label: its own end is real": asked | behind,
        "end tokens of the prompt have labels; only the answer's train": asked | (real & ends),
        "the last token of the answer has no label; it says where to stop": asked & ~last,
        "only the last token has a label; all of the answer carries the loss": last,
        "only ends have a label; all of the answer carries the loss": asked & ends,
        "all labels are -100: then a row trains on nothing": torch.zeros_like(asked),
    }


def _by_other_counts(ids, real, asked, prompts):
    """`{message: where labels are}` of tokens that are counted in the wrong place."""
    places, ends = torch.arange(ids.shape[1]), ids == END
    given, last = (places >= prompts[:, None]) & ~ends, places == ids.shape[1] - 1
    return {
        "turned round: padding is where attention_mask is 0, and it has the labels": ~real,
        f"{ON_THE_LEFT}; and {PADDED}": (places >= (ids.shape[1] - real.sum(1) + prompts)[:, None]),
        "the mask is summed down the rows; each row counts its own tokens: cumsum(1)": real
        & (real.cumsum(0) > prompts[:, None]),
        "ends are no real tokens here, and none is counted; the mask says what is real": ~ends
        & ((~ends).cumsum(1) > prompts[:, None]),
        "a prompt's tokens are counted without its ends; the mask says what is real": real
        & ((~ends).cumsum(1) > prompts[:, None]),
        "prompt_lengths is taken for the answer's length, counted from the row's end": real
        & (places >= ids.shape[1] - prompts[:, None]),
        "the last column has a label in each row; padding may stand there": asked | last,
        "every end token has a label; the prompt's and padding's have none": asked | ends,
        "the last column gets its label back; an answer ends where its row's mask ends": (
            given | last
        ),
    }


def _written(ids, real, right, pad):
    """`{message: labels}` of the right places with wrong numbers in them, or around them."""
    asked = right != IGNORED
    shifts = "the model shifts the labels itself: label t is token t"
    zero = "padding's labels are 0, and 0 is a token: -100 is what the loss leaves out"
    zeros = {zero: torch.where(real, right, 0)} if pad else {}  # else it is what padding has anyway
    late = "labels are moved before the masks are laid on; the model shifts them itself"
    return zeros | {
        late: torch.where(asked, ids.roll(-1, 1), IGNORED),
        f"{late}, the other way": torch.where(asked, ids.roll(1, 1), IGNORED),
        "the prompt's labels are 0, and 0 is a token: -100 is what the loss leaves out": (
            torch.where(real & ~asked, 0, right)
        ),
        "ignored tokens get -100, which cross_entropy leaves out; 0 is a token": (
            torch.where(asked, ids, 0)
        ),
        "ignored tokens get -100; -1 is an error to cross_entropy": torch.where(asked, ids, -1),
        "ignored tokens get -100; the padding token is a token": torch.where(asked, ids, pad),
        shifts: _shifted(right, 1),
        f"{shifts}, not t - 1": _shifted(right, -1),
        "labels are the ids of tokens, not 1 and 0": asked.long(),
    }


def _shifted(right, by):
    moved = right.roll(-by, 1)
    moved[:, -1 if by > 0 else 0] = IGNORED
    return moved


def _difference(got, right, ids, mask):
    """Which kinds of tokens are labelled wrongly, and the first row that differs, whole."""
    asked, real, has = right != IGNORED, mask.bool(), got != IGNORED
    kinds = {
        "of the prompt have a label": real & ~asked & has,
        "of padding have a label": ~real & has,
        "of the answer have none": asked & ~has,
        "of the answer have another number than their own id": asked & has & (got != ids),
    }
    told = [f"{int(where.sum())} {name}" for name, where in kinds.items() if where.any()]
    row = int((got != right).any(1).nonzero()[0])
    return (
        f"tokens in {len(ids)} rows: {', '.join(told)}. Of the row {ids[row].tolist()} with "
        f"attention_mask {mask[row].tolist()} yours are {got[row].tolist()}, "
        f"wanted {right[row].tolist()}"
    )
