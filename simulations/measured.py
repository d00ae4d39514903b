"""Loss and metrics of a model as it is, on examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf
from typing import Any, NamedTuple

from fedzo.estimate import Batch, Measure
from fedzo.tasks.metrics import Answer, score
from fedzo.tasks.task import Task, class_names


class Subject(NamedTuple):
    """A model, and what it is evaluated on."""

    measure_all: Callable[[Sequence[Batch], Measure[Any]], list[Any]]
    task: Task
    examples: list[Any]
    batch_size: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What was found."""

    loss: float
    metrics: Mapping[str, float]
    examples: int
    """What the loss is the mean of: predicted tokens, or rows where a label is predicted."""
    of_tokens: bool
    """The former."""
    cut: int
    """Of the rows, those that fill `max_length` and so may have been cut."""
    answers: Sequence[Answer] = field(default=(), repr=False)
    """What the metrics were computed of, where the task gives answers."""

    @property
    def counted(self) -> str:
        """`1,234 predicted tokens`, or rows."""
        return f"{self.examples:,} {'predicted tokens' if self.of_tokens else 'rows'}"

    @property
    def perplexity(self) -> float | None:
        """exp(loss), where the loss is that of tokens; inf where that is more than a float holds."""
        if not self.of_tokens:
            return None
        try:
            return exp(self.loss)
        except OverflowError:
            return inf


def measured(subject: Subject, *, answers_too: bool = True) -> Evaluated:
    """Evaluate a model as it is now.

    Args:
        subject: the model and its data.
        answers_too: have it answer where the task's metrics are of answers; else they are left out.
    """
    measure_all, task, examples, batch_size = subject
    ordered = sorted(examples, key=task.length, reverse=True)
    collated = [task.collate(ordered[low : low + batch_size]) for low in range(0, len(ordered), batch_size)]
    counts = [count for _, count in collated]
    judged = answers_too and bool(task.spec.metrics)
    found = measure_all([batch for batch, _ in collated], task.judge if judged else task.measure)
    total = sum(counts)
    loss = sum(mean * count for (mean, _), count in zip(found, counts, strict=True)) / total
    answers: list[Answer] = [answer for _, answered in found for answer in answered] if judged else []
    if judged:
        classes = class_names(task.spec)
        metrics = {name: score(name, answers, classes) for name in task.spec.metrics}
    elif task.metric:
        mean = sum((scored or 0.0) * count for (_, scored), count in zip(found, counts, strict=True)) / total
        metrics = {task.metric: mean}
    else:
        metrics = {}
    cut = sum(task.length(example) >= task.spec.max_length for example in examples)
    return Evaluated(loss, metrics, total, task.metric is None, cut, answers)
