"""Lab 7's figures, probes, and its own file: 175 rows of a housing office, dirty on purpose.

`benchmarks/repairs.py` writes the file. It was made for this course and is in the public domain,
under CC0 1.0 (`labkit/tasks/LICENSE-CC0`).
"""

from pathlib import Path

REPAIRS = Path(__file__).with_name("repairs.jsonl")
