"""Checks of lab 3. The reference is PEFT, plain training, or the check's own formula."""

import math

import torch
import torch.nn.functional as F

from labkit.checks.engine import expect_right
from labkit.checks.inputs import draw
from labkit.checks.quiz import quiz_of
from labkit.contract import exercise, generator
from labkit.probes import adapters, tiny
from labkit.probes import lab03 as probes

IGNORED, END = -100, 2  # 2 is SmolLM2's end token, and its padding token too
LINEAR = [f"self_attn.{part}_proj" for part in "qkvo"]
LINEAR += [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
LAYERS = sorted(f"model.layers.{i}.{name}" for i in range(2) for name in LINEAR)


@exercise("3.1", points=4)
def trains(train_adapter):
    """LoRA on all linear layers except the head, one pass in batches of 8, answers only, saved"""
    rng, cases = generator(), {}
    roles = [("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant") * 2]
    for n in (11, 20):
        talks = [_talk(rng, roles[i % 3], 1, 3) for i in range(n)]
        cases[f"after train_adapter on {n} rows"] = talks, draw(5, 50, rng) / 1000
    expect_right(train_adapter, cases, _trained, probes.trained)


def _talk(rng, roles, low, high):
    """Messages of `roles`, each with `low` to `high` words that the tiny tokenizer knows."""
    return [{"role": role, "content": tiny.words(rng, low, high)} for role in roles]


def _trained(talks, learning_rate):
    facts = {
        "the return value": "an SFTTrainer",
        "the trainer's model": "a PeftModel",
        "the layers that have LoRA": LAYERS,
        "r": 16,
        "lora_alpha": 32.0,
        "alpha / r": 2.0,
        "lora_dropout": 0.05,
        "task_type": "CAUSAL_LM",
        "the parameters that train": ["lora_A", "lora_B"],
        "the rows in each step": str([min(8, len(talks) - i) for i in range(0, len(talks), 8)]),
        "the learning rate": learning_rate,
        "the precision of the run": "the model's own (bf16=False)",
        "each row": "written with the chat template",
    }
    answers = [f"{talk[-1]['content']} <end>" for talk in talks[: probes.SHOWN]]
    facts |= dict(zip(map(probes.labeled, talks), answers, strict=False))
    return facts | {
        "the number of other rows with wrong labels": "0",
        "the layers whose B moved": LAYERS,
        "the files in output_dir": " and ".join(adapters.FILES),
        "the saved adapter": "the trained one",
    }


@exercise("3.2", points=3)
def end_trains(answer_labels):
    """prompts and padding have no label, whichever side is padded; the end token has one"""
    rng = generator()
    row = [[2, 2, 7, 8, 9, 2]], [[0, 0, 1, 1, 1, 1]], [2]
    cases = {"for the row from the text": tuple(map(torch.tensor, row))}
    for side in ("right", "left"):
        for pad in (END, 0):
            name = "the end token" if pad == END else "a token other than the end"
            cases[f"for rows padded on the {side} with {name}"] = _batch(side, pad, rng)
        ids, mask, prompts = (x.roll(-1, 0) for x in _batch(side, 0, rng))  # the longest row first
        used = mask.bool().any(0)
        where = f"for rows padded on the {side}, the first of which has no padding"
        cases[where] = ids[:, used], mask[:, used], prompts
    ids, mask, _ = _batch("right", END, rng)
    cases["for a prompt without an answer"] = ids[:1, :4], mask[:1, :4], torch.tensor([4])
    expect_right(answer_labels, cases, _labels, probes.labels)


def _batch(side, pad, rng):
    """Ids (4, n), mask, prompt lengths; one prompt has two turns, one row goes on after its end."""
    rows, prompts = [], []
    for turns, after in ((1, []), (2, []), (1, [9]), (1, [])):
        asked = [[*_ids(draw(2 * turns - 1, turns + 2, rng), rng), END] for _ in range(turns)]
        prompts.append(sum(map(len, asked)))
        zero = [0] * (pad != 0)  # a token like others, where padding is another one
        answer = [*_ids(draw(2, 5, rng), rng), *zero, END, *after]
        rows.append([token for turn in asked for token in turn] + answer)
    longest, ids, mask = max(map(len, rows)) + draw(0, 1, rng), [], []
    for row in rows:
        more, real = [pad] * (longest - len(row)), [1] * len(row)
        ids.append(row + more if side == "right" else more + row)
        none = [0] * len(more)
        mask.append(real + none if side == "right" else none + real)
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(prompts)


def _ids(n, rng):
    """n token ids other than the end token."""
    return torch.randint(20, 90, (n,), generator=rng).tolist()


def _labels(input_ids, attention_mask, prompt_lengths):
    labels = torch.full_like(input_ids, IGNORED)
    for row, real in enumerate(attention_mask.tolist()):
        places = [i for i, is_real in enumerate(real) if is_real][int(prompt_lengths[row]) :]
        labels[row, places] = input_ids[row, places]
    return probes.labels(lambda *_: labels, input_ids, attention_mask, prompt_lengths)


@exercise("3.3", points=2)
def prompt_opens_answer(render_prompt):
    """ends where the answer begins, has at most one BOS, and is a prefix of the conversation"""
    rng, cases = generator(), {}
    kinds = {  # where a BOS comes from
        "": "",
        "both": " and a tokenizer that puts a BOS before every text",
        "template": " and a template that writes a BOS",
    }
    talks = {
        "of one user message": ["user"],
        "of several turns": ["system", "user", "assistant", "user"],
        "of a system and a user message": ["system", "user"],
    }
    for of, roles in talks.items():
        for bos, tokenizer in kinds.items():
            cases[f"for a conversation {of}{tokenizer}"] = _talk(rng, roles, 2, 5), bos
    cases["for a message of 600 words"] = _talk(rng, ["user"], 600, 605), ""
    expect_right(render_prompt, cases, _prompt, probes.rendered)


def _prompt(messages, bos):
    tokenizer = probes.chat_tokenizer(bos)
    answered = [*messages, {"role": "assistant", "content": "lamp"}]
    whole = tokenizer.apply_chat_template(answered, return_dict=False)
    opening = tokenizer.convert_tokens_to_ids("<assistant>\n")
    prompt = whole[: len(whole) - whole[::-1].index(opening)]
    return probes.rendered(lambda *_: prompt, messages, bos)


@exercise("3.4", points=3)
def keeps_answer(fit):
    """cuts the prompt from its front; an answer that is cut has no end token"""
    rng = generator()
    by_hand = [5, 6, 7], [8, END]
    cases = {f"for the row from the text at max_length = {n}": (*by_hand, n) for n in (4, 2, 1)}
    a, p = draw(4, 6, rng), draw(8, 11, rng)
    for n_prompt, n_answer, longest, what in (
        (p, a, p + a + draw(1, 5, rng), "all of it fits"),
        (p, a, p + a, "all of it fits exactly"),
        (p, a, p + draw(1, a - 2, rng), "the prompt is too long"),
        (p, a, a + 1, "one token of the prompt fits"),
        (p + 9, a, p - 1, "the prompt alone is longer than max_length"),
        (p, a, a, "the answer leaves no room"),
        (p, a + 4, a + 1, "the answer alone is too long"),
        (0, a, a + 3, "there is no prompt"),
    ):
        where = f"for {n_prompt} prompt and {n_answer} answer tokens at max_length = {longest}"
        data = _ids(n_prompt, rng), [*_ids(n_answer - 1, rng), END], longest
        cases[f"{where} ({what})"] = data
    expect_right(fit, cases, _fitted, probes.fitted)


def _fitted(prompt_ids, answer_ids, max_length):
    answer = [token for i, token in enumerate(answer_ids) if i < max_length]
    room = max_length - len(answer)
    prompt = [token for i, token in enumerate(prompt_ids) if len(prompt_ids) - i <= room]
    labels = [IGNORED for _ in prompt] + answer
    pair = prompt + answer, labels
    return probes.fitted(lambda *_: pair, prompt_ids, answer_ids, max_length)


@exercise("3.5", points=3)
def checkpoints(with_checkpointing):
    """the same gradients as without checkpointing; each block is recomputed, one at a time"""
    rng = generator()
    names = sorted({name.rpartition(".")[2] for name in LINEAR})
    seed, ids = draw(1, 10**6, rng), torch.randint(len(tiny.WORDS), (2, 9), generator=rng)
    cases = {
        "with LoRA on the blocks and the head": (seed, [*names[:2], "lm_head"], ids),
        "with LoRA on the blocks alone": (seed + 1, names, ids),
        "with LoRA on the attention of each block": (seed + 2, names[3:5], ids),
    }
    expect_right(with_checkpointing, cases, _step, adapters.checkpointed, tol=1e-3)


def _step(seed, targets, ids):
    loss, grads = adapters.a_step(adapters.tuned(seed, 2, targets), seed, ids)
    return {
        "the return value": "the model it was given",
        "the parameters that train": ["lora_A", "lora_B"],
        "the forward pass of the blocks": "recorded for backward()",
        "loss.backward()": "run",
        "the A and B that get a gradient": sorted(grads),
        "the checkpointed blocks": ["model.layers.0", "model.layers.1"],
        "the most runs of a block in a step": 2,
        "the blocks": "recomputed one at a time",
        "the loss": loss,
        "the gradient of A and B": adapters.flat(grads),
        "the weights": "left as they were",
    }


@exercise("3.6", points=3)
def loads_once(load_tuned):
    """gives the run's logits, in eval mode, on an unchanged base; refuses names that don't fit"""
    rng = generator()
    seed, ids = draw(1, 10**6, rng), torch.randint(len(tiny.WORDS), (2, 9), generator=rng)
    cases = {}
    for targets in (["q_proj", "v_proj"], ["o_proj", "down_proj"]):
        r = draw(2, 9, rng)
        cases[f"given LoRA of rank {r} on {' and '.join(targets)}"] = seed, r, targets, ids
    expect_right(load_tuned, cases, _loaded, adapters.loaded)
    cases = {
        f"given a file {wrong}": (seed, 3, ["q_proj", "up_proj"], wrong)
        for wrong in adapters.MISFITS
    }
    refused = {"load_tuned()": "raise an error"}
    expect_right(load_tuned, cases, lambda *_: refused, adapters.misfit)


def _loaded(seed, r, targets, ids):
    with torch.no_grad():
        model = adapters.tuned(seed, r, targets)
        logits = model(input_ids=ids).logits
        plain = tiny.llama(torch.Generator().manual_seed(seed))(input_ids=ids).logits
    return {
        "the return value": "a PeftModel",
        "the number of adapters": 1,
        "the model": "in eval mode",
        "the parameters that train": [],
        "the model under the adapter": "`base` itself",
        "the number of PeftModels": 1,
        "the adapter": "next to the base's weights",
        "the adapter that is active": "the saved one",
        "the output": logits,
        "the base's weights": "left as they were",
        "the output with the adapter switched off": plain,
    }


@exercise("3.7", points=3)
def perplexity_weighs_tokens(perplexity):
    """exp of the mean loss over all predicted tokens, without padding"""
    rng = generator()
    seed = draw(1, 10**6, rng)
    several = [tiny.words(rng, n) for n in (3, 17, 5, 26, 2, 11)]
    many = [tiny.words(rng, 2, 9) for _ in range(40)]  # more than a batch, a long one among them
    many.insert(draw(10, 30, rng), tiny.words(rng, 60))
    cases = {
        "for one text": (seed, [tiny.words(rng, 9)]),
        "for 6 texts": (seed, several),
        "for 6 texts with <end>": (seed, [f"{text} <end>" for text in several]),
        "for 40 short texts and one of 60 words": (seed, many),
        "for texts of 5 and 2,500 words": (seed, [tiny.words(rng, 5), tiny.words(rng, 2500)]),
    }
    expect_right(perplexity, cases, _perplexity, probes.perplexity_of)
    cases = {"with a tokenizer that puts a BOS before each of 6 texts": (seed, several, True)}
    expect_right(perplexity, cases, _perplexity, probes.perplexity_of)


@torch.no_grad()
def _perplexity(seed, texts, start=False):
    model, tokenizer = tiny.language_model(seed)
    total = count = 0
    for text in texts:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        logits = model(input_ids=ids[None]).logits[0].double()
        total += F.cross_entropy(logits[:-1], ids[1:], reduction="sum").item()
        count += len(ids) - 1
    return {
        "the model": "in eval mode",
        "a text's first token": "its own",
        "the longest text": "whole",
        "the result": math.exp(total / count),
        "the tokenizer's settings": "left as they were",
    }


quiz = quiz_of("3.8", points=4)
