"""What exercise 3.4 expects of `render_prompt`: the tokens after which the model answers."""

import torch

from labkit.checks.compare import ask, every, kind_of
from labkit.contract import CheckFailed, expect
from labkit.labs.lab03 import probes

PROMPTS = {
    "returned a BatchEncoding": 'take its ["input_ids"], or pass return_dict=False',
    "returned an Encoding": 'take its ["input_ids"], or pass return_dict=False',
    "add_generation_tokens": "its name is add_generation_prompt",
    "empty conversation": "no message is left here: all of them are the prompt, the user's last "
    "one too, which messages[:-1] takes off",
    "continue_final_message": "the last message is the user's, and whole: add_generation_prompt",
    "unexpected keyword": "the parameters are messages and tokenizer",
    "indices must be": "messages is a list of dicts with role and content",
    "text input must be": "messages are no text: tokenizer.apply_chat_template",
    "NoneType": "a method of the tokenizer needs a value that this one has not",
}


KINDS = {  # where a BOS comes from
    "": "that adds nothing",
    "both": "that puts a BOS before all it reads",
    "template": "that adds nothing, with a BOS in its template",
}


def expect_prompt(render_prompt, rng):
    """The ids after which the model answers; a BOS comes of nothing, the template, or both."""
    talks = (["system", "user", "assistant", "user"], ["user"], ["system", "user"])
    cases = [(bos, roles, 0, rng) for bos in KINDS for roles in talks]
    cases.append(("", ["user"], 600, rng))
    every(lambda *case: _expect_prompt(render_prompt, *case), cases)


def _expect_prompt(render_prompt, bos, roles, longer, rng):
    messages = probes.talk(rng, roles, longer)
    tokenizer = probes.chat_tokenizer(bos)
    size = f" of {longer} words and more" if longer else ""
    call = f"render_prompt of {', '.join(roles)}{size} by a tokenizer {KINDS[bos]}"
    got = ask(call, probes.rendered, render_prompt, messages, bos, hint=PROMPTS)
    wanted = probes.whole(messages, bos)[0]
    expect(not isinstance(got, str), f"{call} gave text, wanted a list of ids: tokenize it")
    nested = isinstance(got, list) and len(got) == 1 and isinstance(got[0], list)
    expect(not nested, f"{call} gave a list inside a list: one conversation is one list of ids")
    tensor = "a tensor, wanted a plain list of ints: without return_tensors, or .tolist()"
    expect(not isinstance(got, torch.Tensor), f"{call} gave {tensor}")
    keys = isinstance(got, list) and "input_ids" in got
    expect(not keys, f'{call} gave the names of an encoding\'s parts: take its ["input_ids"]')
    words = isinstance(got, list) and any(isinstance(i, str) for i in got)
    expect(not words, f"{call} gave tokens as text, wanted their ids")
    dict_ = isinstance(got, dict)
    expect(not dict_, f'{call} gave a dict, wanted the list of ids in it: ["input_ids"]')
    ints = isinstance(got, list) and all(type(i) is int for i in got)
    expect(ints, f"{call} gave {kind_of(got)}, wanted a list of ints")
    other = "ids of another tokenizer; use the one that is given, and no name of your own"
    expect(all(0 <= i < len(tokenizer) for i in got), f"{call} gave {other}")
    if got == wanted:
        return
    faults = _faults(got, wanted, messages, bos, tokenizer)
    if faults:
        raise CheckFailed(f"{call}: {'; and '.join(faults)}")
    shown = " ".join(tokenizer.convert_ids_to_tokens(got))
    right = " ".join(tokenizer.convert_ids_to_tokens(wanted))
    raise CheckFailed(f"{call} reads “{shown}”, wanted “{right}”", bare=True)


NO_PROMPT = "it does not end in the generation prompt, so the model goes on as the user: "
NO_PROMPT += "add_generation_prompt=True"
TWICE = "two BOS stand in front, the template's and the tokenizer's: tokenize in the same call, or "
TWICE += "with add_special_tokens=False"


def _faults(got, wanted, messages, bos, tokenizer):
    """What is wrong with the ids, as texts; [] where it has no name."""
    start, end, ids, faults = tokenizer.bos_token_id, tokenizer.eos_token_id, list(got), []
    if bos and ids[:2] == [start, start]:
        faults, ids = [TWICE], ids[1:]
    elif bos and ids[:1] != [start] and [start, *ids] in (wanted, wanted[:-1]):
        faults = ["the BOS that the template writes is gone: it is part of the prompt"]
        ids = [start, *ids]
    elif not bos and ids[:1] == [start]:
        faults = ["a BOS stands in front that this model's template does not write"]
        ids = ids[1:]
    if ids in (wanted, wanted[:-1]):
        return [NO_PROMPT] * (ids != wanted) + faults
    if ids == [*wanted[:-1], tokenizer.convert_tokens_to_ids("<assistant>")]:
        return [*faults, "the line break at its end is gone: leave all that the template writes"]
    if ids == wanted[1:] and not bos:
        return [*faults, "its first token is gone, and that is no BOS here"]
    if ids in ([*wanted, end], [*wanted[:-1], end]):
        more = "an end token stands behind it, yours or that of an empty assistant message, which "
        more += "the template closes: add neither, add_generation_prompt=True opens the turn"
        return [NO_PROMPT] * (ids[-2:-1] != wanted[-1:]) + [*faults, more]
    for kept, told in _shorter(messages, bos):
        if ids in (kept, kept[:-1]):
            return [NO_PROMPT] * (ids != kept) + [*faults, told]
    told = _around(ids, wanted, tokenizer) or _other_marks(ids, wanted, messages, tokenizer)
    return [*faults, told] if told else []


def _around(ids, wanted, tokenizer):
    """What is wrong with ids that hold the wanted ones, or most of them; "" for others."""
    more = ids[len(wanted) :] if ids[: len(wanted)] == wanted else []
    if more == wanted[-1:]:
        return "the generation prompt stands there twice"
    if more and set(more) == {tokenizer.pad_token_id}:
        return "padding stands behind it: one prompt alone needs none"
    if len(ids) < len(wanted) - 2 and ids == wanted[: len(ids)]:
        return f"it is cut after {len(ids)} tokens: the prompt is whole, truncation is for rows"
    if ids == wanted[:-2]:
        told = "the last message is left open, as by continue_final_message: it is whole, and the "
        return told + "answer's turn comes after it: add_generation_prompt=True"
    if ids[-len(wanted) :] == wanted:
        return "something stands in front that is no message: the template writes all"
    return "the ids are turned round" if ids[::-1] == wanted else ""


def _other_marks(ids, wanted, messages, tokenizer):
    """What is wrong with ids that have the words and not what stands around them."""
    unknown, marks = tokenizer.unk_token_id, {*tokenizer.all_special_ids}
    if ids.count(unknown) > wanted.count(unknown):
        told = "it holds marks that this tokenizer does not know: another model's template is "
        return told + "written by hand; use tokenizer.apply_chat_template"
    plain = tokenizer(" ".join(m["content"] for m in messages), add_special_tokens=False)
    if ids[: len(plain["input_ids"])] == plain["input_ids"]:
        return "the texts alone, without roles and ends: use tokenizer.apply_chat_template"
    if [i for i in ids if i not in marks] == [i for i in wanted if i not in marks]:
        told = "the words are right, and roles or ends of messages are not: leave them to "
        return told + "tokenizer.apply_chat_template"
    return ""


def _shorter(messages, bos):
    """`(ids, message)` of conversations of which messages are missing, or turned round."""
    for some, told in (
        (messages[-1:], "the last message alone is rendered: all of them are the prompt"),
        (messages[:-1], "the last message is missing: here it is the user's, and is asked"),
        ([m for m in messages if m["role"] != "system"], "the system message is missing"),
        ([m for m in messages if m["role"] == "user"], "only the user's messages are rendered"),
        (messages[::-1], "the messages are turned round"),
        (messages[:1], "the first message alone is rendered: all of them are the prompt"),
    ):
        if some and some != messages:
            yield probes.whole(some, bos)[0], told
