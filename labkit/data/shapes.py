"""Recognize the shape of a file's rows (chat, pairs, text) and convert them to conversations."""

import ast
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from labkit.data.read import Record
from labkit.errors import LabError

CHATS = ("messages", "conversations", "conversation", "chat", "turns")
COMPLETIONS = ("completion", "response")
QUESTIONS = ("question", "instruction", "query", "input", "user", "source", "text", "prompt")
ANSWERS = ("answer", "output", "response", "completion", "assistant", "target", "reply", "label")
ANSWERS += ("category", "class", "intent")
TEXTS = ("text", "content", "document")
SYSTEMS = ("system", "system_prompt")
MORE = ("context", "input")  # added to the question
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
KNOWN_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Shape:
    """The shape of a file's rows, and the columns they are read from: role -> name in the file."""

    kind: str  # "chat", "prompt-completion", "question-answer" or "text"
    columns: dict[str, str]
    ignored: tuple[str, ...] = ()

    def __str__(self):
        names = ", ".join(dict.fromkeys(self.columns.values()))
        left = f"; not used: {', '.join(self.ignored)}" if self.ignored else ""
        return f"{self.kind} (from {names}{left})"


@dataclass(frozen=True)
class Example:
    """A row to train on: a conversation or a text; `bad` has fault ids (`meaning.MEANING`)."""

    line: int
    messages: list[dict] = field(default_factory=list)
    text: str = ""
    bad: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """What the model is trained on: the last message, or the text."""
        return self.messages[-1]["content"] if self.messages else self.text

    @property
    def prompt(self) -> str:
        """The messages before the answer, except the system message; a text is its own prompt."""
        turns = [m["content"] for m in self.messages[:-1] if m["role"] != "system"]
        return "\n".join(turns) if self.messages else self.text

    @property
    def key(self) -> str:
        """The prompt with case and whitespace folded."""
        return folded(self.prompt)


def folded(text: str) -> str:
    """Put the text in lowercase and collapse runs of whitespace to one space."""
    return " ".join(text.casefold().split())


def recognise(records: list[Record], file: str = "the file") -> Shape:
    """Find the shape that most rows have; LabError if it is not a known shape."""
    names = Counter(name for record in records for name in record.cells)
    common = {str(n).strip().lower(): n for n, count in names.items() if 2 * count >= len(records)}
    chat, text = ("chat", "messages", CHATS), ("text", "text", TEXTS)
    shape = _one(common, *chat) or _pair(common) or _one(common, *text)
    if shape is None:
        found = ", ".join(map(str, names)) or "none"
        wanted = "messages; prompt and completion; question and answer; or text"
        line = records[0].line
        raise LabError(
            f"{file}, line {line}: no known columns among: {found[:200].rstrip('.')}. "
            f"Rename them (a table's first line has the column names): {wanted}"
        )
    used = set(shape.columns.values())
    return Shape(shape.kind, shape.columns, tuple(n for n in common.values() if n not in used))


def _first(common, names, but=None):
    return next((common[n] for n in names if n in common and common[n] != but), None)


def _one(common, kind, role, names):
    name = _first(common, names)
    return name and Shape(kind, {role: name})


def _pair(common):
    prompt, completion = common.get("prompt"), _first(common, COMPLETIONS)
    kind = "prompt-completion"
    if not (prompt and completion):
        kind, prompt = "question-answer", _first(common, QUESTIONS)
        completion = _first(common, ANSWERS, but=prompt)
    if not (prompt and completion):
        return None
    columns = {"system": _first(common, SYSTEMS), "user": prompt, "assistant": completion}
    if kind == "question-answer":
        more = _first(common, MORE)
        columns["more"] = more if more not in (prompt, completion) else None
    return Shape(kind, {role: name for role, name in columns.items() if name})


def examples(records: list[Record], shape: Shape) -> list[Example]:
    """Convert each row to an `Example`, including rows with faults."""
    read = {"chat": _conversation, "text": _plain}.get(shape.kind, _turns)
    return [read(record, shape.columns) for record in records]


def _plain(record, columns):
    text, bad = _cell(record, columns["text"])
    return Example(record.line, text=text, bad=tuple(bad))


def _turns(record, columns):
    """Read prompt and completion, each a text or a list of messages."""
    messages, bad = [], ["header"] if _repeats_names(record, columns) else []
    for role in ("system", "user", "assistant"):
        value = _unpacked(record.cells.get(columns.get(role)))
        if isinstance(value, list):
            turns, wrong = _messages(value)
        else:
            text, wrong = _cell(record, columns[role]) if role in columns else ("", [])
            turns = [{"role": role, "content": text}]
            if role == "system" and not text.strip():
                turns, wrong = [], []
        messages, bad = messages + turns, bad + wrong
    if (more := columns.get("more")) and record.cells.get(more) is not None:
        text, wrong = _cell(record, more)
        bad += wrong
        for at, turn in enumerate(messages):
            if turn["role"] == "user" and text.strip():
                messages[at] = {"role": "user", "content": f"{turn['content']}\n\n{text}"}
                break
    return _example(record.line, messages, bad)


def _repeats_names(record, columns):
    """Whether a row repeats the column names, as in concatenated files."""
    return all(folded(str(record.cells.get(name))) == folded(name) for name in columns.values())


def _conversation(record, columns):
    name = columns["messages"]
    value = _unpacked(record.cells.get(name))
    if not isinstance(value, list):
        return _example(record.line, [], ["missing" if name not in record.cells else "not_text"])
    return _example(record.line, *_messages(value))


def _messages(value):
    """Read messages with `role` and `content` (or `from` and `value`), and find their faults."""
    turns, bad = [], [] if value else ["no_messages"]
    for turn in value:
        if not isinstance(turn, dict):
            bad.append("not_text")
            continue
        role = str(turn.get("role", turn.get("from")))
        content, wrong = _text_of(turn.get("content", turn.get("value")))
        turns.append({"role": ROLES.get(role, role), "content": content})
        bad += wrong
    return turns, bad


def _example(line, messages, bad):
    return Example(line, messages, bad=tuple(dict.fromkeys([*bad, *_bad_roles(messages)])))


def _bad_roles(turns):
    roles = [turn["role"] for turn in turns]
    talk = [role for role in roles if role != "system"]
    twice = any(one == other for one, other in pairwise(talk))
    if any(role not in KNOWN_ROLES for role in roles):
        yield "unknown_role"
    if "system" in roles[1:]:
        yield "system_inside"
    if twice:
        yield "same_role_twice"
    if talk[:1] == ["assistant"]:
        yield "answer_first"
    elif roles and roles[-1] != "assistant":
        yield "no_answer_last"


def _cell(record, name):
    if name not in record.cells:
        return "", ["missing"]
    return _text_of(record.cells[name])


def _text_of(value):
    if isinstance(value, str):
        return value, []
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value), []
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value), ["number"]
    return "", ["not_text"]


def _is_text_part(part):
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part["text"], str)


def _unpacked(value):
    """Parse messages from a cell with JSON, or with a list as pandas writes it; else the cell."""
    if not (isinstance(value, str) and re.match(r"\s*\[\s*\{", value)):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            turns = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if all(isinstance(turn, dict) and {"role", "from"} & set(turn) for turn in turns):
            return turns
    return value
