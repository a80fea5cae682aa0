"""Task `home`: spoken smart-home commands and their JSON, from home-assistant-intents templates.

A command is one reading of a sentence template with its slots filled. The test split's templates,
readings and open values (names, rooms, items, numbers, colors) do not occur in training.
"""

import hashlib
import json
import math
import random
import re
import tomllib
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

from hassil import parse_sentence, sample_expression

from labkit.files import whole

EVERYDAY = (
    "HassClimateGetTemperature",
    "HassClimateSetTemperature",
    "HassGetState",
    "HassGetWeather",
    "HassLightSet",
    "HassSetVolume",
    "HassShoppingListAddItem",
    "HassStartTimer",
    "HassTurnOff",
    "HassTurnOn",
)
SYSTEM = "Home intent as JSON."
ROWS = {"train": 200, "test": 30}  # at most, per intent
TRIES = 40  # per wanted row
HELD_OUT = 4  # a quarter of templates and open values is for the test split
SLOT = re.compile(r"\{(\w+?)(?:__(\w+))?\}")  # {list} or {list__slot}
ODD = re.compile(r"\b(\w+) \1\b|.{81}")  # "are the lights on on the first floor", or too long
WORDS = resources.files(__package__) / "home_words.toml"
TEMPLATES = resources.files("home_assistant_intents") / "data" / "en.json"
PACKAGES = ("home-assistant-intents", "hassil")


@dataclass(frozen=True)
class Template:
    """A sentence template: its text in the package, readings, fixed slots and domains."""

    intent: str
    source: str
    readings: list  # "turn on the {name}"; duplicates are more likely
    fixed: dict  # slots that the template sets
    domains: list  # "light", "fan", …: kinds of {name}

    def slots(self):
        """The (list, slot) pairs that the readings leave open."""
        return [(name, slot or name) for name, slot in SLOT.findall(self.readings[0])]

    def shape(self):
        """The kind of answer: lists with their slots, fixed slots and domains."""
        return (*sorted(self.slots()), *sorted(self.fixed.items()), *self.domains)

    def pools(self):
        """The names of the template's word pools."""
        named = [f"name.{domain}" for domain in self.domains] or ["name"]
        lists = dict.fromkeys(name for name, _ in self.slots())
        return [pool for name in lists for pool in (named if name == "name" else [name])]


def rows(split="train", seed=0):
    """Return a split's rows as dicts; built on first use, then read from the cache."""
    from labkit.download import cache_dir

    path = cache_dir() / "tasks" / f"home-{seed}-{_inputs()}.jsonl"
    if not path.exists():
        with whole(path) as part:
            part.write_text(build(seed), "utf-8", newline="\n")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in found if row.pop("split") == split]


def build(seed=0):
    """Build both splits as JSONL text, the same on all machines for a seed and package version."""
    rng = random.Random(seed)
    words = tomllib.loads(WORDS.read_text(encoding="utf-8"))
    package = json.loads(TEMPLATES.read_text(encoding="utf-8"))
    pools = _pools(words, package["lists"], rng)
    parts = {"train": [], "test": []}
    for intent in EVERYDAY:
        for split, groups in _split(_templates(intent, package, words, pools), pools, rng).items():
            parts[split].append(groups)
    trained = {r for part in parts["train"] for g in part.values() for t in g for r in t.readings}
    texts, out = set(), []
    for split, known in (("train", set()), ("test", trained)):
        drawn = [row for g in parts[split] for row in _draw(g, split, pools, known, texts, rng)]
        rng.shuffle(drawn)
        out += [json.dumps(row, ensure_ascii=False) + "\n" for row in drawn]
    return "".join(out)


def _inputs():
    parts = [Path(__file__).read_bytes(), WORDS.read_bytes(), TEMPLATES.read_bytes()]
    parts += [metadata.version(name).encode() for name in PACKAGES]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _pools(words, lists, rng):
    """Map pool -> split -> [(spoken, value)]; the split is "closed" for pools shared by both."""
    open_pools = {name: [(text, text) for text in texts] for name, texts in words["lists"].items()}
    for domain, names in words["names"].items():
        open_pools[f"name.{domain}"] = [(text, text) for text in names]
    for name, spans in words["numbers"].items():
        sign = lists.get(name, {}).get("range", {}).get("multiplier", 1)
        numbers = [n for first, last, step in spans for n in range(first, last + 1, step)]
        open_pools[name] = [(str(n), n * sign) for n in numbers]
    pools = {}
    for name, pool in open_pools.items():
        rng.shuffle(pool)
        cut = len(pool) // HELD_OUT
        pools[name] = {"test": pool[:cut], "train": pool[cut:]}
    for name, spec in lists.items():
        values = [v for v in spec.get("values", []) if isinstance(v, dict)]
        spoken = words["closed"].get(name) or {value["in"]: value["out"] for value in values}
        if spoken and name not in pools:
            pairs = [(text, out) for form, out in spoken.items() for text in _readings(form, {})]
            pools[name] = {"closed": pairs}
    return pools


def _templates(intent, package, words, pools):
    """The templates of one intent that can be filled and sound natural, in order."""
    wording = words["wording"]
    rules = package["expansion_rules"] | dict(wording["rules"])
    rules = {name: parse_sentence(text) for name, text in rules.items()}
    found = []
    for block in package["intents"][intent]["data"]:
        domains = block.get("requires_context", {}).get("domain", [])
        domains = [domain for domain in domains if f"name.{domain}" in pools]
        for source in block["sentences"]:
            text = source
            for pattern, replacement in wording["edits"]:
                text = re.sub(pattern, replacement, text)
            if not any(re.search(pattern, source) for pattern in wording["skip"]):
                readings = _readings(text, rules)
                found.append(Template(intent, source, readings, block.get("slots", {}), domains))
    return [template for template in found if all(name in pools for name in template.pools())]


def _readings(text, rules):
    """Every reading of a template's text, with its slots left open."""
    marked = re.sub(r"\{(\w+):(\w+)\}", r"{\1__\2}", text)  # hassil drops the slot's name
    expression = parse_sentence(marked).expression
    sentences = sample_expression(expression, expansion_rules=rules, expand_lists=False)
    return [" ".join(sentence.split()) for sentence in sentences]


def _split(templates, pools, rng):
    """Map split -> shape -> templates; every shape in the test split also occurs in training.

    The test split thus has new words but no new kind of answer. A shape without open values is only
    for training, since none of its words could be unseen.
    """
    groups, halves = {}, {"train": {}, "test": {}}
    for template in templates:
        groups.setdefault(template.shape(), []).append(template)
    for shape, group in groups.items():
        sources = sorted({template.source for template in group})
        rng.shuffle(sources)
        is_open = any("closed" not in pools[name] for name in group[0].pools())
        cut = max(1, len(sources) // HELD_OUT) if is_open and len(sources) > 1 else 0
        for split, part in (("test", sources[:cut]), ("train", sources[cut:])):
            if part:
                halves[split][shape] = [t for t in group if t.source in part]
    return halves


def _draw(groups, split, pools, known, texts, rng):
    """Draw up to ROWS[split] rows of one intent, without repeated texts or readings in `known`."""
    shapes, drawn = list(groups), []
    weights = [math.sqrt(len(g)) / max(2, len(g[0].slots())) for g in groups.values()]
    for _ in range(TRIES * ROWS[split] if shapes else 0):
        template = rng.choice(groups[rng.choices(shapes, weights)[0]])
        reading = rng.choice(template.readings)
        text, slots = _fill(template, reading, split, pools, rng)
        if reading not in known and text not in texts and not ODD.search(text):
            texts.add(text)
            drawn.append(_row(template, split, text, slots))
        if len(drawn) == ROWS[split]:
            break
    return drawn


def _fill(template, reading, split, pools, rng):
    domain = rng.choice(template.domains) if template.domains else ""
    slots = dict(template.fixed)

    def say(match):
        name, slot = match.groups()
        pool = pools[f"name.{domain}" if name == "name" else name]
        text, slots[slot or name] = rng.choice(pool.get("closed") or pool[split])
        return text

    text = SLOT.sub(say, reading).lower()
    return re.sub(r"\ba (?=(8|11|18)\b)", "an ", text), slots


def _row(template, split, text, slots):
    """Make one row; its answer is compact JSON with the intent first, then slots by name."""
    answer = {"intent": template.intent} | dict(sorted(slots.items()))
    answer = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    turns = (("system", SYSTEM), ("user", text), ("assistant", answer))
    return {
        "text": text,
        "answer": answer,
        "intent": template.intent,
        "template": f"{template.intent}: {template.source}",
        "messages": [{"role": role, "content": content} for role, content in turns],
        "split": split,
    }
