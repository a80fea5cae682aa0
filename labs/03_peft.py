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
# # Lab 3 · The same thing with PEFT and TRL
#
# In lab 2 you wrote LoRA. Nobody does that at work. PEFT puts the layers in and saves them, TRL
# runs the training, and you decide: which layers, which data, which loss, which metric, and
# whether what came out is good. This lab is about those decisions.
#
# About 65 minutes if you know PyTorch well (53 for the exercises), up to 95 if you do not. The
# experiments take under five minutes on two CPU cores.

# %%
import labkit

lab, check = labkit.start("03_peft")

# %%
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig
from trl import SFTConfig, SFTTrainer

from labkit import tasks
from labkit.labs.lab03 import plots
from labkit.plots import compare_answers
from labkit.tasks import chat
from labkit.training import finetuning, generation, loop, models

# %% [markdown]
# ## What to adapt
#
# ### Exercise 3.1 · `lora_config`
#
# ●○○ · 4 min · 2 points
#
# A `LoraConfig` for a causal language model: rank `r`, adapters on `targets`, alpha twice the rank,
# dropout 0.05, no bias. `targets` is a list of layer names, or the word `"all-linear"`. PEFT calls
# these `r`, `target_modules`, `lora_alpha`, `lora_dropout`, `bias` (`"none"`) and `task_type`
# (`"CAUSAL_LM"`). All else stays at PEFT's defaults.
#
# Twice the rank is a habit, not a law. It fixes the factor before $BA$ at 2, and so a higher rank
# takes larger steps. Lab 5 measures what that does to a comparison of ranks.


# %%
def lora_config(r, targets):
    """A LoraConfig of rank r on `targets`: alpha 2r, dropout 0.05, no bias, causal LM."""
    # BEGIN SOLUTION
    return LoraConfig(
        r=r,
        lora_alpha=2 * r,
        lora_dropout=0.05,
        bias="none",
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    # END SOLUTION


# %%
check.config(lora_config)

# %% [markdown]
# Three configurations you will meet in practice. Read what PEFT prints, and compare the last line
# with the first: the same rank, several times the parameters.

# %%
attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
mlp = ["gate_proj", "up_proj", "down_proj"]

# %% tags=["experiment"]
if lab.experiment("Three configurations on the real model", 4, needs=["3.1"]):
    for name, targets in [
        ("q and v", ["q_proj", "v_proj"]),
        ("attention", attention),
        ("all-linear", "all-linear"),
    ]:
        model, tokenizer = models.load()
        print(f"{name:<11}", end="")
        get_peft_model(model, lora_config(16, targets)).print_trainable_parameters()

# %% [markdown]
# ### Exercise 3.2 · `count_lora_params`
#
# ●●○ · 6 min · 2 points
#
# Predict that number for any model, from shapes alone. `shapes` maps the name of each adapted
# matrix to `(d_out, d_in)`. Mind that key and value projections are narrower than the query's in
# most of today's models (grouped-query attention), and that the MLP's matrices are not square.


# %%
def count_lora_params(shapes, r):
    """Trainable parameters of rank-r LoRA on matrices {name: (d_out, d_in)}, an int."""
    # BEGIN SOLUTION
    return sum(r * (d_out + d_in) for d_out, d_in in shapes.values())
    # END SOLUTION


# %%
check.counts(count_lora_params)

# %% [markdown]
# A model on the *meta* device has shapes and no numbers, so the 8-billion one costs nothing here.


# %%
def shapes_of(config, targets):
    """{name: (d_out, d_in)} of the projections in `targets`, and the model's parameters."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    chosen = {n: m for n, m in model.named_modules() if n.split(".")[-1] in targets}
    return {n: tuple(m.weight.shape) for n, m in chosen.items()}, model.num_parameters()


# %% tags=["experiment"]
if lab.experiment("What r=16 trains in three models", 6, needs=["3.2"]):
    wide = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32)
    sizes = {
        "SmolLM2-135M": models.load()[0].config,
        "Llama-2-7B": LlamaConfig(**wide, intermediate_size=11008, vocab_size=32000),
        "Llama-3.1-8B": LlamaConfig(
            **wide, intermediate_size=14336, vocab_size=128256, num_key_value_heads=8
        ),
    }
    rows = []
    for name, config in sizes.items():
        for label, targets in [("q, v", ["q_proj", "v_proj"]), ("all-linear", attention + mlp)]:
            shapes, total = shapes_of(config, targets)
            trained = count_lora_params(shapes, 16)
            rows.append((f"{name}, {label}", trained / (total + trained)))
            print(f"{name:<13} {label:<11} {trained:>11,} of {total:,}")
    display(plots.trained_shares(rows))

# %% [markdown]
# Numbers that circulate, next to yours:
#
# - *"SmolLM2-135M, q and v, r=16: 131,072, or 0.097%."* 131,072 is one matrix of 4096 × 4096.
#   PEFT and you agree on seven times as much.
# - *"Llama-3.1-8B, all-linear, r=16: 13,631,488 of 4,544,075,776."* 13.6 million is q, k, v and o
#   only. And the total is a 4-bit model counted by `numel()`, which sees two weights as one.
# - *"Llama-2-7B, q and v, r=16: 4.2 million."* That is rank 8.
# - *"All-linear is about three times q,v."* Divide two of your lines: it is near five for
#   Llama-2-7B and more than six for Llama-3.1-8B, where k and v are narrow.

# %% [markdown]
# ## What the loss sees
#
# ### Exercise 3.3 · `to_prompt_completion`
#
# ●●○ · 6 min · 3 points
#
# TRL puts the loss on the completion only when it can tell prompt and completion apart. Turn an
# example with `messages` into `{"prompt": [...], "completion": [...]}`, both lists of messages, so
# that TRL applies the model's own chat template. Everything before the last answer is prompt,
# earlier turns included. Leave the list of messages itself as it is: slices make new ones.


# %%
def to_prompt_completion(example):
    """{"messages": [...]} -> {"prompt": all but the last message, "completion": [the last]}."""
    # BEGIN SOLUTION
    messages = example["messages"]
    return {"prompt": messages[:-1], "completion": messages[-1:]}
    # END SOLUTION


# %%
check.prompt_completion(to_prompt_completion)

# %% tags=["experiment"]
if lab.experiment("Which tokens carry the loss", 1, needs=["3.3"]):
    model, tokenizer = models.load()
    home, unseen = tasks.load("home", "train"), tasks.load("home", "test")
    unseen = unseen.shuffle(seed=1).select(range(60))
    pair = to_prompt_completion(home[0])
    encoded = loop.encode(tokenizer, pair["prompt"] + pair["completion"])
    tokens = [tokenizer.decode([token]) for token in encoded["input_ids"]]
    display(plots.loss_tokens(tokens, [y != -100 for y in encoded["labels"]]))

# %% [markdown]
# The marked tokens are all that the model is asked to predict. With the loss on everything, more
# than half of the tokens would be prompt, and the model would practise asking for a lamp as well.

# %% [markdown]
# ## How to train
#
# ### Exercise 3.4 · `sft_config`
#
# ●●○ · 8 min · 3 points
#
# An `SFTConfig` that runs on the machine at hand. `device` is one of
#
# | `device` | precision |
# |---|---|
# | `"cpu"` | no mixed precision: `use_cpu=True`, `bf16=False` |
# | `"t4"` | a GPU without bf16: `fp16=True`, `bf16=False` |
# | `"a100"` | Ampere and newer: `bf16=True` |
#
# Set `max_length` to 512, and a learning rate that suits LoRA. TRL's default, 2e-5, is a rate for
# full fine-tuning; LoRA wants about ten times as much or more, up to 5e-3. (Names change: what
# older tutorials call `max_seq_length` and `warmup_ratio` is `max_length` and `warmup_steps` now.)
#
# On a machine without such a GPU `SFTConfig(bf16=True)` raises an error, so you can call only your
# own case by hand. The check tries all three, and lets each believe that its card is there.


# %%
def sft_config(output_dir, device):
    """An SFTConfig for "cpu", "t4" or "a100": right precision, LoRA's learning rate."""
    # BEGIN SOLUTION
    return SFTConfig(
        output_dir=output_dir,
        learning_rate=2e-4,
        max_length=512,
        use_cpu=device == "cpu",
        bf16=device == "a100",
        fp16=device == "t4",
        report_to="none",
    )
    # END SOLUTION


# %%
check.sft(sft_config)

# %% [markdown]
# ## How to score
#
# ### Exercise 3.5 · `exact_match`
#
# ●●○ · 6 min · 3 points
#
# The share of predictions that are the same JSON *data* as their reference. The order of keys does
# not count, nor do spaces outside of strings. Capitals do, `5` is not `"5"`, and `true` is not `1`,
# though Python's `True == 1`: written again by `json.dumps` the two differ. A prediction that is no
# JSON is wrong; it must not stop the evaluation, since the base model gives nothing else.


# %%
def exact_match(predictions, references):
    """Share of predictions equal to their reference as JSON data, a float from 0 to 1."""
    # BEGIN SOLUTION
    hits = 0
    for pair in zip(predictions, references, strict=True):
        try:
            texts = [json.dumps(json.loads(text), sort_keys=True) for text in pair]
            hits += texts[0] == texts[1]
        except json.JSONDecodeError:
            pass
    return hits / len(references)
    # END SOLUTION


# %%
check.matches(exact_match)

# %% [markdown]
# ## Train on `home`
#
# First the trainer as TRL gives it, for three steps, so that you have seen it. It is the whole
# program: a model, a dataset, two configurations. It brings its own table of losses.

# %% tags=["experiment"]
if lab.experiment("Settings for the runs", 0, needs=["3.3", "3.4"]):
    pairs = home.map(to_prompt_completion, remove_columns=home.column_names)
    kind = "cpu" if lab.device == "cpu" else "t4" if lab.dtype == torch.float16 else "a100"
    few = dict(max_steps=3, per_device_train_batch_size=16)
    shown = dict(logging_steps=1, disable_tqdm=False, save_strategy="no")
    args = replace(sft_config("build/home", kind), **few, **shown)
    print(f"{len(pairs)} examples, {args.max_steps} steps of {args.per_device_train_batch_size}")

# %% tags=["experiment"]
if lab.experiment("Three steps of SFTTrainer as it comes", 25, needs=["3.1", "3.3", "3.4"]):
    trainer = SFTTrainer(
        models.load(dtype=torch.float32)[0],
        args,
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=lora_config(16, "all-linear"),
    )
    begun = time.perf_counter()
    trainer.train()
    plain_seconds = (time.perf_counter() - begun) / args.max_steps
    print(f"{plain_seconds:.1f} s a step")
    del trainer

# %% [markdown]
# Much of that time goes into things that a small run on a CPU does not need. `finetuning.finetune`
# is the same trainer without them:
#
# - frozen weights rest in bf16 where the CPU multiplies bf16, and the adapters stay in fp32
#   (PEFT keeps them so, whatever the base);
# - nothing is computed twice: TRL checkpoints activations, which saves memory and costs a second
#   forward pass;
# - no padding, and the system message that all commands share is computed once a batch;
# - logits exist where there is a label, and nowhere else.
#
# The loss is the same number. `benchmarks/train_step.py` runs both on the same batches.
#
# The run is short, so the learning rate is higher than the one you would take for an hour.

# %% tags=["experiment"]
if lab.experiment("PEFT and TRL learn `home`", 80, needs=["3.1", "3.3", "3.4"]):
    tuned = finetuning.finetune(
        models.load()[0],
        tokenizer,
        pairs,
        lora_config(16, "all-linear"),
        replace(args, max_steps=50, learning_rate=2e-3),
        title="home, r=16, all-linear",
    )
    print(f"{tuned.seconds / 50:.1f} s a step; as TRL comes it was {plain_seconds:.1f} s")

# %% tags=["experiment"]
if lab.experiment("Before and after", 20, needs=["3.1", "3.3", "3.4", "3.5"]):
    base = models.load()[0]
    told = {
        "base": generation.answers(base, tokenizer, unseen["messages"]),
        "tuned": generation.answers(tuned.model, tokenizer, unseen["messages"]),
    }
    display(compare_answers(unseen["text"], unseen["answer"], told, rows=8))


# %%
def intents(answers):
    """The answers cut after their first field, the intent, and closed again."""
    return [answer.split(",")[0].rstrip("}") + "}" for answer in answers]


# %% tags=["experiment"]
if lab.experiment("Exact match and intent accuracy", 1, needs=["3.1", "3.3", "3.4", "3.5"]):
    wanted = unseen["answer"]
    exact = {name: exact_match(answers, wanted) for name, answers in told.items()}
    intent = {
        name: exact_match(intents(answers), intents(wanted)) for name, answers in told.items()
    }
    groups = {"exact match": exact, "right intent": intent}
    title = f"{tuned.seconds:.0f} s of training: exact match 0% → {exact['tuned']:.0%}"
    display(plots.scores(groups, title.replace("0%", f"{exact['base']:.0%}", 1)))

# %% [markdown]
# Two metrics, two stories. The intent is mostly right: ten classes, many examples of each. The
# exact answer also needs every slot under the right key with words the model never saw. Report the
# metric that your user feels. A smart home that puts the lamp under the wrong key does nothing.

# %% [markdown]
# ## What was forgotten
#
# ### Exercise 3.6 · `perplexity`
#
# ●●● · 12 min · 3 points
#
# The perplexity of a model over texts is $\exp$ of the mean negative log-likelihood *per token*:
# a long text counts more than a short one, and no text is cut. Padding must not count. The first
# token of a text is predicted by nothing and does not count either.
#
# Three traps. Averaging the perplexities of texts is another quantity. In this tokenizer the
# padding token also ends each message, so do not find padding by its id: use the attention mask.
# And a text is its own tokens and no others: add no BOS before it and no end after it.
#
# The model comes in eval mode, without dropout, and stays in it.
#
# <details><summary>Hint</summary>
#
# Logits at position t predict token t+1, so `logits[:, :-1]` meets `ids[:, 1:]`. Keep two sums over
# all texts, of losses and of predictions, and divide once, at the end.
# </details>


# %%
def perplexity(model, tokenizer, texts):
    """exp(total negative log-likelihood / total predicted tokens) over all texts, a float."""
    # BEGIN SOLUTION
    total = count = 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)  # (1, n)
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].float()  # (n - 1, vocab)
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return float(torch.tensor(total / count).exp())
    # END SOLUTION


# %%
check.perplexity_weighs_tokens(perplexity)

# %% [markdown]
# ## A second task: `chat`
#
# Instructions in the `messages` format, many of them *verifiable*: exactly three bullets, valid
# JSON, one sentence. There are 300, of which the model sees 144. That makes no good assistant. It
# shows what a little data changes.

# %% tags=["experiment"]
if lab.experiment("A short fine-tune on `chat`", 45, needs=["3.1", "3.3", "3.4"]):
    chats, asked = tasks.load("chat", "train"), tasks.load("chat", "test")
    chatty = finetuning.finetune(
        models.load()[0],
        tokenizer,
        chats.map(to_prompt_completion, remove_columns=chats.column_names),
        lora_config(16, "all-linear"),
        replace(args, max_steps=18, per_device_train_batch_size=8, learning_rate=5e-4),
        title="chat, r=16, all-linear",
    )

# %% tags=["experiment"]
if lab.experiment("Held-out loss and instructions followed", 35, needs=["3.1", "3.3", "3.4"]):
    for name, model in [("base", models.load()[0]), ("chat-tuned", chatty.model)]:
        loss = loop.held_out_loss(model, tokenizer, asked)
        answers = generation.answers(model, tokenizer, asked["messages"], max_new_tokens=80)
        kept = [chat.follows(c, a) for c, a in zip(asked["check"], answers, strict=True) if c]
        print(f"{name:<11} loss {loss:.2f}, {sum(kept)} of {len(kept)} instructions followed")

# %% [markdown]
# Forty checks are few: three more or three less followed mean nothing. The loss, a mean over all
# tokens of the 60 held-out answers, is the steadier figure. Now the same three prompts to both,
# with the same settings.

# %% tags=["experiment"]
if lab.experiment("Three prompts, two models", 25, needs=["3.1", "3.3", "3.4"]):
    prompts = [
        "Explain photosynthesis to a ten-year-old.",
        "Write a short polite email that declines a meeting.",
        "Give three advantages of renewable energy.",
    ]
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    replies = {
        "base": generation.answers(models.load()[0], tokenizer, turns, max_new_tokens=90),
        "chat-tuned": generation.answers(chatty.model, tokenizer, turns, max_new_tokens=90),
    }
    display(compare_answers(prompts, None, replies, rows=3))

# %% [markdown]
# Look at length and shape more than at wisdom. The tuned model answers shorter and more directly,
# the manner of its examples. It knows nothing that it did not know before, and where it runs
# out of words it repeats itself, as small models do without sampling.

# %% tags=["experiment"]
if lab.experiment("Forgetting", 12, needs=["3.1", "3.3", "3.4", "3.6"]):
    texts = tasks.general()
    surprise = {
        "base": perplexity(models.load()[0], tokenizer, texts),
        "home": perplexity(tuned.model, tokenizer, texts),
        "chat": perplexity(chatty.model, tokenizer, texts),
    }
    display(plots.forgetting(surprise))

# %% [markdown]
# The texts are ten paragraphs about tides, bread and bridges, nothing of either task. A bar above
# the dotted line is forgetting: when we ran it, `home` made ordinary English about a tenth more
# surprising, after two minutes on commands and JSON. A bar below the line is no miracle either:
# the answers of `chat` are plain English, and the model moved a little towards such text.
#
# LoRA does not prevent forgetting. (That it forgets less than full fine-tuning is a result of
# Biderman et al., 2024, and not measured here.) With the adapter off, the base model is untouched,
# and that is the real safety.

# %% [markdown]
# ## What is on disk
#
# ### Exercise 3.7 · `adapter_bytes`, `load_tuned`
#
# ●●○ · 6 min · 3 points
#
# `save_pretrained` left a folder. `adapter_bytes` returns the size of the file that holds the
# adapter's weights, `adapter_model.safetensors`, not of the folder. `load_tuned` puts that adapter
# onto `base`, the model that it is given, ready to answer: in eval mode, or dropout would still be
# at work. It loads no other base, and merges nothing.


# %%
def adapter_bytes(folder):
    """Bytes of the adapter's weights in `folder` (a Path), an int."""
    # BEGIN SOLUTION
    return (Path(folder) / "adapter_model.safetensors").stat().st_size
    # END SOLUTION


def load_tuned(base, folder):
    """`base` with the adapter of `folder` on it, a PeftModel in eval mode."""
    # BEGIN SOLUTION
    return PeftModel.from_pretrained(base, folder).eval()
    # END SOLUTION


# %%
check.adapter_folder(adapter_bytes, load_tuned)

# %% tags=["experiment"]
if lab.experiment("The adapter's folder, opened", 4, needs=["3.1", "3.2", "3.3", "3.4", "3.7"]):
    for file in sorted(tuned.folder.iterdir()):
        print(f"{file.name:<28}{file.stat().st_size:>12,} bytes")
    saved = PeftConfig.from_pretrained(tuned.folder)
    print(f"\nr={saved.r}, alpha={saved.lora_alpha}, on {', '.join(sorted(saved.target_modules))}")
    n = count_lora_params(shapes_of(models.load()[0].config, attention + mlp)[0], 16)
    print(f"{n:,} numbers in {adapter_bytes(tuned.folder) / n:.2f} bytes each")

# %% [markdown]
# Four bytes a number: the adapter was trained, and is stored, in fp32, whatever its base is in.
# "Adapters train in bf16" is not PEFT's default. And "an adapter is 10 to 50 MB" is one
# point on a line: rank times shapes times bytes.

# %% tags=["experiment"]
if lab.experiment("Two adapters, one base", 20, needs=["3.1", "3.3", "3.4", "3.7"]):
    both = load_tuned(models.load()[0], tuned.folder)
    first = both.active_adapter  # "default", unless you gave it another name
    both.load_adapter(chatty.folder, adapter_name="chat")
    questions, spoken = [unseen[0]["messages"], turns[2]], {}
    for name, adapter in [("home", first), ("chat", "chat")]:
        both.set_adapter(adapter)
        spoken[name] = generation.answers(both, tokenizer, questions)
    with both.disable_adapter():
        spoken["neither"] = generation.answers(both, tokenizer, questions)
    display(compare_answers([unseen[0]["text"], prompts[2]], None, spoken))

# %% [markdown]
# One base in memory, three ways to answer, and `set_adapter` to switch. Lab 6 measures what a
# switch costs and mixes adapters in one batch.
#
# The configuration in the folder names its base, so one call can load both, from a folder or from
# the hub.

# %% tags=["experiment"]
if lab.experiment("Base and adapter in one call", 3, needs=["3.1", "3.3", "3.4", "3.7"]):
    whole = AutoPeftModelForCausalLM.from_pretrained(tuned.folder)
    print(f"{type(whole).__name__}, base in {whole.get_base_model().dtype}")

# %% [markdown]
# Sharing an adapter is one call too. The next cell does nothing until you give a name and a token.

# %% tags=["experiment"]
repository = ""  # for instance "your-name/home-lora"
if lab.experiment("Share the adapter, if you like", 0, needs=["3.1", "3.3", "3.4"]):
    if repository and os.environ.get("HF_TOKEN"):
        tuned.model.push_to_hub(repository, private=True)
    else:
        print("Not pushed: set `repository` above and HF_TOKEN in the environment")

# %% [markdown]
# ### Exercise 3.8 · Quiz
#
# ●○○ · 5 min · 3 points
#
# The first letter that you check counts; then read what it says.
#
# **q1. You change `targets` from q and v to all linear layers, both with r=16. What happens?**
#
# - (a) Nothing to the count: it depends on the rank alone.
# - (b) The memory of the base model grows about fivefold.
# - (c) About five or six times the trainable parameters, most of them in the MLPs.
# - (d) The model gets worse: MLPs hold its knowledge and must stay untouched.
#
# **q2. A run on 300 examples: the loss spikes and the gradient norm jumps with it. After the second
# epoch the training loss still falls and the held-out loss rises. What do you change?**
#
# - (a) Raise `r` and `alpha`, so that the adapter can hold all the examples.
# - (b) Raise the learning rate to get past the spikes, and train longer.
# - (c) Set `max_grad_norm=0.3` and nothing else: both have one cause.
# - (d) Lower the learning rate or `max_grad_norm`; fewer epochs, lower `r` or more dropout.
#
# **q3. Why does the loss fall on the answer only?**
#
# - (a) The prompt is masked, so attention cannot see it and the model has to know the answer.
# - (b) The prompt is given. With loss on it too, much of the gradient goes into predicting users.
# - (c) It halves the time of a step, since the prompt need not pass through the model.
# - (d) Tokens of the prompt have no label; a loss on them would be zero anyway.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "c", "q2": "d", "q3": "b"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - A `LoraConfig` is a handful of decisions; you can predict its size from shapes alone.
# - The loss belongs on the answer, and the precision on the hardware.
# - One metric is not enough: intent and exact match tell different stories, and forgetting is a
#   third.
# - An adapter is a folder with one small file of fp32 numbers, and a base takes many of them.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["3.1", "3.3", "3.4", "3.5", "3.6"]):
    lab.headline(
        f"PEFT + TRL: exact match {exact['base']:.0%} → {exact['tuned']:.0%} in "
        f"{tuned.seconds:.0f} s; perplexity elsewhere {surprise['base']:.1f} → "
        f"{surprise['home']:.1f}"
    )
