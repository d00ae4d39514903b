"""The metrics of tasks, computed otherwise than the library computes them."""

import re
import string
from collections import Counter

import numpy as np

from fedzo.tasks.metrics import Answer


def words(text: str) -> list[str]:
    """As SQuAD compares: no case, no punctuation, no articles."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def f1_of(ours: list[str], theirs: list[str]) -> float:
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs)) if same else float(ours == theirs)


def rouge_l_of(said: str, right: str) -> float:
    ours, theirs = (re.findall("[a-z0-9]+", text.lower()) for text in (said, right))
    longest = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for i, a in enumerate(ours):
        for j, b in enumerate(theirs):
            longest[i + 1][j + 1] = longest[i][j] + 1 if a == b else max(longest[i][j + 1], longest[i + 1][j])
    same = longest[-1][-1]
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0


def drop_words(text: str) -> list[str]:
    """As DROP compares, for the texts of these tests: hyphens part words, numbers are by value."""
    found = []
    for part in text.lower().replace("-", " ").split(" "):
        digits = part.replace(",", "").rstrip(".")
        found += [f"{float(digits):.6f}"] if re.fullmatch(r"\d+(\.\d+)?", digits) else words(part)
    return found


def drop_f1_of(ours: Counter, theirs: Counter) -> float:
    numbers = [word for word in theirs if word[0].isdecimal()]
    if numbers and not any(number in ours for number in numbers):
        return 0.0
    same = len(set(ours) & set(theirs))
    return round(2 * same / (len(ours) + len(theirs)), 2)


def f1_of_class(answers: list[Answer], name: str) -> float | None:
    hits = sum(a.said == name == a.accepted[0] for a in answers)
    named = sum(a.said == name for a in answers) + sum(a.accepted[0] == name for a in answers)
    return 2 * hits / named if named else None


def expected(metric: str, answers: list[Answer], classes: tuple[str, ...]) -> float:
    if metric == "positive-f1":
        return f1_of_class(answers, classes[1]) or 0.0
    if metric == "f1" and classes:
        return float(np.mean([f for name in classes if (f := f1_of_class(answers, name)) is not None]))
    if metric == "group-accuracy":
        groups = {answer.group for answer in answers}
        wrong = {answer.group for answer in answers if answer.said not in answer.accepted}
        return len(groups - wrong) / len(groups)
    one = {
        "accuracy": lambda said, right: said == right,
        "exact-match": lambda said, right: words(said) == words(right),
        "f1": lambda said, right: f1_of(words(said), words(right)),
        "rouge-l": rouge_l_of,
        "drop-f1": lambda said, right: drop_f1_of(Counter(drop_words(said)), Counter(drop_words(right))),
        "drop-exact-match": lambda said, right: drop_words(said) == drop_words(right),
    }[metric]
    return float(np.mean([max(one(answer.said, right) for right in answer.accepted) for answer in answers]))
