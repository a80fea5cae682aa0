"""The settings of a training run on a user's file, and the key that identifies the run."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit.errors import LabError


@dataclass(frozen=True)
class Asked:
    """The command's options; `n_steps` resolves `steps` or `epochs` of 0."""

    file: Path
    out: Path
    test: Path | None = None
    model: str = ""
    method: str = "lora"
    rank: int = 8
    steps: int = 0
    epochs: int = 0
    batch: int = 8
    learning_rate: float = 1e-3
    seed: int = 0
    dtype: str = "machine"
    max_length: int = 512
    held_out: float = 0.2
    base_id: str = ""
    drop_bad: bool = False

    def n_steps(self, n_rows: int) -> int:
        """Steps on `n_rows` rows: as given, or from epochs; by default 3 epochs but at least 60."""
        per_epoch = -(-n_rows // self.batch)
        return self.steps or per_epoch * self.epochs or max(60, 3 * per_epoch)

    def plain(self) -> dict:
        """The settings that a result depends on, as plain data without paths."""
        return {k: v for k, v in asdict(self).items() if k not in ("file", "out", "test", "model")}


def key(asked: Asked, data: dict, model: Path) -> str:
    """Hash data, settings and model: a run resumes unfinished work that has the same key."""
    files = sorted((f.name, f.stat().st_size) for f in model.iterdir() if f.is_file())
    config = (model / "config.json").read_text("utf-8")
    parts = {"settings": asked.plain(), "data": data, "files": files, "config": config}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def base_name(asked: Asked, name: str) -> tuple[str, bool]:
    """The adapter's name for its base, and whether that is the base's hub id."""
    from labkit.training import models

    known = asked.base_id or models.hub_id(name)
    if asked.base_id and asked.base_id.count("/") != 1:
        raise LabError(f"--base-id {asked.base_id!r}: a hub id has the form ORG/NAME")
    return known or Path(name).resolve().name, bool(known)
