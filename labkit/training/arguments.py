"""How a training on this machine is set up: adapter, the batch that fits, a base in 4 bits."""

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
    """An SFTConfig whose batch is made of what processes and accumulated steps hold.

    `asked` has a method, a batch (rows a step, over all processes), a learning_rate and a seed.
    """
    share, rest = divmod(asked.batch, n_processes)
    if rest:
        told = f"is not to be shared by {n_processes} processes"
        raise LabError(f"a batch of {asked.batch} rows {told}")
    try:
        micro = hardware.micro_batch(name, asked.method, share, n_processes, max_length)
    except (RuntimeError, ValueError):  # what cannot be simulated is trained a row at a time
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
    """A LoraConfig on all linear layers; `switches` are PEFT's own."""
    how = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"} | switches
    return LoraConfig(r=rank, lora_alpha=alpha, **how)


def in_4_bits() -> dict:
    """How `from_pretrained` loads the base of a QLoRA on this process's device."""
    from labkit.memory.adapted import in_4_bits
    from labkit.memory.settings import Settings

    where = hardware.device()
    kind = str(hardware.precision(where)).removeprefix("torch.")
    settings = Settings(method="qlora", dtype=kind)
    return {"quantization_config": in_4_bits(settings), "device_map": {"": where}}
