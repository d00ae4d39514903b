"""How DROP compares an answer with one that is right: numbers by value (Dua et al. 2019, and the script of its data).

A text is cut at spaces and hyphens. A part that is a number becomes one, "1,000" too; another loses its case,
punctuation and articles. That script also pairs off the spans of answers that have several; here an answer is one span.
"""

import re
import string

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def exact_match(said: str, right: str) -> float:
    """1 where the words are the same in the same order, else 0."""
    return float(_words(said) == _words(right))


def f1(said: str, right: str) -> float:
    """F1 of the sets of words, to two digits; 0 where the right answer has numbers and none of them is said."""
    ours, theirs = set(_words(said)), set(_words(right))
    numbers = {word for word in theirs if _is_number(word)}
    if numbers and not numbers & ours:
        return 0.0
    words = len(ours) + len(theirs)
    return round(2 * len(ours & theirs) / words, 2) if words else 1.0


def _words(text: str) -> list[str]:
    return [word for part in re.split("[ -]", text.lower()) for word in _compared(part).split()]


def _compared(part: str) -> str:
    plain = part if _is_number(part) else part.translate(_PUNCTUATION)
    return str(float(plain)) if _is_number(plain) else _ARTICLES.sub(" ", plain)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
