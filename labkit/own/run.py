"""Audit, split, train, score and write the folder; a restart resumes where training stopped."""

from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version

from labkit.data import report, split, tokens
from labkit.data.shapes import Example
from labkit.errors import LabError
from labkit.own import settings, stages
from labkit.own.settings import Asked

PACKAGES = ("lora-labs", "peft", "torch", "transformers", "trl")


@dataclass(frozen=True)
class Parts:
    """The rows of a training run, as examples and as tokens cut at the maximum length."""

    train: list[Example]
    held: list[Example]
    dropped: int
    rows: tuple[list[dict], list[dict]]  # of `input_ids` and `labels`


def train(asked: Asked) -> dict:
    """Train on `asked.file`, write the folder `asked.out`, and return the run's facts.

    LabError if the data would train wrongly, or if the folder contains something else.
    """
    loaded = report.load(asked.file)

    from labkit.training import hardware, models

    state = hardware.processes()
    models.hush_libraries()
    with state.local_main_process_first():
        name = asked.model or models.default()
        tokenizer, ends = models.tokenizer(name)
    base = settings.base_name(asked, name)
    found = report.of(asked.file, loaded, tokenizer, ends, asked.max_length, asked.test)
    parts = _parts(asked, found, tokenizer)
    hashes = {"file": found.sha256(), "test": found.test.sha256() if found.test else ""}
    key = settings.key(asked, hashes, models.path(name))
    with state.main_process_first():
        done = stages.finished(asked.out, key)
        work = None if done else stages.begin(asked.out, key)
    say = stages.say if state.is_main_process else (lambda *_: None)
    if done:
        say(f"{asked.out} is already done: trained on this data with these settings")
        return done if state.is_main_process else {}
    with stages.alone(work) if state.is_main_process else nullcontext():
        for line in found.summary():
            say(line)
        if not base[1]:
            say(f"the Hub id of {name} is unknown: pass it as --base-id ORG/NAME")
        counts = f"{len(parts.train)} rows to train on, {len(parts.held)} held out"
        say(counts + (f", {parts.dropped} left out" if parts.dropped else ""))
        tuned, losses = _tuned(asked, name, tokenizer, parts, work, state, say)
        if not state.is_main_process:
            return {}
        facts = {"key": key, "title": asked.out.name, "base": base[0], "base_known": base[1]}
        facts |= _facts(asked, found, parts) | {"losses": losses}
        return _finish(asked, (tuned, tokenizer, ends), parts, facts, work)


def _parts(asked, seen, tokenizer) -> Parts:
    """Choose the rows to train on and to hold out; LabError if they would train wrongly."""
    if seen.wrong and not asked.drop_bad:
        findings = "; ".join(seen.line(finding) for finding in seen.wrong)
        fix = f"`labkit data {asked.file}` explains the fixes; --drop-bad skips these rows"
        raise LabError(f"{asked.file} would train wrongly: {findings}. {fix}")
    train = seen.sound()
    if seen.test:
        held = seen.test.sound(seen.between)
    else:
        train, held = split.split(train, asked.held_out, asked.seed)
    if not train or not held:
        raise LabError(f"{asked.file}: {len(train)} rows to train on, {len(held)} to hold out")
    rows = tuple(
        [vars(tokens.encode(e, tokenizer).cut(asked.max_length)) for e in part]
        for part in (train, held)
    )
    n = len(seen.examples) + len(seen.test.examples if seen.test else ())
    return Parts(train, held, n - len(train) - len(held), rows)


def _tuned(asked, name, tokenizer, parts, work, state, say):
    """Train, resuming from the last complete checkpoint; return the model and its losses."""
    import torch
    from peft import PeftModel

    from labkit.own.trainer import trainer_for
    from labkit.training import arguments, checkpoints, hardware, models

    steps = hardware.rehearsed("steps", asked.n_steps(len(parts.train)))
    how = arguments.in_4_bits() if asked.method == "qlora" else {}
    base, _ = models.load(name, dtype=getattr(torch, asked.dtype, None), **how)
    last, step = checkpoints.newest(work, state.num_processes)
    if step >= steps:
        return PeftModel.from_pretrained(base, last), checkpoints.losses_until(last)
    longest = max(len(row["input_ids"]) for row in parts.rows[0])
    args = arguments.arguments(name, asked, state.num_processes, steps, longest, str(work))
    args.save_total_limit = 2
    trainer = trainer_for(base, tokenizer, parts.rows[0], asked.rank, args)
    return checkpoints.train(trainer, work, 20, say)


def _facts(asked, seen, parts):
    """The card's facts about data, settings and versions."""
    return {
        "data": {
            "file": asked.file.name,
            "test_file": asked.test.name if asked.test else "",
            "sha256": seen.sha256(),
            "rows": len(seen.examples),
            "shape": seen.shape.kind,
            "trained": len(parts.train),
            "held_out": len(parts.held),
            "dropped": parts.dropped,
            "system": _system([*parts.train, *parts.held]),
        },
        "settings": asked.plain(),
        "packages": {package: version(package) for package in PACKAGES},
    }


def _system(examples):
    """The system message that all rows share; "" if there is none or more than one."""
    first = [e.messages[0] if e.messages else {"role": ""} for e in examples]
    systems = {turn["content"] if turn["role"] == "system" else "" for turn in first}
    return systems.pop() if len(systems) == 1 else ""


def _finish(asked, made, parts, facts, work):
    """Score the adapter, write the folder, and return the run's facts."""
    from labkit.own import folder, scores

    model, tokenizer, ends = made
    model.get_base_model().generation_config.eos_token_id = sorted(ends)
    facts["scores"] = scores.compare(model, tokenizer, parts.train, parts.held, parts.rows, ends)
    facts["settings"] |= {"steps": len(facts["losses"])}
    facts["plain_template"] = tokenizer.chat_template == tokens.PLAIN
    stages.publish(work, asked.out, lambda into: folder.write(into, model, tokenizer, facts))
    return facts
