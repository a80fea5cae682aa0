"""What each finding of an audit means, and what to do about it; the worst first."""

from typing import NamedTuple


class Meaning(NamedTuple):
    """`level`: "wrong" (it would train wrongly), "look" (it may be intended), or "note"."""

    level: str
    what: str
    do: str


MEANING = {
    "missing": Meaning("wrong", "a column is missing", "fill it in, or remove the row"),
    "not_text": Meaning(
        "wrong", "a value is no text (null, NaN, a list, an image)", "make it text, or remove it"
    ),
    "header": Meaning(
        "wrong", "a row that repeats the header", "remove it: were two files joined?"
    ),
    "no_messages": Meaning("wrong", "a conversation without messages", "remove the row"),
    "unknown_role": Meaning(
        "wrong", "an unknown role", "use system, user and assistant, in lower case"
    ),
    "system_inside": Meaning(
        "wrong", "a system message that is not the first", "put it first, or into the user's text"
    ),
    "same_role_twice": Meaning(
        "wrong", "two messages of one role in a row", "join them, or add what is missing between"
    ),
    "answer_first": Meaning(
        "wrong", "the assistant speaks before any user", "add the question, or remove this turn"
    ),
    "no_answer_last": Meaning(
        "wrong", "the last message is not the assistant's", "end with the answer: it is learned"
    ),
    "empty_prompt": Meaning("wrong", "an empty prompt", "write one, or remove the row"),
    "empty_answer": Meaning("wrong", "an empty answer", "write one, or remove the row"),
    "empty_text": Meaning("wrong", "an empty text", "remove the row"),
    "control_words": Meaning(
        "wrong",
        "a text contains a control token of the model",
        "remove it: the chat template writes it, so it would appear twice",
    ),
    "template": Meaning(
        "wrong",
        "the model's chat template refuses it",
        "change the row as the template requires, or choose another model",
    ),
    "trains_on_nothing": Meaning(
        "wrong", "nothing is trained: the prompt alone is too long", "raise --max-length"
    ),
    "cut": Meaning(
        "wrong", "the answer is cut, and so is its end", "raise --max-length, or shorten the text"
    ),
    "no_end": Meaning(
        "wrong",
        "no end token is trained: the model would never stop",
        "fix the template: it must write the model's end token after an answer",
    ),
    "leak": Meaning(
        "wrong",
        "a prompt that is trained on as well",
        "remove it from one of the two files: its score would be meaningless",
    ),
    "unseen_label": Meaning(
        "wrong", "an answer that never occurs in the training data", "move such a row there"
    ),
    "contradiction": Meaning("wrong", "one prompt with different answers", "keep the right one"),
    "one_answer": Meaning("wrong", "every row has the same answer", "add rows with other answers"),
    "spelling": Meaning(
        "wrong", "one answer is spelled in several ways", "use one spelling: each trains as its own"
    ),
    "broken_json": Meaning(
        "wrong", "the answer is not JSON, as nearly all others are", "fix it, or remove it"
    ),
    "duplicate": Meaning(
        "look", "a row that stands above already", "keep one: each copy counts in training"
    ),
    "echo": Meaning("look", "the answer repeats the prompt", "is it the right column?"),
    "says_nothing": Meaning(
        "look", 'the answer is a placeholder ("nan", "N/A", "#REF!")', "write the real answer"
    ),
    "damaged": Meaning(
        "look",
        "letters damaged by another encoding (Ã©, â€™, �), or invisible",
        "export again as UTF-8 and remove invisible ones: the model would learn them",
    ),
    "markup": Meaning(
        "look",
        "HTML in a text (&amp;, &#39;, <br>)",
        "unescape it: html.unescape, and a line break for <br>",
    ),
    "unfinished": Meaning(
        "look", "the answer ends in mid-sentence, as few others do", "was it cut? write its end"
    ),
    "far_longer": Meaning(
        "look", "an answer far longer than the others", "does it join several rows?"
    ),
    "system_differs": Meaning(
        "look",
        "its system message differs from most rows'",
        "use the same one in training and later; make them equal if they mean the same",
    ),
    "imbalance": Meaning(
        "look", "answers are far from equally frequent", "compare scores with the most frequent's"
    ),
    "rare_label": Meaning(
        "look", "an answer with fewer than three rows", "add rows: too few to learn or test it"
    ),
    "few_rows": Meaning(
        "look", "fewer than 20 rows", "add rows: a score of two or three says little"
    ),
    "number": Meaning("note", "a number or true/false, read as its text", "nothing, if intended"),
    "spaces": Meaning("note", "spaces around an answer", "nothing: templates strip them"),
}
