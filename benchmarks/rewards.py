"""Run dozens of lab 8's GRPO trainings: ranks, full fine-tuning, group sizes, hackable rewards.

    python benchmarks/rewards.py --study rank --rank 1 --seed 0
    OMP_NUM_THREADS=1 python benchmarks/rewards.py --runs 1

Each run is one row of labkit/measured/rewards.csv. Finished runs are not repeated, so the script
can be stopped and called again. Step, reward and warm start are the lab's own; the learning rate is
constant. On two cores, two processes with one thread each are faster than one with two.

Studies: `rank`, at three learning rates each; `group`, the same number of answers in groups of 4 or
16; `pay`, a reward that asks too little; `written`, more training on written answers from the same
start, by number of steps, to compare at equal score. `rank` is 0 for full fine-tuning, whose
weights are in bf16 with fp32 master weights. On another processor, rounding gives a different warm
start, and then all runs must be repeated.

Columns: `reward`, `exact`, `intent` and `keys` of the greedy answers to 100 held-out commands;
`before`, the same reward at the start; `kl`, nats per token from the start on 64 sampled answers to
held-out commands; `perplexity` on everyday English; `curve`, the paid reward of each step.
"""

import copy
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import studies
import torch

from labkit import tasks
from labkit.training import generation, loop, models, rollouts

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "rewards.csv"
NAMES = ("warm_start", "adapted", "adamw", "sampler", "earns", "grpo_step", "reward")
NAMES += ("parsed", "unseen_commands")
STEPS, UNSEEN = 12, 100
RATES = {"lora": (5e-4, 2e-4, 1e-3), "full": (2e-5, 1e-5, 5e-5)}  # the middle one first


@dataclass(frozen=True)
class Run:
    """One run from the warm start."""

    study: str
    rank: int
    learning_rate: float
    samples: int
    pay: str
    steps: int
    seed: int


def every_run():
    """Every run, the most telling first: one seed of all, then the others; then other rates."""
    for seed in (0, 1, 2):
        for rank in (1, 16, 0, 4, 64):
            rate = RATES["lora" if rank else "full"][0]
            yield Run("rank", rank, rate, 8, "honest", STEPS, seed)
        yield Run("pay", 16, RATES["lora"][0], 8, "bonus", STEPS, seed)
        for samples in (4, 16):
            yield Run("group", 16, RATES["lora"][0], samples, "honest", STEPS, seed)
        for steps in (4, 8, 12) if seed else (0, 4, 8, 12):  # 0 is the warm start itself
            yield Run("written", 16, RATES["lora"][0], 0, "", steps, seed)
    for seed in (0, 1, 2):
        for rank in (1, 16, 0, 4, 64):
            for rate in RATES["lora" if rank else "full"][1:]:
                yield Run("rank", rank, rate, 8, "honest", STEPS, seed)


@cache
def warm():
    """The lab's names, 100 unseen commands and the start's reward for them."""
    lab = studies.of_lab("08_rewards", *NAMES)
    lab["model"], lab["tokenizer"] = models.load()
    lab["start"] = lab["warm_start"](steps=14)
    lab |= {"adapted of the lab": lab["adapted"], "adamw of the lab": lab["adamw"]}
    unseen = lab["unseen_commands"]()
    return lab, unseen, scores(lab["start"], lab, unseen)["reward"]


def measure(run):
    """The row of one run."""
    begun, (lab, unseen, before) = time.perf_counter(), warm()
    lab["adapted"] = lab["adapted of the lab"] if run.rank else whole
    lab["adamw"] = lab["adamw of the lab"] if run.rank else Masters
    if run.study == "written":
        policy, curve = written(lab, run)
    else:
        policy, curve = rewarded(lab, run)
    found = {"before": before} | scores(policy, lab, unseen) | distances(policy, lab, unseen)
    text = " ".join(f"{value:.3f}" for value in curve)
    seconds = round(time.perf_counter() - begun)
    return vars(run) | found | {"seconds": seconds, "curve": text}


def rewarded(lab, run):
    """(the model after GRPO at a constant rate, the reward paid in each step)."""
    policy, sample = lab["adapted"](lab["start"], run.rank, run.seed), lab["sampler"](run.seed)
    score = lab["earns"](lab["reward"] if run.pay == "honest" else partial(bonus, lab))
    optimizer, home = lab["adamw"](policy, run.learning_rate), tasks.load("home").sort("intent")
    how, curve = (policy, optimizer, sample, score), []
    for prompts in rollouts.prompts(home, 64 // run.samples, run.steps, run.seed):
        curve.append(lab["grpo_step"](*how, prompts, run.samples)["reward"])
    return policy, curve


def bonus(lab, answer, wanted):
    """The lab's reward, and a fifth for each key that is named: 1 at most."""
    return min(1.0, lab["reward"](answer, wanted) + 0.2 * len(lab["parsed"](answer)))


def written(lab, run):
    """(the model after `run.steps` x 16 written answers at a constant rate, its losses)."""
    policy, losses = lab["adapted"](lab["start"], run.rank, run.seed), []
    optimizer = lab["adamw"](policy, run.learning_rate)
    home, trained = tasks.load("home"), [p for p in policy.parameters() if p.requires_grad]
    for batch in loop.batches(home, lab["tokenizer"], 16, run.steps, 100 + run.seed):
        losses.append(studies.step(policy, batch, optimizer, trained))
    return policy, losses


def scores(model, lab, unseen):
    """Means over held-out commands, greedily: the honest reward, exact, intent, keys named."""
    answers = generation.answers(model, lab["tokenizer"], unseen["messages"], max_new_tokens=40)
    both = list(zip(answers, unseen["answer"], strict=True))
    earned = [lab["reward"](*pair) for pair in both]
    means = {
        "reward": sum(earned),
        "exact": earned.count(1),
        "intent": sum(a.split(",")[0] == b.split(",")[0] for a, b in both),
        "keys": sum(len(lab["parsed"](text)) for text in answers),
    }
    return {name: round(value / len(both), 4) for name, value in means.items()}


@torch.no_grad()
def distances(policy, lab, unseen):
    """KL from the start on 64 of the policy's own answers, and perplexity on everyday English."""
    chance = torch.Generator(policy.device).manual_seed(0)
    rows = unseen.to_list()[:64]
    answers = rollouts.sample(policy, lab["tokenizer"], rows, 1, generator=chance)
    logp, mask = rollouts.logprobs(policy, answers)
    with policy.disable_adapter():
        gap = rollouts.logprobs(policy, answers)[0] - logp
    kl = ((gap.exp() - 1 - gap) * mask).sum() / mask.sum()  # never negative, as its mean isn't
    texts = [lab["tokenizer"](text)["input_ids"] for text in tasks.general()]
    rows = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in texts]
    logp, mask = rollouts.logprobs(policy, rows)
    perplexity = (-logp.sum() / mask.sum()).exp()
    return {"kl": round(kl.item(), 5), "perplexity": round(perplexity.item(), 3)}


def whole(base, rank, seed):
    """A copy of `base` whose linear layers are all trained; `disable_adapter` puts it back."""
    model = copy.deepcopy(base).requires_grad_(False)
    for layer in studies.linear(model).values():
        layer.weight.requires_grad_(True)
    shown = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in shown]

    @contextmanager
    def as_it_was():
        now = [p.data for p in shown]
        for p, value in zip(shown, start, strict=True):
            p.data = value
        try:
            yield
        finally:
            for p, value in zip(shown, now, strict=True):
                p.data = value

    model.disable_adapter = as_it_was
    return model


class Masters(torch.optim.AdamW):
    """AdamW on fp32 copies of a bf16 model's weights: small updates would be rounded away."""

    def __init__(self, model, rate):
        self.shown = [p for p in model.parameters() if p.requires_grad]
        masters = [p.detach().float().clone().requires_grad_() for p in self.shown]
        super().__init__(masters, rate, weight_decay=0.0)
        for p, master in zip(self.shown, masters, strict=True):
            # torch's cycles are not collected, so that a weight's hook must not hold the optimizer
            p.register_post_accumulate_grad_hook(partial(Masters._take, master))

    @staticmethod
    def _take(master, p):
        master.grad, p.grad = p.grad.float(), None

    def step(self, closure=None):
        """One step of the masters, clipped at 1, then of what is shown."""
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        super().step(closure)
        with torch.no_grad():
            for p, master in zip(self.shown, self.param_groups[0]["params"], strict=True):
                p.copy_(master)


if __name__ == "__main__":
    models.hush_libraries()
    only = ("study", "rank", "learning_rate", "samples", "seed")
    studies.work_off(__doc__.splitlines()[0], every_run(), measure, OUT, only)
