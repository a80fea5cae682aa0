"""The short runs of lab 5: `home` in 24 steps of 4 commands, as in benchmarks/rank_sweep.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch

from labkit import live, measured, tasks
from labkit.memory import configs
from labkit.memory.measure import track
from labkit.training import finetuning, generation, hardware, loop, models
from labkit.training.arguments import lora

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from trl import SFTConfig

STEPS, BATCH = 24, 4
PLACES = {
    "q, v": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "MLPs": ("gate_proj", "up_proj", "down_proj"),
}
PLACES["all-linear"] = PLACES["attention"] + PLACES["MLPs"]


def shapes(name: str, place: str) -> dict[str, tuple[int, int]]:
    """{dotted name: (d_out, d_in)} of model `name`'s projections in PLACES[place]."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configs.find(name))
    chosen = [(n, m) for n, m in model.named_modules() if n.split(".")[-1] in PLACES[place]]
    return {n: tuple(m.weight.shape) for n, m in chosen}


def arguments(
    learning_rate: float, seed: int, steps: int = STEPS, batch: int = BATCH, **switches
) -> SFTConfig:
    """An SFTConfig: linear decay to zero, no warm-up, clipping at 1; `switches` are its own."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir="build/short",
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        seed=seed,
        report_to="none",
        **{"use_cpu": hardware.device() == "cpu", "bf16": False} | switches,
    )


def train(
    rank: int, alpha: float, learning_rate: float, seed: int, task: str = "home"
) -> finetuning.Result:
    """LoRA of `task` on 96 rows, a `finetuning.Result`; the seed draws A and the data."""
    model, tokenizer = models.load()
    commands = tasks.load(task).shuffle(seed=seed).select(range(STEPS * BATCH))
    title = f"{task}, r={rank}, alpha={alpha}, learning rate {learning_rate:g}"
    torch.manual_seed(seed)
    args = arguments(learning_rate, seed)
    return finetuning.finetune(model, tokenizer, commands, lora(rank, alpha), args, title)


def gradient(layer: int = 15, name: str = "q_proj") -> torch.Tensor:
    """The gradient (d_out, d_in) of one attention projection, of four commands' loss, in fp32."""
    model, tokenizer = models.load(dtype=torch.float32)
    model.requires_grad_(False)
    weight = model.model.layers[layer].self_attn.get_submodule(name).weight.requires_grad_(True)
    batch = next(loop.batches(tasks.load("home"), tokenizer, BATCH, steps=1))
    loop.answer_loss(model, batch, autocast=False).backward()
    return weight.grad.cpu()


def judged(n: int) -> Dataset:
    """The first n of the 100 unseen commands that runs are judged by."""
    return tasks.load("home", "test").shuffle(seed=1).select(range(n))


def measure(rank: int, alpha: float, learning_rate: float, seed: int) -> dict:
    """One run as a row of figures (`figures`); the same settings again come from the cache."""
    settings = dict(rank=rank, alpha=alpha, learning_rate=learning_rate, seed=seed)
    return measured.remember(figures, **settings)


def figures(rank: int, alpha: float, learning_rate: float, seed: int) -> dict:
    """Parameters, peak of a step, seconds, size of the file, held-out loss, share exactly right."""
    tuned, (_, tokenizer) = train(rank, alpha, learning_rate, seed), models.load()
    unseen = judged(40)
    told = generation.answers(tuned.model, tokenizer, unseen["messages"])
    exact = [a == b for a, b in zip(told, unseen["answer"], strict=True)]
    file = tuned.folder / "adapter_model.safetensors"
    return {
        "trainable": sum(p.numel() for n, p in tuned.model.named_parameters() if "lora_" in n),
        "peak_mb": round(step_cost(lora(rank, alpha))[0] / 1e6),
        "seconds": round(tuned.seconds, 1),
        "adapter_mb": round(file.stat().st_size / 1e6, 1),
        "loss": round(loop.held_out_loss(tuned.model, tokenizer, judged(100)), 4),
        "exact": sum(exact) / len(exact),
    }


def step_cost(config: LoraConfig, repeats: int = 1) -> tuple[int, float]:
    """Peak bytes over two training steps of 4 commands, and the seconds of a third, unwatched.

    The third is taken `repeats` times, and the fastest counts.
    """
    from peft import get_peft_model

    base, tokenizer = models.load()
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    batches = list(loop.batches(tasks.load("home"), tokenizer, BATCH, steps=3))

    def step(batch):
        loop.answer_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    with track(model, optimizer) as peak:
        for batch in batches[:2]:
            step(batch)
    seconds = []
    for _ in range(repeats):
        hardware.wait()
        begun = time.perf_counter()
        step(batches[2])
        hardware.wait()
        seconds.append(time.perf_counter() - begun)
    return peak.bytes, min(seconds)


def few_examples(rank: int, alpha: float, learning_rate: float, seed: int) -> pd.DataFrame:
    """`memorise`, as a DataFrame; the same settings again come from the cache."""
    settings = dict(rank=rank, alpha=alpha, learning_rate=learning_rate, seed=seed)
    rows = measured.remember(memorise, **settings)["rows"]
    return pd.DataFrame(rows, columns=["rank", "step", "train_loss", "held_out_loss"])


def memorise(
    rank: int,
    alpha: float,
    learning_rate: float,
    seed: int,
    n: int = 16,
    steps: int = 40,
    every: int = 8,
) -> dict:
    """Losses while LoRA sees n commands again and again: rows of rank, step, train, held out."""
    from peft import get_peft_model

    base, tokenizer = models.load()
    few, unseen = tasks.load("home").shuffle(seed=seed).select(range(n)), judged(60)
    torch.manual_seed(seed)
    model = get_peft_model(base, lora(rank, alpha)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, weight_decay=0.0, fused=True)
    rows, batches = [], list(loop.batches(few, tokenizer, BATCH, steps, seed))
    for step, batch in enumerate(live.progress(batches, f"r={rank}, {n} commands"), start=1):
        loop.answer_loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0 or step == len(batches):
            losses = [loop.held_out_loss(model, tokenizer, part) for part in (few, unseen)]
            rows.append([rank, step, *losses])
    return {"rows": rows}


def by_rule(runs: pd.DataFrame) -> dict[str, dict[int, pd.DataFrame]]:
    """{rule: {rank: spread over seeds at each learning rate}} of the file's rank study."""
    runs = runs[runs["study"] == "rank"]
    stable, same = runs["variant"] == "rslora", runs["rank"] == 16  # r=16 is in all three
    frames = {
        "alpha = 32": runs[~stable & (runs["alpha"] == 32)],
        "alpha = 2r": runs[~stable & (runs["alpha"] == 2 * runs["rank"])],
        "rank-stabilised": runs[stable | same],
    }
    return {
        rule: {rank: measured.spread(part) for rank, part in frame.groupby("rank")}
        for rule, frame in frames.items()
    }


def grid(
    similarity: Callable[..., float],
    A1: torch.Tensor,
    A2: torch.Tensor,
    columns: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
) -> pd.DataFrame:
    """`similarity(A1, A2, i, j)` as a DataFrame: every i of A1's rank, some j up to A2's."""
    columns = [j for j in columns if j <= len(A2)]
    rows = range(1, len(A1) + 1)
    values = [[similarity(A1, A2, i, j) for j in columns] for i in rows]
    return pd.DataFrame(values, index=rows, columns=columns)


def factors(
    tuned: PeftModel, layer: int = 15, name: str = "q_proj"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one adapted attention projection: A (r, d_in), and (r, d_out) that spans as (B A)ᵀ does.

    With Aᵀ = Q R, Q orthonormal, B A and B Rᵀ have the same left singular vectors and values.
    """
    module = tuned.model.get_base_model().model.layers[layer].self_attn.get_submodule(name)
    A, B = (part["default"].weight.detach().float() for part in (module.lora_A, module.lora_B))
    return A, torch.linalg.qr(A.T).R @ B.T
