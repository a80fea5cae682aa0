"""Explain each finding of an audit and how to fix it, worst first."""

from typing import NamedTuple


class Meaning(NamedTuple):
    """`level`: "wrong" (would train wrongly), "look" (may be intended), or "note"."""

    level: str
    what: str
    do: str


MEANING = {
    "missing": Meaning("wrong", "a column is missing", "fill it in, or remove the row"),
    "not_text": Meaning(
        "wrong", "a value is not text (null, NaN, a list, an image)", "make it text, or remove it"
    ),
    "header": Meaning(
        "wrong", "a row that repeats the header", "remove it: were two files joined?"
    ),
    "no_messages": Meaning("wrong", "a conversation without messages", "remove the row"),
    "unknown_role": Meaning(
        "wrong", "an unknown role", "use system, user and assistant, in lowercase"
    ),
    "system_inside": Meaning(
        "wrong", "a system message that isn't first", "put it first, or add it to the user's text"
    ),
    "same_role_twice": Meaning(
        "wrong", "two messages in a row have the same role", "join them, or add the missing turn"
    ),
    "answer_first": Meaning(
        "wrong", "the assistant speaks before any user", "add the question, or remove this turn"
    ),
    "no_answer_last": Meaning(
        "wrong", "the last message is not the assistant's", "end with the answer to be learned"
    ),
    "empty_prompt": Meaning("wrong", "an empty prompt", "write one, or remove the row"),
    "empty_answer": Meaning("wrong", "an empty answer", "write one, or remove the row"),
    "empty_text": Meaning("wrong", "an empty text", "remove the row"),
    "control_words": Meaning(
        "wrong",
        "the text contains one of the model's control tokens",
        "remove it: the chat template adds it, so it would appear twice",
    ),
    "template": Meaning(
        "wrong",
        "the model's chat template rejects the row",
        "change the row as the template requires, or choose another model",
    ),
    "trains_on_nothing": Meaning(
        "wrong", "nothing is trained: the prompt alone is too long", "raise --max-length"
    ),
    "cut": Meaning(
        "wrong", "the answer is cut before its end token", "raise --max-length, or shorten the text"
    ),
    "no_end": Meaning(
        "wrong",
        "no end token is trained: the model would never stop",
        "fix the template: it must add the model's end token after each answer",
    ),
    "leak": Meaning(
        "wrong",
        "a test prompt that is also trained on",
        "remove it from one of the two files: its score would be meaningless",
    ),
    "unseen_label": Meaning(
        "wrong", "an answer that never occurs in the training data", "move one there"
    ),
    "contradiction": Meaning("wrong", "one prompt with different answers", "keep the right one"),
    "one_answer": Meaning("wrong", "every row has the same answer", "add rows with other answers"),
    "spelling": Meaning(
        "wrong", "one answer has several spellings", "use one: each trains as its own answer"
    ),
    "broken_json": Meaning(
        "wrong", "the answer isn't JSON, but nearly all others are", "fix the answer, or remove it"
    ),
    "duplicate": Meaning(
        "look", "a row that repeats an earlier row", "keep one: each copy counts in training"
    ),
    "echo": Meaning("look", "the answer repeats the prompt", "did you choose the right column?"),
    "says_nothing": Meaning(
        "look", 'the answer is a placeholder ("nan", "N/A", "#REF!")', "write the real answer"
    ),
    "damaged": Meaning(
        "look",
        "characters that are invisible or garbled by a wrong encoding (Ã©, â€™, �)",
        "export as UTF-8 and remove invisible characters: the model would learn them",
    ),
    "markup": Meaning(
        "look",
        "the text contains HTML (&amp;, &#39;, <br>)",
        "use html.unescape, and replace <br> by a line break",
    ),
    "unfinished": Meaning(
        "look", "the answer ends in mid-sentence; few others do", "was it cut off? complete it"
    ),
    "far_longer": Meaning(
        "look", "an answer far longer than the others", "does it join several rows?"
    ),
    "system_differs": Meaning(
        "look",
        "the system message differs from that of most rows",
        "use the same one in training and later; if they mean the same, make them equal",
    ),
    "imbalance": Meaning(
        "look", "a few answers dominate", "compare scores with always giving the most frequent one"
    ),
    "rare_label": Meaning(
        "look", "an answer with fewer than three rows", "add rows: too few to learn or to test"
    ),
    "few_rows": Meaning(
        "look", "fewer than 20 rows", "add rows: a score on two or three rows says little"
    ),
    "number": Meaning("note", "a number or true/false, read as text", "nothing, if intended"),
    "spaces": Meaning(
        "note", "spaces around an answer", "nothing, if intended: many templates keep them"
    ),
}
