"""Choose what this machine trains with: device, number formats, model and batch."""

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
RESERVED_BYTES = 1.5 * 2**30  # bytes of a card for the CUDA context, workspaces and fragmentation
# limits of a rehearsal: training steps, answer tokens, rows of data; the model's layers and MLP
# width
REHEARSED = {"steps": 3, "tokens": 4, "rows": 4, "layers": 16, "mlp": 256}


def device() -> str:
    """`"cuda"` if there is an NVIDIA GPU, else `"cpu"`."""
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

    A T4 doesn't use fp16 weights: fp16's range is too small for gradients without a gradient
    scaler, which a plain loop lacks, and the scaler refuses trained weights in fp16.
    """
    return torch.bfloat16 if precision(device) == torch.bfloat16 else torch.float32


def attention(device: str) -> str | None:
    """The value of transformers' `attn_implementation`; None is its own choice for the model.

    Eager on a CPU: on sequences as short as the labs', the fused kernel's backward pass is slow.
    """
    return "eager" if device == "cpu" else None


def flags(device: str) -> dict[str, bool]:
    """Three SFTConfig switches for this machine; mixed precision is on if there is a GPU."""
    kind = precision(device)
    return {
        "use_cpu": device == "cpu",
        "bf16": device == "cuda" and kind == torch.bfloat16,
        "fp16": device == "cuda" and kind == torch.float16,
    }


def one_card() -> None:
    """Show this process one card, since Trainer would use all. No effect once CUDA is in use."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def processes() -> PartialState:
    """The state of this process, alone or under `accelerate launch`; its card becomes "cuda"."""
    from accelerate import PartialState

    if "LOCAL_RANK" not in os.environ:  # no launcher: Trainer would spread over all cards
        one_card()
    return PartialState(cpu=device() == "cpu")


def rehearsal() -> bool:
    """Whether LABKIT_REHEARSAL is set; labs then only test that each cell runs (`make test`)."""
    return os.environ.get("LABKIT_REHEARSAL", "0") != "0"


def rehearsed(what: str, n: int) -> int:
    """Limit n in a rehearsal; `what` is training "steps", answer "tokens" or "rows" of data."""
    return min(n, REHEARSED[what]) if rehearsal() else n


def wait() -> None:
    """Wait until the card has finished, so that timings include its work."""
    if device() == "cuda":
        torch.cuda.synchronize()


def card_bytes() -> int:
    """The card's memory in bytes; 0 without a card."""
    return torch.cuda.get_device_properties(0).total_memory if device() == "cuda" else 0


def default_model() -> str:
    """Choose the model to train by default: `LABKIT_MODEL`, or else by the card's memory.

    On a CPU, this is the smallest model. On a card, it is the largest whose LoRA step of 4 x 512
    tokens leaves a fifth of the memory free.
    """
    if chosen := os.environ.get("LABKIT_MODEL"):
        return chosen
    room = 0.8 * card_bytes()
    fitting = (name for name in LARGER if room and _peak(name, "lora", batch=4) <= room)
    return next(fitting, SMALLEST)


def largest_qlora(n_bytes: int) -> str | None:
    """Find the largest model in `KNOWN` that QLoRA can train in `n_bytes`; None if none fits.

    Assumes one sequence of 512 tokens, checkpointing, r=16 on all linear layers, paged 8-bit AdamW.
    """
    saving = {"checkpointing": True, "optim": "paged_adamw_8bit"}
    fitting = [n for n in KNOWN if _peak(n, "qlora", **saving) <= n_bytes - RESERVED_BYTES]
    return fitting[-1] if fitting else None


def micro_batch(name: str, method: str, total: int, n_processes: int = 1, seq: int = 512) -> int:
    """Find the largest divisor of `total` rows of `seq` tokens that fits one process; at least 1.

    The other rows are accumulated, so the gradient is the same. The limit is based on total memory
    (the card's, or half of the host's), not free memory, so that all processes agree.
    """
    room = 0.8 * card_bytes() or 0.5 * psutil.virtual_memory().total / n_processes
    sizes = [n for n in range(total, 1, -1) if total % n == 0]
    return next((n for n in sizes if _peak(name, method, batch=n, seq=seq) <= room), 1)


def _peak(name, method, **more):
    """Compute the peak bytes of a training step of `name` on this machine in closed form.

    Architectures without a closed form are simulated, which takes seconds. The step is one of
    `finetune`: packed rows store attention scores as eager attention does, and bf16 weights need
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
