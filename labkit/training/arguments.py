"""Configure a training run on this machine: adapter, batch size, 4-bit base."""

from typing import Any

from peft import LoraConfig
from trl import SFTConfig

from labkit.errors import LabError
from labkit.training import hardware


def arguments(
    name: str,
    asked: Any,
    n_processes: int,
    steps: int,
    max_length: int = 512,
    folder: str = "build/train",
) -> SFTConfig:
    """Make an SFTConfig that splits the batch over processes and accumulation steps.

    `asked` has a method, a batch (rows per step, over all processes), a learning_rate and a seed.
    LabError if the processes cannot share the batch evenly.
    """
    share, rest = divmod(asked.batch, n_processes)
    if rest:
        why = f"can't be split evenly over {n_processes} processes"
        raise LabError(f"a batch of {asked.batch} rows {why}")
    try:
        micro = hardware.micro_batch(name, asked.method, share, n_processes, max_length)
    except (LabError, RuntimeError, ValueError):  # this model cannot be simulated
        micro = 1
    return SFTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        learning_rate=asked.learning_rate,
        max_length=max_length,
        seed=asked.seed,
        report_to="none",
        **hardware.flags(hardware.device()),
    )


def lora(rank: int, alpha: float, **switches) -> LoraConfig:
    """Make a LoraConfig for all linear layers; `switches` are further LoraConfig arguments."""
    how = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"} | switches
    return LoraConfig(r=rank, lora_alpha=alpha, **how)


def in_4_bits(device: str | None = None) -> dict:
    """Arguments of `from_pretrained` for a 4-bit base on `device`, by default this process's."""
    from labkit.memory.adapted import in_4_bits
    from labkit.memory.settings import Settings

    where = device or hardware.device()
    kind = str(hardware.precision(where)).removeprefix("torch.")
    settings = Settings(method="qlora", dtype=kind)
    return {"quantization_config": in_4_bits(settings), "device_map": {"": where}}
