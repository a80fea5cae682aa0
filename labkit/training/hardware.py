"""What this machine trains with: device, number formats, model and batch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from accelerate import PartialState

SMALLEST = "smollm2-135m"  # the model of the labs
LARGER = ("smollm2-1.7b", "smollm2-360m")  # candidates of `default_model`, in this order
KNOWN = ("smollm2-1.7b", "llama-2-7b", "llama-2-13b", "llama-2-70b")  # by size, for `largest_qlora`
KEPT_FREE = 1.5 * 2**30  # bytes of a card for CUDA's context, workspaces and gaps
# limits of a rehearsal: training steps, answer tokens, rows of data; layers and MLP width of the
# model
REHEARSED = {"steps": 3, "tokens": 4, "rows": 4, "layers": 16, "mlp": 256}


def device() -> str:
    """`"cuda"` where there is an NVIDIA GPU, else `"cpu"`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(device: str) -> torch.dtype:
    """The dtype to multiply in: bf16 if the hardware supports it, fp16 on a T4, else fp32."""
    if device == "cuda":
        ampere = torch.cuda.get_device_capability()[0] >= 8
        return torch.bfloat16 if ampere else torch.float16
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return torch.bfloat16 if fast else torch.float32


def weights(device: str) -> torch.dtype:
    """The dtype to store weights in: bf16 if the hardware multiplies it, else fp32.

    Not fp16 on a T4: its range is too small for gradients without a gradient scaler, which a plain
    loop lacks, and the scaler refuses trained weights in fp16.
    """
    return torch.bfloat16 if precision(device) == torch.bfloat16 else torch.float32


def attention(device: str) -> str:
    """transformers' `attn_implementation`.

    Eager on a CPU: on sequences as short as the labs', a training step takes 1.03 s instead of 1.17
    s with the fused kernel, whose backward is slow.
    """
    return "eager" if device == "cpu" else "sdpa"


def flags(device: str) -> dict[str, bool]:
    """SFTConfig's three switches for this machine: mixed precision if there is a GPU."""
    kind = precision(device)
    return {
        "use_cpu": device == "cpu",
        "bf16": device == "cuda" and kind == torch.bfloat16,
        "fp16": device == "cuda" and kind == torch.float16,
    }


def one_card() -> None:
    """Show this process one card: Trainer would use all. No effect once CUDA is in use."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def processes() -> PartialState:
    """This process among those of `accelerate launch`, or alone; its own card becomes "cuda"."""
    from accelerate import PartialState

    if "LOCAL_RANK" not in os.environ:  # no launcher: Trainer would spread over all cards
        one_card()
    return PartialState(cpu=device() == "cpu")


def rehearsal() -> bool:
    """Whether LABKIT_REHEARSAL is set: labs then only show that each cell runs (`make test`)."""
    return os.environ.get("LABKIT_REHEARSAL", "0") != "0"


def rehearsed(what: str, n: int) -> int:
    """n "steps" of a training, "tokens" of an answer or "rows" of data; few in a rehearsal."""
    return min(n, REHEARSED[what]) if rehearsal() else n


def wait() -> None:
    """Wait until the card has finished, so that timings include its work."""
    if device() == "cuda":
        torch.cuda.synchronize()


def card_bytes() -> int:
    """Memory of the card in bytes; 0 without one."""
    return torch.cuda.get_device_properties(0).total_memory if device() == "cuda" else 0


def default_model() -> str:
    """The model to train by default: `LABKIT_MODEL`, else by the card's memory.

    On a CPU the smallest. On a card the largest whose LoRA step of 4 x 512 tokens leaves a fifth of
    the memory free.
    """
    if chosen := os.environ.get("LABKIT_MODEL"):
        return chosen
    room = 0.8 * card_bytes()
    fitting = (name for name in LARGER if room and _peak(name, "lora", batch=4) <= room)
    return next(fitting, SMALLEST)


def largest_qlora(n_bytes: int) -> str | None:
    """The largest of `KNOWN` that QLoRA trains on a card of `n_bytes`; None if none fits.

    One sequence of 512 tokens, checkpointed, r=16 on all linear layers, paged 8-bit AdamW.
    """
    saving = {"checkpointing": True, "optim": "paged_adamw_8bit"}
    fitting = [n for n in KNOWN if _peak(n, "qlora", **saving) <= n_bytes - KEPT_FREE]
    return fitting[-1] if fitting else None


def micro_batch(name: str, method: str, total: int, n_processes: int = 1, seq: int = 512) -> int:
    """The largest of `total`, `total` / 2, … rows of `seq` tokens that fit one process.

    The other rows are accumulated, so the gradient is the same. It counts all memory, not the free
    memory, so that processes agree: of the card, or half of the host's.
    """
    room = 0.8 * card_bytes() or 0.5 * psutil.virtual_memory().total / n_processes
    while total % 2 == 0 and _peak(name, method, batch=total, seq=seq) > room:
        total //= 2
    return total


def _peak(name, method, **more):
    """Peak bytes of a training step of model `name` on this machine, by the closed form.

    Architectures that it doesn't cover are simulated, which takes seconds. The step is
    `finetune`'s: packed rows store attention scores as eager attention does, and bf16 weights need
    no autocast.
    """
    from labkit.memory import budget, configs
    from labkit.memory.dimensions import NoClosedForm
    from labkit.memory.settings import Settings
    from labkit.memory.simulate import simulate

    where = device()
    how = {
        "method": method,
        "dtype": str(weights(where)).removeprefix("torch."),
        "attention": "eager",
        "autocast": weights(where) != precision(where),
    }
    config, settings = configs.find(name), Settings(**how | more)
    try:
        return budget.closed_form(config, settings).peak
    except NoClosedForm:
        return simulate(config, settings).peak
