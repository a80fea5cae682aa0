"""Write what goes with the files: README.md with sizes and costs, a Modelfile, ship.json."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.own.stages import SHIPPED
from labkit.ship import adapter as adapters
from labkit.ship import recipes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CARD = """# {title}

Files of an adapter for `{base}`, made by `labkit ship`.

{table}

{measured}

{notes}## Serve it

{lines}
"""
MEASURED = """KL: divergence of the next-token distribution from the trained model's, in nats per
token, over {where}. right: the share of these rows answered exactly right."""


@dataclass(frozen=True)
class Asked:
    """The command's options."""

    folder: Path
    out: Path
    kinds: tuple[str, ...] = ("bf16", "q8_0", "q4_0")  # files of the merged model
    merge: bool = False
    apart: bool = False
    base: str = ""
    data: Path | None = None


@dataclass(frozen=True)
class Parts:
    """What to ship, and the rows to measure it on."""

    adapter: adapters.Adapter
    base: Path
    tokenizer: "PreTrainedTokenizerBase"
    ends: set[int]
    rows: list[dict]


def write(into: Path, asked: Asked, parts: Parts, facts: dict) -> None:
    """Write README.md, Modelfile and ship.json into the folder; `facts` gets the commands."""
    facts["lines"] = lines(into, asked, parts, facts)
    (into / SHIPPED).write_text(json.dumps(facts, indent=1, ensure_ascii=False), "utf-8")
    (into / "README.md").write_text(text(facts), "utf-8")


def text(facts: dict) -> str:
    """The text of README.md."""
    where = facts["measured"]
    measured = MEASURED.format(where=where) if where else "Not measured: pass `--data FILE`."
    blocks = [f"{who}:\n\n```\n{line}\n```\n" for who, line in facts["lines"].items()]
    return CARD.format(
        title=facts["title"],
        base=facts["base"],
        table=table(facts["files"]),
        measured=measured,
        notes="".join(f"{note}\n\n" for note in facts["notes"]),
        lines="\n".join(blocks),
    )


def table(files: list[dict]) -> str:
    """Format the files as a Markdown table: what each one is, its size, KL and score."""
    rows = ["| file | what | MB | KL | right |", "|---|---|---|---|---|"]
    for row in files:
        what = f"{row['what']}, {row['kind']}" if row["kind"] else row["what"]
        size = f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else ""
        cost = f"{row['kl']:.1e} | {row['right']:.2f}" if "kl" in row else " | "
        rows.append(f"| {row['file']} | {what} | {size} | {cost} |")
    return "\n".join(rows)


def lines(into: Path, asked: Asked, parts: Parts, facts: dict) -> dict[str, str]:
    """List each engine's command to serve the files from the folder, and write the Modelfiles."""
    found, system = {}, parts.adapter.facts.get("data", {}).get("system", "")
    name = asked.folder.resolve().name
    merged = {row["kind"]: row["file"] for row in facts["files"] if row["what"] == "merged"}
    if merged:
        chosen = merged.get("q8_0") or next(iter(merged.values()))
        made = recipes.modelfile(chosen, system=system, tokenizer=parts.tokenizer)
        (into / "Modelfile").write_text(made, "utf-8")
        found["llama.cpp"] = recipes.llama_server(chosen)
        found["Ollama"] = f"ollama create {name} -f Modelfile\nollama run {name}"
    if asked.apart:
        files = {row["what"]: row["file"] for row in facts["files"]}
        base, adapter = files["base"], files["adapter"]
        made = recipes.modelfile(base, adapter, system, parts.tokenizer)
        (into / "Modelfile.apart").write_text(made, "utf-8")
        found["llama.cpp, base and adapter"] = recipes.llama_server(base, [adapter])
        found["Ollama, base and adapter"] = f"ollama create {name} -f Modelfile.apart"
    folder = os.path.relpath(asked.folder.resolve(), asked.out.resolve())
    own = Path(folder) / "chat_template.jinja"
    template = str(own) if (asked.folder / own.name).is_file() else ""
    found["vLLM"] = recipes.vllm(facts["base"], name, folder, facts["rank"], template)
    if asked.merge:
        found["transformers"] = "transformers serve ./merged"
    return found
