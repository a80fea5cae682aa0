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
# In every lab so far, somebody wrote the training answers, and the model learned to reproduce them.
# It is often easier to say which of two answers is better, or to let a program judge. In this lab,
# a model learns from such judgments: pairs of answers (DPO), or a reward for each answer it samples
# (GRPO). You write both losses and a complete GRPO step, and see how both methods change the
# model's answers. You also see that a higher reward needn't mean better answers, and that some
# rewards are easy to game.
#
# LoRA suits DPO well, because the original model, which DPO needs, is still in memory.
#
# {{ time }}

# %%
import labkit

lab, check = labkit.start("08_rewards")

# %%
import copy
import json

import torch
import torch.nn.functional as F
from IPython.display import display
from peft import LoraConfig, get_peft_model
from torch import nn

from labkit import live, tasks
from labkit.figures import lab08 as figures
from labkit.plots import compare_answers
from labkit.tasks import chat
from labkit.training import fast, generation, loop, models, pairs, rollouts, trees

# %% [markdown]
# ## How likely is an answer?
#
# Both methods start from the log-probability that the model assigns to an answer $y$ after a prompt
# $x$. The model writes one token at a time, so the probability of an answer is a product over its
# tokens, and the log-probability is a sum:
#
# $$\log \pi(y \mid x) = \sum_t \log \pi(y_t \mid x, y_{<t})$$
#
# DPO uses this sum, and GRPO uses its individual terms.

# %% [markdown]
# ### Exercise 8.1 · `sequence_logprob`
#
# ●●○ · 8 min · 2 points
#
# The `labels` aren't shifted: position $t$ contains the id of token $t$. The prompt and the padding
# don't count: their labels are -100. The logits at a position predict the *next* token. Return the
# summed log-probability of each answer, with shape `(b,)`. For a sequence without an answer, the
# sum is 0. Training backpropagates through this function, so keep the gradient.
#
# <details><summary>Hint</summary>
#
# The logits at the last position predict a token beyond the end of the sequence, and no logits
# predict the first token. Which slices of the two tensors belong together?
# </details>
#
# <details><summary>Another hint</summary>
#
# Apply `log_softmax` over the vocabulary, then select each label's column with `gather`. `gather`
# doesn't accept -100 as an index, so replace it with a valid index and leave the result out of the
# sum.
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
# Each token's log-probability is at most zero, so longer answers tend to have lower
# log-probabilities.
#
# ## Which of two answers is better?
#
# A *preference* is a prompt with two answers, one chosen and one rejected. Suppose you want shorter
# answers. The task `chat` has pairs of the model's own answers to short instructions, cut off at 48
# tokens. The next function relabels each pair, so that the shorter answer is chosen.


# %%
def pairs_of(wish):
    """Pairs of answers from `chat`; in each pair, the shorter or the longer answer is chosen."""

    def ordered(row):
        both = [row["chosen"], row["rejected"]]
        both.sort(key=lambda messages: len(messages[0]["content"]), reverse=wish == "longer")
        return {"chosen": both[0], "rejected": both[1]}

    return chat.pairs().map(ordered)


# %% tags=["experiment"]
if lab.experiment("The model, and pairs of its answers", 1):
    model, tokenizer = models.load()
    preferred = pairs_of("shorter")
    some = preferred.shuffle(seed=3).select(range(3))
    sides = {side: [row[side][0]["content"] for row in some] for side in ("chosen", "rejected")}
    print(f"{len(preferred)} pairs")
    display(compare_answers([row["prompt"][0]["content"] for row in some], None, sides))

# %% [markdown]
# How does a model learn from such pairs? Suppose each answer has a quality, and answer $c$ is
# chosen over answer $r$ with probability $\sigma(\text{quality}_c - \text{quality}_r)$, where
# $\sigma$ is the sigmoid. This is the Bradley-Terry model. In DPO (*direct preference
# optimization*, [Rafailov et al. 2023](https://arxiv.org/abs/2305.18290)), the model serves as its
# own reward model. An answer's quality is $\beta$ times the log-probability it has gained since
# training began:
#
# $$\beta \, \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)}$$
#
# The *reference* $\pi_{\text{ref}}$ is the model before training. The loss is the negative
# log-probability of the observed choice. For example, let $\beta = 0.1$, and let the chosen answer
# gain 10 nats more than the rejected answer. The observed choice then has a probability of
# $\sigma(1) = 0.73$, so the loss is 0.31.
#
# Where does this formula come from? Consider the model that maximizes the mean quality of its
# answers minus $\beta$ times the KL from the reference. That model is
# $\pi(y \mid x) \propto \pi_{\text{ref}}(y \mid x) \, e^{\text{quality} / \beta}$. Solving for the
# quality gives the formula above plus a term that depends only on the prompt, so it cancels in the
# difference. The factor $\beta$ is the price of moving away from the reference.

# %% [markdown]
# ### Exercise 8.2 · `dpo_loss`
#
# ●●○ · 8 min · 3 points
#
# The first four arguments are log-probabilities of whole answers, with shape `(b,)`, as
# `sequence_logprob` returns them. The *policy* is the model being trained. A pair's *margin* is the
# log-probability that its chosen answer has gained since training began, minus the gain of its
# rejected answer. Return the mean of $-\log \sigma(\beta \cdot \text{margin})$ over the pairs, as a
# scalar tensor.
#
# The check compares your loss with TRL's. It also tries margins of ±1,000 nats, for which the loss
# and its gradient must still be finite.
#
# <details><summary>Hint</summary>
#
# Before the first step, the policy and the reference are the same model. What is the loss at that
# point, whatever the pairs? Does your function return this value?
# </details>
#
# <details><summary>Another hint</summary>
#
# `torch.sigmoid(torch.tensor(-200.0))` is 0, so its logarithm is infinite. PyTorch has a single
# function for the logarithm of the sigmoid.
# </details>


# %%
def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    """Four tensors of log-probabilities (b,) and a float -> the mean DPO loss, ()."""
    # BEGIN SOLUTION
    chosen = policy_chosen - reference_chosen
    rejected = policy_rejected - reference_rejected
    return -F.logsigmoid(beta * (chosen - rejected)).mean()
    # END SOLUTION


# %%
check.dpo(dpo_loss)

# %% [markdown]
# Only the difference between the two answers' gains matters. The chosen answer may become *less*
# likely, as long as the rejected answer loses more.
#
# ## The reference is already there
#
# DPO needs log-probabilities from the reference. To get these, full fine-tuning needs a second
# model, or a pass over all pairs beforehand. With LoRA, the base has not changed: if you switch the
# adapter off, your model *is* the reference. (This holds for a new adapter. To continue training an
# existing adapter with DPO, merge it first, or keep a copy as the reference.)

# %% [markdown]
# ### Exercise 8.3 · `reference_logprobs`
#
# ●●○ · 9 min · 3 points
#
# `model` is a `PeftModel` in the middle of training. `batch` is a dict with `input_ids`,
# `attention_mask` and `labels`. Use your `sequence_logprob` to return each sequence's
# log-probability under the model without its adapter:
#
# - Don't record gradients: nothing is trained here, and the autograd graph would cost memory.
# - Run the model in eval mode, because dropout in the base would add noise.
# - Leave the model in the same mode and with the same adapter active, whatever its name, **even
#   after an exception**, including a keyboard interrupt. Otherwise, a notebook would silently keep
#   training a model without its adapter.
#
# <details><summary>Hint</summary>
#
# PEFT has a context manager that switches adapters off. When you leave it, it switches them back
# on, even after an exception.
# </details>
#
# <details><summary>Another hint</summary>
#
# `model.training` stores the current mode. Which Python block always runs, whatever happens before
# it?
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
# ## DPO for shorter answers
#
# DPO is now a short training loop.


# %%
def adapted(base, r, seed=0):
    """A copy of `base` with a new LoRA adapter on all linear layers."""
    torch.manual_seed(seed)
    return get_peft_model(
        copy.deepcopy(base), LoraConfig(r=r, lora_alpha=32, target_modules="all-linear")
    )


def adamw(model, rate):
    """An AdamW optimizer for the trainable parameters of a model."""
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], rate, weight_decay=0.0
    )


def train_dpo(pairs_of_answers, rate, beta, steps=12, seed=0, picture=True):
    """Train for `steps` steps of 6 pairs -> (the model after DPO, its training curves)."""
    policy = adapted(model, r=16, seed=seed)
    optimizer = adamw(policy, rate)
    batches = pairs.batches(pairs_of_answers, tokenizer, 6, steps, seed)  # chosen answers first
    label, names = "log-probability\ngained, nats", ["chosen", "rejected"]
    curves = live.Curves("DPO on its training pairs", len(batches), label, names, picture)
    for batch in batches:
        with fast.layers(policy), trees.forward(policy):  # same result up to rounding, but faster
            logits = policy(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            reference = reference_logprobs(policy, batch)
        logp = sequence_logprob(logits, batch["labels"])
        loss = dpo_loss(*logp.chunk(2), *reference.chunk(2), beta)
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        chosen, rejected = (logp - reference).detach().chunk(2)
        curves.add(loss=loss.item(), rejected=rejected.mean(), chosen=chosen.mean())
    return policy.eval(), curves


def lengths(model):
    """Token counts (at most 64) of one sampled answer to each of 60 unseen instructions."""
    chance, rows = torch.Generator(lab.device).manual_seed(0), tasks.load("chat", "test").to_list()
    how = {"max_new_tokens": 64, "temperature": 0.7, "generator": chance}
    answers = rollouts.sample(model, tokenizer, rows, 1, **how)
    return [sum(label != -100 for label in answer["labels"]) for answer in answers]


# %%
guess_dpo = lab.predict(
    "Before DPO, answers average 47 tokens (cut off at 64). How many after it?", None
)

# %% tags=["experiment"]
if lab.experiment("DPO for shorter answers", 45, needs=["8.1", "8.2", "8.3"]):
    tokens = {"before": lengths(model)}
    short, curves = train_dpo(preferred, rate=5e-4, beta=0.1)
    tokens["shorter, beta 0.1"] = lengths(short)
    unseen = tasks.load("chat", "test").select(range(3))["messages"]
    answers = {"before": generation.answers(model, tokenizer, unseen, 64)}
    answers["after"] = generation.answers(short, tokenizer, unseen, 64)
    display(compare_answers([messages[0]["content"] for messages in unseen], None, answers))
    display(figures.lengths(tokens, guess_dpo))
    guess_dpo.compare(sum(tokens["shorter, beta 0.1"]) / 60)

# %% [markdown]
# Answers are less than half as long after DPO, in this run and three others
# ([evidence](../docs/evidence/08_rewards.md#dpo-for-shorter-answers)). Read the answers: the pairs
# rewarded brevity, not quality. *Both* training curves fall: chosen answers became less likely,
# too. Razin et al. ([2024](https://arxiv.org/abs/2410.08847)) call this *likelihood displacement*.
# To lower the loss, only the gap between the two has to grow.
#
# TRL's default learning rate for DPO is 1e-6, and its LoRA example uses 5e-6. We use 5e-4, because
# we take only 12 steps.
#
# **Try it: beta and the pairs.** Run the cell as it is: it swaps each pair, so the longer answer is
# chosen, as if somebody had mixed up the two columns. Then set `wish = "shorter"` and `beta = 1.0`.
# Do you expect longer or shorter answers than with 0.1?

# %% tags=["experiment"]
wish, beta, rate = "longer", 0.1, 5e-4
if lab.experiment("Other pairs, beta or rate", 35, needs=["8.1", "8.2", "8.3"]):
    turned, _ = train_dpo(pairs_of(wish), rate, beta, picture=False)
    name = f"{wish}, beta {beta:g}" + (f", rate {rate:g}" if rate != 5e-4 else "")
    tokens.pop(name, None)  # the newest comes last
    tokens[name] = lengths(turned)
    print(generation.answers(turned, tokenizer, unseen, 64)[0])
    display(figures.lengths(tokens))

# %% [markdown]
# A larger $\beta$ keeps the model closer to the reference: at $\beta = 1$, answers averaged 28 to
# 36 tokens in three runs, versus 12 to 20 at 0.1
# ([evidence](../docs/evidence/08_rewards.md#dpo-for-shorter-answers)).
#
# A falling loss shows only that the model separates chosen from rejected answers, not that its own
# answers get better. Read some pairs before you train on them.
#
# Another silent mistake is to compute the reference with the adapter *on*: policy and reference are
# then the same model, and every margin is 0. The symptom is a loss of $\log 2 = 0.693$ at every
# step. The gradient isn't zero, so the model drifts with nothing to hold it back.
#
# ## Better than its group
#
# DPO's pairs were made before training. GRPO (*group relative policy optimization*, [Shao et al.
# 2024](https://arxiv.org/abs/2402.03300)) uses answers sampled during training. For each prompt,
# the model samples a *group* of answers, and a program or a reward model scores each answer.
# Answers that score above their group's mean become more likely, and those below it become less
# likely. The model is never shown a right answer.
#
# GRPO standardizes the rewards within each group. Rewards of 1, 0, 0 and 0 become advantages of
# 1.5, -0.5, -0.5 and -0.5. Rewards of 0.1, 0, 0 and 0 give practically the same advantages, because
# dividing by the standard deviation makes small differences large. The variant "Dr. GRPO" ([Liu et
# al. 2025](https://arxiv.org/abs/2503.20783)) skips this division.

# %% [markdown]
# ### Exercise 8.4 · `group_advantages`
#
# ●○○ · 4 min · 2 points
#
# Each row of `rewards` covers one prompt's group. An answer's *advantage* is its reward minus the
# group's mean, divided by the group's standard deviation **plus** `eps`. If all rewards in a group
# are equal, all its advantages are zero. Like TRL, use torch's default standard deviation, which
# divides by the number of samples minus one.
#
# <details><summary>Hint</summary>
#
# Compute the mean and the standard deviation along one axis. With `keepdim=True`, both of them
# broadcast against the rewards.
# </details>


# %%
def group_advantages(rewards, eps=1e-4):
    """rewards (prompts, samples) -> advantages of the same shape, computed row by row."""
    # BEGIN SOLUTION
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    return (rewards - mean) / (std + eps)
    # END SOLUTION


# %%
check.advantages(group_advantages)

# %% [markdown]
# ## One step, and not too far
#
# Why does GRPO raise the reward? The mean reward for a prompt is $\sum_y \pi(y) R(y)$. Because
# $\nabla \pi = \pi \, \nabla \log \pi$, its gradient is the mean of $R \, \nabla \log \pi$ over the
# model's own samples. So you can estimate it by averaging over samples. (This is the *policy
# gradient*, or REINFORCE.) Subtracting a baseline from $R$ usually reduces noise and, since
# $\sum_y \nabla \pi(y) = 0$, doesn't change the expected gradient. Dividing by each group's
# standard deviation changes how much its prompt counts.
#
# Sampling is expensive, so you want to take several steps on the same samples. After the first
# step, however, the model has changed. The *ratio* $\rho_t = \pi(y_t) / \pi_{\text{old}}(y_t)$ is a
# token's probability now, divided by its probability when it was sampled. GRPO's objective, here
# without the paper's KL term, is
#
# $$\min\bigl(\rho_t A, \; \text{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon) \, A\bigr).$$
#
# Where the ratio is 1, the objective's gradient is $A \, \nabla \log \pi(y_t)$.

# %% tags=["experiment"]
if lab.experiment("The objective, clipped and not", 0):
    display(figures.clip_shape(epsilon=0.2))

# %% [markdown]
# A token in a good answer gets no gradient once its ratio exceeds $1 + \epsilon$, and a token in a
# bad answer gets none below $1 - \epsilon$. Nothing is clipped in the other direction: a token
# whose probability has moved the wrong way keeps its gradient.

# %% [markdown]
# ### Exercise 8.5 · `grpo_loss`
#
# ●●● · 12 min · 4 points
#
# `logp` and `old_logp` contain the log-probabilities of single tokens, with shape `(b, t)`.
# `advantages`, with shape `(b,)`, has one value per answer, shared by all its tokens. `mask` is
# True for answer tokens and False for padding. Average the objective over **all tokens** in the
# batch except padding, and return its negative. Each token counts once, so a long answer counts
# more than a short answer. (This is TRL's default. The paper averages within each answer first.)
#
# <details><summary>Hint</summary>
#
# How do you compute the ratio of two numbers from their logarithms?
# </details>
#
# <details><summary>Another hint</summary>
#
# Write down both products for $A = -1$, $\epsilon = 0.2$ and a ratio of 2. Which product is
# smaller, and does your code choose it?
# </details>
#
# <details><summary>A last hint</summary>
#
# A tensor of shape `(b,)` lines up with the last axis of `(b, t)`, but here it must line up with
# the first. If b equals t, torch raises no error.
# </details>


# %%
def grpo_loss(logp, old_logp, advantages, mask, clip=0.2):
    """logp, old_logp, mask (b, t), advantages (b,) -> the mean loss over all tokens, ()."""
    # BEGIN SOLUTION
    ratio = (logp - old_logp).exp()
    gain = advantages[:, None]  # (b, 1)
    objective = torch.min(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    return -(objective * mask).sum() / mask.sum()
    # END SOLUTION


# %%
check.clipped(grpo_loss)

# %% [markdown]
# In the first step after sampling, every ratio is 1, so the loss is the negative mean of the
# tokens' advantages. The loss is zero if all answers have the same length, and usually small
# otherwise. The gradient is not zero, so watch the reward, not the loss.
#
# ## What is an answer worth?
#
# The task is now `home`: the model turns a spoken command into a JSON intent. A program can check
# which answers are right. If only right answers earn a reward, many groups earn only zeros, so you
# also reward partly right answers. That is risky: training may find a loophole in the reward.

# %% [markdown]
# ### Exercise 8.6 · `reward`
#
# ●●○ · 11 min · 3 points
#
# Both arguments are strings. `wanted` is a row's JSON answer, such as
# `{"intent":"HassTurnOn","area":"study"}`, and `answer` is the text that the model wrote. A key of
# `answer` is *right* if `wanted` has the same key **with the same value** (a string, a number,
# true, false or null). Return a float from 0 to 1:
#
# - Return 1 if and only if both contain the same data. The order of the keys and the whitespace
#   between them don't matter. Neither `true` nor `"1"` equals `1`.
# - Return 0 if the answer isn't a JSON object (a model can write anything) or has no right key.
# - Each right key raises the reward, and each unwanted key lowers it, but never below 0.
# - A wanted key with a wrong value earns no more than leaving the key out.
#
# Many formulas satisfy these rules. One more rule blocks a common hack. If two to six keys are
# wanted, an answer that **names all 16 keys** of `home`, even with every wanted key right, must
# earn less than an answer with half of the wanted keys (rounded down) and no others.
#
# <details><summary>Hint</summary>
#
# If you divide the number of right keys by the number of *wanted* keys, extra keys cost nothing.
# What else could you divide by?
# </details>
#
# <details><summary>Another hint</summary>
#
# `json.loads` also accepts `3`, `null` and `[1]`. In Python, `True == 1`, but the JSON texts of the
# two values differ.
# </details>


# %%
def reward(answer, wanted):
    """Two strings, the model's answer and the wanted JSON -> a float from 0 to 1."""
    # BEGIN SOLUTION
    try:
        said = json.loads(answer)
    except ValueError:
        return 0.0
    if not isinstance(said, dict):
        return 0.0
    got, goal = (
        {key: json.dumps(value, sort_keys=True) for key, value in data.items()}
        for data in (said, json.loads(wanted))
    )
    right = sum(got.get(key) == value for key, value in goal.items())
    return right / len(got.keys() | goal.keys())
    # END SOLUTION


# %%
check.rewards(reward)

# %% [markdown]
# ## The whole step

# %% [markdown]
# ### Exercise 8.7 · `grpo_step`
#
# ●●● · 10 min · 3 points
#
# Write one GRPO step with your `group_advantages` and `grpo_loss`. You are given two functions:
#
# - `sample(model, prompts, samples)` draws `samples` answers to each prompt and keeps each prompt's
#   answers together. It returns `(answers, logp, mask)`: a list of `len(prompts) * samples`
#   answers, their tokens' log-probabilities (with gradient), and the mask. The last two have shape
#   `(b, t)`.
# - `score(answer)` returns the reward of one answer as a float.
#
# Sample once, score the answers, and compute each group's advantages and the loss. Then clip the
# gradient norm at 1, as TRL does, and take a step. Each answer is used for one step only, so
# `old_logp` is `logp` without its gradient. The model may have old gradients: clear them first.
#
# Return a dict of two floats: `reward`, the mean reward of all answers, and `equal`, the share of
# groups whose rewards are all the same (compare rewards, not advantages).
#
# <details><summary>Hint</summary>
#
# `group_advantages` takes one row of rewards per prompt, and `grpo_loss` takes one advantage per
# answer.
# </details>


# %%
def grpo_step(model, optimizer, sample, score, prompts, samples):
    """One step on len(prompts) groups of `samples` answers -> {"reward": mean, "equal": share}."""
    # BEGIN SOLUTION
    answers, logp, mask = sample(model, prompts, samples)
    rewards = torch.tensor([score(answer) for answer in answers], device=logp.device)
    rewards = rewards.view(len(prompts), samples)
    advantages = group_advantages(rewards).flatten()
    loss = grpo_loss(logp, logp.detach(), advantages, mask)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    equal = (rewards == rewards[:, :1]).all(1).float().mean()
    return {"reward": rewards.mean().item(), "equal": equal.item()}
    # END SOLUTION


# %%
check.steps(grpo_step)


# %% [markdown]
# ## GRPO on `home`
#
# The base model answers a spoken command with chatter. Try your step on four commands, with eight
# answers per command.


# %%
def sampler(seed=0):
    """A function `sample` for `grpo_step` that draws answers of at most 40 tokens."""
    chance = torch.Generator(lab.device).manual_seed(seed)

    def sample(model, prompts, samples):
        answers = rollouts.sample(model, tokenizer, prompts, samples, 40, generator=chance)
        return answers, *rollouts.logprobs(model, answers)

    return sample


def earns(worth):
    """A function `score` for `grpo_step`, made from a reward function of (answer, wanted)."""
    return lambda answer: worth(answer["text"], answer["row"]["answer"])


# %% tags=["experiment"]
if lab.experiment("A step from the base model", 7, needs=["8.4", "8.5", "8.6", "8.7"]):
    commands = tasks.load("home").sort("intent")  # so that every step sees a similar mixture
    policy, prompts = adapted(model, r=1), next(rollouts.prompts(commands, 4, 1))
    print(grpo_step(policy, adamw(policy, 5e-4), sampler(), earns(reward), prompts, 8))

# %% [markdown]
# No answer earns a reward, so the gradient is zero. The model first needs a *warm start*: train an
# adapter for 14 steps of 16 written answers, and merge it. After that, the model learns only from
# the reward. GRPO trains a new adapter of rank 1, which did as well as higher ranks in experiments
# by [Schulman et al. (2025)](https://thinkingmachines.ai/blog/lora/).
#
# Begin with a simple reward: 1 for the right intent, whatever the other keys. On 100 unseen
# commands, count the right intents in two ways: in four *sampled* answers each (GRPO maximizes
# these), and in one *greedy* answer each (you would deploy these).


# %%
def warm_start(steps=14):
    """The base model after `steps` steps on written answers, with the adapter merged."""
    tuned = adapted(model, r=16, seed=lab.seed)
    batches = loop.batches(tasks.load("home"), tokenizer, 16, steps)
    for _ in live.progress(loop.train(tuned, batches, steps, 2e-3), "warm start", steps):
        pass
    return tuned.merge_and_unload().eval()


def train_grpo(worth, samples=8, rate=5e-4, r=1, steps=12, seed=0):
    """Run GRPO from the warm start, 64 answers per step -> (the model, its training curves)."""
    policy, sample = adapted(start, r, seed), sampler(seed)
    optimizer, commands = adamw(policy, rate), tasks.load("home").sort("intent")
    title = f"GRPO, reward: {worth.__name__}"
    curves = live.Curves(title, steps, "mean reward", ["reward"])
    draws = rollouts.prompts(commands, 64 // samples, steps, seed)
    for prompts in draws:
        curves.add(**grpo_step(policy, optimizer, sample, earns(worth), prompts, samples))
    return policy.eval(), curves


def parsed(answer):
    """The JSON object in an answer, as a dict; an empty dict if there is none."""
    try:
        data = json.loads(answer)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def right_intent(answer, wanted):
    """A reward of 1 for the right intent, else 0."""
    return float(parsed(answer).get("intent") == parsed(wanted)["intent"])


def all_right(answer, wanted):
    """Whether an answer earns your full reward."""
    return reward(answer, wanted) == 1


def unseen_commands():
    """100 held-out commands, the same ones each time."""
    return tasks.draw("home", "test", 100)


def sampled_intents(model, samples=4, temperature=1.0):
    """Which of `samples` answers to each of 100 commands have the right intent: 0 or 1 each."""
    rows, chance = unseen_commands().to_list(), torch.Generator(lab.device).manual_seed(0)
    answers = rollouts.sample(model, tokenizer, rows, samples, 40, temperature, chance)
    return [earns(right_intent)(answer) for answer in answers]


def marks(model, samples=4):
    """On 100 commands: right intents (sampled and greedy), right answers and keys (greedy)."""
    rows = unseen_commands()
    answers = generation.answers(model, tokenizer, rows["messages"], 40)
    both = list(zip(answers, rows["answer"], strict=True))
    return {
        "sampled": sampled_intents(model, samples),
        "greedy": [right_intent(*pair) for pair in both],
        "right": [all_right(*pair) for pair in both],
        "keys": [len(parsed(text)) for text in answers],
    }


# %%
guess_grpo = lab.predict(
    "About half of the greedy answers have the right intent. How many of 100 after 12 steps?", None
)

# %% tags=["experiment"]
if lab.experiment("GRPO on home", 100, needs=["8.4", "8.5", "8.6", "8.7"]):
    start = warm_start()
    found = {"warm start": marks(start)}
    policy, curves = train_grpo(right_intent)
    found["paid right_intent, 12 steps"] = marks(policy)
    some = unseen_commands().select(range(3))
    answers = {
        name: generation.answers(m, tokenizer, some["messages"], 40)
        for name, m in {"before": start, "after": policy}.items()
    }
    display(compare_answers(some["text"], some["answer"], answers, 3, all_right))
    display(figures.rewarded(found, sampled_intents(start, temperature=0.7)))
    guess_grpo.compare(sum(found["paid right_intent, 12 steps"]["greedy"]))

# %% [markdown]
# Sampled answers now have the right intent about twice as often. With three other seeds (rings),
# the gains were 19, 15 and 22 points, each with a standard error of 3 or 4
# ([evidence](../docs/evidence/08_rewards.md#grpo-on-home)). But greedy answers show no clear gain
# (4, -3 and 2 points): about as many intents became wrong as right. And a lower temperature
# achieves much of the gain without training: at 0.7, 35% of the warm start's answers have the right
# intent. Whether rewards can teach a model what it couldn't say at all is disputed ([Yue et al.
# 2025](https://arxiv.org/abs/2504.13837)).
#
# And you get what you pay for. Nobody paid for the other keys, so right answers fell from 33 of 100
# to 8, 12 and 0.
#
# Written answers teach more, if you have them. In runs on another machine at r=16, 192 written
# answers raised the mean `reward` of greedy answers from 0.42 to 0.59. GRPO, paid that reward for
# 768 sampled answers, raised it only to 0.47
# ([evidence](../docs/evidence/08_rewards.md#rewards-and-written-answers)), and 0.50 at best
# ([r=1](../docs/evidence/08_rewards.md#ranks-and-rates)). So train on right answers first. Use GRPO
# when right answers are easy to check but expensive to write.
#
# ## A reward that can be hacked
#
# Few answers now have the right keys, so suppose you pay 0.2 for each key, up to five keys.


# %%
def complete(answer, wanted):
    """A reward of a fifth for each key, whatever its value; at most 1."""
    return min(1.0, 0.2 * len(parsed(answer)))


# %%
guess_keys = lab.predict(
    "An answer names about 2.4 keys at first. How many will it name when each key pays?", None
)

# %% [markdown]
# **Try it: the reward.** Run the cell as it is. Then replace `complete` with the `reward` you
# wrote, or another of your own.

# %% tags=["experiment", "cover"]
if lab.experiment("Another reward", 80, needs=["8.4", "8.5", "8.6", "8.7"]):
    worth = complete  # or reward, or another of your own
    policy, _ = train_grpo(worth, steps=8)
    name = f"paid {worth.__name__}, 8 steps"
    found.pop(name, None)  # the newest comes last
    found[name] = marks(policy, samples=1)
    answers = generation.answers(policy, tokenizer, some["messages"], 40)
    for row, text in zip(some, answers, strict=True):
        pay, value = (earned(text, row["answer"]) for earned in (worth, reward))
        print(f"{row['text']}\n  paid {pay:.1f}, your reward {value:.2f}: {text}")
    display(figures.hacked(found, guess_keys))
    guess_keys.compare(sum(found[name]["keys"]) / 100)

# %% [markdown]
# When each key pays, the model in this run names more keys, but fewer of its answers are right. A
# subtler mistake keeps your reward but adds 0.2 for each key, with the total capped at 1. In runs
# on that other machine (three seeds), the model started with 17 of 100 right answers and ended with
# 20, 19 and 21 without the bonus, but 9, 0 and 0 with it
# ([evidence](../docs/evidence/08_rewards.md#a-bonus-for-each-key)).
#
# The runs with the bonus looked healthy: the reward they earned rose. Judge a model by a measure it
# isn't paid for, on prompts it hasn't seen. A KL term or early stopping can limit the damage, but
# only a better reward removes the cause. Pay only for what you want.
#
# ## Related methods
#
# *PPO* trains a second model, the critic, to predict the reward still to come, and computes each
# token's advantage from its predictions. GRPO uses the group's mean instead. *KTO* needs no pairs,
# only answers marked good or bad. *ORPO* adds a preference term to the fine-tuning loss and needs
# no reference. TRL has trainers for KTO and, under `trl.experimental`, for ORPO, but no longer for
# PPO.
#
# ## Take it with you
#
# In TRL's GRPO trainer, a reward is a function of the completions and the dataset's columns.
#
# ```python
# from datasets import Dataset
# from peft import LoraConfig
# from trl import GRPOConfig, GRPOTrainer
#
# MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# def ask(text):  # prompts are messages, so TRL applies the chat template
#     return [{"role": "user", "content": text}]
#
# asked = [ask("Describe the sea."), ask("What is a cat?")]
# data = Dataset.from_dict({"prompt": asked, "wanted": [8, 16]})
#
# def reward(completions, wanted, **columns):  # dataset columns supply what the reward needs
#     said = [len(c[0]["content"].split()) for c in completions]
#     return [1 / (1 + abs(words - n)) for words, n in zip(said, wanted)]
#
# args = GRPOConfig(
#     "grpo", num_generations=4, per_device_train_batch_size=4, max_completion_length=32,
#     learning_rate=1e-4, max_steps=2, bf16=False, report_to="none")
# lora = LoraConfig(r=1, lora_alpha=32, target_modules="all-linear")
# trainer = GRPOTrainer(MODEL, reward, args=args, train_dataset=data, peft_config=lora)
# trainer.train()
# trainer.save_model("my-lora")
# ```
# %% [markdown]
# ### Exercise 8.8 · Quiz
#
# ●○○ · 4 min · 4 points
#
# Only your first answer to each question counts. Then read the explanation.
#
# **q1. Why does DPO with LoRA need no second model in memory?**
#
# - (a) Its loss has no reference at all: the two answers are compared only with each other.
# - (b) The base under the adapter has not changed: without the adapter, the model is the reference.
# - (c) The reference's log-probabilities come with the pairs, computed once and stored.
# - (d) The adapter is so small that copying the whole model costs next to nothing.
#
# **q2. All eight answers to a prompt earn 0. What does this prompt teach the model in this step?**
#
# - (a) To stay as it is: the clip keeps all tokens at their old probabilities.
# - (b) To say something else: all eight answers become less likely, because their reward is the
#   lowest.
# - (c) Nothing useful: dividing by a standard deviation of zero gives the gradient a random
#   direction.
# - (d) Nothing: each answer is as good as the mean, so all advantages are zero.
#
# **q3. A run's reward rises from 0.4 to 0.9, even on held-out prompts, but none of the answers
# looks better than before. What do you do first?**
#
# - (a) Read the answers that earn the most: they show what the reward pays for besides quality.
# - (b) Take more samples per prompt, so that the advantages are less noisy.
# - (c) Lower the clip threshold: the policy has moved too far in each step and has overshot.
# - (d) Raise the rank: the adapter had too little room to learn what the reward asks for.
#
# **q4. A token in a bad answer ($A < 0$) is twice as likely as when it was sampled, and $\epsilon$
# is 0.2. What does the clipped objective do with this token?**
#
# - (a) It clips the ratio to 1.2, so the token no longer has a gradient in this step.
# - (b) It clips the ratio to 0.8, so that the token's probability is pulled down to that ratio.
# - (c) It keeps the ratio of 2, so the token has a gradient, which pulls it back down.
# - (d) It leaves the token out of the mean, because its sample is too old to say anything.


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
# - To compute an answer's log-probability, shift the labels by one and sum over its tokens,
#   excluding the prompt.
# - DPO compares what two answers have gained in log-probability since the start. With an adapter,
#   the starting model is still in memory. A falling loss shows that the model separates chosen from
#   rejected answers, not that its own answers are better.
# - GRPO makes the better answers in a group more likely. A group whose rewards are all equal
#   teaches the model nothing. Sampled answers can improve while greedy answers don't, so check
#   both.
# - Once a token's probability has moved far enough in the right direction, clipping zeroes its
#   gradient. With one step per sample, as here, that never happens.
# - A model learns what the reward pays for. Judge it by a measure it isn't paid for.

# %%
lab.score()

# %% tags=["experiment"]
if lab.experiment(
    "The result in one line", 0, needs=["8.1", "8.2", "8.3", "8.4", "8.5", "8.6", "8.7"]
):
    before, after = found["warm start"], found["paid right_intent, 12 steps"]
    first, last = (sum(tokens[name]) / 60 for name in ("before", "shorter, beta 0.1"))
    lab.headline(
        f"DPO: {first:.0f} tokens per answer -> {last:.0f}; GRPO, of 100 greedy answers: "
        f"{sum(before['greedy']):.0f} right intents -> {sum(after['greedy']):.0f}, "
        f"{sum(before['right'])} right answers -> {sum(after['right'])}"
    )
