"""Limits on what a submission may use, which the walls and the supervisor enforce."""

from dataclasses import dataclass

MIB = 2**20
LONGEST_SOURCE = 20_000  # characters of a cell on a feedback page
TIME_UP = "the submission's total time is used up"


@dataclass(frozen=True)
class Limits:
    """Bytes and processes are counted on top of those of the warm process.

    Seconds of a cell, of an exercise and of all cells are the submission's own time: it counts
    while computing or sleeping, but not while waiting for a busy core. In real time a cell or an
    exercise may take `crowding` times as long.

    `submission_seconds` is the real time for everything. Cells may use four fifths of it: enough
    for `total_seconds` on a machine so busy that they get a quarter of a core. The last fifth is
    for the exercises, which take a second or two in the course's own labs.
    """

    cell_seconds: float = 20
    exercise_seconds: float = 20
    total_seconds: float = 120  # of all cells; after that, cells that no exercise needs get little
    crowding: float = 4
    submission_seconds: float = 600  # what was graded by then counts
    memory_bytes: int = 2048 * MIB
    processes: int = 64
    sockets: int = 512  # each has up to 208 KiB of memory that no process is charged for
    file_bytes: int = 64 * MIB
    disk_bytes: int = 256 * MIB
    reply_bytes: int = 32 * MIB
    notebook_bytes: int = 32 * MIB
