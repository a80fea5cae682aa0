"""Write labkit/tasks/repairs.jsonl, lab 7's dirty data file: 437 rows from a housing office.

    python benchmarks/repairs.py

A tenant writes, and a clerk answers with a trade, a room, an apartment, a day and a time. Messages
also mention other rooms, apartments and days, so copying the first one is often wrong. The faults
are typical of such files, each planted a known number of times (`PLANTED`). The output is
identical, byte for byte, every time.
"""

import json
import random
from pathlib import Path

FILE = Path(__file__).parent.parent / "labkit" / "tasks" / "repairs.jsonl"
SYSTEM = "Repairs desk. Answer: trade; room; apartment; day; time."
ROOMS = (
    *("kitchen", "bathroom", "bedroom", "living room"),
    *("hallway", "basement", "laundry room", "attic"),
)
PROBLEMS = {  # trade -> what a tenant writes
    "plumber": (
        *("The tap in the {} drips.", "Water runs down the wall in the {}."),
        *("The drain in the {} is blocked.", "A pipe in the {} has burst."),
        *("There is a damp spot on the ceiling of the {}.", "The water in the {} tastes of rust."),
    ),
    "electrician": (
        *("The outlet in the {} sparks.", "The lights in the {} flicker."),
        *("The switch in the {} is loose.", "The fuse blows when I use the lamp in the {}."),
        *("It smells of burnt plastic at the meter in the {}.", "There is no power in the {}."),
    ),
    "heating": (
        *("The radiator in the {} stays cold.", "The radiator in the {} knocks at night."),
        *("The boiler in the {} hisses.", "I smell gas in the {}."),
        *("The thermostat in the {} shows nothing.", "The {} doesn't get warm."),
    ),
    "locksmith": (
        *("My key broke off in the lock of the {} door.", "The lock of the {} door is stiff."),
        *("Somebody forced the lock of the {}.", "I need a second key for the {}."),
        *("The {} door opens without a key.", "I'm locked out of the {}."),
    ),
    "carpenter": (
        *("The {} door sticks.", "A floorboard in the {} creaks."),
        *("The shelf in the {} came off the wall.", "A beam in the {} has cracked."),
        *("The handrail in the {} is loose.", "The floor of the {} gave way."),
    ),
    "glazier": (
        *("The {} window is smashed.", "The pane of the {} window has a crack."),
        *("The {} window is fogged between its panes.", "The glass of the {} door is scratched."),
        *("A pane of the {} window is loose.", "There is a draft at the glass of the {} window."),
    ),
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
HALVES = {
    **dict.fromkeys(("in the morning", "before lunch", "early"), "morning"),
    **dict.fromkeys(("in the afternoon", "after lunch", "late"), "afternoon"),
}
PLACES = ("Apartment {} here.", "This is apartment {}.", "I live in number {}.", "Hello from {}.")
TIMES = ("Please come {day} {half}.", "{day} {half} suits me.", "I'm at home {day} {half}.")
ASIDES = (
    *("I wrote to you on {day}.", "It began on {day}.", "You were in the {room} last year."),
    *("My neighbor in {n} has the same.", "I hear it in the {room}, too.", "It isn't number {n}."),
    *("Don't come {day}, I'm away.", "The {room} is fine."),
)
CLOSINGS = ("Thank you.", "Can somebody come?", "My number has not changed.", "", "", "")
THREAD = (
    "On Monday I wrote to the caretaker, who sent me to the office, which sent me to you. ",
    "I pay my rent on the first of each month, and have done so for eleven years. ",
    "The last time I waited three weeks, and nobody called before they came. ",
    "Please don't come before nine: I work at night and sleep in the morning. ",
    "The front door needs paint, too, but that is another matter. ",
    "I enclose my letter of last spring, which says all of this already. ",
    "> Your message has been received and will be answered in turn. ",
)
LETTER = (
    "Thank you for your message of today, which we have read with care. As you may know, our house "
    "has changed the firms that work for it, and orders are now given out in the order in which "
    "they arrive, unless there is danger to persons or to the building. We ask you to keep the "
    "place clear and to have the number of your contract at hand when the firm calls. The order "
    "is: "
)
CLEAN = 400
PLANTED = {"truncated": 11, "trains_on_nothing": 13, "no_end": 4}  # audit's, at 128 tokens


def message(rng):
    """(question, answer): one problem, with asides that name other rooms, apartments and days."""
    trade = rng.choice(list(PROBLEMS))
    room, other_room = rng.sample(ROOMS, 2)
    number, other_number = rng.sample(range(1, 60), 2)
    day, other_day = rng.sample(DAYS, 2)
    half = rng.choice(list(HALVES))
    parts = [
        rng.choice(PLACES).format(number),
        rng.choice(PROBLEMS[trade]).format(room),
        rng.choice(TIMES).format(day=day, half=half),
        *(
            aside.format(day=other_day, room=other_room, n=other_number)
            for aside in rng.sample(ASIDES, 2)
        ),
    ]
    rng.shuffle(parts)
    said = " ".join([*parts, rng.choice(CLOSINGS)]).strip()
    return said, f"{trade}; {room}; {number}; {day}; {HALVES[half]}"


def chat(question, answer, system=True):
    """The messages of one row."""
    turns = [("system", SYSTEM)] * system + [("user", question), ("assistant", answer)]
    return [{"role": role, "content": content} for role, content in turns]


def dirt(pairs, rng):
    """Messages with the faults of `PLANTED`; questions sent twice, and some answered twice."""
    rows = [chat(f" {q.upper()}  ", a) for q, a in pairs[:6]] + [chat(*p) for p in pairs[6:12]]
    for question, answer in pairs[12:20]:  # and answered twice
        trade, room, apartment, *_ = answer.split("; ")
        rows.append(chat(question, f"{trade}; {room}; {apartment}; Friday; morning"))
    for k in range(7):  # a whole thread before the question: 128 tokens hold no answer
        told = "".join(rng.sample(THREAD, 6 + k % 2))
        rows.append(chat(f"{told * 2}So, again: {pairs[40 + k][0]}", pairs[40 + k][1]))
    for question, answer in pairs[50:54]:  # a letter in the place of a line: cut midway
        rows.append(chat(question, LETTER + answer))
    for (question, _), blank in zip(pairs[60:66], ("", " ", "", "\n", "", "  "), strict=True):
        rows.append(chat(f"Still waiting. {question}", blank))
    return rows


def main():
    """Write the file: the rows shuffled, one in four marked as test by the toss of a coin."""
    rng = random.Random(7)
    pairs = [message(rng) for _ in range(CLEAN)]
    assert len({question for question, _ in pairs}) == CLEAN
    rows = [chat(*pair) for pair in pairs] + dirt(pairs, rng)
    rng.shuffle(rows)
    marked = [{"messages": m, "split": rng.choice(["train"] * 3 + ["test"])} for m in rows]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in marked)
    FILE.write_text(text, encoding="utf-8")
    print(f"{len(marked)} rows, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
