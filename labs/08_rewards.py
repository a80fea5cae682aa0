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
# # Lab 8 · Preferences and rewards
#
# So far somebody wrote each answer down, and the model learned to say it. But the best answer is
# often hard to write. It is easier to say which of two answers is better, and sometimes a program
# can tell whether one is right. In this lab a model learns from such judgements: first from pairs
# of its own answers (DPO), then from a number for each answer that it samples (GRPO). Both use
# LoRA, and both run on your CPU.
#
# LoRA fits well here. DPO compares a model with what it was before training, and in GRPO you watch
# how far it has moved from there. Under an adapter that earlier model is still in memory. And a
# reward says so little about each answer that a very small adapter may be enough.
#
# Both methods can fail without an error message. A group of answers may teach nothing. A pair may
# be the wrong way round. A reward may be easier to fool than to earn. You will see all three.
#
# Before each main picture a cell asks for your guess. It costs no points.
#
# About 100 minutes if you know PyTorch well (71 for the exercises), up to 145 if you do not. The
# experiments take about six minutes on two CPU cores: answers are drawn a token at a time.

# %%
import labkit

lab, check = labkit.start("08_rewards")

# %%
import copy
import json
import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig

from labkit import live, measured, tasks
from labkit.labs.lab08 import plots
from labkit.plots import compare_answers
from labkit.tasks import chat
from labkit.training import fast, finetuning, generation, hardware, models, pairs, rollouts, trees

# %% [markdown]
# ## How likely is an answer?
#
# Both methods begin with the same number: the log-probability that the model gives to a whole
# answer $y$ after a prompt $x$. A model writes a token at a time, so the probability of an answer
# is a product over its tokens, and its logarithm a sum:
#
# $$\log \pi(y \mid x) = \sum_t \log \pi(y_t \mid x, y_{<t}).$$
#
# DPO takes the sum, GRPO its terms.
#
# ### Exercise 8.1 · `sequence_logprob`
#
# ●●○ · 10 min · 2 points
#
# `labels` are those that a trainer gets: at each position the id of the token at *this* position,
# and -100 on the prompt and the padding, which do not count. The logits at a position are about the
# *next* token. Return the sum for each sequence. Tokens with -100 add nothing, and a sequence
# without any answer has 0. Training goes through this function, so keep the gradient.
#
# <details><summary>Hint</summary>
#
# The logits at the last position predict a token that is not there, and nothing predicts the first
# token. Which parts of the two tensors belong together?
# </details>
#
# <details><summary>Another hint</summary>
#
# `log_softmax` over the vocabulary, then `gather` the label's column. `gather` refuses an index of
# -100: put a harmless one in its place, and leave what it gives out of the sum.
# </details>


# %%
def sequence_logprob(logits, labels):
    """logits (b, n, vocab), labels (b, n) with -100 -> log-probability of each answer (b,)."""
    # BEGIN SOLUTION
    targets = labels[:, 1:]
    counted = targets != -100
    logp = logits[:, :-1].float().log_softmax(-1)
    logp = logp.gather(-1, targets.clamp(min=0)[..., None])[..., 0]  # (b, n - 1)
    return (logp * counted).sum(1)
    # END SOLUTION


# %%
check.logprobs(sequence_logprob)

# %% [markdown]
# The result is a sum and not a mean, and each further token adds a number that is at most zero. So
# long answers tend to have lower log-probabilities, good or bad. Remember that when the lengths of
# answers change.

# %% [markdown]
# ## Which of two answers is better?
#
# A *preference* is a prompt with two answers, of which one was chosen and one rejected. It does not
# say how good either is.
#
# Here a program ranks them. The task `chat` is short instructions, and many name a constraint ("in
# three bullets"). A *verifier*, a program of the task, tells whether an answer follows it.
#
# The model answered each instruction with a constraint six times. An answer that follows the
# constraint and one that does not make a pair, at most three pairs an instruction.
# (`benchmarks/preference_pairs.py` made the file of pairs.)

# %% tags=["experiment"]
if lab.experiment("The model, and pairs of its answers", 5):
    model, tokenizer = models.load()
    preferred = chat.pairs()
    asked = [row["prompt"][0]["content"] for row in preferred]
    print(f"{len(preferred)} pairs from {len(set(asked))} instructions")
    some = preferred.shuffle(seed=3).select(range(4))
    sides = {side: [row[side][0]["content"] for row in some] for side in ("chosen", "rejected")}
    display(compare_answers([row["prompt"][0]["content"] for row in some], None, sides))

# %% [markdown]
# Following a constraint is all that makes an answer the better one here: what it says may be
# nonsense.
#
# Look at the lengths, too. The chosen answers are shorter: 16 words on average against 24. One
# reason is how the pairs were made: a chosen answer had to end by itself within 48 tokens, and a
# rejected one may be cut there. (In training a cut answer gets an end token all the same, in TRL,
# too. So a part of what such a pair teaches is not to stop in the middle of a sentence.) Another
# reason is that 42 of the 182 pairs ask for at most so many words. Whoever learns from these pairs
# may learn to be brief.

# %% [markdown]
# How does a model learn from such pairs? Suppose that answers have a quality, and that answer $c$
# is chosen over $r$ with probability $\sigma(\text{quality}_c - \text{quality}_r)$, where $\sigma$
# is the sigmoid (the Bradley-Terry model).
#
# The idea of DPO (*direct preference optimization*, 2305.18290) is that the model itself can be
# read as a judge. An answer's quality is how much likelier it has become since the start,
#
# $$\beta \, \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)},$$
#
# where the *reference* $\pi_{\text{ref}}$ is the model before training. Put this quality into the
# probability above. The loss is minus the logarithm of the probability of the choice that was made.
#
# An example with $\beta = 0.1$: the chosen answer has gained 10 nats more than the rejected one.
# Then the choice has a probability of $\sigma(1) = 0.73$, and the loss is 0.31. No judge is
# trained, and nothing is sampled during the training.
#
# Why this formula? Suppose that you want the model whose answers have the highest mean quality
# minus $\beta$ times the KL (lab 6) from the reference. The paper derives it: $\pi(y \mid x)$ is
# proportional to $\pi_{\text{ref}}(y \mid x) \, e^{\text{quality} / \beta}$, so a good answer is
# raised the more, the smaller $\beta$ is. Solve this for the quality, and you have the line above,
# plus a number that depends on the prompt alone. That number cancels in the difference of two
# answers. So $\beta$ is the price of moving away from the start: a small one lets the model go far.

# %% [markdown]
# ### Exercise 8.2 · `dpo_loss`
#
# ●●○ · 10 min · 3 points
#
# The first four arguments are log-probabilities `(b,)` of whole answers, as 8.1 returns them. The
# *policy* is the model that trains. Return the mean loss of the pairs, a tensor of one number,
# without axes.
#
# A pair's *margin* is what its chosen answer has gained since the start, less what its rejected one
# has. The check compares with TRL's loss to 1e-5. It also tries margins that training reaches when
# something goes wrong: a thousand nats to either side. There, too, the loss and its gradient have
# to be finite.
#
# <details><summary>Hint</summary>
#
# Before the first step policy and reference are the same model. Which number is the loss then,
# whatever the pairs are? Does yours give it?
# </details>
#
# <details><summary>Another hint</summary>
#
# `torch.sigmoid(torch.tensor(-200.0))` is 0, and the logarithm of that is infinite. Torch has a
# function for both at once.
# </details>


# %%
def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    """Four log-probabilities (b,) and a float -> the mean DPO loss of the pairs, ()."""
    # BEGIN SOLUTION
    chosen = policy_chosen - reference_chosen
    rejected = policy_rejected - reference_rejected
    return -F.logsigmoid(beta * (chosen - rejected)).mean()
    # END SOLUTION


# %%
check.dpo(dpo_loss)

# %% [markdown]
# The gradient of a pair has the weight $\beta \, \sigma(-\beta \cdot \text{margin})$: $\beta / 2$
# at the start, and less the better the pair is told apart.
#
# Note what the loss does *not* ask for. Only the difference of the two answers counts. The chosen
# one may become less likely, as long as the rejected one loses more. We will plot each by itself.

# %% [markdown]
# ## The reference is already there
#
# DPO needs the log-probabilities of the model before training. With full fine-tuning that takes a
# second model beside the one that you train (or a pass over all pairs beforehand). With LoRA the
# base has not changed: switch the adapter off, and the model that you hold *is* the reference.
#
# ### Exercise 8.3 · `reference_logprobs`
#
# ●●○ · 12 min · 3 points
#
# `model` is a `PeftModel` in the middle of its training. `batch` is a dict of `input_ids`,
# `attention_mask` and `labels`. Return the log-probability of each sequence under the model without
# its adapter, by your `sequence_logprob`:
#
# - without a gradient: nothing here is trained, and a graph for it would cost memory;
# - in evaluation mode, since dropout in the base would add noise;
# - and leave the model as it was: training or evaluating, and with the same adapter active. That
#   also means **after an exception**. A notebook goes on after one (out of memory, say), and a
#   model left without its adapter would be trained on as if nothing had happened.
#
# <details><summary>Hint</summary>
#
# PEFT has a context manager that switches adapters off. On the way out it switches them on again,
# after an exception, too.
# </details>
#
# <details><summary>Another hint</summary>
#
# `model.training` says which mode it was in. Which block of Python runs in any case?
# </details>


# %%
def reference_logprobs(model, batch):
    """A PeftModel and a dict of (b, n) tensors -> log-probabilities (b,) with the adapter off."""
    # BEGIN SOLUTION
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            return sequence_logprob(logits, batch["labels"])
    finally:
        model.train(training)
    # END SOLUTION


# %%
check.reference(reference_logprobs)

# %% [markdown]
# ## DPO on `chat`
#
# A training needs four pieces: a model with an adapter, an optimizer, your loss and a step. Here
# are the three that are not yours.


# %%
def lora_config(r=16):
    """LoRA on all linear layers."""
    kind = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(r=r, lora_alpha=32, **kind)


def adapted(base, r=16, seed=0):
    """A copy of `base` with a fresh LoRA on all linear layers. Switched off, it is `base`."""
    torch.manual_seed(seed)
    return get_peft_model(copy.deepcopy(base), lora_config(r))


def adamw(model, rate):
    """AdamW on what is trained of a model."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, rate, weight_decay=0.0)


def step_down(loss, optimizer):
    """One step down the gradient of `loss`, clipped at 1."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()


# %%
def train_dpo(model, batches, rate, reference_of=None, beta=0.1, title="DPO on chat"):
    """DPO on batches of pairs; curves of the loss and of what either side has gained, in nats."""
    labels = {side: f"{side} answers:\nnats gained" for side in ("chosen", "rejected")}
    labels["loss"] = "DPO loss, nats"
    optimizer, curves = adamw(model, rate), live.Curves(title, len(batches), labels)
    reference_of = reference_of or reference_logprobs
    for batch in batches:
        with fast.layers(model), trees.forward(model):  # the same but for rounding, and quicker
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            reference = reference_of(model, batch)
        policy = sequence_logprob(logits, batch["labels"])
        loss = dpo_loss(*policy.chunk(2), *reference.chunk(2), beta)
        step_down(loss, optimizer)
        chosen, rejected = (policy - reference).detach().chunk(2)
        curves.add(loss=loss, chosen=chosen.mean(), rejected=rejected.mean())
    return curves


# %% [markdown]
# Does training help? The verifier judges answers to 40 instructions that were never trained on. A
# single sampled answer is a matter of luck, so each instruction is answered four times. Before
# training the model follows about a quarter of the constraints.
#
# Three panels will grow while it trains: the loss, and what the log-probabilities of the chosen and
# of the rejected answers have gained since the start, in nats (the mean of each batch). The faint
# line is each step, the strong one a running mean.


# %%
def unseen_instructions():
    """The held-out instructions of `chat` that name a constraint."""
    return [row for row in tasks.load("chat", "test").to_list() if row["check"]]


def difference(after, before):
    """What changed on average from `before` to `after`, (n,) each, and its standard error."""
    change = after - before
    return change.mean(), change.std() / len(change) ** 0.5


def followed(model, rows, samples=4):
    """Share of the answers to each row that follow its constraint, (n,), and tokens an answer."""
    chance = torch.Generator(model.device).manual_seed(0)
    how = {"max_new_tokens": 48, "temperature": 0.7, "generator": chance}
    answers = rollouts.sample(model, tokenizer, rows, samples, **how)
    hits = [chat.follows(answer["row"]["check"], answer["text"]) for answer in answers]
    tokens = sum(label != -100 for answer in answers for label in answer["labels"])
    return torch.tensor(hits).float().view(-1, samples).mean(1), tokens / len(answers)


# %%
guess_dpo = lab.predict("After DPO: what percentage of unseen constraints is followed?", None)

# %% tags=["experiment"]
if lab.experiment("DPO on chat, 20 steps of 6 pairs", 85, needs=["8.1", "8.2", "8.3"]):
    unseen = unseen_instructions()
    before, long = followed(model, unseen)
    policy = adapted(model)
    batches = pairs.batches(preferred, tokenizer, 6, 20)
    dpo = train_dpo(policy, batches, 5e-4)
    after, short = followed(policy, unseen)
    print(f"tokens an answer: {long:.0f} before, {short:.0f} after")
    some = [row["messages"] for row in unseen[:3]]
    told = {"before": generation.answers(model, tokenizer, some)}
    told["after"] = generation.answers(policy, tokenizer, some)
    display(compare_answers([messages[0]["content"] for messages in some], None, told))
    gain, error = difference(after, before)
    title = f"Constraints followed: {100 * gain:+.0f} points, standard error {100 * error:.0f}"
    title += ": no clear gain" if gain < 2 * error else ""
    display(plots.shares(before, after, title, guess_dpo))
    guess_dpo.beside(100 * after.mean().item())

# %% [markdown]
# Read the three pairs of answers first: are they better, or only shorter? When we ran it, one of
# them was "35 words max", to a question that allowed 35 words. It keeps the limit and says nothing.
# Another was "1.1.1.1.1" and so on, to a question about vaccines.
#
# The loss fell. Did the answers get better? Each of the two shares (left) has a standard error of
# about 6 points here. Most of it comes from the choice of the 40 instructions. But they are the
# same before and after. So take the change of each instruction, and then the mean of the changes.
# Its error is in the title. It is smaller than the 8 or 9 points that 40 other instructions after
# training would give ($\sqrt{6^2 + 6^2}$).
#
# The right panel shows the changes. A bar counts the instructions that changed by so much, in steps
# of 25 points, as each has four answers. The mark above is the mean, with two standard errors to
# either side. When we ran it, it covered zero.
#
# The luck of sampling stays in the change: 160 draws alone give a share of a quarter a standard
# error of up to 3.4 points. If the draw before training happens to be low, DPO looks like a
# success.
#
# So `benchmarks/preferences.py` took 16 answers to each instruction, and three seeds at each of two
# rates. Here is the share of constraints followed, in percent:
#
# | rate | before | after, each seed |
# |---|---|---|
# | 5e-4, as above | 25 | 28, 31 and 19 |
# | 2e-4 | 25 | 29, 25 and 27 |
#
# Each change has a standard error of 2 to 4 points over the instructions. So these runs show no
# clear gain: at 5e-4 the seeds do not even agree on its sign. To settle it, take more seeds, and
# more instructions rather than more answers to each. More instructions even out the luck of their
# choice and that of sampling.
#
# What the loss asks for is something else: the log-probabilities of the two sides should move
# apart. Here are the last two panels in one picture. The numbers in its title are the ends of the
# strong lines, and the margin beside the area is their distance.

# %% tags=["experiment"]
if lab.experiment("What either side has gained", 0, needs=["8.1", "8.2", "8.3"]):
    display(plots.gained(dpo.values, plots.side_title(dpo.values)))

# %% [markdown]
# The two sides did move apart, here and in every run of the file. In its runs at 5e-4 the rejected
# answers lost 14 to 20 nats (mean of the last five steps). The chosen ones lost 5 and 9 in two runs
# and gained 1 in the third. So a margin that grows says that the pairs are told apart, and not yet
# that new answers are better.
#
# Why can a chosen answer lose, when the loss pushes it up? The two answers of a pair come from one
# model and are often alike. What makes one of them less likely can then do the same to the other.
# Razin et al. (2410.08847) call this *likelihood displacement*, and find it where the model
# represents both answers in nearly the same way.
#
# At 5e-4 the model did learn to be brief: in the file its answers to unseen instructions shrank
# from 35 tokens to 19, 24 and 14. So even a gain would need a second look: a short answer keeps
# "at most ten words" without having understood it.

# %% [markdown]
# ## Two runs that report no error
#
# Here are two mistakes, and neither gives an error message. Somebody reads the columns of a data
# set in the wrong order, so that chosen and rejected change places. Somebody else computes the
# reference with the adapter on, so that it moves with the policy. What does the loss say?


# %%
def swapped(batch):
    """The pairs of a batch with chosen and rejected in each other's place."""
    return {name: torch.cat(x.chunk(2)[::-1]) for name, x in batch.items()}


def moving(model, batch):
    """No reference: the policy itself, of this very step."""
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return sequence_logprob(logits, batch["labels"])


# %% tags=["experiment"]
if lab.experiment("Pairs swapped, and a reference that moves", 35, needs=["8.1", "8.2", "8.3"]):
    reversed_pairs = [swapped(batch) for batch in batches[:8]]
    turned = train_dpo(adapted(model), reversed_pairs, 5e-4, title="DPO, swapped")
    still = train_dpo(adapted(model), batches[:3], 5e-4, moving, title="Reference moves")
    told = {"right pairs": dpo, "swapped pairs": turned, "moving reference": still}
    falling = {name: curves.values["loss"] for name, curves in told.items()}
    display(plots.losses(falling, plots.loss_title(falling)))

# %% [markdown]
# With swapped pairs the loss falls, too. In the panels of that run the "rejected" answer is the one
# that follows the constraint, and it sinks. A loss measures how well the model agrees with the
# pairs, whatever they say. Only something outside the pairs can tell that they are wrong.
#
# Here that would be the verifier. But 40 instructions do not show a change of a few points, as you
# have seen. Reading a few pairs is cheaper. Do it before you train on them.
#
# Where the reference moves, policy and reference are the same at every step. So neither side gains
# anything, and the loss stays at $\log 2 = 0.69$ (the dotted line). The gradient is not zero: every
# pair keeps the weight $\beta / 2$ that it had in the first step, and nothing says when it is
# enough.
#
# So a DPO loss that stays at 0.6931 step after step is a bug (or the rate is still zero). One that
# wavers about it may only need time. In the file's three runs at 2e-4 it went up and down between
# 0.59 and 0.72 for twelve steps, and fell to 0.54 to 0.58 in the mean of the last five.

# %% [markdown]
# ## DPO with TRL
#
# TRL has this loop ready-made: `DPOTrainer` takes the same pairs and the same settings. Given a
# `peft_config`, it makes no second model: like your loop, it switches the adapter off. Given a
# model that *has* an adapter, it starts from there and not from the bare base. So it keeps a copy
# of that adapter as the reference.
#
# In its table `rewards/margins` is $\beta$ times the mean margin, and `logps/chosen` the mean
# log-probability of a chosen answer.


# %%
def quiet(kind, **settings):
    """A TRL config of class `kind` for two steps that are logged, and nothing else."""
    silent = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    steps = {"max_steps": hardware.rehearsed("steps", 2), "logging_steps": 1}
    plain = {"lr_scheduler_type": "constant", "gradient_checkpointing": False}
    plain |= {"output_dir": "build/trl"}
    return kind(**silent, **steps, **plain, **hardware.flags(lab.device), **settings)


def two_steps(trainer, columns):
    """What a TRL trainer logs of its steps, a table."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return pd.DataFrame(logged)[["step", *columns]].round(4)


# %% tags=["experiment"]
if lab.experiment("Two steps of TRL's DPOTrainer", 18, needs=["8.1", "8.2", "8.3"]):
    trainer = DPOTrainer(
        copy.deepcopy(model),
        args=quiet(DPOConfig, per_device_train_batch_size=6, beta=0.1, learning_rate=5e-4),
        train_dataset=preferred.remove_columns("check"),
        processing_class=tokenizer,
        peft_config=lora_config(),
    )
    display(two_steps(trainer, ["loss", "rewards/margins", "logps/chosen"]))
    print("yours:", [round(loss, 4) for loss in dpo.values["loss"][:2]])

# %% [markdown]
# Nothing has moved before the first step, so both losses begin at $\log 2 = 0.693$. The second ones
# need not agree: the two loops see the pairs in different orders.

# %% [markdown]
# ## Better than its siblings
#
# DPO's pairs were made before training, by the model as it was then. GRPO (*group relative policy
# optimization*, 2402.03300) lets the model answer while it learns. For each prompt it samples a
# *group* of answers, and each one gets a reward, here from a program. Answers better than the rest
# of their group are made likelier, the others less likely. Nobody tells the model what the right
# answer would have been.
#
# How much better an answer is than the rest is its *advantage*: the reward minus the group's mean,
# divided by the group's standard deviation. If four answers earn 1, 0, 0 and 0, the first has an
# advantage of 1.5 and each of the others one of -0.5.
#
# If they earn 0.1, 0, 0 and 0, the advantages are practically the same. A group whose rewards lie
# close together counts as much as one whose rewards lie far apart. That makes a small difference
# large, and is disputed: "Dr. GRPO" (2503.20783) leaves the division out.
#
# ### Exercise 8.4 · `group_advantages`
#
# ●○○ · 5 min · 2 points
#
# Each row of `rewards` is the group of one prompt. Divide by the standard deviation **plus** `eps`:
# where all rewards are equal there is nothing to learn, and the advantages are zeros. A group is a
# sample, so take torch's default standard deviation, which divides by the number of samples less
# one. TRL does the same.
#
# <details><summary>Hint</summary>
#
# Mean and standard deviation are taken along one of the two axes. With `keepdim=True` their shapes
# still fit the rewards.
# </details>


# %%
def group_advantages(rewards, eps=1e-4):
    """rewards (prompts, samples) -> advantages of the same shape, each row by itself."""
    # BEGIN SOLUTION
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    return (rewards - mean) / (std + eps)
    # END SOLUTION


# %%
check.advantages(group_advantages)

# %% [markdown]
# A group in which every answer fails teaches nothing, and neither does one in which every answer is
# right. If a run's reward stays at zero from the first step, all its groups are of the first kind:
# the model never finds anything good. That is why people often first train on written answers for a
# while. This is called a *warm start*, and you will see below what happens without one.

# %% [markdown]
# ## One step, and not too far
#
# A sample is expensive: an answer takes as many passes as it has tokens. So one would like to take
# several steps on it. But after the first step the model has changed, and the sample is of an older
# one. The *ratio* $\rho_t = \pi(y_t) / \pi_{\text{old}}(y_t)$ says how much likelier a token is now
# than when it was drawn.
#
# Suppose that training maximizes $\rho_t A$ for a token with advantage $A$. Where the ratio is 1,
# the gradient of this is $A$ times the gradient of $\log \pi(y_t)$. So a token of a good answer
# becomes likelier, and one of a bad answer less likely.
#
# Why does that raise the reward? The mean reward of a prompt is $\sum_y \pi(y) R(y)$. Since $\nabla
# \pi = \pi \, \nabla \log \pi$, its gradient is $\sum_y \pi(y) R(y) \, \nabla \log \pi(y)$. That is
# the mean of $R \, \nabla \log \pi$ over answers that the model draws itself: so sample some, and
# average. To take the group's mean off all rewards leaves the direction as it is on average, since
# $\sum_y \nabla \pi(y) = 0$, and takes out noise.
#
# But nothing says when to stop. The clip does. With it the objective, which training maximizes, is
#
# $$\min\bigl(\rho_t A, \; \text{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon) \, A\bigr).$$

# %% tags=["experiment"]
if lab.experiment("The objective, clipped and not", 0, needs=["8.4"]):
    display(plots.clip_shape(epsilon=0.2))

# %% [markdown]
# Read it for either sign of $A$. A token of a good answer is pushed up until it is $1 + \epsilon$
# times as likely; beyond that the objective is flat, and there is nothing more to gain. A token of
# a bad answer is pushed down until it is $1 - \epsilon$ times as likely. In the other direction
# nothing is clipped: a token that has moved the wrong way keeps its gradient.
#
# ### Exercise 8.5 · `grpo_loss`
#
# ●●● · 15 min · 4 points
#
# `logp` and `old_logp` are log-probabilities of single tokens, `(b, t)`, and every token of an
# answer has the advantage of its answer, `(b,)`. `mask` is True on tokens of answers and False on
# padding. Return minus the mean of the objective over **all tokens** of the batch that are not
# padding: each token counts once, so a long answer counts more than a short one. The check compares
# the loss with TRL's to 1e-5, and its gradient with respect to `logp`.
#
# (This mean is TRL's `loss_type="bnpo"`; its default, `"dapo"`, is the same with one process and
# one batch a step. The first GRPO took each answer's mean and then the mean of these.)
#
# <details><summary>Hint</summary>
#
# What you have are logarithms. What is the ratio of two numbers, in terms of their logarithms?
# </details>
#
# <details><summary>Another hint</summary>
#
# Write down both products for $A = -1$, $\epsilon = 0.2$ and a ratio of 2. Which is the smaller
# one? Does your line take it?
# </details>
#
# <details><summary>A last hint</summary>
#
# `(b,)` beside `(b, t)` lines up with the last axis, and you want the first one. Where b equals t
# torch will not object.
# </details>


# %%
def grpo_loss(logp, old_logp, advantages, mask, clip=0.2):
    """logp, old_logp, mask (b, t), advantages (b,) -> the loss, its mean over tokens, ()."""
    # BEGIN SOLUTION
    ratio = (logp - old_logp).exp()
    gain = advantages[:, None]  # (b, 1)
    objective = torch.min(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    return -(objective * mask).sum() / mask.sum()
    # END SOLUTION


# %%
check.clipped(grpo_loss)

# %% [markdown]
# In the first step after sampling `logp` and `old_logp` are the same numbers, and each ratio is 1.
# So the loss is minus the mean advantage of the tokens. The advantages of a group add up to zero:
# if all answers have the same length the loss is zero but for rounding, else it is mostly small.
# People see that and report a run that does not learn. But its gradient is not zero: it is minus
# the mean, over the tokens, of the advantage times the gradient of the token's log-probability.
# Watch the reward, not the loss.

# %% [markdown]
# ## What is an answer worth?
#
# GRPO needs a reward. The task is now `home`: a spoken command in, a JSON intent out. There is one
# right answer, and a program can tell. Suppose that it earns 1 and anything else 0. As long as
# right answers are rare, many a group then has none and teaches nothing. So one pays something for
# an answer that is partly right. That is where the trouble begins: training finds whatever earns
# more than it should.
#
# ### Exercise 8.6 · `reward`
#
# ●●○ · 14 min · 3 points
#
# Both are texts. `wanted` is the JSON of a row, such as `{"intent":"HassTurnOn","area":"study"}`,
# and `answer` is whatever the model said. Call a key of `answer` *right* if `wanted` has it **with
# the same value**. Return a float from 0 to 1:
#
# - 1 for equal data and for nothing else. The order of keys does not count, nor do blanks between
#   them. `true` is not `1`, and `"1"` isn't either;
# - 0 for what is no JSON object (a model says all sorts of things), and where no key is right;
# - more for each right key;
# - less for each key that is not wanted, until it is 0;
# - a wanted key with a wrong value earns no more than the same answer without it.
#
# Many formulas pass. One more condition is against a common hack. An *honest half* has half of the
# wanted keys right and nothing else. An answer that **names every key** there is (`home` has 16)
# earns less than an honest half, even if all of its wanted keys are right.
#
# <details><summary>Hint</summary>
#
# If you count what is right and divide by the number of *wanted* keys, more keys cost nothing. What
# else could you divide by?
# </details>
#
# <details><summary>Another hint</summary>
#
# `json.loads` accepts `3`, `null` and `[1]` as well. And in Python `True == 1`; their JSON texts
# are not equal.
# </details>


# %%
def reward(answer, wanted):
    """Two texts, what was said and the JSON that is wanted -> a float from 0 to 1."""
    # BEGIN SOLUTION
    try:
        said = json.loads(answer)
    except ValueError:
        return 0.0
    if not isinstance(said, dict):
        return 0.0
    told, goal = (
        {key: json.dumps(value, sort_keys=True) for key, value in data.items()}
        for data in (said, json.loads(wanted))
    )
    right = sum(told.get(key) == value for key, value in goal.items())
    return right / len(told.keys() | goal.keys())
    # END SOLUTION


# %%
check.rewards(reward)

# %% [markdown]
# ## A warm start
#
# The model as it comes answers a spoken command with chatter. What does that mean for a reward? The
# cell draws eight answers to each of four commands. It tells what they earn, and the size of the
# gradient of your loss.


# %%
def earned_by(worth, answers):
    """What each sampled answer earns, a list."""
    return [worth(answer["text"], answer["row"]["answer"]) for answer in answers]


# %% tags=["experiment"]
if lab.experiment("A step without a warm start", 8, needs=["8.4", "8.5", "8.6"]):
    commands, chance = tasks.load("home").sort("intent"), torch.Generator(lab.device).manual_seed(0)
    policy = adapted(model)
    rows = next(rollouts.prompts(commands, 4, 1))
    answers = rollouts.sample(policy, tokenizer, rows, 8, generator=chance)
    earned = earned_by(reward, answers)
    advantages = group_advantages(torch.tensor(earned).view(4, 8)).flatten()
    logp, mask = rollouts.logprobs(policy, answers)
    grpo_loss(logp, logp.detach(), advantages.to(logp.device), mask).backward()
    size = sum(p.grad.norm() for p in policy.parameters() if p.requires_grad)
    print(f"rewards from {min(earned)} to {max(earned)}; gradient {size:.3g}")
    print(f"one of the answers: {answers[0]['text'][:160]!r}")

# %% [markdown]
# All answers earn nothing, so every advantage is zero, and so is the gradient. That is why the
# model first sees some written answers, as in lab 3: 14 steps of 16 answers. Then its adapter is
# merged, and we have a plain model again.
#
# This start answers some commands right: 17 of 100 unseen ones when we ran it, at a mean reward of
# 0.42. From here on only the reward teaches. GRPO trains a new adapter on top of the merged model.
# Switch that one off, and you are back at this start.


# %%
def warm_start(steps=14):
    """The model after some steps on written answers, merged, and its tokenizer."""
    base, tokenizer = models.load()
    args = SFTConfig(
        output_dir="build/warm",
        learning_rate=2e-3,
        max_steps=steps,
        per_device_train_batch_size=16,
        report_to="none",
        **hardware.flags(hardware.device()),
    )
    torch.manual_seed(0)
    rows = tasks.load("home")
    tuned = finetuning.finetune(base, tokenizer, rows, lora_config(), args, "Warm start")
    return tuned.model.merge_and_unload(), tokenizer


# %% [markdown]
# ## GRPO on `home`
#
# The loop has five parts: answers, rewards, advantages, loss, step. `rollouts.sample` lets the
# model answer each prompt eight times. (The commands are sorted by intent, and a step draws its
# prompts from all over that order. So each step sees about the same mixture.) `rollouts.logprobs`
# reads all answers in one pass and returns the log-probability of each of their tokens, with a
# gradient. Here every sample serves one step. So `old_logp` is `logp` itself, without its gradient,
# every ratio is 1, and nothing is clipped.


# %%
def train_grpo(
    model, commands, worth, steps, rate, samples=8, size=64, seed=0, title="GRPO on home", **watched
):
    """GRPO, `size` answers a step; curves of reward, KL from the start, equal groups, lengths.

    `watched` are other rewards, by name, that are noted and not paid.
    """
    labels = {"reward": "mean reward paid", "kl": "KL from the start,\nnats a token"}
    labels |= {"equal": "share of groups\nwith equal rewards", "tokens": "tokens an answer"}
    labels |= {name: f"mean {name} reward\n(not paid)" for name in watched}
    optimizer, curves = adamw(model, rate), live.Curves(title, steps, labels)
    chance = torch.Generator(model.device).manual_seed(seed)
    for rows in rollouts.prompts(commands, size // samples, steps, seed):
        answers = rollouts.sample(model, tokenizer, rows, samples, 32, generator=chance)
        rewards = torch.tensor(earned_by(worth, answers), device=model.device).view(-1, samples)
        logp, mask = rollouts.logprobs(model, answers)
        loss = grpo_loss(logp, logp.detach(), group_advantages(rewards).flatten(), mask)
        kl = kl_from_start(model, answers, logp, mask)
        step_down(loss, optimizer)
        equal = (rewards.std(1) == 0).float().mean()
        tokens = mask.sum() / len(mask)
        more = {name: np.mean(earned_by(other, answers)) for name, other in watched.items()}
        curves.add(reward=rewards.mean(), kl=kl, equal=equal, tokens=tokens, **more)
    return curves


# %% [markdown]
# How far has the model moved from the start? Under an adapter this needs no second model either.
# The KL is the mean of $-g$ over tokens that the model samples, where $g = \log \pi_{\text{start}}
# - \log \pi$. This simple estimate is noisy and can come out negative.
#
# So we take another one. On average $e^g$ is 1, since it is a ratio of probabilities and the tokens
# are drawn from its denominator. So $e^g - 1 - g$ has the same mean as $-g$. It is never negative.
#
# Here the KL is only watched. The first GRPO also put it into the loss. TRL's default leaves it
# out, as we do.


# %%
@torch.no_grad()
def kl_from_start(model, answers, logp, mask):
    """KL from the model without its adapter in nats a token, estimated on answers of its own."""
    with model.disable_adapter():
        start, _ = rollouts.logprobs(model, answers)
    gap = start - logp  # (b, t)
    return ((gap.exp() - 1 - gap) * mask).sum() / mask.sum()


# %% [markdown]
# A model is judged by 100 unseen commands: how many answers are exact, how many have the right
# intent, their mean reward, and how many keys an answer names (of those that are JSON). The last
# will matter further down.
#
# Four panels will grow while it trains: the mean reward of the step's answers, the KL from the
# start, the share of groups in which all answers earn the same (their prompts teach nothing in that
# step), and the length of an answer.


# %%
def keys_in(answer):
    """The number of keys in an answer; None where it is no JSON object."""
    try:
        data = json.loads(answer)
    except ValueError:
        return None
    return len(data) if type(data) is dict else None


def keys_named(answers):
    """The mean number of keys in the answers that are JSON objects."""
    found = [n for n in map(keys_in, answers) if n is not None]
    return sum(found) / max(1, len(found))


# %%
def unseen_commands(n=100):
    """Held-out commands of `home`, the same ones each time."""
    return tasks.load("home", "test").shuffle(seed=1).select(range(n))


def marks(model):
    """Of 100 unseen commands: how many are right, or in the intent; mean reward and keys."""
    rows = unseen_commands()
    told = generation.answers(model, tokenizer, rows["messages"], max_new_tokens=40)
    both = list(zip(told, rows["answer"], strict=True))
    intents = sum(a.split(",")[0] == b.split(",")[0] for a, b in both)  # the first key's value
    earned = [reward(answer, wanted) for answer, wanted in both]
    means = {"reward": sum(earned) / len(both), "keys": keys_named(told)}
    return {"exact": earned.count(1), "intent": intents} | means


# %%
guess_grpo = lab.predict("GRPO, 10 steps: how many of 100 unseen commands are right?", None)

# %% tags=["experiment"]
if lab.experiment("GRPO on home", 130, needs=["8.4", "8.5", "8.6"]):
    start, tokenizer = warm_start()
    scores = {"warm start": marks(start)}
    policy = adapted(start)
    grpo = train_grpo(policy, tasks.load("home").sort("intent"), reward, 10, 5e-4)
    scores["GRPO"] = marks(policy)
    display(pd.DataFrame(scores).T.round(2))
    guess_grpo.beside(scores["GRPO"]["exact"])

# %% [markdown]
# When we ran it, the mean reward went from 0.42 to 0.52, right intents from 46 to 54 and exact
# answers from 17 to 27 of 100.
#
# Do not believe this gain of 0.10 yet: it may be a lucky run. In the file below none of three runs
# at this rank, rate and group size gains as much, in two steps more. And a seed does not fix the
# result. Another processor or number of threads rounds differently. Sooner or later another token
# is drawn, and from there on the run is another one. So your numbers may differ from ours. (With
# another formula for the reward they will. Ours is the right keys over all keys that are named or
# wanted.)
#
# Now the panels. The curve of the reward begins lower than the table. Its answers are drawn at
# temperature 1, and those of the table are greedy. Besides, they are cut after 32 tokens and not
# 40, and answer other commands. The KL leaves zero and stays small: below 0.1 nats a token when we
# ran it. The answers become a little shorter: 20 tokens in the first step, 17.5 in the last. Your
# reward takes something off for a needless key, so it can pay to leave a doubtful one out.
#
# The groups with equal rewards: we had three of eight in the third step, and none from the seventh
# on. In all, 9 of 80 groups taught nothing. Early in a training one expects such a group to have
# failed as a whole. Once a prompt is solved, its groups are right as a whole. (The panel does not
# tell the two apart.) Long runs on a fixed set of prompts have more and more of them, and learn
# less and less from a step. DAPO (2503.14476) leaves such groups out and samples others.

# %% [markdown]
# ### One sample, several steps
#
# Your loss has a clip, and so far it had nothing to clip. Now let 32 answers serve four steps.
# First you see one group of eight: what was said, what it earned, and its advantage. Every token of
# an answer gets that one number, the right tokens of a bad answer, too. Then comes a table of the
# steps. A row of the table is the state before a step. It has two quantiles of the ratio: 5% of the
# tokens are below the first, 5% above the second. A token is *clipped* when it has moved so far in
# the direction it was pushed that it has no gradient any more.

# %% tags=["experiment"]
if lab.experiment("One sample, four steps", 10, needs=["8.4", "8.5", "8.6"]):
    policy, chance = adapted(start), torch.Generator(lab.device).manual_seed(0)
    optimizer = adamw(policy, 5e-4)
    rows = next(rollouts.prompts(tasks.load("home").sort("intent"), 4, 1))
    answers = rollouts.sample(policy, tokenizer, rows, 8, 32, generator=chance)
    earned = earned_by(reward, answers)
    better = group_advantages(torch.tensor(earned).view(4, 8)).flatten().to(lab.device)
    k = 8 * torch.tensor(earned).view(4, 8).std(1).argmax().item()  # the group that differs most
    group = {"answer": [answer["text"] for answer in answers[k : k + 8]]}
    group |= {"reward": earned[k : k + 8], "advantage": better[k : k + 8].tolist()}
    print(answers[k]["row"]["text"])
    with pd.option_context("display.max_colwidth", None):
        display(pd.DataFrame(group).round(2))
    old_logp, told = None, []
    for _ in range(4):
        logp, mask = rollouts.logprobs(policy, answers)
        old_logp = logp.detach() if old_logp is None else old_logp
        loss = grpo_loss(logp, old_logp, better, mask)
        ratio = (logp - old_logp).exp().detach()
        up, down = (better > 0)[:, None], (better < 0)[:, None]  # where tokens are pushed
        clipped = ((up & (ratio > 1.2)) | (down & (ratio < 0.8)))[mask].float().mean()
        low, high = ratio[mask].quantile(torch.tensor([0.05, 0.95], device=lab.device)).tolist()
        told.append({"loss": loss.item(), "ratio, 5%": low, "ratio, 95%": high})
        told[-1]["clipped, %"] = 100 * clipped.item()
        step_down(loss, optimizer)
    display(pd.DataFrame(told, index=pd.RangeIndex(1, 5, name="step")).round(2))

# %% [markdown]
# When we ran it, 15% of the tokens were clipped in the second step, 22% in the third and 25% in the
# fourth. The loss goes from 0.10 to 0.06, and does not tell how far the tokens moved: once more it
# is not what to watch. Look at the ratios: before the fourth step one token in twenty was less than
# a fifth as likely as when it was drawn. (These are tokens of good and of bad answers together.)
#
# So the clip is no wall. It does not say how long a step is: a single one took a token in twenty
# from 1 to 0.56 or less. It takes away only a token's own gradient, once the token has moved by a
# fifth in the direction in which it is pushed. The token can still move on, by Adam's momentum and
# by the weights that it shares with all others. And one that moves the wrong way is not clipped.
# That is why one takes few steps on a sample, and watches the KL as well.

# %% [markdown]
# ## How small may the adapter be?
#
# A written answer says what each of its tokens should have been. A reward is one number for all of
# them: it tells which of eight answers were better. Schulman et al. ("LoRA Without Regret", 2025)
# count bits and conclude that rank 1 has room enough for what rewards teach.
#
# `benchmarks/rewards.py` ran your loop at four ranks and in full fine-tuning, three seeds each: 12
# steps of 64 answers. All ranks have $\alpha = 32$ and a learning rate of 5e-4: the useful part of
# Adam's first step is then the same (lab 5). Full fine-tuning has a rate of its own, 2e-5. All runs
# of the file begin at one warm start, and its reward is 0.42.

# %%
guess_rank = lab.predict("r=1 trains 0.3 million numbers. Its reward goes from 0.42 to?", None)

# %% tags=["experiment"]
if lab.experiment("Ranks under rewards, from a file", 0):
    study = measured.load("rewards")
    study["gain"] = study["reward"] - study["before"]
    start_row = study.query("study == 'written' and steps == 0")  # trained on nothing more
    at_start = (start_row[["reward", "intent", "exact"]].iloc[0] * [1, 100, 100]).tolist()
    every_rate = study[study["study"] == "rank"]
    ranks = every_rate[every_rate["learning_rate"].isin([5e-4, 2e-5])]  # of adapters, of full
    display(plots.by_rank(ranks, at_start, plots.rank_title(ranks, at_start)))
    of_100 = ranks.assign(intent=100 * ranks["intent"], exact=100 * ranks["exact"])
    told = of_100.groupby("rank")[["gain", "intent", "exact"]]
    display(told.agg(["mean", "sem"]).round(3))  # sem: the standard error over seeds
    guess_rank.beside(ranks.loc[ranks["rank"] == 1, "reward"].mean())

# %% [markdown]
# In the table rank 0 is full fine-tuning, and `sem` the standard error over the three seeds. All
# runs answer the same 100 commands, so what sets two runs of a rank apart is the luck of a seed:
# those of r=64 ended at 0.45, 0.49 and 0.53.
#
# **Does rank 1 learn from rewards? Yes.** Its mean gain of 0.06 is 4.5 standard errors, and with
# three seeds chance alone makes up to 4.3 in 19 cases of 20 (lab 5). That is just beyond it. But at
# two other rates, below, all six runs gained, too. So one direction in each matrix is enough to
# learn something.
#
# **Does a higher rank learn more? These runs cannot tell.** Schulman et al. find no difference, in
# far longer runs.
#
# **What was learned?** Most clearly, to name fewer keys. The right answers have 2.65 keys on
# average, and the start named 2.56. All twelve adapter runs ended lower, between 2.0 and 2.4. (In
# the file an answer that is no JSON counts as 0 keys, and a few of those may be a part of it. Your
# own table counts JSON alone, and there keys fell, too, when we ran it: from 2.59 to 2.34.)
#
# Why can that pay? Take a command with three keys, and an answer with two of them, both right. It
# earns 2/3. A third key brings 1/3 more if it is right. It costs 1/6 if the command has no such
# key, and nothing if only its value is wrong. So in this example the third key pays only if it is
# right more than half as often as it is needless. A model that is rarely sure of it does better
# without. But 55 of the 100 commands need three keys or more, and an answer with two is never exact
# there. So an honest reward, too, gets what it pays for.
#
# Right intents, in the middle panel, may have gained as well. Over three seeds no rank's gain is
# beyond chance.
#
# <details><summary>How sure is that?</summary>
#
# - Seed by seed r=64 was ahead of r=1 by 0.01 ± 0.02. A lead would count only from 4.3 standard
#   errors on: 0.09, more than the mean gain of any rank.
# - All errors are over seeds alone: it is one start, and one set of 100 commands.
# - At r=16 exact answers rose by 3.0 ± 0.6. That is five errors, but it is the best of five ranks.
# - Of full fine-tuning one run gained 0.002 only, and right intents ended at 44 ± 5.
# </details>
#
# Would another rate have taught more, or larger groups of answers?

# %% tags=["experiment"]
if lab.experiment("Other rates and other groups, from the file", 0):
    tried = every_rate.groupby(["rank", "learning_rate"])
    display(tried[["gain", "kl"]].agg(["mean", "sem", "count"]).round(2))
    groups = study.query("pay == 'honest' and rank == 16 and learning_rate == 5e-4")
    display(groups.groupby("samples")["gain"].agg(["mean", "sem", "count"]).round(2))

# %% [markdown]
# A row of the first table is a rank and a rate; `count` is the number of seeds. First compare
# rates. At r=1 all nine runs gained, though one of them only 0.008. At r=16 the mean gain is near
# zero at 2e-4 and at 1e-3.
#
# Now compare ranks. At 5e-4 we could not tell them apart. At 1e-3 r=1 is ahead of r=16 by 0.09. If
# that is real, the order of ranks depends on the rate. So do not compare ranks at one rate alone.
#
# The second table is about the size of a group, at the same 64 answers a step. No size gained
# clearly more. But the seeds differ most in groups of four: one run lost 0.11, and another gained
# 0.12.
#
# <details><summary>What the tables do not settle</summary>
#
# - The lead of r=1 at 1e-3 is 4.0 standard errors, just short of 4.3, and picked from many pairs.
# - At r=1 a rate of 1e-3 gained 0.02 ± 0.03 more than 5e-4 did. At r=4, r=16 and r=64 the rate of
#   the picture gained most.
# - Full fine-tuning may gain more at 5e-5 than at the 2e-5 of the picture: 0.03 ± 0.04.
# - In the picture r=4 is behind r=1 by 0.016 ± 0.001. That is seventeen standard errors, and yet
#   r=16 and r=64 do not continue the order. There are ten pairs of ranks to look at, all runs share
#   a start and 100 commands, and three differences that happen to be alike make a small error.
# - How far did the models go for their gains? From 2e-4 to 5e-4 the mean KL from the start grew at
#   every rank: from between 0.11 and 0.14 nats a token to between 0.21 and 0.25. At 1e-3 it was
#   larger still at r=16 and r=64, where single runs went to 0.6 and 0.9, and no larger at r=1 and
#   r=4.
# </details>

# %% [markdown]
# ## Rewards, or written answers?
#
# A reward needs no written answers. But suppose that you have some: what do they teach, from such a
# start? And which of the two forgets more? Shenfeld et al. ("RL's Razor", 2509.04259) find that at
# equal scores reinforcement learning forgets less, as it stays closer to where it started.
#
# The runs with rewards took 12 steps of 64 answers, 768 in all. The file also has runs with 4, 8
# and 12 steps of 16 written answers each. All are at r=16, a rate of 5e-4 and from the one start.

# %%
guess_written = lab.predict("How many written answers teach as much as 768 rewarded ones?", None)

# %% tags=["experiment"]
if lab.experiment("Rewards and written answers, from the file", 0):
    written = study[study["study"] == "written"]  # with 0 steps it is the warm start itself
    rewarded = ranks[ranks["rank"] == 16]
    display(plots.at_score(written, rewarded, plots.score_title(written, rewarded)))
    means = written.groupby("steps")[["reward", "exact", "kl", "perplexity"]].mean()
    told = means.rename(lambda steps: f"{16 * steps} written").rename_axis("answers")
    told.loc["768 rewarded"] = rewarded[told.columns].mean()
    display(told.round(2))
    guess_written.beside(16 * (means["reward"] - rewarded["reward"].mean()).abs().idxmin())

# %% [markdown]
# In the picture a mark is a run, and a number beside it says how many written answers it had. The
# table has the means of three seeds; the row with 0 written answers is the start itself.
#
# **Which teaches more?** 128 written answers taught about as much as 768 sampled and rewarded ones.
# And 192 taught more, in each of three seeds and by more than chance. (The exact numbers hold for
# this one start.)
#
# **Which forgets more?** Compare marks above the same reward: the lower one has moved less from the
# start (left), or forgotten less (right). 128 written answers left the perplexity of everyday
# English about where it was. So did 192, which took as many steps as the rewards, 12. After rewards
# it is higher than after 128 written answers: by 1.5, 3.0 and 1.5 in the three seeds. So these runs
# do not show that rewards forget less. The perplexity points the other way; the KL does so in two
# seeds of three.
#
# <details><summary>How sure is that?</summary>
#
# - Seed by seed 192 written answers ended 0.11 ± 0.02 ahead in reward: 5.2 standard errors, where
#   chance makes up to 4.3.
# - After rewards the perplexity is 2.0 ± 0.5 higher than after 128 written answers: 4.1 standard
#   errors, just short of 4.3.
# - After rewards at 5e-4 all twelve adapter runs, of any rank, lie between 58.7 and 63.6, after
#   written answers (r=16 alone) all nine between 57.1 and 58.5. At other rates they overlap: 58.0
#   to 59.6 after rewards at 2e-4, 57.1 to 67.6 at 1e-3.
# - Full fine-tuning with rewards at 2e-5 stayed at 57.9, and gained about half as much.
# </details>
#
# A possible reason, which we did not measure: a step of rewards is mostly noise at first, and noise
# moves a model, too.
#
# Does that contradict the paper? No. It trains larger models for longer, and compares the best of
# many settings. (It also takes the KL on what the start would say; ours is on the new model's own
# answers.) But that rewards forget less is no law that holds in every regime.
#
# So where somebody can write the answers, begin with them. Rewards are for what a program can judge
# and nobody has written down.

# %% [markdown]
# ## A reward that can be hacked
#
# Some answers leave a key out. So somebody adds a little for each key that is named, "to make the
# answers complete". Under your `reward` a needless key costs something. Under this one it mostly
# pays. Take a command with two keys, and an answer with the same two, one of them right: by our
# formula it is paid 1/2 + 0.4 = 0.9. A needless third key makes that 1/3 + 0.6 = 0.93. An exact
# answer earns 1, and so do five keys of any kind: being right no longer pays more than being long.
# While it trains, the first panel shows what is paid, and the last one what your honest reward says
# of the same answers.


# %%
def bonus(answer, wanted):
    """Your reward, and a fifth for each key that is named: 1 at most."""
    n = keys_in(answer)
    return 0.0 if n is None else min(1.0, reward(answer, wanted) + 0.2 * n)


# %%
guess_keys = lab.predict("An answer names about 2.5 keys at first. How many after 8 steps?", None)


# %% tags=["experiment", "cover"]
if lab.experiment("Eight steps for a bonus", 60, needs=["8.4", "8.5", "8.6"]):
    greedy = adapted(start)
    home = tasks.load("home").sort("intent")
    hacked = train_grpo(greedy, home, bonus, 8, 5e-4, size=32, title="Paid a bonus", honest=reward)
    scores["paid a bonus"] = marks(greedy)
    table = pd.DataFrame(scores).T
    title = plots.hack_title(hacked.values, table["reward"])
    display(plots.paid(hacked.values, table, title, guess_keys))
    display(table.round(2))
    some = unseen_commands(3)
    said = generation.answers(greedy, tokenizer, some["messages"], max_new_tokens=40)
    for row, text in zip(some, said, strict=True):
        pay, worth = (earned(text, row["answer"]) for earned in (bonus, reward))
        print(f"{row['text']}\n  paid {pay:.1f}, your reward {worth:.2f}: {text}")
    guess_keys.beside(table.loc["paid a bonus", "keys"])

# %% [markdown]
# The last lines are answers to unseen commands, with their pay. Read them first.
#
# Left: what the run was paid, and what your reward says of the same answers. When we ran it, the
# dashed line did not fall, and yet the model got worse on unseen commands. The line is a mean over
# 32 answers drawn at temperature 1, to other commands in each step. So it is noisy, and it is not
# how the model is used.
#
# Middle and right: keys and exact answers on unseen commands, decoded greedily, at the start, after
# the run from above and after this one. (Ten steps of 64 answers there, eight of 32 here, so
# compare the direction alone. And our 27 was lucky: three runs of the file at that setting, in
# twelve steps, ended at 19 to 21.) The bonus brought more keys, your reward fewer. Why not all 16
# keys? Five are enough for full pay. And answers are cut after 32 tokens: JSON that is cut off
# earns nothing.
#
# One run may be chance. So here it stands beside three longer ones of the file, 12 steps of 64
# answers:
#
# | | this run, when we ran it | three longer runs |
# |---|---|---|
# | pay, first → last three steps | 0.63 → 0.71 | 0.57 → 0.80, 0.71 → 0.85, 0.73 → 0.77 |
# | keys an answer | 2.6 → 3.7 | 2.6 → 3.1, 4.1 and 3.6 |
# | your reward | 0.42 → 0.31 | 0.42 → 0.40, 0.24 and 0.21 |
# | exact answers of 100 | 17 → 2 | 17 → 9, 0 and 0 |
#
# (The last three rows are about unseen commands. In the longer runs an answer that is no JSON
# counts as 0 keys.)
#
# Would the pay have warned you? Not at all: it rose in all four runs. Yet on unseen commands every
# model got worse, and in three of the four hardly any answer is exact any more. So judge a model by
# something that it is not paid for, on prompts that it has not seen, and in the way in which it
# will be used.
#
# The bonus may have one merit: it can set the answers of a group apart. When we ran it, none of its
# 32 groups (four a step) had equal rewards; with your reward 9 of 80 had.
#
# A KL in the loss, or an early stop, can limit the damage. But the cause is the reward: pay for
# nothing that you do not want.

# %% [markdown]
# ## GRPO with TRL
#
# `GRPOTrainer` samples, rewards, compares and steps as your loop does. Its reward function gets a
# list of completions, and the columns of the data set by name. Eight answers a step are enough to
# see it work. Most of the time goes into `generate`.

# %% tags=["experiment"]
if lab.experiment("Two steps of TRL's GRPOTrainer", 12, needs=["8.4", "8.5", "8.6"]):

    def pay(completions, answer, **_):
        said = [completion[0]["content"].strip() for completion in completions]
        return [reward(text, wanted) for text, wanted in zip(said, answer, strict=True)]

    prompts = tasks.load("home").map(lambda row: {"prompt": row["messages"][:-1]})
    trainer = GRPOTrainer(
        copy.deepcopy(start),
        reward_funcs=pay,
        args=quiet(
            GRPOConfig,
            per_device_train_batch_size=8,
            num_generations=8,
            max_completion_length=40,
            learning_rate=5e-4,
        ),
        train_dataset=prompts.select_columns(["prompt", "answer"]),
        processing_class=tokenizer,
        peft_config=lora_config(),
    )
    display(two_steps(trainer, ["loss", "reward", "frac_reward_zero_std"]))

# %% [markdown]
# Eight answers are one group of one command here, so the reward is that of a single prompt and
# jumps about. `frac_reward_zero_std` is the share of groups with equal rewards. The loss is minus
# the mean advantage of the tokens, as in your exercise. It is not zero, since answers differ in
# length.

# %% [markdown]
# ### Exercise 8.7 · Quiz
#
# ●○○ · 5 min · 4 points
#
# The first letter that you check counts; then read what it says.
#
# **q1. Why does DPO with LoRA need no second model in memory?**
#
# - (a) Its loss has no reference at all: the pairs are compared with each other alone.
# - (b) The base under the adapter has not changed: without the adapter it is the reference.
# - (c) The reference's numbers are computed once, by whoever made the pairs, and stored.
# - (d) The adapter is so small that a copy of the whole model with it costs next to nothing.
#
# **q2. All eight answers to a prompt earn 0. What does this prompt teach in this step?**
#
# - (a) To stay as it is: the clip holds all tokens at the probabilities that they had before.
# - (b) To say something else: all eight are made less likely, as their reward is the lowest.
# - (c) Nothing useful: dividing by a deviation of zero makes the gradient a random direction.
# - (d) Nothing: each answer is as good as the mean, and all of their advantages are zero.
#
# **q3. A run's reward rises from 0.4 to 0.9, and on held-out prompts no answer is better than
# before. What do you do first?**
#
# - (a) Read the answers that earn most: they show what the reward pays for besides quality.
# - (b) Take more samples a prompt, so that the advantages have less noise in them.
# - (c) Lower the clip: the policy has moved too far in each of its steps, and has overshot.
# - (d) Raise the rank: the adapter had too little room to learn what the reward asks for.
#
# **q4. A token of a bad answer ($A < 0$) is twice as likely as when it was drawn, and $\epsilon$ is
# 0.2. What does the clipped objective do with it?**
#
# - (a) It clips the ratio to 1.2, and the token has no gradient in this step any more.
# - (b) It clips the ratio to 0.8, so that the token is pulled down to that probability.
# - (c) It keeps the ratio of 2: the token has a gradient, which pulls it down again.
# - (d) It leaves the token out of the mean, as its sample is too old to say anything.


# %%
def quiz():
    """Your letters, in the form {"q1": "a", "q2": "a", "q3": "a", "q4": "a"}."""
    # BEGIN SOLUTION
    return {"q1": "b", "q2": "d", "q3": "a", "q4": "c"}
    # END SOLUTION


# %%
check.quiz(quiz)

# %% [markdown]
# ## What you know now
#
# - The log-probability of an answer is a sum over its tokens, shifted by one, without the prompt.
# - DPO asks for a difference between two answers, and needs the model as it was. Under an adapter
#   it is still there. A loss that falls says that the pairs are told apart. Whether new answers are
#   better, only new answers tell.
# - GRPO makes likelier what is better than the rest of its group. A group of equals teaches
#   nothing.
# - The clip leaves a token without a gradient once it has moved far enough in the right direction.
#   One that has moved the wrong way keeps its gradient.
# - A model learns what the reward pays for: more keys for a bonus, fewer where a needless one
#   costs. So read the answers that earn most.
# - Rank 1 is enough to learn something from rewards: all nine runs gained, at three rates, though
#   only at 5e-4 beyond what chance makes, and there just so. But in these short runs 128 written
#   answers taught as much as 768 rewarded ones (one start, one rate). So where somebody can write
#   the answers, begin with them.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment("The result in one line", 0, needs=["8.1", "8.2", "8.3", "8.4", "8.5", "8.6"]):
    told = [
        f"{scores[way]['reward']:.2f} with {scores[way]['exact']:.0f} of 100 exact"
        for way in ("warm start", "GRPO", "paid a bonus")
    ]
    lab.headline(
        f"DPO: {100 * gain:+.0f} points of constraints followed, standard error {100 * error:.0f}; "
        f"reward on unseen commands: {told[0]}, GRPO {told[1]}, paid a bonus {told[2]}"
    )
