"""What each finding of an audit means, and what to do about it; the worst first."""

from typing import NamedTuple


class Meaning(NamedTuple):
    """`level`: "wrong" (training would be wrong), "look" (it may be meant), or "note"."""

    level: str
    what: str
    do: str


MEANING = {
    "missing": Meaning("wrong", "a column is missing", "fill it in, or take the row out"),
    "not_text": Meaning(
        "wrong", "a value is no text (null, NaN, a list, an image)", "write a text, or take it out"
    ),
    "header": Meaning(
        "wrong", "the columns' names again, as a row", "take it out: were two files joined?"
    ),
    "no_messages": Meaning("wrong", "a conversation without messages", "take the row out"),
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
        "wrong", "the assistant speaks before any user", "add the question, or take this turn out"
    ),
    "no_answer_last": Meaning(
        "wrong", "the last message is not the assistant's", "end with the answer: it is learned"
    ),
    "empty_prompt": Meaning("wrong", "an empty prompt", "write one, or take the row out"),
    "empty_answer": Meaning("wrong", "an empty answer", "write one, or take the row out"),
    "empty_text": Meaning("wrong", "an empty text", "take the row out"),
    "control_words": Meaning(
        "wrong",
        "a text holds a control token of the model",
        "take it out: the chat template writes it, here it would stand twice",
    ),
    "template": Meaning(
        "wrong",
        "the model's chat template refuses it",
        "shape the row as the template wants it, or choose another model",
    ),
    "trains_on_nothing": Meaning(
        "wrong", "it trains on nothing: the prompt alone is too long", "raise --max-length"
    ),
    "cut": Meaning(
        "wrong", "the answer is cut, and so is its end", "raise --max-length, or shorten the text"
    ),
    "no_end": Meaning(
        "wrong",
        "no end is trained: the model would never stop",
        "the template must write the model's end token after an answer: mend it",
    ),
    "leak": Meaning(
        "wrong",
        "a prompt that is trained on as well",
        "take it out of one of the two files: its score would mean nothing",
    ),
    "unseen_label": Meaning(
        "wrong", "an answer that no row of the training has", "move such a row to the training"
    ),
    "contradiction": Meaning("wrong", "one prompt with different answers", "keep the right one"),
    "one_answer": Meaning(
        "wrong", "every row has the same answer", "add rows that are answered otherwise"
    ),
    "spelling": Meaning(
        "wrong", "one answer is spelled in several ways", "spell it in one: they train as several"
    ),
    "broken_json": Meaning(
        "wrong", "the answer is not JSON, as nearly all others are", "mend it, or take it out"
    ),
    "duplicate": Meaning(
        "look", "a row that stands above already", "keep one: it counts as often as it stands"
    ),
    "echo": Meaning("look", "the answer repeats the prompt", "is it the right column?"),
    "says_nothing": Meaning(
        "look", 'the answer is a placeholder ("nan", "N/A", "#REF!")', "write what it stands for"
    ),
    "damaged": Meaning(
        "look",
        "letters damaged by another encoding (Ã©, â€™, �), or invisible",
        "export again as UTF-8, take invisible ones out: the model would learn them",
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
        "look", "an answer far longer than the others", "are several rows joined in it?"
    ),
    "system_differs": Meaning(
        "look",
        "its system message is another than most rows have",
        "ask later with the one that you train with; make them one if they mean one",
    ),
    "imbalance": Meaning(
        "look", "answers are far from equally frequent", "compare scores with the most frequent's"
    ),
    "rare_label": Meaning(
        "look", "an answer of fewer than three rows", "add rows: it is hardly learned or tested"
    ),
    "few_rows": Meaning(
        "look", "fewer than 20 rows", "add rows: a score of two or three says little"
    ),
    "number": Meaning(
        "note", "a number or true/false, read as its text", "nothing, if it is meant"
    ),
    "spaces": Meaning("note", "spaces around an answer", "nothing: templates strip them"),
}
