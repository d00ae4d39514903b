"""What a step is: how far the weights go, along what, and on which examples."""

from dataclasses import dataclass
from typing import Annotated

from fedzo.coordinator.schedule import SCHEDULES
from fedzo.errors import ConfigError
from fedzo.noise import Distribution
from fedzo.options.checks import MOST, require_choice, require_range

AUTO = "auto"
"""A learning rate that calibrations find."""


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Learning rate, perturbation and batch, and what is done when the loss blows up."""

    lr: Annotated[
        float | str,
        "Learning rate, or auto: found before the first round and as the run goes on; the more rounds, the smaller.",
    ] = AUTO
    schedule: Annotated[str, "Learning rate over rounds: constant, linear or cosine, the latter two to zero."] = (
        "linear"
    )
    warmup: Annotated[int, "Rounds over which the learning rate rises before that."] = 0
    epsilon: Annotated[float, "Size of the perturbation."] = 1e-3
    guard: Annotated[float, "Roll back when a loss exceeds this times the best; 0 turns the guard off."] = 1.25
    batch_size: Annotated[int, "Examples of a batch."] = 16
    max_length: Annotated[int, "Most tokens of an example."] = 128
    distribution: Annotated[str, "Directions: rademacher or gaussian."] = "rademacher"

    def check_step(self, rounds: int) -> None:
        """Raises ConfigError, naming the option."""
        if not isinstance(self.lr, str):
            require_range("lr", self.lr, 0.0, 1e3)
        elif self.lr != AUTO:
            raise ConfigError(f"option lr is {self.lr!r}; expected {AUTO!r}, or a number such as 1e-4")
        require_choice("schedule", self.schedule, SCHEDULES)
        require_range("warmup", self.warmup, 0, rounds)
        require_range("epsilon", self.epsilon, 2.0**-40, 1.0)
        if self.guard and not 1 < self.guard < MOST:
            raise ConfigError(f"option guard is {self.guard}; give a factor above 1, or 0 to turn it off")
        require_range("batch_size", self.batch_size, 1, MOST)
        require_range("max_length", self.max_length, 2, MOST)
        require_choice("distribution", self.distribution, tuple(Distribution))
