"""What a submission may use; the walls and the supervisor hold it to that."""

from dataclasses import dataclass

MIB = 2**20
LONGEST_SOURCE = 20_000  # characters of a cell that a feedback page shows
TIME_UP = "the time of the whole submission is used up"


@dataclass(frozen=True)
class Limits:
    """Bytes and processes are what a submission may add to the warm ones.

    Seconds of a cell, of an exercise and of all cells are the submission's own: those in which it
    computes or sleeps, but not those in which it waits for a core that others have. By the clock
    on the wall a cell or an exercise may take `crowding` times as long.

    `submission_seconds` are by the clock, all in all. Cells may use four fifths of them: that is
    `total_seconds` on a machine so busy that they get a quarter of a core. The last fifth is for
    the exercises, which take a second or two in the course's own labs.
    """

    cell_seconds: float = 20
    exercise_seconds: float = 20
    total_seconds: float = 120  # of all cells; then cells that no exercise needs get little or none
    crowding: float = 4
    submission_seconds: float = 600  # what was graded by then stands
    memory_bytes: int = 2048 * MIB
    processes: int = 64
    sockets: int = 512  # each holds up to 208 KiB of memory that counts as nobody's
    file_bytes: int = 64 * MIB
    disk_bytes: int = 256 * MIB
    reply_bytes: int = 32 * MIB
    notebook_bytes: int = 32 * MIB
