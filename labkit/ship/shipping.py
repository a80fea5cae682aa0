"""Turn an adapter's folder into files for other engines, and measure their costs."""

import hashlib
import json

import torch

from labkit.data import report
from labkit.errors import LabError
from labkit.own import stages
from labkit.own.stages import say
from labkit.ship import adapter as adapters
from labkit.ship import card, families, gguf, measure
from labkit.ship.card import Asked, Parts

PLAIN = "merged"  # the folder of the plain model
DEQUANTIZED = """This adapter was trained on a 4-bit base, so it is merged into that base,
dequantized. `--apart` writes this base, too. The original base, which vLLM's command loads, may
give worse answers."""


def ship(asked: Asked) -> dict:
    """Fill the folder `asked.out` and return its facts; LabError if something can't be written."""
    for kind in asked.kinds:
        gguf.refuse_kind(kind)
    adapter = adapters.read(asked.folder)
    base = adapters.base_folder(adapter, asked.base)
    if asked.data:
        report.load(asked.data)  # fails before slow imports if unreadable
    key = _key(asked, adapter, base)
    done = stages.finished(asked.out, key, stages.SHIPPED)
    if done:
        say(f"{asked.out} is already done: it has these files of this adapter")
        return done
    from labkit.training import models

    models.hush_libraries()
    _refuse_early(asked, base)
    tokenizer, ends = adapters.tokenizer_of(adapter, base)
    rows, where = measure.rows(adapter, asked.data, tokenizer, ends)
    parts = Parts(adapter, base, tokenizer, ends, rows)
    known = models.hub_id(base) or adapter.base or base.name
    facts = {"key": key, "title": asked.out.resolve().name, "base": known}
    facts |= {"rank": adapter.rank, "measured": where if rows else ""}
    facts["notes"] = [DEQUANTIZED] if adapter.in_4_bits else []
    work = stages.begin(asked.out, key)
    with stages.alone(work):
        stages.publish(work, asked.out, lambda into: _write(into, asked, parts, facts))
    return facts


def _key(asked, adapter, base):
    found = hashlib.sha256((adapter.folder / "adapter_model.safetensors").read_bytes())
    options = [adapter.config, base.name, asked.kinds, asked.merge, asked.apart]
    found.update(json.dumps(options, sort_keys=True).encode())
    found.update(asked.data.read_bytes() if asked.data else b"")
    return found.hexdigest()


def _refuse_early(asked, base):
    """Raise a LabError for a family without GGUF before the weights are read."""
    from transformers import AutoConfig

    try:
        if asked.kinds or asked.apart:
            families.refuse_family(AutoConfig.from_pretrained(base))
    except LabError as error:
        more = f"`labkit ship {asked.folder} --merge` writes a plain model for other engines"
        raise LabError(f"{error}; {more}") from None


def _write(into, asked, parts, facts):
    name = asked.folder.resolve().name
    model = _base(parts)
    files = _apart(into, asked, parts, model, facts)
    model = adapters.beside(model, parts.adapter)
    if parts.rows:
        say("measuring the trained model …")
    exact = measure.logits(model, parts.rows)
    model = model.merge_and_unload()
    for kind in asked.kinds:
        say(f"writing the merged model in {kind} …")
        gguf.write_model(model, parts.tokenizer, into / f"{name}-{kind}.gguf", kind)
        files.append({"file": f"{name}-{kind}.gguf", "what": "merged", "kind": kind})
    if asked.merge:
        say("writing the merged model as a folder …")
        files.append(_plain(into, model, parts))
    if parts.rows:
        files = _measured(into, files, model, parts, exact)
    for row in files:
        row["bytes"] = _size(into / row["file"]) if row["file"] else None
    facts["files"] = files
    card.write(into, asked, parts, facts)


def _base(parts):
    """Load the base in fp32 on the CPU; a QLoRA adapter's has the dequantized 4-bit values."""
    from labkit.training import arguments, models

    how = arguments.in_4_bits("cpu") if parts.adapter.in_4_bits else {}
    model, _ = models.load(parts.base, torch.float32, "cpu", **how)
    return model.dequantize() if how else model


def _apart(into, asked, parts, model, facts):
    """Write the adapter, and the base if requested; add a note if the adapter can't be written."""
    if not (asked.kinds or asked.apart):
        return []
    files, name = [], f"{asked.folder.resolve().name}-lora.gguf"
    try:
        gguf.write_adapter(asked.folder, model.config, into / name)
        files.append({"file": name, "what": "adapter", "kind": "f32"})
    except LabError as error:
        if asked.apart:
            raise
        facts["notes"].append(f"no separate adapter: {error}")
    if asked.apart:
        say("writing the base …")
        gguf.write_model(model, parts.tokenizer, into / "base-f16.gguf", "f16")
        files.append({"file": "base-f16.gguf", "what": "base", "kind": "f16"})
    return files


def _plain(into, model, parts):
    """Write the merged model as a folder in its base's dtype, and round `model` to that dtype."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(parts.base).dtype or torch.float32
    _cast_(model, dtype)
    model.save_pretrained(into / PLAIN)
    parts.tokenizer.save_pretrained(into / PLAIN)
    _cast_(model, torch.float32)
    return {"file": PLAIN, "what": "plain model", "kind": str(dtype).removeprefix("torch.")}


def _cast_(model, dtype):
    """Cast the weights only: `model.to` would also round the rotary frequencies."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _measured(into, files, model, parts, exact):
    """Add KL and score to the table's rows; loads each merged file into `model`."""
    first = {"file": "", "what": "as trained", "kind": "", "kl": 0.0}
    found = [first | {"right": measure.share_right(exact, parts.rows, parts.ends)}]
    for row in reversed(files):  # the plain model first: its weights are still loaded
        if row["what"] in ("merged", "plain model"):
            say(f"measuring {row['file']} …")
            if row["what"] == "merged":
                gguf.load_(model, into / row["file"])
            logits = measure.logits(model, parts.rows)
            row["kl"] = measure.divergence(exact, logits)
            row["right"] = measure.share_right(logits, parts.rows, parts.ends)
    return found + files


def _size(path):
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
