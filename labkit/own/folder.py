"""Write the adapter's folder, portable because it names its base by hub id, not by path."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.own.stages import RESULT

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [lora, lora-labs]
---
# {title}

A LoRA adapter for `{base}`, made by `labkit train`.{unknown}

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model = AutoPeftModelForCausalLM.from_pretrained("{title}")
tokenizer = AutoTokenizer.from_pretrained("{title}")
```

If the base is in a folder, load it from there, then call
`PeftModel.from_pretrained(base, "{title}")`. Prompt with the tokenizer's chat template, {template}

## Scores

{n_held} rows were held out{from_file}, grouped by prompt. The models answered {asked} of them.

{scores}

exact: share of exact matches. overlap: F1 of the words shared with the expected answer.
loss: nats per token. A share p of n rows has a standard error of about sqrt(p (1 - p) / n).

{samples}## Data

`{file}`: {n_rows} rows, {shape}; sha256 `{sha256}`.
{n_train} were trained on, {n_held} held out{dropped}.

## Settings

{settings}
"""


def write(
    folder: Path, model: "PeftModel", tokenizer: "PreTrainedTokenizerBase", facts: dict
) -> None:
    """Write the adapter, tokenizer, chat template, card and facts (as JSON) into `folder`."""
    model.save_pretrained(folder, save_embedding_layers=False)
    config = folder / "adapter_config.json"
    known = json.loads(config.read_text("utf-8")) | {"base_model_name_or_path": facts["base"]}
    known["target_modules"] = sorted(known["target_modules"])  # a set, in no fixed order
    config.write_text(json.dumps(known, indent=2), "utf-8")
    tokenizer.save_pretrained(folder)
    (folder / RESULT).write_text(json.dumps(facts, indent=1, ensure_ascii=False), "utf-8")
    (folder / "README.md").write_text(card(facts), "utf-8")


def card(facts: dict) -> str:
    """The text of README.md."""
    unknown = "" if facts["base_known"] else " The hub id of this base is unknown."
    plain = "a plain one: the base has none." if facts["plain_template"] else "included here."
    data = facts["data"]
    return CARD.format(
        base=facts["base"],
        title=facts["title"],
        unknown=unknown,
        template=plain,
        n_held=data["held_out"],
        from_file=f", in `{data['test_file']}`" if data["test_file"] else "",
        asked=facts["scores"]["asked"],
        scores=table(facts["scores"]["table"]),
        samples=_samples(facts["scores"]["samples"]),
        file=data["file"],
        n_rows=data["rows"],
        shape=data["shape"],
        sha256=data["sha256"],
        n_train=data["trained"],
        dropped=f", {data['dropped']} left out as faulty" if data["dropped"] else "",
        settings="\n".join(f"- {name}: {value}" for name, value in facts["settings"].items()),
    )


def table(scores: dict[str, dict[str, float]]) -> str:
    """Format scores as a Markdown table with one row per contestant."""
    names = [n for n in ("exact", "overlap", "loss") if any(n in row for row in scores.values())]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for who, row in scores.items():
        cells = [f"{row[name]:.3f}" if name in row else "" for name in names]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _samples(samples):
    """Format held-out rows with the answers of base and adapter as Markdown."""
    parts = []
    for row in samples:
        lines = "\n".join(
            f"- {name}: {json.dumps(row[name], ensure_ascii=False)[:300]}" for name in row
        )
        parts.append(f"{lines}\n\n")
    return "Held-out rows and their answers:\n\n" + "".join(parts) if parts else ""
