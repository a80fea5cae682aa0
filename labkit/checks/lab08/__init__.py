"""Checks of lab 8. The reference is torch's own losses, a closed form in fp64, or an invariant.

That the closed forms are TRL's is what `tests/labs/test_trl_agrees.py` shows.
"""

from labkit.checks.lab08.dpo_loss import expect_dpo
from labkit.checks.lab08.group_advantages import expect_advantages
from labkit.checks.lab08.grpo_loss import expect_clipped
from labkit.checks.lab08.reference_logprobs import expect_reference
from labkit.checks.lab08.reward import expect_reward
from labkit.checks.lab08.sequence_logprob import expect_logprobs
from labkit.checks.quiz import judge
from labkit.contract import exercise, generator


@exercise("8.1", points=2)
def logprobs(sequence_logprob):
    """torch's cross-entropy of each answer: shifted by one, summed, without -100"""
    expect_logprobs(sequence_logprob, generator())


@exercise("8.2", points=3)
def dpo(dpo_loss):
    """the loss and the gradient of TRL's, and numbers at margins of a thousand nats"""
    expect_dpo(dpo_loss, generator())


@exercise("8.3", points=3)
def reference(reference_logprobs):
    """what the base gives; the model is as before, after an exception too"""
    expect_reference(reference_logprobs, generator())


@exercise("8.4", points=2)
def advantages(group_advantages):
    """TRL's; a group whose rewards are equal gives zeros"""
    expect_advantages(group_advantages, generator())


@exercise("8.5", points=4)
def clipped(grpo_loss):
    """the loss and the gradient of TRL's, clipped on the right side for either sign"""
    expect_clipped(grpo_loss, generator())


@exercise("8.6", points=3)
def rewards(reward):
    """1 for equal data alone, part for right keys, and naming every key does not pay"""
    expect_reward(reward, generator())


@exercise("8.7", points=4)
def quiz(quiz):
    """four questions"""
    return judge(quiz, "08")
