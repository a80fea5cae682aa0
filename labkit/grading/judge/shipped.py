"""The code that the judge ships into a submission's process, compiled once."""

import marshal
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PARTS = ("errors", "contract.kept", "contract.calls", "contract.verdict")
PARTS += ("contract",)
ANSWERING = ("grading.wire", "grading.inside.answer")
ANSWERING += ("probes.tiny", "probes.watch", "probes.models", "probes.adapters", "probes.how")
ANSWERING += ("probes.serving", "probes.policies", "probes.gradients")


@cache
def shipped(stem: str) -> bytes:
    """The contract, the wire and a lab's probes as bytes, for `runner.load`."""
    names = [f"labkit.{part}" for part in (*PARTS, *ANSWERING, f"probes.lab{stem[:2]}")]
    sources = {name: Path(find_spec(name).origin).read_text(encoding="utf-8") for name in names}
    return marshal.dumps([(n, compile(text, f"<{n}>", "exec")) for n, text in sources.items()])
