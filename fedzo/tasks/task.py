"""What a task is: from rows to examples, batches, a loss, and a measure of how well a model does."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedzo.errors import ConfigError, DataError
from fedzo.estimate import Batch
from fedzo.journal import records
from fedzo.tasks.metrics import Answer, check_metric, score
from fedzo.tasks.rows import TEXT_FIELD, Fields, Row, missing_field
from fedzo.tasks.template import check_template

Example = Any
"""Whatever `examples` makes and `collate` takes."""
OPTIONS = (
    "prompt",
    "response",
    "label_field",
    "labels",
    "choices",
    "references",
    "final_mark",
    "stop",
    "answer_tokens",
    "metrics",
    "objective",
    "group",
)
"""Fields of the spec that not every task has a use for."""
LABELS = "labels (which a simulation finds in its data)"
"""How that option is said to be missing."""
Measured = tuple[float, float | None]
"""Loss, and the task's metric where it has one."""


class Task(ABC):
    """One kind of training. Subclass it and name the class in the entry point group `fedzo.tasks` to add one.

    Args:
        spec: what the journal states of the task, the same for all clients.
        tokenizer: of the model.
        text_field: which field of a row is its text; a client's own matter.
    """

    metric: str | None = None
    """What the metric of `measure` is called."""
    uses: frozenset[str] = frozenset()
    """Which of `OPTIONS` must be there."""
    may_use: frozenset[str] = frozenset()
    """Which of them may be there; others must not."""
    head = False
    """The model gets a classification head, one output a label."""

    def __init__(self, spec: records.Task, tokenizer: Any, text_field: str = TEXT_FIELD) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.text_field = text_field
        self.demonstrations = ""
        """Text before every prompt: rows with their answers, for a model to learn from in its context."""

    @classmethod
    def check(cls, spec: records.Task) -> None:
        """Raises ConfigError where the spec lacks what the task uses, or states what it has no use for."""
        if missing := cls.missing(spec):
            noun = "option" if len(missing) == 1 else "options"
            raise ConfigError(f"task {spec.name!r} needs {noun} {', '.join(missing)}")
        for name in OPTIONS:
            value, option = getattr(spec, name), name.replace("_", "-")
            if name not in cls.uses | cls.may_use and value:
                raise ConfigError(
                    f"option {option} is {value!r}, but task {spec.name!r} has no use for it; leave it out"
                )
        check_template("group", spec.group)
        for option, metric in (*(("metric", metric) for metric in spec.metrics), ("objective", spec.objective)):
            if metric:
                check_metric(option, metric, len(class_names(spec)), grouped=bool(spec.group))

    @classmethod
    def missing(cls, spec: records.Task) -> list[str]:
        """Options that must be there and are not, as they are said in a message."""
        said = {"labels": LABELS}
        missing = [name for name in OPTIONS if name in cls.uses and not getattr(spec, name)]
        return [said.get(name, name.replace("_", "-")) for name in missing]

    def text(self, fields: Fields) -> str:
        """A row's text; rows without any are left out. Raises DataError where a field is missing."""
        if self.text_field not in fields:
            raise missing_field(self.text_field, fields, "name the text's field with --text-field")
        text = fields[self.text_field]
        if not isinstance(text, str):
            raise DataError(f"field {self.text_field!r} is {type(text).__name__}, expected text")
        return text

    def rows(self, rows: Sequence[Row], source: str) -> list[Row]:
        """Rows with their text, those whose text is blank left out.

        Raises:
            DataError: a row lacks a field, or none has text.
        """
        found = []
        for row in rows:
            try:
                found.append(replace(row, text=self.text(row.fields)))
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from error
        found = [row for row in found if row.text.strip()]
        if not found:
            raise DataError(f"{source}: holds no text")
        return found

    def demonstrate(self, rows: Sequence[Row]) -> None:
        """Put rows with their answers before every prompt.

        Raises:
            ConfigError: the task has no prompt.
        """
        self.demonstrations = "".join(self.shown(row) + "\n\n" for row in rows)

    def shown(self, row: Row) -> str:
        """A row's prompt with its answer. Raises ConfigError where the task has none."""
        raise ConfigError(f"task {self.spec.name!r} has no prompt to show demonstrations in; leave --shots out")

    @abstractmethod
    def examples(self, rows: Sequence[Row]) -> list[Example]:
        """What is trained on, made of rows; need not be one a row."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> tuple[Batch, int]:
        """A batch, and the number of things that its loss is the mean of."""

    @abstractmethod
    def length(self, example: Example) -> int:
        """Tokens; examples of equal length are evaluated together."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The scalar that is minimised."""

    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """How well the model does on a held-out batch."""
        return float(self.loss(model, batch)), None

    def judge(self, model: nn.Module, batch: Batch) -> tuple[float, Sequence[Answer]]:
        """Loss, and the answers that the metrics of the spec are computed of; none where the task gives none."""
        return self.measure(model, batch)[0], ()

    def shortfall(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """1 − the metric that is the objective. It has no gradient, and needs none."""
        return self._shortfall_of(self.judge(model, batch)[1])

    def _shortfall_of(self, answers: Sequence[Answer]) -> torch.Tensor:
        return torch.tensor(1.0 - score(self.spec.objective, answers, class_names(self.spec)))


def class_names(spec: records.Task) -> tuple[str, ...]:
    """What the classes are called: how labels are said, each once; none where a row brings its own candidates."""
    return tuple(dict.fromkeys(spec.candidates))
