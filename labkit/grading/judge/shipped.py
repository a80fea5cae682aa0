"""The code that the judge ships into a submission's process, compiled once."""

import marshal
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PARTS = (  # in the order of their imports
    *("errors", "contract.hints", "contract.kept", "contract.calls", "contract.verdict"),
    *("contract", "grading.wire", "grading.inside.answer", "probes.tiny", "probes.watch"),
    *("probes.models", "probes.adapters", "probes.how", "probes.serving", "probes.policies"),
    "probes.gradients",
)


@cache
def shipped(stem: str) -> bytes:
    """The contract, the wire and a lab's probes as bytes, for `runner.load`."""
    names = [f"labkit.{part}" for part in (*PARTS, f"probes.lab{stem[:2]}")]
    sources = {name: Path(find_spec(name).origin).read_text(encoding="utf-8") for name in names}
    return marshal.dumps([(n, compile(text, f"<{n}>", "exec")) for n, text in sources.items()])
