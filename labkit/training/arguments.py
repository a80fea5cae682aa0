"""How a training on this machine is set up: the batch that fits, 4 bits for a QLoRA's base."""

from trl import SFTConfig

from labkit.errors import LabError
from labkit.training import hardware


def arguments(
    name: str,
    method: str,
    batch: int,
    n_processes: int,
    steps: int,
    learning_rate: float,
    seed: int,
    max_length: int = 512,
    folder: str = "build/train",
) -> SFTConfig:
    """An SFTConfig that makes `batch` rows of what processes and accumulated steps hold."""
    if batch % n_processes:
        raise LabError(f"a batch of {batch} rows is not to be shared by {n_processes} processes")
    share = batch // n_processes
    try:
        micro = hardware.micro_batch(name, method, share, n_processes, max_length)
    except (RuntimeError, ValueError):  # what cannot be simulated is trained a row at a time
        micro = 1
    return SFTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        learning_rate=learning_rate,
        max_length=max_length,
        seed=seed,
        report_to="none",
        **hardware.flags(hardware.device()),
    )


def in_4_bits() -> dict:
    """How `from_pretrained` loads the base of a QLoRA on this process's device."""
    from labkit.memory.adapted import in_4_bits
    from labkit.memory.settings import Settings

    where = hardware.device()
    kind = str(hardware.precision(where)).removeprefix("torch.")
    settings = Settings(method="qlora", dtype=kind)
    return {"quantization_config": in_4_bits(settings), "device_map": {"": where}}
