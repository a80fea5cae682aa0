"""Baselines to beat: the most frequent answer, and the answer to the nearest training prompt."""

import math
from collections import Counter, defaultdict

from labkit.data.shapes import Example, folded


def most_frequent(train: list[Example], asked: list[Example]) -> list[str]:
    """Give every prompt the most frequent training answer (the first one if there is a tie)."""
    usual = Counter(e.answer.strip() for e in train).most_common(1)[0][0]
    return [usual] * len(asked)


def nearest(train: list[Example], asked: list[Example]) -> list[str]:
    """Give each prompt the answer to the most similar training prompt (cosine, TF-IDF trigrams)."""
    counts = [_threes(e.key) for e in train]
    spread = Counter(gram for count in counts for gram in count)
    weight = {gram: math.log(len(train) / n) + 0.1 for gram, n in spread.items()}
    index = defaultdict(list)  # gram -> [(row, its share of the row's length)]
    for row, count in enumerate(counts):
        norm = math.sqrt(sum((n * weight[g]) ** 2 for g, n in count.items())) or 1.0
        for gram, n in count.items():
            index[gram].append((row, n * weight[gram] / norm))
    answers = []
    for example in asked:
        scores = Counter()
        for gram, n in _threes(example.key).items():
            for row, value in index.get(gram, ()):
                scores[row] += n * weight[gram] * value
        best = max(range(len(train)), key=lambda row: (scores[row], -row))
        answers.append(train[best].answer.strip())
    return answers


def _threes(text):
    padded = f"  {text} "
    return Counter(padded[i : i + 3] for i in range(len(padded) - 2))


def right(given: str, wanted: str) -> bool:
    """Whether an answer matches the expected answer exactly, ignoring surrounding whitespace."""
    return given.strip() == wanted.strip()


def overlap(given: str, wanted: str) -> float:
    """F1 of the words that two answers share, case folded: 1.0 if all match, 0.0 if none do."""
    one, other = Counter(folded(given).split()), Counter(folded(wanted).split())
    shared = (one & other).total()
    return 2 * shared / (one.total() + other.total()) if shared else 0.0
