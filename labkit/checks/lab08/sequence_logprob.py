"""What exercise 8.1 expects of `sequence_logprob`: torch's cross-entropy of each answer."""

import functools

import torch
import torch.nn.functional as F

from labkit.checks.compare import ask, close, draw, expect_close, expect_shape, likeliest, randn
from labkit.checks.compound import combined
from labkit.checks.lab08.behaves import as_logprobs
from labkit.checks.lab08.losses import LOST
from labkit.checks.simplest import simplest, unnamed
from labkit.contract import CheckFailed, expect, observe, part, sound
from labkit.labs.lab08 import probes

IGNORED = -100
CUT = "cross_entropy wants the vocabulary second: logits.transpose(1, 2)"
ERRORS = {
    "index -100 is out of": "put a harmless id in the place of -100, and leave it out of the sum",
    "out of bounds": "put a harmless id in the place of -100, and leave it out of the sum",
    "Expected input batch_size": CUT,
    "Expected target size": CUT,
    "size of tensor": "logits[:, :-1] predict labels[:, 1:]: cut both, or mask with cut labels",
    "Size does not match": "logits[:, :-1] predict labels[:, 1:]: cut both",
    "same number of dimensions": "gather wants an index of three axes: labels[..., None]",
    "expected scalar type Long": "labels are ids: keep them ints for gather",
}


def batch(rng, kind):
    """(logits, labels) of a few sequences, whose labels are laid out as `kind` says."""
    b, n, vocab = draw(3, 5, rng), draw(8, 11, rng), draw(12, 20, rng)
    logits = 2 * randn(b, n, vocab, rng=rng)
    labels = torch.randint(vocab, (b, n), generator=rng)
    places = torch.arange(n)
    for i in range(b):
        start, end = draw(2, 3, rng), draw(n - 3, n - 1, rng)
        if kind == "padded on the left":
            start, end = draw(3, 5, rng), n
        if kind in ("prompt and padding", "padded on the left", "large logits"):
            labels[i, (places < start) | (places >= end)] = IGNORED
        if kind == "an answer in two parts":
            labels[i, (places < 2) | (places == n // 2)] = IGNORED
    if kind == "one without an answer":
        labels[:, :2] = IGNORED
        labels[1] = IGNORED
    return (300 * logits if kind == "large logits" else logits), labels


JOINED = "a mask as an index, logp[mask], puts all rows into one line: multiply by the mask, or "
JOINED += "torch.where, and then .sum(-1)"
KINDS = (
    "prompt and padding", "padded on the left", "every place labelled", "an answer in two parts",
    "one without an answer", "large logits",
)  # fmt: skip


def wanted_of(logits, labels):
    """Minus torch's cross-entropy, a sequence at a time, in fp64."""
    pairs = zip(logits.double(), labels, strict=True)
    losses = [F.cross_entropy(row[:-1], ids[1:], reduction="sum") for row, ids in pairs]
    return -torch.stack(losses).float()


def expect_logprobs(sequence_logprob, rng):
    """The sums, however the labels lie; finite with large logits."""
    run = functools.partial(observe, sequence_logprob)
    behaves = unnamed(lambda: as_logprobs(run, "sequence_logprob"))
    with part(), simplest(_small(sequence_logprob)), behaves, likeliest() as case:
        for kind in KINDS:
            with case():
                _expect(sequence_logprob, kind, *batch(rng, kind))
    if sound():
        with part():
            _expect_gradient(sequence_logprob, *batch(rng, KINDS[0]))


def _expect_gradient(sequence_logprob, logits, labels):
    """The gradient of all sums for the logits: what trains goes through it."""
    call = "sequence_logprob of logits that have a gradient"
    total = ask(call, probes.added_up, sequence_logprob, logits, labels, hint=ERRORS)
    told = f"{call} gives none, so nothing could be trained by it: {LOST}"
    expect(total["gradient"] is not None, told)
    p = logits[:, :-1].double().softmax(-1)
    targets = labels[:, 1:]
    wanted = F.one_hot(targets.clamp(min=0), p.shape[-1]) - p
    wanted = F.pad(wanted * (targets != IGNORED)[..., None], (0, 0, 0, 1))
    expect_close(total["gradient"], wanted.float(), f"{call}: it", tol=1e-4)


def _expect(sequence_logprob, kind, logits, labels):
    call = f"sequence_logprob ({kind})"
    got = ask(call, sequence_logprob, logits, labels, hint=ERRORS)
    _expect_form(got, logits, labels, call)
    if not torch.isfinite(got).all():
        hint = "the logarithm of a softmax, or of a product of them, that is 0 in fp32: sum what "
        hint += "log_softmax gives, which does both at once"
        hint = hint if kind == "large logits" else "is something infinite in it, or divided by 0?"
        if kind == "one without an answer":
            hint = "a sequence without any answer has 0"
        raise CheckFailed(f"{call} holds NaN or infinity: {hint}")
    wanted = wanted_of(logits, labels)
    known = {} if close(got, wanted, 1e-5) else _guesses(logits, labels, kind)
    expect_close(got, wanted, call, known, tol=1e-5)


def _expect_form(got, logits, labels, call):
    b, n = labels.shape
    if isinstance(got, float) or (isinstance(got, torch.Tensor) and got.dim() == 0):
        raise CheckFailed(f"{call} gave one number, wanted {b}: sum over tokens alone ({JOINED})")
    if isinstance(got, torch.Tensor) and got.dim() == 2 and got.shape in ((b, n), (b, n - 1)):
        raise CheckFailed(f"{call} gave a number a token, wanted one a sequence: sum over tokens")
    if isinstance(got, torch.Tensor) and got.shape != (b,):
        _expect_rows(got, labels, call)
    expect_shape(got, torch.Size([b]), call)


def _expect_rows(got, labels, call):
    """Raise CheckFailed where a wrong shape tells that sequences were added up, or joined."""
    n = labels.shape[1]
    per_place = got.shape in ((n,), (n - 1,))
    counted = {int((x != IGNORED).sum()) for x in (labels, labels[:, 1:])}
    joined = got.numel() == len(got) and len(got) in counted
    if per_place:  # as many as are counted, by accident: another batch tells which it is
        hint = "sum over the tokens, the second axis, not over the sequences"
        raise CheckFailed(f"{call} has shape {tuple(got.shape)}: {hint}", bare=joined)
    told = f"{call} gave {len(got)} numbers, one a token of all sequences"
    expect(not joined, f"{told}: {JOINED}")


def _guesses(logits, labels, kind):
    """Wrong sums by what is wrong with them, single mistakes first."""
    logits = logits.double()
    shifts = {
        "": 1,
        "not shifted: the logits at a place are about the token at the next one": 0,
        "shifted the wrong way: logits[:, :-1] are about labels[:, 1:]": -1,
        "roll brings the first label round to the last place, which predicts nothing: cut it": 2,
    }
    counts = {
        "": "labels",
        "-100 is counted as some token: leave its number out of the sum": "first",
        "-100 is counted as the last id of the vocabulary: leave it out of the sum": "last",
        "the mask is not shifted with the labels": "early",
        "id 0 is left out, which is a token; only -100 is left out": "zero",
        "the last token is lost": "but last",
        "the first token of the answer is lost": "but first",
    }
    forms = {
        "": "logp",
        "the logits are not normalised: log_softmax first": "logits",
        "these are probabilities, wanted their logarithms: log_softmax": "p",
        "softmax is taken along another axis: dim=-1 is the vocabulary": "axis",
        "softmax is taken over the sequences: dim=-1 is the vocabulary": "sequences",
        "these are logarithms to base 2: natural ones are wanted": "base 2",
        "that is the likeliest token's: take the label's, with gather": "best",
    }
    ways = {
        "": "sum",
        "the sign is turned round: a log-probability is not a loss": "minus",
        "that is the mean over the answer's tokens, wanted their sum": "mean",
        "that is the mean over all places, wanted the sum of the answer's tokens": "all",
        "divided by the tokens of the whole batch: each sequence has a sum of its own": "batch",
        "that is the probability, wanted its logarithm": "exp",
        "that is the perplexity, wanted the log-probability": "perplexity",
    }
    made = functools.partial(_made, logits, labels)
    most = 1 if kind == "large logits" else 2  # there much is zero, or huge
    cut, targets = logits[:, :-1], labels[:, 1:]
    laid = cut.reshape(len(cut), cut.shape[2], cut.shape[1])
    told = "reshape lays the logits out anew, and mixes those of all places: transpose(1, 2)"
    mixed = {told: -F.cross_entropy(laid, targets, reduction="none").sum(1).float()}
    return mixed | combined(made, shifts, counts, forms, ways, most=most)


def _made(logits, labels, shift, counts, form, way):
    """A sum of each sequence by the choices of `_guesses`."""
    n = labels.shape[1]
    here, there = (logits, labels)
    if shift == 1:
        here, there = logits[:, :-1], labels[:, 1:]
    elif shift == -1:
        here, there = logits[:, 1:], labels[:, :-1]
    elif shift == 2:
        there = labels.roll(-1, 1)
    kept = there != IGNORED
    if counts in ("first", "last"):
        counted = torch.ones_like(kept)
    elif counts == "early":
        counted = (labels != IGNORED)[:, : there.shape[1]]
    elif counts == "zero":
        counted = kept & (there != 0)
    elif counts == "but last":
        counted = kept & (kept.flip(1).cumsum(1).flip(1) > 1)
    elif counts == "but first":
        counted = kept & (kept.cumsum(1) > 1)
    else:
        counted = kept
    ids = there.where(kept, logits.shape[-1] - 1 if counts == "last" else 0)
    value = {
        "logp": lambda: here.log_softmax(-1),
        "best": lambda: here.log_softmax(-1),
        "logits": lambda: here,
        "p": lambda: here.softmax(-1),
        "axis": lambda: here.log_softmax(1),
        "sequences": lambda: here.log_softmax(0),
        "base 2": lambda: here.log_softmax(-1) / torch.log(torch.tensor(2.0)),
    }[form]()
    value = value.max(-1).values if form == "best" else value.gather(-1, ids[..., None])[..., 0]
    total = (value * counted).sum(1)
    if way == "exp":
        return total.exp().float()
    if way == "perplexity":
        return (-total / counted.sum(1).clamp(min=1)).exp().float()
    over = {"sum": 1, "minus": -1, "mean": counted.sum(1).clamp(min=1)}
    over |= {"all": n - 1, "batch": counted.sum()}
    return (total / over[way]).float()


def _small(sequence_logprob):
    """Two even chances at each place: an answer of k tokens has k times log 0.5; then uneven."""
    logits = torch.zeros(1, 4, 2)
    for told, ids in (("a prompt and two tokens", [-100, -100, 1, 0]), ("one token", [-100, 1])):
        labels = torch.tensor([ids])
        call = f"sequence_logprob of two even logits a place and labels {ids}"
        why = f"{told}, log 0.5 = -0.6931 each"
        answer = functools.partial(observe, sequence_logprob, logits[:, : len(ids)], labels)
        yield call, answer, -0.693147 * sum(i >= 0 for i in ids), why
    logits[..., 1] = 1.0986123  # log 3
    call = "sequence_logprob of the logits 0 and log 3 at each place and labels [-100, 0, 1, 1]"
    answer = functools.partial(observe, sequence_logprob, logits, torch.tensor([[-100, 0, 1, 1]]))
    yield call, answer, -1.961659, "log 1/4 + log 3/4 + log 3/4"
