"""Checks of lab 3. The reference is PEFT or TRL itself, or a formula of the check's own."""

import itertools
import math

import torch

from labkit.checks.compare import (
    ask,
    close,
    draw,
    expect_close,
    expect_number,
    expect_numbers_or_first,
)
from labkit.checks.lab03 import guesses
from labkit.checks.lab03.configs import expect_object, expect_recipe
from labkit.checks.lab03.fitted import expect_fit
from labkit.checks.lab03.labelled import expect_labels
from labkit.checks.lab03.matching import expect_matches
from labkit.checks.lab03.prompted import expect_prompt
from labkit.checks.quiz import judge
from labkit.contract import exercise, expect, generator, observe, part
from labkit.labs.lab03 import loading, probes
from labkit.probes import tiny


@exercise("3.1", points=3)
def configs(recipe):
    """alpha is twice the rank, all linear layers; the right precision on CPU, T4 and A100"""
    expect_recipe(recipe)


ADAPTED = [
    ("SmolLM2-135M", ("q_proj", "v_proj")),
    ("Llama-2-7B", ("q_proj", "v_proj")),
    ("Llama-3.1-8B", ("q_proj", "k_proj", "v_proj", "o_proj")),
    ("Llama-3.1-8B", "all-linear"),
]


LOOPS = {
    "values to unpack": "a loop over a dict gives its names: shapes.values() gives the pairs",
    "'int' and 'str'": "a loop over a dict gives its names: shapes.values() gives the pairs",
    "can only concatenate": "a loop over .items() gives (name, (d_out, d_in))",
    "not subscriptable": "shapes maps a name to a pair (d_out, d_in): shapes.values()",
    "unsupported operand": "each value of shapes is a pair (d_out, d_in)",
    "has no attribute": "shapes is a dict of pairs (d_out, d_in), not of tensors or layers",
}


@exercise("3.2", points=1)
def counts(count_lora_params):
    """equals PEFT's count on SmolLM2-135M, Llama-2-7B and Llama-3.1-8B"""
    rng, cases = generator(), []
    ranks = [(11, 13, 17, 19, 23)[i] for i in torch.randperm(5, generator=rng)[:2]]
    names = [f"layers.{i}.{part}" for i in range(2) for part in ("q_proj", "mlp.up_proj")]
    names[2:2] = "h.0.attn.c_attn", "lm_head"  # a name decides nothing
    for r in ranks:  # no rank is a factor that somebody writes down, and no two are the same
        shapes = {name: (draw(10, 49, rng), draw(50, 99, rng)) for name in names}
        shapes |= {name: shapes[name][::-1] for name in names[1::2]}  # an MLP's are taller
        wanted = r * sum(sum(pair) for pair in shapes.values())
        call = f"count_lora_params({{{names[0]!r}: {shapes[names[0]]}, … 5 more}}, r={r})"
        got = ask("", count_lora_params, shapes, r, hint=LOOPS)
        cases.append((call, got, wanted, guesses.counts(shapes, r)))
    expect_numbers_or_first(cases)  # one alone may be a misconception's by accident
    cases = []
    for model, targets in ADAPTED:
        shapes, wanted = probes.peft_count(model, targets)
        layers = targets if isinstance(targets, str) else ", ".join(targets)
        call = f"count_lora_params of {model}, {layers}, r=16"
        got = observe(count_lora_params, shapes, 16)
        cases.append((call, got, wanted, guesses.counts(shapes, 16)))
    expect_numbers_or_first(cases)


@exercise("3.3", points=3)
def end_trains(answer_labels):
    """prompts and padding have no label, on either side; the end token has one"""
    expect_labels(answer_labels, generator())


@exercise("3.4", points=2)
def prompt_opens_answer(render_prompt):
    """it ends where the answer begins, has one BOS at most, and is a prefix of the whole"""
    expect_prompt(render_prompt, generator())


@exercise("3.5", points=3)
def keeps_answer(fit):
    """the prompt gives way from its front; an answer that is cut has no end"""
    expect_fit(fit, generator())


@exercise("3.6", points=3)
def matches(exact_match):
    """the share of equal JSON data; key order and spaces don't count, invalid JSON is wrong"""
    expect_matches(exact_match, generator())


@exercise("3.7", points=3)
def perplexity_weighs_tokens(perplexity):
    """exp of the mean loss of all predicted tokens, padding left out"""
    rng = generator()
    seed = draw(1, 10**6, rng)
    model, tokenizer = tiny.language_model(seed)
    several = [tiny.words(rng, n, n) for n in (3, 17, 5, 26, 2, 11)]
    many = [
        tiny.words(rng, 2, 9) for _ in range(40)
    ]  # more than a batch, and a long one among them
    many.insert(draw(10, 30, rng), tiny.words(rng, 150, 150))
    for texts, name in (
        ([tiny.words(rng, 9, 9)], "one text"),
        (several, "6 texts"),
        ([f"{text} <end>" for text in several], "6 texts with <end>"),
        (many, "40 short texts and one of 150 words"),
        ([tiny.words(rng, 5, 5), tiny.words(rng, 600, 600)], "a text of 5 words and one of 600"),
        (several, STARTS),
    ):
        got = ask("", probes.perplexity_of, perplexity, seed, texts, name == STARTS, hint=READS)
        wanted, call = guesses.perplexity(model, tokenizer, texts), f"perplexity of {name}"
        expect_number(got["value"], wanted, call, _thought(got, wanted, seed, texts))


STARTS = "6 texts by a tokenizer that puts a BOS before each"
NONE_ADDED = "and have the tokenizer add none (add_special_tokens=False)"
UNDERFLOW = "a product of many probabilities is 0 in floats: sum logarithms"
READS = {
    "negative power": UNDERFLOW,
    "must be Tensor, not": "a model reads token ids, a tensor (batch, n), and no text",
    "size of tensor": "a model reads (batch, n): one text is ids[None], (1, n)",
    "chat_template": "these are plain texts, no conversations: tokenizer(text)",
}


def _thought(got, wanted, seed, texts):
    """`{message: the learner's number}` where the number is wrong and a misconception gives it."""
    value = got["value"]
    if type(value) not in (int, float) or _near(value, wanted):
        return {}
    if value == math.inf:  # exp of a sum of losses is told of the first, short text
        return {UNDERFLOW: value}
    model, tokenizer = tiny.language_model(seed)
    longest = max(len(tokenizer(text)["input_ids"]) for text in texts)
    known = guesses.perplexities(model, tokenizer, texts)
    found = (message for message, number in known if _near(value, number, 5e-6))
    told = list(itertools.islice(found, 1))  # each costs passes: no more than are told
    if got["began"]:
        told.insert(0, f"a token such as BOS stands before each text: add none, {NONE_ADDED}")
    if got["training"]:
        told.insert(0, "the model was in train mode, where dropout is at work")
    if 1 < got["longest"] < longest - 1:  # one may read all tokens but the last
        least = f"a text has {longest} tokens, and the model saw {got['longest']} at most"
        told.append(f"{least}: cut none")
    return {message: value for message in told[:1]}


def _near(value, number, tol=1e-4):
    return abs(value - number) <= tol * abs(number)


LOADED = {
    "No adapter layers": "was the adapter merged? Leave it beside the base",
    "os.PathLike": "base comes first, then the folder",
    "Can't find 'adapter_config.json'": "the adapter lies in `folder`, the second argument: hand "
    "that on, and no name of your own",
    "has no attribute 'merge_and_unload'": "merge nothing: the adapter stays beside the base",
}


NO_PEFT = {  # where the adapter is, in what is no PeftModel
    "merged": "the adapter is merged into `base`, whose own weights are changed by that: no "
    "merge_and_unload: the adapter stays beside them",
    "by transformers": "that is transformers' own load_adapter, which makes no PeftModel: "
    "PeftModel.from_pretrained(base, folder)",
    "inside": "that is the model inside of the PeftModel: return the PeftModel itself",
    "nowhere": "that is a model without an adapter, never adapted, or taken off again: return what "
    "PeftModel.from_pretrained(base, folder) gives",
}


@exercise("3.8", points=2)
def loads_once(load_tuned):
    """a PeftModel on `base`, in eval mode, nothing trains, and the logits are those of the run"""
    rng = generator()
    seed = draw(1, 10**6, rng)
    ids = torch.randint(len(tiny.WORDS), (2, 9), generator=rng)
    for r in (draw(2, 4, rng), draw(5, 9, rng)):
        base, tuned = loading.tiny_adapted(seed, r)
        got = ask("", loading.reloaded, load_tuned, seed, r, ids, hint=LOADED)
        _expect_loaded(got, base, tuned, ids)


def _expect_loaded(got, base, tuned, ids):
    """A PeftModel on `base` itself, in eval mode; the base is whole below the adapter."""
    how = got.get("how")
    told = f"load_tuned(base, folder): {NO_PEFT.get(how)}; it gave a {got.get('is')}"
    expect(how is None, f"{told}, wanted a PeftModel")
    expect_object(got, "PeftModel", "load_tuned(base, folder)")
    with part():
        hint = "load_tuned left it in train mode, with dropout: call .eval()"
        expect(not got["training"], hint)
    with part():
        hint = "is_trainable=True or set_adapter() turned it on; it is to answer, not to learn"
        expect(not got["trains"], f"what load_tuned loads still trains; {hint}")
    with part():
        expect(
            got["own"],
            "load_tuned puts the adapter on another model than `base`",
            hint="it takes the memory twice: put the adapter on `base` itself",
        )
    with torch.no_grad():
        wanted, plain = (m(input_ids=ids).logits for m in (tuned, base))
    doubled = loading.scaled_logits(tuned, ids, 2.0)
    alike = got["logits"].shape == doubled.shape
    merged = alike and close(got["logits"], doubled, 1e-3)  # told by its logits
    with part():
        hint = "leave it beside them, and another one can take its turn"
        expect(not got["merged"], f"load_tuned merges the adapter into the base's weights: {hint}")
        wrapped = "one PeftModel is put into another, which hides the adapter; load it once"
        expect(got["wrapped"] == 1, f"load_tuned wraps twice: {wrapped}")
        cast = "load_tuned changed the dtype of the base's weights: leave them as they are"
        expect(got["dtype"], cast)
        told = "load_tuned changed the base's own weights: a merge that is undone leaves rounding"
        expect(got["kept"] or merged, f"{told}; merge nothing")
    twice = "the adapter counts twice, as with twice its alpha: merged into the base and loaded "
    twice += "again, or active under two names"
    known = {
        twice: doubled,
        f"these are the base model's: {_not_at_work(got['idle'])}": plain,
        "the adapter counts half": loading.scaled_logits(tuned, ids, 0.5),
    }
    expect_close(got["logits"], wanted, "the logits after load_tuned", known)
    hint = "load_tuned changed the base's own weights: don't merge"
    same = got["plain"].shape == plain.shape and torch.allclose(got["plain"], plain, atol=1e-4)
    expect(same, f"with the adapter off, the logits are not the base model's; {hint}")


def _not_at_work(idle):
    """Why the saved adapter adds nothing; `idle` is its name and the names that are active."""
    if not idle:
        return "the saved adapter isn't loaded, or is switched off"
    name, others = idle[0], " and ".join(map(repr, idle[1]))
    told = f"the saved adapter is loaded as {name!r}, but {others} is active and adds nothing"
    return f"{told}: model.set_adapter({name!r}), or PeftModel.from_pretrained(base, folder) alone"


@exercise("3.9", points=4)
def quiz(quiz):
    """four questions"""
    return judge(quiz, "03")
