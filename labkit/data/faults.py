"""Find the faults in a single row that need no tokenizer."""

import re

from labkit.data.shapes import Example

# é, ’ and “ in UTF-8 misread in another encoding, an unreadable byte, invisible characters
DAMAGED = re.compile(
    "Ã[\u0080-\u00bf‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€|Â[\u00a0-\u00bf]|[\ufffd\u200b\ufeff\x00-\x08\x0b\x0c\x0e-\x1f]"
)
ENTITY = re.compile(r"&(?:amp|lt|gt|quot|nbsp|apos|#\d+|#x[0-9a-fA-F]+);")
BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
NOTHING = {"nan", "none", "null", "n/a", "na", "tbd", "todo", "-", "--", "?", "...", "…", "xxx"}
NOTHING |= {"#n/a", "#ref!", "#value!", "#name?", "#div/0!", "#num!", "#null!"}  # spreadsheets


def of(example: Example, control_words: list[str] = ()) -> list[str]:
    """The ids (from `meaning.MEANING`) of an example's faults."""
    found = list(example.bad)
    whole = example.text + "\n".join(turn["content"] for turn in example.messages)
    unread = {"missing", "not_text", "no_messages"} & set(found)
    if not unread:
        found += _empty(example)
    if any(word in whole for word in control_words):
        found.append("control_words")
    if DAMAGED.search(whole):
        found.append("damaged")
    if _marked_up(whole):
        found.append("markup")
    if example.messages and not unread:
        found += _of_answer(example)
    return found


def _marked_up(text):
    """Whether plain text contains HTML entities or <br>; text with other tags counts as code."""
    whole = BREAK.sub("", text)
    return bool(ENTITY.search(text) or whole != text) and not re.search(r"<\w+|</", whole)


def _empty(example):
    if not example.messages:
        return [] if example.text.strip() else ["empty_text"]
    found, asked = [], [turn for turn in example.messages[:-1] if turn["role"] != "system"]
    if any(not turn["content"].strip() for turn in asked):
        found.append("empty_prompt")
    if example.messages[-1]["role"] == "assistant" and not example.answer.strip():
        found.append("empty_answer")
    return found


def _of_answer(example):
    answer = example.answer.strip()
    if answer.lower() in NOTHING:
        yield "says_nothing"
    if answer and answer == example.prompt.strip():
        yield "echo"
    if answer and answer != example.answer:
        yield "spaces"
