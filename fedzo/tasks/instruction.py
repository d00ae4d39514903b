"""`instruction`: a response is learnt, given a prompt; the prompt itself is masked.

An example is a row: the template `prompt` and the template `response`, filled with the row's fields. The loss is the
mean cross-entropy of the response's tokens and the end token. Where the task states metrics, or an objective, answers
are decoded greedily and compared with the response, or with the row's `references`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedzo.errors import ConfigError, DataError
from fedzo.estimate import Batch
from fedzo.journal import records
from fedzo.tasks.decoding import greedy_answer
from fedzo.tasks.metrics import Answer
from fedzo.tasks.rows import Fields, Row
from fedzo.tasks.sequences import TokenSequence, answered, asked, joined, padded
from fedzo.tasks.task import Task
from fedzo.tasks.template import check_template, fill, value_of

_OURS = ("prompts", "accepted", "groups")
"""What a batch holds beside the model's input."""


class Question(NamedTuple):
    """A row: its prompt with the response, the prompt alone, and what is right."""

    sequence: TokenSequence
    prompt: NDArray[np.int64]
    """int64[tokens], cut so that the longest answer fits after it; empty where nothing is generated."""
    accepted: tuple[str, ...]
    group: str


class InstructionTuning(Task):
    """See `fedzo.tasks.task.Task`."""

    uses = frozenset({"prompt", "response"})
    may_use = frozenset({"references", "final_mark", "stop", "answer_tokens", "metrics", "objective", "group"})

    @classmethod
    def check(cls, spec: records.Task) -> None:
        """Both templates must be there, and room for an answer where one is generated."""
        super().check(spec)
        check_template("prompt", spec.prompt)
        check_template("response", spec.response)
        if _generates(spec) and not 1 <= spec.answer_tokens < spec.max_length:
            raise ConfigError(
                f"answer-tokens is {spec.answer_tokens} and --max-length {spec.max_length}; a task whose answers are "
                "generated needs at least 1, in its file, and more room than that"
            )

    def text(self, fields: Fields) -> str:
        """The response; a row without one is left out."""
        return fill(self.spec.response, fields)

    def shown(self, row: Row) -> str:
        """The prompt with its response."""
        return joined(fill(self.spec.prompt, row.fields), row.text)

    def examples(self, rows: Sequence[Row]) -> list[Question]:
        """One a row; the response's tokens are predicted."""
        spec, found = self.spec, []
        for row in rows:
            prompt = self.demonstrations + fill(spec.prompt, row.fields)
            sequence = answered(self.tokenizer, prompt, row.text, spec.max_length, end=True)
            if _generates(spec):
                alone = asked(self.tokenizer, prompt, spec.max_length - spec.answer_tokens)
                found.append(Question(sequence, alone, self._accepted(row), fill(spec.group, row.fields)))
            else:
                found.append(Question(sequence, sequence.ids[:0], (), ""))
        return found

    def collate(self, examples: Sequence[Question]) -> tuple[Batch, int]:
        """The loss is the mean of the tokens predicted."""
        ours = {
            "prompts": [example.prompt for example in examples],
            "accepted": [example.accepted for example in examples],
            "groups": [example.group for example in examples],
        }
        predicted = sum(example.sequence.predicted for example in examples)
        return padded([example.sequence for example in examples]) | ours, predicted

    def length(self, example: Question) -> int:
        """Tokens of the prompt with its response."""
        return len(example.sequence.ids)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy of the response's tokens, as the model computes it; or the objective."""
        return self.shortfall(model, batch) if self.spec.objective else self._cross_entropy(model, batch)

    def measure(self, model: nn.Module, batch: Batch) -> tuple[float, None]:
        """The cross-entropy; answers are generated for `fedzo evaluate` alone, since that takes long."""
        return float(self._cross_entropy(model, batch)), None

    def judge(self, model: nn.Module, batch: Batch) -> tuple[float, list[Answer]]:
        """Cross-entropy, and what the model says to each prompt."""
        return float(self._cross_entropy(model, batch)), self._answers(model, batch)

    def shortfall(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """See `Task`; without the cross-entropy, which is not asked for."""
        return self._shortfall_of(self._answers(model, batch))

    def _answers(self, model: nn.Module, batch: Batch) -> list[Answer]:
        spec, found = self.spec, []
        for prompt, accepted, group in zip(batch["prompts"], batch["accepted"], batch["groups"], strict=True):
            said = greedy_answer(model, self.tokenizer, prompt, answer_tokens=spec.answer_tokens, stop=spec.stop)
            found.append(Answer(self._final(said), accepted, group))
        return found

    def _accepted(self, row: Row) -> tuple[str, ...]:
        mark = self.spec.final_mark
        if not self.spec.references:
            if not (right := self._final(row.text)):
                raise DataError(f"{row.where}: the response {row.text!r} has nothing after the final mark {mark!r}")
            return (right,)
        given = value_of(self.spec.references, row)
        texts = tuple(given) if isinstance(given, list) else (given,)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{row.where}: {self.spec.references!r} holds {given!r}; expected one text or more")
        return tuple(self._final(text if mark in text else mark + text) for text in texts)  # most come without it

    def _final(self, text: str) -> str:
        """What follows the mark, without space and the commas of large numbers; nothing where there is no mark."""
        mark = self.spec.final_mark
        return text.partition(mark)[2].replace(",", "").strip() if mark else text.strip()

    def _cross_entropy(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        given = {name: value for name, value in batch.items() if name not in _OURS}
        return model(**given, use_cache=False).loss  # type: ignore[no-any-return]


def _generates(spec: records.Task) -> bool:
    return bool(spec.metrics or spec.objective)
