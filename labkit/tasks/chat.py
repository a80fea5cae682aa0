"""Task `chat`: short instructions, many with a constraint that a program can verify."""

import ast
import json
import re
from importlib import resources

from labkit.tasks import UnknownName

FILE = resources.files(__package__) / "chat.jsonl"
PAIRS = resources.files(__package__) / "chat_pairs.jsonl"  # made by benchmarks/preference_pairs.py
BULLET = re.compile(r"^\s*[-*•] +\S", re.MULTILINE)
NUMBERED = re.compile(r"^\s*\d+[.)] +\S", re.MULTILINE)
NUMBER = re.compile(r"-?\d+(\.\d+)?")
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
WORD = re.compile(r"\w[\w'\u2019-]*")


def rows(split="train"):
    """Return a split's rows as dicts: `messages`, `category`, `check` ("" if there is none)."""
    lines = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    return [
        {"messages": _messages(line), "category": line["category"], "check": line["check"]}
        for line in lines
        if line["split"] == split
    ]


def pairs():
    """Load pairs of answers to training instructions as a `datasets.Dataset` for DPO.

    `prompt`, `chosen` and `rejected` are lists of messages, as in TRL. The chosen answer follows
    `check`; the rejected answer does not.
    """
    import datasets

    lines = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return datasets.Dataset.from_list(
        [
            {name: [{"role": role, "content": line[name]}] for name, role in roles.items()}
            | {"check": line["check"]}
            for line in lines
        ]
    )


def follows(check, text):
    """Whether `text` obeys `check`, such as "bullets:3"; ValueError for an unknown check."""
    name, _, wanted = check.partition(":")
    if name not in CHECKS:
        raise UnknownName("check", check, CHECKS)
    return bool(CHECKS[name](text.strip(), wanted))


def _messages(line):
    return [
        {"role": "user", "content": line["prompt"]},
        {"role": "assistant", "content": line["answer"]},
    ]


def _unfenced(text):
    return re.sub(r"^```\w*\n(.*?)\n?```$", r"\1", text, flags=re.DOTALL)


def _parsed(text):
    try:
        return json.loads(_unfenced(text))
    except ValueError:
        return None


def _is_python(text):
    """Whether the text parses as Python and is more than a bare word."""
    try:
        body = ast.parse(_unfenced(text)).body
    except (SyntaxError, ValueError):
        return False
    return any(not isinstance(getattr(node, "value", None), ast.Name) for node in body)


def _has_keys(value, keys):
    return isinstance(value, dict) and sorted(value) == sorted(keys.split(","))


def _n_filled(parts):
    return sum(bool(part.strip()) for part in parts)


def _n_words(text):
    return len(WORD.findall(text))


CHECKS = {
    "bullets": lambda text, n: len(BULLET.findall(text)) == int(n),
    "numbered": lambda text, n: len(NUMBERED.findall(text)) == int(n),
    "lines": lambda text, n: _n_filled(text.splitlines()) == int(n),
    "paragraphs": lambda text, n: _n_filled(re.split(r"\n\s*\n", text)) == int(n),
    "items": lambda text, n: "\n" not in text and _n_filled(text.split(",")) == int(n),
    "sentences": lambda text, n: len(SENTENCE_END.findall(text)) == int(n),
    "words": lambda text, n: _n_words(text) == int(n),
    "min_words": lambda text, n: _n_words(text) >= int(n),
    "max_words": lambda text, n: 0 < _n_words(text) <= int(n),
    "json": lambda text, _: isinstance(_parsed(text), (dict, list)),
    "json_keys": lambda text, keys: _has_keys(_parsed(text), keys),
    "python": lambda text, _: _is_python(text),
    "lowercase": lambda text, _: text.islower(),
    "uppercase": lambda text, _: text.isupper(),
    "ends_with_question": lambda text, _: text.endswith("?"),
    "starts_with": lambda text, start: text.startswith(start),
    "ends_with": lambda text, end: text.endswith(end),
    "contains": lambda text, word: word.lower() in map(str.lower, WORD.findall(text)),
    "avoids": lambda text, word: text and word.lower() not in map(str.lower, WORD.findall(text)),
    "lacks": lambda text, mark: text and mark not in text,
    "number": lambda text, _: NUMBER.fullmatch(text),
    "one_of": lambda text, options: text in options.split("|"),
}
