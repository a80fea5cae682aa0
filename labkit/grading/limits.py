"""What a submission may use."""

from dataclasses import dataclass

MIB = 2**20
LONGEST_SOURCE = 20_000  # characters of a cell that a feedback page shows


@dataclass(frozen=True)
class Limits:
    """Seconds are wall time; bytes and processes are what a submission may add to the warm ones."""

    cell_seconds: float = 20
    exercise_seconds: float = 20
    total_seconds: float = 120  # of all cells; exercises have their own
    memory_bytes: int = 2048 * MIB
    processes: int = 64
    sockets: int = 512  # each holds up to 208 KiB of memory that counts as nobody's
    file_bytes: int = 64 * MIB
    disk_bytes: int = 256 * MIB
    reply_bytes: int = 32 * MIB
    notebook_bytes: int = 32 * MIB
