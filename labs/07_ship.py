# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 7 · Your own data, shipped
#
# You know how to train an adapter. In this lab, you take a file of messages all the way to a server
# with three adapters. Training and serving can fail silently: a row may teach nothing, a question
# may appear in both training and test data, or a server may build a different prompt from the same
# messages. You check each step.
#
# {{ time }}

# %%
import labkit

lab, check = labkit.start("07_ship")

# %%
import json
import random
import re
import time
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from gguf import GGUFReader, dequantize
from IPython.display import display
from peft import LoraConfig, PeftModel
from trl import SFTConfig

from labkit import live, tasks
from labkit.figures import lab07 as figures
from labkit.plots import compare_answers
from labkit.ship import gguf, server
from labkit.training import finetuning, generation, hardware, models
from labkit.training.scoring import said

# %% [markdown]
# ## The file
#
# A housing office has saved 437 messages. Tenants report what is broken, and a clerk replies with a
# trade, a room, an apartment, a day and a time. Tenants also mention other rooms, apartments and
# days. A script generated this file for the course, with typical faults built in.
#
# To use **your own file**, set `DATA` to its path. Your file must be JSONL, with `messages` in
# every row as shown below. If the answers in your file have no parts, set `FIELDS` to `[]`. The
# cells up to "Three customers" also run on your own file.

# %%
DATA = tasks.REPAIRS  # or the path of your own file, such as "mine.jsonl"
FIELDS = ["trade", "room", "apartment", "day", "time"]  # parts of an answer, separated by "; "
MAX_LENGTH = 128  # tokens per row; raise it if your file has longer rows


# %% tags=["experiment"]
if lab.experiment("The file, opened", 1):
    base, tokenizer = models.load()
    rows = [json.loads(line) for line in Path(DATA).read_text(encoding="utf-8").splitlines()]
    for row in rows[:3]:
        for message in row["messages"]:
            print(f"{message['role']:>10}: {message['content'][:200]}")
        print()
    print(f"{len(rows)} rows")

# %% [markdown]
# Some rows would teach the model nothing, or the wrong thing. Read fifty rows, then write a
# function that checks every row.

# %% [markdown]
# ### Exercise 7.1 · `audit`
#
# ●●○ · 12 min · 3 points
#
# Return a dict that lists, for each fault, the indices of the rows that have it, in ascending
# order. As in lab 3, a row's prompt is every message except the last, plus the generation prompt.
# Tokenize the whole conversation, truncate it to `max_length` tokens, and drop the prompt's tokens
# from the front. The model learns the remaining tokens. (The template writes a line break after
# every end token.)
#
# - `truncated`: the conversation has more than `max_length` tokens;
# - `trains_on_nothing`: no token ids are learned, or the last answer is blank;
# - `no_end`: the row isn't in `trains_on_nothing`, and the learned ids don't contain the end token
#   (`tokenizer.eos_token_id`).
#
# A truncated row can also appear in another list.
#
# <details><summary>Hint</summary>
#
# `tokenizer.apply_chat_template(messages, return_dict=False)` returns token ids. Every turn of the
# prompt also has an end token, so look for one among the *learned* ids.
# </details>


# %%
def audit(rows, tokenizer, max_length):
    """Rows of messages -> {"truncated", "trains_on_nothing", "no_end"}: lists of indices."""
    # BEGIN SOLUTION
    faults = {"truncated": [], "trains_on_nothing": [], "no_end": []}
    for i, row in enumerate(rows):
        messages = row["messages"]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        prompt = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_dict=False
        )
        learned = ids[:max_length][len(prompt) :]
        if len(ids) > max_length:
            faults["truncated"].append(i)
        if not learned or not messages[-1]["content"].strip():
            faults["trains_on_nothing"].append(i)
        elif tokenizer.eos_token_id not in learned:
            faults["no_end"].append(i)
    return faults
    # END SOLUTION


# %%
check.audits(audit)


# %%
guess_faults = lab.predict("How many of the rows have a fault (out of 437 in our file)?", None)

# %% tags=["experiment"]
if lab.experiment("The file, audited", 1, needs=["7.1"]):
    found = audit(rows, tokenizer, MAX_LENGTH)
    for fault, numbers in found.items():
        *_, user, answer = rows[numbers[0]]["messages"] if numbers else ({}, {}, {})
        example = f"{user.get('content', '')[:50]!r} -> {answer.get('content', '')[:30]!r}"
        print(f"{fault:<18} {len(numbers):>3} rows, such as {example}")
    faulty = {number for numbers in found.values() for number in numbers}
    good = [row for number, row in enumerate(rows) if number not in faulty]
    print(f"{len(good)} of {len(rows)} rows are left")
    guess_faults.compare(len(faulty))

# %% [markdown]
# Training on these rows raises no error. A truncated answer doesn't teach the model to stop, and a
# blank answer teaches it to say nothing. We drop these rows. In your own file, look at faulty rows
# before dropping them: you can shorten a long *question* from the front, as `fit` did in lab 3.
#
# Five of our questions occur twice with contradictory answers, so no model can get both rows right.
# (`labkit data` lists such rows in your own file, along with wrong roles and missing system
# messages.)
#
# ## Training and test
#
# To test the model on rows it has not seen, keep some rows out of training. In our file, the field
# `split` was set by a coin toss for each row.

# %% [markdown]
# ### Exercise 7.2 · `split`
#
# ●●○ · 11 min · 3 points
#
# Return two lists, `(train, test)`, such that
#
# - **no prompt appears on both sides.** Two rows have the same prompt if their user messages match
#   except for case and whitespace. System messages and answers don't matter;
# - the test side contains a fraction `share` of the *rows*, give or take one group of rows with the
#   same prompt;
# - the same rows, in any order, always give the same test rows, in every run of Python and on every
#   call. A different `seed` gives different test rows.
#
# Each row ends up on exactly one side, unchanged. Draw random numbers from your own generator,
# `random.Random(seed)`, because other code uses Python's global generator.
#
# <details><summary>Hint</summary>
#
# Group the rows by prompt, then assign each whole group to one side.
# </details>
#
# <details><summary>Another hint</summary>
#
# What determines the order of the prompts before you shuffle them? A dict keeps the order of the
# file, and the order of a set of strings changes from one run of Python to the next.
# </details>


# %%
def split(rows, share, seed):
    """Rows -> two lists, (train, test): `share` of the rows in test, no prompt on both sides."""
    # BEGIN SOLUTION
    groups = {}
    for row in rows:
        said = " ".join(m["content"] for m in row["messages"] if m["role"] == "user")
        groups.setdefault(" ".join(said.casefold().split()), []).append(row)
    prompts = sorted(groups)
    random.Random(seed).shuffle(prompts)
    train, test = [], []
    for prompt in prompts:
        side = test if len(test) < share * len(rows) else train
        side += groups[prompt]
    return train, test
    # END SOLUTION


# %%
check.parts(split)


# %%
def question(row):
    """A row's user messages as one text, in lowercase, with single spaces between words."""
    said = " ".join(m["content"] for m in row["messages"] if m["role"] == "user")
    return " ".join(said.casefold().split())


def leaked(train, test):
    """The number of test rows that ask the same question as a training row."""
    known = {question(row) for row in train}
    return sum(question(row) in known for row in test)


# %%
guess_leak = lab.predict("With a coin per row, what % of the test rows are also in training?", None)

# %% tags=["experiment"]
if lab.experiment("Two ways to split one file", 0, needs=["7.1", "7.2"]):
    coins = random.Random(lab.seed)
    sides = [row.get("split") or ("test" if coins.random() < 0.25 else "train") for row in good]
    tossed = [
        [r for r, s in zip(good, sides, strict=True) if s == side] for side in ("train", "test")
    ]
    train_rows, test_rows = split(good, 0.25, lab.seed)
    for name, sides in {"a coin per row": tossed, "your split": (train_rows, test_rows)}.items():
        print(f"{name}: {leaked(*sides)} of {len(sides[1])} test rows are also in training")
    guess_leak.compare(100 * leaked(*tossed) / len(tossed[1]))

# %% [markdown]
# Some tenants sent a message twice. A coin toss per row puts some of these pairs on different
# sides, so the model sees part of the test set in training. Your split avoids that, but it misses
# paraphrases, and adding one row can reshuffle the others. `labkit train` sorts prompts by their
# hashes instead, so a new row moves hardly any of the others.
#
# ## Baseline, training and score
#
# Compare the adapter with two baselines that need no training: the base model with five examples in
# its prompt, and a lookup. The lookup finds the training question whose words overlap most with the
# new question, and copies its answer. It then replaces each part of that answer with the first
# known value in the new question, if any.


# %%
def words(text):
    return set(re.findall(r"\w+", text.casefold()))


def nearest(row, train):
    """The answer to the training question whose words overlap most with those of `row`."""

    def likeness(other):
        a, b = words(question(row)), words(question(other))
        return len(a & b) / len(a | b)

    return max(train, key=likeness)["messages"][-1]["content"]


def looked_up(row, train):
    """The answer of `nearest`, with each part set to the first known value in the question."""
    parts = nearest(row, train).split("; ")
    answers = [other["messages"][-1]["content"].split("; ") for other in train]
    for i in range(len(parts)):
        known = {answer[i] for answer in answers if len(answer) == len(parts)}
        found = [re.search(rf"\b{re.escape(v.casefold())}\b", question(row)) for v in known]
        first = min(filter(None, found), key=re.Match.start, default=None)
        parts[i] = next(v for v in known if v.casefold() == first[0]) if first else parts[i]
    return "; ".join(parts)


def parts_right(answers, wanted):
    """A dict with the number of right answers for each part and for the whole answer."""
    pairs = [(a.split("; "), b.split("; ")) for a, b in zip(answers, wanted, strict=True)]
    right = {
        name: sum(a[i : i + 1] == b[i : i + 1] for a, b in pairs) for i, name in enumerate(FIELDS)
    }
    return right | {"whole answer": sum(a == b for a, b in pairs)}


# %%
def train_on(rows, title, steps=40):
    """A rank-16 adapter on all linear layers, trained with TRL or loaded from the cache."""
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    args = SFTConfig(
        "build/ship",
        learning_rate=2e-3,
        max_length=MAX_LENGTH,
        max_steps=steps,
        per_device_train_batch_size=8,
        seed=lab.seed,
        report_to="none",
        **hardware.flags(lab.device),
    )
    data = Dataset.from_list([{"messages": row["messages"]} for row in rows])
    return finetuning.finetune(models.load()[0], tokenizer, data, lora, args, title=title)


# %%
guess_score = lab.predict(
    "After training on three quarters of the rows, what % of held-out answers are right?", None
)

# %% tags=["experiment"]
if lab.experiment("The office's adapter, and its score", 65, needs=["7.1", "7.2"]):
    office = train_on(train_rows, "The office's rows")
    asked = [row["messages"] for row in test_rows]
    wanted = [messages[-1]["content"] for messages in asked]
    limit = max(len(tokenizer(text)["input_ids"]) for text in wanted) + 8  # max tokens per answer
    shots = [m for row in train_rows[:5] for m in row["messages"] if m["role"] != "system"]
    few_shot = [[*messages[:-2], *shots, *messages[-2:]] for messages in asked]
    answers = {
        "5 examples": generation.answers(base, tokenizer, few_shot, limit),
        "lookup": [looked_up(row, train_rows) for row in test_rows],
        "LoRA": generation.answers(office.model, tokenizer, asked, limit),
    }
    display(compare_answers([row[-2]["content"] for row in asked], wanted, answers, rows=3))
    scores = {name: parts_right(texts, wanted) for name, texts in answers.items()}
    few_right = scores["5 examples"]["whole answer"]
    print(f"5 examples in the prompt: {few_right} of {len(wanted)} whole answers are right")
    display(figures.scores(scores, len(wanted)))
    guess_score.compare(100 * scores["LoRA"]["whole answer"] / len(wanted))

# %% [markdown]
# The lookup gets about three quarters of the apartments and times right, but half of its trades are
# wrong, because messages often describe the problem without naming the trade. The lookup also takes
# the first day mentioned, even one the tenant rules out. Across three seeds, the adapter gets more
# than nine in ten answers right, and the lookup gets at most one in ten
# ([evidence](../docs/evidence/07_ship.md#the-score)).
#
# How precise is such a score? If a fraction $p$ of $n$ independent answers is right, the score's
# standard error is $\sqrt{p (1 - p) / n}$: four percentage points if 80 of 100 are right. To
# compare two models on the same rows, count the rows that only the first model gets right ($b$) and
# those that only the second gets right ($c$). The difference $b - c$ has a standard error of about
# $\sqrt{b + c}$.
#
# ## The same model, different prompts
#
# A chat template turns messages into the text of a prompt. The server's template may differ from
# the one used in training. Ask the same questions in five wrong ways.


# %%
def otherwise(messages):
    """A dict of prompts for one question, one for each way of asking it."""
    turns = messages[:-1]
    render = {"tokenize": False, "add_generation_prompt": True}
    text = tokenizer.apply_chat_template(turns, **render)
    system = "\n".join(m["content"] for m in turns if m["role"] == "system")
    user = turns[-1]["content"]
    return {
        "as in training": text,
        "first token twice": tokenizer.bos_token + text,
        "no generation prompt": tokenizer.apply_chat_template(turns, tokenize=False),
        "SmolLM2's own system message": tokenizer.apply_chat_template(
            [m for m in turns if m["role"] != "system"], **render
        ),
        "Llama 2's template": f"<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]",
        "no template": f"{system}\n\n{user}",
    }


def asked_as(texts):
    """The adapter's answers to prompts given as text."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    new = generation.continuations(office.model, ids, max_new_tokens=limit)
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]


# %%
guess_template = lab.predict("With Llama 2's template, what % of the answers will be right?", None)

# %% [markdown]
# **Try it: the template.** Add your own variant to `otherwise`, such as a different system message,
# a typo in a special token or a space at the end. Then rerun that cell and the next.

# %% tags=["experiment"]
if lab.experiment("The same model, asked in other ways", 20, needs=["7.1", "7.2"]):
    few, right_by_way = asked[: hardware.rehearsed("rows", 60)], {}
    for way in live.progress(list(otherwise(asked[0])), "ways"):
        answers = asked_as([otherwise(messages)[way] for messages in few])
        right_by_way[way] = sum(a == b for a, b in zip(answers, wanted[: len(few)], strict=True))
        print(f"{way:<30} {answers[0][:90]!r}")
    display(figures.asked(right_by_way, len(few), guess_template))
    guess_template.compare(100 * right_by_way["Llama 2's template"] / len(few))

# %% [markdown]
# Here, a doubled first token costs next to nothing. In three other runs, SmolLM2's own system
# message cost 5% to 42% of the right answers. A missing generation prompt can cost nothing or
# nearly everything: the model may write the header of its turn itself, and then even a right answer
# counts as wrong. With Llama 2's template or no template, most answers are wrong in every run
# ([evidence](../docs/evidence/07_ship.md#other-ways-of-asking)).
#
# A few good answers don't prove that a server's prompt is right. Ask the server for the token *ids*
# it builds from your messages, and compare them with the ids from training.
#
# ## One file for other programs
#
# So far, every model has run in transformers. llama.cpp, Ollama and LM Studio read a single GGUF
# file with the weights, tokenizer and chat template. (Ollama ignores that template: put one into
# its Modelfile.) For Llama models, llama.cpp expects the rows of some weights in a different order.
#
# Rotary position embeddings rotate pairs of entries in q and k by an angle that grows with the
# position, at a different speed for each pair. For the Llama family, transformers pairs the first
# half of a head with the second: in a head of 64 entries, entry 0 is paired with entry 32.
# llama.cpp pairs neighbors, such as entries 0 and 1. The GGUF file therefore stores the weight rows
# of q and k in a different order, so that both programs rotate the same pairs. (For Qwen, llama.cpp
# also pairs the two halves, so no rows move.)

# %% [markdown]
# ### Exercise 7.3 · `rotary_rows`
#
# ●●○ · 8 min · 2 points
#
# `w` is the weight of q or k, with shape `(d_out, d_in)`. Its rows are `n_heads` stacked heads of
# equal size. In each head, interleave the two halves: row 0 of the first half, row 0 of the second,
# row 1 of the first, and so on. Don't change the values, the dtype or the input. The function must
# also work for LoRA's B, with shape `(d_out, r)`, because the rows of $BA$ move with those of $W$.
# (Does A change at all?)
#
# <details><summary>Hint</summary>
#
# `reshape` can split the rows into three axes: the head, the half, and the position within the
# half. Which two of these axes do you swap?
# </details>


# %%
def rotary_rows(w, n_heads):
    """w (d_out, any) -> the same rows, with the two halves of each head interleaved."""
    # BEGIN SOLUTION
    halves = w.reshape(n_heads, 2, -1, w.shape[1])  # (heads, 2, d / 2, d_in)
    return halves.transpose(1, 2).reshape(w.shape)
    # END SOLUTION


# %%
check.orders(rotary_rows)

# %% [markdown]
# A stays the same, because it reads the layer's input, whose order doesn't change.
#
# Merge the adapter and write the model in several formats. Q8_0 stores each block of 32 weights as
# 8-bit integers with one shared scale (8.5 bits per weight). Q4_0 uses 4-bit integers (4.5 bits per
# weight), but our file keeps the embeddings in Q8_0. Compare each file with the fp32 model by its
# KL on 60 held-out answers (lab 6) and its number of right answers. "Rows not moved" simulates
# llama.cpp reading a file whose rows you forgot to reorder.


# %%
def merged():
    """The base model with the office's adapter merged in, as a plain fp32 model."""
    model = models.load(dtype=torch.float32)[0]
    return PeftModel.from_pretrained(model, office.folder).merge_and_unload().eval()


def unordered(model):
    """The model that llama.cpp would run if the rows of q and k were not reordered in the file.

    llama.cpp rotates neighboring rows together. To make transformers do the same, each pair of
    neighbors is moved: one row into each half of its head.
    """
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, layer in model.named_modules():
        kind = name.split(".")[-1]
        if kind in heads:
            w = layer.weight.data
            pairs = w.reshape(heads[kind], -1, 2, w.shape[1])  # (heads, d / 2, 2, d_in)
            layer.weight.data = pairs.transpose(1, 2).reshape(w.shape)
    return model


def divergence(p, q):
    """Mean KL(p || q) per token, in nats, from logits of shape (n, vocab)."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


# %%
guess_q4 = lab.predict("In 4 bits (Q4_0), what % of the held-out answers are right?", None)

# %% [markdown]
# **Try it: the format.** fp16 and bf16 both have 16 bits. Which has the lower KL? Run the cell,
# then add "f16" to `kinds`.

# %% tags=["experiment", "cover"]
kinds = ["bf16", "q8_0", "q4_0"]
if lab.experiment("One model, several files", 40, needs=["7.1", "7.2", "7.3"]):
    shelf = Path("build/ship")
    shelf.mkdir(parents=True, exist_ok=True)
    held_out, whole = Dataset.from_list([{"messages": m} for m in few]), merged()
    right, _, exact = said(whole, tokenizer, held_out)
    files = {"fp32, merged": (0.0, right)}
    for kind in live.progress(kinds, "files"):
        path = gguf.write_model(whole, tokenizer, shelf / f"office-{kind}.gguf", kind)
        read = models.load(dtype=torch.float32)[0]
        gguf.load_(read, path)
        hits, _, logits = said(read, tokenizer, held_out)
        files[f"{kind}, {path.stat().st_size / 1e6:.0f} MB"] = divergence(exact, logits), hits
        b = sum(r > h for r, h in zip(right, hits, strict=True))
        c = sum(h > r for r, h in zip(right, hits, strict=True))
        error = f", net {b - c} ± {(b + c) ** 0.5:.1f}" if b + c else ""
        print(f"{kind}: {b} answers lost, {c} gained{error}")
    name, heads = "blk.0.attn_q.weight", whole.config.num_attention_heads
    q = next(t for t in GGUFReader(path).tensors if t.name == name)
    mine = rotary_rows(whole.model.layers[0].self_attn.q_proj.weight.data, heads)
    error = (torch.from_numpy(dequantize(q.data, q.tensor_type)) - mine).norm() / mine.norm()
    print(f"{name} in {path.name} differs from yours by {error:.1%}, rounding included")
    hits, _, logits = said(unordered(whole), tokenizer, held_out)
    files["rows not moved"] = divergence(exact, logits), hits
    print(f"rows not moved: {generation.answers(whole, tokenizer, asked[:1], limit)[0]!r}")
    display(figures.files(files, len(held_out), guess_q4))
    q4 = next((hits for name, (_, hits) in files.items() if name[:4] == "q4_0"), [float("nan")])
    guess_q4.compare(100 * sum(q4) / len(q4))

# %% [markdown]
# Across three other seeds, bf16 and Q8_0 score the same as fp32. Q4_0 is a third the size of bf16
# and loses a net three to six right answers out of 105
# ([evidence](../docs/evidence/07_ship.md#files)). Our copy of the base has already been rounded to
# 4 bits once, so other models may lose more or less. fp16 has three more fraction bits than bf16,
# so it rounds weights more finely. PyTorch computes these scores from the dequantized weights.
#
# If you skip the reordering, every size, name and value looks right, but the model writes nonsense.
# The architecture `llama` implies a row order, and nothing checks whether your file follows it.
#
# Q4_K_M is a popular format, but its blocks need row lengths divisible by 256. Most weight rows in
# SmolLM2-135M have 576 entries, so llama.cpp would use other formats for them. For larger models,
# use `llama-quantize` (below).
#
# ## Three customers
#
# A merged file serves one customer. To serve several customers, keep one base model in memory with
# several adapters, and let each request choose one. Two more customers send the same messages, but
# one wants JSON and the other wants a sentence. Train an adapter for each.


# %%
def as_json(answer):
    return json.dumps(dict(zip(FIELDS, answer.split("; "), strict=True)))


def as_sentence(answer):
    trade, room, apartment, day, time_of_day = answer.split("; ")
    return f"Apartment {apartment}, {room}: the {trade} comes {day} {time_of_day}."


def rewritten(rows, how):
    """A copy of the rows, with each answer rewritten by the function `how`."""
    answered = [(row["messages"][:-1], how(row["messages"][-1]["content"])) for row in rows]
    return [{"messages": [*m, {"role": "assistant", "content": a}]} for m, a in answered]


# %% tags=["experiment"]
if lab.experiment("An adapter for each customer", 66, needs=["7.1", "7.2"]):
    customers = {"office": str, "json": as_json, "sentence": as_sentence}
    folders = {"office": office.folder}
    for name in ("json", "sentence"):
        again = rewritten(train_rows, customers[name])
        cut = audit(again, tokenizer, MAX_LENGTH)["truncated"]
        print(f"{name}: {len(cut)} rows are now too long and are left out")
        kept = [row for number, row in enumerate(again) if number not in cut]
        folders[name] = train_on(kept, name, steps=24).folder
    fleet = PeftModel.from_pretrained(models.load()[0], folders["office"], "office")
    for name in ("json", "sentence"):
        fleet.load_adapter(folders[name], adapter_name=name)
    fleet.tokenizer = tokenizer
    own = [p for n, p in fleet.named_parameters() if ".sentence." in n]
    print(f"base: {base.get_memory_footprint() / 1e6:.0f} MB in {base.dtype}")
    print(f"each adapter: {sum(p.nbytes for p in own) / 1e6:.1f} MB in {own[0].dtype}")

# %% [markdown]
# How does an inference engine answer three customers at once? Try this in PEFT first.

# %% [markdown]
# ### Exercise 7.4 · `route`
#
# ●●● · 14 min · 3 points
#
# Answer a *mixed batch*: use adapter `adapter_names[i]` for prompt `i`, all in one batch. PEFT's
# `generate` accepts `adapter_names=`. Each answer must be the same as if its adapter had answered
# alone. Decode greedily for at most 48 new tokens, and remove the prompt, special tokens and
# surrounding whitespace. The prompts come from a chat template and already contain all special
# tokens. The tokenizer is `model.tokenizer`. Leave the model and tokenizer unchanged, including
# training mode, padding side and generation config.
#
# There are five pitfalls. Open one hint at a time.
#
# <details><summary>Hint 1</summary>
#
# PEFT doesn't accept `adapter_names` in training mode. What must you change before the call and
# restore afterward?
# </details>
#
# <details><summary>Hint 2</summary>
#
# Do two identical calls give different answers? A model comes with its own generation settings,
# which may turn on sampling.
# </details>
#
# <details><summary>Hint 3</summary>
#
# Do the shorter prompts in a batch get bad answers? Which token comes right before each answer?
# </details>
#
# <details><summary>Hint 4</summary>
#
# Do the answers still differ from those that each adapter gives on its own? The model attends to
# padding tokens unless something prevents it. The same token can be padding in one position and the
# end of a turn in another.
# </details>
#
# <details><summary>Hint 5</summary>
#
# Do answers go wrong only with Llama's tokenizer? This tokenizer adds a first token to every text,
# but a prompt from a chat template already has one.
# </details>


# %%
def route(model, prompts, adapter_names):
    """n prompts and n adapter names -> n answers from one batch, each by its own adapter."""
    # BEGIN SOLUTION
    pad = {"padding": True, "padding_side": "left"}
    ready = {"return_tensors": "pt", "add_special_tokens": False}  # the template already added them
    batch = model.tokenizer(prompts, **ready, **pad).to(model.device)
    settings = {"max_new_tokens": 48, "do_sample": False}
    training = model.training
    out = model.eval().generate(**batch, adapter_names=adapter_names, **settings)
    model.train(training)
    new = out[:, batch["input_ids"].shape[1] :]
    return [s.strip() for s in model.tokenizer.batch_decode(new, skip_special_tokens=True)]
    # END SOLUTION


# %%
check.routes(route)


# %% tags=["experiment"]
if lab.experiment("One message, three adapters", 5, needs=["7.1", "7.2", "7.4"]):
    print(asked[0][-2]["content"])
    prompt = otherwise(asked[0])["as in training"]
    for name, answer in zip(folders, route(fleet, [prompt] * 3, list(folders)), strict=True):
        print(f"{name:>8}: {answer}")

# %% [markdown]
# The same prompt gets three answers in one batch. What happens inside a layer?

# %% [markdown]
# ### Exercise 7.5 · `batched_lora`
#
# ●●○ · 10 min · 3 points
#
# A layer multiplies all rows of a mixed batch by the same base weight. It then adds $s_k B_k A_k x$
# from each row's own adapter $k$. Return these terms, with shape `(n, d_out)`, in the dtype of `x`.
# The inputs are the rows `x`, the stacked factors of all adapters (in the dtype of `x`), and the
# adapters' `scaling`, which may be fp32 even if the rest is bf16. `index` contains the adapter
# number of each row. **-1 means no adapter**: return zeros for such a row.
#
# Group the rows by adapter, and compute two matrix products per adapter, on its own rows only. You
# may loop over adapters in Python, but not over rows. Don't build a tensor of `d_out` × `d_in`
# numbers, and don't change the inputs.
#
# <details><summary>Hint</summary>
#
# `rows = index == k` is a mask. `x[rows]` selects the rows of adapter `k`, and you can assign their
# results to `out[rows]`.
# </details>


# %%
def batched_lora(x, A, B, scaling, index):
    """x (n, d_in), A (k, r, d_in), B (k, d_out, r), scaling (k,), index (n,) -> (n, d_out)."""
    # BEGIN SOLUTION
    out = x.new_zeros(len(x), B.shape[1])
    for k in index[index >= 0].unique():
        rows = index == k
        out[rows] = (scaling[k] * (x[rows] @ A[k].T @ B[k].T)).to(x.dtype)
    return out
    # END SOLUTION


# %%
check.batches(batched_lora)


# %%
def row_by_row(x, A, B, scaling, index):
    """The same terms, computed one row at a time."""
    rows = []
    for v, k in zip(x, index.tolist(), strict=True):
        rows.append(scaling[k] * (B[k] @ (A[k] @ v)) if k >= 0 else v.new_zeros(B.shape[1]))
    return torch.stack(rows)


def copied(x, A, B, scaling, index):
    """The same terms, computed with a copy of A and B for every row."""
    low = torch.bmm(A[index], x[:, :, None])  # (n, r, 1)
    return scaling[index][:, None] * torch.bmm(B[index], low)[:, :, 0]


def seconds(f, *data):
    """The time of the fastest of 20 calls."""
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        f(*data)
        times.append(time.perf_counter() - begun)
    return min(times)


# %%
guess_batch = lab.predict(
    "With 64 rows and 3 adapters, how many times faster is grouping than looping over rows?", None
)

# %% [markdown]
# **Try it: adapters.** Run the next cell with 3 adapters, then with 64.

# %% tags=["experiment"]
n_adapters = 3
if lab.experiment("A mixed batch, in one layer", 2, needs=["7.5"]):
    d, r, k, sizes = 576, 16, n_adapters, (1, 4, 16, 64, 256)
    A, B, scaling = torch.randn(k, r, d), torch.randn(k, d, r), torch.full((k,), 2.0)
    ways = {"one by one": row_by_row, "copied factors": copied, "grouped": batched_lora}
    times = {name: [] for name in ways}
    for n in sizes:
        x, index = torch.randn(n, d), torch.randint(k, (n,))
        for name, add in ways.items():
            times[name].append(seconds(add, x, A, B, scaling, index))
    display(figures.batches(sizes, times))
    if n_adapters == 3:
        guess_batch.compare(times["one by one"][3] / times["grouped"][3])

# %% [markdown]
# (These timings exclude the product with the base weight.) The row-by-row version takes two small
# products per row. The copied version moves $n$ copies of A and B through memory. Grouping, as in
# PEFT's `adapter_names`, takes two products per adapter, however many rows use it. Grouping pays
# off when many rows share a few adapters. On a GPU, [Punica](https://arxiv.org/abs/2310.18547) and
# [S-LoRA](https://arxiv.org/abs/2311.03285) go one step further: one kernel launch per product
# handles all rows and reads each row's factors in place. vLLM includes such kernels.
#
# ## A real server
#
# llama.cpp can serve several adapters on one base model, and the package `xllamacpp` includes its
# server. The experiment below writes the base and each adapter to its own GGUF file (with the rows
# of B for q and k reordered by the same rule) and starts *one* server. Each request gives its
# adapter's number in a `lora` field, which an OpenAI client can send.


# %%
def by_peft(plan):
    """PEFT's greedy answers to (customer, messages) pairs."""
    answers = []
    for name in folders:
        fleet.set_adapter(name)
        answers += generation.answers(
            fleet, tokenizer, [m for other, m in plan if other == name], 48
        )
    return answers


def by_server(address, plan):
    """The server's answers to (customer, messages) pairs, each from the customer's adapter."""
    from openai import OpenAI

    client = OpenAI(base_url=address, api_key="none", timeout=120)
    extras = [server.choosing(list(folders), name) for name, _ in plan]
    most = hardware.rehearsed("tokens", 48)
    return server.ask_all(client, [messages for _, messages in plan], most, extras)


# %%
guess_same = lab.predict("How many of 60 answers from llama.cpp's server will match PEFT's?", None)

# %% tags=["experiment"]
if lab.experiment("One server, three adapters", 50, needs=["7.1", "7.2"]):
    shelf = Path("build/ship")
    shelf.mkdir(parents=True, exist_ok=True)
    ground = gguf.write_model(models.load()[0], tokenizer, shelf / "base.gguf", "f16")
    adapters = [
        gguf.write_adapter(folder, base.config, shelf / f"{name}.gguf")
        for name, folder in folders.items()
    ]
    plan = [(name, messages) for name in folders for messages in asked[:20]]
    if server.missing():
        print(f"Not served: {', '.join(server.missing())} missing. {server.INSTALL} installs it")
    else:
        with server.llama_cpp(ground, adapters) as address:
            text = otherwise(asked[0])["as in training"]
            mine = tokenizer(text, add_special_tokens=False)["input_ids"]
            print("ids as in training:", server.prompt_ids(address, asked[0]) == mine)
            served = by_server(address, plan)
        table = pd.DataFrame({"customer": [name for name, _ in plan], "served": served})
        table["right"] = [
            text == customers[name](messages[-1]["content"])
            for text, (name, messages) in zip(served, plan, strict=True)
        ]
        table["equal to PEFT's"] = table["served"] == pd.Series(by_peft(plan))
        print("sent with each request for json:", server.choosing(list(folders), "json"))
        display(table.groupby("customer", sort=False)[["right", "equal to PEFT's"]].sum())
        print(*table.groupby("customer", sort=False)["served"].first(), sep="\n")
        guess_same.compare(table["equal to PEFT's"].sum())

# %% [markdown]
# All or nearly all answers are identical to PEFT's. A few may differ, because the server uses a
# different 16-bit format and sums in a different order, which can flip a near-tie between tokens.
# An answer in another customer's format means that the wrong adapter was used.
#
# llama.cpp (in xllamacpp 2026.10) ignores an unknown adapter number and answers with the base
# model, so look up adapter names before you send a request, as `server.choosing` does. Engines also
# reuse cached keys and values for a repeated prompt, but those computed with one adapter are wrong
# for another. One user reported that a request for one adapter reused another adapter's cache
# ([issue 26207](https://github.com/ggml-org/llama.cpp/issues/26207)), so `server.choosing` sends
# `cache_prompt: false`.
#
# llama.cpp batches only requests for the same adapter, so requests for different adapters take
# turns.
#
# For your own data, `labkit train FILE` does the audit, split, training and scoring, and `labkit
# ship FOLDER` writes the GGUF files: see [docs/own-data.md](../docs/own-data.md). For each file you
# ship, record the base model and its hash, the data's hash, the settings, the score and the
# template.
#
# ## Take it with you
#
# Merge an adapter into a plain model with PEFT and transformers.
#
# ```python
# import torch
# from peft import LoraConfig, PeftModel, get_peft_model
# from transformers import AutoModelForCausalLM, AutoTokenizer
#
# MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
#
# def base(dtype):
#     return AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
#
# # an adapter with random weights, instead of the one you trained
# lora = LoraConfig(target_modules="all-linear", init_lora_weights=False)
# get_peft_model(base(torch.float32), lora).save_pretrained("my-lora")
#
# merged = PeftModel.from_pretrained(base(torch.float32), "my-lora").merge_and_unload()
# merged.to(torch.bfloat16).save_pretrained("merged")
# base(torch.bfloat16).save_pretrained("base")
# for folder in ("merged", "base"):
#     AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
# ```
#
# Then use llama.cpp's own tools, which aren't in the course environment and aren't run here:
#
# ```
# brew install llama.cpp  # or download a release that has llama-quantize and llama-server
# # in a fresh virtual environment:
# git clone https://github.com/ggml-org/llama.cpp && pip install -r llama.cpp/requirements.txt
# python llama.cpp/convert_hf_to_gguf.py merged --outfile merged.gguf --outtype bf16
# llama-quantize merged.gguf merged-q8.gguf Q8_0  # for a larger model, use Q4_K_M
# python llama.cpp/convert_hf_to_gguf.py base --outfile base.gguf --outtype bf16
# python llama.cpp/convert_lora_to_gguf.py my-lora --base base --outfile my-lora.gguf
# llama-server -m base.gguf --lora my-lora.gguf --lora-init-without-apply  # repeat --lora for more
# curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' -d '{"messages":
#   [{"role": "user", "content": "Hi"}], "lora": [{"id": 0, "scale": 1}], "cache_prompt": false,
#   "temperature": 0}'
# ```

# %% [markdown]
# ### Exercise 7.6 · Quiz
#
# ●○○ · 5 min · 4 points
#
# Only your first answer to each question counts. Then read the explanation.
#
# **q1. Your adapter answers well in PEFT. On a server with the same weights, most answers are empty
# or wrong. What do you check first?**
#
# - (a) The rank: the adapter learned too little for a server's many requests.
# - (b) The sampling: each engine implements greedy decoding in its own way.
# - (c) The token ids the server builds from the messages: its template may differ from yours.
# - (d) The merge: rounding to 16 bits lost the update when the file was written.
#
# **q2. You write a GGUF file but leave the rows of q and k in transformers' order. What happens?**
#
# - (a) The file loads without an error, but the model writes nonsense: the wrong pairs are rotated.
# - (b) The loader refuses the file, because q and k don't have the expected shapes.
# - (c) Nothing: q and k are permuted in the same way, so their products stay the same.
# - (d) Short prompts work, but the output gets worse with every additional token.
#
# **q3. What does an engine need to serve a hundred adapters in mixed batches?**
#
# - (a) A merged copy of the model for each adapter, and a router in front of them.
# - (b) A way to merge and unmerge adapters between requests, within milliseconds.
# - (c) The mean of all adapters, merged once, because a batch shares one weight.
# - (d) Every adapter's A and B next to the base, and the adapter index of each row.
#
# **q4. Your merged model seems worse as a Q4_0 file. How do you find out whether Q4_0 is to
# blame?**
#
# - (a) Look at the training loss: if it was low, Q4_0 is to blame.
# - (b) Compare this file's KL and score with those of the same merged model in 16 bits.
# - (c) Compare the file's score with that of the base model, which has no adapter.
# - (d) Compare the file sizes: half the size means half of the adapter's update is lost.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a", "q4": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "c", "q2": "a", "q3": "d", "q4": "b"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - Audit a file before you train on it: rows with nothing to learn or no end token raise no error.
# - Split by prompt, independently of the file's order. Score a baseline that needs no training.
# - A GGUF file contains the weights, tokenizer and template. For the Llama family, the rows of q
#   and k are reordered.
# - An adapter is small compared with its base model. Each request chooses one, and an engine
#   with a batched LoRA product serves all adapters together.
# - When a server gives bad answers, compare the token ids first.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["7.1", "7.2", "7.3"]):
    n, whole_answers = len(wanted), {name: s["whole answer"] for name, s in scores.items()}
    llama = right_by_way["Llama 2's template"]
    lab.headline(
        f"{len(good)} of {len(rows)} rows left after the audit; right on {n} held-out rows: "
        f"lookup {whole_answers['lookup']}, LoRA {whole_answers['LoRA']}; with Llama 2's "
        f"template, {llama} of {len(few)}"
    )
