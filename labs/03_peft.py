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
# In lab 2, you wrote LoRA from scratch. In practice, you use two libraries: PEFT adds and saves the
# LoRA layers, and TRL runs the training. You supply the data and a few settings. Some mistakes
# raise no error: training finishes normally, but the model never stops writing, or it has learned
# nothing.
#
# Five exercises in this lab are *bug hunts*. Each starts from buggy code and links to a GitHub
# issue that reports a similar bug. The code usually runs but gives wrong results. Fix it.
#
# {{ time }}

# %%
import labkit

lab, check = labkit.start("03_peft")

# %%
import math
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from IPython.display import display
from IPython.utils.capture import capture_output
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from trl import SFTConfig, SFTTrainer

from labkit import live, tasks
from labkit.figures import lab03 as figures
from labkit.memory.measure import track
from labkit.plots import compare_answers
from labkit.training import finetuning, generation, loop, models

# %% [markdown]
# ## From rows to adapter
#
# The task is `home` again: turn spoken commands into JSON. The next cell prints one row as the
# model sees it.

# %% tags=["experiment"]
if lab.experiment("The task and the tokenizer", 1):
    model, tokenizer = models.load()
    home, unseen = tasks.load("home"), tasks.draw("home", "test", 60)
    print(tokenizer.apply_chat_template(home[0]["messages"], tokenize=False))
    print(f"padding token: {tokenizer.pad_token}, end of an answer: {tokenizer.eos_token}")

# %% [markdown]
# ### Exercise 3.1 · `train_adapter`
#
# ●●● · 13 min · 4 points
#
# Train a LoRA adapter with TRL's `SFTTrainer` (supervised fine-tuning), save the adapter, and
# return the trainer.
#
# - Create a `LoraConfig` with `r=16`, `lora_alpha=32`, `lora_dropout=0.05`, `task_type="CAUSAL_LM"`
#   and `target_modules="all-linear"`, which adapts every linear layer except the head.
# - Create an `SFTConfig` with `output_dir`, `learning_rate`, one epoch over `rows`
#   (`num_train_epochs=1`), one step per batch of 8 (`per_device_train_batch_size=8`) and
#   `bf16=False`. The model already has the right precision, and TRL's default for `bf16` raises an
#   error on a CPU.
# - **Compute the loss only on the answer.** Including the prompt works, too: in six pairs of small
#   runs, masking it made no clear difference
#   ([evidence](../docs/evidence/03_peft.md#where-the-loss-belongs)). `rows` is a `Dataset` whose
#   `messages` column contains conversations; the last message of each conversation is the answer.
#   Given a `messages` column, TRL would train on every token. Instead, create two columns of
#   message lists, `prompt` and `completion`: TRL then trains only on the completion.
# - Pass everything to
#   `SFTTrainer(model, args, train_dataset=…, processing_class=tokenizer, peft_config=…)`. Call its
#   `train()`, then `save_model()`, which saves the adapter to `output_dir`.
#
# Other useful settings: `gradient_checkpointing=False` speeds up training (see exercise 3.5),
# `report_to="none"` sends nothing to tracking services, and `logging_steps=1` logs the loss at each
# step. (Older tutorials use `tokenizer=` instead of `processing_class=`.)
#
# <details><summary>Hint: the columns</summary>
#
# The prompt is a list of all messages except the last. The completion is a list with only the last
# message. `rows.map(function, remove_columns=rows.column_names)` builds a dataset from the dicts
# that `function(row)` returns.
# </details>


# %%
def train_adapter(model, tokenizer, rows, output_dir, learning_rate):
    """Train LoRA on the Dataset `rows`, save the adapter, and return the SFTTrainer."""
    # BEGIN SOLUTION
    lora = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    args = SFTConfig(
        output_dir,
        learning_rate=learning_rate,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    pairs = rows.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
        remove_columns=rows.column_names,
    )
    trainer = SFTTrainer(
        model, args, train_dataset=pairs, processing_class=tokenizer, peft_config=lora
    )
    trainer.train()
    trainer.save_model()
    return trainer
    # END SOLUTION


# %%
check.trains(train_adapter)

# %% [markdown]
# ### Why a run learns nothing
#
# TRL's default learning rate is 2e-5. Here you compare it with 2e-3. (The helper `finetune` speeds
# up TRL's trainer on a CPU by skipping padding and computing logits only for the answer.)


# %%
def short_run(label, targets="all-linear", learning_rate=2e-3, steps=16):
    """Train LoRA on the layers `targets` and return the losses."""
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    args = SFTConfig(
        "build/short",
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=learning_rate,
        bf16=False,
    )
    return finetuning.finetune(models.load()[0], tokenizer, home, lora, args, title=label).losses


rate_runs = {}  # your runs so far: {rate: losses}

# %%
question = "The loss starts at about 4. What is it after 16 steps at TRL's default rate, 2e-5?"
guess_rate = lab.predict(question, None)

# %% [markdown]
# **Try it: learning rate.** Run the cell, then replace the list `rates` with one of your own, such
# as `[2e-4]` or `[2e-2]`. The new curve is added to the figure.

# %% tags=["experiment"]
rates = [2e-5, 2e-3]
if lab.experiment("Two learning rates", 30, needs=["3.1"]):
    for rate in rates:
        rate_runs[rate] = short_run(f"rate {rate:g}", learning_rate=rate)
    display(figures.rates(rate_runs, guess_rate))
    guess_rate.compare(next(iter(rate_runs.values()))[-1])

# %% [markdown]
# At the default learning rate, sixteen steps hardly change the loss, and you get no warning. This
# default is meant for full fine-tuning of large models. LoRA needs a higher rate: 2e-3 works far
# better in the short runs of this lab ([evidence](../docs/evidence/03_peft.md#learning-rates)).
# Other reasons why an adapter "learned nothing" come later in this lab.
#
# Now train longer at the higher learning rate: one epoch on 320 rows. Then test the model on 60
# commands with unseen sentence patterns.


# %%
def ask(model, n=60):
    """The model's answers to the first n test commands."""
    return generation.answers(model, tokenizer, unseen["messages"][:n])


def count_right(answers):
    """Count the answers that are right, word for word."""
    return sum(a == b for a, b in zip(answers, unseen["answer"], strict=True))


# %% tags=["experiment", "cover"]
if lab.experiment("Train on home with PEFT and TRL", 110, needs=["3.1"]):
    torch.manual_seed(lab.seed)
    rows = tasks.draw("home", "train", 320, lab.seed)
    with capture_output():
        trainer = train_adapter(models.load()[0], tokenizer, rows, "build/home-lora", 2e-3)
    eight_rows = next(iter(trainer.get_train_dataloader()))  # a batch, for exercise 3.5
    answers = {"base model": ask(models.load()[0], 3), "tuned": ask(trainer.model)}
    right = count_right(answers["tuned"])
    display(compare_answers(unseen["text"], unseen["answer"], answers, rows=3))
    print(f"{right} of {len(unseen)} answers are right, word for word")

# %% [markdown]
# **Try it: targets.** In its main experiments, the original LoRA paper adapts only the query and
# value projections. Compare that choice with adapting every linear layer. Then add a choice of your
# own, such as the MLP's `gate_proj`, `up_proj` and `down_proj`.

# %%
target_runs = {}  # your runs so far: {targets: losses}

# %% tags=["experiment"]
targets = {"q, v": ["q_proj", "v_proj"], "all-linear": "all-linear"}
if lab.experiment("Which layers to adapt", 11, needs=["3.1"]):
    for label, names in targets.items():
        target_runs[label] = short_run(label, names)
    display(figures.targets(target_runs))

# %% [markdown]
# Here, the model learns faster with `all-linear`, which also trains five times as many parameters.
# QLoRA's authors had to adapt every linear layer to match full fine-tuning, while the rank made
# little difference ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314)).
#
# ## A model that never stops
#
# A common complaint is that a fine-tuned model answers well but then keeps writing. To find the
# cause, train on rows without a chat template: each row is a command, a line break, an answer and
# an end token. (With its chat template, SmolLM2 usually stops already, which would hide the bug.)
#
# A *label* of -100 excludes a token from the loss. The next function is meant to give this label to
# prompts and padding. Like transformers' `DataCollatorForLanguageModeling`, it finds padding by
# token id.


# %%
def given_labels(input_ids, attention_mask, prompt_lengths):
    """Return labels (b, n), which are -100 for prompts and padding."""
    labels = input_ids.clone()
    labels[labels == 2] = -100  # 2 is tokenizer.pad_token_id
    for row, length in zip(labels, prompt_lengths, strict=True):
        row[:length] = -100
    return labels


# %%
def rows_of(dataset, label):
    """Return rows of `input_ids` and `labels` without a template; `label` computes the labels."""
    rows = []
    for command, answer in zip(dataset["text"], dataset["answer"], strict=True):
        prompt = tokenizer(command + "\n")["input_ids"]
        answered = tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]
        ids = torch.tensor([prompt + answered])  # (1, n)
        labels = label(ids, torch.ones_like(ids), torch.tensor([len(prompt)]))
        rows.append({"input_ids": ids[0].tolist(), "labels": labels[0].tolist()})
    return Dataset.from_list(rows)


def train_on(label):
    """Train LoRA for 20 steps on rows with labels from the function `label`."""
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    args = SFTConfig(
        "build/labels",
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        bf16=False,
    )
    rows = rows_of(tasks.draw("home", "train", 160, 0), label)
    return finetuning.finetune(models.load()[0], tokenizer, rows, lora, args, title=label.__name__)


def continued(model, ending):
    """Return the model's text after each test command plus `ending`, including the end token."""
    prompts = [tokenizer(command + ending)["input_ids"] for command in unseen["text"]]
    return [tokenizer.decode(ids) for ids in generation.continuations(model, prompts, 48)]


def endless(texts):
    """Count the texts that don't end with the end token."""
    return sum(not text.endswith(tokenizer.eos_token) for text in texts)


# %% tags=["experiment"]
if lab.experiment("Trained on the given labels", 20, needs=["3.1"]):
    given_run = train_on(given_labels)
    said = continued(given_run.model, "\n")
    unstopped = {"given labels": endless(said)}
    print(f"{unstopped['given labels']} of {len(said)} answers don't stop. The first three:\n")
    print("\n\n".join(f"{c}\n{text}" for c, text in zip(unseen["text"][:3], said[:3], strict=True)))

# %% [markdown]
# The model completes the JSON but keeps writing until it reaches the 48-token limit. The training
# loss looked normal.
#
# ### Exercise 3.2 · `answer_labels`
#
# ●●● · 10 min · 3 points
#
# **Bug hunt**, based on [trl #976](https://github.com/huggingface/trl/issues/976): *"the resulting
# model I created does not generate the stop token"*. Fix the code:
#
# - Label every prompt token with -100. `prompt_lengths` counts each row's prompt tokens, without
#   padding.
# - Label all padding with -100, whatever its token id and whichever side it is on.
# - Label every other token with its own id, **including the end token** and any token after it,
#   such as a line break.
#
# Don't shift the labels: the model shifts them itself.
#
# For example, take a row padded on the left, where 2 is the id of both padding and the end token.
# With ids (2, 2, 7, 8, 9, 2), mask (0, 0, 1, 1, 1, 1) and a prompt of 2 tokens, the labels are
# (-100, -100, -100, -100, 9, 2).
#
# <details><summary>Hint: what is padding?</summary>
#
# Padding and the end token have the same id. Which other input marks the padding?
# </details>
#
# <details><summary>Hint: where does the prompt end?</summary>
#
# To number the real tokens of a row, take the cumulative sum of its attention mask. This works with
# padding on either side.
# </details>


# %%
def answer_labels(input_ids, attention_mask, prompt_lengths):
    """ids (b, n), 0/1 mask (b, n), prompt lengths (b,) -> labels (b, n), -100 if ignored."""
    # BEGIN SOLUTION
    place = attention_mask.cumsum(1)  # (b, n): 1 at a row's first real token
    learned = (place > prompt_lengths[:, None]) & (attention_mask == 1)
    return input_ids.masked_fill(~learned, -100)
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

# %% tags=["experiment"]
if lab.experiment("Trained on your labels", 18, needs=["3.1", "3.2"]):
    (row,) = rows_of(home.select([0]), answer_labels)
    tokens = [tokenizer.decode([token]) for token in row["input_ids"]]
    display(figures.loss_tokens(tokens, [y != -100 for y in row["labels"]]))
    your_run = train_on(answer_labels)
    unstopped["your labels"] = endless(continued(your_run.model, "\n"))
    last = {"given labels": given_run.losses[-1], "your labels": your_run.losses[-1]}
    display(figures.stops(unstopped, last, len(unseen)))

# %% [markdown]
# One label per row made the difference. The loss can't show this bug: it averages only over labeled
# tokens, and the end token had no label.
#
# SmolLM2's tokenizer uses the end token for padding. Many tokenizers have no padding token, so
# tutorials set `tokenizer.pad_token = tokenizer.eos_token`, which can lead to the same bug. TRL
# 1.16 builds labels before padding, so the padding id doesn't matter there.
#
# ## Where the answer begins
#
# ### Exercise 3.3 · `render_prompt`
#
# ●●○ · 6 min · 2 points
#
# **Bug hunt** with two bugs. The first bug is from [trl
# #1400](https://github.com/huggingface/trl/issues/1400): *"In tokenizer like LLaMATokenizer, there
# will be two bos tokens at the very beginning"*. The chat template writes a BOS token (beginning of
# sequence), and then the tokenizer adds another. SmolLM2's tokenizer doesn't add a BOS token, but
# the tokenizers of Llama, Gemma and Mistral do.
#
# The second bug is from [helm #3698](https://github.com/stanford-crfm/helm/issues/3698): without
# the *generation prompt* (the tokens that open the assistant's turn), the model *"keeps writing as
# the user"*.
#
# Given messages, the last one from the user, return a list of the prompt's token ids, up to where
# the answer begins. This list must be a prefix of the whole conversation's token ids, so that the
# model sees the same prompt as in training.
#
# <details><summary>Hint</summary>
#
# Print the text that `apply_chat_template` returns. What is missing at its end, and what might the
# tokenizer add at its beginning? With `return_dict=False`, this method can return token ids
# instead.
# </details>


# %%
def render_prompt(messages, tokenizer):
    """Return a list of the conversation's token ids, up to where the model's answer begins."""
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
# What does the second bug look like? Our rows have no chat template, so the line break after the
# command acts as the generation prompt. The next cell prompts the model trained on your labels,
# with and without that line break.

# %% tags=["experiment"]
if lab.experiment("Without the generation prompt", 9, needs=["3.1", "3.2"]):
    for name, ending in {"with the line break": "\n", "without it": ""}.items():
        said = continued(your_run.model, ending)
        opened = sum(text.startswith("{") for text in said)
        print(f"{name}, {opened} of {len(said)} texts begin with {{:")
        for command, text in zip(unseen["text"][:3], said[:3], strict=True):
            print(f"    {command} → {text}")

# %% [markdown]
# Without the line break, the model often finishes the user's sentence first, with a period or a
# question mark, or stops without an answer. With three other seeds, 5 to 28 of 60 texts still began
# with `{`. With SmolLM2's own template, leaving out the generation prompt costs some runs nothing
# and others many right answers, as lab 7 shows. Don't wait for a bad score: compare your prompt's
# token ids with those used in training.

# %% [markdown]
# ## Rows that are too long
#
# A row longer than `max_length` (TRL's default is 1,024 tokens) is cut, usually on the right, where
# the answer is. The task `tickets` consists of emails to a support desk.


# %%
def cut_on_the_right(prompt_ids, answer_ids, max_length):
    """The first `max_length` input ids and labels of a row."""
    input_ids = prompt_ids + answer_ids
    labels = [-100] * len(prompt_ids) + answer_ids
    return input_ids[:max_length], labels[:max_length]


def damage(cut, max_length):
    """Count the tickets that have no label left, and the others that lost their end token."""
    empty = unended = 0
    for messages in tickets["messages"]:
        prompt = loop.prompt_ids(tokenizer, messages)
        answer = tokenizer(messages[-1]["content"])["input_ids"] + [tokenizer.eos_token_id]
        learned = [label for label in cut(prompt, answer, max_length)[1] if label != -100]
        empty += not learned
        unended += bool(learned) and learned[-1] != tokenizer.eos_token_id
    return {"have no labels": empty, "lost their end": unended}


# %%
guess_empty = lab.predict("If rows are cut to 96 tokens, how many of 960 have no label left?", None)

# %% tags=["experiment"]
if lab.experiment("What is left of a row", 1):
    tickets = tasks.load("tickets", "train")
    lost = {n: damage(cut_on_the_right, n) for n in (64, 96, 192)}
    display(figures.damage(lost, len(tickets)))
    guess_empty.compare(lost[96]["have no labels"])

# %% [markdown]
# One email in ten is long, and a cut at 96 tokens removes all the long ones from training. No loss
# curve shows this: TRL 1.16 drops rows without labels and prints no warning.
#
# ### Exercise 3.4 · `fit`
#
# ●●● · 9 min · 3 points
#
# **Bug hunt**, based on [trl #6668](https://github.com/huggingface/trl/issues/6668): a run whose
# labels were all cut off reports a loss of 0.0 and ends without an error. Fix the code:
#
# - Shorten the prompt first: remove tokens from its **front** and keep its end.
# - If the answer alone fits into `max_length`, keep the whole answer, including its end token.
# - If the answer is longer than `max_length`, keep only its beginning: no prompt, and no end token,
#   because that would teach the model to stop midway through an answer.
# - Don't change a row that fits, and never return one longer than `max_length`.
#
# `prompt_ids` and `answer_ids` are lists of ints, and `answer_ids` ends with the end token. Label
# every prompt token with -100.
#
# For example, the prompt (5, 6, 7) and the answer (8, 2) become (6, 7, 8, 2) with `max_length=4`,
# (8, 2) with `max_length=2`, and (8) with `max_length=1`.
#
# <details><summary>Hint</summary>
#
# Decide how many answer tokens to keep, then fill the rest with prompt tokens. Test your slice when
# there is no room for the prompt: what is `[1, 2, 3][-0:]`?
# </details>


# %%
def fit(prompt_ids, answer_ids, max_length):
    """Return (input_ids, labels), two lists of at most `max_length`; prompt labels are -100."""
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
if lab.experiment("What is left of a row after your cut", 1, needs=["3.4"]):
    left = [f"{rows} rows {what}" for what, rows in damage(fit, 64).items()]
    print(f"cut to 64 tokens: {', '.join(left)}")

# %% [markdown]
# Now no row loses its answer. In exchange, 173 of 960 prompts lose their front at 64 tokens, and 98
# of these lose the beginning of the question. Such a row teaches the model to make things up: raise
# `max_length`, drop the row, or shorten the email inside the template. Don't rely on TRL's own
# option for cutting rows from the front: it is deprecated as of TRL 1.16.
#
# ## Less memory, and an adapter that didn't train
#
# *Gradient checkpointing* stores only each block's input during the forward pass and recomputes the
# other activations in the backward pass.
#
# ### Exercise 3.5 · `with_checkpointing`
#
# ●●○ · 8 min · 3 points
#
# **Bug hunt**, based on [open-unlearning
# #178](https://github.com/locuslab/open-unlearning/issues/178): *"PEFT LoRA transformer layers not
# trained when gradient_checkpointing=True"* (also reported in [cloneofsimo/lora
# #26](https://github.com/cloneofsimo/lora/issues/26)). The code wraps each block's forward method
# in `torch.utils.checkpoint`. If only the blocks have LoRA, `backward()` raises an error. If the
# head has LoRA, too, the loss falls without an error, but every `B` matrix in the blocks stays at
# zero.
#
# Fix the code so that the gradients are the same as without checkpointing and each block is still
# checkpointed separately.
#
# <details><summary>Hint: why</summary>
#
# With `use_reentrant=True`, autograd tracks a checkpointed block only if one of the block's
# *inputs* requires grad. What is the first block's input, and why doesn't it require grad?
# </details>


# %%
def with_checkpointing(model):
    """Return the PeftModel, whose blocks now store only their inputs and recompute the rest."""
    # BEGIN SOLUTION
    for block in model.get_base_model().model.layers:
        forward = block.forward
        block.forward = partial(checkpoint, forward, use_reentrant=False)
    return model
    # END SOLUTION
    # BEGIN GIVEN
    # def again(forward, x, **options):
    #     return checkpoint(partial(forward, **options), x, use_reentrant=True)
    #
    # for block in model.get_base_model().model.layers:
    #     block.forward = partial(again, block.forward)
    # return model
    # END GIVEN


# %%
check.checkpoints(with_checkpointing)

# %% [markdown]
# The next cells train SmolLM2 with LoRA on the blocks and the head: without checkpointing, with the
# given code, and with your fix.


# %%
def given_checkpointing(model):
    """Reproduce the bug from the issue."""

    def again(forward, x, **options):
        return checkpoint(partial(forward, **options), x, use_reentrant=True)

    for block in model.get_base_model().model.layers:
        block.forward = partial(again, block.forward)
    return model


def few_steps(prepare, steps=3):
    """Return the losses, peak activation bytes and which B changed: [True, False, …]."""
    torch.manual_seed(lab.seed)
    parts = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    config = LoraConfig(r=16, lora_alpha=32, target_modules=parts)
    model = prepare(get_peft_model(models.load()[0], config)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    losses = []
    for _ in range(steps):
        with track(model, optimizer) as peak:
            loss = model(**eight_rows, use_cache=False).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    moved = [bool(p.any()) for name, p in model.named_parameters() if "lora_B" in name]
    return losses, peak.by_category["activations"], moved


# %% tags=["experiment"]
if lab.experiment("Three ways to run a block", 15, needs=["3.1", "3.5"]):
    ways = {"plain": lambda m: m, "given": given_checkpointing, "yours": with_checkpointing}
    display(figures.checkpointed({name: few_steps(prepare) for name, prepare in ways.items()}))

# %% [markdown]
# With the given code, the loss falls a little because the head's adapter trains. Nothing else
# trains: the backward pass never reaches the blocks. The low memory is no warning, because correct
# checkpointing needs little more. PyTorch only warns: *None of the inputs have requires_grad=True*.
# (The labs hide library warnings to keep their output short.) Check the `B` matrices after the
# first step with a nonzero learning rate: they start at zero, so a `B` that is still zero hasn't
# trained.
#
# If you turn on checkpointing with `gradient_checkpointing=True`, this bug no longer happens:
# transformers 5 sets `use_reentrant=False`. Your own training loop has no such protection.
#
# ## What is on disk
#
# Does a model loaded from disk answer like the one you trained? Suppose you merge the adapter,
# forget that you did, and load it again, this time for more training.


# %%
def loaded_as_some_do(base, folder):
    """Build a PeftModel from `base` and the adapter in `folder`."""
    model = PeftModel.from_pretrained(base, folder).merge_and_unload()
    return PeftModel.from_pretrained(model, folder, is_trainable=True)


# %%
guess_loaded = lab.predict("With this code, how many of 60 answers will be right?", None)

# %% tags=["experiment"]
if lab.experiment("Load the adapter with the buggy code", 8, needs=["3.1"]):
    again = loaded_as_some_do(models.load()[0], "build/home-lora")
    doubled = count_right(ask(again))
    ids = torch.tensor([loop.prompt_ids(tokenizer, unseen[0]["messages"])], device=again.device)
    with torch.no_grad():
        first, second = (again(ids).logits for _ in range(2))
    print(f"the same question twice: logits differ by up to {(first - second).abs().max():.2f}")
    print(f"{doubled} of {len(unseen)} answers are right, not {right}")
    guess_loaded.compare(doubled)

# %% [markdown]
# This code has two bugs but raises no error. The update is applied twice, and dropout is on, so the
# same question gives different logits each time. (Dropout isn't why answers are wrong: `ask` turns
# it off. Without `is_trainable=True`, PEFT itself loads adapters with dropout off.)
#
# Weight names can also fail to match. Wrapping the model, for example with `torch.compile`, can add
# `_orig_mod` to the names in the adapter file. What does PEFT do with names that the model doesn't
# have?

# %% tags=["experiment"]
if lab.experiment("An adapter whose names match nothing", 2, needs=["3.1"]):
    renamed = Path("build/renamed-lora")
    renamed.mkdir(parents=True, exist_ok=True)
    weights = load_file("build/home-lora/adapter_model.safetensors")
    weights = {k.replace("model.layers", "model._orig_mod.layers"): w for k, w in weights.items()}
    save_file(weights, renamed / "adapter_model.safetensors")
    config = Path("build/home-lora/adapter_config.json").read_text()
    (renamed / "adapter_config.json").write_text(config)
    base = models.load()[0]  # hides the libraries' warnings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        unmatched = PeftModel.from_pretrained(base, renamed)
    print(f"PEFT's warning: {str(caught[-1].message)[:110]} …")
    with torch.no_grad():
        gap = (unmatched(ids).logits - models.load()[0](ids).logits).abs().max()
    print(f"the loaded model's logits differ from the base model's by {gap:.1g}")

# %% [markdown]
# PEFT loads none of these weights and only warns, which is easy to miss in a log. The `B` matrices
# stay zero, so you get the base model's outputs.
#
# ### Exercise 3.6 · `load_tuned`
#
# ●●○ · 8 min · 3 points
#
# **Bug hunt**, based on [peft #2115](https://github.com/huggingface/peft/issues/2115) (a model with
# a loaded adapter gives the base model's outputs) and [peft
# #2438](https://github.com/huggingface/peft/issues/2438) (an adapter is loaded in training mode).
# Fix both bugs, and make the loader refuse a file that doesn't match:
#
# - Make the loaded model answer like the trained model. Don't merge the adapter: with the adapter
#   disabled, `base` must be unchanged.
# - Turn dropout off, and leave no parameters trainable.
# - Raise an error if the names in `adapter_model.safetensors` aren't exactly those that the model
#   expects.
#
# <details><summary>Hint</summary>
#
# The keys of `get_peft_model_state_dict(model)` are the names that the loaded model expects in the
# file. The keys of `load_file(…)` are the names that the file contains.
# </details>


# %%
def load_tuned(base, folder):
    """Return a PeftModel, ready to answer: `base` with the adapter from `folder`."""
    # BEGIN SOLUTION
    model = PeftModel.from_pretrained(base, folder).eval()
    saved = load_file(Path(folder) / "adapter_model.safetensors")
    if get_peft_model_state_dict(model).keys() != saved.keys():
        raise ValueError("the names in this adapter don't fit the model")
    return model
    # END SOLUTION
    # BEGIN GIVEN
    # model = PeftModel.from_pretrained(base, folder).merge_and_unload()
    # return PeftModel.from_pretrained(model, folder, is_trainable=True)
    # END GIVEN


# %%
check.loads_once(load_tuned)

# %% tags=["experiment"]
if lab.experiment("Load the adapter with your code", 4, needs=["3.1", "3.6"]):
    loaded = load_tuned(models.load()[0], "build/home-lora")
    print(f"{count_right(ask(loaded))} of {len(unseen)} answers are right, ", end="")
    print(f"compared with {right} before saving")

# %% [markdown]
# The adapter's config file names its base model, so `AutoPeftModelForCausalLM` loads both in one
# call.
#
# ## What the model forgot
#
# A model that learns to write JSON may get worse at English.
#
# ### Exercise 3.7 · `perplexity`
#
# ●●● · 10 min · 3 points
#
# A model's perplexity on a set of texts is $\exp$ of the mean negative log-likelihood *per token*,
# so a long text counts more than a short one. Don't cut any text. Don't count padding or a text's
# first token, which the model doesn't predict.
#
# Pass `add_special_tokens=False`, so that only the text's own tokens are scored. (A model trained
# with a BOS token, such as Gemma, needs it as context but isn't scored on it.) The model is in eval
# mode; don't change that.
#
# For example, two predicted tokens with probabilities 1/2 and 1/8 have a mean negative
# log-likelihood of $(\ln 2 + \ln 8) / 2 = \ln 4$. The perplexity is $e^{\ln 4} = 4$: the model was
# as uncertain as if choosing among four equally likely tokens.
#
# <details><summary>Hint</summary>
#
# Suppose one text has 3 tokens and another has 300. Which text should dominate the result? Which of
# this lab's bugs could come back if you padded the two texts into one batch?
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

# %% tags=["experiment"]
if lab.experiment("Everyday English, before and after", 3, needs=["3.1", "3.7"]):
    texts = tasks.general()  # ten paragraphs about tides, bread and bridges
    before = perplexity(models.load()[0], tokenizer, texts)
    after = perplexity(trainer.model.eval(), tokenizer, texts)
    print(f"perplexity {before:.1f} before, {after:.1f} after: {after / before - 1:+.0%}")

# %% [markdown]
# In this run, perplexity rose on these ten paragraphs. Until you merge the adapter, you can disable
# it to get the base model back. Lab 9 shows how forgetting affects answers and how training can
# undo it.
#
# ## Take it with you
#
# Before a long run, check a batch and the trainable parameters. Then train briefly and check the
# `B` matrices. (For a longer run, start with a lower learning rate, such as 2e-4. On an Ampere or
# newer GPU, remove `bf16=False`.) Save this script as `inspect_run.py` and insert your own model
# and rows.
#
# ```python
# from datasets import Dataset
# from peft import LoraConfig
# from trl import SFTConfig, SFTTrainer
#
# MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# ROWS = [("Turn off the kitchen lights", '{"intent": "HassTurnOff", "area": "kitchen"}')] * 64
#
# def message(role, text):
#     return [{"role": role, "content": text}]
#
# rows = [{"prompt": message("user", q), "completion": message("assistant", a)} for q, a in ROWS]
# lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
# args = SFTConfig("my-lora", learning_rate=1e-3, num_train_epochs=1, bf16=False)
# trainer = SFTTrainer(MODEL, args, train_dataset=Dataset.from_list(rows), peft_config=lora)
# batch = next(iter(trainer.get_train_dataloader()))
# for token, label in zip(batch["input_ids"][0], batch["labels"][0]):
#     print(repr(trainer.processing_class.decode([token])), "" if label == -100 else "<- learned")
# trainer.model.print_trainable_parameters()
# trainer.train()
# trainer.save_model()
# B = [p for name, p in trainer.model.named_parameters() if "lora_B" in name]
# print(sum(bool(b.any()) for b in B), "of", len(B), "B matrices have moved")
# ```

# %% [markdown]
# ### Exercise 3.8 · Quiz
#
# ●○○ · 4 min · 4 points
#
# Only your first answer to each question counts. Then read the explanation.
#
# **q1. A fine-tuned model answers well but then keeps writing up to the token limit. What do you
# check first?**
#
# - (a) The sampling: greedy decoding never picks an end token, but sampling would.
# - (b) The rank: the end token is rare, and r=16 is too small to learn it.
# - (c) The token limit: `max_new_tokens` is too small for the model to stop by itself.
# - (d) The labels of one row: the end token may be masked, because the padding token has the same
#   id.
#
# **q2. You train LoRA with TRL's default settings. The loss hardly falls, and the tuned model
# answers like the base model. Which of these explains it?**
#
# - (a) Dropout in the adapter: a rate of 0.05 hides the update in eval mode.
# - (b) The learning rate: TRL's default is meant for full fine-tuning.
# - (c) The rank: r=16 is too small to learn a new format.
# - (d) The prompts: masking them removes the signal that LoRA needs.
#
# **q3. In a tenth of the rows, the prompt alone is longer than `max_length`, and rows are cut on
# the right. What does the model learn from these long rows?**
#
# - (a) To read long prompts: their tokens still pass through all adapted layers.
# - (b) Nothing: these rows have no labels left, and you may not get any warning.
# - (c) A lot: a row without an answer has the largest loss and therefore a large gradient.
# - (d) It never gets that far: the missing answer raises an error, which ends the run.
#
# **q4. You run `PeftModel.from_pretrained(base, folder).merge_and_unload()` and then load the same
# adapter onto the merged model. What do you get?**
#
# - (a) The tuned model at half strength, because two copies of the adapter share its update.
# - (b) The tuned model as it was: PEFT detects that this adapter is already merged and skips it.
# - (c) A model with twice the update, as if alpha were doubled. Its base weights have changed, too.
# - (d) A model with the square of the update, because $BA$ is multiplied by itself.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a", "q4": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "d", "q2": "b", "q3": "b", "q4": "c"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - A training run needs a `LoraConfig`, an `SFTConfig` and rows. TRL's default learning rate is too
#   low for short LoRA runs.
# - Before a run, inspect one row token by token. Does the end token have a label? Does the prompt
#   end where the answer begins? Does the row still contain an answer?
# - A falling loss doesn't show which tokens count toward it or which matrices train. Check the
#   model's answers and the `B` matrices.
# - After loading an adapter, compare the answers with the trained model's. A doubled update
#   raises no error. Nor does an adapter whose names match nothing.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["3.1", "3.2"]):
    lab.headline(
        f"PEFT + TRL: {right} of {len(unseen)} answers right; "
        f"{unstopped['given labels']} answers don't stop if the end token is masked, "
        f"{unstopped['your labels']} if it is labeled"
    )
