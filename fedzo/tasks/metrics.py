"""How good answers are: numbers from 0 to 1, over all answers together.

Accuracy, of answers and of groups of them, is ours, and so is DROP's comparison (`fedzo.tasks.drop`); the rest is
torchmetrics': F1 of classes, exact match and F1 of tokens as SQuAD defines them (Rajpurkar et al. 2016: lower case, no
punctuation, no articles, the best of several references), ROUGE-L's F-measure (Lin 2004). An answer that says nothing
is never right.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from fedzo.errors import ConfigError
from fedzo.tasks import drop


class Answer(NamedTuple):
    """What a model answered to one row, and what is right."""

    said: str
    accepted: tuple[str, ...]
    """At least one; for a class the first is its name."""
    group: str = ""
    """Answers with the same are judged together, by a metric of groups."""


Metric = Callable[[Sequence[Answer], Sequence[str]], float]
"""Of answers and the names of the classes, which are none where an answer is text."""


def score(metric: str, answers: Sequence[Answer], classes: Sequence[str] = ()) -> float:
    """A metric by its name.

    Raises:
        ConfigError: it needs torchmetrics, which is not installed, or classes, and there are none.
    """
    return METRICS[metric](answers, classes)


def check_metric(option: str, metric: str, classes: int, *, grouped: bool) -> None:
    """Raises ConfigError for a metric that is unknown, or not defined for so many classes or without groups."""
    if metric not in METRICS:
        raise ConfigError(f"{option} {metric!r} is unknown; choose one of: {', '.join(METRICS)}")
    if metric == "positive-f1" and classes != 2:
        raise ConfigError(f"{option} 'positive-f1' is for two classes, and the task has {classes}; choose 'f1'")
    if metric == "group-accuracy" and option == "objective":
        raise ConfigError(
            "objective 'group-accuracy' is of whole groups, and a batch may hold parts; choose 'accuracy'"
        )
    if metric == "group-accuracy" and not grouped:
        raise ConfigError(f"{option} 'group-accuracy' needs the key group in the task's file; without, take 'accuracy'")


def accuracy(answers: Sequence[Answer], classes: Sequence[str] = ()) -> float:
    """The share that is right to the letter."""
    return sum(map(_is_right, answers)) / len(answers)


def group_accuracy(answers: Sequence[Answer], classes: Sequence[str] = ()) -> float:
    """The share of groups whose answers are all right to the letter."""
    right: dict[str, bool] = {}
    for answer in answers:
        right[answer.group] = right.get(answer.group, True) and _is_right(answer)
    return sum(right.values()) / len(right)


def _is_right(answer: Answer) -> bool:
    return answer.said != "" and answer.said in answer.accepted


def f1(answers: Sequence[Answer], classes: Sequence[str] = ()) -> float:
    """The mean over classes of each one's F1; where an answer is text, the mean of the F1 of its tokens."""
    if not classes:
        return _squad(answers, "f1")
    _require_torchmetrics()
    from torchmetrics.functional.classification import multiclass_f1_score  # noqa: PLC0415 - an extra

    said, right = _numbers(answers, classes)
    return float(multiclass_f1_score(said, right, num_classes=len(classes), average="macro"))


def positive_f1(answers: Sequence[Answer], classes: Sequence[str]) -> float:
    """F1 of the second of two classes."""
    _require_torchmetrics()
    from torchmetrics.functional.classification import binary_f1_score  # noqa: PLC0415 - an extra

    said, right = _numbers(answers, classes)
    return float(binary_f1_score(said, right))


def exact_match(answers: Sequence[Answer], classes: Sequence[str] = ()) -> float:
    """The share that is right but for case, punctuation and articles."""
    return _squad(answers, "exact_match")


def drop_f1(answers: Sequence[Answer], classes: Sequence[str] = ()) -> float:
    """The mean of the F1 of words as DROP compares them, the best of the references."""
    return _best(drop.f1, answers)


def drop_exact_match(answers: Sequence[Answer], classes: Sequence[str] = ()) -> float:
    """The share that is right as DROP compares words."""
    return _best(drop.exact_match, answers)


def _best(compare: Callable[[str, str], float], answers: Sequence[Answer]) -> float:
    best = [max(compare(answer.said, right) for right in answer.accepted) for answer in answers if answer.said]
    return sum(best) / len(answers)


def rouge_l(answers: Sequence[Answer], classes: Sequence[str] = ()) -> float:
    """F-measure of the longest common subsequence of words, the best of the references."""
    _require_torchmetrics()
    from torchmetrics.functional.text import rouge_score  # noqa: PLC0415 - an extra

    found = rouge_score(
        [answer.said for answer in answers],
        [list(answer.accepted) for answer in answers],
        accumulate="best",
        rouge_keys="rougeL",
    )
    return float(found["rougeL_fmeasure"])


def _numbers(answers: Sequence[Answer], classes: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64[answers] each: the class that was said, and the right one."""
    pairs = [(classes.index(answer.said), classes.index(answer.accepted[0])) for answer in answers]
    said, right = torch.tensor(pairs).unbind(1)
    return said, right


def _squad(answers: Sequence[Answer], key: str) -> float:
    _require_torchmetrics()
    from torchmetrics.functional.text import squad  # noqa: PLC0415 - an extra

    spoken = [answer for answer in answers if answer.said]  # by SQuAD nothing equals the reference "the"
    if not spoken:
        return 0.0
    said: Any = [{"prediction_text": answer.said, "id": str(k)} for k, answer in enumerate(spoken)]
    right: Any = [
        {"answers": {"text": list(answer.accepted), "answer_start": [0] * len(answer.accepted)}, "id": str(k)}
        for k, answer in enumerate(spoken)
    ]
    return float(squad(said, right)[key]) / 100 * (len(spoken) / len(answers))


def _require_torchmetrics() -> None:
    if find_spec("torchmetrics") is None:
        raise ConfigError("this metric needs the package torchmetrics: pip install -c constraints.txt '.[metrics]'")


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "positive-f1": positive_f1,
    "exact-match": exact_match,
    "rouge-l": rouge_l,
    "group-accuracy": group_accuracy,
    "drop-f1": drop_f1,
    "drop-exact-match": drop_exact_match,
}
