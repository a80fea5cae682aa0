"""Read an adapter's folder, find its base, and load them together."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.own.stages import RESULT

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Adapter:
    """A PEFT folder: its adapter_config.json, and the facts from `labkit train` ({} if none)."""

    folder: Path
    config: dict[str, Any]
    facts: dict[str, Any]

    @property
    def base(self) -> str:
        """The adapter's name for its base: a hub id or a folder."""
        return self.config.get("base_model_name_or_path") or ""

    @property
    def rank(self) -> int:
        """The adapter's largest rank."""
        return max([self.config.get("r", 1), *(self.config.get("rank_pattern") or {}).values()])

    @property
    def in_4_bits(self) -> bool:
        """Whether the adapter was trained on a 4-bit base."""
        return self.facts.get("settings", {}).get("method") == "qlora"


def read(folder: Path) -> Adapter:
    """Read the adapter in `folder`; LabError if there is none."""
    parts = []
    for name in ("adapter_config.json", RESULT):
        try:
            parts.append(json.loads((folder / name).read_text("utf-8")))
        except FileNotFoundError:
            parts.append({})
        except (OSError, ValueError) as error:
            raise LabError(f"{folder / name} cannot be read: {error}") from None
    if not parts[0] or not (folder / "adapter_model.safetensors").is_file():
        files = "adapter_config.json and adapter_model.safetensors"
        raise LabError(f"{folder} is not an adapter folder: it lacks {files}")
    return Adapter(folder, *parts)


def base_folder(adapter: Adapter, given: str) -> Path:
    """Find the base's folder: `given` (a name or a folder), else the one the adapter names."""
    from labkit.training import models

    if given:
        return models.path(given)
    if Path(adapter.base).is_dir():
        return Path(adapter.base)
    try:
        return models.of_hub(adapter.base)
    except LabError as error:
        raise LabError(f"the adapter's base: {error}; give its folder with --base FOLDER") from None


def tokenizer_of(adapter: Adapter, base: Path) -> tuple["PreTrainedTokenizerBase", set[int]]:
    """Load the tokenizer of the adapter or else the base, with a chat template and end tokens."""
    from labkit.training import models

    own = (adapter.folder / "tokenizer_config.json").is_file()
    return models.tokenizer(base, adapter.folder if own else None)


def beside(model: "PreTrainedModel", adapter: Adapter) -> "PeftModel":
    """Load the adapter onto the model, unmerged; LabError if the two don't fit."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter.folder).eval()
    except (RuntimeError, ValueError, KeyError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LabError(f"{adapter.folder} does not fit its base: {why}") from None
