"""Write labkit/labs/lab07/repairs.jsonl, lab 7's own file: 175 rows of a housing office, dirty.

    python benchmarks/repairs.py

A tenant writes, and a clerk answers with a trade, a room and a time. The faults are those that such
files have, each planted a known number of times (`PLANTED`). The same bytes every time.
"""

import json
import random
from pathlib import Path

FILE = Path(__file__).parent.parent / "labkit" / "labs" / "lab07" / "repairs.jsonl"
SYSTEM = "Repairs desk. Answer: trade; room; when."
ROOMS = ("kitchen", "bathroom", "bedroom", "living room", "hall", "cellar", "stairwell", "attic")
PROBLEMS = {  # trade -> what a tenant writes, and when somebody has to come
    "plumber": (
        ("the tap in the {} drips", "later"),
        ("water is running down the wall in the {}", "now"),
        ("the drain in the {} is blocked", "this week"),
        ("a pipe in the {} has burst", "now"),
        ("there is a damp spot on the ceiling of the {} and it grows", "this week"),
        ("the water in the {} tastes of rust", "later"),
    ),
    "electrician": (
        ("the socket in the {} sparks", "now"),
        ("the lights in the {} flicker every evening", "this week"),
        ("the switch in the {} is loose", "later"),
        ("the fuse blows whenever I switch on the lamp in the {}", "this week"),
        ("it smells of burnt plastic at the meter in the {}", "now"),
        ("the cover of a lamp in the {} has yellowed", "later"),
    ),
    "heating": (
        ("the radiator in the {} stays cold", "this week"),
        ("the radiator in the {} knocks at night", "later"),
        ("the boiler in the {} hisses and steam comes out", "now"),
        ("I smell gas in the {}", "now"),
        ("the thermostat in the {} shows nothing", "this week"),
        ("the paint flakes off the radiator in the {}", "later"),
    ),
    "locksmith": (
        ("the key broke off in the lock of the {} door", "this week"),
        ("the {} door fell shut and my child is behind it", "now"),
        ("the lock of the {} door is stiff", "later"),
        ("somebody forced the lock of the {} last night", "now"),
        ("I need a second key for the {}", "later"),
        ("the {} door can be opened without a key", "this week"),
    ),
    "carpenter": (
        ("the {} door sticks", "later"),
        ("a floorboard in the {} creaks", "later"),
        ("the shelf in the {} came off the wall", "this week"),
        ("a beam in the {} has cracked and plaster comes down", "now"),
        ("the handrail in the {} is loose", "this week"),
        ("the floor of the {} gave way under me", "now"),
    ),
    "glazier": (
        ("the {} window is smashed and it rains in", "now"),
        ("the pane of the {} window has a crack", "this week"),
        ("the {} window is fogged between its panes", "later"),
        ("the glass of the {} door has a scratch", "later"),
        ("a pane of the {} window hangs over the pavement", "now"),
        ("there is a draught at the glass of the {} window", "this week"),
    ),
}
OPENINGS = ("Hello, ", "Hi, ", "Good morning, ", "Dear office, ", "Flat 7 here: ", "")
CLOSINGS = (
    *(". Thank you.", ". Can somebody come?", ". I am at home after five."),
    *(". It began on Monday.", ". My phone number has not changed.", "."),
)
THREAD = (
    "On Monday I wrote to the caretaker, who sent me to the office, which sent me to you. ",
    "My neighbour says that it was the same with hers two years ago. ",
    "I pay my rent on the first of each month, and have done so for eleven years. ",
    "The last time I waited three weeks, and nobody rang before they came. ",
    "Please do not come before nine, since I work at night and sleep in the morning. ",
    "The front door needs paint, too, but that is another matter. ",
    "I enclose my letter of last spring, in which all of this stands already. ",
    "> Your message has been received and will be answered in turn. ",
)
LETTER = (
    "Thank you for your message of today, which we have read with care. As you may know, our house "
    "has changed the firms that work for it, and orders are now given out in the order in which "
    "they arrive, unless there is danger to persons or to the building. We have looked at what you "
    "describe. We ask you to keep the place clear, to be at home between eight and four, and to "
    "have the number of your contract at hand when the firm rings. The order is: "
)
PLANTED = {  # what the audit of exercise 7.1 finds at 128 tokens
    "trains_on_nothing": 13,
    "no_end": 4,
    "truncated": 11,
    "bad_roles": 5,
    "duplicates": 9,
}


def chat(question, answer, system=True):
    """The messages of one row."""
    turns = [("system", SYSTEM)] * system + [("user", question), ("assistant", answer)]
    return [{"role": role, "content": content} for role, content in turns]


def clean(rng):
    """[(question, answer)]: 138 different ones, from all problems, rooms, openings, closings."""
    pairs = []
    problems = [(trade, *problem) for trade, listed in PROBLEMS.items() for problem in listed]
    for i in range(138):
        trade, text, when = problems[i % len(problems)]
        room = rng.choice(ROOMS)
        opening, closing = rng.choice(OPENINGS), rng.choice(CLOSINGS)
        said = text.format(room)
        said = said if opening else said[0].upper() + said[1:]
        pairs.append((f"{opening}{said}{closing}", f"{trade}; {room}; {when}"))
    assert len(set(pairs)) == len(pairs) == len({question for question, _ in pairs})
    return pairs


def dirt(pairs, rng):
    """Messages with the faults of `PLANTED`, and six questions that were answered twice."""
    rows = [chat(*pair) for pair in (*pairs[:4], pairs[5])]  # sent twice
    rows += [chat(f" {q.upper()}  ", a) for q, a in pairs[23:27]]  # and in capitals
    for question, answer in pairs[30:36]:
        trade, room, _ = answer.split("; ")
        rows.append(chat(question, f"{trade}; {room}; when there is time"))
    for k in range(7):  # a whole thread before the question: 128 tokens hold no answer
        told = "".join(rng.sample(THREAD, 6 + k % 2))
        question, answer = pairs[40 + k]
        rows.append(chat(f"{told * 2}So, again: {question}", answer))
    for question, answer in pairs[50:54]:  # a letter in the place of a line: cut midway
        rows.append(chat(f"Once more: {question}", LETTER + answer))
    for (question, _), blank in zip(pairs[60:66], ("", " ", "", "\n", "", "  "), strict=True):
        rows.append(chat(f"Still waiting: {question}", blank))
    (q1, a1), (q2, a2), (q3, a3), (q4, _), (q5, a5) = pairs[70:75]
    rows.append([{"role": "human", "content": q1}, {"role": "bot", "content": a1}])
    rows.append([{"role": "assistant", "content": a2}, {"role": "user", "content": q2}])
    rows.append([{"role": "user", "content": q3}] * 2 + [{"role": "assistant", "content": a3}])
    rows.append(chat(q4, "")[:-1])
    rows.append([*chat(q5, a5), {"role": "assistant", "content": "Done."}])
    return rows


def main():
    """Write the file: the rows shuffled, one in four marked as test by the toss of a coin."""
    rng = random.Random(7)
    pairs = clean(rng)
    rows = [chat(*pair, system=i % 9 != 4) for i, pair in enumerate(pairs)] + dirt(pairs, rng)
    rng.shuffle(rows)
    marked = [{"messages": m, "split": rng.choice(["train"] * 3 + ["test"])} for m in rows]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in marked)
    FILE.write_text(text, encoding="utf-8")
    print(f"{len(marked)} rows, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
