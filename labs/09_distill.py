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
# # Lab 9 · Learn without forgetting
#
# An adapter learns one task. What happens to the model's other skills? Train the model on `home`
# alone, then ask why we have leap years: it answers with a scrap of a smart-home command. This is
# *catastrophic forgetting*. In this lab, you undo most of it without written answers to everyday
# instructions.
#
# You already have a teacher in memory: with the adapter switched off, the model is the base model.
# So let the tuned model answer, compute the base's probabilities for each next token, and train
# toward those probabilities. Using the original model as the teacher is an old idea ([Li and Hoiem
# 2016](https://arxiv.org/abs/1606.09282)). If the student (the tuned model) writes the answers,
# this is *on-policy distillation* ([Agarwal et al. 2023](https://arxiv.org/abs/2306.13649)), which
# [Lu et al. (2025)](https://thinkingmachines.ai/blog/on-policy-distillation/) use to restore lost
# skills. You write the loss, the sampling function and the training step, and fix a measurement
# that reports zero for every adapter.
#
# {{ time }}

# %%
import labkit

lab, check = labkit.start("09_distill")

# %%
import copy

import torch
from IPython.display import display
from peft import LoraConfig, get_peft_model
from torch import nn

from labkit import live, tasks
from labkit.figures import lab09 as figures
from labkit.plots import compare_answers
from labkit.training import fast, generation, loop, models, packing, rollouts, trees

# %% [markdown]
# ## Train on one task
#
# Train a LoRA only on spoken commands and their JSON intents, for 40 steps of eight rows each.


# %%
def adapted(base, r=16, seed=0):
    """Copy `base` and add a LoRA to all linear layers; with it off, the copy acts like `base`."""
    torch.manual_seed(seed)
    lora = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear")
    return get_peft_model(copy.deepcopy(base), lora)


def learn_home(model, steps=40, rate=2e-3):
    """Fine-tune a model on `home` alone, in place."""
    batches = loop.batches(tasks.load("home"), tokenizer, 8, steps)
    for _ in live.progress(loop.train(model, batches, steps, rate), "home", steps):
        pass
    return model.eval()


# 54 unseen instructions that don't ask for JSON
chats = [row["messages"] for row in tasks.load("chat", "test") if "json" not in row["check"]]


def like_home(text):
    """Whether an answer looks like a smart-home intent: starts with a brace or names an intent."""
    return text.startswith("{") or "Hass" in text


def marks(model, n=100):
    """Percentage of n commands answered correctly; number of intents in answers to `chats`."""
    commands = tasks.draw("home", "test", n)
    answers = generation.answers(model, tokenizer, commands["messages"], 40)
    right = sum(a == b for a, b in zip(answers, commands["answer"], strict=True))
    said = generation.answers(model, tokenizer, chats, 24)
    return {"home": 100 * right / n, "intents": sum(map(like_home, said))}


# %%
guess_intents = lab.predict("How many of 54 everyday instructions get a smart-home intent?", None)

# %% tags=["experiment"]
if lab.experiment("An adapter for home alone", 50):
    base, tokenizer = models.load()
    tuned = learn_home(adapted(base))
    found = {"home alone": marks(tuned)}
    some = tasks.load("chat", "test").select([0, 7, 21])["messages"]
    answers = {"base": generation.answers(base, tokenizer, some, 48)}
    answers["home alone"] = generation.answers(tuned, tokenizer, some, 48)
    display(compare_answers([messages[0]["content"] for messages in some], None, answers))
    by_base = sum(map(like_home, generation.answers(base, tokenizer, chats, 24)))
    print(f"Intents in 54 other answers: {by_base} before training, ", end="")
    print("{intents} after; right on home: {home:.0f}%".format(**found["home alone"]))
    guess_intents.compare(found["home alone"]["intents"])

# %% [markdown]
# The tuned model gets a third to half of the commands right, but it also answers most other
# instructions with a smart-home intent, or something like one. Every training example had the
# system prompt "Home intent as JSON."; none showed what to do without it.
#
# With the adapter off, the model answers as before. You could turn the adapter on only for
# commands, as in lab 7. But then you must always know which requests are commands, and you can't
# merge the adapter. The usual solution is to add everyday instructions, with written answers, to
# the training data. Someone has to write those answers, and the model picks up the writer's style.
# Here, you only want the base's answers back, good and bad.
#
# ## How far apart are two models?
#
# At each position, a model assigns a probability to every possible next token. The tuned model is
# the *student*, with probabilities $p$, and the base is the *teacher*, with probabilities $q$. The
# KL divergence measures how far apart $p$ and $q$ are. You can compute it in two directions:
#
# $$\text{reverse: } \sum_v p_v \log \frac{p_v}{q_v} \qquad
# \text{forward: } \sum_v q_v \log \frac{q_v}{p_v}$$
#
# Suppose the teacher gives each of two words a probability of 50%, but the student gives the first
# word 90%. Then the reverse KL is $0.9 \ln 1.8 + 0.1 \ln 0.2 = 0.37$ nats, and the forward KL is
# 0.51 nats.
#
# The two directions penalize different mistakes. The reverse KL weights each token by the
# *student's* probability, so it is large where the student says what the teacher never would, such
# as a brace here. Its penalty for omissions is bounded: as the student stops saying the second word
# in the example, the reverse KL stays below $\ln 2 = 0.69$ nats, but the forward KL grows without
# limit.

# %% [markdown]
# ### Exercise 9.1 · `token_kl`
#
# ●●○ · 9 min · 3 points
#
# Both logit tensors have shape `(b, n, vocab)`. `mask`, of shape `(b, n)`, is True at the positions
# that count. Return the mean KL divergence over all these positions together, in nats, as a scalar
# tensor. Compute the reverse KL by default and the forward KL if `reverse=False`.
#
# Gradients must flow back to the student's logits. Compute the KL in fp32, even for bf16 logits.
# With logits in the hundreds, some probabilities are 0 in fp32, but neither the result nor the
# gradient may be NaN or infinite.
#
# <details><summary>Hint</summary>
#
# First compute the log-probabilities of both models. How do you get $\log (p / q)$ from $\log p$
# and $\log q$?
# </details>
#
# <details><summary>Another hint</summary>
#
# If a probability underflows to 0, `softmax(...).log()` computes `log(0)`, but `log_softmax`
# doesn't.
# </details>


# %%
def token_kl(student_logits, teacher_logits, mask, reverse=True):
    """Logits (b, n, vocab) of two models and mask (b, n) -> mean KL per position in nats, ()."""
    # BEGIN SOLUTION
    p = student_logits[mask].float().log_softmax(-1)  # (k, vocab)
    q = teacher_logits[mask].float().log_softmax(-1)
    if not reverse:
        p, q = q, p
    return (p.exp() * (p - q)).sum(-1).mean()
    # END SOLUTION


# %%
check.kl(token_kl)

# %% [markdown]
# ## The student answers, the teacher scores
#
# The KL compares two models on a text. Whose text? What a model has already written affects what it
# writes next. Once the student has written `{"intent"`, it is in a context that good answers never
# contain, so training on those doesn't teach it how to get back. In *on-policy* training, the
# student generates the answers, and training corrects its mistakes.
#
# In lab 8, each answer got a single reward, and you needed groups of eight to see which answers
# were better. Here, the teacher provides a whole distribution for every token.

# %% [markdown]
# ### Exercise 9.2 · `on_policy`
#
# ●●○ · 9 min · 3 points
#
# `model` is a `PeftModel` in the middle of training. `sample(model, prompts)` samples an answer to
# each prompt. It returns a dict with `input_ids`, `attention_mask` and `labels`, each of shape
# `(b, n)`. The labels are -100 everywhere except on the answer. Return this dict with one more
# entry, `teacher_logits` of shape `(b, n, vocab)`: the model's logits for these tokens with the
# adapter off.
#
# - Sample from the student, with its adapter on. Call `sample` only once.
# - Sample and compute the teacher's logits in eval mode and without gradients. Use `no_grad`,
#   because tensors created in `inference_mode` can't be saved for the backward pass.
# - Afterward, the model must be in its original mode, with its adapter on.
#
# <details><summary>Hint</summary>
#
# You wrote a similar function in 8.3. Which of the two calls belongs inside
# `with model.disable_adapter():`?
# </details>


# %%
def on_policy(model, prompts, sample):
    """Sample answers to the prompts and return the batch with teacher_logits (b, n, vocab)."""
    # BEGIN SOLUTION
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            batch = sample(model, prompts)
            with model.disable_adapter():
                out = model(batch["input_ids"], attention_mask=batch["attention_mask"])
        return {**batch, "teacher_logits": out.logits}
    finally:
        model.train(training)
    # END SOLUTION


# %%
check.samples(on_policy)

# %% [markdown]
# Look at one answer: how far is the student from its teacher at each token?


# %%
def sampler(tokens=24, seed=0):
    """Return a `sample` function for `on_policy` that samples one answer per prompt."""
    chance = torch.Generator(lab.device).manual_seed(seed)

    def sample(model, prompts):
        answers = rollouts.sample(model, tokenizer, prompts, 1, tokens, generator=chance)
        return packing.padded(answers)

    return sample


# %% tags=["experiment"]
if lab.experiment("Every token, marked", 2, needs=["9.1", "9.2"]):
    batch = on_policy(tuned, [{"messages": some[0]}], sampler())
    with torch.no_grad():
        logits = tuned(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    before = batch["labels"][:, 1:] != -100  # positions whose logits predict an answer token
    far = [
        token_kl(logits[:, [t]], batch["teacher_logits"][:, [t]], before[:, [t]]).item()
        for t in before[0].nonzero()[:, 0]
    ]
    tokens = [tokenizer.decode([i]) for i in batch["input_ids"][:, 1:][before]]
    display(figures.marked(tokens, far))

# %% [markdown]
# The KL is large wherever the student is sure of a token that the teacher finds unlikely, beginning
# with the first brace. Where both models expect the same token, the KL is near 0.
#
# ## One step: the task loss and the KL
#
# The KL alone does nothing to preserve `home`. So each step uses two batches: commands for the task
# loss and everyday prompts for the KL:
#
# $$\text{loss} = \text{task loss} + \text{weight} \cdot \text{KL}$$
#
# The task loss should preserve `home`, and the KL should restore the everyday answers. No gradient
# flows through the sampling: you treat the sampled tokens as fixed data.

# %% [markdown]
# ### Exercise 9.3 · `distill_step`
#
# ●●● · 12 min · 4 points
#
# Write one training step that uses your `on_policy` and `token_kl`. `task_loss(model)` returns the
# loss on the next task batch as a differentiable tensor.
#
# - Let the model answer the prompts. Then run the model on these answers again, with gradients, in
#   its current mode.
# - Compute the reverse KL over the positions whose logits predict an answer token. Logits at
#   position $t$ predict token $t + 1$, but the labels aren't shifted.
# - Clear old gradients, backpropagate the total loss above, clip the gradient norm to 1, and take
#   an optimizer step.
#
# Return `{"task": ..., "kl": ...}`, the two losses before the optimizer step, as floats. Leave `kl`
# unweighted.
#
# <details><summary>Hint</summary>
#
# Which position's logits choose the first token of the answer? That position isn't part of the
# answer.
# </details>
#
# <details><summary>Another hint</summary>
#
# Slice the logits to `[:, :-1]` and the labels to `[:, 1:]`, as in 8.1.
# </details>


# %%
def distill_step(model, optimizer, task_loss, prompts, sample, weight=1.0):
    """Take one step on a task batch and answers to the prompts -> {"task": ..., "kl": ...}."""
    # BEGIN SOLUTION
    batch = on_policy(model, prompts, sample)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    mask = batch["labels"][:, 1:] != -100
    kl = token_kl(logits[:, :-1], batch["teacher_logits"][:, :-1], mask)
    task = task_loss(model)
    optimizer.zero_grad()
    (task + weight * kl).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {"task": task.item(), "kl": kl.item()}
    # END SOLUTION


# %%
check.steps(distill_step)

# %% [markdown]
# ## Measure the distance
#
# Before you train, you need a reliable way to measure how far a model is from its base. Suppose a
# run reports a KL of nearly 0 from the first step. It looks successful, but the model still answers
# with intents.

# %% [markdown]
# ### Exercise 9.4 · `drift`
#
# ●●○ · 8 min · 3 points
#
# **A bug hunt** based on [peft #430](https://github.com/huggingface/peft/issues/430)
# ("`get_base_model()` is returning the base model with the LoRA still applied"). `drift` should
# measure how far a `PeftModel` is from its base. It should return the reverse KL per token over the
# answers in `batch`, as a float that is the same on every call. Leave the model's mode unchanged.
# `batch` is like the dict that `sample` returned in 9.2. The function has two bugs, each with its
# own symptom:
#
# - In eval mode, `drift` returns exactly 0, no matter what the adapter has learned.
# - With LoRA dropout, in train mode, two calls on the same batch return different values.
#
# <details><summary>Hint</summary>
#
# PEFT inserts the adapter *into* the layers of your model, so no separate base model is left. How
# do you switch the adapter off temporarily?
# </details>


# %%
def drift(model, batch):
    """Return the KL between a PeftModel and its base, in nats, on a `batch` from `sample`."""
    # BEGIN SOLUTION
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            with model.disable_adapter():
                out = model(batch["input_ids"], attention_mask=batch["attention_mask"])
        teacher = out.logits
    finally:
        model.train(training)
    mask = batch["labels"][:, 1:] != -100
    return token_kl(logits[:, :-1], teacher[:, :-1], mask).item()
    # END SOLUTION
    # BEGIN GIVEN
    # base = model.get_base_model()
    # with torch.no_grad():
    #     teacher = base(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    #     logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    # mask = batch["labels"][:, 1:] != -100
    # return token_kl(logits[:, :-1], teacher[:, :-1], mask).item()
    # END GIVEN


# %%
check.drifts(drift)

# %% [markdown]
# ## Eight steps of distillation
#
# Now use your `distill_step` to train the model that answers with intents. Take eight steps, each
# on eight commands and eight everyday prompts.


# %%
def distill(
    start, name, sample, learned=("home",), steps=8, rate=1e-3, weight=1.0, seed=0, picture=True
):
    """Train a copy of `start` for `steps` steps on the tasks `learned` and the KL from its base."""
    model = copy.deepcopy(start).train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], rate, weight_decay=0.0
    )
    asked = loop.drawn(tasks.load("chat").to_list(), 8, steps, seed)
    batches = [loop.batches(tasks.load(t), tokenizer, 8, steps, seed=9 + seed) for t in learned]
    title = f"Task loss and KL, {name}"
    curves = live.Curves(title, steps, "nats per token", ["task", "kl"], picture)
    for step, prompts in enumerate(asked):
        packed = [next(each) for each in batches]

        def task_loss(model, packed=packed):
            return sum((loop.answer_loss(model, batch) for batch in packed), start=torch.zeros(()))

        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        with fast.layers(model), trees.forward(model):  # same result up to rounding, but faster
            curves.add(**distill_step(model, optimizer, task_loss, prompts, sample, weight))
    return model.eval()


def apart(model):
    """Return the KL from the base in nats per token, on the model's answers to 27 instructions."""
    batch = sampler()(model, [{"messages": messages} for messages in chats[::2]])
    with fast.layers(model), trees.forward(model):
        return drift(model, batch)


# %%
guess_kept = lab.predict("After eight steps, how many of the 54 still get an intent?", None)

# %% tags=["experiment"]
if lab.experiment("Distillation from its own base", 58, needs=["9.1", "9.2", "9.3", "9.4"]):
    student = distill(tuned, "distilled", sampler())
    found["home alone"]["kl"] = apart(tuned)
    found["distilled"] = marks(student) | {"kl": apart(student)}
    answers["distilled"] = generation.answers(student, tokenizer, some, 48)
    display(compare_answers([messages[0]["content"] for messages in some], None, answers))
    display(figures.kept(found, guess_kept))
    guess_kept.compare(found["distilled"]["intents"])

# %% [markdown]
# Nearly all intents are gone. Three other runs (rings) agree on the intents: 50, 50 and 48 intents
# before; 1, 2 and 0 after ([evidence](../docs/evidence/09_distill.md#from-one-adapter-five-ways)).
# The KL falls to about 4% of its initial value, and the score on `home` hardly changes. Read the
# answers, too: an answer without an intent isn't necessarily good. It may repeat itself.
#
# **Try it: either half of the loss.** Start with the default, which leaves out the task batches.
# Then use `{"weight": 0.0}`, which leaves out the KL. First predict all three panels.

# %% tags=["experiment"]
knobs = {"learned": ()}
if lab.experiment("Half of the loss", 48, needs=["9.1", "9.2", "9.3", "9.4"]):
    name = ", ".join("no task batches" if v == () else f"{k} {v}" for k, v in knobs.items())
    student = distill(tuned, name, sampler(), picture=False, **knobs)
    found.pop(name, None)  # the newest comes last
    found[name] = marks(student) | {"kl": apart(student)}
    display(figures.kept(found))

# %% [markdown]
# Without task batches, the intents disappear, but so do nearly all right answers on `home`: the
# steps that restore chat change the weights that `home` needs. Without the KL, eight more steps on
# commands leave most of the intents in place.
#
# ## Whose answers?
#
# The student doesn't have to generate the training answers. The base could generate them once,
# before training. Or you could train on the written answers in `chat` with plain cross-entropy, as
# people do when they mix in general data.
#
# **Try it: whose answers.** Start with the default: the written answers, without the KL. Then let
# the base answer: `{"sample": from_base(sampler())}`. Which model will be closest to the base?


# %%
def from_base(sample):
    """Return `sample` with the adapter switched off, so that the base answers."""

    def sample_base(model, prompts):
        with model.disable_adapter():
            return sample(model, prompts)

    return sample_base


# %% tags=["experiment"]
source = {"learned": ("home", "chat"), "weight": 0.0}
if lab.experiment("Other answers", 60, needs=["9.1", "9.2", "9.3", "9.4"]):
    name = "written answers" if "learned" in source else "the base's answers"
    student = distill(tuned, name, picture=False, **{"sample": sampler()} | source)
    found.pop(name, None)
    found[name] = marks(student) | {"kl": apart(student)}
    display(figures.kept(found))

# %% [markdown]
# All three sources remove nearly all intents, but the written answers leave the model farther from
# the base: over three runs, the mean final KL is 0.49 nats per token with them, 0.15 with the
# student's answers, and 0.14 with the base's
# ([evidence](../docs/evidence/09_distill.md#from-one-adapter-five-ways)). Only the last two
# minimize a KL. To get back to the base, you don't need written answers. To become better than the
# base, you need something else to learn from: a better teacher, written answers, or rewards.
#
# The student's own answers worked no better here than the base's. A likely reason: an answer
# usually becomes an intent at its first token, whose context is just the prompt, no matter who
# writes it.

# %% [markdown]
# ## Take it with you
#
# TRL's `DistillationTrainer` samples the answers and computes the KL, but it takes the teacher as a
# second model and has no task loss. The subclass below adds one. Load your own adapter: with a new
# one, the KL starts at 0.
#
# ```python
# from datasets import Dataset
# from peft import LoraConfig, get_peft_model
# from transformers import AutoModelForCausalLM, AutoTokenizer
# from trl import DistillationConfig, DistillationTrainer
#
# MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# base, model = (AutoModelForCausalLM.from_pretrained(MODEL) for _ in range(2))
# student = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
# # or load your own: PeftModel.from_pretrained(model, "home-lora", is_trainable=True)
# task = AutoTokenizer.from_pretrained(MODEL)("lamp on", return_tensors="pt").to(base.device)
#
# class WithTask(DistillationTrainer):
#     def compute_loss(self, model, inputs, **options):  # put batches of your task here
#         distance = super().compute_loss(model, inputs, **options)
#         batch = task.to(model.device)
#         return distance + model(**batch, labels=batch["input_ids"]).loss
#
# ask = [[{"role": "user", "content": text}] for text in ("Name a color.", "Name an animal.")]
# args = DistillationConfig("distilled", max_completion_length=16, learning_rate=1e-4, max_steps=2,
#                           bf16=False, report_to="none")
# trainer = WithTask(student, base, args, train_dataset=Dataset.from_dict({"prompt": ask}))
# trainer.train()
# trainer.save_model("my-lora")
# ```
# %% [markdown]
# ### Exercise 9.5 · Quiz
#
# ●○○ · 4 min · 4 points
#
# Only your first answer to each question counts. Then read the explanation.
#
# **q1. Why don't you need a second model to distill a LoRA from its own base?**
#
# - (a) A copy of the model is made at the start, but it is small because only its adapter differs.
# - (b) The base learns `home` along with the adapter, so it can teach both.
# - (c) The base's weights haven't changed, so with the adapter off, the model is the base again.
# - (d) The adapter changes the output only for commands, so all other answers match the base's.
#
# **q2. What happened in this lab when you left out the task batches?**
#
# - (a) The intents disappeared, but so did `home`, because nothing in the loss rewards it.
# - (b) The same as with them, because chat prompts say nothing about commands.
# - (c) The same as with them, because the gradient norm is clipped to 1.
# - (d) The intents became more frequent, because the model learned from its own answers.
#
# **q3. A run reports a KL of 0.01 from the first step, but the model still answers with intents.
# What do you check first?**
#
# - (a) Nothing, because the model is as close to its base as you could want.
# - (b) Whether the adapter is off when the teacher runs.
# - (c) Whether the learning rate is too low to change anything.
# - (d) Whether the run used written answers by mistake.
#
# **q4. The teacher gives each of two answers a probability of one half. The student nearly always
# gives the first answer, and otherwise gives the second. Which statement is true?**
#
# - (a) The forward KL is small, and the reverse KL is large.
# - (b) Both KLs are zero, because the teacher finds the student's answer likely.
# - (c) Both KLs are infinite, because the student never gives the second answer.
# - (d) The reverse KL is at most ln 2, and the forward KL can be arbitrarily large.


# %%
def quiz():
    """Return your letters as {"q1": "a", "q2": "a", "q3": "a", "q4": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "c", "q2": "a", "q3": "b", "q4": "d"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - Fine-tuning a model on one task also changes its answers to other prompts. Read those answers
#   before you ship.
# - With an unmerged LoRA, you still have the base model: switch the adapter off to get the teacher.
# - The reverse KL penalizes what the teacher would never say. You need no written answers: the
#   student or the base can generate the answers. Here, both worked equally well.
# - Keep training on task batches. Without them, the student here forgot its task.
# - If a model has visibly changed but its KL is near zero at the first step, there is almost
#   certainly a bug. Check which model is the teacher, then check the mask.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["9.1", "9.2", "9.3", "9.4"]):
    before, after = found["home alone"], found["distilled"]
    lab.headline(
        f"intents in 54 other answers: {before['intents']} -> {after['intents']}; "
        f"KL from the base: {before['kl']:.2g} -> {after['kl']:.2g} nats per token; "
        f"right on home: {before['home']:.0f}% -> {after['home']:.0f}%"
    )
