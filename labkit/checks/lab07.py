"""Checks of lab 7. The reference is transformers' GGUF loader, PEFT, or the planted faults."""

import functools

import torch
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from labkit.checks.engine import expect_right
from labkit.checks.inputs import draw, randn
from labkit.checks.quiz import quiz_of
from labkit.contract import exercise, expect, generator, observe
from labkit.probes import lab07 as probes
from labkit.probes import serving, tiny

LENGTH = 30  # max_length; the longest row without a fault has just as many tokens
TURN, OPENING = 4, 2  # tokens of a turn besides its words; those before the words


@exercise("7.1", points=3)
def audits(audit):
    """lists every row with a planted fault under the fault's name, and no clean row"""
    rng = generator()
    clean, faulty = [_row(rng, 12, 2), _row(rng, 8, 3)], _planted(rng)
    cases = {"for two clean rows that fit": (clean, LENGTH)}
    for what, rows in faulty.items():
        which = ("row 1", "rows 1 and 2", "rows 1 to 3")[len(rows) - 1]
        cases[f"with {what} in {which}"] = [clean[0], *rows, clean[1]], LENGTH
    rows = [row for rows in faulty.values() for row in rows]
    order = torch.randperm(len(rows), generator=rng).tolist()
    cases[f"for {len(rows)} mixed rows"] = [rows[i] for i in order], LENGTH
    starts = [_row(rng, LENGTH - 1 - 4), _row(rng, LENGTH - 2), clean[0]]
    cases["with a tokenizer that adds a second BOS to the template's text"] = starts, LENGTH, "bos"
    cases["with a template that writes no end token"] = clean, LENGTH, "endless"
    cases["for max_length = 1"] = clean, 1
    expect_right(audit, cases, _audited, probes.audited)


def _row(rng, prompt, answer=2):
    """A row: a prompt of `prompt` tokens, including the generation prompt, and an answer."""
    question = tiny.words(rng, prompt - TURN - OPENING)
    answer = tiny.words(rng, answer) if isinstance(answer, int) else answer
    return _messages(("user", question), ("assistant", answer))


def _messages(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _planted(rng):
    """`{a property of the rows, such as a fault: rows}`."""

    def two(first, last, system="now"):
        turns = (_row(rng, 8, first)["messages"] if first else []) + last["messages"]
        return [_messages(("system", system), *(tuple(m.values()) for m in turns))]

    return {
        "exactly max_length tokens": [_row(rng, LENGTH - 4)],
        "two turns": two(1, _row(rng, 7, 1)),
        "a blank answer": [_row(rng, 10, blank) for blank in ("", "  ", "\n")],
        "a cut answer": [_row(rng, LENGTH - 3, 4), _row(rng, LENGTH - 2), _row(rng, 8, LENGTH + 1)],
        "a prompt longer than max_length": [_row(rng, LENGTH + n) for n in (1, 5)],
        "a prompt of exactly max_length tokens": [_row(rng, LENGTH)],
        "a prompt of max_length - 1 tokens": [_row(rng, LENGTH - 1, 3)],
        "only the line break after the end token cut off": [_row(rng, LENGTH - 3)],
        "a blank answer to a prompt that fills max_length": [_row(rng, LENGTH + 1, "")],
        "a cut answer of line breaks": [_row(rng, LENGTH - 4, "\n" * 9)],
        "two turns and the second answer cut off": two(1, _row(rng, 12)),
        "two turns that fill max_length before the second answer": two(1, _row(rng, 14)),
        "a long system message": two(0, _row(rng, 10), tiny.words(rng, LENGTH - 14)),
        "two turns and a blank second answer": two(1, _row(rng, 7, " ")),
        "two turns and a blank first answer": two(" ", _row(rng, 7, 1)),
        "a blank question": [_messages(("user", " "), ("assistant", tiny.words(rng, 2)))],
    }


def _audited(rows, max_length, style=""):
    """The expected lists, computed from text lengths: no row is rendered here."""
    faults = {key: [] for key in probes.KEYS}
    own = TURN - (style == "endless")
    for i, row in enumerate(rows):
        texts = [message["content"] for message in row["messages"]]
        *asked, answer = (len(text.split()) + text.count("\n") + own for text in texts)
        prompt = sum(asked) + OPENING + (style == "bos")
        whole = prompt - OPENING + answer
        nothing = prompt >= max_length or not texts[-1].strip()
        end = whole - 2 if style != "endless" else max_length  # its place
        faults["truncated"] += [i] * (whole > max_length)
        faults["trains_on_nothing"] += [i] * nothing
        faults["no_end"] += [i] * (not nothing and end >= max_length)
    kind = {"the return value": "a dict", "the keys of the dict": list(probes.KEYS)}
    kind["each value of the dict"] = "a list"
    lists = {f'"{key}"': numbers for key, numbers in faults.items()}
    return kind | lists | {"the tokenizer": "left as it was"}


@exercise("7.2", points=3)
def parts(split):
    """no prompt is on both sides, the order of the rows does not matter, and the share is right"""
    rng, cases = generator(), {}
    for how in _turns("", 0, 0):
        rows, groups = _rows(rng, [2] * 24, how)
        where = f"for 24 prompts of two rows each that {how}"
        cases[where] = rows, groups, 0.5, [3, 4]
    rows, groups = _rows(rng, [(1, 1, 1, 1, 6, 6, 6)[draw(0, 6, rng)] for _ in range(80)])
    for share in (0.1, 0.3, 0.6):
        cases[f"for {len(rows)} rows at share {share}"] = rows, groups, share, [0, 1, 2, 3]
    expect_right(split, cases, lambda *data: probes.fair(data[2]), probes.divided)
    orders = [torch.randperm(len(rows), generator=rng).tolist() for _ in range(6)]
    where = f"for {len(rows)} rows at share 0.3"
    expect_right(split, {where: (rows, 0.3, orders)}, lambda *_: probes.STABLE, probes.repeated)
    sides = observe(probes.sides, split, rows, 0.3, 3)  # judged here, not next to their code
    fair = probes.described(sides, groups, 0.3) == probes.fair(0.3)
    expect(fair, f"{where}, a third call splits the rows differently")


def _turns(question, k, group):
    """`{how a prompt's rows relate: [(role, content), …] before the answer}`, for its row k."""
    user, odd = ("user", question), k % 2
    hello = [("user", "good morning"), ("assistant", "Yes?" if odd else "Hello.")]
    return {
        "differ in their answers": [user],
        "differ in case": [("user", question.title() if odd else question)],
        "differ in whitespace": [("user", "  ".join(question.split()) + "\n" if odd else question)],
        "differ only in punctuation": [("user", "the lamp" + "?" * group)],
        "differ in the system message": [("system", f"Home {k}.")] * odd + [user],
        "differ in an earlier answer": [*hello, user],
        "begin with the same user turn": [*hello[:1], ("assistant", "Yes?"), user],
        "end with the same user turn": [user, ("assistant", "Yes?"), ("user", "thank you")],
    }


def _rows(rng, sizes, how="differ in their answers"):
    """Rows in random order, `sizes` of them per prompt; `{source: the number of its prompt}`."""
    questions = {}
    while len(questions) < len(sizes):
        questions[tiny.words(rng, 3, 6)] = None
    rows, groups = [], {}
    for group, (question, size) in enumerate(zip(questions, sizes, strict=True)):
        for k in range(size):
            answer = ("assistant", f"{tiny.words(rng, 2)} {len(rows)}")
            row, source = _messages(*_turns(question, k, group)[how], answer), f"mail {len(rows)}"
            rows.append(row | {"source": source})
            groups[source] = group
    order = torch.randperm(len(rows), generator=rng).tolist()
    return [rows[i] for i in order], groups


@exercise("7.3", points=2)
def orders(rotary_rows):
    """transformers' GGUF loader undoes the reordering, for weights and for LoRA's B"""
    rng = generator()
    cases = {"for rows 0 to 11 and two heads": (torch.arange(12.0)[:, None], 2)}
    head = 2 * draw(4, 6, rng)
    for what, n_heads, d_in, dtype in (
        ("a weight", 4, 24, torch.float32),
        ("LoRA's B of rank 2", 3, 2, torch.float32),
        ("a square weight", 5, 5 * head, torch.float32),
        ("a weight in bf16", 2, 7, torch.bfloat16),
        ("a wide weight", 1, 12, torch.float32),
    ):
        w = randn(n_heads * head, d_in, rng=rng).to(dtype)
        heads = f"{n_heads} head{'s' * (n_heads > 1)}"
        cases[f"for {what} of shape {tuple(w.shape)} and {heads}"] = w, n_heads
    expect_right(rotary_rows, cases, _ordered, probes.ordered, tol=1e-7)


def _ordered(w, n_heads):
    """The matrix that transformers' loader turns back into w."""
    undo, wanted = LlamaTensorProcessor({})._reverse_permute_weights, torch.empty_like(w)
    wanted[torch.from_numpy(undo(torch.arange(len(w)).numpy(), n_heads, n_heads).copy())] = w
    return probes.ordered(lambda *_: wanted, w, n_heads)


NAMES = ["home", "tickets", "homely", "sweet-home", "home", "homely"]
LENGTHS = (5, 14, 3, 520, 7, 2)


@exercise("7.4", points=3)
def routes(route):
    """in one batch, each answer equals the one its adapter gives alone; nothing stays changed"""
    seed, prompts = _asked(generator())
    one = "for one prompt, a model in eval mode, and a tokenizer that adds no first token"
    cases = {f"for {len(NAMES)} prompts": (seed, prompts, NAMES)}
    cases[one] = seed, prompts[:1], NAMES[:1], False
    expect_right(route, cases, _routed, serving.routed)


def _asked(rng):
    """A seed and prompts as a chat template writes them, whose right answers are unambiguous.

    Some answers end on their own and others at the limit, and some have several lines.
    """
    words = [tiny.words(rng, n).replace(serving.ENDS_A_LINE, "hall").split() for n in LENGTHS]
    turns = ([*w[:2], "<end>", *w[2:]] if len(w) > 4 else w for w in words)
    prompts = [" ".join(["<start>", *turn]) for turn in turns]
    for _ in range(30):
        seed = draw(1, 10**6 - 1, rng)
        texts, sure = zip(
            *(_alone(seed, *one) for one in zip(prompts, NAMES, strict=True)), strict=True
        )
        sizes = [len(text.split()) for text in texts]
        several = any("\n" in text.strip() for text in texts)
        if 0 < min(sizes) < max(sizes) == 48 and several and min(sure) > 1e-3:
            break
    return seed, prompts


@functools.lru_cache(256)
@torch.no_grad()
def _alone(seed, prompt, name):
    """One adapter's greedy answer to a prompt; the smallest lead of a token over the next best."""
    model = serving.served(seed)
    model.set_adapter(name)
    ids = model.tokenizer(prompt, return_tensors="pt")
    more = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**ids, max_new_tokens=48, **more)
    best = torch.stack(out.logits)[:, 0].topk(2).values
    new = out.sequences[0, ids["input_ids"].shape[1] :]
    text = model.tokenizer.decode(new, skip_special_tokens=True)
    return text, (best[:, 0] - best[:, 1]).min().item()


def _routed(seed, prompts, names, trained=True):
    texts = [_alone(seed, *one)[0] for one in zip(prompts, names, strict=True)]
    form = {"the return value": "a list of texts", "the number of answers": len(prompts)}
    return {serving.BATCH: len(prompts)} | serving.HOW | form | serving.answers(texts, names)


@exercise("7.5", points=3)
def batches(batched_lora):
    """what each row's adapter adds, in one group per adapter, no copied factors, no dense update"""
    rng = generator()
    x, A = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[[1.0, 1]], [[1, -1]]])
    by_hand = x, A, torch.ones(2, 1, 1), torch.tensor([2.0, 0.5]), torch.tensor([1, 0])
    factors = "A = [[[1, 1]], [[1, -1]]], B of ones"
    cases = {f"for x = [[1, 2], [3, 4]], {factors}, scaling = [2, 0.5], index = [1, 0]": by_hand}
    for where, index, r in (
        ("for 9 rows of 4 adapters in mixed order", [2, 0, 3, 1, 1, 0, 3, 2, 0], 3),
        ("for 6 rows, some of them with index -1", [-1, 1, 3, -1, 0, 2], 3),
        ("for 5 rows, where two adapters have none", [3, 0, 3, 3, 0], 3),
        ("for 4 rows of one adapter", [2] * 4, 3),
        ("for one row", [1], 3),
        ("for 3 rows with index -1", [-1] * 3, 3),
        ("for 5 rows and r = 1", [1, -1, 0, 3, 1], 1),
    ):
        cases[where] = _batch(rng, index, 7, 5, r)
    six = [1, -1, 0, 3, 1, 2]
    *double, index = _batch(rng, six, 7, 5, 3)
    cases["for 6 rows in fp64"] = *(t.double() for t in double), index
    expect_right(batched_lora, cases, _batched, probes.batched)
    *low, scaling, index = _batch(rng, six, 48, 48, 3)
    cases = {"for x, A, B in bf16, scaling in fp32": (*(t.bfloat16() for t in low), scaling, index)}
    expect_right(batched_lora, cases, _batched, probes.batched, tol=3e-2)
    # groups of equal size: a batch padded to (k, most rows, d) wastes nothing here
    wide = _batch(rng, [0, 1, 2, 3] * 2, 256, 256, 2)
    cases = {"for d_in = d_out = 256": (*wide, 256 * 256, "a (d_out, d_in) matrix")}
    index = torch.arange(-1, 4).repeat(100)[torch.randperm(500, generator=rng)].tolist()
    cases["for 500 rows"] = *_batch(rng, index, 32, 32, 8), 500 * 8 * 32, "A[index]"
    expect_right(batched_lora, cases, _work, probes.batched_work)


def _work(x, *data):
    facts = {"the computation": "vectorized", "the largest tensor": f"smaller than {data[-1]}"}
    return facts | {"the number of rows in the products": f"at most {len(x)}"}


def _batch(rng, index, d_in, d_out, r):
    """x, the factors and scaling of 4 adapters, and index."""
    A, B = randn(4, r, d_in, rng=rng), randn(4, d_out, r, rng=rng)
    scaling = torch.rand(4, generator=rng) + torch.arange(1, 5) * 0.7
    return randn(len(index), d_in, rng=rng), A, B, scaling, torch.tensor(index)


def _batched(x, A, B, scaling, index):
    """Each row's output from its own adapter, in fp64; zeros for a row without one."""
    y = torch.zeros(len(x), B.shape[1], dtype=torch.float64)
    for i, k in enumerate(index.tolist()):
        if k >= 0:
            y[i] = scaling[k].double() * B[k].double() @ A[k].double() @ x[i].double()
    return probes.batched(lambda *_: y.to(x.dtype), x, A, B, scaling, index)


quiz = quiz_of("7.6", points=4)
