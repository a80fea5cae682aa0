"""Compare published memory peaks of real GPU training with simulations of the same runs.

Each row lists its assumptions. Units are as published: litgpt counts 10^9 bytes and reports
`torch.cuda.max_memory_allocated`. PEFT's benchmark counts GiB and reports `max_memory_reserved`,
which is all memory held by the allocator, including gaps and rounding.

    python benchmarks/memory_published.py
"""

import argparse
import contextlib
from unittest import mock

import torch

from labkit.memory import configs
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate
from labkit.training import models

LITGPT = "litgpt, tutorials/finetune_lora.md, A100, Alpaca, micro-batch 1"
PEFT = "PEFT, method_comparison/MetaMathQA, L40S, batch 4, at most 768 tokens"

# litgpt's script: r 8 on q and v, dropout .05, everything in bf16 ("bf16-true"), 128 sequences a
# step (so gradients are held), its first sequence the longest of Alpaca: 1,304 Llama tokens.
# Its head works in chunks but keeps all logits, in bf16: 8 bytes a logit at the loss, not 12.
litgpt = Settings(
    rank=8,
    targets="q_proj,v_proj",
    dropout=0.05,
    adapter_dtype="bfloat16",
    autocast=False,
    optim="adamw_torch",
    accumulation=2,
    seq=1304,
)
# PEFT's script: bf16 base, fp32 adapters, no autocast; a batch is padded to its longest row, and
# the highest peak is that of four rows at the limit of 768 tokens.
peft = Settings(
    batch=4, seq=768, padded=True, autocast=False, optim="adamw_torch", targets="q_proj,v_proj"
)
MLP = "gate_proj,up_proj,down_proj"
FULL = {"method": "full", "dtype": "bfloat16"}
ROWS = [  # source, model, settings, published, unit
    (LITGPT, "llama-2-7b", litgpt, 21.30, 1e9),
    (LITGPT, "llama-2-13b", litgpt, 38.12, 1e9),
    (LITGPT, "llama-2-7b", litgpt.but(method="qlora", double_quant=False), 14.14, 1e9),
    (LITGPT, "llama-2-7b", litgpt.but(method="qlora"), 13.84, 1e9),
    (LITGPT, "llama-2-13b", litgpt.but(method="qlora", double_quant=False), 23.14, 1e9),
    (PEFT, "llama-3.2-3b", peft.but(**FULL), 36.2, 2**30),
    (PEFT, "llama-3.2-3b", peft.but(rank=32), 20.8, 2**30),
    (PEFT, "llama-3.2-3b", peft.but(rank=64), 21.0, 2**30),
    (PEFT, "llama-3.2-3b", peft.but(rank=10, targets=MLP), 23.0, 2**30),
]


@contextlib.contextmanager
def bitsandbytes_of_2023():
    """Until 0.43.2 (pull request 1270, July 2024) a 4-bit layer kept its input for no use."""
    from bitsandbytes.autograd import _functions

    forward = _functions.MatMul4Bit.forward

    def keeping(ctx, A, *args, **kwargs):
        ctx.kept_for_nothing = A
        return forward(ctx, A, *args, **kwargs)

    with mock.patch.object(_functions.MatMul4Bit, "forward", staticmethod(keeping)):
        yield


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    models.hush_libraries()
    print(f"{'model':<13} {'settings':<46} {'published':>9} {'simulated':>9}   error")
    for source, name, settings, published, unit in ROWS:
        config = configs.find(name)
        variants = {"": contextlib.nullcontext()}
        if settings.method == "qlora":
            variants[", inputs kept"] = bitsandbytes_of_2023()
        for note, libraries in variants.items():
            with libraries:
                peak = simulate(config, settings).peak / unit
            double = " double quant" * (settings.method == "qlora" and settings.double_quant)
            rank = "" if settings.method == "full" else f" r={settings.rank}"
            what = f"{source.split(',')[0]} {settings.method}{rank}{double}{note}"
            off = peak / published - 1
            print(f"{name:<13} {what:<46} {published:>9.2f} {peak:>9.2f} {off:>+7.1%}", flush=True)
    print(f"torch {torch.__version__}")


if __name__ == "__main__":
    main()
