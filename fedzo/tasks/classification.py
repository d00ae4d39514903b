"""`classification`: by the likelihood of candidates, with the model's own language-model head.

As MeZO does (Malladi et al. 2023, appendix E): a row's prompt is followed by each candidate, a candidate's score is
the mean log-probability of its tokens, and the loss is the cross-entropy of the right one among the scores. Accuracy is
the share of rows whose best-scoring candidate is right.

Candidates are how the labels are said. They are templates, so a multiple-choice question is one whose labels stand for
the row's own texts; labels that are said the same are one class. With `choices` a row brings a list of candidates, and
its label is one of them, or a list of those that are right; the loss then takes the first.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from fedzo.errors import ConfigError, DataError
from fedzo.estimate import Batch
from fedzo.journal import records
from fedzo.tasks.labels import class_of
from fedzo.tasks.metrics import Answer, accuracy
from fedzo.tasks.rows import Fields, Row
from fedzo.tasks.sequences import IGNORED_LABEL, TokenSequence, answered, joined, padded
from fedzo.tasks.task import LABELS, Measured, Task, class_names
from fedzo.tasks.template import check_template, fill, value_of

_OURS = ("labels", "right", "names", "accepted", "groups")
"""What a batch holds beside the model's input."""


class Choice(NamedTuple):
    """A row: its prompt with each candidate, and which is right."""

    sequences: tuple[TokenSequence, ...]
    right: int
    names: tuple[str, ...]
    """What each candidate is called."""
    accepted: tuple[str, ...]
    """Names that are right."""
    group: str


class CandidateClassification(Task):
    """See `fedzo.tasks.task.Task`."""

    metric = "accuracy"
    uses = frozenset({"prompt", "label_field"})
    may_use = frozenset({"labels", "choices", "metrics", "objective", "group"})

    @classmethod
    def check(cls, spec: records.Task) -> None:
        """Prompt and label field must be there, and either labels or choices."""
        super().check(spec)
        check_template("prompt", spec.prompt)
        if spec.labels and spec.choices:
            raise ConfigError(f"task {spec.name!r} needs option labels, or choices in its file; it has both")
        for candidate in spec.candidates:
            check_template("labels", candidate)
        if spec.labels and len(class_names(spec)) < 2:
            raise ConfigError(f"option labels: all are said {spec.candidates[0]!r}; give two words or more")

    @classmethod
    def missing(cls, spec: records.Task) -> list[str]:
        """Labels are also missing where there are no choices."""
        either = [] if spec.labels or spec.choices else [f"{LABELS}, or choices in its file"]
        return super().missing(spec) + either

    def text(self, fields: Fields) -> str:
        """The prompt."""
        return fill(self.spec.prompt, fields)

    def shown(self, row: Row) -> str:
        """The prompt with its right candidate."""
        said, right, _, _ = self._candidates(row)
        return joined(row.text, said[right])

    def examples(self, rows: Sequence[Row]) -> list[Choice]:
        """One a row."""
        most, found = self.spec.max_length, []
        for row in rows:
            said, right, names, accepted = self._candidates(row)
            prompt = self.demonstrations + row.text
            sequences = tuple(answered(self.tokenizer, prompt, text, most, end=False) for text in said)
            found.append(Choice(sequences, right, names, accepted, fill(self.spec.group, row.fields)))
        return found

    def collate(self, examples: Sequence[Choice]) -> tuple[Batch, int]:
        """Candidates of a row lie one after the other; `right` is int64[rows]."""
        batch = padded([sequence for example in examples for sequence in example.sequences])
        ours = {
            "right": torch.tensor([example.right for example in examples]),
            "names": [example.names for example in examples],
            "accepted": [example.accepted for example in examples],
            "groups": [example.group for example in examples],
        }
        return batch | ours, len(examples)

    def length(self, example: Choice) -> int:
        """Tokens of the longest candidate with its prompt."""
        return max(len(sequence.ids) for sequence in example.sequences)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the right candidate, or the objective."""
        if self.spec.objective:
            return self.shortfall(model, batch)
        return cross_entropy(self._scores(model, batch), batch["right"])

    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Loss and accuracy."""
        loss, answers = self.judge(model, batch)
        return loss, accuracy(answers)

    def judge(self, model: nn.Module, batch: Batch) -> tuple[float, list[Answer]]:
        """Loss, and the name of the best-scoring candidate of each row."""
        scores = self._scores(model, batch)
        rows = zip(scores.argmax(dim=1).tolist(), batch["names"], batch["accepted"], batch["groups"], strict=True)
        answers = [Answer(names[best], accepted, group) for best, names, accepted, group in rows]
        return float(cross_entropy(scores, batch["right"])), answers

    def _candidates(self, row: Row) -> tuple[tuple[str, ...], int, tuple[str, ...], tuple[str, ...]]:
        """How each candidate is said, which is right, what they are called, and the names that are right."""
        spec = self.spec
        if spec.choices:
            said = _choices(value_of(spec.choices, row), spec.choices, row)
            given = value_of(spec.label_field, row)
            accepted = tuple(given) if isinstance(given, list) else (given,)
            known = [text for text in accepted if text in said]
            if not known:
                raise DataError(f"{row.where}: none of {accepted!r} is among the row's choices {said!r}")
            return said, said.index(known[0]), said, accepted
        names = class_names(spec)
        right = names.index(spec.candidates[class_of(spec, row)])
        said = tuple(fill(name, row.fields) for name in names)
        for name, text in zip(names, said, strict=True):
            if not text.strip():
                raise DataError(f"{row.where}: the label that is said {name!r} is blank here; each must say something")
        return said, right, names, (names[right],)

    def _scores(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean log-probability of each candidate's tokens: float32[rows, most candidates], −inf where there is none."""
        given = {name: value for name, value in batch.items() if name not in _OURS}
        logits = model(**given, use_cache=False).logits[:, :-1].float()
        labels = batch["labels"][:, 1:]
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
        means = losses.view_as(labels).sum(dim=1) / (labels != IGNORED_LABEL).sum(dim=1)
        of_rows = list(torch.split(-means, [len(names) for names in batch["names"]]))
        return pad_sequence(of_rows, batch_first=True, padding_value=-torch.inf)


def _choices(given: Any, field: str, row: Row) -> tuple[str, ...]:
    """A row's own candidates, each once."""
    if not (isinstance(given, list) and given and all(isinstance(text, str) and text.strip() for text in given)):
        raise DataError(f"{row.where}: {field!r} holds {given!r}; expected a list of texts, none of them blank")
    return tuple(dict.fromkeys(given))
