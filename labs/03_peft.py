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
# # Lab 3 · PEFT and TRL, and what goes wrong
#
# In lab 2 you wrote LoRA. At work two libraries do it: PEFT puts the layers in and saves them, TRL
# runs the training. What is left to you is a few settings and your rows of data. That looks like
# the easy part, and it is where runs fail without an error message: the loss falls, the training
# ends as planned, and the model answers without end, or has learned nothing.
#
# Four exercises of this lab are *hunts*. Their cell is not empty: it holds code with a mistake that
# people really made, and the text names an issue that reports it. The code runs, and it is wrong.
# Find out why, and fix it.
#
# About 80 minutes if you know PyTorch well (66 for the exercises), up to 125 if you do not. The
# experiments take five to six minutes on two CPU cores with fast bf16, up to eight elsewhere.

# %%
import labkit

lab, check = labkit.start("03_peft")

# %%
import copy
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset
from IPython.display import display
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
from trl import SFTConfig, SFTTrainer

from labkit import measured, tasks
from labkit.labs.lab03 import plots, small, tables
from labkit.plots import compare_answers
from labkit.training import finetuning, generation, loop, models

# %% [markdown]
# ## A recipe
#
# What do you have to decide before a run, and what can you leave at its default? Look at the task
# first. A spoken command becomes JSON: an *intent*, which says what to do, and values such as a
# room or a number. The test commands use sentence patterns that no training command has. Each also
# contains a value that no training command has in that place. Sixty of them are this lab's test.

# %% tags=["experiment"]
if lab.experiment("The model, its tokenizer and the task", 4):
    model, tokenizer = models.load()
    home, unseen = tasks.load("home", "train"), tasks.load("home", "test")
    unseen = unseen.shuffle(seed=1).select(range(60))
    print(tokenizer.apply_chat_template(home[0]["messages"], tokenize=False))
    print(f"padding is {tokenizer.pad_token}, id {tokenizer.pad_token_id}")
    print(f"the end is {tokenizer.eos_token}, id {tokenizer.eos_token_id}")

# %% [markdown]
# Keep the last two lines in mind: in this tokenizer padding and the end are the same token. Many
# others have no padding token, and tutorials make the two the same there, with the line
# `tokenizer.pad_token = tokenizer.eos_token`.

# %% [markdown]
# ### Exercise 3.1 · `recipe`
#
# ●●○ · 7 min · 3 points
#
# Write two configurations. PEFT's `LoraConfig` says what trains. TRL's `SFTConfig` says how (SFT is
# supervised fine-tuning).
#
# The `LoraConfig` is for a causal language model (`task_type="CAUSAL_LM"`): rank 16 (`r`),
# `lora_alpha` twice the rank, `lora_dropout` 0.05, `bias="none"`, and
# `target_modules="all-linear"`, every linear layer but the head. Everything else stays at PEFT's
# defaults.
#
# Twice the rank is a habit and not a law: it makes the factor before $BA$ a 2. Lab 5 measures what
# that does when the rank changes.
#
# The `SFTConfig` has `output_dir`, `max_length=512`, a learning rate for LoRA, and the *mixed
# precision* (matrix products in 16 bits, what trains in 32) for this `device`:
#
# | `device` | precision |
# |---|---|
# | `"cpu"` | no mixed precision: `use_cpu=True`, `bf16=False` |
# | `"t4"` | a GPU without bf16: `fp16=True`, `bf16=False` |
# | `"a100"` | Ampere and newer: `bf16=True` |
#
# TRL's default rate, 2e-5, is meant for full fine-tuning. LoRA needs about ten times as much: 2e-4
# is usual in runs of hours. Short runs want more. This lab's take 2e-3 in place of your rate, and
# lab 5 finds 3e-3 best for such runs, on a coarse grid of rates. The check accepts 1e-4 to 5e-3.
#
# Build both afresh in every call: PEFT writes into a `LoraConfig` that it is given.
#
# Older tutorials say `max_seq_length` and `warmup_ratio`; the names are `max_length` and
# `warmup_steps` now. Without a GPU that has bf16, `SFTConfig(bf16=True)` raises an error, so there
# you cannot call the case `"a100"` by hand. The check pretends that the right card is there.


# %%
def recipe(output_dir, device):
    """(LoraConfig, SFTConfig) for "cpu", "t4" or "a100"."""
    # BEGIN SOLUTION
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        bias="none",
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    args = SFTConfig(
        output_dir=output_dir,
        learning_rate=2e-4,
        max_length=512,
        use_cpu=device == "cpu",
        bf16=device == "a100",
        fp16=device == "t4",
        report_to="none",
    )
    return lora, args
    # END SOLUTION


# %%
check.configs(recipe)

# %% [markdown]
# ### Exercise 3.2 · `count_lora_params`
#
# ●○○ · 3 min · 1 point
#
# How large will the adapter be? Lab 1 counted the numbers for one matrix. `shapes` maps the name of
# each adapted matrix to its `(d_out, d_in)`; they differ: MLPs are wider, and in most of today's
# models keys and values are narrower than queries. Below, your count is compared with PEFT's.


# %%
def count_lora_params(shapes, r):
    """Trainable parameters of rank-r LoRA on matrices {name: (d_out, d_in)}, an int."""
    # BEGIN SOLUTION
    return sum(r * (d_out + d_in) for d_out, d_in in shapes.values())
    # END SOLUTION


# %%
check.counts(count_lora_params)

# %% [markdown]
# Count in large models, too. A model on the *meta* device has shapes and no numbers, so even eight
# billion parameters need no memory, and PEFT can adapt it like any other. The picture shows which
# share of each model trains, for two choices of `target_modules`.


# %%
def on_meta(config, lora):
    """Shapes of the adapted matrices, PEFT's count of what trains, the model's own parameters."""
    with torch.device("meta"):
        own = replace(lora)  # a copy: PEFT writes into it
        adapted = get_peft_model(AutoModelForCausalLM.from_config(config), own)
    layers = {n: m for n, m in adapted.named_modules() if hasattr(m, "lora_A")}
    shapes = {name: tuple(layer.base_layer.weight.shape) for name, layer in layers.items()}
    trained, total = adapted.get_nb_trainable_parameters()
    return shapes, trained, total - trained


# %% tags=["experiment"]
if lab.experiment("What r=16 trains in three models", 4, needs=["3.1", "3.2"]):
    everything = recipe("build/home", "cpu")[0]
    narrow = replace(everything, target_modules=["q_proj", "v_proj"])
    sizes = {"SmolLM2-135M": model.config, "Llama-2-7B": LlamaConfig()}  # LlamaConfig's default
    sizes["Llama-3.1-8B"] = LlamaConfig(
        intermediate_size=14336, vocab_size=128256, num_key_value_heads=8
    )
    shares = {name: {} for name in sizes}
    for name, config in sizes.items():
        for label, lora in [("q, v", narrow), ("all-linear", everything)]:
            shapes, counted, base = on_meta(config, lora)
            mine = count_lora_params(shapes, lora.r)
            shares[name][label] = mine / (base + mine)
            print(f"{name:<13} {label:<11} yours {mine:>11,}  PEFT {counted:>11,}  of {base:,}")
    display(plots.trained_shares(shares))

# %% [markdown]
# Why does the smallest model train the largest share? A square matrix of width $d$ has $d^2$
# weights, and LoRA adds $2rd$ numbers. That is $2r/d$ of that matrix's weights, which falls as
# models get wider: 5.6% at SmolLM2's width of 576, and 0.8% at the Llamas' 4,096. With all-linear
# the picture has less. A matrix of the MLPs is wider on one side: at $d \times 4d$ LoRA adds $5rd$
# numbers to $4d^2$, which is $1.25\,r/d$. And embeddings have no adapter. With `q` and `v` it has
# far less: most matrices have no adapter. (The two Llamas are equally wide. Llama-3.1 has narrower
# keys and values, a wider MLP and a larger vocabulary.)
#
# Here are three claims that circulate. Check each against the counts printed above.
#
# - *"Llama-2-7B, q and v, r=16: 4.2 million."* That is the count at r=8.
# - *"Llama-3.1-8B, all-linear: 13,631,488 of 4,544,075,776."* The first number counts q, k, v and o
#   alone. The second is close to the count of a 4-bit model in which a packed byte, which holds two
#   weights, is taken for one (lab 4).
# - *"All-linear is about three times q, v."* Divide the counts: it is 5.3, 4.8 and 6.2 times.

# %% [markdown]
# ### What the word "all-linear" does not reach
#
# (Nothing later in this lab needs this section. Read it before you tune a mixture of experts or add
# a token.) The word sounds as if nothing were left out. But PEFT looks for *modules* such as
# `nn.Linear`. A mixture of experts has many MLPs in a layer, the experts, and each token uses a few
# of them. Their weights often lie together in large parameters, not in modules. Are the experts
# adapted? Here are two tiny models with random weights, built like two families that people tune
# today.

# %% tags=["experiment"]
if lab.experiment("Does all-linear reach the experts?", 4, needs=["3.1"]):
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    # PEFT allows no dropout on parameters
    plain = replace(recipe("build/moe", "cpu")[0], lora_dropout=0.0)
    rows = []
    for family in ("qwen3_moe", "gpt_oss"):
        for how, targets in [("all-linear", None), ("with target_parameters", parameters)]:
            adapted = get_peft_model(
                small.mixture(family), replace(plain, target_parameters=targets)
            )
            names = [name for name, p in adapted.named_parameters() if p.requires_grad]
            reached = "yes" if any("experts" in name for name in names) else "no"
            rows.append((family, f"{small.experts_share(family):.0%}", how, reached, len(names)))
    columns = ["model", "weights in experts", "adapted", "experts reached", "trained tensors"]
    display(pd.DataFrame(rows, columns=columns).set_index("model"))

# %% [markdown]
# For `qwen3_moe` PEFT (0.21) knows where the experts are, and adds them by itself. It adds the
# router, too, the small matrix that chooses the experts: hence 28 tensors, where `gpt_oss` with its
# experts has 24. For `gpt_oss` it adapts the attention alone, without a warning: more than half of
# our tiny model's weights get no adapter. In the real gpt-oss-20b the experts hold 19.1 of 20.9
# billion parameters. So print the names of what trains before a run, and give what is missing to
# `target_parameters`.
#
# Embeddings are not reached either. A new token (a tool's name, a language's tag) needs a row of
# the embedding, and that row must be trained. The next cell prepares that in two ways, and prints
# the size of the adapter's file. Which file is larger? (PEFT's default would also save the whole
# embedding once it has grown. That is off here, so a file holds only what trains.)

# %% tags=["experiment"]
if lab.experiment("One new token, two ways to train it", 5, needs=["3.1"]):
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["<slot>"])
    new = grown.convert_tokens_to_ids("<slot>")
    lora = recipe("build/token", "cpu")[0]
    ways = {
        "no new token": lora,
        "trainable_token_indices": replace(lora, trainable_token_indices=[new]),
        "modules_to_save": replace(lora, modules_to_save=["embed_tokens"]),
    }
    for name, config in ways.items():
        larger = models.load()[0]
        larger.resize_token_embeddings(len(grown))
        get_peft_model(larger, config).save_pretrained("build/token", save_embedding_layers=False)
        size = Path("build/token/adapter_model.safetensors").stat().st_size
        print(f"{name:<24} {size:>11,} bytes")

# %% [markdown]
# `modules_to_save` trains and stores a whole copy of the embedding, 49,153 rows, for the sake of
# one. `trainable_token_indices` stores that row. In this model the head shares the embedding's
# weights. `trainable_token_indices` trains the row for both, `modules_to_save` for the input alone
# unless you set `ensure_weight_tying=True`.

# %% [markdown]
# ## A model that never stops
#
# Now train. The first failure is reported in many trackers: the tuned model answers well, and then
# goes on and on. Why does it not stop?
#
# To see it happen, write the rows as one does for a base model: the command, a line break, the
# answer, the end token. (A chat template can hide the failure, as you will read below.) The labels
# say which tokens the loss counts. A label of -100 means that the loss skips that token.
#
# The next function is meant to give no label to the prompt, and none to padding. It treats padding
# as transformers' `DataCollatorForLanguageModeling` does.


# %%
def given_labels(input_ids, attention_mask, prompt_lengths):
    """Labels (b, n): -100 on prompts and on padding."""
    labels = input_ids.clone()
    labels[labels == 2] = -100  # 2 is tokenizer.pad_token_id
    for row, length in zip(labels, prompt_lengths, strict=True):
        row[:length] = -100
    return labels


# %%
def rows_of(dataset, label):
    """Rows of `input_ids` and `labels` without a template; `label` makes the labels."""
    rows = []
    for command, answer in zip(dataset["text"], dataset["answer"], strict=True):
        prompt = tokenizer(command + "\n")["input_ids"]
        answered = tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]
        ids = torch.tensor([prompt + answered])  # (1, n)
        labels = label(ids, torch.ones_like(ids), torch.tensor([len(prompt)]))
        rows.append({"input_ids": ids[0].tolist(), "labels": labels[0].tolist()})
    return Dataset.from_list(rows)


def endless(model):
    """How many answers to the unseen commands have no end within 48 tokens, and all answers."""
    prompts = [tokenizer(command + "\n")["input_ids"] for command in unseen["text"]]
    told = generation.continuations(model, prompts, max_new_tokens=48)
    texts = [tokenizer.decode(ids) for ids in told]
    return sum(ids[-1] != tokenizer.eos_token_id for ids in told), texts


# %% [markdown]
# No wanted answer has more than 48 tokens. So an answer without an end by then did not stop.
# `finetune` is TRL's trainer without what a small run on a CPU does not need. A section below says
# what that is.
#
# The loss curve is drawn while the model trains: the faint line is the loss of each step, the
# strong one its running mean. A second picture counts the answers that do not stop.

# %%
guess_masked = lab.predict("Trained on these labels, how many of 60 answers will not stop?", None)

# %% tags=["experiment"]
if lab.experiment("Trained on the given labels", 25, needs=["3.1"]):
    lora, args = recipe("build/home", "cpu")
    short = replace(args, max_steps=20, per_device_train_batch_size=8, learning_rate=2e-3)
    some = home.shuffle(seed=0).select(range(160))  # 20 steps of 8
    rows = rows_of(some, given_labels)
    title = "The given labels look fine"
    masked = finetuning.finetune(models.load()[0], tokenizer, rows, lora, short, title=title)
    unstopped, said = {}, {}
    unstopped["the given labels"], said["the given labels"] = endless(masked.model)
    display(plots.unstopped(unstopped, len(unseen), guess_masked))
    guess_masked.beside(unstopped["the given labels"])
    for text in said["the given labels"][:3]:
        print(repr(text))

# %% [markdown]
# When we ran it, all 60 went on: the JSON is complete, and the next one follows, until the limit.
# The loss fell as in any good run. Why did it give no warning?

# %% [markdown]
# ### Exercise 3.3 · `answer_labels`
#
# ●●● · 11 min · 3 points
#
# **A hunt**, from [trl #976](https://github.com/huggingface/trl/issues/976): *"the resulting model
# I created does not generate the stop token"*. (The same in [transformers
# #23530](https://github.com/huggingface/transformers/issues/23530), and in many tutorials.) Mend
# the code so that
#
# - a row's prompt has no label (-100): its first real tokens, as many as `prompt_lengths` says;
# - padding has no label, whichever token it is, and on whichever side it stands;
# - each token of the answer keeps its id as its label, and **the end token is one of them**; so is
#   what a template puts behind it, such as a line break.
#
# The labels are not shifted: the model does that itself. Leave the inputs as they are.
#
# One row by hand, padded on the left, with 2 as padding and as the end: the ids (2, 2, 7, 8, 9, 2),
# the mask (0, 0, 1, 1, 1, 1) and a prompt of 2 tokens give the labels (-100, -100, -100, -100, 9,
# 2). What does the given code make of it?
#
# <details><summary>Hint: what is padding?</summary>
#
# Padding and the end have the same id. Which other input says which tokens are padding?
# </details>
#
# <details><summary>Hint: where does the prompt end?</summary>
#
# A cumulative sum over the attention mask numbers the real tokens of a row, on whichever side the
# padding stands.
# </details>


# %%
def answer_labels(input_ids, attention_mask, prompt_lengths):
    """(b, n) ids, mask of 1 and 0, (b,) lengths -> labels (b, n), -100 where nothing is learned."""
    # BEGIN SOLUTION
    place = attention_mask.cumsum(1)  # (b, n): 1 at a row's first real token
    asked = (place > prompt_lengths[:, None]) & (attention_mask == 1)
    return input_ids.masked_fill(~asked, -100)
    # END SOLUTION
    # BEGIN GIVEN
    # labels = input_ids.clone()
    # labels[labels == 2] = -100  # 2 is tokenizer.pad_token_id
    # for row, length in zip(labels, prompt_lengths, strict=True):
    #     row[:length] = -100
    # return labels
    # END GIVEN


# %%
check.end_trains(answer_labels)

# %% [markdown]
# Here is one row with both kinds of labels. The marked tokens are those that the model learns to
# predict. In how many tokens will the two differ?

# %% tags=["experiment"]
if lab.experiment("Which tokens carry the loss", 1, needs=["3.3"]):
    for label in (given_labels, answer_labels):
        (row,) = rows_of(home.select([0]), label)
        tokens = [tokenizer.decode([token]) for token in row["input_ids"]]
        display(plots.loss_tokens(tokens, [y != -100 for y in row["labels"]], label.__name__))

# %% [markdown]
# They differ in the last token alone. The end has the id of padding, so the given code left it out.
# Hence no warning: the loss did not count the one token that was not learned. Is one label a row
# enough to make a model stop?

# %% tags=["experiment", "cover"]
if lab.experiment("Trained on your labels", 25, needs=["3.1", "3.3"]):
    rows = rows_of(some, answer_labels)
    mended = finetuning.finetune(
        models.load()[0], tokenizer, rows, lora, short, title="Your labels look the same"
    )
    unstopped["your labels"], said["your labels"] = endless(mended.model)
    display(plots.unstopped(unstopped, len(unseen)))
    losses = {"the given labels": masked.losses, "your labels": mended.losses}
    display(plots.both_losses(losses))

# %% [markdown]
# Almost: in our runs at most one of the 60 went on. Both runs have the same model, data, steps and
# rate. Only the labels differ. The two loss curves lie almost on each other, as the last picture
# shows: one label more in about twenty hardly moves the mean. And a mean does not tell which tokens
# are in it.
#
# A chat model can hide this bug, since it had learned to stop before you tuned it. We tried it with
# SmolLM2's own template, and the end masked in the same way (25 steps of 8, one seed). All of 30
# answers came to an end, some of them only after a second JSON object. A base model has no such
# habit. A chat model has it in its own template, not necessarily in yours.
#
# The other common fix is a padding token that is not the end token. It works as long as nobody sets
# the two equal again. A mask works whatever the token. TRL's trainer (1.16) makes the labels before
# it pads, so that the id does not matter. transformers' collator for language models (5.24) still
# goes by the id.

# %% [markdown]
# ## The trainer, and where an answer begins
#
# So far `finetune` trained, and you made the labels. What does TRL's own trainer do for you? It
# does what your loop of lab 2 did: batches, loss, clipped gradients, a falling rate. It also makes
# the labels, and keeps a record of the run.
#
# The whole program is a model, a dataset and two configurations. TRL applies the model's own chat
# template. What carries the loss depends on your columns. With `prompt` and `completion` it is the
# completion alone. With whole conversations in a column `messages` it is *every* token, the user's
# too, unless you set `assistant_only_loss=True` (which needs a template that marks the answers).
# Here is the trainer, unchanged, for three steps.

# %% tags=["experiment"]
if lab.experiment("Three steps of SFTTrainer as it comes", 14, needs=["3.1"]):
    kind = "cpu" if lab.device == "cpu" else "t4" if lab.dtype == torch.float16 else "a100"
    lora, args = recipe("build/home", kind)
    pairs = [{"prompt": m[:-1], "completion": m[-1:]} for m in home["messages"]]
    few = replace(args, max_steps=3, logging_steps=1, disable_tqdm=False, save_strategy="no")
    trainer = SFTTrainer(
        models.load(dtype=torch.float32)[0],
        few,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=lora,
    )
    begun = time.perf_counter()
    trainer.train()
    plain_seconds = (time.perf_counter() - begun) / few.max_steps
    print(f"{plain_seconds:.1f} s a step of {few.per_device_train_batch_size}")
    del trainer

# %% [markdown]
# The next run shows how much of that time a small run on a CPU can save. A part of it is products
# in fp32, where the CPU has fast bf16. `finetune` is the same trainer without that. Where nothing
# is dropped out, its loss is the same to rounding (`benchmarks/train_step.py` compares them):
#
# - it decides on precision itself: frozen weights are in bf16 where the CPU multiplies bf16, and
#   adapters are in fp32. On a CPU it ignores your recipe's flags, which are for *mixed* precision;
# - nothing is computed twice: TRL checkpoints activations, which saves memory and costs a second
#   forward pass;
# - useless work is left out: padding goes through attention only, the system message with which
#   all rows begin passes through the model once a batch, and logits exist only where there is a
#   label.
#
# One rule differs. From a column `messages` it learns the last message alone.

# %% tags=["experiment"]
if lab.experiment("PEFT and TRL learn `home`", 30, needs=["3.1"]):
    lora, args = recipe("build/home", "cpu")
    tuned = finetuning.finetune(
        models.load()[0],
        tokenizer,
        home,  # its column `messages`
        lora,
        replace(args, max_steps=30, per_device_train_batch_size=8, learning_rate=2e-3),
        title="PEFT and TRL learn home",
    )
    print(f"{tuned.seconds / 30:.1f} s a step; as TRL comes it was {plain_seconds:.1f} s")

# %% [markdown]
# How good is the model now? That may depend on how it is asked. Here are three ways to turn the
# same messages into tokens. The first is that of training. The second leaves out the *generation
# prompt*, the tokens at the end that open the assistant's turn: `<|im_start|>assistant` and a line
# break. The third has one token too many at the front. An answer is right here if its text is the
# wanted one, letter by letter.


# %%
def three_prompts(messages):
    """A conversation as ids: as in training, no generation prompt, the first token twice."""
    right = loop.prompt_ids(tokenizer, messages)  # up to where the answer begins
    closed = tokenizer.apply_chat_template(messages[:-1], return_dict=False)
    doubled = right[:1] + right
    return {"as trained": right, "no generation prompt": closed, "first token twice": doubled}


# %%
question = "Asked without the generation prompt, what % of 60 answers will be right?"
guess_closed = lab.predict(question, None)

# %% tags=["experiment"]
if lab.experiment("The same model, asked in three ways", 20, needs=["3.1"]):
    asked, spoken = {}, {}
    for name in three_prompts(unseen[0]["messages"]):
        prompts = [three_prompts(messages)[name] for messages in unseen["messages"]]
        told = generation.continuations(tuned.model, prompts, max_new_tokens=48)
        spoken[name] = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in told]
        right = [a == b for a, b in zip(spoken[name], unseen["answer"], strict=True)]
        asked[name] = sum(right) / len(right)
    title = "A wrong prompt need not show in the score"
    display(plots.asked(asked, len(unseen), title, guess_closed, wrong=list(asked)[1:]))
    guess_closed.beside(100 * asked["no generation prompt"])
    print(repr(spoken["no generation prompt"][0]))

# %% [markdown]
# The orange bars are asked in another way than in training. Four runs of ours, in % of 60 answers:
#
# | asked | right in each run |
# |---|---|
# | as trained | 40, 40, 40, 37 |
# | no generation prompt | 45, 38, 40, 40 |
# | first token twice | 42, 35, 33, 37 |
#
# No way of asking is best in all four runs, or worst in all four. The thin lines in the picture are
# each bar's own standard error, about 6 points. The questions are the same for all bars, so a
# difference is surer than the lines suggest. (Lab 4 compares in pairs.)
#
# Why does the wrong prompt do no more harm than this? (A loss of a few points could hide in 60
# answers.) Probably because the model has just learned to answer everything in JSON, and does so
# with these few tokens or without. A model that chats may go on in the user's name. So do not wait
# for a score to show such a bug. Compare the token ids with those of training.

# %% [markdown]
# ### Exercise 3.4 · `render_prompt`
#
# ●●○ · 7 min · 2 points
#
# **A hunt** for two bugs. The first is from [trl
# #1400](https://github.com/huggingface/trl/issues/1400): *"In tokenizer like LLaMATokenizer, there
# will be two bos tokens at the very beginning"*. The template writes a BOS (the token that begins a
# text), and then the tokenizer puts another one before the text. SmolLM2's tokenizer adds none, so
# here you would not notice. Llama's, Gemma's and Mistral's do, and the check asks with both kinds.
#
# The second is from [helm #3698](https://github.com/stanford-crfm/helm/issues/3698): without
# `add_generation_prompt` the model *"keeps writing as the user"*.
#
# The last message is the user's. Return the list of ids after which the answer begins. It must be a
# prefix of the whole conversation's ids, so that the model reads what it read in training.
#
# <details><summary>Hint: who adds what?</summary>
#
# The given code has two steps. Print the text after the first one. What is missing at its end, and
# what may the second step put before its beginning?
# </details>
#
# <details><summary>Hint: one step</summary>
#
# A template can be applied and turned into ids in one call, and that call has an argument that
# opens the answer. `help(tokenizer.apply_chat_template)` lists them.
# </details>


# %%
def render_prompt(messages, tokenizer):
    """The ids (a list) of a conversation, up to where the model's answer begins."""
    # BEGIN SOLUTION
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    # END SOLUTION
    # BEGIN GIVEN
    # text = tokenizer.apply_chat_template(messages, tokenize=False)
    # return tokenizer(text)["input_ids"]
    # END GIVEN


# %%
check.prompt_opens_answer(render_prompt)

# %% [markdown]
# ## Rows that are too long
#
# A row longer than `max_length` is cut. Where? The rows of the task `tickets` are mails to a
# support desk: most have two or three sentences, every tenth is a long paragraph. The answer, the
# mail's category, stands at the very end.
#
# The usual way is to cut on the right. The picture counts the damage in 960 rows. There are two
# kinds: rows in which no label is left, and others whose answer has lost its end.


# %%
def cut_on_the_right(prompt_ids, answer_ids, max_length):
    """Input ids and labels of a row, the first `max_length` of them."""
    input_ids = prompt_ids + answer_ids
    labels = [-100] * len(prompt_ids) + answer_ids
    return input_ids[:max_length], labels[:max_length]


# %%
def left_by(cut, max_length):
    """Of the tickets' rows: how many have no label left, and how many others have no end."""
    empty = unended = 0
    for messages in tickets["messages"]:
        prompt = loop.prompt_ids(tokenizer, messages)
        answer = tokenizer(messages[-1]["content"])["input_ids"] + [tokenizer.eos_token_id]
        labels = cut(prompt, answer, max_length)[1]
        learned = [label for label in labels if label != -100]
        empty += not learned
        unended += bool(learned) and learned[-1] != tokenizer.eos_token_id
    return {"train on nothing": empty, "have no end": unended}


# %%
guess_empty = lab.predict("Cut to 64 tokens: how many of 960 rows train on nothing?", None)

# %% tags=["experiment"]
if lab.experiment("What is left of a row", 3):
    tickets = tasks.load("tickets", "train")
    lengths = (48, 64, 96, 128, 192)
    lost = {n: left_by(cut_on_the_right, n) for n in lengths}
    display(plots.lost_rows(lost, len(tickets), guess_empty))
    guess_empty.beside(lost[64]["train on nothing"])

# %% [markdown]
# A row that trains on nothing is lost. A row without an end does not teach the model to stop; nor
# did those with the end masked.
#
# Now look at a `max_length` of 96. The 96 rows lost there are the long mails, all of them. (That
# the two numbers are equal is chance.) At 128 still 94 are lost. A cut does not take rows at
# random. Here it takes one kind of example out of the training, and no loss curve shows it.

# %% [markdown]
# ### Exercise 3.5 · `fit`
#
# ●●● · 9 min · 3 points
#
# **A hunt**, from [trl #6668](https://github.com/huggingface/trl/issues/6668): a run reports loss
# 0.0 and ends without an error, though every label was cut away. (Newer versions of TRL drop such
# rows, so your longest examples are still gone.) Mend it:
#
# - the prompt gives way first, from its **front**: what was asked last stays;
# - the answer stays whole, with its end token, as long as it fits by itself;
# - an answer longer than `max_length` keeps its head, no prompt, and gets no end token: it was
#   cut, and an end there would teach the model to stop midway;
# - a row that fits stays as it is, and no row is longer than `max_length`.
#
# `prompt_ids` and `answer_ids` are lists of ints, and `answer_ids` ends with the end token. The
# prompt has no labels. Leave both lists as they are.
#
# By hand: the prompt (5, 6, 7) and the answer (8, 2) become (6, 7, 8, 2) at a `max_length` of 4,
# they become (8, 2) at 2, and (8) at 1.
#
# <details><summary>Hint</summary>
#
# Which of the two may lose tokens first, and how many must it lose? Decide on the answer, then give
# the prompt what room is left. And try your slice where that room is 0: what is `[1, 2, 3][-0:]`?
# </details>


# %%
def fit(prompt_ids, answer_ids, max_length):
    """(input_ids, labels), two lists of at most `max_length`; -100 on the prompt."""
    # BEGIN SOLUTION
    answer = answer_ids[:max_length]
    too_many = len(prompt_ids) + len(answer) - max_length
    prompt = prompt_ids[max(0, too_many) :]
    return prompt + answer, [-100] * len(prompt) + answer
    # END SOLUTION
    # BEGIN GIVEN
    # input_ids = prompt_ids + answer_ids
    # labels = [-100] * len(prompt_ids) + answer_ids
    # return input_ids[:max_length], labels[:max_length]
    # END GIVEN


# %%
check.keeps_answer(fit)

# %% tags=["experiment"]
if lab.experiment("What is left of a row that you cut", 3, needs=["3.5"]):
    table = {n: left_by(fit, n) for n in lengths}
    display(pd.DataFrame(table).rename_axis(columns="max_length"))

# %% [markdown]
# No row is lost. The price: each row that was too long, 173 of them at 64 tokens, now has a prompt
# without its beginning: 104 of them have lost the whole system message. Where that matters, shorten
# the user's text before it goes into the template.
#
# And in TRL? Its switch for a cut on the left, `truncation_mode="keep_end"`, is deprecated (1.16).
# So cut before the trainer: give it rows of `input_ids` and `labels`, as `rows_of` made them above.
# It takes them as they are.

# %% [markdown]
# ## How to score
#
# The loss is for those who train a model. Those who use it ask whether an answer is right. With
# JSON, comparing texts does not tell: `{"a":1,"b":2}` and `{"b": 2, "a": 1}` are different texts
# and the same command. So what should be compared?

# %% [markdown]
# ### Exercise 3.6 · `exact_match`
#
# ●●○ · 7 min · 3 points
#
# The share of predictions that are the same JSON *data* as their reference. The order of keys does
# not count, nor do spaces outside of strings. Capitals do. `5` is not `"5"`, and `true` is not `1`,
# though Python's `True == 1`: written again by `json.dumps` the two differ. (So do `5` and `5.0`,
# but the check accepts either verdict on them.) A prediction that is no JSON is wrong, and must not
# stop the evaluation: the base model answers in plain English.
#
# <details><summary>Hint</summary>
#
# Read both texts as JSON, and write both again in one way. `help(json.dumps)` lists what that way
# can fix, the order of keys among it. Which error does `json.loads` raise for a text that is no
# JSON?
# </details>


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


# %%
def answers_of(model, conversations):
    """What a model answers, 48 tokens at most; your `render_prompt` asks."""
    prompts = [render_prompt(messages[:-1], tokenizer) for messages in conversations]
    told = generation.continuations(model, prompts, max_new_tokens=48)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in told]


def intents(answers):
    """The answers cut after their first field, the intent, and closed again."""
    return [answer.split(",")[0].rstrip("}") + "}" for answer in answers]


# %% tags=["experiment"]
if lab.experiment("Before and after", 15, needs=["3.1", "3.4", "3.6"]):
    wanted = unseen["answer"]
    told = {
        "base": answers_of(models.load()[0], unseen["messages"]),
        "tuned": answers_of(tuned.model, unseen["messages"]),
    }
    display(compare_answers(unseen["text"], wanted, told, rows=5))
    exact = {name: exact_match(answers, wanted) for name, answers in told.items()}
    intent = {name: exact_match(intents(a), intents(wanted)) for name, a in told.items()}
    groups = {"exact match": exact, "right intent": intent}
    title = f"After {tuned.seconds:.0f} s of training {intent['tuned']:.0%} of intents are right,\n"
    title += f"and {exact['tuned']:.0%} of whole answers"
    display(plots.scores(groups, len(wanted), title))

# %% [markdown]
# The two metrics lie far apart. The intent is one of ten, and the run saw about 24 examples of
# each. An exact answer also needs every value under the right key, and at least one of these values
# stood there in no training command. Report the metric that your user notices: a smart home that
# gets the lamp under the wrong key does nothing. (The base's 0% says that it writes no such JSON,
# and not that it understands nothing. It has no error line, as the formula gives 0 there; with 0 of
# 60 a true share of up to 5% is possible.)

# %% [markdown]
# The marks in the table are a third metric: they compare texts, and yours compares data. So a row
# may have ✗ there and count as right in the picture. In some of our runs the table's third answer
# had `"domain"` twice, first `"entry floor lamp"` and then `"light"`; `json.loads` keeps the last
# and says nothing. Would your smart home keep the last, too? `json.loads(text,
# object_pairs_hook=…)` sees both.
#
# The picture of the three prompts compared texts, too. So its bar *as trained* may be a point or
# two below your exact match.

# %% [markdown]
# ## What was forgotten
#
# A model that has learned JSON may have become worse at English. To see it, ask how surprised it is
# by text that has nothing to do with the task.

# %% [markdown]
# ### Exercise 3.7 · `perplexity`
#
# ●●● · 11 min · 3 points
#
# The perplexity of a model over texts is $\exp$ of the mean negative log-likelihood *per token*: a
# long text counts more than a short one, and no text is cut. Padding must not count. The first
# token of a text is predicted by nothing and does not count either.
#
# A text is its own tokens and no others: no BOS before it and no end after it. SmolLM2's tokenizer
# adds none by itself; others do, unless told `add_special_tokens=False`. The model comes in eval
# mode, without dropout, and stays in it.
#
# By hand: two predicted tokens with the probabilities 1/2 and 1/8 have a mean of $(\ln 2 + \ln 8) /
# 2 = \ln 4$. The perplexity is 4: the model was as unsure as between four tokens that are equally
# likely.
#
# <details><summary>Hint</summary>
#
# Two of your texts have 3 and 300 tokens. Which of the two decides the number? And which of this
# lab's hunts would you repeat, if you padded them into one batch?
# </details>


# %%
def perplexity(model, tokenizer, texts):
    """exp(total negative log-likelihood / total predicted tokens) over all texts, a float."""
    # BEGIN SOLUTION
    total = count = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([ids], device=model.device)  # (1, n)
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].float()  # (n - 1, vocab)
        total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return math.exp(total / count)
    # END SOLUTION


# %%
check.perplexity_weighs_tokens(perplexity)

# %% [markdown]
# Measure it, then: the perplexity of ten paragraphs of everyday English, about tides, bread and
# bridges, before and after the `home` run.

# %% tags=["experiment"]
if lab.experiment("Everyday English, before and after", 5, needs=["3.1", "3.7"]):
    texts = tasks.general()
    surprise = {
        "base": perplexity(models.load()[0], tokenizer, texts),
        "home": perplexity(tuned.model, tokenizer, texts),
    }
    change = surprise["home"] / surprise["base"] - 1
    print(f"perplexity {surprise['base']:.1f} before, {surprise['home']:.1f} after: {change:+.1%}")

# %% [markdown]
# In our runs perplexity rose by 13 to 16%. In nats that is $\ln 1.13 = 0.12$ to $\ln 1.16 = 0.15$ a
# token. For scale: rounding this model to four bits costs 0.21 ± 0.06 on the same paragraphs (NF4,
# lab 4). Such text has become less likely to the model. Which abilities it has lost, if any,
# perplexity does not say.

# %% [markdown]
# ### Does LoRA forget less than full fine-tuning?
#
# Biderman et al. ([2024](https://arxiv.org/abs/2405.09673)) find that it does, on code and maths.
# But in most of their runs LoRA also learned less. PEFT's own benchmark
# ([`method_comparison`](https://github.com/huggingface/peft/tree/main/method_comparison), July
# 2026) says the opposite, from one seed. There the loss on a sample of Wikipedia rose by .030 in
# full fine-tuning and by .050 in LoRA, at nearly the same accuracy, and full fine-tuning had a ten
# times lower rate. So the answer may depend on task, rate and length of training.
#
# A method that learns less may forget less for that reason alone. So keep the learning equal. Let
# each method train until its held-out loss on `home` has come down to 0.45, and compare there. Each
# has a rate that suits it in short runs. Both train the same 210 matrices: full fine-tuning leaves
# out embeddings and norms, as LoRA does. The last step goes a little below 0.45, by an amount that
# differs between the methods. So the perplexity is interpolated between the last two measurements,
# to where the loss is 0.45.


# %%
def look(tried):
    """The held-out loss of 32 commands, and the perplexity of everyday English, without dropout."""
    some = tasks.load("home", "test").shuffle(seed=1).select(range(32))
    english = perplexity(tried.eval(), tokenizer, tasks.general())
    tried.train()
    return loop.held_out_loss(tried, tokenizer, some), english


def train_until(tried, target, learning_rate, seed):
    """Train on `home`, four rows a step, to a held-out loss of `target`: steps, perplexity."""
    trained = [p for p in tried.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, weight_decay=0.0)
    now = before = look(tried)
    steps = 0
    for batch in loop.batches(home, tokenizer, 4, steps=80, seed=seed):
        steps += 1
        loss = loop.answer_loss(tried, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss > 3 * target:  # far from it yet
            continue
        before, now = now, look(tried)
        if now[0] <= target:
            break
    losses, perplexities = [now[0], before[0]], [now[1], before[1]]
    return steps, float(np.interp(target, losses, perplexities))  # where the loss is `target`


# %% [markdown]
# The weights may show it, too. Lab 1 counted *intruders*: leading singular directions of the new
# matrix that resemble none of the old one's. Shuttleworth et al.
# ([2024](https://arxiv.org/abs/2410.21228)) find them after LoRA and hardly any after full
# fine-tuning, and argue that they cause forgetting. So count them in both models.


# %%
def queries(some_model):
    """The query projections' weights of all layers, an adapter's update added."""
    modules = [m for name, m in some_model.named_modules() if name.endswith("q_proj")]
    if hasattr(modules[0], "base_layer"):
        return [m.base_layer.weight + m.get_delta_weight("default") for m in modules]
    return [m.weight for m in modules]


@torch.no_grad()
def intruders(W0, W1, k=10, threshold=0.5):
    """Of W1's top k left singular vectors, those with no |cos| above the threshold to any of W0."""
    U0, U1 = (torch.linalg.svd(W.float(), full_matrices=False).U for W in (W0, W1))
    best = (U1[:, :k].T @ U0).abs().amax(1)  # (k,)
    return int((best < threshold).sum())


# %%
question = "At equal task loss, what perplexity has full fine-tuning? (The base has about 50.)"
guess_full = lab.predict(question, None)

# %% tags=["experiment"]
if lab.experiment("Forgetting at equal task loss", 75, needs=["3.1", "3.7"]):
    torch.manual_seed(0)
    small_rank = replace(recipe("build/forget", "cpu")[0], r=4)  # alpha stays 32
    lora_model = get_peft_model(models.load()[0], small_rank).train()
    full_model = models.load(dtype=torch.float32)[0].train()
    for name, p in full_model.named_parameters():
        p.requires_grad_("_proj" in name)  # the 210 matrices that LoRA adapts
    live, names = {}, ("LoRA, r=4 at 2e-3", "full at 3e-4")
    for name, tried, rate in zip(names, (lora_model, full_model), (2e-3, 3e-4), strict=True):
        steps, live[name] = train_until(tried, target=0.45, learning_rate=rate, seed=0)
        found = sum(intruders(a, b) for a, b in zip(queries(model), queries(tried), strict=True))
        print(f"{name}: {steps} steps, perplexity {live[name]:.2f}, intruders {found} of 300")
    runs = measured.load("forgetting")
    display(plots.forgetting(runs, live, guess_full))
    guess_full.beside(live["full at 3e-4"])
    display(tables.by_way(runs))

# %% [markdown]
# Each row of the picture is a method with its rate. The blue dots are its three seeds, from a file
# of the course made by `benchmarks/forgetting.py`. The number beside a dot is its seed. The stars
# are yours, with seed 0: compare them with the dots of seed 0. (To save time you trained no r=64,
# so its row has no star.) The dotted line is the base.
#
# Another seed is another order of the commands and, for LoRA, another draw of $A$ and of dropout.
# How much does that move? After LoRA with r=4 perplexity has risen by 12% with one seed, and by 27%
# with another. That is a spread of 15 points; r=64 has 16, and full fine-tuning 9. Two methods at
# the same seed differ by 10 at most. A comparison with one seed would tell you little.
#
# Now compare seed by seed: full fine-tuning's rise minus that of LoRA with r=4.
#
# | seed 0 | seed 1 | seed 2 | mean ± standard error |
# |---|---|---|---|
# | -10 points | +1 | -2 | -3.6 ± 3.2 |
#
# With three seeds chance alone exceeds 4.3 standard errors, here 14 points, in one case of twenty
# (lab 5 says more). So nothing here says that one method forgets less than the other, and a true
# difference of 10 points could go unseen. These are runs of 10 to 17 steps of four commands, at one
# rate a method. If forgetting decides your choice, measure it on your task, with several seeds.
#
# <details><summary>Two more differences: your stars and the dots, the home run and these</summary>
#
# Precision and rounding probably move the result as well. The file was made in fp32; this cell
# multiplies in bf16 where the CPU does. With seed 0 full fine-tuning's perplexity rose by 17% in
# the file, and by 19, 23 and 27% in three runs of this cell, which differ in nothing that we set.
# All three lie above the file's: bf16 may add a bias besides the scatter.
#
# The `home` run above trained longer and forgot less (13 to 16%). Its batches are twice as large,
# its rank is 16, and its rate falls to zero. We did not measure which of these it is.
# </details>

# %% [markdown]
# Nor are there intruders after so few steps, in LoRA or in full fine-tuning. (The file has none
# among the ten leading directions of 42 matrices, with any seed.) So PEFT's
# `reduce_intruder_dimension` has nothing to take out. Shuttleworth et al. count them after far
# longer training.
#
# What does differ is the size of the update, `|ΔW| / |W|` in the table: for the same loss r=4
# changes the weights 2.5 to 3.0 times as much as r=64, by seed. These runs do not keep to the
# recipe's twice the rank: $\alpha$ is 32 at both, so the factor before $BA$ is 8 at r=4 and 0.5 at
# r=64. Lab 2 showed what follows: at the same $\alpha$ the norm of an early update falls as the
# rank grows. (Lab 5 shows that its useful part does not.)
#
# Whatever a method forgets, with LoRA you can switch the adapter off, and the base is what it was.

# %% [markdown]
# ## Where the loss belongs
#
# So far the loss was on the answer alone. In use the prompt is given, so learning to write prompts
# looks like a waste. Is it? Shi et al. ([2024](https://arxiv.org/abs/2405.14394)) find that it
# helps where prompts are long, answers short and examples few, and explain it by less overfitting.
#
# In the next experiment examples are few, too: 24 commands, each seen four times. A prompt has
# about 27 tokens here, and an answer about 20, the end and a line break among them. Of the prompt's
# tokens 19 are the same in every row: those of the template and of the system message.


# %%
def answer_loss_after(loss_on, seed):
    """Held-out loss of the answers after 24 steps on 24 commands; `loss_on` says which tokens."""
    rows = [loop.encode(tokenizer, messages) for messages in home["messages"][:24]]
    if loss_on == "everything":
        rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
    lora, args = recipe("build/where", "cpu")
    args = replace(args, max_steps=24, per_device_train_batch_size=4, learning_rate=2e-3, seed=seed)
    torch.manual_seed(seed)  # the draw of A
    base, rows = models.load()[0], Dataset.from_list(rows)
    title = "Answers alone count" if loss_on == "answer" else "All tokens count"
    run = finetuning.finetune(base, tokenizer, rows, lora, args, title=title)
    return loop.held_out_loss(run.model, tokenizer, unseen)


# %% tags=["experiment"]
if lab.experiment("Loss on the answer, loss on everything", 40, needs=["3.1"]):
    yours = {way: answer_loss_after(way, seed=0) for way in ("answer", "everything")}
    display(plots.where_loss(measured.load("where_loss"), yours))

# %% [markdown]
# A blue line is a seed of `benchmarks/where_loss.py`, with its number. Its left end is a run with
# the loss on the answer, its right end one with the loss on everything. All else is the same in
# both, so look at the slope. Four blue lines fall and two rise. The mean change is -0.04 ± 0.03
# nats a token (standard error of the paired differences), which is no clear difference. A single
# seed could have told you either: seed 0 says +0.04, and seed 1 says -0.05.
#
# Your dashed line repeats seed 0 with the same settings. Still it may have another slope. In one of
# our runs it rose by 0.01, in another it fell by less than that, where seed 0 of the file rises by
# 0.04. Nothing that we set differs; the arithmetic of the processor may. So the sign of one seed is
# not safe.
#
# The two curves of the training above cannot be compared with each other. The loss is a mean over
# tokens, and with the loss on everything less than half of them are the answer's. So the answer
# also has less weight in each step, which may be a part of what the slopes show.
#
# Now look at the ends of the lines. With the loss on the answer the seeds lie between 0.58 and
# 0.79, with the loss on everything between 0.61 and 0.68. Labels on the prompts may have made the
# runs steadier. That is a hint and no result: six seeds, and a question that we asked after seeing
# them.
#
# Shi et al. gain most where prompts are much longer than answers. Here about 8 tokens of a prompt
# differ from row to row, and an answer has 20. Where your prompts are longer, try a few seeds of
# both; TRL's switch is `completion_only_loss=False`.

# %% [markdown]
# ## What is on disk
#
# A run leaves a folder. What is in it? And does a model that you load from it answer like the one
# that you trained?


# %%
def adapter_bytes(folder):
    """Bytes of the file that holds an adapter's weights."""
    return (Path(folder) / "adapter_model.safetensors").stat().st_size


# %% tags=["experiment"]
if lab.experiment("The adapter's folder, opened", 2, needs=["3.1", "3.2"]):
    for file in sorted(tuned.folder.iterdir()):
        print(f"{file.name:<28}{file.stat().st_size:>12,} bytes")
    saved = PeftConfig.from_pretrained(tuned.folder)
    print(f"\nr={saved.r}, alpha={saved.lora_alpha}, on {', '.join(sorted(saved.target_modules))}")
    n = count_lora_params(on_meta(model.config, recipe("build/home", "cpu")[0])[0], 16)
    print(f"{n:,} numbers in {adapter_bytes(tuned.folder) / n:.2f} bytes each")

# %% [markdown]
# Four bytes a number: PEFT by itself trains and stores an adapter in fp32, even over a base in 16
# bits. (A copy made by `modules_to_save` keeps the base's 16 bits, as the file above showed.) TRL
# casts the adapters over a *quantised* base to bf16, so there it is two bytes (lab 4).
#
# Now load it again. The next cell does so as some people do. It merges the adapter, because a
# merged model is faster. Then it loads the adapter onto the result, because the merged model seems
# to have none. What will it answer?


# %%
def loaded_as_some_do(base, folder):
    """A PeftModel made of `base` and the adapter of `folder`."""
    model = PeftModel.from_pretrained(base, folder).merge_and_unload()
    return PeftModel.from_pretrained(model, folder, is_trainable=True)


# %%
guess_loaded = lab.predict("Loaded like this, what % of 60 answers will be right?", None)

# %% tags=["experiment"]
if lab.experiment("The adapter, loaded as some do", 12, needs=["3.1", "3.4", "3.6"]):
    again = loaded_as_some_do(models.load()[0], tuned.folder)
    theirs = "loaded as some do"
    answered = answers_of(again, unseen["messages"])
    reloaded = {"as trained": exact["tuned"], theirs: exact_match(answered, wanted)}
    ids = torch.tensor([render_prompt(unseen[0]["messages"][:-1], tokenizer)])
    with torch.no_grad():
        first, second = (again(ids.to(again.device)).logits for _ in range(2))
    print(f"the same question twice: logits differ by up to {(first - second).abs().max():.2f}")
    title = "Loaded as some do, it is another model"
    display(plots.asked(reloaded, len(unseen), title, guess_loaded, wrong=[theirs]))
    guess_loaded.beside(100 * reloaded[theirs])

# %% [markdown]
# There are three faults, and none raised an error. The first is the orange bar: when we ran it, 7%
# of the answers were right in place of 40%. (`answers_of` turns dropout off, so dropout is not what
# these answers suffer from.) The second is in the printed line: the same question gets other logits
# each time. The third shows nowhere. What are they?

# %% [markdown]
# ### Exercise 3.8 · `load_tuned`
#
# ●●○ · 6 min · 2 points
#
# **A hunt**, from [peft #2438](https://github.com/huggingface/peft/issues/2438) (*"Loading adapters
# in training mode produces incorrect results …"*) and after [peft
# #1355](https://github.com/huggingface/peft/pull/1355) (*"the delta weights are added again and
# again"*).
#
# Mend all three: the model answers as the run's did, dropout is off, and nothing trains. Put the
# adapter onto `base`, the model that is given, and merge nothing: with the adapter switched off,
# the base must be what it was before.
#
# <details><summary>Hint</summary>
#
# Two lines put the update in. Which of them leaves `base` as it was? And what does
# `is_trainable=True` ask for that a model which only answers does not need?
# </details>


# %%
def load_tuned(base, folder):
    """`base` with the adapter of `folder` on it, a PeftModel that is ready to answer."""
    # BEGIN SOLUTION
    return PeftModel.from_pretrained(base, folder).eval()
    # END SOLUTION
    # BEGIN GIVEN
    # model = PeftModel.from_pretrained(base, folder).merge_and_unload()
    # return PeftModel.from_pretrained(model, folder, is_trainable=True)
    # END GIVEN


# %%
check.loads_once(load_tuned)

# %% tags=["experiment"]
if lab.experiment("The adapter, loaded by you", 10, needs=["3.1", "3.4", "3.6", "3.8"]):
    yours = load_tuned(models.load()[0], tuned.folder)
    reloaded["loaded by you"] = exact_match(answers_of(yours, unseen["messages"]), wanted)
    title = "Loaded by you, it is the model that was trained"
    display(plots.asked(reloaded, len(unseen), title, wrong=[theirs]))
    whole = AutoPeftModelForCausalLM.from_pretrained(tuned.folder)
    print(f"in one call: {type(whole).__name__}, base in {whole.get_base_model().dtype}")

# %% [markdown]
# Now it answers as trained. Before, the update had counted twice: it was merged into the base, and
# stood beside it as an adapter as well. (Since #1355 PEFT merges no adapter twice. But it cannot
# know that you merged one into the base yourself.) And `is_trainable=True` had left dropout on, and
# the adapter ready to train.
#
# The configuration in the folder names its base, so `AutoPeftModelForCausalLM` loads both in one
# call, from a folder or from the hub. `push_to_hub("your-name/home-lora")` puts yours there. One
# base can hold several adapters at once; lab 7 serves three.

# %% [markdown]
# ### Exercise 3.9 · Quiz
#
# ●○○ · 5 min · 4 points
#
# The first letter that you check counts; then read what it says.
#
# **q1. A tuned model gives good answers and then writes on, to the limit. What do you look at
# first?**
#
# - (a) The sampling: greedy decoding never draws an end token, a temperature would find it.
# - (b) The rank: the end of an answer is a rare token, for which r=16 has too little room.
# - (c) The limit: `max_new_tokens` is too small for the model to come to its end by itself.
# - (d) The labels of one row: the end token may be masked, because padding has the same id.
#
# **q2. In a tenth of the rows the prompt alone is longer than `max_length`, and rows are cut on the
# right. What does the run learn from them?**
#
# - (a) To read long prompts: the prompt's tokens still pass through all the adapted layers.
# - (b) Nothing at all: no label is left in them, and a run need not give you any warning.
# - (c) Most of all: a row without an answer has the largest loss, and so a large gradient.
# - (d) To give up: the missing answer raises an error, at which the trainer ends the run.
#
# **q3. You want to know which forgets more, LoRA or full fine-tuning. What makes the comparison
# fair?**
#
# - (a) Both train until the task's held-out loss is equal, each at its own good rate.
# - (b) Both train for the same number of steps, on the same batches and with the same seed.
# - (c) Both train at the same learning rate, so that neither of them takes the larger steps.
# - (d) Both train until their files have the same size, which takes a higher rank for LoRA.
#
# **q4. `PeftModel.from_pretrained(base, folder).merge_and_unload()`, and then the same adapter is
# loaded onto the result. What answers now?**
#
# - (a) The tuned model at half its strength: two copies of one adapter share its update.
# - (b) The tuned model as it was: PEFT sees that this adapter is in the base, and skips it.
# - (c) A model with twice the update, as if alpha were doubled; its base is changed, too.
# - (d) A model with the square of the update, since $BA$ is multiplied with itself there.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a", "q4": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "d", "q2": "b", "q3": "a", "q4": "c"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - A recipe is a handful of settings. The size of the adapter follows from shapes. Print the names
#   of what trains: what your targets did not reach is missing there.
# - Read one row before a run, token by token: does the end have a label, does the prompt end where
#   the answer begins, is anything of the answer left?
# - One metric is not enough: intent and exact match differ, and neither sees what was forgotten.
# - Compare methods at equal task loss, and over seeds. Here another seed moved forgetting by up to
#   16 points, and another method at the same seed by up to 10.
# - After loading, compare the answers with those of the run. An update that counts twice, or
#   dropout left on, raises no error.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["3.1", "3.3", "3.4", "3.6", "3.7"]):
    lab.headline(
        f"PEFT + TRL: {unstopped['the given labels']} of {len(unseen)} answers do not stop with "
        f"the end token masked, {unstopped['your labels']} with it trained; exact match "
        f"{exact['base']:.0%} → {exact['tuned']:.0%}; perplexity elsewhere "
        f"{surprise['base']:.1f} → {surprise['home']:.1f}"
    )
