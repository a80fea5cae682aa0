"""A notebook's session on disk: the cells of passed exercises, for `lab.resume()`.

Each notebook has one file in the cache. The file is not trusted: its cells run and are checked
again.
"""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

from IPython import get_ipython

from labkit import contract, download, reference
from labkit.files import whole


class Watch:
    """Records the checks' verdicts after each cell that a learner runs."""

    def __init__(self, stem: str):
        self.stem, self.seen = stem, {}

    def __call__(self, *_) -> None:
        """Rewrite the file if a check has run since the last cell."""
        records = contract.session.records
        new = {id: r for id, r in records.items() if self.seen.get(id) is not r}
        self.seen = dict(records)
        path = place(self.stem)
        if not path or not any(record["status"] in contract.STANDS for record in new.values()):
            return
        cells = list(filter(None, get_ipython().history_manager.input_hist_parsed))
        found = saved(self.stem)
        for id, record in new.items():
            sources = _sources(cells, contract.NAMES[id])
            if record["status"] in contract.STANDS and (sources or record["status"] != "passed"):
                found[id] = {"status": record["status"], "cells": sources}
        with (
            contextlib.suppress(OSError),
            whole(path) as part,
        ):  # ignore a full disk
            part.write_text(json.dumps(found), "utf-8")


def watch(stem: str) -> None:
    """Save the session after each cell; starting a lab again does not register a second watch."""
    events = get_ipython().events
    for other in [f for f in events.callbacks["post_run_cell"] if isinstance(f, Watch)]:
        events.unregister("post_run_cell", other)
    events.register("post_run_cell", Watch(stem))


def saved(stem: str) -> dict[str, dict]:
    """`{exercise id: {"status", "cells"}}` of this notebook's last session; {} if there is none."""
    path = place(stem)
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        found = json.loads(path.read_text("utf-8"))
        whole = {id: {"status": r["status"], "cells": [*r["cells"]]} for id, r in found.items()}
        return {id: entry for id, entry in whole.items() if entry["status"] in contract.STANDS}
    return {}


def place(stem: str) -> Path | None:
    """This notebook's session file; None if it is not run by a learner.

    JupyterLab and VS Code pass the notebook's path to the kernel; `labkit run` and tests do not.
    """
    names = get_ipython().user_ns
    where = os.environ.get("JPY_SESSION_NAME") or names.get("__vsc_ipynb_file__")
    where = "colab" if "google.colab" in sys.modules else where
    if not where:
        return None
    name = f"{stem}-{hashlib.sha256(where.encode()).hexdigest()[:8]}.json"
    return download.cache_dir() / "sessions" / name


def _sources(cells, names):
    """The latest cells that define `names` and the names those use, imports first."""
    if set(names) - set().union(*map(reference.defined, cells)):
        return []
    head, *rest = ["", *reference.needed(cells[::-1], names)]  # the last of two definitions counts
    if rest and rest[0] not in cells:
        head, *rest = rest
    return [*filter(None, [head]), *rest[::-1]]
