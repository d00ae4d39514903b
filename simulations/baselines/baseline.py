"""What a baseline is: rounds on a plain model, counted and measured as a simulation's rounds are."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fedzo.base.checkpoint import unique_parameters
from fedzo.estimate import Batch, Loss, Measure
from fedzo.journal import Rules
from fedzo.tasks.examples import ClientExamples
from fedzo.tasks.task import Measured

GRADIENT_FORWARDS = 3
"""What a step with back-propagation counts in forward passes: its own, and two for the way back."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is trained, and on what."""

    model: nn.Module
    """Float32 weights, in eval mode."""
    clients: Sequence[ClientExamples]
    collate: Callable[[Sequence[Any]], tuple[Batch, int]]
    loss: Loss
    measure: Measure[Measured]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Each parameter once, in the replica's order."""
        return list(unique_parameters(self.model).values())

    def pooled(self, run_seed: int) -> ClientExamples:
        """All clients' training examples in one place, in an order drawn as one client's is."""
        return ClientExamples(
            [example for client in self.clients for example in client.training],
            [],
            collate=self.collate,
            length=lambda example: 0,
            run_seed=run_seed,
            client=0,
            evaluation_batch=1,
        )


class Baseline(ABC):
    """One training of one subject.

    Args:
        subject: its model is trained in place.
        rules: of a run of fedzo with the same options; of those a baseline takes what it has a use for.
        run_seed: of everything that is drawn.
    """

    federated: ClassVar[bool] = False
    """Each client works on its own data; else one place holds all of it."""
    needs_gradient: ClassVar[bool] = True
    """It takes the way back through the loss, so it cannot train on an objective that has no gradient."""

    def __init__(self, subject: Subject, rules: Rules, run_seed: int) -> None:
        self.subject = subject
        self.rules = rules
        self.run_seed = run_seed

    @classmethod
    @abstractmethod
    def forwards(cls, rules: Rules) -> int:
        """Forward passes of a round, all clients together."""

    @classmethod
    def traffic(cls, rules: Rules, parameters: int) -> tuple[int, int]:
        """Bytes up and down of a round, all clients together; the data of a central training is there already.

        Args:
            rules: of the run.
            parameters: of the model.
        """
        return 0, 0

    @abstractmethod
    def round(self, number: int, learning_rate: float) -> float:
        """Train for one round, counted from 1; the mean training loss."""
